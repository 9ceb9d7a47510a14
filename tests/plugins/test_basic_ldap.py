"""Basic against an LDAP directory: a real one, and peers that lie, hang or talk nonsense in the place of one."""

from __future__ import annotations

import math
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trustme
from frontd_plugins import _directory as directories
from frontd_plugins import _ldap as ldap
from frontd_plugins import _ldap_bind as ldap_bind
from frontd_plugins import basic
from trio.testing import MockClock

from frontd import Context, Identity, MemoryStore, Refuse
from tests.plugins.exchanges import complaints
from tests.plugins.logons import basic_field, exchange, outcome
from tests.plugins.slapd import BASE, GROUPS, ODD, PEOPLE, Slapd, slapd
from tests.wire import free_port, settled

__all__ = ["slapd"]

ROOT = Path(__file__).parents[2]
TEMPLATE = f"uid={{user}},{PEOPLE}"


def settings(it: Slapd, **more: Any) -> directories.LdapSettings:
    said = {"url": f"ldaps://localhost:{it.tls}", "bind_dn": TEMPLATE, "ca": it.ca, **more}
    return directories.LdapSettings(**said)


def plain(port: int, **more: Any) -> ldap_bind.Bind:
    """What asks a peer on loopback without TLS."""
    said = {"url": f"ldap://127.0.0.1:{port}", "bind_dn": TEMPLATE, "allow_plain": True, **more}
    return ldap_bind.Bind(directories.LdapSettings(**said))


def desk(ldap: directories.LdapSettings, **more: Any) -> basic.Basic:
    said = basic.Basic.Settings(ldap=ldap, **more)
    return basic.Basic(said, Context("main", MemoryStore(1 << 20), lambda text: None))


async def logon(it: basic.Basic, user: str, password: str) -> Identity | Refuse:
    found = it.authenticate(exchange(basic_field(user, password)))
    assert found is not None
    return found if isinstance(found, Identity | Refuse) else await found


# ---------------------------------------------------------------------------------------------------- a directory


@pytest.mark.parametrize("way", ["ldaps", "start_tls", "plain"])
async def test_a_right_password_and_a_wrong_one(slapd: Slapd, way: str) -> None:
    ways: dict[str, dict[str, Any]] = {
        "ldaps": {},
        "start_tls": {"url": f"ldap://localhost:{slapd.plain}", "start_tls": True},
        "plain": {"url": f"ldap://localhost:{slapd.plain}", "allow_plain": True, "ca": None},
    }
    it = desk(settings(slapd, **ways[way]))
    assert await logon(it, "ann", "Ann-pass1") == Identity("ann", scheme="Basic")
    for user in ("ann", "stranger"):
        wrong = Refuse(401, "LogonFailed", substatus=1, log="the user name or password is wrong")
        assert await logon(it, user, "guess") == wrong


async def test_users_and_groups_are_called_as_the_directory_calls_them(slapd: Slapd) -> None:
    """A group counts by its only name right at `groups`: others could be made by whoever may make some elsewhere."""
    it = desk(settings(slapd, groups=GROUPS))
    for typed in ("ann", "ANN", "  ANN", "ａｎｎ"):
        found = await ldap_bind.Bind(settings(slapd, groups=GROUPS)).ask(typed, "Ann-pass1")
        assert found == Identity("ann", ("posix", "staff", "writers"), scheme="Basic")
    assert await logon(it, "bob", "Bob-pass1") == Identity("bob", ("staff",), scheme="Basic")
    refused = await logon(it, "Bob's own", "Bob-pass1")
    assert isinstance(refused, Refuse)


async def test_a_name_is_a_value_and_nothing_else(slapd: Slapd) -> None:
    it = desk(settings(slapd))
    assert await logon(it, ODD, "Odd-pass1") == Identity(ODD, scheme="Basic")
    for name in (f"ann,{PEOPLE}", "ann,ou=x", "ann+cn=Ann", "*", "a*", "ann)(uid=*", "\\61nn"):
        assert outcome(await logon(it, name, "Ann-pass1")) == "LogonFailed"


