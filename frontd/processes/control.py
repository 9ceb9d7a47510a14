"""The control socket and the health listener: HTTP/1.1 and JSON, so that ``curl --unix-socket`` is enough.

Who may call: the kernel says who is at the other end of a Unix socket (SO_PEERCRED); the same uid as frontd or root,
nobody else.  Every call that changes something is written to the log: who, what, what came of it.  The health listener
on TCP, when configured, knows ``/livez`` and ``/readyz`` and nothing more.

Invariants
----------
* A caller is bounded: a request head of 16 KiB, a body of 64 KiB that is thrown away, 10 s of patience; and there are
  at most 64 callers at a time, the others wait in the backlog.
* Whatever a caller does, and whatever goes wrong while it is answered, ends with its connection.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol
from urllib.parse import parse_qs

import trio
import yaml

from frontd.config.effective import effective
from frontd.config.load import Loaded
from frontd.lanes.requests import make_request
from frontd.model.errors import FrontdError, Reason
from frontd.model.headers import Headers
from frontd.model.messages import Request
from frontd.net.streams import Broken, Stream
from frontd.net.traps import carry_task
from frontd.pipeline.answers import PHRASES
from frontd.processes.explain import explain, hooks_of, plugins_on
from frontd.processes.reload import ReloadReport
from frontd.processes.status import Facts, iso, merged
from frontd.protocol.framing import End
from frontd.protocol.h1 import ServerConnection
from frontd.protocol.scan import WireLimits

PATIENCE = 10.0  # s for a caller to send its request
MAX_BODY = 65536
MAX_CALLERS = 64
# The health listener is open to strangers: silent ones must not keep an orchestrator waiting until it gives up on us.
HEALTH_PATIENCE = 1.0  # s
HEALTH_CALLERS = 512


@dataclass(frozen=True, slots=True)
class Caller:
    """Who is at the other end: pid, uid, gid as the kernel says."""

    pid: int
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer of the control socket."""

    status: int
    content_type: str
    body: bytes


def as_json(data: object, status: int = 200) -> Reply:
    """`data` as a line of JSON."""
    return Reply(status, "application/json", json.dumps(data).encode() + b"\n")


def as_text(text: str, status: int = 200) -> Reply:
    """`text` as a line of plain text."""
    return Reply(status, "text/plain; charset=utf-8", text.encode() + b"\n")


Answerer = Callable[[str, str, dict[str, list[str]], Caller], Awaitable[Reply]]
Fault = Callable[[str, Exception], None]
STRANGER = Caller(0, -1, -1)  # at the other end of a TCP connection


class Served(Protocol):
    """What the control socket answers for: a front that is alone, or all of a family."""

    loaded: Loaded
    started_at: float
    loaded_at: float
    last_reload: ReloadReport | None
    state: str

    @property
    def generation(self) -> int:
        """Of the configuration that serves."""

    @property
    def is_ready(self) -> bool:
        """Whether requests are accepted."""

    async def facts(self) -> list[Facts]:
        """Of every front, as `frontd.processes.status` gathers them."""

    async def reload(self, read: Callable[[], Loaded]) -> ReloadReport:
        """Read and replace the configuration."""

    def remark(self, text: str) -> None:
        """Write a line into the error log."""


class Control:
    """What the control socket answers.  `read` reads the configuration again; None: there is nothing to read.  `pid` is
    the process that takes signals."""

    def __init__(
        self, served: Served, version: str, read: Callable[[], Loaded] | None, pid: int | None = None
    ) -> None:
        self.served = served
        self.version = version
        self.read = read
        self.pid = pid or os.getpid()

    async def answer(self, method: str, path: str, query: dict[str, list[str]], caller: Caller) -> Reply:
        """The reply to one request on the control socket."""
        if not may_call(caller):
            self.audit(f"{method} {path}", caller, "refused, wrong uid")
            return as_json({"error": f"uid {caller.uid} may not use this socket; use frontd's own uid or root"}, 403)
        if path in ("/livez", "/readyz"):
            return await self.health(method, path, query, caller)
        if path == "/reload":
            if method != "POST":
                return as_json({"error": "use POST for /reload"}, 405)
            return await self.reload(caller)
        if method != "GET":
            return as_json({"error": f"{method} is not for {path}"}, 405)
        if path == "/status":
            return as_json(await self.status())
        if path == "/config":
            config = effective(self.served.loaded.config)
            return as_json({"yaml": yaml.safe_dump(config, sort_keys=False, allow_unicode=True)})
        if path == "/explain":
            return self.explain(query.get("url", [""])[0])
        return as_json(
            {"error": f"nothing under {path}; try /status /config /explain?url= /reload /livez /readyz"}, 404
        )

    async def health(self, method: str, path: str, query: dict[str, list[str]], caller: Caller) -> Reply:
        """``/livez``: this process answers.  ``/readyz``: requests are accepted as well (503 while starting or
        draining)."""
        if path not in ("/livez", "/readyz"):
            return as_text("only /livez and /readyz are here", 404)
        if method not in ("GET", "HEAD"):
            return as_text("use GET", 405)
        if path == "/livez" or self.served.is_ready:
            return as_text("ok")
        return as_text(self.served.state, 503)

    async def reload(self, caller: Caller) -> Reply:
        """Reload on behalf of `caller`; 422 with every error when the old configuration stays."""
        if self.read is None:
            self.audit("reload", caller, "refused, there is no file to read again")
            return as_json({"errors": ["this frontd was started without a file to read again"]}, 422)
        report = await self.served.reload(self.read)
        self.audit("reload", caller, "ok" if report.ok else "refused")
        if not report.ok:
            return as_json({"errors": report.errors}, 422)
        generation = self.served.generation
        return as_json({"generation": generation, "changed": report.changed, "warnings": report.warnings})

    def audit(self, what: str, caller: Caller, outcome: str) -> None:
        """Write down who did what, and what came of it."""
        self.served.remark(f"audit: {what} by uid {caller.uid} gid {caller.gid} pid {caller.pid}: {outcome}")

    def explain(self, url: str) -> Reply:
        """Where `url` leads in the running configuration; 400 for what is no URL."""
        try:
            return as_json(explain(self.served.loaded.config, url))
        except ValueError as error:
            return as_json({"error": str(error)}, 400)

    async def status(self) -> dict[str, object]:
        """Everything `frontd status` shows."""
        served = self.served
        every = merged(await served.facts())
        report, config = served.last_reload, served.loaded.config
        for site in every["sites"]:
            known = config.sites.get(site["name"])  # a front may be one reload behind
            site["urls"] = [str(url) for url in known.urls] if known else []
            site["plugins"] = self.plugins(site["name"]) if known else []
        return {
            "version": self.version,
            "pid": self.pid,
            "started": iso(served.started_at),
            "uptime": round(datetime.now(UTC).timestamp() - served.started_at, 3),
            "ready": served.is_ready,
            "state": served.state,
            "generation": served.generation,
            "config": {"file": served.loaded.name, "loaded": iso(served.loaded_at)},
            "last_reload": report
            and {"at": iso(report.at), "ok": report.ok, "changed": report.changed, "errors": report.errors},
            **every,
        }

    def plugins(self, site: str) -> list[dict[str, object]]:
        """The plugins that are asked on a site, in their order; `server` marks those of the whole server."""
        config = self.served.loaded.config
        return [
            {"name": entry.name, "server": at < len(config.plugins), "hooks": hooks_of(entry)}
            for at, entry in enumerate(plugins_on(config, site))
        ]


