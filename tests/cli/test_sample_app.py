"""The sample app, as plays over trio's memory streams and over real sockets."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import websockets.sync.client

from frontd.cli import sample_app
from frontd.cli.sample_app import Server

GET = b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n"


@asynccontextmanager
async def running(server: Server) -> AsyncIterator[tuple[int, trio.CancelScope, trio.Event]]:
    """The app on a free port: (port, the scope that stops it, set once it is over)."""
    listeners = await sample_app.open_listener("127.0.0.1", 0, None)
    over = trio.Event()

    async def whole(task_status: trio.TaskStatus[trio.CancelScope]) -> None:
        await sample_app.run(server, listeners, task_status=task_status)
        over.set()

    async with trio.open_nursery() as nursery:
        accepting = await nursery.start(whole)
        yield listeners[0].socket.getsockname()[1], accepting, over
        accepting.cancel()


async def read_head(stream: trio.SocketStream) -> tuple[bytes, bytes]:
    data = b""
    while b"\r\n\r\n" not in data:
        part = await stream.receive_some()
        assert part, data
        data += part
    head, _, rest = data.partition(b"\r\n\r\n")
    return head, rest


async def read_answer(stream: trio.SocketStream) -> tuple[bytes, bytes]:
    head, body = await read_head(stream)
    length = next(int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
    while len(body) < length:
        body += await stream.receive_some()
    return head, body


async def ask(request: bytes, server: Server | None = None) -> tuple[bytes, bytes]:
    async with running(server or Server("one")) as (port, _, _):
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(request)
            return await read_answer(stream)


async def test_the_page_shows_what_the_app_saw() -> None:
    head, body = await ask(b"GET /?a=1 HTTP/1.1\r\nHost: x\r\nX-Odd-Case: <b>\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"'one'" in body
    assert f"pid {os.getpid()}".encode() in body
    assert b"GET /?a=1 HTTP/1.1\nHost: x\nX-Odd-Case: <b>\n" in body


async def test_whoami_names_the_user() -> None:
    assert (await ask(b"GET /whoami HTTP/1.1\r\nHost: x\r\nX-Remote-User: ann\r\n\r\n"))[1] == b"ann\n"
    assert (await ask(GET % b"/whoami"))[1] == b"nobody\n"


async def test_a_page_stands_at_more_addresses() -> None:
    for path in (b"/page/x", b"/private/", b"/private/x?a=1"):
        _, body = await ask(GET % path)
        assert b"\nGET %s HTTP/1.1\n" % path in body


async def test_what_a_cache_may_keep_is_made_anew_each_time() -> None:
    async with running(Server("one")) as (port, _, _):
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            answers = []
            for _ in range(2):
                await stream.send_all(GET % b"/cached?s=5")
                answers.append(await read_answer(stream))
    assert all(b"\r\nCache-Control: max-age=5\r\n" in head + b"\r\n" for head, _ in answers)
    assert answers[0][1] != answers[1][1]
    assert b"max-age=60" in (await ask(GET % b"/cached"))[0]


async def test_a_browser_gets_html_that_is_escaped() -> None:
    head, body = await ask(b"GET / HTTP/1.1\r\nHost: x\r\nAccept: text/html\r\nX: <script>\r\n\r\n")
    assert b"Content-Type: text/html" in head
    assert b"&lt;script&gt;" in body
    assert b"<script>" not in body


async def test_an_answer_is_one_write() -> None:
    class Wire(trio.abc.Stream):
        def __init__(self) -> None:
            self.incoming, self.writes = [GET % b"/healthz", b""], list[bytes]()

        async def receive_some(self, max_bytes: int | None = None) -> bytes:
            return self.incoming.pop(0)

        async def send_all(self, data: bytes | bytearray | memoryview) -> None:
            self.writes.append(bytes(data))

        async def wait_send_all_might_not_block(self) -> None:
            raise AssertionError

        async def aclose(self) -> None:
            pass

    wire = Wire()
    await sample_app.serve_connection(Server("one"), wire)
    assert len(wire.writes) == 1
    assert wire.writes[0].endswith(b"\r\n\r\nok\n")


async def test_upload_counts_chunked_bodies_after_100_continue() -> None:
    body = os.urandom(300_000)
    async with running(Server("one")) as (port, _, _):
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(
                b"PUT /upload HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n"
            )
            assert (await read_head(stream))[0].startswith(b"HTTP/1.1 100")
            for start in range(0, len(body), 50_000):
                await stream.send_all(b"c350\r\n" + body[start : start + 50_000] + b"\r\n")
            await stream.send_all(b"0\r\n\r\n")
            _, answer = await read_answer(stream)
    assert json.loads(answer) == {"bytes": 300_000, "sha256": hashlib.sha256(body).hexdigest(), "name": "one"}


async def test_download_streams_the_asked_length() -> None:
    head, body = await ask(GET % b"/download?bytes=200001")
    assert b"Content-Length: 200001" in head
    assert len(body) == 200_001


async def test_head_has_the_length_and_no_body() -> None:
    async with running(Server("one")) as (port, _, _):
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(b"HEAD /download?bytes=77 HTTP/1.1\r\nHost: x\r\n\r\n" + GET % b"/healthz")
            head, rest = await read_head(stream)
            assert b"Content-Length: 77" in head
            while b"ok\n" not in rest:
                rest += await stream.receive_some()
            assert rest.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    ("target", "status"),
    [
        (b"/download?bytes=-1", 400), (b"/sleep?s=nan", 400), (b"/cached?s=x", 400), (b"/nothing", 404),
        (b"/upload", 405), (b"/echo", 426),
    ],
)
async def test_wrong_requests_get_a_sentence(target: bytes, status: int) -> None:
    head, body = await ask(GET % target)
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert body.endswith(b"\n")


async def test_garbage_gets_400_and_a_close() -> None:
    async with running(Server("one")) as (port, _, _):
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(b"\x16\x03\x01 nonsense\r\n\r\n")
            head, _ = await read_answer(stream)
            assert head.startswith(b"HTTP/1.1 400")
            assert await stream.receive_some() == b""


async def test_sleep_and_delay_wait(autojump_clock: trio.testing.MockClock) -> None:
    class Wire(trio.abc.Stream):
        def __init__(self) -> None:
            self.incoming, self.sent = [GET % b"/sleep?s=7", b""], b""

        async def receive_some(self, max_bytes: int | None = None) -> bytes:
            return self.incoming.pop(0)

        async def send_all(self, data: bytes | bytearray | memoryview) -> None:
            self.sent += data

        async def wait_send_all_might_not_block(self) -> None:
            raise AssertionError

        async def aclose(self) -> None:
            pass

    wire, began = Wire(), trio.current_time()
    await sample_app.serve_connection(Server("one", delay=2.0), wire)
    assert trio.current_time() - began == pytest.approx(9.0)
    assert b"slept 7 s" in wire.sent


async def test_stop_ends_idle_connections_at_once_and_lets_requests_finish() -> None:
    async with running(Server("one")) as (port, accepting, over):
        idle = await trio.open_tcp_stream("127.0.0.1", port)
        await idle.send_all(GET % b"/healthz")
        await read_answer(idle)
        busy = await trio.open_tcp_stream("127.0.0.1", port)
        await busy.send_all(b"PUT /upload HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
        await read_head(busy)  # 100: the app is in the middle of it
        accepting.cancel()
        assert await idle.receive_some() == b""
        assert not over.is_set()
        await busy.send_all(b"abc")
        head, body = await read_answer(busy)
        assert b"Connection: close" in head
        assert json.loads(body)["bytes"] == 3
        with trio.fail_after(0.5):
            await over.wait()
        await idle.aclose()
        await busy.aclose()


async def test_a_request_that_does_not_finish_is_cut_after_the_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_app, "GRACE", 0.02)
    async with running(Server("one")) as (port, accepting, over):
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(
                b"PUT /upload HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n"
            )
            await read_head(stream)
            accepting.cancel()
            with trio.fail_after(1):
                await over.wait()


async def test_websocket_with_a_client_from_elsewhere() -> None:
    async with running(Server("one")) as (port, _accepting, _over):

        def talk() -> None:
            with websockets.sync.client.connect(f"ws://127.0.0.1:{port}/echo", max_size=None) as socket:
                socket.send("häl" * 30_000)
                assert socket.recv() == "häl" * 30_000
                socket.send([b"frag", b"men", b"ts"])
                assert socket.recv() == b"fragments"
                assert socket.ping().wait(5)

        await trio.to_thread.run_sync(talk)


async def test_an_open_websocket_is_told_when_the_app_stops() -> None:
    async with running(Server("one")) as (port, accepting, _over):
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(
                b"GET /echo HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n"
                b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            )
            head, rest = await read_head(stream)
            assert b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in head  # the example of RFC 6455 1.3
            accepting.cancel()
            while len(rest) < 4:
                rest += await stream.receive_some()
            assert rest == b"\x88\x02\x03\xe9"




@pytest.mark.parametrize("where", ["port", "uds"])
def test_as_a_process(tmp_path: Path, where: str) -> None:
    path = tmp_path / "app.sock"
    choice = ["--uds", str(path)] if where == "uds" else ["--port", "0"]
    with subprocess.Popen(
        [sys.executable, "-m", "frontd.cli.sample_app", *choice, "--name", "p"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        assert said.startswith("sample app p: " + (f"unix:{path}" if where == "uds" else "http://127.0.0.1:"))
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == 0
    assert not path.exists()


def test_a_port_that_is_taken_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [sys.executable, "-m", "frontd.cli.sample_app", "--port", port], capture_output=True, text=True, check=False
        )
    assert done.returncode == 1
    assert "already in use" in done.stderr


