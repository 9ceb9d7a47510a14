"""TLS as clients meet it: which certificate answers, what is demanded, and what an answer over TLS looks like."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
import trio

from tests.net.pki import Pki
from tests.net.tlsclient import Secure, Tls, all_gone, client_context, secure_site, tls_line
from tests.wire import Line, Stage, app, configuration, front

# ---------------------------------------------------------------------------------------------------- which certificate


async def test_the_certificate_is_chosen_by_name(pki: Pki, tmp_path: Path) -> None:
    async with app() as it, front(secure_site(it.url, f"{pki.entry('a')}, {pki.entry('b')}"), tmp_path) as stage:
        context = client_context(pki)
        for name, covered in (
            ("a.test", "a.test"),
            ("b.test", "b.test"),
            ("B.TEST", "b.test"),
            ("b.test.", "b.test"),
            ("y.wild.test", "*.wild.test"),
            ("X.wild.test.", "x.wild.test"),  # the exact name comes before the wildcard
        ):
            line = await tls_line(stage, context, name)
            assert covered in line.subject(), name
            assert ("a.test" in line.subject()) == (covered in ("a.test", "*.wild.test")), name
            head, body = await line.get(host="a.test")
            assert (head[:15], body) == (b"HTTP/1.1 200 OK", b"ok")
            await line.close()


@pytest.mark.parametrize("name", ["other.test", "wild.test", "p.q.wild.test", "test", None])
async def test_no_certificate_no_default_no_handshake(pki: Pki, tmp_path: Path, name: str | None) -> None:
    async with app() as it, front(secure_site(it.url, pki.entry("b")), tmp_path) as stage:
        with pytest.raises(ssl.SSLError, match="(?i)unrecognized.name"):
            await tls_line(stage, client_context(pki), name)
        await all_gone(stage)
        assert stage.reasons == {"TlsHostname": 1}
        assert f" TlsHostname - server+name+{name or '(none)'}\n" in stage.log("error")


async def test_the_default_answers_for_unknown_names_and_for_none(pki: Pki, tmp_path: Path) -> None:
    certificates = f"{pki.entry('b')}, {pki.entry('a')}"
    for default in ("a.test", "z.wild.test", "'1'"):
        text = secure_site("http://127.0.0.1:1", certificates, f"default: {default}")
        async with front(text, tmp_path) as stage:
            for name in ("other.test", "p.q.wild.test", None):
                line = await tls_line(stage, client_context(pki), name)
                assert "a.test" in line.subject(), (default, name)
            line = await tls_line(stage, client_context(pki), "b.test")
            assert "b.test" in line.subject()


async def test_a_client_of_an_address_gets_the_certificate_that_names_it(pki: Pki, tmp_path: Path) -> None:
    """It sends no server name (RFC 6066 3), and needs no default."""
    async with app() as it, front(secure_site(it.url, f"{pki.entry('b')}, {pki.entry('a')}"), tmp_path) as stage:
        context = client_context(pki)
        context.check_hostname = True
        line = await tls_line(stage, context, "127.0.0.1")
        assert "127.0.0.1" in line.subject()
        head, _ = await line.get(host="127.0.0.1")
        assert head.startswith(b"HTTP/1.1 200 OK")


async def test_pkcs12_and_the_key_in_the_certificate_file(pki: Pki, tmp_path: Path) -> None:
    certificates = f"{{pfx: {pki.pfx}, password: geheim}}, {{cert: {pki.both}}}"
    async with app() as it, front(secure_site(it.url, certificates), tmp_path) as stage:
        for name in ("a.test", "b.test"):
            context = client_context(pki)
            context.check_hostname = True
            line = await tls_line(stage, context, name)
            assert (await line.get(host=name))[1] == b"ok"
        sources = {profile.certificate.source for profile in stage.front.service.world.profiles.profiles}
        assert sources == {str(pki.pfx), str(pki.both)}


# ---------------------------------------------------------------------------------------------------- versions, suites


async def test_tls_1_1_is_refused(pki: Pki, tmp_path: Path) -> None:
    async with front(secure_site("http://127.0.0.1:1", pki.entry("a")), tmp_path) as stage:
        with pytest.raises(ssl.SSLError, match="(?i)alert.protocol.version"):
            await tls_line(stage, client_context(pki, version="1.1"), "a.test")
        await all_gone(stage)
        assert stage.reasons == {"TlsHandshake": 1}
        assert "TlsHandshake - UNSUPPORTED_PROTOCOL" in stage.log("error")


async def test_the_minimum_version_of_one_host(pki: Pki, tmp_path: Path) -> None:
    text = secure_site("http://127.0.0.1:1", pki.entry("locked"), "hosts: {modern.test: {min_version: '1.3'}}")
    async with front(text, tmp_path) as stage:
        old, new = client_context(pki, version="1.2"), client_context(pki, version="1.3")
        assert (await tls_line(stage, old, "open.test")).tls.version() == "TLSv1.2"
        assert (await tls_line(stage, new, "open.test")).tls.version() == "TLSv1.3"
        assert (await tls_line(stage, new, "modern.test")).tls.version() == "TLSv1.3"
        with pytest.raises(ssl.SSLError, match="(?i)alert.protocol.version"):
            await tls_line(stage, old, "modern.test")


async def test_only_aead_suites_with_forward_secrecy(pki: Pki, tmp_path: Path) -> None:
    async with front(secure_site("http://127.0.0.1:1", pki.entry("a")), tmp_path) as stage:
        (profile,) = stage.front.service.world.profiles.profiles
        names = [str(cipher["name"]) for cipher in profile.context.get_ciphers()]
        assert names
        assert [name for name in names if not name.startswith(("TLS_", "ECDHE-"))] == []
        assert [name for name in names if "GCM" not in name and "POLY1305" not in name] == []
        for suites in ("ECDHE-ECDSA-AES128-SHA256", "ECDHE-ECDSA-AES256-SHA", "AES128-GCM-SHA256"):
            context = client_context(pki, version="1.2")
            context.set_ciphers(suites + ":@SECLEVEL=0")
            with pytest.raises(ssl.SSLError, match="(?i)handshake.failure"):
                await tls_line(stage, context, "a.test")
        context = client_context(pki, version="1.2")
        context.set_ciphers("ECDHE-ECDSA-CHACHA20-POLY1305")
        line = await tls_line(stage, context, "a.test")
        assert (line.tls.cipher() or ("",))[0] == "ECDHE-ECDSA-CHACHA20-POLY1305"


async def test_alpn_is_http_1_1(pki: Pki, tmp_path: Path) -> None:
    async with app() as it, front(secure_site(it.url, pki.entry("a")), tmp_path) as stage:
        line = await tls_line(stage, client_context(pki), "a.test")
        assert line.tls.selected_alpn_protocol() == "http/1.1"
        none = client_context(pki)
        none.set_alpn_protocols([])
        line = await tls_line(stage, none, "a.test")
        assert line.tls.selected_alpn_protocol() is None
        assert (await line.get())[1] == b"ok"


# ---------------------------------------------------------------------------------------------------- client certificates

HOSTS = """hosts: {{
    locked.test: {{client_certificate: required, ca: {ca}, crl: {crl}}},
    locked2.test: {{client_certificate: required, ca: {ca}, crl: {crl}}},
    optional.test: {{client_certificate: optional, ca: {ca}}}}}
