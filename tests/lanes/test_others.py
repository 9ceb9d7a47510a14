"""The reactor waits in trio's place when trio has nothing to do, and never any longer than that."""

from __future__ import annotations

import math
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from frontd.lanes.others import LONGEST, Others, epoll_of_trio
from frontd.lanes.reactor import QUIET
from frontd.net.traps import task_lane
from tests.lanes.guests import Guest, House, house

ROUNDS = 200
FEW = ROUNDS / 10
pytestmark = pytest.mark.timeout(60)


class Turns(trio.abc.Instrument):
    """Counts the turns of trio's loop."""

    def __init__(self) -> None:
        self.count = 0

    def before_io_wait(self, timeout: float) -> None:
        self.count += 1


@contextmanager
def turns() -> Iterator[Turns]:
    counting = Turns()
    trio.lowlevel.add_instrument(counting)
    try:
        yield counting
    finally:
        trio.lowlevel.remove_instrument(counting)


async def echo(guest: Guest) -> None:
    """Say the same again."""
    while data := guest.stream.receive_now():
        guest.stream.send_now(data)
    if data is not None:
        guest.finish()


CLIENT = """
import socket, sys
far = socket.socket(fileno=int(sys.argv[1]))
far.settimeout(10)
for _ in range(int(sys.argv[2])):
    far.send(b"x")
    assert far.recv(1) == b"x"
"""


async def ask(far: socket.socket, times: int) -> None:
    """One byte there and back, from a process of its own: a thread would run only when this one waits already."""
    far.setblocking(True)
    words = [sys.executable, "-c", CLIENT, str(far.fileno()), str(times)]
    await trio.run_process(words, pass_fds=[far.fileno()])


async def warm(it: House) -> tuple[Guest, socket.socket]:
    """A guest whose reactor waits in trio's place by now, unless it must not."""
    guest, far = it.guest(echo)
    await ask(far, 2 * QUIET)
    return guest, far


async def test_while_trio_has_nothing_to_do_it_has_no_turns() -> None:
    async with house() as it:
        _, far = await warm(it)
        with turns() as counted:
            await ask(far, ROUNDS)
        assert counted.count < FEW, "each answer cost a turn of trio's loop"


async def test_where_the_kernel_does_not_tell_each_wake_up_goes_through_trio(monkeypatch: pytest.MonkeyPatch) -> None:
    async def untold() -> int:
        return -1

    monkeypatch.setattr("frontd.lanes.reactor.epoll_of_trio", untold)
    async with house() as it:
        _, far = await warm(it)
        with turns() as counted:
            await ask(far, ROUNDS)
        assert counted.count > FEW


class Load:
    """A client that has always asked for something, in a thread of its own."""

    def __init__(self, far: socket.socket) -> None:
        self._far = far
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.rounds = 0

    def _run(self) -> None:
        self._far.settimeout(10)
        while not self._over.is_set():
            self._far.send(b"x")
            assert self._far.recv(1) == b"x"
            self.rounds += 1

    async def __aenter__(self) -> Load:
        self._thread.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._over.set()
        await trio.to_thread.run_sync(self._thread.join, 10)
        assert not self._thread.is_alive()


async def test_under_load_whatever_trio_waits_for_has_its_turn() -> None:
    """A deadline, a socket, the end of a thread's work, and what a thread asks to be run."""
    async with house() as it:
        _, far = await warm(it)
        near, other = it.sockets_of()
        token = trio.lowlevel.current_trio_token()
        loop = threading.current_thread()
        async with Load(far) as load:
            for _ in range(20):
                with trio.fail_after(5):
                    await trio.sleep(0.005)
                    other.send(b"x")
                    await trio.lowlevel.wait_readable(near)
                    assert near.recv(1) == b"x"
                    await trio.to_thread.run_sync(time.sleep, 0.001)
                    told = trio.Event()
                    assert threading.current_thread() is loop
                    await trio.to_thread.run_sync(token.run_sync_soon, told.set)
                    await told.wait()
            assert load.rounds > 100, "the load has starved"


