"""Logons that wait for winbind: how many, what counts as a guess when it does not answer, and what a try leaves behind.

There is no winbind here: a thread asks a function in its place.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from ctypes import c_void_p
from functools import partial
from typing import Any

import pytest
import trio
from frontd_plugins import _gss as gss
from frontd_plugins import _pac as pac
from frontd_plugins import _winbind as winbind
from frontd_plugins._winbind import Winbind, _Account
from trio.testing import MockClock

from frontd.testing import site
from tests.plugins.ntlmclients import logon, windows
from tests.plugins.test_negotiate import armed
from tests.plugins.test_negotiate import logon as ticket_field
from tests.plugins.test_negotiate_ntlm import legs
from tests.windows.realm import Realm, house, kdc

__all__ = ["house", "kdc"]  # fixtures

ANN = _Account("FRONTD\\ann", (), bytes(16))


class Library:
    """Does not answer before the play says so; `asked` is how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0
        self.is_asked, self.may_answer = threading.Event(), threading.Event()

    def __call__(self, *_: object) -> _Account:
        self.asked += 1
        self.is_asked.set()
        assert self.may_answer.wait(30)
        return ANN


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Library]:
    library = Library()
    monkeypatch.setattr(winbind, "_by_password", library)
    monkeypatch.setattr(winbind, "_idle", [c_void_p(1) for _ in range(8)])
    yield library
    library.may_answer.set()


@pytest.fixture
def busy(monkeypatch: pytest.MonkeyPatch) -> trio.CapacityLimiter:
    """One thread, which a logon before has."""
    threads = trio.CapacityLimiter(1)
    monkeypatch.setattr(winbind, "THREADS", threads)
    threads.acquire_on_behalf_of_nowait("a logon before")
    return threads


async def test_a_question_that_is_not_answered_may_have_been_a_guess(mock_clock: MockClock, slow: Library) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(jump_once_asked, mock_clock, slow)
        with pytest.raises(winbind.Unavailable, match="has not answered within 10 s") as caught:
            await Winbind().password("FRONTD", "ann", "guess")
    assert caught.value.was_asked
    assert slow.asked == 1


async def jump_once_asked(clock: MockClock, library: Library) -> None:
    await trio.to_thread.run_sync(library.is_asked.wait, 30)
    clock.jump(10)


async def test_a_question_that_was_never_asked_was_none(
    autojump_clock: Any, slow: Library, busy: trio.CapacityLimiter
) -> None:
    with pytest.raises(winbind.Unavailable, match="has not answered within 10 s") as caught:
        await Winbind().password("FRONTD", "ann", "guess")
    assert not caught.value.was_asked
    assert slow.asked == 0


def test_nobody_is_asked_after_the_deadline() -> None:
    given_up, begun = winbind.Turn(), winbind.Turn()
    assert given_up.give_up()
    with pytest.raises(winbind.Unavailable, match="the deadline has passed"):
        given_up.begin()
    begun.begin()
    assert not begun.give_up()


async def test_so_many_wait_and_no_more(
    autojump_clock: Any, slow: Library, busy: trio.CapacityLimiter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(winbind, "QUEUE", 2)
    said: list[str] = []

    async def wait() -> None:
        with pytest.raises(winbind.Unavailable) as caught:
            await Winbind().password("FRONTD", "ann", "guess")
        said.append(str(caught.value))

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(wait)
    assert said == ["2 logons wait for winbind", *["winbind has not answered within 10 s"] * 2]


def test_a_client_beyond_the_queue_is_told_to_come_again(
    busy: trio.CapacityLimiter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which is no guess: the limit of one is not reached."""
    monkeypatch.setattr(winbind, "QUEUE", 0)
    monkeypatch.setattr(winbind, "missing", lambda: "")
    monkeypatch.setattr(winbind, "names", lambda: ("FRONT", "FRONTD"))
    with site({"ntlm": {"verifier": "winbind", "failures_per_user": 1}}) as there:
        for _ in range(3):
            answer = logon(there.connect())
            assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
            assert there.log[-1].reason == "LogonBusy"
            assert there.log[-1].detail == "NTLM, leg 2: 0 logons wait for winbind"


def test_the_same_within_negotiate(house: Realm, busy: trio.CapacityLimiter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winbind, "QUEUE", 0)
    monkeypatch.setattr(winbind, "missing", lambda: "")
    monkeypatch.setattr(winbind, "names", lambda: ("FRONT", "FRONTD"))
    by_ntlm = {"verifier": "winbind", "failures_per_user": 1}
    with site(armed(house, mechanisms=["kerberos", "ntlm"], ntlm=by_ntlm)) as there:
        for _ in range(3):
            answer, _ = legs(there.connect(), windows())
            assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
            assert (there.log[-1].reason, there.log[-1].detail) == ("LogonBusy", "NTLM: 0 logons wait for winbind")


def test_names_of_groups_wait_in_the_same_line(
    house: Realm, busy: trio.CapacityLimiter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ticket is right and its groups have no names yet: come again.  Names that are remembered need no thread."""
    monkeypatch.setattr(winbind, "QUEUE", 0)
    monkeypatch.setattr(gss, "_info", lambda *_: pac.LogonInfo("ann", "TEST", ("S-1-5-21-1-2-3-77",)))
    monkeypatch.setattr(winbind, "missing", lambda: "")
    field = partial(ticket_field, house.ticket("alice"))
    with site(armed(house, group_names="winbind")) as there:
        answer = there.get("/", field())
        assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
        detail = "the names of the groups: 0 logons wait for winbind"
        assert (there.log[-1].reason, there.log[-1].detail) == ("LogonBusy", detail)
        monkeypatch.setattr(winbind, "_remembered", {"S-1-5-21-1-2-3-77": (math.inf, "TEST\\staff")})
        found = there.get("/", field()).upstream
        assert found is not None
        assert found.headers["X-Remote-Groups"] == "TEST\\staff"


@pytest.mark.parametrize(("domain", "user"), [("d" * 100, "u" * 155), ("", "u" * 200 + "@" + "r" * 54)])
async def test_names_that_are_too_long_together(domain: str, user: str, slow: Library) -> None:
    """The pipe's protocol has one text of 255 bytes for both, with a backslash between them."""
    slow.may_answer.set()
    with pytest.raises(winbind.Denied, match="longer than 255 bytes"):
        await Winbind().password(domain, user, "x")
    found = await Winbind().password(domain, user[1:], "x")
    assert found.name == ANN.name


async def test_names_of_groups_that_were_found_are_kept_when_the_time_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A user with hundreds of groups: what the first try has found, the second one need not ask for."""
    sids, asked = [f"S-1-5-21-1-2-3-{number}" for number in range(300)], list[str]()
    is_stuck, may_answer = threading.Event(), threading.Event()

    def name(_: c_void_p, sid: str) -> tuple[bool, str]:
        asked.append(sid)
        if len(asked) == 200:
            is_stuck.set()
            assert may_answer.wait(30)
            raise winbind.Unavailable("nobody hears this")  # the rest of the batch would be asked of the library itself
        return True, f"FRONTD\\{sid}"

    monkeypatch.setattr(winbind, "_name", name)
    monkeypatch.setattr(winbind, "_idle", [c_void_p(1) for _ in range(8)])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(winbind._names, sids)
        await trio.to_thread.run_sync(is_stuck.wait, 30)
        nursery.cancel_scope.cancel()
    try:
        assert len(await winbind._names(sids)) == 300
    finally:
        may_answer.set()
    assert asked[200] == sids[199 - 199 % winbind.BATCH]
