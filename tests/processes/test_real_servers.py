"""The servers that people run their apps with, as `workers:` of a pool."""

from __future__ import annotations

import ipaddress
import json
import os
import re
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from websockets.sync.client import connect

from frontd.processes.frontd_app import client_of
from tests.processes.house import House, family, family_of, has_ended, kill, serving, started
from tests.wire import Line

HERE = Path(__file__).parent
BIN = Path(sys.executable).parent
ASGI, WSGI = "app: asgi:real_asgi:app", "app: wsgi:real_wsgi:app\n      concurrency: 8"
SERVERS = {  # what stands in the configuration; ONLY is a folder with this one program
    "uvicorn": ASGI,
    "hypercorn": ASGI,
    "gunicorn": WSGI,
    "uvicorn command": f'command: [{BIN}/uvicorn, "real_asgi:app", --fd, "{{fd}}"]',
    "granian": f'command: [{BIN}/granian, --interface, asgi, --uds, "{{socket}}", "real_asgi:app"]',
    "node": f'command: [node, {HERE}/real_node.js, "{{fd}}"]',
}
PRESETS = ("uvicorn", "hypercorn", "gunicorn")
BEHIND_A_PROXY = ("X-Forwarded-For: 192.0.2.66, 203.0.113.9", "X-Forwarded-Proto: https")
UPLOAD = 8_000_000  # bytes


def written(where: Path, server: str, *, more: str = "", environment: str = "") -> Path:
    """A configuration with one front and one worker of `server`."""
    if server in PRESETS:
        (where / "bin").mkdir(exist_ok=True)
        (where / "bin" / server).symlink_to(BIN / server)
        environment += f", PATH: {where}/bin"
    path = where / "frontd.yaml"
    path.write_text(
        f"""
{family_of(where, fronts=1, drain="8s")}
trusted_proxies: [127.0.0.0/8]
sites: {{main: {{urls: ["http://*/"], routes: {{/: app}}}}}}
pools:
  app:
    workers:
      {SERVERS[server]}
      directory: {HERE}
      environment: {{LIFE: "{where}/life", GO: "{where}/go", HOME: "{where}"{environment}}}
      {more}
"""
    )
    return path


@asynccontextmanager
async def pool(where: Path, server: str, **more: str) -> AsyncIterator[House]:
    if server == "node" and shutil.which("node") is None:
        assert "CI" not in os.environ, "node is not installed"
        pytest.skip("node is not installed")
    async with serving(written(where, server, **more)) as house:
        yield house


@asynccontextmanager
async def line_of(house: House) -> AsyncIterator[Line]:
    line = await house.line()
    try:
        yield line
    finally:
        await trio.aclose_forcefully(line.stream)


async def said(house: House, *fields: str) -> dict[str, Any]:
    """What the app says of a request."""
    async with line_of(house) as line:
        head, body = await line.get("/", "Connection: close", *fields)
    assert head.startswith(b"HTTP/1.1 200 "), body
    found = json.loads(body)
    assert isinstance(found, dict)
    return found


def worker_of(pid: int) -> list[int]:
    """All processes of the worker whose app is `pid`, the first one first: they share its session (proc(5))."""
    leader = os.getsid(pid)
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                words = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it has just ended
            if int(words[3]) == leader and words[0] != "Z":
                found.append(int(folder.name))
    return sorted(found, key=lambda one: one != leader)


@pytest.mark.parametrize(
    ("hops", "client"),
    [
        ("", ""),
        ("203.0.113.9", "203.0.113.9"),
        ("192.0.2.66, 203.0.113.9, 10.0.0.1", "203.0.113.9"),
        ("10.0.0.2, 10.0.0.1", "10.0.0.2"),
        ("[2001:db8::1]:443, 10.0.0.1", "2001:db8::1"),
        ("203.0.113.9:5000, ::ffff:10.0.0.1", "203.0.113.9"),
        ("203.0.113.9, _hidden, 10.0.0.1", "unknown"),
        ("203.0.113.9, , 10.0.0.1", "203.0.113.9"),
    ],
)
def test_the_client_is_the_rightmost_address_that_is_not_trusted(hops: str, client: str) -> None:
    assert client_of(hops, [ipaddress.ip_network("10.0.0.0/8")]) == client


class Clients:
    """Four of them ask for ``/`` again and again, each on a connection of its own; `failed` should stay empty."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.failed: list[object] = []
        self.pids: list[int] = []

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(self._client)

    async def _client(self) -> None:
        while True:
            try:
                self.pids.append((await said(self.house))["pid"])
            except (OSError, AssertionError) as error:
                self.failed.append(error)

    async def until_another(self) -> int:
        """Wait until a process answers that has not answered until now."""
        known, at = set(self.pids), len(self.pids)
        await self.house.until(lambda: set(self.pids[at:]) - known != set())
        return next(pid for pid in self.pids[at:] if pid not in known)


@pytest.mark.parametrize("server", SERVERS)
async def test_no_get_fails_while_a_server_is_killed_and_recycled(tmp_path: Path, server: str) -> None:
    """A server's whole life: it starts on demand, is killed, is recycled while it streams, and ends with the master."""
    async with pool(tmp_path, server) as house:
        seen = await said(house, *BEHIND_A_PROXY)
        if server in PRESETS:
            assert (seen["client"], seen["scheme"]) == ("203.0.113.9", "https")
        async with line_of(house) as line:
            head = f"POST /upload HTTP/1.1\r\nHost: a.test\r\nContent-Length: {UPLOAD}\r\n\r\n"
            await line.send(head.encode() + bytes(UPLOAD))
            assert json.loads((await line.message())[1])["bytes"] == UPLOAD
        if "asgi" in SERVERS[server]:
            assert await trio.to_thread.run_sync(echoed, house.ports[0], "hello") == "hello"
        async with trio.open_nursery() as nursery:
            clients = Clients(house)
            nursery.start_soon(clients.run)
            second = await killed(house, clients, seen["pid"])
            await recycled(house, clients, second)
            nursery.cancel_scope.cancel()
        assert clients.failed == []
        if "asgi" in SERVERS[server]:
            life = (tmp_path / "life").read_text()
            assert f"lifespan.shutdown {second}\n" in life
            assert f"lifespan.shutdown {seen['pid']}\n" not in life
        left = worker_of((await said(house))["pid"])
        house.child.kill()
        await house.child.wait()
        for pid in left:
            await has_ended(pid)


