"""A family whose pools processes attach to, and `frontd attach` as a tenant starts it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from tests.processes.house import PATIENCE, House, family_of

APP = Path(__file__).with_name("worker_app.py")
COMMAND = (sys.executable, str(APP), "fd:{fd}")
# for other users, to whom this interpreter may not be open; the app needs the standard library only
PYTHON = next((path for path in ("/usr/bin/python3", "/usr/local/bin/python3") if Path(path).exists()), sys.executable)
COMMAND_OF_OTHERS = (PYTHON, str(APP), "fd:{fd}")
ANN = 12345  # a uid without a name


def written(where: Path, *, more: str = "", fronts: int = 1, wait: str = "30s") -> Path:
    """A configuration with two tenants, and a prefix that is Ann's."""
    path = where / "frontd.yaml"
    path.write_text(
        f"""
{family_of(where, fronts=fronts, drain="2s")}
sites: {{main: {{urls: ["http://*/"], routes: {{/: shop}}}}}}
pools:
  shop: {{attach: {{socket: {where}/shop/s, mode: "0666"}}, queue: {{wait: {wait}}}}}
  books: {{attach: {{socket: {where}/books/s}}, queue: {{wait: 200ms}}}}
urlacl:
  - {{url: "http://*/cart/", pool: shop}}
  - {{url: "http://*/books/", pool: books}}
  - {{url: "http://*/ann/", uid: {ANN}, delegate: true}}
{more}
"""
    )
    return path


def words(control: Path | str, *options: str, command: Sequence[str] = COMMAND, to: str = "") -> list[str]:
    """The command line of `frontd attach`."""
    start = [sys.executable, "-W", "error", "-m", "frontd", "attach", "--control", str(control), *options]
    return [*start, "--to", to] if to else [*start, "--", *command]


class Tenant:
    """A `frontd attach` that runs; `said` is what it has written to stderr."""

    def __init__(self, child: trio.Process) -> None:
        self.child = child
        self.said = ""

    async def until_said(self, text: str) -> None:
        assert self.child.stderr is not None
        with trio.fail_after(PATIENCE):
            while text not in self.said:
                data = await self.child.stderr.receive_some(4096)
                assert data, f"it ended before it said {text!r}: {self.said}"
                self.said += data.decode()

    async def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal, and wait; the exit code, and the rest of what it says."""
        self.child.send_signal(number)
        return await self.ended()

    async def ended(self) -> int:
        assert self.child.stderr is not None
        with trio.fail_after(PATIENCE):
            while data := await self.child.stderr.receive_some(4096):
                self.said += data.decode()
            return await self.child.wait()


@asynccontextmanager
async def tenant(command: Sequence[str], **environ: str) -> AsyncIterator[Tenant]:
    """A process of a tenant; killed at the end if it still runs."""
    child = await trio.lowlevel.open_process(command, stderr=-1, env={**os.environ, **environ})
    it = Tenant(child)
    try:
        yield it
    finally:
        with trio.CancelScope(shield=True):
            if child.returncode is None:
                child.terminate()
                with trio.move_on_after(PATIENCE):
                    await it.ended()
            if child.returncode is None:
                child.kill()
                await child.wait()
            assert child.stderr is not None
            await child.stderr.aclose()


@asynccontextmanager
async def attached(control: Path | str, *options: str, **environ: str) -> AsyncIterator[Tenant]:
    """A `frontd attach` that is attached."""
    async with tenant(words(control, *options), **environ) as it:
        await it.until_said("frontd attach: attached to the queue")
        yield it


async def queues(house: House) -> dict[str, Any]:
    """What ``GET /queues`` says, by name."""
    return {one["name"]: one for one in (await house.control("GET /queues"))["queues"]}


async def processes(house: House, queue: str) -> list[Any]:
    found = (await queues(house))[queue]["processes"]
    assert isinstance(found, list)
    return found


async def until_attached(house: House, queue: str, number: int) -> None:
    with trio.fail_after(PATIENCE):
        while [one["state"] for one in await processes(house, queue)] != ["attached"] * number:  # noqa: ASYNC110
            await trio.sleep(0.02)


async def until_waiting(house: House, queue: str, number: int) -> None:
    """Until so many requests wait in a queue."""

    def waiting(status: dict[str, Any]) -> bool:
        return any(one["name"] == queue and one["queue"]["length"] == number for one in status["pools"])

    await house.until_status(waiting)


async def pid_of(house: House, path: str = "/") -> int:
    """The pid of the app that answers."""
    status, body = await house.get(path)
    assert status == 200, body
    return int(body.split()[0])
