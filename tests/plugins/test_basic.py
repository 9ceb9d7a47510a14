"""Basic: who is let in, what is remembered and for how long, and what a users file may do to a running site."""

from __future__ import annotations

import base64
import unicodedata
from pathlib import Path

import pytest
import trio
from frontd_plugins import _passwords as passwords
from frontd_plugins import basic
from trio.testing import MockClock

from frontd import Identity, Refuse, SiteFacts
from frontd.model.urlprefix import UrlPrefix
from tests.plugins.logons import ALICE, BOB, Desk, basic_field, exchange, in_line, no_thread_is_free, outcome
from tests.wire import settled

# ---------------------------------------------------------------------------------------------------- who is let in


async def test_the_right_password(tmp_path: Path) -> None:
    found = await Desk(tmp_path).answer(exchange(basic_field("alice", "secret")))
    assert found == Identity("alice", ("staff", "admins"), scheme="Basic")


async def test_the_log_tells_a_wrong_password_from_an_unknown_user_and_the_client_cannot(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    wrong = await desk.answer(exchange(basic_field("alice", "Secret")))
    unknown = await desk.answer(exchange(basic_field("hunter2-in-the-wrong-field", "secret")))
    assert wrong == Refuse(401, "LogonFailed", substatus=1, log="the password for alice is wrong")
    assert unknown == Refuse(401, "LogonFailed", substatus=1, log="there is no such user")


async def test_names_are_compared_exactly(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    assert await desk.logon("Alice", "secret") == "LogonFailed"
    assert await desk.logon("bob", "secret") == "LogonFailed"
    assert await desk.logon("bob", "hunter2") == "bob"


async def test_argon2id_and_other_names_of_bcrypt(tmp_path: Path) -> None:
    two_b = passwords.make("secret", cost=4)
    lines = [f"a:{two_b.replace('$2b$', '$2a$')}", f"y:{two_b.replace('$2b$', '$2y$')}"]
    lines.append(f"argon:{passwords.make('x' * 1000, argon2id=True)}")
    desk = Desk(tmp_path, "\n".join(lines))
    assert [await desk.logon(name, "secret") for name in "ay"] == ["a", "y"]
    assert await desk.logon("argon", "x" * 1000) == "argon"
    assert await desk.logon("argon", "x" * 999) == "LogonFailed"


async def test_however_the_keyboard_composes_letters(tmp_path: Path) -> None:
    composed, apart = (unicodedata.normalize(form, "rené") for form in ("NFC", "NFD"))
    assert composed != apart
    desk = Desk(tmp_path, f"{apart}:{passwords.make(composed, cost=4)}\n", cache_ttl=0.0)
    for name in (composed, apart):
        for password in (composed, apart):
            assert await desk.logon(name, password) == composed


ODD = {
    "nothing": b"Basic",
    "a blank": b"Basic  ",
    "not base64": b"Basic %%%",
    "not padded": basic_field("alice", "secret!").rstrip(b"="),
    "two tokens": basic_field("alice", "secret") + b" YQ==",
    "no colon": b"Basic " + base64.b64encode(b"alice"),
    "no user": basic_field("", "secret"),
    "no password": basic_field("alice", ""),
    "not UTF-8": b"Basic " + base64.b64encode(b"alice:secr\xe9t"),
    "NUL": basic_field("alice", "secret\0"),
    "NUL in the name": basic_field("alice\0", "secret"),
    "a line feed": basic_field("alice\n", "secret"),
    "C1": basic_field("alice", "secret\x85"),
    "a long name": basic_field("a" * 256, "secret"),
    "a long password": basic_field("alice", "a" * 1025),
    "a megabyte": basic_field("alice", "a" * 1_000_000),
    "obs-text": b"Basic \xff\xfe",
}


@pytest.mark.parametrize("odd", ODD)
async def test_odd_credentials_are_wrong_at_once(tmp_path: Path, odd: str) -> None:
    found = Desk(tmp_path).at_once(exchange(ODD[odd]))
    assert isinstance(found, Refuse)
    assert (found.status, found.reason) == (401, "LogonFailed")
    assert "secret" not in found.log
    if odd == "a megabyte":
        assert found.log == "the credentials are too long"  # and nothing of it was decoded


async def test_what_bcrypt_would_ignore_is_wrong(tmp_path: Path) -> None:
    desk = Desk(tmp_path, f"alice:{passwords.make('x' * 72, cost=4)}\n")
    assert await desk.logon("alice", "x" * 73) == "LogonFailed"
    assert await desk.logon("nobody", "x" * 73) == "LogonFailed"
    assert await desk.logon("alice", "x" * 72) == "alice"
    assert await desk.logon("alice", "é" * 37) == "LogonFailed"


async def test_the_longest_that_is_allowed(tmp_path: Path) -> None:
    name, password = "é" * 127 + "n", "ü" * 512
    desk = Desk(tmp_path, f"{name}:{passwords.make(password, argon2id=True)}")
    assert await desk.logon(name, password) == name


@pytest.mark.parametrize("field", [(), (b"Bearer abc",), (b"Negotiate YII=",), (b"NTLM",), (b"Basically x",)])
async def test_what_is_not_basic_is_not_answered(tmp_path: Path, field: tuple[bytes, ...]) -> None:
    assert Desk(tmp_path).at_once(exchange(*field)) is None


async def test_two_logons_in_one_request_are_none(tmp_path: Path) -> None:
    fields = basic_field("alice", "secret"), basic_field("bob", "hunter2")
    assert Desk(tmp_path).at_once(exchange(*fields)) is None


async def test_the_scheme_is_matched_in_any_case(tmp_path: Path) -> None:
    found = await Desk(tmp_path).answer(exchange(basic_field("alice", "secret").replace(b"Basic", b"bASIC")))
    assert outcome(found) == "alice"


# ---------------------------------------------------------------------------------------------------- the question


def test_the_challenge(tmp_path: Path) -> None:
    assert Desk(tmp_path).plugin.challenge(exchange()) == 'Basic realm="main", charset="UTF-8"'
    told = Desk(tmp_path, realm='The "inner" \\ office').plugin.challenge(exchange())
    assert told == r'Basic realm="The \"inner\" \\ office", charset="UTF-8"'


def test_on_every_site_the_realm_is_the_site_that_was_asked(tmp_path: Path) -> None:
    desk = Desk(tmp_path, site="")
    assert desk.plugin.challenge(exchange(site="shop")) == 'Basic realm="shop", charset="UTF-8"'


def test_a_realm_with_a_line_feed_is_no_setting(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="control characters"):
        Desk(tmp_path, realm="a\r\nSet-Cookie: b")


@pytest.mark.parametrize("field", [(), (basic_field("alice", "secret"),)])
def test_over_plain_http_nobody_is_asked_for_a_password(tmp_path: Path, field: tuple[bytes, ...]) -> None:
    desk = Desk(tmp_path)
    it = exchange(*field, scheme="http")
    assert desk.at_once(it) == Refuse(403, "TlsRequired", substatus=4)
    assert desk.plugin.challenge(it) is None


async def test_unless_the_site_says_so(tmp_path: Path) -> None:
    desk = Desk(tmp_path, allow_http=True)
    assert outcome(await desk.answer(exchange(basic_field("alice", "secret"), scheme="http"))) == "alice"
    assert desk.at_once(exchange(scheme="http")) is None
    assert desk.plugin.challenge(exchange(scheme="http")) is not None


def facts(*urls: str, name: str = "main") -> SiteFacts:
    return SiteFacts(name, tuple(map(UrlPrefix.parse, urls)), ("basic",), True)


def test_check_sees_a_site_on_plain_http(tmp_path: Path) -> None:
    (tmp_path / "users").write_text(ALICE)
    closed, allowed = (basic.Basic.Settings(users_file=tmp_path / "users", allow_http=allow) for allow in (False, True))
    assert not list(basic.Basic.check(closed, facts("https://a.test/")))
    (said,) = basic.Basic.check(closed, facts("https://a.test/", "http://a.test/"))
    assert "http://a.test" in said
    assert "allow_http: true" in said
    assert not list(basic.Basic.check(allowed, facts("http://a.test/")))
    assert not list(basic.Basic.check(closed, facts("http://a.test/", name="")))  # there the request decides


def test_check_lists_what_is_wrong_with_the_file(tmp_path: Path) -> None:
    users = tmp_path / "users"
    settings = basic.Basic.Settings(users_file=users)
    (said,) = basic.Basic.check(settings, facts("https://a.test/"))
    assert said == f"{users}: there is no such users file; make it with: frontd passwd {users} USER"
    users.write_text(ALICE + "bob:plain\n" + ALICE)
    said, twice = basic.Basic.check(settings, facts("https://a.test/"))
    assert said.startswith(f"{users}:2: what follows the name is no hash")
    assert twice == f"{users}:3: alice stands in line 1 already; remove one of them"


def test_a_plugin_without_its_file_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="users:2: what follows the name is no hash"):
        Desk(tmp_path, ALICE + "bob:plain\n")


# ---------------------------------------------------------------------------------------------------- remembered


async def test_a_right_password_is_remembered_for_a_while(tmp_path: Path, mock_clock: MockClock) -> None:
    desk = Desk(tmp_path, cache_ttl=60.0)
    assert await desk.logon("alice", "secret") == "alice"
    mock_clock.jump(59)
    assert desk.remembered("alice", "secret") == "alice"
    mock_clock.jump(1)  # counted from the hash, not from the last use
    with no_thread_is_free(), pytest.raises(AssertionError, match="hashed"):
        desk.remembered("alice", "secret")


async def test_a_wrong_one_is_not(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    for _ in range(2):
        assert await desk.logon("alice", "wrong") == "LogonFailed"
        with pytest.raises(AssertionError, match="hashed"):
            desk.remembered("alice", "wrong")


async def test_nothing_is_remembered_for_0s(tmp_path: Path) -> None:
    desk = Desk(tmp_path, cache_ttl=0.0)
    assert await desk.logon("alice", "secret") == "alice"
    with pytest.raises(AssertionError, match="hashed"):
        desk.remembered("alice", "secret")


async def test_what_is_remembered_is_of_one_user_password_and_site(tmp_path: Path) -> None:
    lines = (ALICE, BOB, "ali:", passwords.make("x", cost=4), "\n")
    desk = Desk(tmp_path, "".join(lines), site="", realm="of all sites")
    assert await desk.logon("alice", "secret") == "alice"
    others = [exchange(basic_field(*who)) for who in (("bob", "secret"), ("alice", "secret "), ("ali", "cesecret"))]
    others.append(exchange(basic_field("alice", "secret"), site="other"))
    for other in others:
        with pytest.raises(AssertionError, match="hashed"):
            desk.at_once(other)


@pytest.mark.parametrize("at", range(4))
def test_no_part_of_a_logon_runs_into_the_next(at: int) -> None:
    one, other = ["a"] * 5, ["a"] * 5
    one[at : at + 2] = "x", "y3:abc"
    other[at : at + 2] = "x6:y", "abc"
    assert basic._digest(*one) != basic._digest(*other)
    assert basic._digest(*one) == basic._digest(*one)


async def test_the_oldest_is_forgotten_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(basic, "REMEMBERED", 2)
    desk = Desk(tmp_path, "".join(f"{name}:{passwords.make(name, cost=4)}\n" for name in "abc"))
    assert [await desk.logon(name, name) for name in "ab"] == ["a", "b"]
    assert desk.remembered("a", "a") == "a"  # and so b was used longest ago
    assert await desk.logon("c", "c") == "c"
    assert [desk.remembered(name, name) for name in "ac"] == ["a", "c"]
    with pytest.raises(AssertionError, match="hashed"):
        desk.remembered("b", "b")


# ---------------------------------------------------------------------------------------------------- one hash


async def test_the_same_logon_many_times_at_once_is_one_hash(tmp_path: Path) -> None:
    desk, found = Desk(tmp_path), list[str]()

    async def logon(password: str) -> None:
        found.append(await desk.logon("alice", password))

    async with trio.open_nursery() as nursery:
        with no_thread_is_free():
            for number in range(40):
                nursery.start_soon(logon, "secret" if number % 2 else "wrong")
            await settled()
            assert in_line() == 2
    assert sorted(found) == ["LogonFailed"] * 20 + ["alice"] * 20
    assert await desk.logon("alice", "another") == "LogonFailed"  # the 20 were one guess: there are more left


async def test_when_the_first_one_leaves_the_next_takes_over(tmp_path: Path) -> None:
    desk, found = Desk(tmp_path), list[str]()

    async def logon(scope: trio.CancelScope) -> None:
        with scope:
            found.append(await desk.logon("alice", "secret"))

    scopes = [trio.CancelScope() for _ in range(3)]
    async with trio.open_nursery() as nursery:
        with no_thread_is_free():
            for scope in scopes:
                nursery.start_soon(logon, scope)
                await settled()
            for scope in scopes[:2]:
                scope.cancel()
                await settled()
                assert in_line() == 1
    assert found == ["alice"]


# ---------------------------------------------------------------------------------------------------- the file changes


async def test_the_file_is_read_again_when_it_changes(tmp_path: Path, mock_clock: MockClock) -> None:
    desk = Desk(tmp_path, ALICE)
    async with trio.open_nursery() as nursery:
        await nursery.start(desk.plugin.run)
        await settled()
        assert await desk.logon("alice", "secret") == "alice"
        desk.write(BOB + f"alice:{passwords.make('new', cost=4)}:boss\n")
        mock_clock.jump(basic.POLL)
        assert await desk.remark() == f"{desk.file}: read again, users: 2"
        assert await desk.logon("bob", "hunter2") == "bob"
        assert await desk.logon("alice", "secret") == "LogonFailed"  # although it was remembered
        found = await desk.answer(exchange(basic_field("alice", "new")))
        assert found == Identity("alice", ("boss",), scheme="Basic")
        desk.write(BOB)
        await settled()
        mock_clock.jump(basic.POLL)
        assert await desk.remark() == f"{desk.file}: read again, users: 1"
        assert await desk.logon("alice", "new") == "LogonFailed"
        nursery.cancel_scope.cancel()


async def test_other_groups_of_a_remembered_user_count_at_once(tmp_path: Path) -> None:
    desk = Desk(tmp_path, ALICE)
    assert await desk.logon("alice", "secret") == "alice"
    desk.write(ALICE.replace("staff,admins", "guests"))
    await desk.plugin._look_again()
    assert desk.at_once(exchange(basic_field("alice", "secret"))) == Identity("alice", ("guests",), scheme="Basic")


async def test_a_broken_file_changes_nothing_and_is_remarked_once(tmp_path: Path) -> None:
    desk = Desk(tmp_path, ALICE)
    desk.write("alice:my-new-password\n")
    for _ in range(3):
        await desk.plugin._look_again()
    said = await desk.remark()
    assert "users:1: what follows the name is no hash" in said
    assert "the users that were read before stay" in said
    assert "my-new-password" not in said
    assert await desk.logon("alice", "secret") == "alice"
    desk.file.unlink()
    for _ in range(3):
        await desk.plugin._look_again()
    assert "no such users file" in await desk.remark()
    assert await desk.logon("alice", "secret") == "alice"
    desk.write("# nobody\n")
    await desk.plugin._look_again()
    assert "read again, users: 0" in await desk.remark()
    assert await desk.logon("alice", "secret") == "LogonFailed"


@pytest.mark.parametrize("after", [BOB, BOB + f"alice:{passwords.make('new', cost=4)}"])
async def test_a_line_that_is_changed_while_the_hash_is_in_work(tmp_path: Path, after: str) -> None:
    desk, found = Desk(tmp_path), list[str]()

    async def logon() -> None:
        found.append(await desk.logon("alice", "secret"))

    async with trio.open_nursery() as nursery:
        with no_thread_is_free():
            nursery.start_soon(logon)
            await settled()
            assert in_line() == 1
            desk.write(after)
            await desk.plugin._look_again()
    assert found == ["LogonFailed"]