@pytest.mark.parametrize(("user", "password"), [("ann", ""), ("", "Ann-pass1"), ("", "")])
async def test_nobody_comes_in_without_a_password(slapd: Slapd, user: str, password: str) -> None:
    """This directory answers a bind without a password with success (RFC 4513 5.1.2)."""
    with pytest.raises(directories.Denied, match="is empty"):
        await ldap_bind.Bind(settings(slapd)).ask(user, password)
    assert outcome(await logon(desk(settings(slapd)), user, password)) == "LogonFailed"
    stream = await trio.open_tcp_stream("127.0.0.1", slapd.plain)
    async with stream:
        name = f"uid=ann,{PEOPLE}".encode()
        inbox = ldap.Inbox()
        operation = b"\x02\x01\x03\x04" + bytes([len(name)]) + name + b"\x80\x00"
        message = b"\x02\x01\x01\x60" + bytes([len(operation)]) + operation
        await stream.send_all(b"\x30" + bytes([len(message)]) + message)
        inbox.receive(await stream.receive_some())
        said = inbox.next()
        assert said is not None
        assert ldap.result(said.content).code == ldap.SUCCESS


async def test_a_directory_that_shows_nothing_of_the_user(slapd: Slapd) -> None:
    it = desk(settings(slapd, bind_dn=f"uid={{user}},ou=hidden,{BASE}"))
    found = await logon(it, "eve", "Eve-pass1")
    assert isinstance(found, Refuse)
    assert (found.status, found.log) == (503, "the directory does not show users the uid of their entry")
    it = desk(settings(slapd, bind_dn=f"{{user}}@{BASE}"))
    assert outcome(await logon(it, "ann", "Ann-pass1")) == "LogonFailed"  # slapd takes no such names


async def test_groups_that_cannot_all_be_known_let_nobody_in(slapd: Slapd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ldap_bind, "GROUPS_MAX", 1)
    found = await logon(desk(settings(slapd, groups=GROUPS)), "ann", "Ann-pass1")
    assert isinstance(found, Refuse)
    assert (found.status, found.log) == (503, "the directory finds more than 1 entries")
    nowhere = await logon(desk(settings(slapd, groups=f"ou=nowhere,{BASE}")), "ann", "Ann-pass1")
    assert isinstance(nowhere, Refuse)
    assert (nowhere.status, nowhere.log) == (503, "a search in the directory failed (result 32)")


async def test_right_passwords_are_remembered_and_guesses_counted(
    slapd: Slapd, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directories, "FLOOR", 0.0)  # this clock stands still
    it = desk(settings(slapd), failures_per_user=2)
    assert outcome(await logon(it, "ann", "Ann-pass1")) == "ann"
    assert isinstance(it.authenticate(exchange(basic_field("ann", "Ann-pass1"))), Identity)  # at once
    mock_clock.jump(60)
    again = it.authenticate(exchange(basic_field("ann", "Ann-pass1")))
    assert not isinstance(again, Identity | Refuse)
    assert await again == Identity("ann", scheme="Basic")  # type: ignore[misc]
    for name in ("ann", "ANN"):
        assert outcome(await logon(it, name, "guess")) == "LogonFailed"
    assert outcome(await logon(it, "Ann", "guess")) == "LogonThrottled"


# ---------------------------------------------------------------------------------------------------- TLS


@pytest.mark.parametrize("way", ["ldaps", "start_tls"])
@pytest.mark.parametrize("what", ["another authority", "another host"])
async def test_a_certificate_that_is_not_the_directorys(slapd: Slapd, tmp_path: Path, way: str, what: str) -> None:
    trustme.CA().cert_pem.write_to_path(tmp_path / "other.pem")
    scheme, port = ("ldaps", slapd.tls) if way == "ldaps" else ("ldap", slapd.plain)
    host, ca = ("localhost", tmp_path / "other.pem") if what == "another authority" else ("127.0.0.1", slapd.ca)
    url = f"{scheme}://{host}:{port}"
    it = desk(settings(slapd, url=url, ca=ca, start_tls=way == "start_tls"), failures_per_user=1)
    for _ in range(2):  # nobody has looked at the password: no guess
        found = await logon(it, "ann", "Ann-pass1")
        assert isinstance(found, Refuse)
        assert (found.status, found.reason, found.retry_after) == (503, "LogonBusy", 1)
        assert "CERTIFICATE_VERIFY_FAILED" in found.log


# ---------------------------------------------------------------------------------------------------- other peers


class Peer:
    """Whoever answers in the place of a directory: each thing it receives is answered by the next of `answers`; what
    comes then is heard, `more` times, and it hangs up."""

    def __init__(self, *answers: bytes, more: float = 0) -> None:
        self.answers, self.more = list(answers), more
        self.heard: list[bytes] = []
        self.has_heard = trio.Event()
        self.port = 0

    async def serve(self, stream: trio.SocketStream) -> None:
        async with stream:
            for answer in self.answers:
                self.heard.append(bytes(await stream.receive_some(65536)))
                self.has_heard.set()
                await stream.send_all(answer)
            while self.more > 0 and (data := await stream.receive_some(65536)):
                self.heard.append(bytes(data))
                self.has_heard.set()
                self.more -= 1


