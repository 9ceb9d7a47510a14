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

Large bodies: `receive_view` reads into one buffer that all streams of a thread share.  What it returns is to be sent
or copied before anything is awaited; of what `send_now` cannot pass to the kernel it keeps a copy.  So a body passes
without a new buffer for each part, and a connection that waits holds none.

In the reactor (`lanes.reactor`) a stream is registered for edges: `ready` tells that something may be there to be read,
and stays so until a read has found nothing, or less than it asked for.

Closing: a socket closed with unread bytes in its receive buffer sends RST, which makes the peer throw away the answer
it has not read yet.  So an answer that ends a connection is followed by `linger`: TLS close_notify once,
SHUT_WR, then a bounded drain (RFC 9112 9.6).

Invariants
----------
* One owner, one writer per stream.  A cancelled writer with bytes pending leaves a stream that can only be closed.
  A file that was cut leaves nothing pending: who sends one knows by the framing that the answer is not complete.
* Reads ask for one full TLS record, so nothing readable stays hidden inside OpenSSL.
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
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

import trio

from frontd.model.errors import FrontdError, Reason
from frontd.net.traps import Waitable, carry, clock, others_first, readable, task_lane

READ_SIZE = 65536
LARGE_READ = 262144  # of a large body at a time; measured: beyond it nothing is gained
TLS_RECORD = 16384
RATE_WINDOW = 20.0  # s over which a slow reader's rate is judged; IIS waits as long as a whole answer may take
FILE_SLICE = 2 << 20  # bytes of a file that are sent before the others get a turn; nginx sendfile_max_chunk
COPIES_IN_A_ROW = 4  # of READ_SIZE bytes
EAGER_READS = 16  # reads that found bytes ready before the others get a turn (1 MiB at most)
LINGER_IDLE = 2.0  # s without a byte; nginx lingering_timeout is 5 s
LINGER_TIME = 5.0  # s in all; nginx lingering_time is 30 s
LINGER_BYTES = 16 * 1024 * 1024
LINGER_TURN = 1 << 20  # bytes that are discarded before the others get a turn

_INT = struct.Struct("i")
_ZERO = bytes(_INT.size)
_BROKEN = (OSError, ssl.SSLError)
_NO_SENDFILE = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)  # a file system that cannot do it, or a sandbox
_OF_THE_FILE = (errno.EIO, errno.ESTALE, errno.EOVERFLOW, errno.ENOMEM, errno.EISDIR)


class Broken(Exception):
    """The connection is gone: reset, timed out, or TLS ended without close_notify."""


class Lane(Protocol):
    """Where a stream is registered: the reactor."""

    def forget(self, stream: Stream, /) -> None:
        """It is about to be closed."""

    def leave(self, stream: Stream, /) -> None:
        """A task is going to wait for its bytes."""


class Owner(Protocol):
    """Whose a registered stream is.  `hears_end`: it is told of the end of the stream also while tasks read it."""

    hears_end: bool

    def on_event(self, stream: Stream, /) -> None:
        """Something happened on it that nobody waits for: bytes, its end, or both."""