def echoed(port: int, text: str) -> str | bytes:
    """What the app sends back over a WebSocket."""
    with connect(f"ws://127.0.0.1:{port}/echo", proxy=None) as socket:
        socket.send(text)
        return socket.recv(timeout=10)


async def killed(house: House, clients: Clients, pid: int) -> int:
    """Kill the worker whose app is `pid`; the pid of the app that answers then."""
    await house.until(lambda: len(clients.pids) >= 20)
    left = worker_of(pid)
    await kill(left[0])
    another = await clients.until_another()
    for one in left:
        await has_ended(one)
    return another


async def recycled(house: House, clients: Clients, pid: int) -> None:
    """Replace the worker whose app is `pid` while it streams, to the end of which it stays."""
    async with line_of(house) as stream:
        await stream.send(b"GET /events HTTP/1.1\r\nHost: a.test\r\n\r\n")
        await stream.read_until(b"data: 1 of %d" % pid)
        old = worker_of(pid)
        await house.control("POST /pool/recycle?name=app")
        await clients.until_another()
        stream.buffer = b""
        await stream.read_until(b" of %d" % pid)
        (house.where / "go").touch()
        await stream.read_until(b"data: the end")
    for one in old:
        await has_ended(one)


@pytest.mark.parametrize("server", ["gunicorn", "granian"])  # those with processes of their own
async def test_nothing_is_left_of_a_server_when_frontd_is_stopped(tmp_path: Path, server: str) -> None:
    async with pool(tmp_path, server) as house:
        left = worker_of((await said(house))["pid"])
        assert len(left) > 1
        house.child.terminate()
        assert await house.end() == 0
        for pid in left:
            await has_ended(pid)


async def test_a_guard_that_dies_is_replaced_with_the_next_worker(tmp_path: Path) -> None:
    def guards() -> list[int]:
        return [pid for pid, words in family(house.child.pid).items() if "guard.py" in " ".join(words)]

    async with pool(tmp_path, "granian") as house:
        before = await said(house)
        (guard,) = guards()
        await kill(guard)
        await house.control("POST /pool/recycle?name=app")
        await has_ended(before["pid"])
        await house.until(lambda: guards() not in ([], [guard]))
        left = worker_of((await said(house))["pid"])
        house.child.kill()
        await house.child.wait()
        for pid in left:
            await has_ended(pid)


async def test_without_a_server_frontd_says_which_would_do(tmp_path: Path) -> None:
    path = written(tmp_path, "uvicorn")
    (tmp_path / "bin" / "uvicorn").unlink()
    async with started(path) as house:
        words = await house.rest()
        assert await house.end() == 3
    assert "pools.app.workers: asgi:real_asgi:app needs uvicorn or hypercorn, and there is none on the path" in words
    assert "pip install uvicorn" in words


async def test_other_trusted_proxies_replace_the_workers_of_a_preset(tmp_path: Path) -> None:
    async with pool(tmp_path, "uvicorn") as house:
        before = await said(house, *BEHIND_A_PROXY)
        path = tmp_path / "frontd.yaml"
        path.write_text(path.read_text().replace("127.0.0.0/8]", "127.0.0.0/8, 203.0.113.0/24]"))
        await house.control("POST /reload")
        await has_ended(before["pid"])
        assert (await said(house, *BEHIND_A_PROXY))["client"] == "192.0.2.66"


@pytest.mark.parametrize(("word", "why"), [("{fd}", "does not answer OPTIONS *"), ("{port}", "does not listen")])
async def test_a_program_that_does_not_serve_is_told_apart(tmp_path: Path, word: str, why: str) -> None:
    path = written(tmp_path, "node", more="start_limit: 1.5s")
    path.write_text(re.sub("command: .*", f'command: [sh, -c, "exec sleep 1000 # {word}"]', path.read_text()))
    async with serving(path) as house, trio.open_nursery() as nursery:
        nursery.start_soon(house.get)
        await house.remark(f"was not ready within 1.5 s (it {why}); it is killed")
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("server", "app", "why"),
    [
        ("uvicorn", "asgi:nosuch:app", "there is no module nosuch in"),
        ("hypercorn", "asgi:real_asgi:nosuch", "real_asgi has no nosuch"),
        ("gunicorn", "wsgi:real_broken:app", "SystemExit: it is broken"),  # an exit, which gunicorn would try for ever
    ],
)
async def test_an_app_that_cannot_be_loaded_is_one_failure_and_a_sentence(
    tmp_path: Path, server: str, app: str, why: str
) -> None:
    path = written(tmp_path, server, more="rapid_fail: {failures: 1}")
    path.write_text(re.sub("app: [aw]sgi:.*", f"app: {app}", path.read_text()))
    async with serving(path) as house:
        assert (await house.get())[0] == 503
        log = await house.remark("event 5002")
        assert why in log
        assert "(exit code 3)" in log
