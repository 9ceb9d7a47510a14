"""Negotiate, from the side of those who are not let in: each is told 401, and the log why."""

from __future__ import annotations

import base64
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from frontd_plugins import _gss as gss
from hypothesis import given, settings
from hypothesis import strategies as st

from frontd.testing import site
from tests.plugins.test_negotiate import HOST, alice, armed, logon, proof, refusal
from tests.windows.realm import (
    DCE,
    KRB5,
    MUTUAL,
    SPNEGO,
    Realm,
    hopeful,
    house,
    initiator,
    kdc,
    negotiate,
    skewed,
    token,
)

__all__ = ["alice", "house", "kdc"]  # fixtures


def negotiation(*mechanisms: str, mech_token: bytes = b"") -> bytes:
    """A first token of SPNEGO that offers `mechanisms`, as DER in hexadecimal (RFC 4178 4.2.1)."""

    def tlv(tag: int, *parts: bytes) -> bytes:
        body = b"".join(parts)
        size = bytes([len(body)]) if len(body) < 128 else b"\x82" + len(body).to_bytes(2, "big")
        return bytes([tag]) + size + body

    offers = tlv(0xA0, tlv(0x30, *(tlv(6, bytes.fromhex(one)) for one in mechanisms)))
    first = tlv(0xA2, tlv(4, mech_token)) if mech_token else b""
    return tlv(0x60, tlv(6, bytes.fromhex("2b0601050502")), tlv(0xA0, tlv(0x30, offers, first)))


MS_KRB5, REAL_KRB5, NTLM = "2a864882f712010202", "2a864886f712010202", "2b06010401823702020a"
TYPE_1 = b"NTLMSSP\0\1\0\0\0\7\2\0\0" + bytes(16)


# ---------------------------------------------------------------------------------------------------- tickets


@pytest.mark.parametrize("same", [True, False], ids=["same connection", "another one"])
@pytest.mark.parametrize("mechanism", [SPNEGO, KRB5], ids=["SPNEGO", "bare"])
def test_a_token_counts_once(house: Realm, alice: Path, same: bool, mechanism: str) -> None:
    field = logon(alice, mechanism=mechanism)
    with site(armed(house)) as s, s.connect() as c:
        assert c.get("/", field).status == 200
        again = c.get("/", field) if same else s.get("/", field)
        assert (again.status, again.upstream) == (401, None)
        assert again.headers.get_all("WWW-Authenticate") == ["Negotiate"]
        assert refusal(s) == "replay: this token was used before (Request is a replay)"
        assert c.get("/", logon(alice)).status == 200


