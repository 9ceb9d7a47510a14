"""The channel between processes: whole messages in order, files beside them, and what happens at its ends."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from frontd.processes import channel
from frontd.processes.channel import LARGEST, MOST_FILES, content, next_message, pair, receive, sealed, send


@contextmanager
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = pair()
    with ours, theirs:
        yield ours, theirs


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(st.lists(st.dictionaries(st.text(), JSON, max_size=5), max_size=5))
def test_what_is_sent_arrives(messages: list[dict[str, object]]) -> None:
    before = open_files()
    with ends() as (ours, theirs):
        for data in messages:
            send(ours, data)
        for data in messages:
            assert receive(theirs) == (data, [])
        with pytest.raises(BlockingIOError):
            receive(theirs)
    assert open_files() == before


@pytest.mark.parametrize("size", [LARGEST - 20, LARGEST, LARGEST + 1, 3_000_000])
def test_a_long_message_with_files(size: int) -> None:
    before = open_files()
    with ends() as (ours, theirs):
        one, two = sealed("one", b"first"), sealed("two", b"second")
        send(ours, {"long": "x" * size}, [one, two])
        os.close(one)
        os.close(two)
        message = receive(theirs)
        assert message is not None
        assert message.data == {"long": "x" * size}
        assert [content(fd) for fd in message.files] == [b"first", b"second"]
        assert not any(os.get_inheritable(fd) for fd in message.files)
        message.close()
    assert open_files() == before


def test_as_many_files_as_promised() -> None:
    with ends() as (ours, theirs):
        fd = sealed("many", b"")
        send(ours, {"n": 1}, [fd] * MOST_FILES)
        os.close(fd)
        message = receive(theirs)
        assert message is not None
        assert len(message.files) == MOST_FILES
        message.close()


def test_files_that_do_not_fit_are_told() -> None:
    with ends() as (ours, theirs):
        fd = sealed("it", b"")
        send(ours, {"n": 1}, [fd] * 8)
        os.close(fd)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        before = open_files()
        highest = max(int(name) for name in os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 2, hard))
        holes = []
        try:
            while True:
                holes.append(os.dup(0))
        except OSError:
            os.close(holes.pop())  # room for one, and eight have come
        try:
            message = receive(theirs)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for hole in holes:
                os.close(hole)
        assert message == ({"n": 1, "truncated": True}, [])
        assert open_files() == before


def test_the_end_of_the_other_side() -> None:
    with ends() as (ours, theirs):
        send(ours, {"last": 1})
        ours.close()
        assert receive(theirs) == ({"last": 1}, [])
        assert receive(theirs) is None
        with pytest.raises(BrokenPipeError):
            send(theirs, {})


def test_who_leaves_messages_unread_has_ended_all_the_same() -> None:
    with ends() as (ours, theirs):
        send(ours, {"unread": 1})
        send(theirs, {"last": 1})
        send(theirs, {"words": 2})
        theirs.close()
        assert receive(ours) == ({"last": 1}, [])
        assert receive(ours) == ({"words": 2}, [])
        assert receive(ours) is None
        assert receive(ours) is None


def test_nobody_waits_for_a_reader() -> None:
    with ends() as (ours, theirs):
        sent = 0
        with suppress(BlockingIOError):
            while sent < 100_000:
                send(ours, {"n": sent})
                sent += 1
        assert 50 < sent < 100_000
        for n in range(sent):
            assert receive(theirs) == ({"n": n}, [])


async def test_waiting_for_a_message(autojump_clock: trio.testing.MockClock) -> None:
    with ends() as (ours, theirs):
        found: list[object] = []

        async def wait() -> None:
            while (message := await next_message(theirs)) is not None:
                found.append(message.data)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            for n in range(3):
                await trio.sleep(1)
                send(ours, {"n": n})
            await trio.sleep(1)
            ours.close()
        assert found == [{"n": 0}, {"n": 1}, {"n": 2}]


def test_what_is_sealed_cannot_be_changed() -> None:
    fd = sealed("it", json.dumps({"a": 1}).encode() * 100_000)
    try:
        assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) == channel._SEALS
        with pytest.raises(PermissionError):
            os.pwrite(fd, b"x", 0)
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 1)
        os.lseek(fd, 5, os.SEEK_SET)  # whoever shares it may have read from it
        assert content(fd) == json.dumps({"a": 1}).encode() * 100_000
    finally:
        os.close(fd)