async def test_what_the_reactor_begins_in_a_task_goes_on_at_once() -> None:
    async with house() as it:
        ended = trio.Event()

        async def moves(guest: Guest) -> None:
            if guest.stream.receive_now() == b"t":
                await task_lane()
                await trio.lowlevel.checkpoint()
                ended.set()

        guest, told = it.guest(moves)
        _, far = await warm(it)
        async with Load(far):
            with trio.fail_after(5):
                for _ in range(20):
                    ended = trio.Event()
                    await trio.to_thread.run_sync(told.send, b"t")
                    await ended.wait()
        assert guest.turns >= 20


async def test_a_deadline_that_the_reactor_sets_itself_is_kept() -> None:
    """Trio last heard of none at all."""
    async with house() as it:
        over, late = trio.Event(), math.inf

        async def farewell(guest: Guest) -> None:
            nonlocal late
            late = trio.current_time() - guest.deadline
            guest.finish()
            over.set()

        async def hurries(guest: Guest) -> None:
            while guest.stream.receive_now():
                pass
            it.reactor.hurry(idle, trio.current_time() + 0.05)

        idle, _ = it.guest()
        idle.end = farewell
        _, hasty = it.guest(hurries)
        await warm(it)
        await trio.to_thread.run_sync(hasty.send, b"x")
        with trio.fail_after(10):
            await over.wait()
        assert 0 <= late < LONGEST / 2


CROWD = 400
SHOUT = CLIENT + """
for number in sys.argv[3:]:
    socket.socket(fileno=int(number)).send(b"x")
"""


async def test_a_crowd_does_not_stand_in_front_of_what_trio_waits_for() -> None:
    """Each of the crowd takes 100 us, and all of them speak before the one that a task waits for."""
    async with house() as it:

        async def burns(guest: Guest) -> None:
            until = time.thread_time() + 0.0001
            guest.stream.receive_now()
            while time.thread_time() < until:
                pass

        crowd = [it.guest(burns) for _ in range(CROWD)]
        _, asking = await warm(it)
        near, other = it.sockets_of()
        fds = [far.fileno() for _, far in crowd] + [other.fileno()]
        words = [asking.fileno(), 2 * QUIET, *fds]
        served = 0

        async def listens() -> None:
            nonlocal served
            await trio.lowlevel.wait_readable(near)
            served = sum(guest.turns for guest, _ in crowd)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(listens)
            await trio.run_process([sys.executable, "-c", SHOUT, *map(str, words)], pass_fds=[words[0], *fds])
        print(f"{served} of {CROWD} went first")
        assert served < CROWD * 3 / 4


async def test_a_kernel_that_takes_no_more_watches_costs_turns_and_nothing_else() -> None:
    async with house() as it:
        await warm(it)
        it.reactor._trios = it.reactor._epoll.fileno()  # no set can be in itself
        _, far = it.guest(echo)
        await ask(far, ROUNDS)
        assert it.reactor._trios == -1


async def test_the_two_sets_are_never_in_each_other() -> None:
    async with house() as it:
        _, far = await warm(it)
        await ask(far, 10)
        assert it.reactor._trios >= 0
        assert it.reactor._trios not in it.registered()  # while a task runs


def members(epoll: int) -> list[int]:
    """The descriptors in an epoll set."""
    lines = Path(f"/proc/self/fdinfo/{epoll}").read_text().splitlines()
    return [int(line.split()[1]) for line in lines if line.startswith("tfd:")]


async def test_trios_set_is_found_by_what_is_in_it() -> None:
    found = await epoll_of_trio()
    assert os.readlink(f"/proc/self/fd/{found}") == "anon_inode:[eventpoll]"
    near, far = socket.socketpair()
    with near, far:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.lowlevel.wait_readable, near)
            await trio.testing.wait_all_tasks_blocked()
            assert near.fileno() in members(found)
            nursery.cancel_scope.cancel()


async def test_trio_is_asked_once_a_second_whatever_it_said() -> None:
    others = Others()
    others.before_io_wait(1e9)
    assert others.nothing
    assert others.until <= time.perf_counter() + LONGEST
    others.task_scheduled(trio.lowlevel.current_task())  # who asks is nobody else
    assert others.nothing
    others.before_io_wait(0)
    assert not others.nothing