class Stream(Waitable):
    """A connected, non-blocking socket.  `sent` counts bytes taken by the kernel (before TLS), `pending` those accepted
    by `send_now` that it has not taken yet.

    `lane`, `owner`, `waiter`, `born` and `watched` are the reactor's: where it is registered, whose it is, who is
    parked on it, in which batch it came, and whether its end alone is of interest.  `ending`: its end was announced.
    """

    __slots__ = (
        "_eager", "_offered", "_out", "_tls", "_wants_write", "born", "closed", "ending", "is_tls", "lane", "owner",
        "pending", "ready", "sent", "waiter", "watched",
    )  # fmt: skip

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        if sock.gettimeout() != 0.0:  # else it is non-blocking already, which a system call would only say again
            sock.setblocking(False)
        self.is_tls = isinstance(sock, ssl.SSLSocket)
        # What SSLSocket itself reads and writes through; its own methods for that are four calls of Python on top.  A
        # Python that has it no more reads and writes through the methods.
        self._tls: Any = getattr(sock, "_sslobj", None)
        self.sent = 0
        self.closed = False
        self.lane: Lane | None = None
        self.owner: Owner | None = None
        self.waiter: Any = None
        self.born = 0
        self.watched = False
        self.ready = False
        self.ending = False
        self._out: deque[memoryview] | None = None
        self.pending = 0
        self._eager = 0
        self._offered: memoryview | None = None
        self._wants_write = False

    def __repr__(self) -> str:
        kind = "TLS" if self.is_tls else "plain"
        return f"<Stream {kind} fd={self.sock.fileno()} pending={self.pending}{' closed' if self.closed else ''}>"

    def leave_reactor(self) -> None:
        """A task is going to wait on it: nobody else may be told of its bytes."""
        if self.lane is not None:
            self.lane.leave(self)

    # --- reading

    def receive_now(self, size: int = READ_SIZE) -> bytes | None:
        """Bytes that are there, ``b""`` at the end of the stream, None when a read would block.  Raises `Broken`."""
        try:
            # a whole record and never more: nothing that can be read stays hidden inside OpenSSL
            data = self.sock.recv(size) if self._tls is None else self._tls.read(TLS_RECORD)
        except OSError as error:
            return self._not_read(error)
        if self.is_tls:
            self.ready = self.ending or fcntl.ioctl(self.sock.fileno(), termios.FIONREAD, _ZERO) != _ZERO
        elif len(data) < size:  # that was all; what comes now is a new edge, but an end that was announced is not
            self.ready = self.ending
        return data

    def receive_view(self, size: int) -> memoryview | bytes | None:
        """Like `receive_now`, of at most `size` bytes (no more than `LARGE_READ`), in the buffer that all share: it
        holds these bytes until the next read of any stream."""
        shared = _shared.view
        try:
            count = self.sock.recv_into(shared, size) if not self.is_tls else self._read_records(shared[:size])
        except OSError as error:
            return self._not_read(error)
        if self.is_tls:
            self.ready = self.ending or fcntl.ioctl(self.sock.fileno(), termios.FIONREAD, _ZERO) != _ZERO
        elif count < size:
            self.ready = self.ending
        return shared[:count]

    def _read_records(self, into: memoryview) -> int:
        """Read whole TLS records, as many as are there and fit; how many bytes.  Raises what the first read does."""
        tls: Any = self._tls or self.sock
        count = int(tls.read(TLS_RECORD, into))
        with suppress(OSError):  # nothing more is there, or the next read says what it is
            while 0 < count <= len(into) - TLS_RECORD and (more := tls.read(TLS_RECORD, into[count:])):
                count += more
        return count

    def _not_read(self, error: OSError) -> bytes | None:
        """What a failed read means.  Raises `Broken`."""
        if isinstance(error, (BlockingIOError, InterruptedError, ssl.SSLWantReadError)):
            self.ready = False
            return None
        if isinstance(error, ssl.SSLWantWriteError):  # a TLS 1.3 key update has to be answered before reading goes on
            self._wants_write = True
            self.ready = False  # nothing can be read before; the next bytes are an edge of their own
            return None
        if isinstance(error, ssl.SSLZeroReturnError):
            return b""
        if isinstance(error, ssl.SSLEOFError) and self.sock.suppress_ragged_eofs:  # type: ignore[attr-defined]
            return b""  # as SSLSocket has it
        raise Broken(_describe(error)) from None

    async def receive(self, deadline: float, reason: Reason) -> bytes:
        """Bytes, or ``b""`` at the end of the stream.  Raises `Broken`, and `FrontdError(reason)` at `deadline`.

        A peer that always has bytes ready does not keep the others from their turn.
        """
        self._eager += 1
        if self._eager == EAGER_READS:  # before the read: a cancellation here loses nothing
            self._eager = 0
            await task_lane()
            await trio.lowlevel.checkpoint()
        while (data := self.receive_now()) is None:
            await self.more(deadline, reason)
        return data

    async def more(self, deadline: float, reason: Reason) -> None:
        """A read has found nothing: wait until another may find something.  Raises `FrontdError(reason)` at
        `deadline`."""
        if not self._wants_write:
            await readable(self, deadline, reason)
            return
        self._wants_write = False
        await task_lane()
        with trio.CancelScope(deadline=deadline) as scope:
            await trio.lowlevel.wait_writable(self.sock)
        if scope.cancelled_caught:
            raise FrontdError(reason)

    # --- writing

    def send_now(self, data: bytes | memoryview) -> bool:
        """Queue `data` and write what the kernel takes now.  True when nothing is left waiting.  Raises `Broken`.

        What is left waiting of a buffer that others may change is copied.
        """
        if self.pending:
            if data:
                self._wait_with(data)
            return self._send_waiting()
        if not data:
            return True
        size = len(data)
        if self.is_tls and size > TLS_RECORD:
            return self._send_records(memoryview(data))
        try:
            taken = self.sock.send(data) if self._tls is None else self._tls.write(data)
        except (BlockingIOError, InterruptedError):
            taken = 0
        except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
            self._offer_again(data)
            return False
        except _BROKEN as error:
            raise Broken(_describe(error)) from None
        self.sent += taken
        if taken == size:
            return True
        self._wait_with(memoryview(data)[taken:])
        return False

    def _send_records(self, data: memoryview) -> bool:
        """`send_now` over TLS of more than one record; nothing waits."""
        at, size = 0, len(data)
        try:
            while at < size:
                at += self.sock.send(data[at : at + TLS_RECORD])
        except (BlockingIOError, InterruptedError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
            self._offer_again(data[at:])
            return False
        except _BROKEN as error:
            raise Broken(_describe(error)) from None
        finally:
            self.sent += at
        return True

    def _offer_again(self, data: bytes | memoryview) -> None:
        """Queue `data`, of which OpenSSL may hold the first record already."""
        self._wait_with(data)
        assert self._out is not None
        self._offered = self._out[0][:TLS_RECORD]

    def _wait_with(self, data: bytes | memoryview) -> None:
        """Queue `data` behind what waits."""
        if self._out is None:
            self._out = deque()
        view = memoryview(data)
        self._out.append(view if isinstance(view.obj, bytes) else memoryview(bytes(view)))
        self.pending += len(data)

    def _send_waiting(self) -> bool:
        out = self._out
        try:
            while out:
                if self.is_tls:
                    self._send_record(out[0])
                else:
                    self._done(self.sock.send(out[0]))
        except (BlockingIOError, InterruptedError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
            return False
        except _BROKEN as error:
            raise Broken(_describe(error)) from None
        self._out = None
        return True

    def _send_record(self, first: memoryview) -> None:
        if self._offered is None:
            self._offered = first[:TLS_RECORD]
        size = self.sock.send(self._offered)
        self._offered = None
        self._done(size)

    def _done(self, size: int) -> None:
        self.sent += size
        self.pending -= size
        assert self._out is not None
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

    @property
    def is_delivered(self) -> bool:
        """Whether the peer's kernel has acknowledged every byte.

        That of a peer that closed before they came does not, and one that closes with bytes unread sends a reset.  So
        an end of the stream behind all this means that the peer has read them (TCP and Unix sockets)."""
        return not self.pending and self._delivered() == self.sent

    def _delivered(self) -> int:
        try:
            (waiting,) = _INT.unpack(fcntl.ioctl(self.sock.fileno(), termios.TIOCOUTQ, b"\0\0\0\0"))
        except (OSError, ValueError):  # ValueError: closed meanwhile
            waiting = 0
        return self.sent - int(waiting)

    # --- closing

    def close_now(self) -> None:
        """Close at once; what was not delivered is lost."""
        if not self.closed:
            self.closed = True
            if self.lane is not None:
                self.lane.forget(self)
            self.owner = None  # which refers to the stream
            trio.lowlevel.notify_closing(self.sock)
            self.sock.close()
            self._tls = None  # it would go on with the number of the socket, which may be another's soon

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
                    self._tls = None
            # not SSLSocket.shutdown, which would forget the TLS object while the peer may still be talking
            socket.socket.shutdown(sock, socket.SHUT_WR)
        except OSError:
            pass

    async def close_gracefully(self) -> None:
        """`linger` for a task of trio's."""
        await carry(self.linger())

    async def linger(self) -> None:
        """Lingering close (RFC 9112 9.6): end writing, discard what still arrives within bounds, close.  It waits by
        traps alone, so a connection that ends needs no task for it."""
        if self.closed:
            return
        try:
            if self.pending:
                return  # a cut answer: nothing may follow it, not even a clean end
            # The raw socket is read from here on: TLS is over, and bytes are only thrown away.
            self.end_writing()
            until, left = clock.now() + LINGER_TIME, LINGER_BYTES
            while left > 0 and clock.now() < until:
                try:
                    data = socket.socket.recv(self.sock, READ_SIZE)
                except (BlockingIOError, InterruptedError):
                    self.ready = False
                    await readable(self, min(until, clock.now() + LINGER_IDLE), Reason.Timer_ConnectionIdle)
                    continue
                if not data:
                    return
                left -= len(data)
                if left % LINGER_TURN < len(data):
                    await others_first(self)
        except (OSError, FrontdError):  # reset, or too long without a byte
            return
        finally:
            self.close_now()


class _Shared(threading.local):
    """The buffer of `receive_view`, made when a thread first reads into it."""

    def __init__(self) -> None:
        self.view = memoryview(bytearray(LARGE_READ))


_shared = _Shared()


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
    return getattr(error, "strerror", None) or type(error).__name__