def test_nobody_turns_the_replay_cache_off(house: Realm, alice: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KRB5RCACHENAME", "KRB5RCACHETYPE"):
        monkeypatch.setenv(name, "none:")
    field = logon(alice)
    with site(armed(house)) as s:
        assert [s.get("/", field).status for _ in range(2)] == [200, 401]


def test_a_replay_cache_that_cannot_be_written(house: Realm, alice: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KRB5RCACHEDIR", str(house.folder / "nowhere"))
    with site(armed(house)) as s:
        assert s.get("/", logon(alice)).status == 401
        assert "the directory of the replay cache is not there" in refusal(s)


def test_a_ticket_for_another_name(house: Realm, alice: Path) -> None:
    with site(armed(house)) as s:
        assert s.get("/", {"Authorization": negotiate(token(alice, "other.example"))}).status == 401
        assert refusal(s) == (
            "wrong SPN: the ticket is for HTTP/other.example@TEST.FRONTD, not for HTTP/test.example@TEST.FRONTD"
        )


def test_a_ticket_for_which_there_is_no_key(house: Realm, alice: Path) -> None:
    house.service("HTTP/absent.example", keytab="absent.keytab")
    with site(armed(house)) as s:
        assert s.get("/", {"Authorization": negotiate(token(alice, "absent.example"))}).status == 401
        assert refusal(s) == (
            "wrong SPN: the ticket is for HTTP/absent.example@TEST.FRONTD, not for HTTP/test.example@TEST.FRONTD"
        )


def test_a_new_key(house: Realm) -> None:
    """Clients go on with the tickets they have: the old key is kept until they have ended, then it may go."""
    keytab = house.service("HTTP/rotated.example", keytab="rotated.keytab")
    old, late = house.ticket("alice"), house.ticket("alice")
    for cache in (old, late):
        house.fetch(cache, "HTTP/rotated.example")
    with site(armed(house, keytab=str(keytab)), urls=["https://rotated.example/"]) as s:

        def status(cache: Path) -> int:
            return s.get("/", {"Authorization": negotiate(token(cache, "rotated.example"))}).status

        assert status(old) == 200
        fresh = house.rotated("HTTP/rotated.example", "fresh.keytab")
        new = house.ticket("bob")
        assert status(new) == 401
        assert refusal(s) == (
            "key version: the keytab is older than the ticket, or newer "
            "(Cannot find key for HTTP/rotated.example@TEST.FRONTD kvno 2 in keytab)"
        )
        house.admin(f"ktadd -k {keytab} -norandkey HTTP/rotated.example")  # beside the old one
        assert [status(new), status(late)] == [200, 200]
        os.replace(fresh, keytab)
        assert [status(new), status(late)] == [200, 401]
        assert "kvno 1 in keytab" in refusal(s)


def test_a_keytab_that_goes_and_comes_back(house: Realm, alice: Path) -> None:
    keytab = house.folder / "moving.keytab"
    shutil.copy(house.folder / "http.keytab", keytab)
    with site(armed(house, keytab=str(keytab))) as s:
        os.rename(keytab, house.folder / "away")
        assert s.get("/", logon(alice)).status == 401
        assert refusal(s) == f"the keytab {keytab} cannot be used: No such file or directory"
        (house.folder / "moving.keytab").write_bytes(b"\5\2")
        assert s.get("/", logon(alice)).status == 401
        assert refusal(s) == f"the keytab {keytab} has no key for http/test.example"
        os.rename(house.folder / "away", keytab)
        assert s.get("/", logon(alice)).status == 200


def test_another_key_of_the_same_version(house: Realm, alice: Path) -> None:
    house.admin(
        "addprinc -randkey HTTP/twin.example", f"ktadd -k {house.folder}/twin.keytab -norandkey HTTP/twin.example"
    )
    house.admin("delprinc -force HTTP/twin.example", "addprinc -randkey HTTP/twin.example")
    keytab = str(house.folder / "twin.keytab")
    with site(armed(house, keytab=keytab), urls=["https://twin.example/"]) as s:
        assert s.get("/", {"Authorization": negotiate(token(alice, "twin.example"))}).status == 401
        assert refusal(s).startswith("wrong key: the keytab's is not the KDC's (Cannot decrypt")


def test_a_ticket_that_has_ended(house: Realm, alice: Path) -> None:
    keytab = house.service("HTTP/ended.example", keytab="ended.keytab")
    house.ends_before("HTTP/ended.example")
    house.fetch(alice, "HTTP/ended.example")
    with site(armed(house, keytab=str(keytab)), urls=["https://ended.example/"]) as s:
        assert s.get("/", {"Authorization": negotiate(token(hopeful(alice), "ended.example"))}).status == 401
        assert refusal(s) == "the ticket has expired (Ticket expired)"


def test_a_clock_that_is_ten_minutes_off(house: Realm, alice: Path) -> None:
    house.fetch(alice, f"HTTP/{HOST}")
    with site(armed(house)) as s:
        assert s.get("/", logon(skewed(alice, 600))).status == 401
        assert refusal(s) == (
            "clock skew: the clocks of the client and of this machine are too far apart (Clock skew too great)"
        )
        assert s.get("/", logon(skewed(alice, 240))).status == 200


# ---------------------------------------------------------------------------------------------------- other mechanisms


@pytest.mark.parametrize(
    "sent", [TYPE_1, negotiation(NTLM), negotiation(NTLM, mech_token=TYPE_1)], ids=["bare", "offered", "with token"]
)
def test_ntlm(house: Realm, sent: bytes) -> None:
    with site(armed(house)) as s:
        answer = s.get("/", {"Authorization": negotiate(sent)})
        assert (answer.status, answer.headers.get_all("WWW-Authenticate")) == (401, ["Negotiate"])
        assert refusal(s) == gss.ONLY_KERBEROS


def test_a_mechanism_that_nobody_knows(house: Realm) -> None:
    with site(armed(house)) as s:
        assert s.get("/", {"Authorization": negotiate(negotiation("2a0304"))}).status == 401
        assert refusal(s) == "a mechanism other than Kerberos was offered, and only Kerberos is available"


def test_windows_offers_kerberos_under_two_names(house: Realm, alice: Path) -> None:
    bare = token(alice, HOST, mechanism=KRB5)
    offer = negotiation(MS_KRB5, REAL_KRB5, NTLM, mech_token=bare)
    with site(armed(house)) as s:
        assert s.get("/", {"Authorization": negotiate(offer)}).status == 200
        assert s.get("/", {"Authorization": negotiate(offer)}).status == 401


def test_ntlm_first_is_asked_for_kerberos(house: Realm) -> None:
    """One leg answers that it has to be Kerberos; who then goes on with NTLM gets nowhere."""
    with site(armed(house)) as s, s.connect() as c:
        leg = c.get("/", {"Authorization": negotiate(negotiation(NTLM, REAL_KRB5, mech_token=TYPE_1))})
        assert leg.status == 401
        assert bytes.fromhex(REAL_KRB5) in proof(leg)
        answer = c.get("/", {"Authorization": negotiate(b"\xa1\x13\x30\x11\xa2\x0f\x04\x0d" + TYPE_1[:13])})
        assert (answer.status, answer.headers.get_all("WWW-Authenticate")) == (401, ["Negotiate"])
        refusal(s)


# ---------------------------------------------------------------------------------------------------- legs


def test_a_later_leg_on_another_connection(house: Realm, alice: Path) -> None:
    client = initiator(alice, HOST, flags=DCE | MUTUAL)
    with site(armed(house)) as s, s.connect() as c, s.connect() as d:
        second = negotiate(client.step(proof(c.get("/", {"Authorization": negotiate(client.step())}))))
        assert d.get("/", {"Authorization": second}).status == 401
        assert refusal(s) == "it is no first token, and no handshake is under way on this connection"
        assert c.get("/", {"Authorization": second}).status == 200
        assert c.get("/", {"Authorization": second}).status == 401


@pytest.mark.parametrize("between", [{}, {"Authorization": "Basic YTpi"}, {"Authorization": "Negotiate oQ=="}])
def test_whatever_comes_between_ends_a_handshake(house: Realm, alice: Path, between: dict[str, str]) -> None:
    client = initiator(alice, HOST, flags=DCE | MUTUAL)
    with site(armed(house)) as s, s.connect() as c:
        second = negotiate(client.step(proof(c.get("/", {"Authorization": negotiate(client.step())}))))
        assert c.get("/", between).status == 401
        assert c.get("/", {"Authorization": second}).status == 401
        refusal(s)


def test_a_handshake_that_takes_too_long(house: Realm, alice: Path) -> None:
    config = {"timeouts": {"idle_connection": "2h"}}
    with site(armed(house), config=config) as s, s.connect() as c:
        for seconds, status in ((29, 200), (31, 401)):
            client = initiator(alice, HOST, flags=DCE | MUTUAL)
            second = negotiate(client.step(proof(c.get("/", {"Authorization": negotiate(client.step())}))))
            s.clock.advance(seconds)
            assert c.get("/", {"Authorization": second}).status == status
        assert refusal(s) == "the handshake took longer than 30 s"


def test_legs_in_a_pipeline(house: Realm, alice: Path) -> None:
    """All of them at once: the second leg cannot know what the first was answered."""
    request = "GET / HTTP/1.1\r\nHost: test.example\r\nAuthorization: {}\r\n\r\n"
    first = negotiate(token(alice, HOST, flags=DCE | MUTUAL))
    with site(armed(house)) as s, s.connect() as c:
        c.send("".join(request.format(field) for field in (first, "Negotiate oQ==", first)).encode())
        assert [c.receive().status for _ in range(3)] == [401, 401, 401]
        assert not s.app.requests


# ---------------------------------------------------------------------------------------------------- bytes gone wrong

ODD = {
    "nothing": "Negotiate",
    "blanks": "Negotiate    ",
    "no base64": "Negotiate %%%",
    "not padded": "Negotiate YQ",
    "two tokens": "Negotiate YWJj YWJj",
    "a list": "Negotiate YWJj, Basic YTpi",
    "garbage": "Negotiate " + base64.b64encode(bytes(range(256))).decode(),
    "one byte": "Negotiate YA==",
    "no DER": "Negotiate " + base64.b64encode(b"\x60\x84\xff\xff\xff\xff" + bytes(100)).decode(),
}


@pytest.mark.parametrize("odd", ODD)
def test_odd_tokens(house: Realm, alice: Path, odd: str) -> None:
    with site(armed(house, persist="connection")) as s, s.connect() as c:
        assert c.get("/", {"Authorization": ODD[odd]}).status == 401
        refusal(s)
        assert c.get("/").status == 401
        assert c.get("/", logon(alice)).status == 200


def test_tokens_cut_short_or_with_one_bit_changed(house: Realm, alice: Path) -> None:
    """A changed bit in what nobody has to agree upon (flags of the ticket that are sent in plain) changes nothing."""
    with site(armed(house)) as s, s.connect() as c:
        for cut in (1, 10, 100, 400):
            assert c.get("/", {"Authorization": negotiate(token(alice, HOST)[:-cut])}).status == 401
            refusal(s)
        for at in (-1, -40, -300):
            sent = bytearray(token(alice, HOST))
            sent[at] ^= 1
            assert c.get("/", {"Authorization": negotiate(bytes(sent))}).status == 401
            refusal(s)
        assert c.get("/", logon(alice)).status == 200


def test_tokens_that_are_too_long(house: Realm) -> None:
    with site(armed(house), config={"limits": {"max_head": "2MiB", "max_field": "2MiB"}}) as s:
        assert s.get("/", {"Authorization": negotiate(b"\x60" + bytes(1 << 20))}).status == 401
        assert refusal(s) == "the token is longer than 49152 bytes"


def test_tokens_of_people_with_many_groups(house: Realm) -> None:
    """Longer than other sites' fields may be, and read by the library."""
    with site(armed(house)) as s:
        assert s.get("/", {"Authorization": negotiate(b"\x60" + bytes(49151))}).status == 401
        assert refusal(s) == "the token is no token of Kerberos or SPNEGO"
        assert s.get("/", {"Authorization": negotiate(b"\x60" + bytes(70000))}).status in (400, 431)


def test_two_fields(house: Realm, alice: Path) -> None:
    with site(armed(house)) as s:
        fields = [("Authorization", logon(alice)["Authorization"]), ("Authorization", "Negotiate YQ==")]
        assert s.get("/", fields).status == 401
        assert s.log[-1].reason == "LogonRequired"


@settings(max_examples=150, deadline=None)
@given(at=st.floats(0, 1, exclude_max=True), size=st.integers(0, 9), put=st.binary(max_size=9), bare=st.booleans())
def test_a_damaged_token_lets_nobody_else_in(
    tokens: dict[bool, bytes], keytab: Path, at: float, size: int, put: bytes, bare: bool
) -> None:
    whole = tokens[bare]
    place = int(at * len(whole))
    handshake = gss.Handshake(keytab, frozenset({f"http/{HOST}"}), None)
    said, found = "", None
    try:
        found = trio.run(handshake.step, whole[:place] + put + whole[place + size :])
    except gss.GssError as error:
        said = str(error)
    assert said.isprintable()
    assert len(said) < 500
    if isinstance(found, gss.Logon):  # what changed is of no account: it is still her ticket
        assert found.name == "alice@TEST.FRONTD"


@pytest.fixture(scope="module")
def tokens(kdc: Realm) -> Iterator[dict[bool, bytes]]:
    """Tokens of alice's, bare or not, which were never used."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in kdc.variables.items():
            patch.setenv(name, value)
        cache = kdc.ticket("alice")
        yield {bare: token(cache, HOST, mechanism=KRB5) if bare else token(cache, HOST) for bare in (True, False)}


@pytest.fixture(scope="module")
def keytab(kdc: Realm) -> Path:
    return kdc.folder / "http.keytab"


# ---------------------------------------------------------------------------------------------------- threads


def test_a_library_that_hangs(house: Realm, alice: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    let_go = threading.Event()
    step = gss.Handshake._step
    monkeypatch.setattr(gss, "THREADS", trio.CapacityLimiter(1))  # the one that hangs is nobody else's

    def hangs(self: gss.Handshake, token: bytes) -> Any:
        let_go.wait()
        return step(self, token)

    monkeypatch.setattr(gss.Handshake, "_step", hangs)
    with site(armed(house, persist="connection")) as s, s.connect() as c:
        try:
            busy = c.get("/", logon(alice), advance=6)
            assert (busy.status, busy.headers["Retry-After"], s.log[-1].reason) == (503, "1", "LogonBusy")
            assert "has not answered for 5 s" in s.log[-1].detail
            assert c.get("/").status == 401
        finally:
            let_go.set()


def test_a_long_line_of_logons(house: Realm, alice: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limiter, somebody = trio.CapacityLimiter(1), object()
    monkeypatch.setattr(gss, "THREADS", limiter)
    monkeypatch.setattr(gss, "QUEUE", 0)
    with site(armed(house)) as s:
        limiter.acquire_on_behalf_of_nowait(somebody)
        assert (s.get("/", logon(alice)).status, s.log[-1].reason) == (503, "LogonBusy")
        limiter.release_on_behalf_of(somebody)
        assert s.get("/", logon(alice)).status == 200


async def test_a_handshake_that_was_given_up_is_over(house: Realm, alice: Path) -> None:
    handshake = gss.Handshake(house.folder / "http.keytab", frozenset({f"http/{HOST}"}), None)
    with trio.CancelScope() as scope:
        scope.cancel()
        await handshake.step(token(alice, HOST))
    with pytest.raises(gss.GssError, match="is over"):
        await handshake.step(token(alice, HOST))


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> Any:
        raise ImportError("No module named 'gssapi'")

    monkeypatch.setattr(gss, "library", none)
    assert gss.unavailable() == (
        "Kerberos needs the package gssapi, and it cannot be loaded (No module named 'gssapi'): pip install "
        "'frontd[kerberos]', which needs a C compiler and libkrb5-dev (Debian), and libgssapi-krb5-2 where it runs"
    )
