"""`frontd attach` in another container, with servers as they are, and as a side-car."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from tests.processes.house import House, kill, serving
from tests.processes.tenants import (
    ANN,
    COMMAND_OF_OTHERS,
    attached,
    processes,
    tenant,
    until_attached,
    until_waiting,
    words,
    written,
)
from tests.processes.test_attach import wait_for
from tests.wire import app, free_port

SERVERS = """
async def asgi(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
        await send({"type": "http.response.body", "body": b"asgi"})

def wsgi(environ, start):
    start("200 OK", [("Content-Length", "4")])
    return [b"wsgi"]
"""
NODE = "require('http').createServer((_, answer) => answer.end('node')).listen({fd: +process.argv[1]})"

# Another mount, network and pid namespace and another user, with what is in one folder of the tenant's.
INSIDE = (
    'mount --bind "$1" /mnt && shift && cd / && '
    f'exec setpriv --reuid={ANN} --regid=54321 --clear-groups --no-new-privs -- "$@"'
)
UNSHARE = ["unshare", "--mount", "--net", "--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c", INSIDE, "sh"]


def namespaces_missing() -> str:
    """Why a container cannot be played here; empty: it can."""
    if os.geteuid() != 0:
        return "only root can make namespaces"
    if not shutil.which("unshare") or not shutil.which("setpriv"):
        return "unshare and setpriv (util-linux) are not installed"
    done = subprocess.run([*UNSHARE, "/tmp", "true"], capture_output=True, check=False, timeout=20)
    return f"no namespaces here: {done.stderr.decode().strip()}" if done.returncode else ""


def required(reason: str) -> None:
    """Skip for `reason`, if there is one; in CI it is a failure."""
    if reason:
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)


async def test_from_another_container(tmp_path: Path) -> None:
    """Its socket is all that the tenant has: it registers what is its own, and nothing else."""
    required(namespaces_missing())
    inside = [*UNSHARE, str(tmp_path / "shop")]
    async with serving(written(tmp_path)) as house, trio.open_nursery() as nursery:
        own = words("/mnt/s", "--url", "http://*/cart/", command=COMMAND_OF_OTHERS)
        async with tenant([*inside, *own]) as it:
            await it.until_said("attached to the queue shop")
            status, body = await house.get("/cart/1")
            assert status == 200
            (process,) = await processes(house, "shop")
            assert process["user"] == "pool shop"
            assert int(body.split()[0]) < 20, "a pid of another namespace"
            log = await house.remark("audit: attach by pool shop (uid 12345 gid 54321 pid ")
            assert "queue shop, http://*:80/cart/, ok" in log
            foreign = words("/mnt/s", "--url", "http://*/books/", command=COMMAND_OF_OTHERS)
            async with tenant([*inside, *foreign]) as other:
                assert await other.ended() == 1
                assert "http://*:80/books/ is reserved for pool books, not for pool shop" in other.said
            await kill(process["pid"])  # the first of its namespace, which ends with it
        await until_attached(house, "shop", 0)
        answers: list[tuple[int, bytes]] = []
        nursery.start_soon(wait_for, house, "/cart/2", answers)
        await until_waiting(house, "shop", 1)
        async with tenant([*inside, *own]) as it:
            await house.until(lambda: len(answers) == 1)
            assert answers[0][0] == 200
            (process,) = await processes(house, "shop")
            os.kill(process["pid"], signal.SIGTERM)  # unshare itself lets no signal through
            await it.ended()


def server(name: str, where: Path) -> list[str]:
    """The command of a server that takes a listening socket."""
    python, folder = [sys.executable, "-m"], str(where)
    if name == "node":
        required("" if shutil.which("node") else "node is not installed")
        return ["node", "-e", NODE, "{fd}"]
    return {
        "uvicorn": [*python, "uvicorn", "--fd", "{fd}", "--app-dir", folder, "servers:asgi"],
        "hypercorn": [*python, "hypercorn", "--bind", "fd://{fd}", "servers:asgi"],
        "gunicorn": [*python, "gunicorn", "--bind", "fd://{fd}", "--chdir", folder, "servers:wsgi"],
        "uvicorn on a path": [*python, "uvicorn", "--uds", "{socket}", "--app-dir", folder, "servers:asgi"],
    }[name]


async def serves(house: House, name: str) -> None:
    """That `name` serves what is asked for before it is there, and afterwards, and leaves no trace."""
    (house.where / "servers.py").write_text(SERVERS)
    command = words(house.where / "shop/s", command=server(name, house.where))
    environ = {"PYTHONPATH": f"{house.where}:{os.getcwd()}", "HOME": str(house.where)}
    async with tenant(command, **environ) as it:
        for _ in range(3):
            status, body = await house.get("/")
            assert (status, body) == (200, {"node": b"node", "gunicorn": b"wsgi"}.get(name, b"asgi")), it.said
        await it.until_said("attached to the queue shop")
        await it.end()
    assert await processes(house, "shop") == []


async def test_servers_as_they_are(tmp_path: Path) -> None:
    async with serving(written(tmp_path)) as house:
        for name in ("uvicorn", "hypercorn", "gunicorn", "uvicorn on a path"):
            await serves(house, name)


async def test_node_as_it_is(tmp_path: Path) -> None:
    server("node", tmp_path)
    async with serving(written(tmp_path)) as house:
        await serves(house, "node")


async def test_a_side_car(tmp_path: Path) -> None:
    """It is attached while its app takes connections, and only then."""
    port = free_port()
    car = words(tmp_path / "shop/s", "--url", "http://*/cart/", to=f"http://127.0.0.1:{port}")
    async with serving(written(tmp_path)) as house, tenant(car) as it, trio.open_nursery() as nursery:
        answers: list[tuple[int, bytes]] = []
        nursery.start_soon(wait_for, house, "/cart/1", answers)
        await until_waiting(house, "shop", 1)
        async with app(port=port) as one:
            await house.until(lambda: answers == [(200, b"ok")])
            assert await house.get("/cart/2") == (200, b"ok")
            assert b"\r\nX-Forwarded-For: 127.0.0.1\r\n" in one.heads[-1]
            (control,) = house.processes("control_process")
            await kill(control)
            assert await house.get("/cart/3") == (200, b"ok")
            await it.until_said("attached again to the queue shop")
        nursery.start_soon(wait_for, house, "/cart/4", answers)
        await it.until_said("does not answer; detached until it does")
        await until_waiting(house, "shop", 1)
        async with app(port=port):
            await house.until(lambda: len(answers) == 2)
            assert answers[1] == (200, b"ok")
            assert await it.end() == 0
        assert await processes(house, "shop") == []


async def test_a_command_that_cannot_be_started(tmp_path: Path) -> None:
    async with serving(written(tmp_path)):
        async with tenant(words(tmp_path / "shop/s", command=["/no/such/program", "{fd}"])) as it:
            assert await it.ended() == 1
            assert "frontd: /no/such/program cannot be started: No such file or directory" in it.said
        async with attached(tmp_path / "shop/s"):  # its place is free again
            pass
    for wrong in (["true"], ["true", "{fd}", "{socket}"]):
        async with tenant(words(tmp_path / "shop/s", command=wrong)) as it:
            assert await it.ended() == 2
            assert "the command has to say where it listens" in it.said
    async with tenant(words(tmp_path / "nobody", "--patience", "0.1")) as it:
        assert await it.ended() == 4
        assert "no contact with frontd on " in it.said
