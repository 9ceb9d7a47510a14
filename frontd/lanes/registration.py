"""The epoll set of a reactor: which streams are in it, for what, and whose they are.

Invariants (the registration law; without any of these a loop spins, hangs, or talks to the wrong connection)
----------
* A socket is registered once, for edges.  `Stream.ready` says that there may be something to read; a turn reads until
  there is not, and what comes during an exchange only sets the flag.
* A stream that a task waits on is not registered for its bytes; that of a client still is for its end.
* A stream remembers in which batch of events it was registered (`Stream.born`): none of these was its own.
* Streams leave the set before they are closed (`Stream.close_now`), and only their owner closes them.
"""

from __future__ import annotations

import os
import select
from contextlib import suppress

from frontd.net.streams import Owner, Stream

_BYTES = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET
_END = select.EPOLLRDHUP | select.EPOLLET


class Registration:
    """An epoll set, the streams in it by their descriptors, and an alarm that makes it wake up."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._alarm = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._alarm, select.EPOLLIN | select.EPOLLET)  # each write is an edge; nobody reads it
        self._streams: list[Stream | None] = [None] * (self._alarm + 1)  # by descriptor, the lowest free
        self._batch = 1

    def close(self) -> None:
        """Give the epoll set back."""
        self._epoll.close()
        os.close(self._alarm)

    def register(self, stream: Stream, owner: Owner) -> None:
        """Be told of bytes on `stream` and of its end, also of what waits already."""
        self._put(stream, owner, _BYTES)

    def watch(self, stream: Stream, owner: Owner) -> None:
        """Be told of the end of `stream` alone, while tasks read it."""
        self._put(stream, owner, _END)
        stream.watched = True

    def _put(self, stream: Stream, owner: Owner, events: int) -> None:
        fd = stream.sock.fileno()
        self._epoll.register(fd, events)
        if fd >= len(self._streams):
            self._streams += [None] * (fd + 1 - len(self._streams))
        self._streams[fd] = stream
        stream.lane = self
        stream.owner = owner
        stream.born = self._batch
        stream.ready = stream.watched = False

    def exchange(self, old: Stream, new: Stream) -> None:
        """`new` is on the same socket as `old` (TLS has begun) and takes its place."""
        old.lane, new.lane = None, self
        new.owner, new.watched, new.ready, new.ending = old.owner, old.watched, old.ready, old.ending
        self._streams[new.sock.fileno()] = new

    def forget(self, stream: Stream) -> None:
        """Before it is closed."""
        fd = stream.sock.fileno()
        if fd < 0:  # a failed TLS wrap has closed it already
            fd = next((number for number, one in enumerate(self._streams) if one is stream), -1)
        if fd >= 0:
            self._streams[fd] = None
        stream.lane = None
        stream.waiter = None
        with suppress(OSError):
            self._epoll.unregister(fd)

    def leave(self, stream: Stream) -> None:
        """A task is going to wait for its bytes."""
        if stream.watched:
            return
        if stream.owner is not None and stream.owner.hears_end:
            stream.watched = True
            self._epoll.modify(stream.sock.fileno(), _END)
        else:
            self.forget(stream)

    def come_back(self, stream: Stream) -> None:
        """The task that waited for its bytes is over: be told of them again."""
        if stream.watched:
            stream.watched = stream.ready = False
            self._epoll.modify(stream.sock.fileno(), _BYTES)

    @property
    def streams(self) -> list[Stream]:
        """Those that are registered."""
        return [stream for stream in self._streams if stream is not None]
