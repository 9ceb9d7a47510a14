"""Pools through the front: what waits, what is repeated, and an app that restarts under load."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio

from tests.upstream.parts import Connects, Names, reset
from tests.wire import OK, Line, Script, app, free_port, front, one_pool, settled

GET = b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"


def put(body: bytes, method: bytes = b"PUT") -> bytes:
    return method + b" / HTTP/1.1\r\nHost: a.test\r\nContent-Length: %d\r\n\r\n" % len(body) + body


# ---------------------------------------------------------------------------------------------------- the queue


async def test_the_queue_is_here_and_not_in_the_app(tmp_path: Path, autojump_clock: object) -> None:
    now = most = 0

    async def work(line: Line) -> None:
        nonlocal now, most
        while await line.head():
            now += 1
            most = max(most, now)
            await trio.sleep(0.1)
            now -= 1
            await line.send(OK)

    async with app(work) as it, front(one_pool(it.url, pool="concurrency: 3"), tmp_path) as stage:
        answers: list[bytes] = []

        async def client() -> None:
            line = await stage.connect()
            answers.extend([(await line.get())[1] for _ in range(4)])

        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(client)
        assert answers == [b"ok"] * 40
        assert most == 3
        assert it.connections == 3
        assert trio.current_time() - began == pytest.approx(40 / 3 * 0.1, abs=0.15)  # never fewer than 3 at work


async def test_first_come_first_served(tmp_path: Path, autojump_clock: object) -> None:
    async def work(line: Line) -> None:
        while head := await line.head():
            order.append(head.split(b" ")[1])
            await trio.sleep(0.1)
            await line.send(OK)

    order: list[bytes] = []
    async with app(work) as it, front(one_pool(it.url, pool="concurrency: 1"), tmp_path) as stage:
        lines = [await stage.connect() for _ in range(6)]
        for number, line in enumerate(lines):
            await line.send(b"GET /%d HTTP/1.1\r\nHost: a.test\r\n\r\n" % number)
            await settled()
        for line in lines:
            assert (await line.message())[1] == b"ok"
        assert order == [b"/%d" % number for number in range(6)]


async def test_a_full_queue(tmp_path: Path, autojump_clock: object) -> None:
    text = one_pool(f"http://127.0.0.1:{free_port()}", pool="queue: {limit: 2, wait: 10s}")
    async with front(text, tmp_path) as stage:
        waiting = [await stage.connect() for _ in range(2)]
        for line in waiting:
            await line.send(GET)
        await settled()
        line = await stage.connect()
        head, body = await line.get()
        assert head.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        assert b"\r\nRetry-After: 1\r\n" in head
        assert b'\r\nProxy-Status: frontd; error=connection_limit_reached; details="QueueFull"\r\n' in head
        assert b"Reason: QueueFull" in body
        await waiting[0].close()  # a client that leaves frees its place
        await settled()
        assert len(stage.front.pools["app"].queue) == 1
        await line.send(GET)  # on the connection that was refused before
        await settled()
        assert len(stage.front.pools["app"].queue) == 2
        for one in (waiting[1], line):
            head, body = await one.message()
            assert b"Reason: AppOffline" in body
            assert b"\r\nRetry-After: 5\r\n" in head
        assert stage.reasons == {"QueueFull": 1, "AppOffline": 2, "Client_Reset": 1}


async def test_waited_out_while_the_app_is_busy(tmp_path: Path, autojump_clock: object) -> None:
    async def slow(line: Line) -> None:
        await line.head()
        await trio.sleep(20)
        await line.send(OK)

    async with (
        app(slow) as it,
        front(one_pool(it.url, pool="concurrency: 1\n    queue: {wait: 5s}"), tmp_path) as stage,
    ):
        busy, line = await stage.connect(), await stage.connect()
        await busy.send(GET)
        await settled()
        began = trio.current_time()
        head, body = await line.get()
        assert trio.current_time() - began == pytest.approx(5, abs=0.01)
        assert head.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nRetry-After: 1\r\n" in head
        assert b"Reason: Timer_ReqQueue" in body
        assert (await busy.message())[1] == b"ok"


async def test_an_upload_waits_too(tmp_path: Path, autojump_clock: object) -> None:
    port = free_port()
    async with front(one_pool(f"http://127.0.0.1:{port}"), tmp_path) as stage:
        line = await stage.connect()
        await line.send(put(b"abc", b"POST"))
        await trio.sleep(5)
        async with app(port=port) as it:
            assert (await line.message())[1] == b"ok"
            assert it.bodies == [b"abc"]


async def test_two_pools_do_not_wait_for_each_other(tmp_path: Path, autojump_clock: object) -> None:
    async with app() as it:
        text = f"""