@asynccontextmanager
async def served(peer: Peer) -> AsyncIterator[Peer]:
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        peer.port = listener.socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, peer.serve, [listener])
        yield peer
        nursery.cancel_scope.cancel()


def answer(number: int, operation: int, code: int, text: bytes = b"") -> bytes:
    done = bytes((0x0A, 1, code, 4, 0, 4, len(text))) + text
    message = bytes((2, 1, number, operation, len(done))) + done
    return bytes((0x30, len(message))) + message


@pytest.mark.parametrize("more", [b"", answer(2, ldap.BOUND, 0)])
async def test_what_comes_in_plain_behind_start_tls_is_no_answer(slapd: Slapd, more: bytes) -> None:
    """Whoever sits between might put an answer there that counts as one from the other side of TLS."""
    async with served(Peer(answer(1, ldap.EXTENDED_DONE, 0) + more, more=1)) as peer:
        it = plain(peer.port, url=f"ldap://localhost:{peer.port}", allow_plain=False, start_tls=True, ca=slapd.ca)
        with pytest.raises(directories.Unavailable):
            await it.ask("ann", "Ann-pass1")
    assert not any(b"Ann-pass1" in heard for heard in peer.heard)
    assert len(peer.heard) == (1 if more else 2)  # or else it says hello


async def test_without_tls_nothing_is_sent(slapd: Slapd) -> None:
    async with served(Peer(answer(1, ldap.EXTENDED_DONE, 2))) as peer:
        it = plain(peer.port, allow_plain=False, start_tls=True)
        with pytest.raises(directories.Unavailable, match="does not begin TLS"):
            await it.ask("ann", "Ann-pass1")
    assert len(peer.heard) == 1


DATA = b"80090308: LdapErr: DSID-0C090447, comment: AcceptSecurityContext error, data %s, v3839"
REFUSED = [
    (49, b"", "the user name or password is wrong", False),
    (49, DATA % b"52e", "the user name or password is wrong", False),
    (49, DATA % b"775", "the account is locked out", True),
    (32, b"", r"the directory refuses \(result 32\)", False),
    (53, b"", r"the directory refuses \(result 53\)", False),
    (14, b"", r"the directory refuses \(result 14\)", False),
]


@pytest.mark.parametrize(("code", "text", "why", "is_known"), REFUSED)
async def test_what_a_directory_says_no_with(code: int, text: bytes, why: str, is_known: bool) -> None:
    async with served(Peer(answer(1, ldap.BOUND, code, text))) as peer:
        with pytest.raises(directories.Denied, match=why) as caught:
            await plain(peer.port).ask("ann", "Ann-pass1")
    assert caught.value.is_known is is_known


ODDITIES = {
    "a referral": answer(1, ldap.BOUND, 10),
    "a busy one": answer(1, ldap.BOUND, 51),
    "no LDAP": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "the answer to another question": answer(2, ldap.BOUND, 0),
    "a goodbye": answer(0, ldap.EXTENDED_DONE, 52),
    "a length beyond measure": b"\x30\x84\x7f\xff\xff\xff",
    "a length that cannot be": b"\x30\x80",
    "a message without content": b"\x30\x00",
    "a result without a code": b"\x30\x05\x02\x01\x01\x61\x00",
    "half of it": answer(1, ldap.BOUND, 0)[:-3],
    "nothing": b"",
}


@pytest.mark.parametrize("odd", ODDITIES)
async def test_peers_that_are_no_directory_let_nobody_in(odd: str) -> None:
    async with served(Peer(ODDITIES[odd])) as peer:
        with pytest.raises(directories.Unavailable), trio.fail_after(5):
            await plain(peer.port).ask("ann", "Ann-pass1")


