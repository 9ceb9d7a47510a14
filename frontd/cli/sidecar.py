"""The relay of `frontd attach --to`: what comes in on the socket that frontd has handed over goes to an address here.

How it works
------------
It is attached only while the app takes connections: it looks first, attaches then, and for each connection that comes
in it connects to the app *before* it accepts.  When the app does not answer any more, it detaches, so that requests
wait in frontd's queue instead of failing here, and looks again.

Invariants
----------
* A connection is accepted only when there is one to the app for it.
* Both directions end by themselves; an error in one ends both.
* Bytes pass unread: what frontd has said about the client reaches the app as it is.
"""

from __future__ import annotations

import math
import signal
import socket
import subprocess
from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import urlsplit

import trio

from frontd.cli.common import ContactFailure, Failure
from frontd.net.attaching import BACKOFF_FIRST, Attachment, AttachRefused

LOOK_LAST = 1.0  # s between two looks at an app that is down
CHUNK = 65536
DRAIN = 10.0  # s for connections to end


class Target(NamedTuple):
    """Where the app listens: a host and port, or the path of a Unix socket."""

    text: str
    host: str
    port: int
    path: str

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read ``http://host:port`` or ``unix:/path``.  Raises `ValueError`."""
        if text.startswith("unix:/"):
            return cls(text, "", 0, text.removeprefix("unix:"))
        parts = urlsplit(text)
        if parts.scheme != "http" or not parts.hostname or parts.path not in ("", "/") or parts.query or parts.username:
            raise ValueError(f"--to is http://host:port or unix:/path, not {text!r}")
        return cls(text, parts.hostname, parts.port or 80, "")

    async def connect(self) -> trio.SocketStream:
        """Raises `OSError`."""
        if self.path:
            return await trio.open_unix_socket(self.path)
        return await trio.open_tcp_stream(self.host, self.port)


class AppGone(Exception):
    """The app does not take connections any more."""


def run(make: Callable[[], Attachment], target: Target, child: subprocess.Popen[bytes] | None, patience: float) -> int:
    """Relay until a signal, or until `child` has ended; the exit code."""
    return trio.run(_run, make, target, child, patience)


async def _run(
    make: Callable[[], Attachment], target: Target, child: subprocess.Popen[bytes] | None, patience: float
) -> int:
    car = SideCar(make, target, patience)
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:

            async def until_signal() -> None:
                async for _ in signals:
                    await car.stop()
                    nursery.cancel_scope.cancel()
                    return

            async def until_child_ends() -> None:
                assert child is not None
                await trio.to_thread.run_sync(child.wait, abandon_on_cancel=True)
                await car.stop()
                nursery.cancel_scope.cancel()

            async def until_refused() -> None:
                await car.run()
                nursery.cancel_scope.cancel()

            nursery.start_soon(until_signal)
            if child is not None:
                nursery.start_soon(until_child_ends)
            nursery.start_soon(until_refused)
    if car.failure is not None:
        raise car.failure
    if child is None:
        return 0
    child.terminate()
    code = await trio.to_thread.run_sync(child.wait)
    return code if code >= 0 else 128 - code


class SideCar:
    """One relay, and the attachment it has at the moment."""

    def __init__(self, make: Callable[[], Attachment], target: Target, patience: float) -> None:
        self.make = make
        self.target = target
        self.patience = patience
        self.failure: Failure | None = None
        self._attachment: Attachment | None = None
        self._relayed = 0
        self._idle = trio.Event()

    async def run(self) -> None:
        """Be attached whenever the app takes connections; returns, with `failure`, when frontd refuses."""
        async with trio.open_nursery() as nursery:
            while self.failure is None:
                await self._until_app_answers()
                attachment = await self._attach()
                if attachment is None:
                    break
                try:
                    async with trio.open_nursery() as inner:
                        inner.start_soon(self._keep, attachment)
                        assert attachment.sock is not None
                        inner.start_soon(self._accept, attachment.sock, nursery)
                except* AppGone:
                    attachment.said(f"{self.target.text} does not answer; detached until it does")
                finally:
                    assert attachment.sock is not None
                    attachment.sock.close()
                await self._end(attachment)
            nursery.cancel_scope.cancel()

    async def _until_app_answers(self) -> None:
        pause = BACKOFF_FIRST
        while True:
            try:
                await (await self.target.connect()).aclose()
            except OSError:
                await trio.sleep(pause)
                pause = min(pause * 2, LOOK_LAST)
            else:
                return

    async def _attach(self) -> Attachment | None:
        deadline, self.patience = trio.current_time() + self.patience, math.inf  # later, frontd may take its time
        while True:
            attachment = self.make()
            try:
                await trio.to_thread.run_sync(attachment.begin)
            except AttachRefused as refused:
                self.failure = Failure(f"not attached: {refused}")
                return None
            except OSError as error:
                if trio.current_time() >= deadline:
                    self.failure = ContactFailure(f"no contact with frontd on {attachment.control}: {error}")
                    return None
                await trio.sleep(0.2)
            else:
                self._attachment = attachment
                attachment.said(f"attached to the queue {attachment.queue}")
                return attachment

    async def _keep(self, attachment: Attachment) -> None:
        await trio.to_thread.run_sync(attachment.keep, abandon_on_cancel=True)
        if attachment.refused is not None:  # its place is gone: there will be another one
            raise AppGone

    async def _accept(self, sock: socket.socket, nursery: trio.Nursery) -> None:
        sock.setblocking(False)
        listener = trio.socket.from_stdlib_socket(sock.dup())
        with listener:
            while True:
                await trio.lowlevel.wait_readable(listener)
                try:
                    app = await self.target.connect()
                except OSError:
                    raise AppGone from None
                try:
                    incoming, _ = sock.accept()
                except OSError:
                    await app.aclose()
                    continue
                incoming.setblocking(False)
                stream = trio.SocketStream(trio.socket.from_stdlib_socket(incoming))
                self._relayed += 1
                nursery.start_soon(self._relay, stream, app)

    async def _relay(self, one: trio.SocketStream, other: trio.SocketStream) -> None:
        try:
            async with one, other, trio.open_nursery() as nursery:
                nursery.start_soon(copy, one, other, nursery.cancel_scope)
                nursery.start_soon(copy, other, one, nursery.cancel_scope)
        finally:
            self._relayed -= 1
            self._idle.set()

    async def _end(self, attachment: Attachment) -> None:
        await trio.to_thread.run_sync(attachment.end)

    async def stop(self) -> None:
        """Detach, and let what has come in already end."""
        if self._attachment is not None:
            await self._end(self._attachment)
        with trio.move_on_after(DRAIN):
            while self._relayed:
                self._idle = trio.Event()
                await self._idle.wait()


async def copy(source: trio.SocketStream, sink: trio.SocketStream, scope: trio.CancelScope) -> None:
    """Every byte, then the end; an error ends `scope`."""
    try:
        while data := await source.receive_some(CHUNK):
            await sink.send_all(data)
        await sink.send_eof()
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        scope.cancel()
