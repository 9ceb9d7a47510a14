"""A small app to stand behind frontd: `python -m frontd.cli.sample_app --port N`.

| path | what it does |
|---|---|
| ``/`` | a page with what the app saw of the request (text, or HTML for a browser) |
| ``/whoami`` | who has logged on, as frontd says in ``X-Remote-User``; else ``nobody`` |
| ``/upload`` | POST or PUT: counts the bytes of the body and their SHA-256, in constant memory |
| ``/download?bytes=N`` | N bytes, streamed |
| ``/cached?s=S`` | the time, which a cache may keep for S seconds (60) |
| ``/sleep?s=S`` | answers after S seconds |
| ``/echo`` | WebSocket echo (RFC 6455) |
| ``/healthz`` | ``ok`` |
| ``/page…``, ``/private/…`` | the same as ``/``: a few more addresses |

How it works: one trio task per connection, h11 for HTTP/1.1, one write per short answer.  SIGTERM or SIGINT: it stops
accepting and drops idle connections at once; requests in flight get one second.

Invariant: `Server.idle` holds exactly the cancel scopes of connections that wait for a request's first byte.
"""

from __future__ import annotations

import argparse
import hashlib
import html
import json
import os
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from http import HTTPStatus
from urllib.parse import parse_qs, unquote, urlsplit

import h11
import trio

from frontd.cli.sample_websocket import accept_key, echo

GRACE = 1.0  # seconds that requests in flight have after SIGTERM
CHUNK = 65536  # bytes per read and per piece of a download
MAX_DOWNLOAD = 1 << 40  # bytes; a typo should not run for ever
MAX_SLEEP = 3600.0  # seconds
MAX_AGE = 1 << 31  # seconds, RFC 9111 1.2.2: what counts as "for ever"
MORE_PAGES = ("/page", "/private/")


@dataclass(slots=True)
class Server:
    """What all connections share: the app's name, its delay before each answer in seconds, and whether it stops."""

    name: str = "sample"
    delay: float = 0.0
    stopping: bool = False
    idle: set[trio.CancelScope] = field(default_factory=set)

    def stop(self) -> None:
        """Ends idle connections; the others end after their answer."""
        self.stopping = True
        for scope in self.idle:
            scope.cancel()


@dataclass(slots=True)
class Request:
    """One request and the way to answer it.  `headers` are in the order and case of the wire, as text."""

    server: Server
    stream: trio.abc.Stream
    http: h11.Connection
    method: str
    path: str
    query: dict[str, str]
    target: str
    version: str
    headers: list[tuple[str, str]]

    async def next_part(self) -> h11.Event:
        """The next event of the body; raises `h11.RemoteProtocolError` when the client breaks off or misbehaves."""
        while True:
            event = self.http.next_event()
            if event is h11.NEED_DATA:
                if self.http.they_are_waiting_for_100_continue:
                    await self.stream.send_all(
                        _bytes(self.http.send(h11.InformationalResponse(status_code=100, headers=[])))
                    )
                self.http.receive_data(bytes(await self.stream.receive_some(CHUNK)))
                continue
            assert isinstance(event, h11.Event)
            return event

    async def drain(self) -> None:
        """Reads the body to its end and forgets it."""
        while not isinstance(await self.next_part(), h11.EndOfMessage):
            pass

    async def answer(
        self, status: int, text: str, content_type: str = "text/plain; charset=utf-8", *fields: tuple[str, str]
    ) -> None:
        """A whole answer in one write; `fields` are added to its head."""
        body = text.encode()
        data = self.head(status, content_type, len(body), *fields)
        if self.method != "HEAD":
            data += _bytes(self.http.send(h11.Data(data=body)))
        await self.stream.send_all(data + _bytes(self.http.send(h11.EndOfMessage())))

    def head(self, status: int, content_type: str, length: int, *fields: tuple[str, str]) -> bytes:
        """The head of an answer with `length` bytes of body."""
        headers = [
            ("Content-Type", content_type),
            ("Content-Length", str(length)),
            ("X-Sample-App", self.server.name),
            *fields,
        ]
        if self.server.stopping:
            headers.append(("Connection", "close"))
        reason = HTTPStatus(status).phrase.encode()
        return _bytes(self.http.send(h11.Response(status_code=status, headers=headers, reason=reason)))


def _bytes(data: bytes | None) -> bytes:
    return data or b""


# ---------------------------------------------------------------------------------------------------- pages


