"""The registration law, clause by clause: each was once a loop, a hang, or a talk with the wrong connection."""

from __future__ import annotations

import os
import socket

import pytest
import trio

from frontd.model.errors import Reason
from frontd.net.streams import READ_SIZE, Stream
from frontd.net.traps import readable, task_lane
from tests.lanes.guests import END_ALONE, EVERYTHING, Guest, House, house, listen
from tests.net.test_peek import counted
from tests.wire import settled


def numbered(it: House, sock: socket.socket, fd: int) -> socket.socket:
    """`sock` under the number `fd`, which has just become free."""
    os.dup2(sock.fileno(), fd, inheritable=False)
    sock.close()
    it.sockets.append(socket.socket(fileno=fd))
    return it.sockets[-1]


# ---------------------------------------------------------------------------------------------------- registered once


async def test_a_socket_is_registered_once_and_for_edges() -> None:
    async with house() as it:
        guest, far = it.guest()
        assert it.events_of(guest.stream) == EVERYTHING
        with pytest.raises(FileExistsError):
            it.reactor.register(guest.stream, guest)
        far.send(b"hello")
        await settled()
        assert it.events_of(guest.stream) == EVERYTHING
        assert guest.heard == [b"hello"]


async def test_bytes_that_wait_already_are_told_of() -> None:
    async with house() as it:
        near, far = it.sockets_of()
        far.send(b"early")
        guest = Guest(it.reactor, near)
        it.reactor.welcome(guest, None)
        await settled()
        assert guest.heard == [b"early"]


# ---------------------------------------------------------------------------------------------------- ready, and edges


async def test_one_arrival_is_one_turn_and_an_idle_connection_costs_nothing() -> None:
    async with house() as it:
        guest, far = it.guest()
        for number in range(1, 4):
            far.send(b"x" * number)
            await settled()
            assert (guest.turns, guest.heard[-1]) == (number, b"x" * number)
            assert not guest.stream.ready
        with counted() as steps:
            for _ in range(50):
                await trio.lowlevel.checkpoint()
            await settled()
        assert steps.count == 0


async def test_a_turn_reads_until_there_is_nothing() -> None:
    """An edge comes once: what a read leaves behind would else wait for the next one."""
    async with house() as it:
        guest, far = it.guest()
        far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1_000_000)
        guest.stream.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1_000_000)
        far.send(b"y" * (3 * READ_SIZE + 1))
        await settled()
        assert sum(map(len, guest.heard)) == 3 * READ_SIZE + 1
        assert guest.turns == 1


async def test_what_a_turn_leaves_unread_has_another_turn() -> None:
    async def one_read(guest: Guest) -> None:
        data = guest.stream.receive_now(4)
        if data:
            guest.heard.append(data)

    async with house() as it:
        guest, far = it.guest(one_read)
        far.send(b"1234abcdxy")
        await settled()
        assert guest.heard == [b"1234", b"abcd", b"xy"]


async def test_bytes_that_come_during_an_exchange_only_set_the_flag() -> None:
    async with house() as it:
        app = Stream(it.sockets_of()[0])
        app_far = it.sockets[-1]

        async def exchange(guest: Guest) -> None:
            await listen(guest)
            if guest.turns == 1:
                await readable(app, trio.current_time() + 60, Reason.Timer_Response)
                guest.heard.append(app.receive_now() or b"")

        guest, far = it.guest(exchange)
        app.owner = Elsewhere()
        far.send(b"one")
        await settled()
        assert guest.parked is app
        far.send(b"two")
        await settled()
        assert (guest.heard, guest.turns, guest.stream.ready) == ([b"one"], 1, True)
        app_far.send(b"answer")
        await settled()
        assert (guest.heard, guest.turns) == ([b"one", b"answer", b"two"], 2)
        app.close_now()


class Elsewhere:
    """The owner of a stream that is not a client's."""

    hears_end = False

    def __init__(self) -> None:
        self.told = 0

    def on_event(self, stream: Stream) -> None:
        self.told += 1


# ---------------------------------------------------------------------------------------------------- the wrong object


async def test_an_event_of_a_descriptor_that_was_used_again_in_this_batch_is_skipped() -> None:
    """Two have bytes; the first one's turn closes the second, whose number a third connection gets at once."""
    async with house() as it:
        born: list[Guest] = []

        async def replaces(guest: Guest) -> None:
            await listen(guest)
            fd = second.stream.sock.fileno()
            second.finish()
            born.append(Guest(it.reactor, numbered(it, near, fd)))
            it.reactor.welcome(born[0], None)

        first, first_far = it.guest(replaces)
        second, second_far = it.guest()
        near, third_far = it.sockets_of()
        first_far.send(b"a")
        second_far.send(b"b")
        await settled()
        (third,) = born
        assert (first.turns, second.turns, third.turns) == (1, 0, 0)
        third_far.send(b"mine")
        await settled()
        assert third.heard == [b"mine"]


