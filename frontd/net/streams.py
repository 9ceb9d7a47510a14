"""One connected socket, plain or TLS: reading, the one writer, and closing so that the last answer arrives.

How it works
------------
A `Stream` owns one non-blocking socket (a TCP or Unix socket, or an `ssl.SSLSocket` on one).  ``*_now`` methods never
wait; the others wait through `net.traps` or trio.

Writing: everything goes through `send_now`, which keeps what the kernel did not take.  Over TLS at most one record
(16 KiB) is offered per call, and after WantWrite *the same bytes* are offered again before anything else: OpenSSL has
already encrypted part of them and would otherwise deliver a silent mixture of two answers.

Files: `send_file` lets the kernel move the bytes (``sendfile``), and copies them part by part where it cannot: over
TLS, and for file systems that do not know how.

Closing: a socket closed with unread bytes in its receive buffer sends RST, which makes the peer throw away the answer
it has not read yet.  So an answer that ends a connection is followed by `close_gracefully`: TLS close_notify once,
SHUT_WR, then a bounded drain (RFC 9112 9.6).

Invariants
----------
* One owner, one writer per stream.  A cancelled writer with bytes pending leaves a stream that can only be closed.
  A file that was cut leaves nothing pending: who sends one knows by the framing that the answer is not complete.
* Reads ask for at least one full TLS record, so nothing readable stays hidden inside OpenSSL.
* Foreign exceptions end here: a broken connection is `Broken`, whatever the layer below called it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import ssl
import struct
import termios
from collections import deque
from collections.abc import Callable
from contextlib import suppress

import trio

from frontd.model.errors import FrontdError, Reason
from frontd.net.traps import readable

READ_SIZE = 65536
TLS_RECORD = 16384
RATE_WINDOW = 20.0  # s over which a slow reader's rate is judged; IIS waits as long as a whole answer may take
FILE_SLICE = 1 << 20  # bytes of a file that are sent before the others get a turn
COPIES_IN_A_ROW = 4  # of READ_SIZE bytes
EAGER_READS = 16  # reads that found bytes ready before the others get a turn (1 MiB at most)
LINGER_IDLE = 2.0  # s without a byte; nginx lingering_timeout is 5 s
LINGER_TIME = 5.0  # s in all; nginx lingering_time is 30 s
LINGER_BYTES = 16 * 1024 * 1024

_BROKEN = (OSError, ssl.SSLError)
_NO_SENDFILE = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)  # a file system that cannot do it, or a sandbox
_OF_THE_FILE = (errno.EIO, errno.ESTALE, errno.EOVERFLOW, errno.ENOMEM, errno.EISDIR)


class Broken(Exception):
    """The connection is gone: reset, timed out, or TLS ended without close_notify."""


class Stream:
    """A connected, non-blocking socket.  `sent` counts bytes taken by the kernel (before TLS)."""

    __slots__ = ("_bytes", "_eager", "_offered", "_out", "_wants_write", "before_close", "closed", "sent", "sock")

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.sent = 0
        self.closed = False
        self.before_close: Callable[[], None] | None = None  # for whoever registered the socket elsewhere
        self._out: deque[memoryview] = deque()
        self._bytes = 0
        self._eager = 0
        self._offered: memoryview | None = None
        self._wants_write = False

    def __repr__(self) -> str:
        kind = "TLS" if self.is_tls else "plain"
        return f"<Stream {kind} fd={self.sock.fileno()} pending={self._bytes}{' closed' if self.closed else ''}>"

    @property
    def is_tls(self) -> bool:
        """Whether TLS is spoken on it."""
        return isinstance(self.sock, ssl.SSLSocket)

    # --- reading

    def receive_now(self, size: int = READ_SIZE) -> bytes | None:
        """Bytes that are there, ``b""`` at the end of the stream, None when a read would block.  Raises `Broken`."""
        try:
            return self.sock.recv(size)
        except (BlockingIOError, InterruptedError, ssl.SSLWantReadError):
            return None
        except ssl.SSLWantWriteError:  # a TLS 1.3 key update has to be answered before reading goes on
            self._wants_write = True
            return None
        except ssl.SSLZeroReturnError:
            return b""
        except _BROKEN as error:
            raise Broken(_describe(error)) from None

    async def receive(self, deadline: float, reason: Reason) -> bytes:
        """Bytes, or ``b""`` at the end of the stream.  Raises `Broken`, and `FrontdError(reason)` at `deadline`.

        A peer that always has bytes ready does not keep the others from their turn.
        """
        self._eager += 1
        if self._eager == EAGER_READS:  # before the read: a cancellation here loses nothing
            self._eager = 0
            await trio.lowlevel.checkpoint()
        while (data := self.receive_now()) is None:
            if self._wants_write:
                self._wants_write = False
                with trio.CancelScope(deadline=deadline) as scope:
                    await trio.lowlevel.wait_writable(self.sock)
                if scope.cancelled_caught:
                    raise FrontdError(reason)
            else:
                await readable(self, deadline, reason)
        return data

    # --- writing

    @property
    def pending(self) -> int:
        """Bytes accepted by `send_now` that the kernel has not taken yet."""
        return self._bytes

    def send_now(self, data: bytes) -> bool:
        """Queue `data` and write what the kernel takes now.  True when nothing is left waiting.  Raises `Broken`."""
        if data:
            self._out.append(memoryview(data))
            self._bytes += len(data)
        try:
            while self._out:
                if self.is_tls:
                    self._send_record()
                else:
                    self._done(self.sock.send(self._out[0]))
        except (BlockingIOError, InterruptedError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
            return False
        except _BROKEN as error:
            raise Broken(_describe(error)) from None
        return True

    def _send_record(self) -> None:
        if self._offered is None:
            self._offered = self._out[0][:TLS_RECORD]
        size = self.sock.send(self._offered)
        self._offered = None
        self._done(size)

    def _done(self, size: int) -> None:
        self.sent += size
        self._bytes -= size
        first = self._out[0]
        if size == len(first):
            self._out.popleft()
        else:
            self._out[0] = first[size:]

    async def flush(self, window: float, least: float, reason: Reason) -> None:
        """Wait until the kernel has taken everything.

        Judged only while bytes wait: whenever in `window` seconds fewer than `least` bytes reached the peer (bytes that
        left the kernel's send queue, not bytes that entered it), raises `FrontdError(reason)`.  Raises `Broken`.
        """
        await self._repeat(self._send_waiting, window, least, reason)

    def _send_waiting(self) -> bool:
        return self.send_now(b"")

    async def send_file(self, fd: int, offset: int, size: int, window: float, least: float, reason: Reason) -> None:
        """Send `size` bytes of the open file `fd` from `offset` on, behind what waits already; returns when the kernel
        has taken them.

        Judged like `flush`, from the first byte to the last.  Raises `Broken`, `FrontdError(reason)`, and `FrontdError`
        with ``Internal`` when the file ends before or cannot be read.
        """
        end = offset + size
        by_kernel = not self.is_tls

        def one_turn() -> bool:
            nonlocal offset, by_kernel
            for _ in range(COPIES_IN_A_ROW):
                if not self.send_now(b""):
                    return False
                if offset == end:
                    return True
                if by_kernel:
                    try:
                        offset += self._send_slice(fd, offset, end - offset)
                    except _NotBySendfile:
                        by_kernel = False
                    return offset == end  # a slice is a whole turn
                data = _read_part(fd, offset, end - offset)
                offset += len(data)
                self.send_now(data)
            return False

        await self._repeat(one_turn, window, least, reason)

    def _send_slice(self, fd: int, offset: int, size: int) -> int:
        """Let the kernel move bytes from the file to the socket; how many it took."""
        try:
            taken = os.sendfile(self.sock.fileno(), fd, offset, min(size, FILE_SLICE))
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as error:
            if error.errno in _NO_SENDFILE:
                raise _NotBySendfile from None
            if error.errno in _OF_THE_FILE:
                raise _unreadable(error) from None
            raise Broken(_describe(error)) from None
        if not taken:
            raise _shorter()
        self.sent += taken
        return taken

    async def _repeat(self, attempt: Callable[[], bool], window: float, least: float, reason: Reason) -> None:
        """Until `attempt` answers True: once more whenever the socket can take more, and others had their turn."""
        if self.closed:
            raise Broken("closed by its owner")
        began, mark = trio.current_time(), self._delivered()
        while not attempt():
            with trio.CancelScope(deadline=began + window), suppress(trio.ClosedResourceError):
                await trio.lowlevel.wait_writable(self.sock)
            now = trio.current_time()
            if now >= began + window:
                delivered = self._delivered()
                if delivered - mark < least:
                    raise FrontdError(reason)
                began, mark = now, delivered

    def _delivered(self) -> int:
        try:
            (waiting,) = struct.unpack("i", fcntl.ioctl(self.sock.fileno(), termios.TIOCOUTQ, b"\0\0\0\0"))
        except (OSError, ValueError):  # ValueError: closed meanwhile
            waiting = 0
        return self.sent - int(waiting)

    # --- closing

    def close_now(self) -> None:
        """Close at once; what was not delivered is lost."""
        if not self.closed:
            self.closed = True
            if self.before_close is not None:
                self.before_close()
            trio.lowlevel.notify_closing(self.sock)
            self.sock.close()

    def abort(self) -> None:
        """Close with RST, so that the peer cannot take a cut answer for a complete one."""
        if not self.closed:
            with suppress(OSError):
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_now()

    def end_writing(self) -> None:
        """Tell the peer that nothing more follows: TLS close_notify (one try, never waiting), then SHUT_WR."""
        sock = self.sock
        try:
            if isinstance(sock, ssl.SSLSocket):
                with suppress(OSError, ValueError):  # SSLWantRead is normal: the peer's close_notify is not waited for
                    sock.unwrap()
            # not SSLSocket.shutdown, which would forget the TLS object while the peer may still be talking
            socket.socket.shutdown(sock, socket.SHUT_WR)
        except OSError:
            pass

    async def close_gracefully(self) -> None:
        """Lingering close (RFC 9112 9.6): end writing, discard what still arrives within bounds, close."""
        if self.closed:
            return
        try:
            if self._out:
                return  # a cut answer: nothing may follow it, not even a clean end
            # The raw socket is read from here on: TLS is over, and bytes are only thrown away.
            self.end_writing()
            with trio.move_on_after(LINGER_TIME):
                await self._discard()
        finally:
            self.close_now()

    async def _discard(self) -> None:
        left = LINGER_BYTES
        while left > 0:
            try:
                data = socket.socket.recv(self.sock, READ_SIZE)
            except (BlockingIOError, InterruptedError):
                with trio.move_on_after(LINGER_IDLE) as idle:
                    await trio.lowlevel.wait_readable(self.sock)
                if idle.cancelled_caught:
                    return
                continue
            except (OSError, ValueError):
                return
            if not data:
                return
            left -= len(data)


class _NotBySendfile(Exception):
    """The kernel cannot move this file by itself."""


def _read_part(fd: int, offset: int, size: int) -> bytes:
    try:
        data = os.pread(fd, min(size, READ_SIZE), offset)
    except OSError as error:
        raise _unreadable(error) from None
    if not data:
        raise _shorter()
    return data


def _unreadable(error: OSError) -> FrontdError:
    return FrontdError(Reason.Internal, detail=f"reading the file: {error.strerror}")


def _shorter() -> FrontdError:
    return FrontdError(Reason.Internal, detail="the file became shorter while it was sent")


def _describe(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return f"TLS: {error.reason or type(error).__name__}"
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return type(error).__name__


def tcp_options(sock: socket.socket) -> None:
    """What every TCP connection gets: no Nagle delay (messages are written whole)."""
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
