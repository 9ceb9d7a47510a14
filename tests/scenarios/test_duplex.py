"""Both ways at once: the request body on its way while the answer already comes, and whose turn it is."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest
import trio

from tests.scenarios.test_forwarding import HOST, field
from tests.wire import OK, Line, Script, app, front, one_pool, settled


async def test_the_answer_streams_while_the_request_still_does(tmp_path: Path) -> None:
    """The app echoes chunk by chunk; the client waits for each echo before it sends more."""

    async def echo(line: Line) -> None:
        await line.head()
        await line.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            size = await line.read_until(b"\r\n")
            await line.send(size + await line.read_exactly(int(size, 16) + 2))
            if size == b"0\r\n":
                await line.head()  # the next request on the same connection
                await line.send(OK)
                return

    async with app(echo) as it, front(one_pool(it.url), tmp_path) as stage:
        line = await stage.connect()
        await line.send(b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n")
        assert (await line.head()).startswith(b"HTTP/1.1 200 OK")
        for text in (b"one", b"two and more", b"x" * 5000):
            await line.send(b"%x\r\n%s\r\n" % (len(text), text))
            assert await line.read_until(b"\r\n") == b"%x\r\n" % len(text)
            assert await line.read_exactly(len(text) + 2) == text + b"\r\n"
        await line.send(b"0\r\n\r\n")
        assert await line.read_exactly(5) == b"0\r\n\r\n"
        _, body = await line.get("/next")
        assert body == b"ok"
        assert it.connections == 1


async def test_a_client_that_pauses_its_upload_is_not_the_fault_of_the_app(
    tmp_path: Path, autojump_clock: object
) -> None:
    """response_head (60 s) does not run while the app waits for the client; entity_body (120 s) does."""
    async with app() as it, front(one_pool(it.url), tmp_path) as stage:
        line = await stage.connect()
        await line.send(b"PUT / HTTP/1.1\r\n" + HOST + b"Content-Length: 6\r\n\r\nabc")
        await trio.sleep(100)
        head, body = await line.ask(b"def")
        assert (head[:12], body) == (b"HTTP/1.1 200", b"ok")
        await line.send(b"PUT / HTTP/1.1\r\n" + HOST + b"Content-Length: 6\r\n\r\nabc")
        began = trio.current_time()
        head, body = await line.message()
        assert head.startswith(b"HTTP/1.1 408 ")
        assert b"Timer_EntityBody" in body
        assert trio.current_time() - began == pytest.approx(120, abs=1)
        assert it.bodies == [b"abcdef"]


async def test_a_client_that_pauses_while_the_answer_runs_too(tmp_path: Path, autojump_clock: object) -> None:
    async def echo(line: Line) -> None:
        await line.head()
        await line.send(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n")
        for _ in range(2):
            await line.send(await line.read_exactly(3))

    async with app(echo) as it, front(one_pool(it.url), tmp_path) as stage:
        line = await stage.connect()
        await line.send(b"PUT / HTTP/1.1\r\n" + HOST + b"Content-Length: 6\r\n\r\nabc")
        await line.head()
        assert await line.read_exactly(3) == b"abc"
        await trio.sleep(100)
        await line.send(b"def")
        assert await line.read_exactly(3) == b"def"
        assert stage.reasons == {}


async def test_the_app_has_its_time_from_the_last_byte_of_the_request(tmp_path: Path, autojump_clock: object) -> None:
    async def slow(line: Line) -> None:
        await line.message()
        await trio.sleep(59)
        await line.send(OK)
        await line.message()
        await trio.sleep_forever()

    async with app(slow) as it, front(one_pool(it.url), tmp_path) as stage:
        line = await stage.connect()
        await line.send(b"PUT / HTTP/1.1\r\n" + HOST + b"Content-Length: 6\r\n\r\nabc")
        await trio.sleep(50)
        head, body = await line.ask(b"def")
        assert body == b"ok"
        await line.send(b"PUT / HTTP/1.1\r\n" + HOST + b"Content-Length: 6\r\n\r\nabc")
        await trio.sleep(50)
        began = trio.current_time()
        head, body = await line.ask(b"def")
        assert b"Timer_Response" in body
        assert head.startswith(b"HTTP/1.1 504 ")
        assert trio.current_time() - began == pytest.approx(60, abs=0.1)


async def test_an_app_that_answers_without_reading_the_rest_is_not_cut(tmp_path: Path, autojump_clock: object) -> None:
    """The upload stands still because the app does not read; its answer goes on all the same."""

    async def script(line: Line) -> None:
        await line.head()
        await line.send(b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n")
        for _ in range(20):
            await trio.sleep(10)
            await line.send(b".")

    async with app(script) as it, front(one_pool(it.url, site="limits: {max_body: none}"), tmp_path) as stage:
        line = await stage.connect()
        await line.send(b"PUT / HTTP/1.1\r\n" + HOST + b"Content-Length: 100000000\r\n\r\n")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(line.send, b"x" * 50_000_000)
            _, body = await line.message()
            nursery.cancel_scope.cancel()
        assert body == b"." * 20
        assert stage.reasons == {}


async def test_an_early_answer_passes_and_ends_the_upload(tmp_path: Path) -> None:
    async def early(line: Line) -> None:
        await line.head()
        await line.send(b"HTTP/1.1 413 Too Big\r\nContent-Length: 3\r\nConnection: close\r\n\r\nno!")

    async with app(early) as it, front(one_pool(it.url), tmp_path) as stage:
        line = await stage.connect()
        await line.send(b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 1000\r\n\r\n" + b"x" * 10)
        head, body = await line.message()
        assert head.startswith(b"HTTP/1.1 413 Too Big\r\n")
        assert body == b"no!"
        await line.send(b"x" * 990)  # a small rest is read, and the connection serves on
        head, body = await line.get()
        assert body == b"no!"


async def test_a_large_body_goes_through_in_pieces_and_unchanged(tmp_path: Path) -> None:
    payload = bytes(range(256)) * 20_000  # 5 MB
    async with app() as it, front(one_pool(it.url), tmp_path) as stage:
        line = await stage.connect()
        _, body = await line.ask(b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\n\r\n" % len(payload) + payload)
        assert body == b"ok"
        assert it.bodies == [payload]
        assert field(it.heads[0], "Content-Length") == [b"%d" % len(payload)]


async def test_a_client_that_leaves_in_its_upload_takes_the_app_along(tmp_path: Path) -> None:
    ended = trio.Event()

    async def script(line: Line) -> None:
        await line.head()
        assert await line.read_to_end() == b"abc"
        ended.set()

    async with app(script) as it, front(one_pool(it.url), tmp_path) as stage:
        line = await stage.connect()
        await line.send(b"PUT / HTTP/1.1\r\n" + HOST + b"Content-Length: 6\r\n\r\nabc")
        await settled()
        await line.close()
        with trio.fail_after(5):
            await ended.wait()
        await settled()
        assert stage.reasons == {"Client_Reset": 1}


async def test_pipelined_requests_are_answered_in_order_over_one_connection(tmp_path: Path) -> None:
    async def number(line: Line) -> None:
        while head := await line.head():
            await line.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n" + head.split(b" ")[1][1:])

    script: Script = number
    async with app(script) as it, front(one_pool(it.url), tmp_path) as stage:
        line = await stage.connect()
        await line.send(b"".join(b"GET /%02d HTTP/1.1\r\n" % n + HOST + b"\r\n" for n in range(30)))
        for n in range(30):
            assert (await line.message())[1] == b"%02d" % n
        assert it.connections == 1


def answer_at_once(server: socket.socket) -> None:
    """An app in a thread of its own, so that its answer can be there before the front looks."""
    while True:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        with connection:
            connection.sendall(OK)
            while connection.recv(65536):
                pass


async def test_an_answer_before_the_upload_is_no_fault_of_ours(tmp_path: Path) -> None:
    """The pump gets its first turn when the connection it should fill is closed already."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=answer_at_once, args=(server,))
        thread.start()
        async with front(one_pool(f"http://127.0.0.1:{server.getsockname()[1]}"), tmp_path) as stage:
            for _ in range(20):
                line = await stage.connect()
                head, body = await line.ask(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nabc")
                assert (head[:15], body) == (b"HTTP/1.1 200 OK", b"ok")
                await line.close()
            await settled()
            assert "Internal" not in stage.reasons
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
