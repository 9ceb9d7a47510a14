"""`frontd serve` as a user starts it: master, control and fronts as real processes, on free ports."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from tests.wire import Line

PATIENCE = 30.0  # s: the machine may be busy with other things


class House:
    """A running family in the folder `where`."""

    def __init__(self, where: Path, child: trio.Process) -> None:
        self.where = where
        self.child = child
        self.words = ""
        self.ports: list[int] = []

    async def until_ready(self) -> None:
        assert self.child.stderr is not None
        with trio.fail_after(PATIENCE):
            while "frontd ready: " not in self.words or not self.words.endswith("\n"):
                data = await self.child.stderr.receive_some(4096)
                assert data, f"it ended before it was ready: {self.words}"
                self.words += data.decode()
        self.ports = [int(port) for port in re.findall(r" on [^ ]*:(\d+)", self.words)]

    async def rest(self) -> str:
        """What else it says on stderr, until all of its processes have ended."""
        assert self.child.stderr is not None
        text = b""
        with trio.fail_after(PATIENCE):
            while data := await self.child.stderr.receive_some(4096):
                text += data
        return text.decode()

    async def line(self, port: int = 0) -> Line:
        return Line(await trio.open_tcp_stream("127.0.0.1", port or self.ports[0]))

    async def get(self, path: str = "/", port: int = 0) -> tuple[int, bytes]:
        """Status and body of a request on a connection of its own.  Raises `OSError`, `EOFError`."""
        try:
            line = await self.line(port)
            try:
                head, body = await line.get(path, "Connection: close")
            finally:
                await trio.aclose_forcefully(line.stream)
        except trio.BrokenResourceError as error:
            raise OSError(str(error)) from error
        if not head:
            raise EOFError("no answer")
        return int(head[9:12]), body

    async def control(self, request: str) -> Any:
        """The answer of the control socket to ``METHOD /path``."""
        async with await trio.open_unix_socket(self.where / "control.sock") as stream:
            line = Line(stream)
            return json.loads((await line.ask(f"{request} HTTP/1.1\r\nHost: x\r\n\r\n".encode()))[1])

    async def status(self) -> dict[str, Any]:
        found = await self.control("GET /status")
        assert isinstance(found, dict)
        return found

    async def fronts(self) -> list[int]:
        """The pids of the fronts, in their order."""
        return [one["pid"] for one in (await self.status())["fronts"]]

    def processes(self, module: str) -> list[int]:
        """The pids of the master's children that run `module`."""
        return [pid for pid, words in family(self.child.pid).items() if f"frontd.processes.{module}" in words]

    async def until(self, true: Callable[[], bool]) -> None:
        with trio.fail_after(PATIENCE):
            while not true():  # noqa: ASYNC110 - another process does it
                await trio.sleep(0.01)

    async def until_answer(self, true: Callable[[int, bytes], bool], path: str = "/") -> bytes:
        """The body of the first answer that is as it should be."""
        with trio.fail_after(PATIENCE):
            while not true(*(answer := await self.get(path))):  # noqa: ASYNC110 - as above
                await trio.sleep(0.01)
        return answer[1]

    async def until_workers(self, name: str, count: int) -> None:
        """Until so many workers of a pool are ready, as the control socket says."""
        with trio.fail_after(2 * PATIENCE):
            while True:
                pools = {one["name"]: one for one in (await self.control("GET /workers"))["pools"]}
                if sum(one["state"] == "ready" for one in pools[name]["workers"]) == count:
                    return
                await trio.sleep(0.2)

    async def until_status(self, true: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The status, when it is as it should be."""
        with trio.fail_after(PATIENCE):
            while not true(status := await self.status()):  # noqa: ASYNC110 - as above
                await trio.sleep(0.01)
        return status

    async def remark(self, text: str, log: str = "error.log") -> str:
        """Wait for `text` in a log, which another process writes; the whole log."""
        path = self.where / log
        await self.until(lambda: path.exists() and text in path.read_text())
        return path.read_text()

    async def end(self) -> int:
        with trio.fail_after(PATIENCE):
            return await self.child.wait()


def family(master: int) -> dict[int, list[str]]:
    """The children of a process, and what they were started with (proc(5))."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                words = (folder / "cmdline").read_text().split("\0")
            except (OSError, IndexError):
                continue  # it has just ended
            if parent == master:
                found[int(folder.name)] = words
    return found


def settings(where: Path, target: str, *, listen: str = "http: {port: 0}", extra: str = "", site: str = "") -> Path:
    """A configuration with one site and one pool, of two fronts."""
    path = where / "frontd.yaml"
    path.write_text(
        f"""
state_dir: {where}
control: {{socket: {where}/control.sock}}
log: {{access: {{to: "{where}/access.log", format: json}}, error: {{to: "{where}/error.log"}}}}
listen: {{{listen}}}
fronts: 2
timeouts: {{drain: 8s}}
{extra}
sites: {{main: {{urls: ["http://*/"], routes: {{/: app}}{site}}}}}
pools: {{app: {{targets: ["{target}"]}}}}
"""
    )
    return path


def family_of(where: Path, *, fronts: int, drain: str) -> str:
    """The part of a configuration that says where a family lives: all of it in `where`, on a free port."""
    return f"""\
state_dir: {where}
control: {{socket: {where}/control.sock}}
log: {{access: {{to: "off"}}, error: {{to: "{where}/error.log"}}}}
listen: {{http: {{port: 0}}}}
fronts: {fronts}
timeouts: {{drain: {drain}}}"""


def command(path: Path) -> list[str]:
    return [sys.executable, "-W", "error", "-m", "frontd", "serve", "-c", str(path)]


@asynccontextmanager
async def started(
    path: Path, *before: str, more: Sequence[str] = (), where: Path | None = None, stdin: int = subprocess.DEVNULL
) -> AsyncIterator[House]:
    """A family that serves `path`, or is about to; killed at the end when it still runs.

    `before` is a command that becomes the master, `more` are arguments, `where` its folder.
    """
    where = where or path.parent
    environ = {**os.environ, "FRONTD_STATE_DIR": str(where)}
    words = [*before, *command(path), *more]
    child = await trio.lowlevel.open_process(words, stdin=stdin, stderr=subprocess.PIPE, env=environ)
    house = House(where, child)
    try:
        yield house
    finally:
        if child.returncode is None:
            child.kill()
        with trio.CancelScope(shield=True):
            await child.wait()
            assert child.stderr is not None
            await child.stderr.aclose()


@asynccontextmanager
async def serving(path: Path) -> AsyncIterator[House]:
    """A family that is ready."""
    async with started(path) as house:
        await house.until_ready()
        yield house


class Load:
    """Clients that make one connection after the other; `failed` is what went wrong, since `mark` was called."""

    def __init__(self, house: House, clients: int = 8) -> None:
        self.house = house
        self.clients = clients
        self.answered = 0
        self.failed: list[str] = []
        self._since = 0

    def mark(self) -> None:
        """Only connections that begin from now on count."""
        self._since += 1
        self.answered = 0
        self.failed.clear()

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(self.clients):
                nursery.start_soon(self._client)

    async def _client(self) -> None:
        while True:
            since = self._since
            try:
                status, body = await self.house.get()
                problem = "" if (status, body) == (200, b"ok") else f"{status} {body!r}"
            except (OSError, EOFError) as error:
                problem = repr(error)
            if since == self._since:
                self.answered += not problem
                self.failed += [problem] if problem else []

    async def until_answered(self, number: int) -> None:
        """Until so many more have been answered."""
        wanted = self.answered + number
        await self.house.until(lambda: self.answered >= wanted)


async def has_ended(pid: int) -> None:
    """Wait until a process has ended, also one that is nobody's child here; a zombie has."""
    with trio.fail_after(PATIENCE):
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        try:
            await trio.lowlevel.wait_readable(fd)
        finally:
            os.close(fd)


async def kill(pid: int) -> None:
    """SIGKILL, and wait for it."""
    os.kill(pid, signal.SIGKILL)
    await has_ended(pid)
