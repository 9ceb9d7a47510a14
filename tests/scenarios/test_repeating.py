"""What is sent to an app again and what is not, and which connections are kept."""

from __future__ import annotations

import json
import socket
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio

from tests.upstream.parts import reset
from tests.wire import OK, Line, Script, app, front, one_pool, settled

GET = b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"


def put(body: bytes, method: bytes = b"PUT") -> bytes:
    return method + b" / HTTP/1.1\r\nHost: a.test\r\nContent-Length: %d\r\n\r\n" % len(body) + body


# ---------------------------------------------------------------------------------------------------- repeating


def dying(until: int, how: str = "eof", heard: list[bytes] | None = None) -> Script:
    """Connections numbered below `until` end when they have read a request; the others answer."""

    async def script(line: Line) -> None:
        while True:
            head, body = await line.message()
            if not head:
                return
            if heard is not None:
                heard.append(head.split(b" ")[0] + b" " + body)
            if line.number < until:
                if how == "rst":
                    reset(line)
                return
            await line.send(OK)

    return script


@pytest.mark.parametrize("how", ["eof", "rst"])
async def test_a_get_is_sent_again_once(tmp_path: Path, how: str) -> None:
    async with app(dying(1, how)) as it, front(one_pool(it.url), tmp_path) as stage:
        line = await stage.connect()
        assert (await line.get())[1] == b"ok"
        assert it.connections == 2
        assert stage.reasons == {}


@pytest.mark.parametrize("how", ["eof", "rst"])
async def test_only_once(tmp_path: Path, how: str) -> None:
    heard: list[bytes] = []
    async with app(dying(99, how, heard)) as it, front(one_pool(it.url), tmp_path) as stage:
        line = await stage.connect()
        head, body = await line.get()
        assert head.startswith(b"HTTP/1.1 502 Bad Gateway\r\n")
        assert b"Reason: Connection_Abandoned_By_ReqQueue" in body
        assert b"127.0.0.1" not in body
        assert len(heard) == it.connections == 2
        head, body = await line.get()  # the client's connection serves on
        assert head.startswith(b"HTTP/1.1 502 ")


@pytest.mark.parametrize("method", [b"POST", b"PATCH"])
@pytest.mark.parametrize("how", ["eof", "rst"])
async def test_what_is_not_idempotent_is_not_sent_again(tmp_path: Path, method: bytes, how: str) -> None:
    heard: list[bytes] = []
    async with app(dying(1, how, heard)) as it, front(one_pool(it.url), tmp_path) as stage:
        line = await stage.connect()
        head, body = await line.ask(put(b"abc", method))
        assert head.startswith(b"HTTP/1.1 502 Bad Gateway\r\n")
        assert b"Reason: Connection_Abandoned_By_ReqQueue" in body
        assert heard == [method + b" abc"]
        assert (await line.ask(put(b"def", method)))[1] == b"ok"
        assert it.connections == 2


@pytest.mark.parametrize("size", [0, 3, 65536])
@pytest.mark.parametrize("how", ["eof", "rst"])
async def test_a_put_is_sent_again_byte_by_byte(tmp_path: Path, size: int, how: str) -> None:
    heard: list[bytes] = []
    payload = bytes(range(251)) * 262
    async with app(dying(1, how, heard)) as it, front(one_pool(it.url), tmp_path) as stage:
        line = await stage.connect()
        assert (await line.ask(put(payload[:size])))[1] == b"ok"
        assert heard == [b"PUT " + payload[:size]] * 2


async def test_a_put_that_arrives_in_pieces_is_sent_again_whole(tmp_path: Path) -> None:
    """The first connection dies in the middle of the upload: the second gets it from the beginning."""
    half = trio.Event()
    whole: list[bytes] = []

    async def script(line: Line) -> None:
        await line.head()
        if line.number == 0:
            await line.read_until(b"def\r\n")
            half.set()
        else:
            whole.append(await line.read_until(b"0\r\n\r\n"))
            await line.send(OK)

    async with app(script) as it, front(one_pool(it.url), tmp_path) as stage:
        line = await stage.connect()
        await line.send(b"PUT / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n")
        for piece in (b"3\r\nabc\r\n", b"3\r\ndef\r\n"):
            await line.send(piece)
            await settled()
        await half.wait()
        await settled()
        await line.send(b"3\r\nghi\r\n0\r\n\r\n")
        assert (await line.message())[1] == b"ok"
        sizes_off = b"".join(whole[0].split(b"\r\n")[1::2])
        assert sizes_off == b"abcdefghi"
        assert it.connections == 2


