"""`Stream` under a driver that is told of edges: when it says that there may be more, and what short writes keep."""

from __future__ import annotations

import socket
import struct

import pytest
import trio

from frontd.model.errors import Reason
from frontd.net.streams import Broken, Stream
from tests.net.pki import Pki
from tests.net.test_peek import pair
from tests.net.test_streams import ends, flush


async def test_a_read_that_took_all_leaves_nothing_to_be_ready_for() -> None:
    near, far = pair()
    with far:
        stream = Stream(near)
        stream.ready = True
        assert stream.receive_now() is None
        assert not now(stream)
        far.send(b"12345678")
        stream.ready = True
        assert stream.receive_now(8) == b"12345678"  # as much as was asked for: there may be more
        assert now(stream)
        far.send(b"123")
        assert stream.receive_now(8) == b"123"  # less: what comes now is another edge
        assert not now(stream)
        stream.close_now()


def now(stream: Stream) -> bool:
    """`ready` as it is now."""
    return stream.ready


async def test_an_end_that_was_announced_stays_to_be_read() -> None:
    """Bytes and the end are one edge: after the bytes, the end is still to come."""
    near, far = pair()
    with far:
        stream = Stream(near)
        stream.ready = stream.ending = True
        far.send(b"last")
        far.shutdown(socket.SHUT_WR)
        assert stream.receive_now() == b"last"
        assert now(stream)
        assert stream.receive_now() == b""
        stream.close_now()


async def test_a_reset_is_broken_and_not_an_end() -> None:
    near, far = pair()
    stream = Stream(near)
    far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    far.close()
    with pytest.raises(Broken):
        stream.receive_now()
    stream.close_now()


async def test_records_behind_the_one_that_was_read_keep_it_ready(pki: Pki) -> None:
    async with ends(pki) as (stream, client):
        await client.send_all(b"one")
        await client.send_all(b"two")
        stream.ready = True
        assert stream.receive_now() == b"one"
        assert now(stream)  # the kernel holds another record
        assert stream.receive_now() == b"two"
        assert not now(stream)


# ---------------------------------------------------------------------------------------------------- short writes


@pytest.mark.parametrize("secure", [False, True])
async def test_what_waits_of_a_view_is_a_copy(pki: Pki, secure: bool) -> None:
    """The buffer behind a view is used again at once; what the kernel did not take of it must not change."""
    async with ends(pki if secure else None) as (stream, client):
        buffer = bytearray(b"A" * 6_000_000)
        assert not stream.send_now(memoryview(buffer))
        assert stream.pending + stream.sent == len(buffer)
        buffer[:] = b"B" * len(buffer)
        assert not stream.send_now(memoryview(buffer)[:1000])
        buffer[:] = b"C" * len(buffer)
        got = bytearray()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(flush, stream)
            while len(got) < 6_001_000:
                got += await client.receive_some(65536)
        assert got == b"A" * 6_000_000 + b"B" * 1000
        assert stream.pending == 0


async def test_a_short_write_of_bytes_keeps_the_rest(pki: Pki) -> None:
    async with ends(None) as (stream, client):
        data = bytes(range(256)) * 30_000
        assert not stream.send_now(data)
        assert 0 < stream.sent < len(data)
        assert stream.pending == len(data) - stream.sent
        got = bytearray()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(flush, stream)
            while len(got) < len(data):
                got += await client.receive_some(65536)
        assert got == data
        assert stream.send_now(b"")


async def test_a_stream_that_was_closed_owns_nothing() -> None:
    near, far = pair()
    with far:
        stream = Stream(near)
        stream.owner = Nobody()
        stream.close_now()
        assert not is_owned(stream)
        with pytest.raises(Broken):
            stream.receive_now()
        with pytest.raises(Broken):
            stream.send_now(b"x")


def is_owned(stream: Stream) -> bool:
    """Whether it has an owner now."""
    return stream.owner is not None


class Nobody:
    hears_end = False

    def on_event(self, stream: Stream) -> None:
        raise AssertionError(Reason.Internal)


# ---------------------------------------------------------------------------------------------------- what was read


@pytest.mark.parametrize("unix", [False, True])
@pytest.mark.parametrize("how", ["closed before", "unread", "read"])
async def test_an_end_behind_what_was_delivered_means_that_it_was_read(unix: bool, how: str) -> None:
    near, far = socket.socketpair() if unix else pair()
    stream = Stream(near)
    if how == "closed before":
        far.close()
    try:
        stream.send_now(b"GET")
        if how == "read":
            assert far.recv(10) == b"GET"
        far.close()
        is_end = stream.receive_now() == b""
    except Broken:
        is_end = False
    assert (is_end and stream.is_delivered) is (how == "read")
    stream.close_now()
