"""A channel on which questions are asked: each carries a number, and its answer the same one.

Invariants
----------
* Nobody waits for the other side for ever: what it does not answer in time is given up, and when it ends, every open
  question is answered by `Gone`.
* What the other side has not read yet keeps its order and is not lost: it waits here, up to `MOST_KEPT` messages.
* Answers to a control that has died are dropped by the next one: its numbers begin elsewhere.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from socket import socket
from typing import Any

import trio

from frontd.processes.channel import Message, next_message, send

MOST_KEPT = 10_000  # messages; whoever reads none of so many has ended in all but name


class Gone(Exception):
    """The other side of a channel has ended before it answered."""


class Line:
    """A channel to ask questions on; `hear` is given what is no answer."""

    def __init__(self, sock: socket, first: int, hear: Callable[[Message], None]) -> None:
        self.sock = sock
        self.is_over = False
        self.ended = trio.Event()
        self._number = first
        self._hear = hear
        self._open: dict[int, tuple[trio.Event, list[Message]]] = {}
        self._kept: deque[Message] = deque()  # to be sent when there is room
        self._keeps = trio.Event()

    async def run(self) -> None:
        """Read until the other side ends, and send what found no room."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._flush)
                await self._read()
                nursery.cancel_scope.cancel()
        finally:
            for message in self._kept:
                message.close()
            self._kept.clear()
            self.is_over = True
            for done, _ in self._open.values():
                done.set()
            self.sock.close()
            self.ended.set()

    async def _read(self) -> None:
        while (message := await next_message(self.sock)) is not None:
            number = message.data.get("id")
            if number is None:
                self._hear(message)
            elif number in self._open:
                done, found = self._open.pop(number)
                found.append(message)
                done.set()
            else:
                message.close()  # for a control that has died, or that did not want to wait so long

    async def _flush(self) -> None:
        while True:
            await self._keeps.wait()
            while self._kept:
                try:
                    send(self.sock, *self._kept[0])
                except BlockingIOError:
                    await trio.lowlevel.wait_writable(self.sock)
                    continue
                except OSError:
                    return  # it has ended, which reading shows
                self._kept.popleft().close()
            self._keeps = trio.Event()

    def _send(self, data: dict[str, Any], files: Sequence[int]) -> None:
        """Send, or keep it until there is room.  Raises `OSError` when the other side has ended or reads nothing."""
        if not self._kept:
            try:
                send(self.sock, data, files)
                return
            except BlockingIOError:
                pass
        if len(self._kept) >= MOST_KEPT:
            raise BlockingIOError
        self._kept.append(Message(data, [os.dup(fd) for fd in files]))
        self._keeps.set()

    def tell(self, data: dict[str, Any], files: Sequence[int] = ()) -> None:
        """Say something that is not answered; to nobody, if the other side has ended."""
        if not self.is_over:
            with suppress(OSError):  # whoever waits for it notices
                self._send(data, files)

    async def ask(self, data: dict[str, Any], files: Sequence[int] = (), *, within: float) -> Message:
        """The answer.  Raises `Gone`, and `trio.TooSlowError` after `within` seconds."""
        self._number += 1
        number = self._number
        done, found = self._open[number] = trio.Event(), []
        try:
            if self.is_over:
                raise Gone
            try:
                self._send({**data, "id": number}, files)
            except OSError:
                raise Gone from None
            with trio.fail_after(within):
                await done.wait()
        finally:
            self._open.pop(number, None)
        if not found:
            raise Gone
        return found[0]