async def test_a_put_over_the_bound_is_not_sent_again(tmp_path: Path) -> None:
    heard: list[bytes] = []
    text = one_pool("{url}", pool="replay_body: 1000")
    async with app(dying(1, "eof", heard)) as it, front(text.replace("{url}", it.url), tmp_path) as stage:
        line = await stage.connect()
        assert (await line.ask(put(b"x" * 1000)))[1] == b"ok"
        assert len(heard) == 2
    heard.clear()
    async with app(dying(1, "eof", heard)) as it, front(text.replace("{url}", it.url), tmp_path) as stage:
        line = await stage.connect()
        head, body = await line.ask(put(b"x" * 1001))
        assert head.startswith(b"HTTP/1.1 502 ")
        assert b"Connection_Abandoned_By_ReqQueue" in body
        assert len(heard) == 1


async def test_nothing_is_sent_again_after_the_first_byte_of_an_answer(tmp_path: Path) -> None:
    async def script(line: Line) -> None:
        await line.head()
        await line.send(b"H")

    async with app(script) as it, front(one_pool(it.url), tmp_path) as stage:
        line = await stage.connect()
        head, body = await line.get()
        assert head.startswith(b"HTTP/1.1 502 ")
        assert b"BadUpstreamHead" in body
        assert it.connections == 1


# ---------------------------------------------------------------------------------------------------- kept connections


async def test_a_kept_connection_that_ends_unread_does_not_count_as_a_try(tmp_path: Path) -> None:
    """The app ends a kept connection just when the next request arrives, and the next connection as well."""

    async def script(line: Line) -> None:
        if line.number == 0:  # kept after one answer
            assert isinstance(line.stream, trio.SocketStream)
            await line.head()
            await line.send(OK)
            await trio.lowlevel.wait_readable(line.stream.socket)
        elif line.number == 1:
            await line.head()
        else:
            while await line.head():
                await line.send(OK)

    async with app(script) as it, front(one_pool(it.url), tmp_path) as stage:
        line = await stage.connect()
        assert (await line.get())[1] == b"ok"
        assert (await line.get())[1] == b"ok"
        assert it.connections == 3
        await settled()
        assert [json.loads(entry)["attempts"] for entry in stage.log().splitlines()] == [1, 3]


def once_each(seconds: list[int]) -> Script:
    """Connections that answer one request and end without an answer at the second, which is noted."""

    async def script(line: Line) -> None:
        if await line.head():
            await line.send(OK)
        if await line.head():
            seconds.append(line.number)

    return script


async def test_where_one_kept_connection_died_the_others_are_not_tried(tmp_path: Path) -> None:
    seconds: list[int] = []
    async with app(once_each(seconds)) as it, front(one_pool(it.url), tmp_path) as stage:
        lines = [await stage.connect() for _ in range(3)]
        for line in lines:
            await line.send(GET)
        for line in lines:
            assert (await line.message())[1] == b"ok"
        assert (await lines[0].get())[1] == b"ok"
        assert len(seconds) == 1
        assert it.connections == 4


async def test_what_an_app_died_with_stands_first_and_is_not_refused(tmp_path: Path) -> None:
    asked: list[bytes] = []
    dies = trio.Event()

    async def script(line: Line) -> None:
        while head := await line.head():
            asked.append(head.split(b" ")[1])
            if line.number == 0:
                await dies.wait()
                return
            await line.send(OK)

    text = one_pool("URL", pool="concurrency: 1\n    queue: {limit: 2}")
    async with app(script) as it, front(text.replace("URL", it.url), tmp_path) as stage:
        lines = [await stage.connect() for _ in range(3)]
        for number, line in enumerate(lines):
            await line.send(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % number)
            while not asked:
                await settled()
            await settled()
        assert len(stage.front.pools["app"].queue) == 2
        dies.set()
        for line in lines:
            assert (await line.message())[1] == b"ok"
        # while it pauses for a moment, its place serves whoever is next; then it is first in line
        assert asked == [b"/0", b"/1", b"/2", b"/0"] or asked[:3] in ([b"/0", b"/0", b"/1"], [b"/0", b"/1", b"/0"])
        assert stage.reasons == {}


@pytest.mark.parametrize("kept", [True, False])
async def test_what_kills_an_app_kills_two_at_most(tmp_path: Path, kept: bool) -> None:
    """Also over kept connections, each of another app: one that ends after it has read everything has had the
    request."""
    killed: list[int] = []

    def replica(number: int) -> Script:
        async def script(line: Line) -> None:
            while head := await line.head():
                if b"/poison" in head:
                    killed.append(number)
                    return
                await line.send(OK)

        return script

    async with AsyncExitStack() as stack:
        replicas = [await stack.enter_async_context(app(replica(number))) for number in range(6)]
        targets = '", "'.join(it.url for it in replicas)
        stage = await stack.enter_async_context(front(one_pool(targets), tmp_path))
        line = await stage.connect()
        for _ in replicas if kept else ():
            assert (await line.get())[1] == b"ok"
        head, body = await line.get("/poison")
        assert head.startswith(b"HTTP/1.1 502 ")
        assert b"Connection_Abandoned_By_ReqQueue" in body
        assert len(set(killed)) == len(killed) == 2
        assert (await line.get())[1] == b"ok"


