"""Ten thousand connections at once, each of them served; one more is told, or reset; all of them go."""

from __future__ import annotations

import os
import re
import resource
import select
import socket
import ssl
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from tests.net.pki import Pki
from tests.processes.house import House, family, serving, settings
from tests.robustness.test_hostile import resident

MANY = 10_000
NEEDED = MANY + 500  # files of this process, which holds the clients
FRONTS = 2
EACH = MANY // FRONTS + 2000  # files of a front, should they share unevenly
GET = b"GET /1k HTTP/1.1\r\nHost: a.test\r\n\r\n"
AT_ONCE = 500  # of clients that wait for an answer
MEMORY = 1.5  # KiB that an idle connection may add
AS_A_TASK = 8.0  # the same with FRONTD_REACTOR=off

pytestmark = pytest.mark.timeout(180)


@contextmanager
def all_files() -> Iterator[None]:
    """This process may open as many files as it ever may; without enough of them the test is skipped by name."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < max(NEEDED, EACH):
        say = f"{MANY} connections need a hard limit of {max(NEEDED, EACH)} open files, which is {hard} here"
        if os.environ.get("CI"):
            pytest.fail(say, pytrace=False)
        pytest.skip(say)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Crowd:
    """Clients in one poll set."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.poll = select.epoll()
        self.socks: dict[int, socket.socket] = {}

    def grow(self, number: int) -> None:
        """Connect so many more."""
        for _ in range(number):
            sock = socket.create_connection(("127.0.0.1", self.port), 20)
            sock.setblocking(False)
            self.socks[sock.fileno()] = sock
            self.poll.register(sock.fileno(), select.EPOLLIN | select.EPOLLRDHUP)

    def ask(self, some: list[socket.socket]) -> None:
        """One request of each, one whole answer for each."""
        left = {sock.fileno(): b"" for sock in some}
        for sock in some:
            assert sock.send(GET) == len(GET)
        until = time.monotonic() + 30
        while left:
            assert time.monotonic() < until, f"{len(left)} were not answered"
            for fd, _ in self.poll.poll(1):
                left[fd] += self.socks[fd].recv(65536)
                assert left[fd].startswith(b"HTTP/1.1 200 OK\r\n"), left[fd][:200]
                if left[fd].partition(b"\r\n\r\n")[2] == b"x" * 1024:
                    del left[fd]

    def ask_all(self) -> None:
        socks = list(self.socks.values())
        for at in range(0, len(socks), AT_ONCE):
            self.ask(socks[at : at + AT_ONCE])

    def close(self) -> None:
        """By resets: ten thousand ports in TIME_WAIT would be missed by what comes next."""
        for sock in self.socks.values():
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()
        self.socks.clear()
        self.poll.close()


def all_memory(pids: list[int]) -> int:
    return sum(map(resident, pids))


def file_limits(pid: int) -> list[str]:
    """The soft and the hard limit of open files of a process (proc(5))."""
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()
    return next(line.split()[3:5] for line in lines if line.startswith("Max open files"))


def ask_once(port: int, data: bytes) -> bytes:
    """The first byte of the answer.  A reset may come at any step, also before connect() is over."""
    with socket.create_connection(("127.0.0.1", port), 20) as sock:
        sock.sendall(data)
        return sock.recv(1)


async def one_more(house: House, plain: int, tls: int) -> None:
    """Beyond the limit; it may be exceeded by one for every other front."""
    answers = b""
    with ExitStack() as held:
        for _ in range(FRONTS):
            line = await house.line(plain)
            held.callback(line.stream.socket.close)  # type: ignore[attr-defined]
            if answers := (await line.read_to_end()).replace(b"<reset>", b""):
                break
            await line.send(GET)
    assert answers.startswith(b"HTTP/1.1 503 Service Unavailable\r\n"), answers
    assert b"Reason: ConnLimit\n" in answers
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    out = ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), out, server_hostname="a.test").do_handshake()
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        ask_once(tls, out.read())


async def test_ten_thousand_connections(pki: Pki, tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "1k").write_bytes(b"x" * 1024)
    path = settings(
        tmp_path, "http://127.0.0.1:1", listen="http: {port: 0}, https: {port: 0}",
        extra=f"limits: {{max_connections: {MANY}}}\ntls: {{certificates: [{pki.entry('a')}], default: a.test}}",
        site=", limits: {max_connections: none}",
    )  # fmt: skip
    text = path.read_text().replace("{/: app}", f"{{/: {{files: {folder}}}}}")
    text = text.replace("{drain: 8s}", "{drain: 1s, header_wait: 120s}")
    path.write_text(re.sub(r"pools: .*\n", "", text))
    with all_files(), ExitStack() as held:
        async with serving(path) as house:
            for pid in (house.child.pid, *family(house.child.pid)):  # each process may open what it ever may
                soft, hard = file_limits(pid)
                assert soft == hard
            fronts = await house.fronts()
            assert len(fronts) == FRONTS
            plain, tls = house.ports
            crowd = Crowd(plain)
            held.callback(crowd.close)
            crowd.grow(500)
            crowd.ask_all()
            memory, began = all_memory(fronts), time.monotonic()
            crowd.grow(MANY - len(crowd.socks))
            took = time.monotonic() - began
            status = await house.until_status(lambda it: it["connections"] == MANY)
            crowd.ask_all()
            each = (all_memory(fronts) - memory) / (MANY - 500) / 1024
            all_in, shares = time.monotonic() - began, [one["connections"] for one in status["fronts"]]
            print(f"{MANY} connections made in {took:.1f} s, answered within {all_in:.1f} s; {each:.2f} KiB; {shares}")
            assert each < (AS_A_TASK if os.environ.get("FRONTD_REACTOR") == "off" else MEMORY)
            await one_more(house, plain, tls)
            crowd.ask(list(crowd.socks.values())[::97])  # nobody inside has noticed
            crowd.close()
            await house.until_status(lambda it: it["connections"] == 0)
            assert (await house.get("/1k"))[0] == 200
            assert await house.fronts() == fronts
