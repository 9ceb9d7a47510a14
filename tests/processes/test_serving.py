"""A family from its ready line to its end: signals, status, limits over all fronts, and starts that fail."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner

from frontd.cli.live import status_text
from frontd.cli.root import cli
from tests.net.pki import Pki
from tests.processes.house import command, family, kill, serving, settings, started
from tests.wire import OK, Line, app, free_port


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
    health = free_port()
    async with app() as it, app(slow.script) as other:
        extra = f'health: {{listen: "127.0.0.1:{health}"}}'
        path = settings(tmp_path, it.url, extra=extra)
        async with serving(path) as house:
            assert re.search(r"^frontd ready: http on \*:\d+ \(1 site, 2 fronts\)\n\Z", house.words, re.MULTILINE)
            assert (await house.get("/readyz", port=health)) == (200, b"ok\n")
            idle = await house.line()
            assert (await idle.get())[1] == b"ok"
            status = await house.status()
            assert (status["pid"], status["generation"], status["ready"]) == (house.child.pid, 1, True)
            assert status["connections"] == 1

            # SIGHUP: a mistake changes nothing, a correction does
            path.write_text(path.read_text().replace("targets", "tragets"))
            house.child.send_signal(signal.SIGHUP)
            assert "tragets" in await house.remark("reload refused")
            settings(tmp_path, other.url, extra=extra)
            house.child.send_signal(signal.SIGHUP)
            await house.remark("reloaded: generation 2: pool app changed")

            # SIGUSR1: the logs were moved away, the next line goes to a new file
            (tmp_path / "access.log").rename(tmp_path / "access.log.moved")
            house.child.send_signal(signal.SIGUSR1)
            await house.remark("", "access.log")
            assert (await house.get("/%zz"))[0] == 400
            await house.remark("/%zz", "access.log")

            # SIGTERM: what runs is finished, what is idle ends, nobody new gets in
            busy = await house.line()
            await busy.send(b"GET /last HTTP/1.1\r\nHost: a\r\n\r\n")
            await slow.asked.wait()
            house.child.send_signal(signal.SIGTERM)
            assert await idle.read_to_end() == b""
            await idle.close()
            with trio.fail_after(10):
                while True:
                    try:
                        await (await house.line()).close()
                    except OSError:
                        break
            assert (await house.get("/readyz", port=health)) == (503, b"draining\n")
            slow.answer.set()
            answer = await busy.read_to_end()
            assert b"\r\nConnection: close\r\n" in answer
            assert answer.endswith(b"\r\n\r\nok")
            await busy.close()
            assert await house.end() == 0
            assert await house.rest() == ""
        assert not (tmp_path / "control.sock").exists()
        lines = [json.loads(entry) for entry in (tmp_path / "access.log").read_text().splitlines()]
        assert (lines[-1]["path"], lines[-1]["status"], lines[-1]["generation"]) == ("/last", 200, 2)


async def test_every_process_may_be_told_to_end(tmp_path: Path) -> None:
    """As systemd does by default, which signals all processes of a service: it is a drain all the same."""
    slow = Slow()
    async with app(slow.script) as it, serving(settings(tmp_path, it.url)) as house:
        busy = await house.line()
        await busy.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        await slow.asked.wait()
        for pid in [*family(house.child.pid), house.child.pid]:
            os.kill(pid, signal.SIGTERM)
        await house.remark("draining: 1 connections")
        assert (await house.status())["state"] == "draining"
        slow.answer.set()
        assert (await busy.read_to_end()).endswith(b"\r\n\r\nok")
        await busy.close()
        assert await house.end() == 0


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_ends_it_at_once(tmp_path: Path, second: signal.Signals) -> None:
    slow = Slow()
    async with app(slow.script) as it, serving(settings(tmp_path, it.url)) as house:
        busy = await house.line()
        await busy.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        await slow.asked.wait()
        house.child.send_signal(signal.SIGTERM)
        await house.remark("draining: 1 connections")
        house.child.send_signal(second)
        assert await house.end() == 0
        assert await busy.read_to_end() in (b"", b"<reset>")
        await busy.close()
        assert not (tmp_path / "control.sock").exists()


async def test_the_status_is_of_all_fronts(tmp_path: Path) -> None:
    async with app() as it, serving(settings(tmp_path, it.url)) as house:
        lines = [await house.line() for _ in range(24)]
        for line in lines:
            assert (await line.get())[1] == b"ok"
        status = await house.status()
        fronts = status["fronts"]
        assert [one["index"] for one in fronts] == [0, 1]
        assert all(one["requests"] and one["connections"] and one["memory"] > 1_000_000 for one in fronts)
        assert sum(one["requests"] for one in fronts) == status["sites"][0]["requests"] == 24
        assert sum(one["connections"] for one in fronts) == status["connections"] == 24
        assert status["listeners"][0]["connections"] == 24
        (target,) = status["pools"][0]["targets"]
        assert target["idle"] == it.connections >= 2
        for line in lines:
            await line.close()
        text = status_text(status)
        assert "pid " + str(house.child.pid) in text
        for front in fronts:
            assert re.search(rf"^ +{front['index']} +{front['pid']} +serving +", text, re.MULTILINE), text
        said = CliRunner().invoke(cli, ["status", "--json", "--socket", str(tmp_path / "control.sock")])
        assert len(json.loads(said.stdout)["fronts"]) == 2


async def test_64_connections_are_shared(tmp_path: Path) -> None:
    """In two of three times: while other work of the machine keeps one front waiting the other one serves on."""
    most: list[int] = []
    async with app() as it, serving(settings(tmp_path, it.url)) as house:
        for _ in range(3):
            lines: list[Line] = []

            async def one(lines: list[Line] = lines) -> None:
                lines.append(line := await house.line())
                assert (await line.get())[1] == b"ok"

            async with trio.open_nursery() as nursery:
                for _ in range(64):
                    nursery.start_soon(one)
            shares = [one["connections"] for one in (await house.status())["fronts"]]
            for line in lines:
                await line.close()
            assert sum(shares) == 64
            most.append(max(shares))
            await house.until_status(lambda it: it["connections"] == 0)
    print(f"of 64 connections one front had {most}, load average {os.getloadavg()[0]:.1f}")
    assert sorted(most)[1] <= 40


async def test_limits_hold_for_all_fronts_together(tmp_path: Path) -> None:
    """The sum may exceed the limit by one for every other front."""
    async with app() as it, serving(settings(tmp_path, it.url, extra="limits: {max_connections: 10}")) as house:
        lines, answers = [await house.line() for _ in range(40)], Counter[int]()
        for line in lines:
            try:
                head, _ = await line.get()
            except (trio.BrokenResourceError, EOFError):
                continue
            answers[int(head[9:12] or 0)] += 1
        assert 10 <= answers[200] <= 11, answers
        assert answers[503]
        assert 10 <= (await house.status())["connections"] <= 11
        for pid in await house.fronts():  # what the dead ones had counts no more
            os.kill(pid, signal.SIGKILL)
        for line in lines:
            await trio.aclose_forcefully(line.stream)
        await house.until_status(lambda it: len(it["fronts"]) == 2 and it["ready"])
        assert await house.get() == (200, b"ok")


async def test_sessions_resume_at_any_front(pki: Pki, tmp_path: Path) -> None:
    listen = "https: {port: 0}"
    path = settings(tmp_path, "http://127.0.0.1:1", listen=listen, extra=f"tls: {{certificates: [{pki.entry('a')}]}}")
    path.write_text(path.read_text().replace('urls: ["http://*/"]', 'urls: ["https://*/"]').replace(
        "{/: app}", '{/: {redirect: "https://a.test/x"}}'))  # fmt: skip
    context = ssl.create_default_context(cafile=str(pki.ca))
    session: ssl.SSLSession | None = None
    resumed = 0

    def ask(port: int, held: ExitStack) -> None:
        nonlocal session, resumed
        plain = socket.create_connection(("127.0.0.1", port), 10)
        sock = held.enter_context(context.wrap_socket(plain, server_hostname="a.test", session=session))
        resumed += bool(sock.session_reused)
        sock.sendall(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
        assert sock.recv(4096).startswith(b"HTTP/1.1 30")
        session = sock.session

    async with serving(path) as house:
        with ExitStack() as held:  # all are kept open: a front with more of them than the other leaves the next to it
            for _ in range(41):
                await trio.to_thread.run_sync(ask, house.ports[0], held)
        fronts = (await house.status())["fronts"]
        assert all(one["requests"] for one in fronts), fronts
        assert resumed == 40


@pytest.mark.parametrize("demo", [True, False])
async def test_the_file_of_the_demo_has_no_warnings_of_containers(
    tmp_path: Path, demo: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("container", "podman")
    path = settings(tmp_path, "http://127.0.0.1:1")
    async with started(path, more=["--demo"] if demo else []) as house:
        await house.until_ready()
        assert ("this is the container itself" in house.words) == (not demo)
        assert bool((await house.control("POST /reload"))["warnings"]) == (not demo)


async def test_from_standard_input_there_is_nothing_to_read_again(tmp_path: Path) -> None:
    path = settings(tmp_path, "http://127.0.0.1:1")
    with path.open() as text:
        async with started(Path("-"), where=tmp_path, stdin=text.fileno()) as house:
            await house.until_ready()
            path.unlink()
            said = await house.control("POST /reload")
            assert said["errors"] == ["this frontd was started without a file to read again"]
            await kill(house.processes("control_process")[0])
            assert (await house.status())["generation"] == 1
            house.child.send_signal(signal.SIGHUP)
            await house.remark("SIGHUP: this frontd was started without a file to read again")


# ---------------------------------------------------------------------------------------------------- starts that fail


def serve(path: Path) -> subprocess.CompletedProcess[str]:
    """`frontd serve` that is expected to end by itself."""
    environ = {**os.environ, "FRONTD_STATE_DIR": str(path.parent)}
    return subprocess.run(command(path), capture_output=True, text=True, check=False, timeout=60, env=environ)


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
        done = serve(settings(tmp_path, "http://127.0.0.1:1", listen=listen, extra=extra))
    assert done.returncode == 1
    assert f"frontd: cannot serve: {said}\n" in done.stderr
    assert "Traceback" not in done.stderr
    assert "frontd ready" not in done.stderr
    socket.create_server(("127.0.0.1", free)).close()
    assert control.exists() == (what == "control")


def plugin(where: Path, run: str) -> Path:
    (where / "plugins").mkdir()
    source = f"import os\nimport frontd\nclass It(frontd.Plugin):\n    name = 'it'\n    {run}\n"
    (where / "plugins" / "it.py").write_text(source)
    extra = f"plugins_dir: {where / 'plugins'}"
    return settings(where, "http://127.0.0.1:1", site=", plugins: [it]", extra=extra)


def test_a_plugin_that_cannot_start_ends_the_start(tmp_path: Path) -> None:
    done = serve(plugin(tmp_path, "async def run(self, *, task_status): raise ValueError('no database')"))
    assert done.returncode == 3
    said = f"frontd: {tmp_path / 'frontd.yaml'} cannot be served: plugin it of the site main: ValueError: no database\n"
    assert done.stderr.endswith(said)
    assert not (tmp_path / "control.sock").exists()


def test_fronts_that_die_at_the_start_end_it(tmp_path: Path) -> None:
    done = serve(plugin(tmp_path, "async def run(self, *, task_status): os._exit(7)"))
    assert done.returncode == 1
    assert done.stderr.endswith("frontd: cannot serve: fronts end before they are ready (exit code 7)\n")


def test_settings_that_cannot_travel_are_refused(tmp_path: Path) -> None:
    path = plugin(tmp_path, "class Settings(frontd.Settings):\n        word: object = (lambda: 1)")
    done = serve(path)
    assert done.returncode == 3
    assert "cannot be served: settings of a plugin cannot be handed to another process: " in done.stderr
    assert "Traceback" not in done.stderr


async def test_signals_at_any_moment(tmp_path: Path) -> None:
    """Whenever SIGTERM comes, also before anything serves, it ends with 0 and leaves nothing; others do not end it."""
    path = settings(tmp_path, "http://127.0.0.1:1")
    for pause in (0.3, 0.6, 0.9):
        async with started(path) as house:
            await house.until(lambda: "State:" in Path(f"/proc/{house.child.pid}/status").read_text()
                              and caught(house.child.pid, signal.SIGTERM))  # fmt: skip
            with trio.move_on_after(pause):
                while True:
                    house.child.send_signal(signal.SIGHUP)
                    house.child.send_signal(signal.SIGUSR1)
                    await trio.sleep(0.02)
            assert house.child.returncode is None
            house.child.terminate()
            assert await house.end() == 0
        assert not (tmp_path / "control.sock").exists()


def caught(pid: int, number: int) -> bool:
    """Whether a process handles a signal (proc(5): SigCgt)."""
    found = re.search(r"^SigCgt:\s*(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return found is not None and bool(int(found[1], 16) >> (number - 1) & 1)


# ---------------------------------------------------------------------------------------------------- the master itself


def test_the_master_imports_little() -> None:
    program = "import frontd.cli.serve, frontd.processes.master, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    heavy = {"trio", "pydantic", "yaml", "cryptography", "pluggy", "h11", "ssl", "asyncio"}
    assert not heavy & set(done.stdout.split())
    assert not [name for name in done.stdout.split() if name.startswith(("frontd.config", "frontd.pipeline"))]


ADOPTS = "import ctypes, os, sys; ctypes.CDLL(None).prctl(36, 1, 0, 0, 0); os.execv(sys.argv[1], sys.argv[1:])"


async def test_it_reaps_what_it_inherits(tmp_path: Path) -> None:
    """As PID 1 of a container does, and here because it was made a subreaper (prctl(2), PR_SET_CHILD_SUBREAPER)."""
    flag = tmp_path / "end"
    orphan = f"timeout 60 sh -c 'until [ -e {flag} ]; do sleep 0.05; done' & :"
    run = f'async def run(self, *, task_status): os.system("{orphan}"); task_status.started()'
    async with started(plugin(tmp_path, run), sys.executable, "-c", ADOPTS) as house:
        await house.until_ready()
        assert len(family(house.child.pid)) == 5  # its own three, and an orphan of each front
        flag.touch()
        await house.until(lambda: len(found := family(house.child.pid)) == 3 and [""] not in found.values())
        house.child.terminate()
        assert await house.end() == 0
