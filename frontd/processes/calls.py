"""HTTP/1.1 for callers of the control socket and its like: one small request, one answer, `curl` is enough.

How it works
------------
A desk answers `Call`s; which function answers which method and path is a `Table`, and `answer_by` looks it up.  The
same server stands behind the control socket, the health listener and the admin listener.

Invariants
----------
* A caller is bounded: a request head of 16 KiB, a body of 64 KiB, 10 s of patience; and there are at most 64 callers at
  a time, the others wait in the backlog.
* Whatever a caller does, and whatever goes wrong while it is answered, ends with its connection.
"""

from __future__ import annotations

import array
import json
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import parse_qs

import trio

from frontd.lanes.requests import make_request
from frontd.model.addresses import bracketed
from frontd.model.errors import FrontdError, Reason
from frontd.model.headers import Headers
from frontd.model.messages import Request
from frontd.net.streams import Broken, Stream
from frontd.net.traps import carry_task
from frontd.pipeline.answers import PHRASES
from frontd.protocol.framing import End
from frontd.protocol.h1 import ServerConnection
from frontd.protocol.scan import WireLimits

PATIENCE = 10.0  # s for a caller to send its request
MAX_BODY = 65536
MAX_CALLERS = 64
SO_PEERGROUPS = 59  # asm-generic/socket.h; Python does not name it
MOST_GROUPS = 4096  # of a caller


@dataclass(frozen=True, slots=True)
class Caller:
    """Who is at the other end: pid, uid, gid and other groups as the kernel says; on TCP it says none of them, but an
    `address`."""

    pid: int
    uid: int
    gid: int
    address: str = ""
    groups: frozenset[int] = frozenset()

    def __str__(self) -> str:
        return self.address or f"uid {self.uid} gid {self.gid} pid {self.pid}"


def stranger(sock: socket.socket) -> Caller:
    """Who is at the other end of a TCP connection: somebody at an address.  Raises `OSError` when it has ended."""
    host, port, *_ = sock.getpeername()
    return Caller(0, -1, -1, f"{bracketed(host)}:{port}")


