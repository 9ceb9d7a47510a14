"""The stage for the plays: a front in this process, a client that speaks bytes, an app that follows a script.

Real sockets on loopback, trio's clock (autojump in the tests that ask for it), no threads on the way of a request.
"""

from __future__ import annotations

import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import trio
import trio.testing

from frontd.config.load import Loaded, loads
from frontd.config.plugins import Discover
from frontd.pipeline.discovery import Discovery
from frontd.processes.front import Front

DISCOVERY = Discovery()

Script = Callable[["Line"], Awaitable[None]]

BASE = """
state_dir: {state}
control: {{socket: {state}/control.sock}}
log: {{access: {{to: "{state}/access.log", format: json}}, error: {{to: "{state}/error.log"}}}}
"""


def configuration(text: str, state: Path, discover: Discover = DISCOVERY.catalogue) -> Loaded:
    """A configuration for a test: `text` plus a state directory, a control socket and log files under `state`."""
    return loads(BASE.format(state=state) + text, "frontd.yaml", state, environ={}, discover=discover)


def one_pool(target: str, *, site: str = "", pool: str = "", extra: str = "") -> str:
    """The commonest configuration: one plain listener on a free port, one site for every host, one pool."""
    return f"""
listen: {{http: {{port: 0}}}}
{extra}
sites:
  main:
    urls: ["http://*/"]
    routes: {{/: app}}
    {site}
pools:
  app:
    targets: ["{target}"]
    {pool}
"""


class Line:
    """One end of a connection that reads and writes bytes."""

    def __init__(self, stream: trio.abc.Stream, number: int = 0) -> None:
        self.stream = stream
        self.number = number  # of the connection, counted from 0
        self.buffer = b""

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def read(self) -> bytes:
        """Whatever comes next; ``b""`` at the end."""
        if self.buffer:
            data, self.buffer = self.buffer, b""
            return data
        return bytes(await self.stream.receive_some(65536))

    async def read_until(self, mark: bytes) -> bytes:
        """Up to and including `mark`; what was read when the other side ended before it."""
        while mark not in self.buffer:
            data = bytes(await self.stream.receive_some(65536))
            if not data:
                data, self.buffer = self.buffer, b""
                return data
            self.buffer += data
        end = self.buffer.index(mark) + len(mark)
        found, self.buffer = self.buffer[:end], self.buffer[end:]
        return found

    async def read_exactly(self, size: int) -> bytes:
        while len(self.buffer) < size:
            data = bytes(await self.stream.receive_some(65536))
            if not data:
                raise EOFError(f"{len(self.buffer)} of {size} bytes, then the end")
            self.buffer += data
        found, self.buffer = self.buffer[:size], self.buffer[size:]
        return found

    async def read_to_end(self) -> bytes:
        """Everything until the other side ends; a reset counts as an end and is noted as ``<reset>``."""
        parts = [self.buffer]
        self.buffer = b""
        try:
            while data := bytes(await self.stream.receive_some(65536)):
                parts.append(data)
        except trio.BrokenResourceError:
            parts.append(b"<reset>")
        return b"".join(parts)

    async def head(self) -> bytes:
        return await self.read_until(b"\r\n\r\n")

    async def message(self) -> tuple[bytes, bytes]:
        """A head and its body by Content-Length or chunked (decoded); responses without either have no body here."""
        head = await self.head()
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        if length:
            return head, await self.read_exactly(int(length.group(1)))
        if re.search(rb"(?i)\r\ntransfer-encoding: *chunked", head):
            body = b""
            while size := int((await self.whole_line()).split(b";")[0], 16):
                body += await self.read_exactly(size)
                await self.read_exactly(2)
            while await self.read_until(b"\r\n") not in (b"\r\n", b""):  # trailer fields
                pass
            return head, body
        return head, b""

    async def whole_line(self) -> bytes:
        """A line with its CR LF.  Raises `EOFError` when the other side ends inside it."""
        line = await self.read_until(b"\r\n")
        if not line.endswith(b"\r\n"):
            raise EOFError(f"{line!r}, then the end")
        return line

    async def ask(self, request: bytes) -> tuple[bytes, bytes]:
        """Send a request and read one response."""
        await self.send(request)
        return await self.message()

    async def get(self, path: str = "/", *fields: str, host: str = "a.test") -> tuple[bytes, bytes]:
        """GET with extra field lines; one response."""
        lines = "".join(f"{field}\r\n" for field in fields)
        return await self.ask(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n{lines}\r\n".encode())

    async def close(self) -> None:
        await self.stream.aclose()


class App:
    """A scripted app: each connection runs `script`; `heads` is what it was sent through `answer_each`."""

    def __init__(self, listener: trio.SocketListener) -> None:
        self.listener = listener
        self.port = int(listener.socket.getsockname()[1])
        self.connections = 0
        self.heads: list[bytes] = []
        self.bodies: list[bytes] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@asynccontextmanager
async def app(script: Script | bytes = OK, port: int = 0, host: str = "127.0.0.1") -> AsyncIterator[App]:
    """An app on loopback.  Bytes as script: that answer to every request, keep-alive."""
    (listener,) = await trio.open_tcp_listeners(port, host=host)
    it = App(listener)

    async def answer_each(line: Line) -> None:
        while True:
            head, body = await line.message()
            if not head:
                return
            it.heads.append(head)
            it.bodies.append(body)
            assert isinstance(script, bytes)
            await line.send(script)

    async def handle(stream: trio.SocketStream) -> None:
        line = Line(stream, it.connections)
        it.connections += 1
        try:
            await (answer_each if isinstance(script, bytes) else script)(line)
        except (trio.BrokenResourceError, trio.ClosedResourceError, EOFError):
            pass
        finally:
            await trio.aclose_forcefully(stream)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, handle, [listener])
        yield it
        nursery.cancel_scope.cancel()


class Stage:
    """A running front and the ways in."""

    def __init__(self, front: Front, state: Path) -> None:
        self.front = front
        self.state = state
        self.lines: list[Line] = []

    def port(self, name: str = "http") -> int:
        return next(one.port for one in self.front.listeners if one.settings.name == name)

    async def connect(self, name: str = "http") -> Line:
        line = Line(await trio.open_tcp_stream("127.0.0.1", self.port(name)))
        self.lines.append(line)
        return line

    @property
    def reasons(self) -> dict[str, int]:
        """Counted reasons, by word."""
        return dict(self.front.service.reasons)

    def log(self, which: str = "access") -> str:
        """The whole log; closes the log, so it is for the end of a play."""
        self.front.service.log.close()
        path = self.state / f"{which}.log"
        return path.read_text() if path.exists() else ""


@asynccontextmanager
async def front(text: str, state: Path, discover: Discover = DISCOVERY.catalogue) -> AsyncIterator[Stage]:
    """A front that serves the configuration `text`, with the plugins that `discover` finds."""
    it = Front.open(configuration(text, state, discover))
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(it.run)
            stage = Stage(it, state)
            try:
                yield stage
            finally:
                for line in stage.lines:
                    await trio.aclose_forcefully(line.stream)
            nursery.cancel_scope.cancel()
        for pool in it.pools.values():  # whatever was played: nothing is held any more
            assert not len(pool.queue), pool
            assert not any(place.active or place.idle for place in pool.places), pool
        assert not it.service.connections
    finally:
        it.service.log.close()


async def settled() -> None:
    """Wait until everything that can happen now has happened."""
    await trio.testing.wait_all_tasks_blocked()


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
