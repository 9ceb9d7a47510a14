"""Files that are sent for a while: slow readers, clients that leave, and files that do not stay as they were."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import trio

from frontd.net.streams import FILE_SLICE
from tests.net.pki import Pki
from tests.net.tlsclient import client_context, tls_line
from tests.scenarios.bystander import logged
from tests.scenarios.test_files import files_site
from tests.wire import Line, Stage, front, settled

SIZE = 20 * FILE_SLICE
GET = b"GET /x HTTP/1.1\r\nHost: a.test\r\n\r\n"
PARTS = "Range: bytes=0-9,100000-19999999"
GET_PARTS = GET[:-2] + PARTS.encode() + b"\r\n\r\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One large file, which takes no room."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "x").touch()
    os.truncate(folder / "x", SIZE)
    return folder


@pytest.fixture(params=["plain", "tls"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def narrow(kind: str, pki: Pki, stage: Stage) -> Line:
    """A client whose kernel takes far less than the file before it is read from."""
    sock = trio.socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    await sock.connect(("127.0.0.1", stage.port("https" if kind == "tls" else "http")))
    line = Line(trio.SocketStream(sock))
    stage.lines.append(line)
    return await tls_line(stage, client_context(pki), "a.test", line=line) if kind == "tls" else line


def times_open(path: Path) -> int:
    """How many descriptors of this process are of the file."""
    with os.scandir("/proc/self/fd") as fds:
        return sum(os.path.lexists(fd.path) and os.readlink(fd.path) == str(path) for fd in fds)


@pytest.mark.parametrize("request_bytes", [GET, GET_PARTS])
async def test_a_client_that_leaves_in_the_middle(
    tmp_path: Path, folder: Path, pki: Pki, kind: str, request_bytes: bytes
) -> None:
    async with front(files_site(folder, pki), tmp_path) as stage:
        line = await narrow(kind, pki, stage)
        await line.send(request_bytes)
        assert (await line.head()).startswith(b"HTTP/1.1 20")
        await settled()  # it waits for room
        assert times_open(folder / "x") == 1
        await line.close()
        await settled()
        assert times_open(folder / "x") == 0
        assert not stage.front.service.connections
    logged(stage, "Connection_Dropped", status=206 if request_bytes == GET_PARTS else 200)


@pytest.mark.parametrize("request_bytes", [GET, GET_PARTS])
async def test_a_file_that_becomes_shorter_is_never_ended_cleanly(
    tmp_path: Path, folder: Path, pki: Pki, kind: str, request_bytes: bytes
) -> None:
    async with front(files_site(folder, pki), tmp_path) as stage:
        line = await narrow(kind, pki, stage)
        await line.send(request_bytes)
        head = await line.head()
        os.truncate(folder / "x", FILE_SLICE)
        try:
            body = await line.read_to_end()
        except OSError:  # through TLS the reset reaches the raw socket
            body = b"<reset>"
        assert body.endswith(b"<reset>") or kind == "tls"
        assert len(body) < SIZE
        assert head.startswith(b"HTTP/1.1 20")
        await settled()
    logged(stage, "Internal", status=206 if request_bytes == GET_PARTS else 200)
    assert "became+shorter" in stage.log("error")


async def test_a_slow_reader_gets_it_all(
    tmp_path: Path, folder: Path, pki: Pki, kind: str, autojump_clock: object
) -> None:
    (folder / "x").write_bytes(bytes(range(256)) * (FILE_SLICE // 256))
    async with front(files_site(folder, pki), tmp_path) as stage:
        line = await narrow(kind, pki, stage)
        await line.send(GET)
        await line.head()
        body = b""
        while len(body) < FILE_SLICE:
            await trio.sleep(0.5)
            body += await line.read()
        assert body == bytes(range(256)) * (FILE_SLICE // 256)
        await line.send(GET[:-2] + b"Range: bytes=-1\r\n\r\n")
        assert (await line.message())[1] == b"\xff"
        assert stage.reasons == {}


async def test_a_reader_that_is_too_slow(
    tmp_path: Path, folder: Path, pki: Pki, kind: str, autojump_clock: object
) -> None:
    text = files_site(folder, pki, site="timeouts: {min_send_rate: 100000}")
    async with front(text, tmp_path) as stage:
        line = await narrow(kind, pki, stage)
        await line.send(GET)
        await line.head()
        began = trio.current_time()
        with trio.move_on_after(1000):
            while stage.front.service.connections:
                await trio.sleep(1)
                await line.read_exactly(1000)
        assert 20 <= trio.current_time() - began <= 100
    logged(stage, "Timer_MinBytesPerSecond", status=200)


async def test_a_shutdown_lets_a_file_arrive(tmp_path: Path, folder: Path, pki: Pki, kind: str) -> None:
    os.truncate(folder / "x", 8 * FILE_SLICE)
    async with front(files_site(folder, pki), tmp_path) as stage:
        line = await narrow(kind, pki, stage)
        await line.send(GET)
        await line.head()
        await settled()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stage.front.drain)
            assert len(await line.read_exactly(8 * FILE_SLICE)) == 8 * FILE_SLICE
            assert await line.read_to_end() == b""
            await line.close()
        assert stage.reasons == {}


async def test_others_are_served_meanwhile(tmp_path: Path, folder: Path, pki: Pki, kind: str) -> None:
    (folder / "small").write_text("small")
    async with front(files_site(folder, pki), tmp_path) as stage:
        slow, other = await narrow(kind, pki, stage), await stage.connect()
        await slow.send(GET)
        await slow.head()
        for _ in range(3):
            assert (await other.get("/small"))[1] == b"small"
            await slow.read()
        await slow.close()
