"""Load that wrk and h2load do not make: a TLS connection for each request, resumption, large bodies, idle connections.

How it works: plain Python sockets in this process, on the load's core, so that every connection and every byte is
counted exactly; the CPU time of the server is read before the first and after the last. TLS handshakes run `AT_ONCE`
beside each other without threads: each `Visit` is driven a step whenever its socket is ready.

Invariants: a full handshake that turns out to be a resumed one is an error of the sample, and so is an answer other
than 200.
"""

from __future__ import annotations

import select
import socket
import ssl
import time
from contextlib import ExitStack

from bench.figures import Sample
from bench.processes import Running
from bench.servers import HOST, Stage
from bench.tools import ToolError

AT_ONCE = 16
WAIT = 20.0  # s for any single step
BIG = 100_000_000  # bytes
BUFFER = 1 << 20
HIT = f"GET /cached/1k HTTP/1.1\r\nHost: {HOST}\r\n".encode()
IDLE, WARM = 2000, 200  # connections


def client_context(version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    """A client that trusts anybody: who answers is known here."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if version is not None:
        context.minimum_version = context.maximum_version = version
    return context


# ---------------------------------------------------------------------------------------------------- handshakes


class Visit:
    """One connection: handshake, one request, everything read until the server closes."""

    def __init__(self, port: int, context: ssl.SSLContext, session: ssl.SSLSession | None = None) -> None:
        raw = socket.create_connection(("127.0.0.1", port), WAIT)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        raw.setblocking(False)
        self.tls = context.wrap_socket(raw, server_hostname=HOST, do_handshake_on_connect=False, session=session)
        self.shaken = False
        self.answer = b""

    def step(self) -> bool:
        """Go on as far as possible; whether it is over.

        Raises:
            OSError: the connection broke.
        """
        try:
            if not self.shaken:
                self.tls.do_handshake()
                self.shaken = True
                self.tls.send(HIT + b"Connection: close\r\n\r\n")
            while data := self.tls.recv(65536):
                self.answer += data
        except ssl.SSLWantReadError:
            return False
        return True

    def fault(self, resumed: bool | None) -> str:
        """What is wrong with it; `resumed`: how the session must have begun, None: either way."""
        if not self.answer.startswith(b"HTTP/1.1 200 "):
            return f"answered {self.answer[:20]!r}"
        if resumed is not None and bool(self.tls.session_reused) is not resumed:
            return "resumed" if self.tls.session_reused else "not resumed"
        return ""


def visits(port: int, context: ssl.SSLContext, seconds: float, *, resume: bool = False) -> tuple[int, int, list[str]]:
    """As many visits as fit in the time: their number, those resumed, what went wrong.

    With `resume` each takes the session of one before it; the first ones, which have none, are not counted.
    """
    done, resumed, faults = 0, 0, []
    open_now: dict[int, tuple[Visit, bool]] = {}
    poll, session = select.epoll(), None
    until = time.monotonic() + seconds
    while True:
        going_on = time.monotonic() < until
        while going_on and len(open_now) < AT_ONCE:
            visit = Visit(port, context, session)
            open_now[visit.tls.fileno()] = visit, session is not None
            visit.step()  # sends the hello
            poll.register(visit.tls.fileno(), select.EPOLLIN)
        if not open_now:
            break
        ready = poll.poll(WAIT)
        if not ready:
            raise ToolError("a TLS connection was not answered")
        for number, _ in ready:
            visit, offered = open_now[number]
            try:
                if not visit.step():
                    continue
                fault = visit.fault(None if resume else False)
            except OSError as error:
                fault = type(error).__name__
            if not fault and resume:
                session = visit.tls.session
            if fault:
                faults.append(fault)
            elif offered or not resume:
                done += 1
                resumed += bool(visit.tls.session_reused)
            poll.unregister(number)
            visit.tls.close()
            del open_now[number]
    poll.close()
    return done, resumed, faults


def handshakes(stage: Stage, running: Running, seconds: float, version: ssl.TLSVersion) -> Sample:
    """CPU us for each connection with a full handshake and one cached answer."""
    context = client_context(version)
    begun, before = time.monotonic(), running.cpu()
    done, _, faults = visits(running.tls_port, context, seconds)
    used, took = (running.cpu() - before).used, time.monotonic() - begun
    return Sample(used / max(1, done) / 1000, done / took, done, len(faults), ", ".join(sorted(set(faults))))


def handshakes_13(stage: Stage, running: Running, seconds: float) -> Sample:
    """TLS 1.3."""
    return handshakes(stage, running, seconds, ssl.TLSVersion.TLSv1_3)


def handshakes_12(stage: Stage, running: Running, seconds: float) -> Sample:
    """TLS 1.2."""
    return handshakes(stage, running, seconds, ssl.TLSVersion.TLSv1_2)


def resumption(stage: Stage, running: Running, seconds: float) -> Sample:
    """Percent of the offered sessions that were resumed, whichever front took the connection."""
    begun, before = time.monotonic(), running.cpu_by_process()
    done, resumed, faults = visits(running.tls_port, client_context(), seconds, resume=True)
    took = time.monotonic() - begun
    if running.busy_since(before) < 2:
        faults.append("one front took them all")
    return Sample(100 * resumed / max(1, done), done / took, done, len(faults), ", ".join(sorted(set(faults))))


# ---------------------------------------------------------------------------------------------------- large bodies


def download(stage: Stage, running: Running, seconds: float) -> Sample:
    """CPU ms for 100 MB from the origin to the client."""
    return transfers(running, seconds, b"GET /100m HTTP/1.1\r\nHost: bench\r\n\r\n", 0)


def file(stage: Stage, running: Running, seconds: float) -> Sample:
    """CPU ms for a file of 100 MB to the client."""
    return transfers(running, seconds, b"GET /files/100m HTTP/1.1\r\nHost: bench\r\n\r\n", 0)


def upload(stage: Stage, running: Running, seconds: float) -> Sample:
    """CPU ms for 100 MB from the client to the origin."""
    head = f"POST /upload HTTP/1.1\r\nHost: bench\r\nContent-Length: {BIG}\r\n\r\n"
    return transfers(running, seconds, head.encode(), BIG)


def transfers(running: Running, seconds: float, head: bytes, size: int) -> Sample:
    """Repeat one request on one connection; a body of `size` bytes goes with it."""
    buffer = bytearray(BUFFER)
    done, begun, before = 0, time.monotonic(), running.cpu()
    with socket.create_connection(("127.0.0.1", running.port), WAIT) as sock:
        while done == 0 or time.monotonic() - begun < seconds:
            sock.sendall(head)
            left = size
            while left:
                left -= sock.send(memoryview(buffer)[: min(left, BUFFER)])
            status, got = read_answer(sock, buffer)
            if not 200 <= status < 300 or (not size and got != BIG):
                return Sample(0.0, errors=1, detail=f"status {status}, {got} bytes")
            done += 1
    used, took = (running.cpu() - before).used, time.monotonic() - begun
    return Sample(used / done / 1e6, requests=done, rate=done / took)


def read_answer(sock: socket.socket, buffer: bytearray) -> tuple[int, int]:
    """Status and length of the body of one answer with Content-Length, read to its end.

    Raises:
        ToolError: the connection ended in it, or the length is not told.
    """
    got = b""
    while b"\r\n\r\n" not in got:
        data = sock.recv(65536)
        if not data:
            raise ToolError(f"the connection ended after {got[:40]!r}")
        got += data
    head, _, body = got.partition(b"\r\n\r\n")
    status = int(head[9:12])
    lengths = [line.partition(b":")[2] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    if not lengths and status != 204:
        raise ToolError(f"an answer without Content-Length: {head[:200]!r}")
    total, size = len(body), int(lengths[0]) if lengths else 0
    while total < size:
        count = sock.recv_into(buffer)
        if not count:
            raise ToolError(f"the connection ended after {total} of {size} bytes")
        total += count
    return status, total


# ---------------------------------------------------------------------------------------------------- idle


def idle(stage: Stage, running: Running, seconds: float) -> Sample:
    """KiB of the server's memory for each of `IDLE` connections that have had an answer and wait."""
    return resting(running, None)


def idle_tls(stage: Stage, running: Running, seconds: float) -> Sample:
    """The same over TLS."""
    return resting(running, client_context())


def resting(running: Running, context: ssl.SSLContext | None) -> Sample:
    """Open `WARM` connections, read the memory, open `IDLE` more, read it again."""
    buffer = bytearray(4096)
    with ExitStack() as held:

        def more(count: int) -> None:
            for _ in range(count):
                sock = socket.create_connection(("127.0.0.1", running.tls_port if context else running.port), WAIT)
                if context is not None:
                    sock = context.wrap_socket(sock, server_hostname=HOST)
                held.enter_context(sock)
                sock.sendall(HIT + b"\r\n")
                status, _ = read_answer(sock, buffer)
                if status != 200:
                    raise ToolError(f"answered {status}")

        more(WARM)
        before = running.memory()
        more(IDLE)
        return Sample((running.memory() - before) / IDLE / 1024, requests=IDLE)