@pytest.mark.parametrize("heard", [0, 1])
async def test_a_directory_that_does_not_answer(mock_clock: MockClock, heard: int) -> None:
    """Whoever has heard a password may have counted it; whoever has not even heard one has not."""
    async with served(Peer(more=math.inf)) as peer, trio.open_nursery() as nursery:
        found: list[directories.Unavailable] = []

        async def ask() -> None:
            more: dict[str, Any] = {} if heard else {"allow_plain": False, "start_tls": True}
            with pytest.raises(directories.Unavailable, match="has not answered within 10 s") as caught:
                await plain(peer.port, **more).ask("ann", "Ann-pass1")
            found.append(caught.value)

        nursery.start_soon(ask)
        await peer.has_heard.wait()
        await settled()
        mock_clock.jump(ldap_bind.DEADLINE)
    assert [error.was_asked for error in found] == [bool(heard)]
    assert ldap_bind.LINES.borrowed_tokens == 0


async def test_no_directory_at_all() -> None:
    with pytest.raises(directories.Unavailable, match="the directory at 127"):
        await plain(free_port()).ask("ann", "Ann-pass1")


# ---------------------------------------------------------------------------------------------------- settings

GOOD: dict[str, Any] = {"url": "ldaps://dc1.example.com", "bind_dn": TEMPLATE}
BAD = [
    ({"url": "dc1.example.com"}, "is no directory; write ldaps://"),
    ({"url": "https://dc1.example.com"}, "is no directory"),
    ({"url": "ldaps://dc1.example.com/dc=example"}, "is no directory"),
    ({"url": "ldaps://dc1.example.com:x"}, "is no directory"),
    ({"url": "ldaps://admin@dc1.example.com"}, "has no user in it"),
    ({"url": "ldap://dc1.example.com"}, "everybody on the way can read passwords"),
    ({"start_tls": True}, "leave out start_tls"),
    ({"bind_dn": "uid=ann,dc=x"}, "tells no name"),
    ({"bind_dn": "{user}"}, "tells no name"),
    ({"bind_dn": "uid=x{user},dc=x"}, "tells no name"),
    ({"bind_dn": "uid={user}+cn=a,dc=x"}, "tells no name"),
    ({"bind_dn": "uid={user},cn={user},dc=x"}, "tells no name"),
]


@pytest.mark.parametrize(("more", "why"), BAD)
def test_settings_that_cannot_be_meant(more: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        directories.LdapSettings(**{**GOOD, **more})


def test_ports_and_hosts() -> None:
    assert directories.LdapSettings(**GOOD).parts == ("ldaps", "dc1.example.com", 636)
    more: dict[str, Any] = {"url": "ldap://[2001:db8::1]:3389", "start_tls": True}
    assert directories.LdapSettings(**{**GOOD, **more}).parts == ("ldap", "2001:db8::1", 3389)


@pytest.mark.parametrize("typed", ["ann@other.test", "OTHER\\ann", "a b", 'a"b', "a/b"])
def test_names_that_would_be_others_in_active_directory(typed: str) -> None:
    it = ldap_bind.Bind(directories.LdapSettings(**{**GOOD, "bind_dn": "{user}@example.com"}))
    with pytest.raises(ValueError, match="none of a person"):
        it.spelled(typed)


def test_check_opens_the_certificates(tmp_path: Path) -> None:
    (bad := tmp_path / "ca.pem").write_text("nothing\n")
    for path in (bad, tmp_path / "none.pem"):
        (said,) = complaints(basic.Basic, ldap=directories.LdapSettings(**{**GOOD, "ca": path}))
        assert said.startswith(f"{path}: no certificates to verify the directory with can be read from it")
        with pytest.raises(ValueError, match=str(path)):
            desk(directories.LdapSettings(**{**GOOD, "ca": path})).prepare()


def test_what_the_log_says_is_documented() -> None:
    """Each sentence of the how-to is one of the source, up to what differs."""
    page = (ROOT / "docs/how-to/troubleshooting.md").read_text().partition("## A directory")[2]
    source = "".join(Path(module.__file__ or "").read_text() for module in (ldap_bind, ldap))
    sentences = [found for cell in re.findall(r"(?m)^\| (`.*?`) \|", page) for found in re.findall(r"`(.+?)`", cell)]
    own = [one for one in sentences if not one.startswith(("CERTIFICATE_", "all attempts"))]  # those of ssl and trio
    assert len(own) > 10
    parts = [max(re.split(r"…|1000|10 s|32", one), key=len).strip(" ()") for one in own]
    assert [part for part in parts if part not in source] == []


@pytest.mark.parametrize(("groups", "untold"), [("", {"groups"}), (GROUPS, set())])
def test_rules_by_group_need_to_know_where_groups_are(groups: str, untold: set[str]) -> None:
    it = basic.Basic.Settings(ldap=directories.LdapSettings(**{**GOOD, "groups": groups}))
    assert basic.Basic.untold(it) == untold


