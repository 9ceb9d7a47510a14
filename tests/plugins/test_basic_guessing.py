"""Whoever guesses passwords: how often they may, whom they can hurt by it, and what they can learn from it."""

from __future__ import annotations

import os
import resource
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import argon2
import pytest
import trio
from frontd_plugins import _low_priority as low_priority
from frontd_plugins import _passwords as passwords
from frontd_plugins import basic
from frontd_plugins._throttle import REFUSED, Buckets, Throttle
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from frontd import Refuse
from tests.plugins.logons import BOB, Desk, basic_field, exchange, in_line, no_thread_is_free, outcome
from tests.wire import settled

HOME, CAFE = "192.0.2.1", "198.51.100.7"


# ---------------------------------------------------------------------------------------------------- how often


@pytest.mark.parametrize("name", ["alice", "nobody"])
async def test_ten_guesses_at_a_user_then_one_every_six_seconds(
    tmp_path: Path, mock_clock: MockClock, name: str
) -> None:
    desk = Desk(tmp_path)
    for number in range(10):
        assert await desk.logon(name, f"guess {number}") == "LogonFailed"
    for number in range(3):
        found = desk.at_once(exchange(basic_field(name, f"more {number}")))
        assert found == Refuse(429, "LogonThrottled", retry_after=6)
    mock_clock.jump(6)
    assert await desk.logon(name, "after 6 s") == "LogonFailed"
    assert desk.remembered(name, "and then") == "LogonThrottled"
    mock_clock.jump(60)
    assert [await desk.logon(name, f"again {number}") for number in range(10)] == ["LogonFailed"] * 10
    assert desk.remembered(name, "and no more") == "LogonThrottled"


async def test_a_hundred_guesses_from_an_address(tmp_path: Path, mock_clock: MockClock) -> None:
    desk = Desk(tmp_path, failures_per_address=5)
    for number in range(5):
        assert await desk.logon(f"user {number}", "guess") == "LogonFailed"
    found = desk.at_once(exchange(basic_field("user 6", "guess")))
    assert found == Refuse(429, "LogonThrottled", retry_after=12)
    assert await desk.logon("user 6", "guess", CAFE) == "LogonFailed"
    assert basic.Basic.Settings(users_file=desk.file).failures_per_address == 100


async def test_many_guesses_at_once_are_no_more_than_one_by_one(tmp_path: Path) -> None:
    desk, found = Desk(tmp_path), list[str]()

    async def logon(number: int) -> None:
        found.append(await desk.logon("alice", f"guess {number}"))

    async with trio.open_nursery() as nursery:
        with no_thread_is_free():
            for number in range(40):
                nursery.start_soon(logon, number)
            await settled()
            assert in_line() == 10
    assert sorted(found) == ["LogonFailed"] * 10 + ["LogonThrottled"] * 30


async def test_right_passwords_do_not_count(tmp_path: Path, mock_clock: MockClock) -> None:
    desk = Desk(tmp_path, cache_ttl=0.0, failures_per_user=3)
    for _ in range(10):
        assert await desk.logon("alice", "secret") == "alice"
    assert [await desk.logon("alice", f"guess {number}") for number in range(3)] == ["LogonFailed"] * 3
    assert desk.remembered("alice", "secret") == "LogonThrottled"


async def test_a_guess_that_is_broken_off_counts(tmp_path: Path) -> None:
    desk = Desk(tmp_path, failures_per_user=3)
    with no_thread_is_free():
        for number in range(3):
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(desk.logon, "alice", f"guess {number}")
                    await settled()
                    scope.cancel()
    assert desk.remembered("alice", "guess 4") == "LogonThrottled"


async def test_an_ipv6_client_cannot_change_its_address_within_its_network(tmp_path: Path) -> None:
    desk = Desk(tmp_path, failures_per_address=3)
    for number in range(3):
        assert await desk.logon(f"user {number}", "guess", f"2001:db8:0:1::{number}") == "LogonFailed"
    assert desk.remembered("user", "guess", "2001:db8:0:1:ffff::") == "LogonThrottled"
    assert await desk.logon("user", "guess", "2001:db8:0:2::") == "LogonFailed"


async def test_without_limits(tmp_path: Path) -> None:
    desk = Desk(tmp_path, BOB, failures_per_user=None, failures_per_address=None)
    assert [await desk.logon("bob", f"guess {number}") for number in range(120)] == ["LogonFailed"] * 120


@pytest.mark.parametrize("wrong", [{"failures_per_user": 0}, {"failures_per_address": 0}, {"failure_window": 0.0}])
def test_limits_that_would_keep_everybody_out(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="greater than"):
        Desk(tmp_path, **wrong)


# ---------------------------------------------------------------------------------------------------- whom it hurts


