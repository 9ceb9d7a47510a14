"""Hand-off between queues: a plugin moves a request on, as long as no byte of its body has gone to an app."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trio
from frontd_plugins.response_cache import ResponseCache

import frontd
from tests.scenarios.plugged import PluginClass, made, plugged, told
from tests.wire import App, Line, Script, Stage, app, free_port, settled

POST = b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n"


def pools(*named: tuple[str, str]) -> str:
    """More pools beside ``app``: names and targets."""
    return "".join(f'\n  {name}: {{targets: ["{target}"], queue: {{wait: 2s}}}}' for name, target in named)


def after(reason: frontd.Reason | None, where: str) -> PluginClass:
    """Moves what failed for this reason (None: for any) to `where`."""

    def forward_failed(self: frontd.Plugin, exchange: frontd.Exchange, error: frontd.FrontdError) -> str | None:
        return where if reason in (None, error.reason) else None

    return made("spill", forward_failed=forward_failed)


def when(status: int, where: str) -> PluginClass:
    """Moves what an app answers with this status."""

    def admit_response(self: frontd.Plugin, exchange: frontd.Exchange) -> str | None:
        return where if exchange.response.status == status else None

    return made("director", admit_response=admit_response)


def saying(what: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(what), what)


def more(it: App) -> str:
    """A pool ``other`` beside ``app``."""
    return f"concurrency: 1{pools(('other', it.url))}"


MOVED = b"HTTP/1.1 307 Moved\r\nContent-Length: 5\r\n\r\nmoved"


def lines(stage: Stage) -> list[dict[str, object]]:
    return [json.loads(entry) for entry in stage.log().splitlines()]


# ---------------------------------------------------------------------------------------------------- forward_failed


@pytest.mark.parametrize("by", ["pool", "target"])
async def test_what_finds_no_app_is_moved(tmp_path: Path, by: str, autojump_clock: object) -> None:
    async with app(saying(b"spare")) as spare:
        dead = f"http://127.0.0.1:{free_port()}"
        other = f"queue: {{wait: 1s}}{pools(('spare', spare.url))}"
        plugin = after(frontd.Reason.AppOffline, "spare" if by == "pool" else spare.url)
        async with plugged(tmp_path, dead, plugin, pool=other) as stage:
            line = await stage.connect()
            assert (await line.get())[1] == b"spare"
            assert (await line.ask(POST % 3 + b"abc"))[1] == b"spare"  # nothing of it was sent before
            assert spare.bodies == [b"", b"abc"]
            await settled()
            assert stage.reasons == {}
            found = lines(stage)[0]
            assert (found["pool"], found["route"]) == ("spare" if by == "pool" else spare.url, "spill.forward_failed")
            assert (found["status"], found["reason"], found["attempts"]) == (200, None, 1)


async def test_a_full_queue_spills_over(tmp_path: Path) -> None:
    go = trio.Event()

    async def busy(line: Line) -> None:
        await line.head()
        await go.wait()
        await line.send(saying(b"first"))

    async with app(busy) as it, app(saying(b"spare")) as spare:
        other = f"concurrency: 1\n    queue: {{limit: 1}}{pools(('spare', spare.url))}"
        async with plugged(tmp_path, it.url, after(frontd.Reason.QueueFull, "spare"), pool=other) as stage:
            first, waits, third = [await stage.connect() for _ in range(3)]
            for line in (first, waits):
                await line.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                await settled()
            assert (await third.get())[1] == b"spare"
            go.set()
            assert (await first.message())[1] == b"first"


def dies() -> Script:
    async def script(line: Line) -> None:
        await line.message()

    return script


@pytest.mark.parametrize(
    ("request_", "fault"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", ""),
        (POST % 0, "an app may have done it already"),
        (POST % 3 + b"abc", "of its body"),
        (b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", "of its body"),
    ],
    ids=["get", "post without a body", "post", "put"],
)
async def test_what_an_app_died_with(tmp_path: Path, request_: bytes, fault: str) -> None:
    """A GET may go to another queue; what may not be done twice, and a body of which something was sent, may not."""
    async with app(dies()) as it, app(saying(b"spare")) as spare:
        other = f"queue: {{wait: 1s}}{pools(('spare', spare.url))}"
        async with plugged(tmp_path, it.url, after(None, "spare"), pool=other) as stage:
            head, body = await (await stage.connect()).ask(request_)
            if fault:
                assert head.startswith(b"HTTP/1.1 502 ")
                assert b"Connection_Abandoned_By_ReqQueue" in body
                assert fault in await told(stage)
                assert spare.connections == 0
            else:
                assert body == b"spare"


# ---------------------------------------------------------------------------------------------------- admit_response


async def test_an_app_s_answer_moves_it(tmp_path: Path) -> None:
    """As a process of HTTP.sys delegates a request of which it has read the head."""
    async with app(MOVED) as it, app(saying(b"other")) as other:
        async with plugged(tmp_path, it.url, when(307, "other"), pool=more(other)) as s:
            line = await s.connect()
            for _ in range(3):
                head, body = await line.get("/x?y")
                assert head.startswith(b"HTTP/1.1 200 ")
                assert body == b"other"
            assert [head.split(b"\r\n")[0] for head in other.heads] == [b"GET /x?y HTTP/1.1"] * 3
            assert (await line.ask(POST % 0))[1] == b"other"
            await settled()
            assert {(one["pool"], one["status"], one["attempts"]) for one in lines(s)} == {("other", 200, 2)}


async def test_a_body_that_has_begun_to_go_stays(tmp_path: Path) -> None:
    async with app(MOVED) as it, app(saying(b"other")) as other:
        async with plugged(tmp_path, it.url, when(307, "other"), pool=more(other)) as s:
            head, body = await (await s.connect()).ask(POST % 3 + b"abc")
            assert head.startswith(b"HTTP/1.1 307 ")  # this phase fails soft
            assert body == b"moved"
            assert other.connections == 0
            assert "a byte of its body" in await told(s)


async def test_what_a_plugin_has_read_goes_with_it(tmp_path: Path, autojump_clock: object) -> None:
    async def read(self: frontd.Plugin, exchange: frontd.Exchange) -> None:
        assert await exchange.request.body.read(100) == b"abc"

    async with app(saying(b"spare")) as spare:
        dead = f"http://127.0.0.1:{free_port()}"
        other = f"queue: {{wait: 1s}}{pools(('spare', spare.url))}"
        reader = made("reader", filter_request=read)
        async with plugged(tmp_path, dead, reader, after(None, "spare"), pool=other) as stage:
            assert (await (await stage.connect()).ask(POST % 3 + b"abc"))[1] == b"spare"
            assert spare.bodies == [b"abc"]


async def test_fields_for_the_app_are_made_for_the_app_that_gets_them(tmp_path: Path) -> None:
    def rewrite_request(self: frontd.Plugin, exchange: frontd.Exchange) -> None:
        exchange.request.headers.add("X-For", exchange.pool)

    async with app(MOVED) as it, app(saying(b"other")) as other:
        marker = made("marker", rewrite_request=rewrite_request)
        async with plugged(tmp_path, it.url, marker, when(307, "other"), pool=more(other)) as stage:
            assert (await (await stage.connect()).get())[1] == b"other"
        assert b"X-For: app\r\n" in it.heads[0]
        assert b"X-For: other\r\n" in other.heads[0]
        assert b"X-For: app" not in other.heads[0]


# ---------------------------------------------------------------------------------------------------- what may not be


async def test_round_and_round_it_does_not_go(tmp_path: Path) -> None:
    async with app(MOVED) as it, plugged(tmp_path, it.url, when(307, "app")) as stage:
        head, body = await (await stage.connect()).get()
        assert (head[:12], body) == (b"HTTP/1.1 307", b"moved")
        assert len(it.heads) == 4
        assert "handed over 3 times" in await told(stage)


async def test_a_name_that_is_none_is_a_fault_and_the_answer_stands(tmp_path: Path) -> None:
    async with app(MOVED) as it, plugged(tmp_path, it.url, when(307, "nowhere")) as stage:
        head, body = await (await stage.connect()).get()
        assert (head[:12], body) == (b"HTTP/1.1 307", b"moved")
        assert "nowhere" in await told(stage)


async def test_the_next_plugin_is_asked_when_one_may_not(tmp_path: Path, autojump_clock: object) -> None:
    def page(self: frontd.Plugin, exchange: frontd.Exchange, error: frontd.FrontdError) -> frontd.Response:
        return frontd.Response(503, text="later\n")

    dead = f"http://127.0.0.1:{free_port()}"
    async with plugged(
        tmp_path, dead, after(None, "nowhere"), made("page", forward_failed=page), pool="queue: {wait: 1s}"
    ) as stage:
        head, body = await (await stage.connect()).get()
        assert (head[:12], body) == (b"HTTP/1.1 503", b"later\n")


async def test_a_queue_that_fails_too_says_so_itself(tmp_path: Path, autojump_clock: object) -> None:
    """And the plugin is asked again, so that it may know of a third."""
    dead, dead_too = f"http://127.0.0.1:{free_port()}", f"http://127.0.0.1:{free_port()}"
    other = f"queue: {{wait: 1s}}{pools(('spare', dead_too))}"
    async with plugged(tmp_path, dead, after(None, "spare"), pool=other) as stage:
        began = trio.current_time()
        _, body = await (await stage.connect()).get()
        assert b"Reason: AppOffline" in body
        assert trio.current_time() - began == pytest.approx(1 + 3 * 2, abs=0.1)
        assert "handed over 3 times" in await told(stage)


async def test_the_cache_keeps_nothing_of_another_queue_under_the_first_one_s_name(tmp_path: Path) -> None:
    """A page of a spare app must not be given when the first one is there again."""
    spare_says = b"HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 5\r\n\r\nspare"
    first = [MOVED, saying(b"first")]

    async def script(line: Line) -> None:
        while await line.head():
            await line.send(first.pop(0))

    async with app(script) as it, app(spare_says) as spare:
        other = f"concurrency: 1{pools(('spare', spare.url))}"
        async with plugged(tmp_path, it.url, ResponseCache, when(307, "spare"), pool=other) as stage:
            line = await stage.connect()
            assert (await line.get())[1] == b"spare"
            assert (await line.get())[1] == b"first"

