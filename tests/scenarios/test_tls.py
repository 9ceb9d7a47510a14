"""TLS as clients meet it: which certificate answers, what is demanded, and what an answer over TLS looks like."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from tests.net.pki import Pki
from tests.net.tlsclient import Tls, all_gone, client_context, locked_site, secure_site, tls_line
from tests.wire import Stage, app, configuration, front

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
        with pytest.raises(ssl.SSLError, match=r"(?i)unrecognized.name"):
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
        with pytest.raises(ssl.SSLError, match=r"(?i)alert.protocol.version"):
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
        with pytest.raises(ssl.SSLError, match=r"(?i)alert.protocol.version"):
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
            with pytest.raises(ssl.SSLError, match=r"(?i)handshake.failure"):
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


# ---------------------------------------------------------------------------------------------------- client certs


async def refused(stage: Stage, context: ssl.SSLContext, name: str, session: ssl.SSLSession | None = None) -> str:
    """The error of a client that is refused for its certificate: in the handshake (1.2), at its first read (1.3)."""
    with pytest.raises(ssl.SSLError) as caught:
        await tried(stage, context, name, session)
    return str(caught.value).upper().replace(" ", "_")


async def tried(stage: Stage, context: ssl.SSLContext, name: str, session: ssl.SSLSession | None) -> None:
    line = await tls_line(stage, context, name, session=session)
    try:
        await line.get(host=name)
    finally:
        await line.close()


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
    crl.write_bytes(pki.strangers.cert_pem.bytes() + pki.revoke(by=pki.strangers) + pki.revoke("revoked"))
    tls = f"hosts: {{locked.test: {{client_certificate: required, ca: {pki.client_ca}, crl: {crl}}}}}"
    text = secure_site("http://127.0.0.1:1", pki.entry("locked"), tls, "[https://locked.test/]")
    async with front(text, tmp_path) as stage:
        assert "UNKNOWN_CA" in await refused(stage, client_context(pki, "stranger"), "locked.test")
        assert "CERTIFICATE_REVOKED" in await refused(stage, client_context(pki, "revoked"), "locked.test")


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


@pytest.mark.parametrize(
    ("urls", "demanding", "name"),
    [
        ('["https://127.0.0.1/"]', "127.0.0.1", "b.test"),  # an IP-bound UrlPrefix takes any name
        ('["https://*.corp.test/"]', '"*.corp.test"', "x.deep.corp.test"),  # deeper than the wildcard reaches
    ],
)
async def test_a_name_with_a_certificate_of_its_own_does_not_get_round_it(
    pki: Pki, tmp_path: Path, urls: str, demanding: str, name: str
) -> None:
    pki.issue("wild", pki.servers, "*.corp.test", "127.0.0.1")
    pki.issue("deep", pki.servers, "x.deep.corp.test")
    certificates = ", ".join(pki.entry(one) for one in ("wild", "deep", "b"))
    tls = f"hosts: {{{demanding}: {{client_certificate: required, ca: {pki.client_ca}}}}}"
    async with app() as it, front(secure_site(it.url, certificates, tls, urls), tmp_path) as stage:
        line = await tls_line(stage, client_context(pki), name)  # shakes hands under the open policy of its certificate
        assert (await line.get(host=name))[0].startswith(b"HTTP/1.1 421 ")
        assert it.heads == []