# ---------------------------------------------------------------------------------------------------- serving it


def peer_of(sock: socket.socket) -> Caller:
    """Who is at the other end of a Unix socket (unix(7), SO_PEERCRED)."""
    size = struct.calcsize("3i")
    return Caller(*struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)))


def may_call(caller: Caller) -> bool:
    """The same uid as frontd, or root."""
    return caller.uid in (0, os.geteuid())


async def serve_calls(
    listening: socket.socket, answerer: Answerer, fault: Fault, patience: float = PATIENCE, callers: int = MAX_CALLERS
) -> None:
    """Accept callers until cancelled, at most `callers` at a time, each with `patience` seconds to say what it wants.

    `fault` is told what went wrong inside `answerer`.
    """
    free = trio.Semaphore(callers)
    async with trio.open_nursery() as nursery:
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
    try:
        caller = peer_of(sock) if sock.family == socket.AF_UNIX else STRANGER
        http = ServerConnection()
        while await _one_call(stream, http, answerer, caller, fault, patience):
            http.next_cycle()
        await stream.close_gracefully()
    except (Broken, FrontdError, OSError):
        pass  # a caller that leaves or goes to sleep is its own affair
    except Exception as error:  # the driver's net
        fault("control socket", error)
    finally:
        stream.close_now()
        free.release()


async def _one_call(
    stream: Stream, http: ServerConnection, answerer: Answerer, caller: Caller, fault: Fault, patience: float
) -> bool:
    """Answer one request; whether another may follow."""
    try:
        request = await _read_request(stream, http, patience)
    except FrontdError as error:
        if error.status == 0 or (error.reason is Reason.Timer_HeaderWait and not http.has_bytes):
            raise
        reply = as_json({"error": error.detail or error.reason.sentence, "reason": error.reason.word}, error.status)
        await _send(stream, http, reply, close=True)
        return False
    if request is None:
        return False
    try:
        reply = await answerer(request.method, request.path, parse_qs(request.query or ""), caller)
    except Exception as error:  # whatever it was, it must not touch what is being served
        fault(f"control socket: {request.method} {request.path}", error)
        reply = as_json({"error": f"frontd failed inside ({type(error).__name__}); its error log says more"}, 500)
    await _send(stream, http, reply)
    return not http.must_close


async def _read_request(stream: Stream, http: ServerConnection, patience: float) -> Request | None:
    """The next request, its body thrown away; None when the caller is done.  Raises `FrontdError` and `Broken`."""
    deadline = trio.current_time() + patience
    while (head := http.next_head(WireLimits())) is None:
        data = await stream.receive(deadline, Reason.Timer_HeaderWait)
        if not data:
            return None
        http.receive(data)
    size = 0
    while not isinstance(part := http.next_body(), End):
        size += len(part or b"")
        if size > MAX_BODY:
            raise FrontdError(Reason.EntityTooLarge)
        if part is None:
            http.receive(await stream.receive(deadline, Reason.Timer_EntityBody))
    return make_request(head)


async def _send(stream: Stream, http: ServerConnection, reply: Reply, *, close: bool = False) -> None:
    headers = Headers.of((b"Content-Type", reply.content_type.encode()), (b"Content-Length", b"%d" % len(reply.body)))
    out = http.send_head(reply.status, PHRASES.get(reply.status, b""), headers, close=close)
    if http.head is None or http.head.method != b"HEAD":
        out += http.send_body(reply.body)
    stream.send_now(out + http.send_end())
    await stream.flush(PATIENCE, 1, Reason.Timer_MinBytesPerSecond)
    if close:
        await stream.close_gracefully()