async def page(request: Request) -> None:
    """What the app saw."""
    await request.drain()
    lines = [
        f"This is the sample app {request.server.name!r}, pid {os.getpid()}. It was asked for:",
        "",
        f"{request.method} {request.target} HTTP/{request.version}",
        *(f"{name}: {value}" for name, value in request.headers),
        "",
    ]
    text = "\n".join(lines)
    accept = next((value for name, value in request.headers if name.lower() == "accept"), "")
    if "text/html" not in accept:
        await request.answer(200, text)
        return
    title = html.escape(f"sample app {request.server.name}")
    await request.answer(
        200,
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title>"
        f"<h1>{title}</h1><pre>{html.escape(text)}</pre></html>\n",
        "text/html; charset=utf-8",
    )


async def whoami(request: Request) -> None:
    """Names the user."""
    await request.drain()
    user = next((value for name, value in request.headers if name.lower() == "x-remote-user"), "nobody")
    await request.answer(200, f"{user}\n")


async def upload(request: Request) -> None:
    """Counts and hashes the body as it comes."""
    if request.method not in ("POST", "PUT"):
        await request.drain()
        await request.answer(405, "send a body with POST or PUT\n")
        return
    digest, total = hashlib.sha256(), 0
    while True:
        event = await request.next_part()
        if isinstance(event, h11.EndOfMessage):
            break
        if isinstance(event, h11.Data):
            digest.update(event.data)
            total += len(event.data)
    answer = {"bytes": total, "sha256": digest.hexdigest(), "name": request.server.name}
    await request.answer(200, json.dumps(answer) + "\n", "application/json")


