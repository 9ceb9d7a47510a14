"""`run_front` as a process of its own: its ready line, its signals, its end, and what it leaves behind: nothing."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.wire import OK, Line, app, free_port

PROGRAM = """
import sys
from pathlib import Path
from frontd.config.load import load
from frontd.processes.solo import run_front
path = Path(sys.argv[1])
sys.exit(run_front(load(path), lambda: load(path), lambda line: print(line, file=sys.stderr, flush=True), "9.9"))
"""


class Process:
    """A front as a child process, in the folder `where`."""

    def __init__(self, where: Path, child: trio.Process) -> None:
        self.where = where
        self.child = child
        self.words = ""
        self.ports: list[int] = []

    async def until_ready(self) -> None:
        assert self.child.stderr is not None
        with trio.fail_after(20):
            while "frontd ready: " not in self.words or not self.words.endswith("\n"):
                data = await self.child.stderr.receive_some(4096)
                assert data, f"it ended before it was ready: {self.words}"
                self.words += data.decode()
        self.ports = [int(port) for port in re.findall(r" on [^ ]*:(\d+)", self.words)]

    async def line(self, port: int = 0) -> Line:
        return Line(await trio.open_tcp_stream("127.0.0.1", port or self.ports[0]))

    async def control(self, request: str) -> Any:
        async with await trio.open_unix_socket(self.where / "control.sock") as stream:
            line = Line(stream)
            return json.loads((await line.ask(f"{request} HTTP/1.1\r\nHost: x\r\n\r\n".encode()))[1])

    async def remark(self, text: str, log: str = "error.log") -> str:
        """Wait for `text` in a log, which a thread writes; the whole log."""
        path = self.where / log
        with trio.fail_after(10):
            while True:
                if path.exists() and text in (content := path.read_text()):
                    return content
                await trio.sleep(0.005)  # another process writes it

    async def end(self) -> int:
        with trio.fail_after(10):
            return await self.child.wait()


def settings(where: Path, target: str, listen: str = "http: {port: 0}", extra: str = "") -> Path:
    path = where / "frontd.yaml"
    path.write_text(
        f"""