"""
URLS = "[https://locked.test/, https://locked2.test/, https://optional.test/, https://open.test/, https://a.test/]"


def locked_site(pki: Pki, target: str, *, default: str = "", extra: str = "") -> str:
    tls = HOSTS.format(ca=pki.client_ca, crl=pki.crl) + (f"  default: {default}\n" if default else "")
    return secure_site(target, f"{pki.entry('locked')}, {pki.entry('a')}", tls, URLS, extra)


async def refused(stage: Stage, context: ssl.SSLContext, name: str, session: ssl.SSLSession | None = None) -> str:
    """The error of a client that is refused for its certificate: in the handshake (1.2) or at its first read (1.3)."""
    with pytest.raises(ssl.SSLError) as caught:
        line = await tls_line(stage, context, name, session=session)
        try:
            await line.get(host=name)
        finally:
            await line.close()
    return str(caught.value).upper().replace(" ", "_")


@pytest.mark.parametrize("version", ["1.2", "1.3"])
async def test_a_client_without_a_certificate_does_not_get_in(pki: Pki, tmp_path: Path, version: str) -> None:
    async with app() as it, front(locked_site(pki, it.url), tmp_path) as stage:
        error = await refused(stage, client_context(pki, version=version), "locked.test")
        # TLS 1.2 has no alert of its own for it
        assert ("CERTIFICATE_REQUIRED" if version == "1.3" else "HANDSHAKE_FAILURE") in error
        await all_gone(stage)
        assert it.heads == []
        assert stage.reasons == {"TlsHandshake": 1}
        assert "PEER_DID_NOT_RETURN_A_CERTIFICATE" in stage.log("error")


@pytest.mark.parametrize("version", ["1.2", "1.3"])
@pytest.mark.parametrize(
    ("certificate", "alert", "logged"),
    [("stranger", "UNKNOWN_CA", "unable+to+get+local+issuer+certificate"),
     ("revoked", "CERTIFICATE_REVOKED", "certificate+revoked")],
)  # fmt: skip
async def test_a_certificate_that_does_not_count(
    pki: Pki, tmp_path: Path, version: str, certificate: str, alert: str, logged: str
) -> None:
    async with app() as it, front(locked_site(pki, it.url), tmp_path) as stage:
        assert alert in await refused(stage, client_context(pki, certificate, version), "locked.test")
        await all_gone(stage)
        assert it.heads == []
        assert logged in stage.log("error")


@pytest.mark.parametrize("version", ["1.2", "1.3"])
async def test_with_the_right_certificate(pki: Pki, tmp_path: Path, version: str) -> None:
    async with app() as it, front(locked_site(pki, it.url), tmp_path) as stage:
        line = await tls_line(stage, client_context(pki, "good", version), "locked.test")
        assert (await line.get(host="locked.test"))[1] == b"ok"
        assert (await line.get(host="locked2.test"))[1] == b"ok"  # the same demands: the connection may be shared
        assert stage.reasons == {}


@pytest.mark.parametrize("version", ["1.2", "1.3"])
async def test_an_optional_certificate(pki: Pki, tmp_path: Path, version: str) -> None:
    async with app() as it, front(locked_site(pki, it.url), tmp_path) as stage:
        for certificate in (None, "good", "revoked"):  # this host has no CRL
            line = await tls_line(stage, client_context(pki, certificate, version), "optional.test")
            assert (await line.get(host="optional.test"))[1] == b"ok"
        assert "UNKNOWN_CA" in await refused(stage, client_context(pki, "stranger", version), "optional.test")


async def test_a_ca_beside_the_revocation_lists_is_not_trusted(pki: Pki, tmp_path: Path) -> None:
    """OpenSSL would take certificates out of the CRL file as authorities."""
    crl = tmp_path / "both.crl"
    crl.write_bytes(pki.strangers.cert_pem.bytes() + pki.revoke() + pki.revoke("revoked"))
    tls = f"hosts: {{locked.test: {{client_certificate: required, ca: {pki.client_ca}, crl: {crl}}}}}"
    text = secure_site("http://127.0.0.1:1", pki.entry("locked"), tls, "[https://locked.test/]")
    async with front(text, tmp_path) as stage:
        assert "UNKNOWN_CA" in await refused(stage, client_context(pki, "stranger"), "locked.test")


# ---------------------------------------------------------------------------------------------------- resumption


async def session_of(line: Tls, host: str) -> ssl.SSLSession:
    """The session of a line; TLS 1.3 sends its ticket behind the handshake, so a request is made first."""
    assert (await line.get(host=host))[0].startswith(b"HTTP/1.1 200")
    session = line.tls.session
    assert session is not None
    return session


@pytest.mark.parametrize("version", ["1.2", "1.3"])
async def test_a_session_resumes_on_its_own_host_and_over_a_reload(pki: Pki, tmp_path: Path, version: str) -> None:
    async with app() as it:
        text = locked_site(pki, it.url)
        async with front(text, tmp_path) as stage:
            context = client_context(pki, "good", version)
            session = await session_of(await tls_line(stage, context, "locked.test"), "locked.test")
            line = await tls_line(stage, context, "locked.test", session=session)
            assert line.tls.session_reused
            assert (await line.get(host="locked.test"))[1] == b"ok"  # what was verified then still holds
            changed = text.replace("targets:", "concurrency: 5, targets:")
            report = await stage.front.reload(lambda: configuration(changed, tmp_path))
            assert (report.errors, report.changed) == ([], ["pool app changed"])
            line = await tls_line(stage, context, "locked.test", session=session)
            assert line.tls.session_reused


@pytest.mark.parametrize("version", ["1.2", "1.3"])
@pytest.mark.parametrize("first", ["open.test", "optional.test"])
async def test_a_session_of_an_open_host_opens_no_locked_one(
    pki: Pki, tmp_path: Path, version: str, first: str
) -> None:
    async with app() as it, front(locked_site(pki, it.url), tmp_path) as stage:
        context = client_context(pki, version=version)
        session = await session_of(await tls_line(stage, context, first), first)
        line = await tls_line(stage, context, first, session=session)
        assert line.tls.session_reused  # a ticket that works, where it belongs
        error = await refused(stage, context, "locked.test", session)
        assert ("CERTIFICATE_REQUIRED" if version == "1.3" else "HANDSHAKE_FAILURE") in error
        assert all(b"Host: locked" not in head for head in it.heads)


@pytest.mark.parametrize("version", ["1.2", "1.3"])
async def test_a_session_does_not_outlive_what_it_was_made_under(pki: Pki, tmp_path: Path, version: str) -> None:
    """A certificate revoked by a reload: its old session is worth nothing."""
    crl = tmp_path / "own.crl"
    crl.write_bytes(pki.revoke())
    async with app() as it:
        text = locked_site(pki, it.url).replace(str(pki.crl), str(crl))
        async with front(text, tmp_path) as stage:
            context = client_context(pki, "good", version)
            line = await tls_line(stage, context, "locked.test")
            session = await session_of(line, "locked.test")
            crl.write_bytes(pki.revoke("good"))
            assert (await stage.front.reload(lambda: configuration(text, tmp_path))).ok
            assert "CERTIFICATE_REVOKED" in await refused(stage, context, "locked.test", session)
            # the connection lives on, but was made under other demands than those of now
            assert (await line.get(host="locked.test"))[0].startswith(b"HTTP/1.1 421 Misdirected Request\r\n")


# ---------------------------------------------------------------------------------------------------- 421


async def test_a_host_with_other_demands_is_misdirected(pki: Pki, tmp_path: Path) -> None:
    async with app() as it, front(locked_site(pki, it.url, default="open.test"), tmp_path) as stage:
        with_certificate = client_context(pki, "good")
        for name, host, status in (
            ("open.test", "locked.test", 421),
            ("open.test", "LOCKED.test.:443", 421),
            ("open.test", "optional.test", 421),
            ("open.test", "a.test", 200),  # another certificate, the same demands
            (None, "locked.test", 421),
            (None, "open.test", 200),
            ("unknown.test", "locked.test", 421),
            ("locked.test", "open.test", 421),
            ("locked.test", "unknown.test", 421),
            ("locked.test", "locked2.test", 200),
        ):
            line = await tls_line(stage, with_certificate, name)
            head, body = await line.get(host=host)
            assert head.startswith(b"HTTP/1.1 %d " % status), (name, host, head)
            if status == 421:
                assert b"Reason: Misdirected" in body
                # the connection itself is good for its own host
                assert (await line.get(host=name or "open.test"))[0][9:12] in (b"200", b"400"), (name, host)
            await line.close()
        passed = [head.split(b"Host: ")[1].split(b"\r\n")[0] for head in it.heads]
        assert passed.count(b"locked.test") == 2  # asked for by locked.test's own connections, after the 421s


async def test_absolute_form_does_not_get_round_it(pki: Pki, tmp_path: Path) -> None:
    async with app() as it, front(locked_site(pki, it.url), tmp_path) as stage:
        line = await tls_line(stage, client_context(pki), "open.test")
        head, _ = await line.ask(b"GET https://locked.test/ HTTP/1.1\r\nHost: locked.test\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 421 ")
        head, _ = await line.ask(b"GET https://locked.test/ HTTP/1.0\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 421 ")
        assert it.heads == []


@pytest.mark.parametrize(
    ("url", "demanding", "host"),
    [
        ("https://*.wild.test/", '"*.wild.test"', "p.q.wild.test"),  # the UrlPrefix covers it, no certificate does
        ("https://127.0.0.1/", "127.0.0.1", "whatever.test"),  # an IP-bound UrlPrefix takes every name
    ],
)
async def test_a_name_that_no_certificate_covers_does_not_get_round_it(
    pki: Pki, tmp_path: Path, url: str, demanding: str, host: str
) -> None:
    tls = f"hosts: {{{demanding}: {{client_certificate: required, ca: {pki.client_ca}}}}}"
    text = secure_site("http://127.0.0.1:1", f"{pki.entry('a')}, {pki.entry('locked')}", tls, f'["{url}"]')
    async with front(text, tmp_path) as stage:
        line = await tls_line(stage, client_context(pki), "open.test")
        assert (await line.get(host=host))[0].startswith(b"HTTP/1.1 421 ")


# ---------------------------------------------------------------------------------------------------- the first bytes


async def test_plain_http_on_the_https_port_gets_a_readable_answer(pki: Pki, tmp_path: Path) -> None:
    async with front(secure_site("http://127.0.0.1:1", pki.entry("a")), tmp_path) as stage:
        line = await stage.connect("https")
        await line.send(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n" + b"x" * 100_000)
        answer = await line.read_to_end()
        await line.close()
        assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
        assert b"\r\nConnection: close\r\n" in answer
        assert b"Reason: PlainHttp" in answer
        await all_gone(stage)
        assert stage.reasons == {"PlainHttp": 1}


async def test_tls_on_the_http_port(pki: Pki, tmp_path: Path) -> None:
    text = secure_site("http://127.0.0.1:1", pki.entry("a")).replace("{https:", "{http: {port: 0}, https:")
    async with front(text, tmp_path) as stage:
        line = await stage.connect("http")
        with pytest.raises(ssl.SSLError, match="(?i)wrong.version.number|record"):
            await Secure(line.stream, client_context(pki), "a.test").do_handshake()
        await line.close()
        await all_gone(stage)
        assert stage.reasons == {"BadRequest": 1}


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x00\x05\x02\x00\x00\x01\x00",  # a ServerHello
        b"\x16\x03\x01\xff\xff" + b"\x01" * 100,  # a record longer than any
        b"\x16\x03\x01\x00\x00",  # an empty record
        b"\x16\x03\x01\x00\x04\x01\xff\xff\xff",  # a hello of 16 MB
        b"\x16\x03\x01\x00\x04\x01\x00\x00\x00",  # a hello without anything
        b"\x16\x03\x01\x00\x2e\x01\x00\x00\x2a" + b"\x03\x03" + b"r" * 32 + b"\xff" * 8,  # one that breaks off
    ],
)
async def test_garbage_that_begins_like_tls(pki: Pki, tmp_path: Path, garbage: bytes) -> None:
    async with front(secure_site("http://127.0.0.1:1", pki.entry("a")), tmp_path) as stage:
        line = await stage.connect("https")
        await line.send(garbage)
        assert await line.read_to_end() == b"\x15\x03\x03\x00\x02\x02\x32"  # decode_error
        await line.close()
        await all_gone(stage)
        assert stage.reasons == {"TlsHandshake": 1}


async def test_garbage_behind_a_good_hello(pki: Pki, tmp_path: Path) -> None:
    async with front(secure_site("http://127.0.0.1:1", pki.entry("a")), tmp_path) as stage:
        line = await stage.connect("https")
        hello = Secure(line.stream, client_context(pki, version="1.2"), "a.test").hello()
        await line.send(hello + b"\x16\x03\x03\x00\x10" + b"\xff" * 16)
        answer = await line.read_to_end()
        assert answer.endswith(b"\x15\x03\x03\x00\x02\x02\x0a")  # unexpected_message, behind the server's part
        await line.close()
        await all_gone(stage)
        assert stage.reasons == {"TlsHandshake": 1}


async def test_half_a_hello_ends_with_the_header_wait(pki: Pki, tmp_path: Path, autojump_clock: object) -> None:
    text = secure_site("http://127.0.0.1:1", pki.entry("a"), extra="timeouts: {header_wait: 7s}")
    async with front(text, tmp_path) as stage:
        for part in (b"", b"\x16", b"\x16\x03\x01\x02\x00\x01\x00", None):
            line = await stage.connect("https")
            hello = Secure(line.stream, client_context(pki), "a.test").hello()
            await line.send(hello if part is None else part)
            began = trio.current_time()
            rest = await line.read_to_end()  # a complete hello is answered, then the clients' part is waited for
            assert 6.9 < trio.current_time() - began < 7.1
            assert (rest[:1] == b"\x16") == (part is None)
            await line.close()
        await all_gone(stage)
        assert stage.reasons == {"Timer_HeaderWait": 4}


# ---------------------------------------------------------------------------------------------------- reload


async def test_certificates_are_read_again_and_live_connections_keep_theirs(pki: Pki, tmp_path: Path) -> None:
    cert, key = tmp_path / "own.crt", tmp_path / "own.key"
    cert.write_bytes(pki.cert("a").read_bytes())
    key.write_bytes(pki.key("a").read_bytes())
    async with app() as it:
        text = secure_site(it.url, f"{{cert: {cert}, key: {key}}}, {pki.entry('locked')}", "default: open.test")
        async with front(text, tmp_path) as stage:
            context = client_context(pki)
            before = await tls_line(stage, context, "a.test")
            assert "a.test" in before.subject()
            cert.write_bytes(pki.cert("b").read_bytes())
            assert not (await stage.front.reload(lambda: configuration(text, tmp_path))).ok  # the key does not fit
            again = await tls_line(stage, context, "a.test")
            assert "a.test" in again.subject()
            key.write_bytes(pki.key("b").read_bytes())
            assert (await stage.front.reload(lambda: configuration(text, tmp_path))).ok
            assert "b.test" in (await tls_line(stage, context, "b.test")).subject()
            assert "open.test" in (await tls_line(stage, context, "a.test")).subject()  # now only the default
            assert (await before.get(host="a.test"))[1] == b"ok"
            assert (await again.get(host="a.test"))[1] == b"ok"


# ---------------------------------------------------------------------------------------------------- answers


def pattern(size: int) -> bytes:
    """Bytes in which every mixture and every shift shows."""
    return b"".join(b"%08x" % (i * 2654435761 % 2**32) for i in range(size // 8))


@pytest.mark.parametrize("version", ["1.2", "1.3"])
async def test_large_answers_arrive_whole_and_end_cleanly(pki: Pki, tmp_path: Path, version: str) -> None:
    body = pattern(3_000_000)
    script = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    async with app(script) as it, front(secure_site(it.url, pki.entry("a")), tmp_path) as stage:
        line = await tls_line(stage, client_context(pki, version=version), "a.test")
        await line.send(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
        await trio.testing.wait_all_tasks_blocked()  # the front has filled the way to a client that does not read
        assert (await line.message())[1] == body
        head, got = await line.get("/", "Connection: close")
        assert b"\r\nConnection: close\r\n" in head
        assert got == body
        assert await line.read_to_end() == b""
        assert line.secure.ended_cleanly


async def test_a_large_upload_over_tls(pki: Pki, tmp_path: Path) -> None:
    body = pattern(2_000_000)
    async with app() as it, front(secure_site(it.url, pki.entry("a")), tmp_path) as stage:
        line = await tls_line(stage, client_context(pki), "a.test")
        await line.send(b"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: %d\r\n\r\n" % len(body))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(line.send, body)
            assert (await line.message())[1] == b"ok"
        assert it.bodies == [body]


async def test_a_cut_answer_is_never_ended_cleanly_nor_followed_by_another(pki: Pki, tmp_path: Path) -> None:
    """The app breaks off while the client stalls: what it reads later is a piece of this answer and then a cut."""
    body = pattern(8_000_000)

    async def script(line: Line) -> None:
        await line.head()
        await line.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (len(body) + 1) + body)

    async with app(script) as it, front(secure_site(it.url, pki.entry("a")), tmp_path) as stage:
        line = await tls_line(stage, client_context(pki), "a.test")
        await line.send(b"GET /1 HTTP/1.1\r\nHost: a.test\r\n\r\nGET /2 HTTP/1.1\r\nHost: a.test\r\n\r\n")
        await trio.testing.wait_all_tasks_blocked()
        got = await line.read_to_end()
        head, _, rest = got.removesuffix(b"<reset>").partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK")
        assert body.startswith(rest)
        assert not line.secure.ended_cleanly
        await all_gone(stage)
        assert len(it.heads) == 0  # the script does not count; the second request never reached an app
        assert it.connections == 1
        assert stage.reasons == {"BadUpstreamBody": 1}


async def test_a_client_that_leaves_a_stalled_answer_gets_nothing_of_another(pki: Pki, tmp_path: Path) -> None:
    body = pattern(8_000_000)
    script = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    async with app(script) as it, front(secure_site(it.url, pki.entry("a")), tmp_path) as stage:
        line = await tls_line(stage, client_context(pki), "a.test")
        await line.send(b"GET /1 HTTP/1.1\r\nHost: a.test\r\n\r\nGET /2 HTTP/1.1\r\nHost: a.test\r\n\r\n")
        await trio.testing.wait_all_tasks_blocked()
        under = line.secure.under
        assert isinstance(under, trio.SocketStream)
        await under.send_eof()  # it ends its side with an answer pending: the exchange is cancelled
        got = (await line.read_to_end()).removesuffix(b"<reset>")
        head, _, rest = got.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK")
        assert body.startswith(rest)
        assert len(rest) < len(body)
        assert not line.secure.ended_cleanly
        await all_gone(stage)
        assert len(it.heads) == 1
        assert stage.reasons == {"Connection_Dropped": 1}


async def test_an_error_answer_that_closes_ends_cleanly(pki: Pki, tmp_path: Path) -> None:
    async with front(secure_site("http://127.0.0.1:1", pki.entry("a")), tmp_path) as stage:
        line = await tls_line(stage, client_context(pki), "a.test")
        await line.send(b"GET /\x01 HTTP/1.1\r\nHost: a.test\r\n\r\n" + b"x" * 200_000)
        answer = await line.read_to_end()
        assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
        assert not answer.endswith(b"<reset>")
        assert line.secure.ended_cleanly