async def download(request: Request) -> None:
    """N bytes: lines of text, so that a terminal survives it."""
    await request.drain()
    length = _number(request, "bytes", 1_000_000, MAX_DOWNLOAD)
    if length is None:
        await request.answer(400, f"bytes is a number from 0 to {MAX_DOWNLOAD}\n")
        return
    await request.stream.send_all(request.head(200, "text/plain; charset=utf-8", int(length)))
    if request.method != "HEAD":
        piece = (b"." * 63 + b"\n") * (CHUNK // 64)
        left = int(length)
        while left:
            part = piece[:left]
            left -= len(part)
            await request.stream.send_all(_bytes(request.http.send(h11.Data(data=part))))
    request.http.send(h11.EndOfMessage())  # writes nothing: the length was announced


async def cached(request: Request) -> None:
    """Says when it was made, and for how long it is fresh (RFC 9111 5.2.2.1)."""
    await request.drain()
    seconds = _number(request, "s", 60, MAX_AGE)
    if seconds is None:
        await request.answer(400, f"s is a number of seconds from 0 to {MAX_AGE}\n")
        return
    text = f"made by {request.server.name!r} at {datetime.now(UTC).isoformat()}, fresh for {int(seconds)} s\n"
    freshness = ("Cache-Control", f"max-age={int(seconds)}")
    await request.answer(200, text, "text/plain; charset=utf-8", freshness)


async def sleep(request: Request) -> None:
    """Answers late."""
    await request.drain()
    seconds = _number(request, "s", 1.0, MAX_SLEEP)
    if seconds is None:
        await request.answer(400, f"s is a number of seconds from 0 to {MAX_SLEEP:.0f}\n")
        return
    await trio.sleep(seconds)
    await request.answer(200, f"slept {seconds:g} s\n")


async def healthz(request: Request) -> None:
    """Answers ``ok``: for health checks."""
    await request.drain()
    await request.answer(200, "ok\n")


async def websocket(request: Request) -> None:
    """Answers 101 and echoes messages until either side closes; anything else than an upgrade gets 426."""
    fields = {name.lower(): value for name, value in request.headers}
    key = accept_key(request.method, fields)
    if key is None:
        await request.drain()
        await request.answer(426, "this path speaks WebSocket (RFC 6455), version 13\n")
        return
    await request.drain()
    headers = [("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Accept", key)]
    await request.stream.send_all(
        _bytes(request.http.send(h11.InformationalResponse(status_code=101, headers=headers)))
    )
    early, _ = request.http.trailing_data  # a client may send its first frame along with the request
    await echo(request.stream, bytes(early), request.server.idle)


def _number(request: Request, name: str, default: float, maximum: float) -> float | None:
    try:
        value = float(request.query.get(name, default))
    except ValueError:
        return None
    return value if 0 <= value <= maximum else None  # false for NaN as well


PAGES: dict[str, Callable[[Request], Awaitable[None]]] = {
    "/": page,
    "/whoami": whoami,
    "/upload": upload,
    "/download": download,
    "/cached": cached,
    "/sleep": sleep,
    "/echo": websocket,
    "/healthz": healthz,
}


# ---------------------------------------------------------------------------------------------------- connections


async def _respond(server: Server, stream: trio.abc.Stream, http: h11.Connection, event: h11.Request) -> None:
    target = event.target.decode("ascii")
    parts = urlsplit(target)
    query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    headers = [(name.decode("ascii"), value.decode("latin-1")) for name, value in event.headers.raw_items()]
    request = Request(
        server, stream, http, event.method.decode("ascii"), unquote(parts.path), query, target,
        event.http_version.decode("ascii"), headers,
    )
    if server.delay:
        await trio.sleep(server.delay)
    handler = PAGES.get(request.path)
    if handler is None and request.path.startswith(MORE_PAGES):
        handler = page
    if handler is not None:
        await handler(request)
    else:
        await request.drain()
        await request.answer(404, f"nothing is at {request.path}; there are: {', '.join(PAGES)}\n")


async def _wait_for_request(server: Server, stream: trio.abc.Stream, http: h11.Connection) -> h11.Request | None:
    """The next request, or None when the connection is over (end, or the app stops while nothing was asked)."""
    while True:
        event = http.next_event()
        if isinstance(event, h11.Request):
            return event
        if event is not h11.NEED_DATA:
            return None
        with trio.CancelScope() as scope:
            server.idle.add(scope)
            try:
                if server.stopping:
                    return None
                data = await stream.receive_some(CHUNK)
            finally:
                server.idle.discard(scope)
        if scope.cancelled_caught:
            return None
        http.receive_data(bytes(data))


async def serve_connection(server: Server, stream: trio.abc.Stream) -> None:
    """One connection from accept to close; a client that breaks off or talks nonsense ends only itself."""
    http = h11.Connection(h11.SERVER)
    async with stream:
        try:
            while True:
                event = await _wait_for_request(server, stream, http)
                if event is None:
                    return
                await _respond(server, stream, http, event)
                if http.our_state is not h11.DONE or http.their_state is not h11.DONE or server.stopping:
                    return
                http.start_next_cycle()
        except h11.RemoteProtocolError as error:
            if http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                text = f"{error}\n".encode()
                head = h11.Response(
                    status_code=error.error_status_hint,
                    headers=[("Content-Length", str(len(text))), ("Connection", "close")],
                )
                data = _bytes(http.send(head)) + _bytes(http.send(h11.Data(data=text)))
                try:
                    await stream.send_all(data)
                except trio.BrokenResourceError:
                    return
        except trio.BrokenResourceError:
            return


# ---------------------------------------------------------------------------------------------------- process


async def open_listener(host: str, port: int | None, uds: str | None) -> list[trio.SocketListener]:
    """Listening sockets on `host`:`port` or on the Unix socket `uds`.  Raises `OSError`."""
    if uds is None:
        return await trio.open_tcp_listeners(port or 0, host=host)
    path = trio.Path(uds)
    if await path.is_socket():
        await path.unlink()  # left over from a run that was killed
    sock = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
    try:
        await sock.bind(uds)
        sock.listen(1024)
    except BaseException:
        sock.close()
        raise
    return [trio.SocketListener(sock)]


async def run(
    server: Server,
    listeners: list[trio.SocketListener],
    *,
    task_status: trio.TaskStatus[trio.CancelScope] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until the scope given to `task_status` is cancelled, then let requests in flight finish within `GRACE`."""
    async with trio.open_nursery() as connections:
        with trio.CancelScope() as accepting:
            task_status.started(accepting)
            await trio.serve_listeners(partial(serve_connection, server), listeners, handler_nursery=connections)
        server.stop()
        connections.cancel_scope.deadline = trio.current_time() + GRACE


async def _main(options: argparse.Namespace) -> None:
    listeners = await open_listener(options.host, options.port, options.uds)
    server = Server(options.name, options.delay)
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            accepting = await nursery.start(partial(run, server, listeners))
            print(f"sample app {options.name}: {_where(options, listeners)}", flush=True)
            async for _ in signals:
                accepting.cancel()
                break
    if options.uds:
        await trio.Path(options.uds).unlink(missing_ok=True)


def _where(options: argparse.Namespace, listeners: list[trio.SocketListener]) -> str:
    if options.uds:
        return f"unix:{options.uds}"
    host, port = listeners[0].socket.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def main(arguments: list[str] | None = None) -> None:
    """Run until SIGTERM or SIGINT; prints where it listens once it does."""
    parser = argparse.ArgumentParser(prog="python -m frontd.cli.sample_app", description="A small app behind frontd.")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--port", type=int, help="TCP port, 0 for a free one")
    where.add_argument("--uds", metavar="PATH", help="Unix socket instead of a port")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1)")
    parser.add_argument("--name", default="sample", help="shown in its answers")
    parser.add_argument("--delay", type=float, default=0.0, metavar="SECONDS", help="wait before each answer")
    options = parser.parse_args(arguments)
    try:
        trio.run(_main, options)
    except OSError as error:
        raise SystemExit(f"sample app {options.name}: {error}") from None


if __name__ == "__main__":
    main()