async def test_even_connections_that_die_unread_are_not_tried_for_ever(tmp_path: Path) -> None:
    """An app on a Unix socket that accepts and closes: none of them can be what it died of, and yet there is an end."""
    path = tmp_path / "app.sock"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(listening))
        accepted = 0

        async def close_unread() -> None:
            nonlocal accepted
            while True:
                stream = await listener.accept()
                accepted += 1
                await trio.lowlevel.wait_readable(stream.socket)
                await stream.aclose()

        async with front(one_pool(f"unix:{path}"), tmp_path) as stage, trio.open_nursery() as nursery:
            nursery.start_soon(close_unread)
            head, body = await (await stage.connect()).get()
            assert head.startswith(b"HTTP/1.1 502 ")
            assert b"Connection_Abandoned_By_ReqQueue" in body
            assert accepted == 4
            nursery.cancel_scope.cancel()


async def test_a_post_on_a_kept_connection_that_dies_is_not_repeated(tmp_path: Path) -> None:
    heard = 0

    async def script(line: Line) -> None:
        nonlocal heard
        await line.message()
        heard += 1
        await line.send(OK)
        await line.message()
        heard += 1

    async with app(script) as it, front(one_pool(it.url), tmp_path) as stage:
        line = await stage.connect()
        assert (await line.ask(put(b"1", b"POST")))[1] == b"ok"
        head, _ = await line.ask(put(b"2", b"POST"))
        assert head.startswith(b"HTTP/1.1 502 ")
        assert heard == 2
        assert it.connections == 1


async def test_one_that_was_closed_before_is_noticed_before_a_post_is_written(tmp_path: Path) -> None:
    async def once(line: Line) -> None:
        await line.message()
        await line.send(OK)

    async with app(once) as it, front(one_pool(it.url), tmp_path) as stage:
        line = await stage.connect()
        for number in range(4):
            assert (await line.ask(put(b"%d" % number, b"POST")))[1] == b"ok"
            await settled()
        assert it.connections == 4


async def test_keep_alive_reuse_and_its_idle_limit(tmp_path: Path, autojump_clock: object) -> None:
    async with app() as it, front(one_pool(it.url, extra="timeouts: {keep_alive: 10s}"), tmp_path) as stage:
        line = await stage.connect()
        for _ in range(5):
            assert (await line.get())[1] == b"ok"
            await trio.sleep(8)
        assert it.connections == 1
        (place,) = stage.front.pools["app"].places
        assert len(place.idle) == 1
        await trio.sleep(5)
        assert not place.idle
        assert (await line.get())[1] == b"ok"
        assert it.connections == 2


@pytest.mark.parametrize("last", [b"Connection: close\r\n", b"Connection: Close, x\r\n"])
async def test_an_app_that_says_close_is_believed(tmp_path: Path, last: bytes) -> None:
    async def script(line: Line) -> None:
        while await line.head():
            await line.send(b"HTTP/1.1 200 OK\r\n" + last + b"Content-Length: 2\r\n\r\nok")

    async with app(script) as it, front(one_pool(it.url), tmp_path) as stage:
        line = await stage.connect()
        for _ in range(3):
            head, body = await line.get()
            assert body == b"ok"
            assert b"close" not in head.lower()
        assert it.connections == 3


async def test_bytes_behind_an_answer_never_answer_somebody_else(tmp_path: Path) -> None:
    async def script(line: Line) -> None:
        if line.number == 0:
            await line.head()
            await line.send(OK + b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged")
            await line.read_to_end()
        else:
            while await line.head():
                await line.send(OK)

    async with app(script) as it, front(one_pool(it.url), tmp_path) as stage:
        line = await stage.connect()
        for _ in range(3):
            assert (await line.get())[1] == b"ok"
        assert it.connections == 2


async def test_a_client_that_leaves_ends_the_request_at_the_app(tmp_path: Path) -> None:
    ended = trio.Event()

    async def script(line: Line) -> None:
        await line.head()
        await line.read_to_end()
        ended.set()

    async with app(script) as it, front(one_pool(it.url, pool="concurrency: 1"), tmp_path) as stage:
        line = await stage.connect()
        await line.send(GET)
        await settled()
        await line.close()
        with trio.fail_after(5):
            await ended.wait()
        await settled()
        assert stage.front.pools["app"].places[0].active == 0
        assert it.connections == 1