@dataclass(frozen=True, slots=True)
class Call:
    """One request: `path` stands without its query, `body` has at most `MAX_BODY` bytes, `token` is that of
    ``Authorization: Bearer`` (RFC 6750 2.1; empty: there is none)."""

    method: str
    path: str
    query: Mapping[str, list[str]]
    caller: Caller
    body: bytes = b""
    token: str = ""

    def argument(self, name: str, default: str = "") -> str:
        """The first value of `name` in the query."""
        return self.query.get(name, [default])[0]

    def data(self) -> dict[str, Any]:
        """The JSON object in the body; nothing at all is an empty one.  Raises `ValueError` that says what is wrong."""
        try:
            data = json.loads(self.body or b"{}")
        except (ValueError, RecursionError):
            raise ValueError("the body is not JSON") from None
        if not isinstance(data, dict):
            raise ValueError("the body is not a JSON object")
        return data


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer; `fields` are header fields besides type and length.

    With `then`, the body does not end with `body`: it lasts as long as the connection, which `then` looks after.
    `files` go with it (SCM_RIGHTS) and are closed here.
    """

    status: int
    content_type: str
    body: bytes
    fields: tuple[tuple[bytes, bytes], ...] = ()
    files: tuple[int, ...] = ()
    then: Callable[[Stream], Awaitable[None]] | None = None


def as_json(data: object, status: int = 200) -> Reply:
    """`data` as a line of JSON."""
    return Reply(status, "application/json", json.dumps(data).encode() + b"\n")


def as_text(text: str, status: int = 200) -> Reply:
    """`text` as a line of plain text."""
    return Reply(status, "text/plain; charset=utf-8", text.encode() + b"\n")


Answerer = Callable[[Call], Awaitable[Reply]]
Table = Mapping[tuple[str, str], Answerer]  # by method and path
Fault = Callable[[str, Exception], None]


async def answer_by(table: Table, call: Call) -> Reply:
    """The reply of the one in `table` who answers for method and path; 404 names all paths, 405 the methods.  A HEAD is
    a GET whose body is not sent."""
    method = "GET" if call.method == "HEAD" else call.method
    answerer = table.get((method, call.path))
    if answerer is not None:
        return await answerer(call)
    methods = [one for one, path in table if path == call.path]
    if methods:
        reply = as_json({"error": f"use {' or '.join(methods)} for {call.path}"}, 405)
        return replace(reply, fields=((b"Allow", ", ".join(methods).encode()),))  # RFC 9110 15.5.6
    paths = " ".join(dict.fromkeys(path for _, path in table))
    return as_json({"error": f"nothing under {call.path}; try {paths}"}, 404)


# ---------------------------------------------------------------------------------------------------- serving it


def peer_of(sock: socket.socket) -> Caller:
    """Who is at the other end of a Unix socket (unix(7), SO_PEERCRED)."""
    size = struct.calcsize("3i")
    pid, uid, gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    try:
        found = array.array("I", sock.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, MOST_GROUPS * 4))
    except OSError:  # more than that, or a kernel before 4.13: then those count for nothing
        found = array.array("I")
    return Caller(pid, uid, gid, groups=frozenset(found))


def may_call(caller: Caller) -> bool:
    """The same uid as frontd, or root."""
    return caller.uid in (0, os.geteuid())


async def serve_calls(
    listening: socket.socket, answerer: Answerer, fault: Fault, patience: float = PATIENCE, callers: int = MAX_CALLERS,
    accepting: trio.CancelScope | None = None,
) -> None:
    """Accept callers until cancelled, at most `callers` at a time, each with `patience` seconds to say what it wants.

    `fault` is told what went wrong inside `answerer`.  When `accepting` is cancelled, those who were accepted are still
    answered.
    """
    free = trio.Semaphore(callers)
    async with trio.open_nursery() as nursery:
        with accepting or trio.CancelScope():
            while True:
                await free.acquire()
                sock = await _accept(listening)
                nursery.start_soon(carry_task, _serve_caller, sock, answerer, fault, patience, free)


async def _accept(listening: socket.socket) -> socket.socket:
    while True:
        try:
            return listening.accept()[0]
        except BlockingIOError:
            await trio.lowlevel.wait_readable(listening)
        except OSError:  # out of files: until others close
            await trio.sleep(0.1)


async def _serve_caller(
    sock: socket.socket, answerer: Answerer, fault: Fault, patience: float, free: trio.Semaphore
) -> None:
    stream = Stream(sock)
    held = True
    try:
        caller = peer_of(sock) if sock.family == socket.AF_UNIX else stranger(sock)
        http = ServerConnection()
        reply = await _one_call(stream, http, answerer, caller, fault, patience)
        while reply is not None and reply.then is None:
            http.next_cycle()
            reply = await _one_call(stream, http, answerer, caller, fault, patience)
        if reply is not None and reply.then is not None:
            held = False
            free.release()  # it may last for days; whoever gave it bounds how many there are
            await reply.then(stream)
        await stream.close_gracefully()
    except (Broken, FrontdError, OSError):
        pass  # a caller that leaves or goes to sleep is its own affair
    except Exception as error:  # the driver's net
        fault("control socket", error)
    finally:
        stream.close_now()
        if held:
            free.release()


async def _one_call(
    stream: Stream, http: ServerConnection, answerer: Answerer, caller: Caller, fault: Fault, patience: float
) -> Reply | None:
    """Answer one request; None: no other may follow."""
    try:
        found = await _read_request(stream, http, patience)
    except FrontdError as error:
        if error.status == 0 or (error.reason is Reason.Timer_HeaderWait and not http.has_bytes):
            raise
        reply = as_json({"error": error.detail or error.reason.sentence, "reason": error.reason.word}, error.status)
        await _send(stream, http, reply, close=True)
        return None
    if found is None:
        return None
    request, body = found
    try:
        reply = await answerer(call_of(request, caller, body))
    except Exception as error:  # whatever it was, it must not touch what is being served
        fault(f"control socket: {request.method} {request.path}", error)
        reply = as_json({"error": f"frontd failed inside ({type(error).__name__}); its error log says more"}, 500)
    if reply.then is not None:
        return await _begin_lasting(stream, reply)
    await _send(stream, http, reply)
    return None if http.must_close else reply


async def _begin_lasting(stream: Stream, reply: Reply) -> Reply:
    """Send the head of an answer that lasts, with its first part and its files; the end of its body is the end of the
    connection (RFC 9112 6.3)."""
    assert reply.then is not None
    head = f"HTTP/1.1 {reply.status} OK\r\nContent-Type: {reply.content_type}\r\nConnection: close\r\n\r\n".encode()
    try:
        size = socket.send_fds(stream.sock, [head + reply.body], reply.files)
        if size < len(head) + len(reply.body):
            raise Broken("the caller does not read")
    except (OSError, Broken):
        stream.close_now()
        await reply.then(stream)  # it sees the end at once, and does what is to be done then
        raise
    finally:
        for fd in reply.files:
            os.close(fd)
    return reply


def call_of(request: Request, caller: Caller, body: bytes) -> Call:
    """What `caller` asks for."""
    scheme, value = request.credentials
    token = value if scheme == "bearer" and value else ""
    return Call(request.method, request.path, parse_qs(request.query or ""), caller, body, token)


async def _read_request(stream: Stream, http: ServerConnection, patience: float) -> tuple[Request, bytes] | None:
    """The next request and its body; None when the caller is done.  Raises `FrontdError` and `Broken`."""
    deadline = trio.current_time() + patience
    while (head := http.next_head(WireLimits())) is None:
        data = await stream.receive(deadline, Reason.Timer_HeaderWait)
        if not data:
            return None
        http.receive(data)
    body = b""
    while not isinstance(part := http.next_body(), End):
        body += part or b""
        if len(body) > MAX_BODY:
            raise FrontdError(Reason.EntityTooLarge)
        if part is None:
            http.receive(await stream.receive(deadline, Reason.Timer_EntityBody))
    return make_request(head), body


async def _send(stream: Stream, http: ServerConnection, reply: Reply, *, close: bool = False) -> None:
    headers = Headers.of(
        (b"Content-Type", reply.content_type.encode()), (b"Content-Length", b"%d" % len(reply.body)), *reply.fields
    )
    out = http.send_head(reply.status, PHRASES.get(reply.status, b""), headers, close=close)
    if http.head is None or http.head.method != b"HEAD":
        out += http.send_body(reply.body)
    stream.send_now(out + http.send_end())
    await stream.flush(PATIENCE, 1, Reason.Timer_MinBytesPerSecond)
    if close:
        await stream.close_gracefully()
