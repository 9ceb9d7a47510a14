"""A full queue over two fronts, while the app is not there yet: a thousand wait and are served, one more is refused."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from tests.processes.house import House, serving, settings
from tests.wire import OK, Line, app, free_port

LIMIT = 1000
NEEDED = 3000  # open files, here and in a front that has all of the connections
WAVE = 100  # requests that come together: who of them is first is nobody's business


class Clerk:
    """An app that answers one at a time, and notes who asked in which order and how many at once."""

    def __init__(self) -> None:
        self.order: list[int] = []
        self.now = self.most = 0

    async def __call__(self, line: Line) -> None:
        while head := await line.head():
            self.now += 1
            self.most = max(self.most, self.now)
            self.order.append(int(head.split(b" ")[1][1:]))
            await trio.lowlevel.checkpoint()
            self.now -= 1
            await line.send(OK)


def sockets_of(pid: int) -> set[str]:
    """The inodes of a process's sockets (proc(5))."""
    found = set()
    for entry in os.scandir(f"/proc/{pid}/fd"):
        try:
            found.add(os.readlink(entry.path))
        except OSError:
            continue  # closed meanwhile
    return found


def client_ports(pid: int, port: int) -> set[int]:
    """The ports of the clients whose connections to `port` a process has."""
    mine = sockets_of(pid)
    ports = set()
    rows = [row for table in ("tcp", "tcp6") for row in Path(f"/proc/net/{table}").read_text().splitlines()[1:]]
    for words in map(str.split, rows):
        if words[1].endswith(f":{port:04X}") and f"socket:[{words[9]}]" in mine:
            ports.add(int(words[2].partition(":")[2], 16))
    return ports


def port_of(line: Line) -> int:
    assert isinstance(line.stream, trio.SocketStream)
    return int(line.stream.socket.getsockname()[1])


@contextmanager
def all_files() -> Iterator[None]:
    """This process may open as many files as it ever may; without enough of them the test is skipped by name."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < NEEDED:
        say = f"{LIMIT} connections need a hard limit of {NEEDED} open files, which is {hard} here"
        if os.environ.get("CI"):
            pytest.fail(say, pytrace=False)
        pytest.skip(say)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def waiting(house: House, count: int) -> None:
    await house.until_status(lambda it: bool(it["pools"][0]["queue"]["length"] == count))


async def test_a_thousand_wait_for_an_app_and_one_more_is_refused_at_once(tmp_path: Path) -> None:
    port, clerk = free_port(), Clerk()
    path = settings(tmp_path, f"http://127.0.0.1:{port}")
    path.write_text(path.read_text().replace('"]}', f'"], concurrency: 1, queue: {{limit: {LIMIT}, wait: 60s}}}}'))
    with all_files():
        await played(path, port, clerk)


async def played(path: Path, port: int, clerk: Clerk) -> None:
    async with serving(path) as house:
        lines: list[Line] = []
        for number in range(LIMIT):
            line = await house.line()
            await line.send(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % number)
            lines.append(line)
            if len(lines) % WAVE == 0:
                await waiting(house, len(lines))
        fronts = await house.fronts()
        of = [client_ports(pid, house.ports[0]) for pid in fronts]
        for _ in range(8):  # some of them at each front
            began = trio.current_time()
            answer, body = await house.get("/9999")
            assert (answer, b"Reason: QueueFull" in body) == (503, True)
            assert trio.current_time() - began < 5  # of 60
        await waiting(house, LIMIT)
        with trio.fail_after(50):
            async with app(clerk, port=port):
                for line in lines:
                    assert (await line.message())[1] == b"ok"
        assert sorted(clerk.order) == list(range(LIMIT))
        assert clerk.most == 1
        for ports in of:  # first come first served, within a front
            mine = {number for number, line in enumerate(lines) if port_of(line) in ports}
            waves = [number // WAVE for number in clerk.order if number in mine]
            assert len(waves) > LIMIT // 5, [len(one) for one in of]
            assert waves == sorted(waves)
        status = await house.status()
        assert status["reasons"] == {"QueueFull": 8}
        for line in lines:
            await line.close()