listen: {{http: {{port: 0}}}}
sites: {{main: {{urls: ["http://*/"], routes: {{/: app, /dead/: dead}}}}}}
pools:
  app: {{targets: ["{it.url}"]}}
  dead: {{targets: ["http://127.0.0.1:{free_port()}"]}}
"""
        async with front(text, tmp_path) as stage:
            stuck, line = await stage.connect(), await stage.connect()
            await stuck.send(b"GET /dead/ HTTP/1.1\r\nHost: a\r\n\r\n")
            await settled()
            began = trio.current_time()
            assert (await line.get())[1] == b"ok"
            assert trio.current_time() - began < 0.1


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


async def test_a_kept_connection_that_died_does_not_count_as_the_retry(tmp_path: Path) -> None:
    """The app ends a kept connection just when the next request arrives, and the next connection as well."""

    async def script(line: Line) -> None:
        if line.number == 0:  # kept after one answer, ends at the second request
            await line.head()
            await line.send(OK)
            await line.head()
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


async def test_even_kept_connections_are_not_tried_for_ever(tmp_path: Path) -> None:
    seconds: list[int] = []
    async with AsyncExitStack() as stack:
        replicas = [await stack.enter_async_context(app(once_each(seconds))) for _ in range(6)]
        targets = '", "'.join(it.url for it in replicas)
        stage = await stack.enter_async_context(front(one_pool(targets), tmp_path))
        line = await stage.connect()
        for _ in replicas:
            assert (await line.get())[1] == b"ok"
        head, _ = await line.get()
        assert head.startswith(b"HTTP/1.1 502 ")
        assert len(seconds) == 4


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


# ---------------------------------------------------------------------------------------------------- names


async def test_a_scaled_app_through_the_front(tmp_path: Path, autojump_clock: object) -> None:
    names = Names({})
    port = free_port()
    async with app(port=port) as one, app(port=port, host="127.0.0.2") as two:
        async with front(one_pool(f"http://app.test:{port}"), tmp_path) as stage:
            line = await stage.connect()
            await line.send(GET)
            await trio.sleep(2)
            names.table["app.test"] = ["127.0.0.1"]
            assert (await line.message())[1] == b"ok"
            names.table["app.test"] = ["127.0.0.1", "127.0.0.2"]
            await trio.sleep(6)
            for _ in range(6):
                assert (await line.get())[1] == b"ok"
            assert (len(one.heads), len(two.heads)) == (4, 3)
            names.table["app.test"] = ["127.0.0.2"]
            await trio.sleep(6)
            for _ in range(3):
                assert (await line.get())[1] == b"ok"
            assert (len(one.heads), len(two.heads)) == (4, 6)


async def test_a_flood_on_an_app_that_is_down_knocks_gently(tmp_path: Path, autojump_clock: object) -> None:
    """However many wait, one connect per back-off step."""
    async with front(one_pool(f"http://127.0.0.1:{free_port()}", pool="queue: {wait: 5s}"), tmp_path) as stage:
        lines = [await stage.connect() for _ in range(50)]
        connects = Connects()
        for line in lines:
            await line.send(GET)
        for line in lines:
            assert b"AppOffline" in (await line.message())[1]
        assert len(connects.times) <= 50 + 10