state_dir: {where}
control: {{socket: {where}/control.sock}}
log: {{access: {{to: "{where}/access.log", format: json}}, error: {{to: "{where}/error.log"}}}}
listen: {{{listen}}}
timeouts: {{drain: 8s}}
{extra}
sites: {{main: {{urls: ["http://*/"], routes: {{/: app}}}}}}
pools: {{app: {{targets: ["{target}"]}}}}
"""
    )
    return path


@asynccontextmanager
async def running(path: Path) -> AsyncIterator[Process]:
    """The front of the configuration at `path`, ready; killed at the end when it still runs."""
    child = await trio.lowlevel.open_process(
        [sys.executable, "-W", "error", "-c", PROGRAM, str(path)], stderr=subprocess.PIPE
    )
    it = Process(path.parent, child)
    try:
        await it.until_ready()
        yield it
    finally:
        if child.returncode is None:
            child.kill()
        with trio.CancelScope(shield=True):
            await child.wait()
            assert child.stderr is not None
            await child.stderr.aclose()


class Slow:
    """An app that answers when it is told to."""

    def __init__(self) -> None:
        self.asked, self.answer = trio.Event(), trio.Event()

    async def script(self, line: Line) -> None:
        while await line.head():
            self.asked.set()
            await self.answer.wait()
            await line.send(OK)


async def test_a_life_from_ready_to_drained(tmp_path: Path) -> None:
    slow = Slow()
    async with app() as it, app(slow.script) as other:
        path = settings(tmp_path, it.url, "http: {port: 0}, second: {kind: http, address: 127.0.0.1, port: 0}")
        async with running(path) as front:
            assert re.fullmatch(r"frontd ready: http on \*:\d+, http on 127\.0\.0\.1:\d+ \(1 site\)\n", front.words), (
                front.words
            )
            idle = await front.line()
            assert (await idle.get())[1] == b"ok"
            status = await front.control("GET /status")
            assert (status["pid"], status["version"], status["generation"]) == (front.child.pid, "9.9", 1)

            # SIGHUP: a mistake changes nothing, a correction does
            path.write_text(path.read_text().replace("targets", "tragets"))
            front.child.send_signal(signal.SIGHUP)
            assert "tragets" in await front.remark("reload refused")
            assert (await idle.get())[1] == b"ok"
            settings(tmp_path, other.url, "http: {port: 0}, second: {kind: http, address: 127.0.0.1, port: 0}")
            front.child.send_signal(signal.SIGHUP)
            await front.remark("reloaded: generation 2: pool app changed")
            assert (await front.control("GET /status"))["last_reload"]["ok"] is True

            # SIGUSR1: the logs were moved away, the next line goes to a new file
            (tmp_path / "access.log").rename(tmp_path / "access.log.moved")
            front.child.send_signal(signal.SIGUSR1)
            await front.remark("", "access.log")
            line = await front.line()
            assert (await line.get("/%zz"))[0].startswith(b"HTTP/1.1 400 ")
            await line.close()
            assert '"path":"/%zz"' in await front.remark("/%zz", "access.log")

            # SIGTERM: what runs is finished, what is idle ends, nobody new gets in
            busy = await front.line()
            await busy.send(b"GET /last HTTP/1.1\r\nHost: a\r\n\r\n")
            await slow.asked.wait()
            front.child.send_signal(signal.SIGTERM)
            assert await idle.read_to_end() == b""
            await idle.close()
            with pytest.raises(OSError, match="failed"):
                await front.line()
            async with await trio.open_unix_socket(tmp_path / "control.sock") as stream:
                assert (await Line(stream).get("/readyz"))[0].startswith(b"HTTP/1.1 503 ")
            assert front.child.returncode is None
            slow.answer.set()
            answer = await busy.read_to_end()
            assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
            assert b"\r\nConnection: close\r\n" in answer
            assert answer.endswith(b"\r\n\r\nok")
            await busy.close()
            assert await front.end() == 0
        assert not (tmp_path / "control.sock").exists()
        assert "draining: " in (tmp_path / "error.log").read_text()
        lines = [json.loads(entry) for entry in (tmp_path / "access.log").read_text().splitlines()]
        assert (lines[-1]["path"], lines[-1]["status"], lines[-1]["generation"]) == ("/last", 200, 2)


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_ends_it_at_once(tmp_path: Path, second: signal.Signals) -> None:
    slow = Slow()
    async with app(slow.script) as it, running(settings(tmp_path, it.url)) as front:
        busy = await front.line()
        await busy.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        await slow.asked.wait()
        front.child.send_signal(signal.SIGTERM)
        await front.remark("draining: 1 connections")
        front.child.send_signal(second)
        with trio.fail_after(2):
            assert await front.child.wait() == 0
        assert await busy.read_to_end() in (b"", b"<reset>")
        await busy.close()
        assert not (tmp_path / "control.sock").exists()


async def test_signals_while_it_ends_change_nothing(tmp_path: Path) -> None:
    """What nobody listens for any more must not take the exit code, the last lines or the socket file along."""
    for storm in ([signal.SIGHUP] * 5, [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT]):
        async with running(settings(tmp_path, "http://127.0.0.1:1")) as front:
            front.child.send_signal(signal.SIGTERM)
            with trio.fail_after(5):
                while front.child.returncode is None:
                    for number in storm:
                        front.child.send_signal(number)
                    with trio.move_on_after(0.001):
                        await front.child.wait()
            assert front.child.returncode == 0
            assert not (tmp_path / "control.sock").exists()


async def test_killed_it_comes_back_at_the_same_place(tmp_path: Path) -> None:
    listen = f"http: {{address: 127.0.0.1, port: {free_port()}, public_port: 80}}"
    path = settings(tmp_path, "http://127.0.0.1:1", listen)
    async with running(path) as front:
        ports = front.ports
        front.child.kill()
        assert await front.end() == -signal.SIGKILL
    assert (tmp_path / "control.sock").exists()
    async with running(path) as front:
        assert front.ports == ports
        assert (await front.control("GET /status"))["ready"] is True
        front.child.terminate()
        assert await front.end() == 0


async def test_the_health_listener(tmp_path: Path) -> None:
    port = free_port()
    path = settings(tmp_path, "http://127.0.0.1:1", extra=f'health: {{listen: "127.0.0.1:{port}"}}')
    async with running(path) as front:
        line = await front.line(port)
        assert (await line.get("/readyz"))[1] == b"ok\n"
        assert (await line.get("/status"))[0].startswith(b"HTTP/1.1 404 ")
        await line.close()
        front.child.terminate()
        assert await front.end() == 0
    socket.create_server(("127.0.0.1", port)).close()


def serve(path: Path) -> subprocess.CompletedProcess[str]:
    """`frontd serve` that is expected to end by itself."""
    environ = {**os.environ, "FRONTD_STATE_DIR": str(path.parent)}
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "frontd", "serve", "-c", str(path)],
        capture_output=True, text=True, check=False, timeout=20, env=environ,
    )  # fmt: skip


async def test_silent_strangers_do_not_starve_the_health_listener(tmp_path: Path) -> None:
    port = free_port()
    path = settings(tmp_path, "http://127.0.0.1:1", extra=f'health: {{listen: "127.0.0.1:{port}"}}')
    async with running(path) as front:
        silent = [await front.line(port) for _ in range(200)]
        asking = await front.line(port)
        with trio.fail_after(5):
            head, body = await asking.ask(b"GET /readyz HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (head[:15], body) == (b"HTTP/1.1 200 OK", b"ok\n")
        for line in [*silent, asking]:
            await line.close()


@pytest.mark.parametrize("what", ["listener", "health", "control"])
def test_what_is_taken_is_said_and_nothing_is_left_behind(tmp_path: Path, what: str) -> None:
    free, control = free_port(), tmp_path / "control.sock"
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.socket(socket.AF_UNIX) as other:
        port = taken.getsockname()[1]
        listen = f"http: {{address: 127.0.0.1, port: {free}, public_port: 80}}"
        extra = ""
        if what == "listener":
            listen += f", second: {{kind: http, address: 127.0.0.1, port: {port}}}"
            said = f"listener second: 127.0.0.1:{port}: Address already in use (another program has it)"
        elif what == "health":
            extra = f'health: {{listen: "127.0.0.1:{port}"}}'
            said = f"listener health: 127.0.0.1:{port}: Address already in use (another program has it)"
        else:
            other.bind(str(control))
            other.listen()
            said = f"control socket {control}: another frontd answers there (set control.socket)"
        done = serve(settings(tmp_path, "http://127.0.0.1:1", listen, extra))
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert "frontd ready" not in done.stderr
    socket.create_server(("127.0.0.1", free)).close()
    assert control.exists() == (what == "control")