async def test_bytes_of_a_connection_born_in_a_batch_come_with_the_next() -> None:
    async with house() as it:
        born: list[Guest] = []

        async def lets_another_in(guest: Guest) -> None:
            await listen(guest)
            near, far = it.sockets_of()
            far.send(b"at once")
            born.append(Guest(it.reactor, near))
            it.reactor.welcome(born[0], None)

        _, far = it.guest(lets_another_in)
        far.send(b"a")
        await settled()
        assert born[0].heard == [b"at once"]


# ---------------------------------------------------------------------------------------------------- two lanes


async def test_a_task_has_the_bytes_to_itself_and_the_reactor_hears_of_the_end() -> None:
    async with house() as it:
        done = trio.Event()

        async def waits(guest: Guest) -> None:
            await listen(guest)
            if guest.turns == 1:
                await task_lane()
                await done.wait()

        guest, far = it.guest(waits)
        far.send(b"one")
        await settled()
        assert it.events_of(guest.stream) == END_ALONE
        far.send(b"two")
        await settled()
        assert (guest.heard, guest.turns, guest.stream.ending) == ([b"one"], 1, False)
        far.shutdown(socket.SHUT_WR)
        await settled()
        assert (guest.turns, guest.stream.ending) == (1, True)
        done.set()
        await settled()
        assert (guest.heard, guest.turns, guest.stream.closed) == ([b"one", b"two"], 2, True)


async def test_a_connection_that_comes_back_from_a_task_is_registered_as_before() -> None:
    async with house() as it:

        async def visits(guest: Guest) -> None:
            await task_lane()
            await trio.lowlevel.checkpoint()
            await listen(guest)

        guest, far = it.guest(visits)
        for number in range(1, 20):
            far.send(b"x")
            await settled()
            assert (len(guest.heard), guest.turns) == (number, number)
            assert it.events_of(guest.stream) == EVERYTHING
        assert len(it.registered()) == 1


async def test_a_stream_of_an_app_leaves_the_set_for_a_task_and_returns_when_it_is_waited_on() -> None:
    async with house() as it:
        app = Stream(it.sockets_of()[0])
        app_far = it.sockets[-1]
        owner = app.owner = Elsewhere()
        wait = (trio.current_time() + 60, Reason.Timer_Response)

        async def asks_twice(guest: Guest) -> None:
            await listen(guest)
            if guest.turns == 2:
                await task_lane()
            await readable(app, *wait)
            guest.heard.append(app.receive_now() or b"nothing")

        guest, far = it.guest(asks_twice)
        for number, events in ((1, EVERYTHING), (2, 0), (3, EVERYTHING)):
            far.send(b"?")
            await settled()
            assert it.events_of(app) == events
            app_far.send(b"answer %d" % number)
            await settled()
            assert guest.heard[-1] == b"answer %d" % number
        assert owner.told == 0
        app_far.send(b"unasked")
        await settled()
        assert owner.told == 1
        app.close_now()


# ---------------------------------------------------------------------------------------------------- closing


async def test_a_stream_leaves_the_set_before_it_is_closed() -> None:
    """The kernel forgets a socket by itself only when no descriptor is left of it, and here one is."""
    async with house() as it:
        guest, far = it.guest()
        await settled()
        other = os.dup(guest.stream.sock.fileno())
        guest.stream.close_now()
        assert it.registered() == {}
        far.send(b"x")
        with counted() as steps:
            await settled()
        assert (steps.count, guest.turns) == (0, 0)
        os.close(other)


async def test_a_stream_whose_socket_was_closed_under_it_is_forgotten() -> None:
    """What a failed TLS wrap does: the number is another socket's by the time the stream is closed."""
    async with house() as it:
        guest, _ = it.guest()
        near, far = it.sockets_of()
        fd = guest.stream.sock.fileno()
        guest.stream.sock.close()
        guest.finish()
        assert not any(it.reactor._streams)
        other = Guest(it.reactor, numbered(it, near, fd))
        it.reactor.welcome(other, None)
        far.send(b"x")
        await settled()
        assert (guest.turns, other.heard) == (0, [b"x"])


async def test_everybody_goes_when_the_reactor_ends() -> None:
    async with trio.open_nursery() as nursery:
        it = House()
        await nursery.start(it.reactor.run)
        ended: list[str] = []

        async def exchange(guest: Guest) -> None:
            await listen(guest)
            try:
                if guest.heard == [b"task"]:
                    await task_lane()
                    await trio.sleep_forever()
                await readable(guest.stream, trio.current_time() + 60, Reason.Timer_HeaderWait)
            except BaseException as error:
                ended.append(type(error).__name__)
                raise

        idle, _ = it.guest()
        parked, parked_far = it.guest(exchange)
        tasked, tasked_far = it.guest(exchange)
        parked_far.send(b"head")
        tasked_far.send(b"task")
        await settled()
        nursery.cancel_scope.cancel()
    assert sorted(ended) == ["Cancelled", "Ended"]
    assert all(guest.stream.closed for guest in (idle, parked, tasked))
    assert it.registered() == {}
    assert it.faults == []
    it.reactor.close()
    for sock in it.sockets:
        sock.close()