async def test_nobody_can_lock_a_user_out_from_elsewhere(tmp_path: Path, mock_clock: MockClock) -> None:
    desk = Desk(tmp_path)
    for number in range(200):
        await desk.logon("alice", f"guess {number}", CAFE)
    assert await desk.logon("alice", "secret", HOME) == "alice"


async def test_who_is_at_work_stays_at_work_beside_a_device_with_an_old_password(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    desk = Desk(tmp_path)
    assert await desk.logon("alice", "secret") == "alice"
    for _ in range(50):
        await desk.logon("alice", "the old one")
    assert desk.remembered("alice", "the old one") == "LogonThrottled"
    assert desk.remembered("alice", "secret") == "alice"


async def test_nobody_finds_a_remembered_password_by_trying_all(tmp_path: Path, mock_clock: MockClock) -> None:
    """At the same address as the user, where remembered passwords pass although guesses are refused."""
    desk = Desk(tmp_path)
    assert await desk.logon("alice", "secret") == "alice"
    words = [f"word {number}" for number in range(10 + 10 * REFUSED)]
    for word in words:
        await desk.logon("alice", word)
    assert desk.remembered("alice", "secret") == "LogonThrottled"  # now it looks like any other
    assert desk.remembered("alice", "secret", CAFE) == "alice"  # but only from there
    mock_clock.jump(6)
    assert desk.remembered("alice", "secret") == "alice"


async def test_nor_by_trying_one_at_many_users(tmp_path: Path, mock_clock: MockClock) -> None:
    desk = Desk(tmp_path, failures_per_address=3)
    assert await desk.logon("alice", "secret") == "alice"
    for number in range(3 + 3 * REFUSED):
        await desk.logon(f"user {number}", "secret")
    assert desk.remembered("alice", "secret") == "LogonThrottled"


# ---------------------------------------------------------------------------------------------------- hashing


@contextmanager
def no_more_memory_than(size: int) -> Iterator[None]:
    """While this lasts, the process gets no more than `size` bytes of address space besides what it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("name", ["alice", "nobody"])
async def test_a_full_line(tmp_path: Path, name: str) -> None:
    desk = Desk(tmp_path, queue=2)
    async with trio.open_nursery() as nursery:
        with no_thread_is_free():
            for number in range(2):
                nursery.start_soon(desk.logon, name, f"guess {number}")
            await settled()
            found = desk.at_once(exchange(basic_field(name, "secret")))
            assert found == Refuse(503, "LogonBusy", log="2 logons wait", retry_after=1)
        assert in_line() <= 2
    assert await desk.logon("alice", "secret") == "alice"


async def test_without_a_line_a_free_thread_is_enough(tmp_path: Path) -> None:
    desk = Desk(tmp_path, queue=0)
    assert await desk.logon("alice", "secret") == "alice"
    with no_thread_is_free():
        assert desk.remembered("bob", "hunter2") == "LogonBusy"


async def test_argon2id_without_memory_is_busy_and_no_fault(tmp_path: Path) -> None:
    hasher = argon2.PasswordHasher(memory_cost=passwords.ARGON2_MEMORY, time_cost=1, parallelism=1)
    desk = Desk(tmp_path, f"alice:{hasher.hash('secret')}")
    with no_more_memory_than(100 << 20):  # threads that end meanwhile give theirs back: far less than the 256 MiB
        found = await desk.answer(exchange(basic_field("alice", "secret")))
    assert isinstance(found, Refuse)
    assert (outcome(found), found.status, found.retry_after) == ("LogonBusy", 503, 1)


def test_hashing_has_low_priority_and_the_threads_of_others_keep_theirs() -> None:
    stored = passwords.make("secret", cost=11)
    answers: list[bool] = []
    asking = threading.Thread(target=lambda: answers.append(low_priority.run(passwords.verify, stored, "secret")))
    asking.start()
    found: set[int] = set()
    while asking.is_alive():
        for thread in threading.enumerate():
            if thread.name == "frontd low priority" and thread.native_id and low_priority.NICE not in found:
                found.add(os.getpriority(os.PRIO_PROCESS, thread.native_id))
    assert answers == [True]
    assert low_priority.NICE in found
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == os.getpriority(os.PRIO_PROCESS, os.getpid())


def test_cores(tmp_path: Path) -> None:
    quota = tmp_path / "cpu.max"
    allowed = len(os.sched_getaffinity(0))
    assert low_priority.cores(quota) == allowed
    for text, cores in (("max 100000\n", allowed), ("50000 100000\n", 1), ("100000 100000\n", 1), ("x\n", allowed)):
        quota.write_text(text)
        assert low_priority.cores(quota) == cores


def cpu_of(stored: str) -> float:
    """CPU seconds of one check in this thread; the best of some, since caches differ."""
    found = []
    for _ in range(5):
        before = time.thread_time()
        assert not passwords.verify(stored, "guess")
        found.append(time.thread_time() - before)
    return min(found)


@pytest.mark.parametrize("kind", ["bcrypt", "argon2id"])
def test_an_unknown_user_costs_what_a_wrong_password_costs(tmp_path: Path, kind: str) -> None:
    hasher = argon2.PasswordHasher(time_cost=2, memory_cost=8192, parallelism=1)
    stored = passwords.make("secret", cost=8) if kind == "bcrypt" else hasher.hash("secret")
    (tmp_path / "users").write_text(f"alice:{stored}\n")
    decoy = passwords.read(tmp_path / "users").decoy("nobody")
    assert cpu_of(decoy) == pytest.approx(cpu_of(stored), rel=0.2)


def test_in_a_mixed_file_strangers_cost_what_users_cost(tmp_path: Path) -> None:
    lines = [f"u{number}:{passwords.make('x', cost=4 + number % 4 // 3)}\n" for number in range(8)]
    (tmp_path / "users").write_text("".join(lines))
    users = passwords.read(tmp_path / "users")
    found = [users.decoy(f"stranger {number}")[4:6] for number in range(2000)]
    assert found.count("05") / len(found) == pytest.approx(1 / 4, abs=0.06)  # as 2 of 8 users
    assert users.decoy("stranger 7") == users.decoy("stranger 7")
    assert len(set(users.decoys)) == 2
    assert not {record.stored for record in users.records.values()} & set(users.decoys)


async def test_and_so_it_is_for_whoever_tries(tmp_path: Path) -> None:
    lines = [f"user{cost}:{passwords.make('x', cost=cost)}\n" for cost in (4, 9)]
    desk = Desk(tmp_path, "".join(lines), failures_per_address=None)
    times = []
    for number in range(40):
        before = time.process_time()
        assert await desk.logon(f"stranger {number}", "guess") == "LogonFailed"
        times.append(time.process_time() - before)
    slow = sum(spent > 0.012 for spent in times)  # 2^9 rounds take some 25 ms of CPU, 2^4 one
    assert 5 <= slow <= 35


# ---------------------------------------------------------------------------------------------------- the buckets


def test_tables_are_bounded() -> None:
    buckets = Buckets(10, 60.0, most=100)
    for number in range(1000):
        buckets.take(number, 0.0)
    assert len(buckets) == 100
    assert buckets.wait(999, 0.0) == 0
    for number in range(100):
        buckets.take(f"later {number}", 1000.0)  # all the others are full again by then
    assert len(buckets) == 100
    for _ in range(100):
        buckets.take("one", 2000.0)
    assert len(buckets) == 1


def test_a_flood_of_refused_names_fills_no_table() -> None:
    throttle = Throttle(10, 3, 60.0)
    for number in range(3):
        throttle.guess(f"user {number}", HOME, 0.0)
    for number in range(5000):
        assert throttle.wait(f"name {number}", HOME, 0.0)
        throttle.refuse(f"name {number}", HOME, 0.0)
    assert max(map(len, throttle._refused)) <= 3 * REFUSED


Steps = st.lists(st.tuples(st.floats(0, 30), st.booleans()), max_size=60)


@given(steps=Steps, limit=st.integers(1, 5), window=st.floats(1, 60))
def test_no_more_than_the_limit_and_what_flowed_in(steps: list[tuple[float, bool]], limit: int, window: float) -> None:
    """However takes and returns are mixed, and whenever: never more taken than `limit` plus `limit` per window."""
    buckets, now, out = Buckets(limit, window), 0.0, 0
    for pause, comes_back in steps:
        now += pause
        wait = buckets.wait("key", now)
        assert 0 <= wait <= window / limit + 1e-6
        if wait:
            assert buckets.wait("key", now + wait) == 0
            continue
        buckets.take("key", now)
        if comes_back:
            buckets.give_back("key")
        else:
            out += 1
        assert out <= limit + now * limit / window + 1e-3


def test_addresses_of_all_kinds() -> None:
    throttle = Throttle(1, None, 60.0)
    for address in ("192.0.2.1", "fe80::1%eth0", "unix:", "not: an address"):
        throttle.guess("alice", address, 0.0)
        assert throttle.wait("alice", address, 0.0) == pytest.approx(60), address
    assert throttle.wait("alice", "fe80::2%eth0", 0.0) > 0
    assert throttle.wait("alice", "::ffff:192.0.2.1", 0.0) > 0
    assert throttle.wait("alice", "::ffff:192.0.2.2", 0.0) == 0
    assert throttle.wait("bob", "192.0.2.1", 0.0) == 0
