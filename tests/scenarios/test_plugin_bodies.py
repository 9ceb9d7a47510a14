"""Plugins that read the request's body: it is forwarded all the same, and within its limits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from frontd import Allow, Exchange, FrontdError, Plugin, Refuse
from tests.scenarios.plugged import PluginClass, fields, made, plugged, says, status, told
from tests.scenarios.test_plugin_doors import ALICE, GUARD
from tests.wire import OK, Line, app, settled

KILO = bytes(range(64)) * 16
seen: list[bytes | str] = []


@pytest.fixture(autouse=True)
def nothing_read() -> None:
    seen.clear()


def reader(max_bytes: int, *, hook: str = "filter_request", name: str = "reader") -> PluginClass:
    """Reads the body and goes on."""

    async def read(self: Plugin, exchange: Exchange) -> None:
        seen.append(await exchange.request.body.read(max_bytes))

    return made(name, **{hook: read})


def post(body: bytes, *lines: str) -> bytes:
    more = "".join(f"{line}\r\n" for line in lines)
    return f"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: {len(body)}\r\n{more}\r\n".encode() + body


def chunked(*parts: bytes, trailer: bytes = b"") -> bytes:
    head = b"POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n"
    return head + b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n" + trailer + b"\r\n"


@pytest.mark.parametrize("hook", ["filter_request", "authenticate", "authorize", "cache_lookup", "rewrite_request"])
async def test_read_and_forwarded(tmp_path: Path, hook: str) -> None:
    rule = made("rule", authorize=says(Allow()))
    async with app() as it, plugged(tmp_path, it.url, reader(4096, hook=hook), rule) as stage:
        line = await stage.connect()
        for request in (post(KILO), chunked(KILO[:100], KILO[100:]), post(b"")):
            assert (await line.ask(request))[1] == b"ok"
        assert seen == it.bodies == [KILO, KILO, b""]
        assert fields(it.heads[0], "Content-Length") == ["1024"]
        assert fields(it.heads[1], "Transfer-Encoding") == ["chunked"]


async def test_a_body_in_small_pieces_with_a_trailer(tmp_path: Path) -> None:
    raw: list[bytes] = []

    async def script(line: Line) -> None:
        raw.append(await line.read_until(b"0\r\nX-Sum: 7\r\n\r\n"))
        await line.send(OK)

    async with app(script) as it, plugged(tmp_path, it.url, reader(4096)) as stage:
        line = await stage.connect()
        request = chunked(*(KILO[i : i + 1] for i in range(300)), trailer=b"X-Sum: 7\r\n")
        for start in range(0, len(request), 7):
            await line.send(request[start : start + 7])
            await trio.lowlevel.checkpoint()
        assert (await line.message())[1] == b"ok"
        assert seen == [KILO[:300]]
        assert raw[0].endswith(b"0\r\nX-Sum: 7\r\n\r\n")


async def test_the_client_is_told_to_continue_when_somebody_reads(tmp_path: Path) -> None:
    async with app() as it, plugged(tmp_path, it.url, reader(4096), GUARD) as stage:
        line = await stage.connect()
        head, body = post(b"body", "Expect: 100-continue", ALICE).split(b"\r\n\r\n")
        await line.send(head + b"\r\n\r\n")
        assert await line.head() == b"HTTP/1.1 100 Continue\r\n\r\n"
        await line.send(body)
        assert (await line.message())[1] == b"ok"
        assert seen == it.bodies == [b"body"]
        assert fields(it.heads[0], "Expect") == []


async def test_who_is_refused_first_is_not_told_to_continue(tmp_path: Path) -> None:
    """The body of whoever may not come in is not even asked for."""
    async with plugged(tmp_path, "http://127.0.0.1:1", reader(4096, hook="route"), GUARD) as stage:
        line = await stage.connect()
        head, _ = await line.ask(post(b"body", "Expect: 100-continue").split(b"body")[0])
        assert status(head) == 401
        assert seen == []


@pytest.mark.parametrize("request_", [post(KILO), chunked(KILO), chunked(KILO[:1000], KILO[1000:])])
async def test_over_the_limit_of_the_plugin(tmp_path: Path, request_: bytes) -> None:
    async with app() as it:
        async with plugged(tmp_path, it.url, reader(1023)) as stage:
            head, body = await (await stage.connect()).ask(request_)
            assert status(head) == 413
            assert b"The limit is 1023 bytes." in body
            assert stage.reasons == {"EntityTooLarge": 1}
        async with plugged(tmp_path, it.url, reader(1024)) as stage:
            assert status((await (await stage.connect()).ask(request_))[0]) == 200
        assert it.bodies == [KILO]


@pytest.mark.parametrize("request_", [post(KILO), chunked(KILO), chunked(KILO[:1000], KILO[1000:])])
async def test_a_plugin_that_makes_do_with_less(tmp_path: Path, request_: bytes) -> None:
    """It looks at small bodies only, and lets longer ones pass: they reach the app whole."""

    async def look(self: Plugin, exchange: Exchange) -> None:
        for _ in range(2):
            try:
                seen.append(await exchange.request.body.read(10))
            except FrontdError as error:
                seen.append(error.reason.word)

    async with app() as it, plugged(tmp_path, it.url, made("look", filter_request=look), reader(2000)) as stage:
        assert status((await (await stage.connect()).ask(request_))[0]) == 200
        assert seen == ["EntityTooLarge", "EntityTooLarge", KILO]
        assert it.bodies == [KILO]
    seen.clear()
    async with app() as it, plugged(tmp_path, it.url, made("look", filter_request=look)) as stage:
        assert status((await (await stage.connect()).ask(request_))[0]) == 200
        assert it.bodies == [KILO]


@pytest.mark.parametrize("request_", [post(KILO), chunked(KILO), chunked(KILO[:5], KILO[5:])])
async def test_nobody_makes_do_with_more_than_the_site_takes(tmp_path: Path, request_: bytes) -> None:
    """A plugin that swallows the refusal does not make the app see a part for the whole."""

    async def swallow(self: Plugin, exchange: Exchange) -> None:
        for _ in range(2):
            with pytest.raises(FrontdError, match="EntityTooLarge"):
                await exchange.request.body.read(10_000)

    async with app() as it:
        plugin = made("swallow", filter_request=swallow)
        async with plugged(tmp_path, it.url, plugin, site="limits: {max_body: 10}") as stage:
            head, _ = await (await stage.connect()).ask(request_)
            assert status(head) == 413
            assert it.bodies == []


async def test_twice_and_by_two_plugins(tmp_path: Path) -> None:
    plugins = [reader(4096), reader(2048, hook="authorize", name="again"), reader(100, hook="route", name="small")]
    async with app() as it, plugged(tmp_path, it.url, *plugins[:2]) as stage:
        assert (await (await stage.connect()).ask(chunked(KILO, KILO)))[1] == b"ok"
        assert seen == [KILO * 2] * 2
        assert it.bodies == [KILO * 2]
    async with app() as it, plugged(tmp_path, it.url, *plugins) as stage:
        assert status((await (await stage.connect()).ask(chunked(KILO, KILO)))[0]) == 413
        assert it.bodies == []


async def test_read_after_it_was_sent(tmp_path: Path) -> None:
    """What was kept can be looked at to the end, as audits do; what has streamed past cannot."""
    audit = reader(1_000_000, hook="admit_response", name="audit")
    async with app() as it, plugged(tmp_path, it.url, audit, pool="replay_body: 2000") as stage:
        line = await stage.connect()
        for request in (post(KILO), chunked(KILO), post(bytes(200_000))):
            assert (await line.ask(request))[1] == b"ok"
        assert seen == [KILO, KILO]
        assert it.bodies == [KILO, KILO, bytes(200_000)]
        assert ": plugin audit.admit_response: RuntimeError: the body is on its way" in await told(stage)


async def test_read_while_it_is_sent(tmp_path: Path) -> None:
    """The app answers before the upload has ended; the plugin that looks now does not get between the two."""

    async def script(line: Line) -> None:
        await line.read_until(b"first")
        await line.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n")
        await line.read_until(b"last")
        await line.send(b"got it all")

    early = reader(4096, name="early")
    late = reader(4096, hook="admit_response", name="late")
    for plugins in ([late], [early, late]):
        async with app(script) as it, plugged(tmp_path, it.url, *plugins) as stage:
            line = await stage.connect()
            await line.send(b"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 9\r\n\r\nfirst")
            await settled()
            await line.send(b"last")
            assert (await line.message())[1] == b"got it al"
    assert seen == [b"firstlast"] * 2


@pytest.mark.parametrize(
    ("limit", "size", "code"),
    [(5000, 4096, 200), (None, 4096, 200), (4095, 4096, 413), (100, 101, 413), (100, 100, 200), (0, 1, 413)],
)
@pytest.mark.parametrize("is_read", [False, True])
@pytest.mark.parametrize("frame", [post, chunked])
async def test_a_plugin_sets_the_limit(
    tmp_path: Path, limit: int | None, size: int, code: int, is_read: bool, frame: Callable[[bytes], bytes]
) -> None:
    """Higher or lower than the site's 1000, as long as the body is not read."""

    async def choose(self: Plugin, exchange: Exchange) -> None:
        assert exchange.request.max_body == 1000
        exchange.request.max_body = limit
        if is_read:
            seen.append(await exchange.request.body.read(10_000))

    plugin = made("choose", filter_request=choose)
    async with app() as it, plugged(tmp_path, it.url, plugin, site="limits: {max_body: 1000}") as stage:
        head, _ = await (await stage.connect()).ask(frame(bytes(size)))
        assert status(head) == code
        assert seen == ([bytes(size)] if is_read and code == 200 else [])
        if code == 200:
            assert it.bodies == [bytes(size)]


async def test_what_was_read_is_sent_again(tmp_path: Path) -> None:
    """The kept connection turns out to be closed: the request goes out once more, with more body than a pool would
    keep for that by itself."""
    bodies: list[bytes] = []

    async def script(line: Line) -> None:
        _, body = await line.message()
        bodies.append(body)
        if line.number == 0 and len(bodies) == 1:
            await line.send(OK)
            await line.message()  # and hangs up instead of answering
            return
        await line.send(OK)

    put = post(bytes(300_000)).replace(b"POST", b"PUT", 1)
    async with app(script) as it:
        for plugins, code, got in (([reader(400_000)], 200, [b"", bytes(300_000)]), ([], 502, [b""])):
            bodies.clear()
            it.connections = 0
            async with plugged(tmp_path, it.url, *plugins, pool="replay_body: 1000") as stage:
                line = await stage.connect()
                assert (await line.get())[1] == b"ok"
                await settled()
                assert status((await line.ask(put))[0]) == code
                assert bodies == got


async def test_nobody_reads_it(tmp_path: Path) -> None:
    """The body streams as ever: the app sees its beginning before the client has sent the rest."""
    began = trio.Event()

    async def script(line: Line) -> None:
        await line.read_until(b"first")
        began.set()
        await line.read_until(b"last")
        await line.send(OK)

    async def idle(self: Plugin, exchange: Exchange) -> None:
        await trio.lowlevel.checkpoint()

    async with app(script) as it, plugged(tmp_path, it.url, made("idle", filter_request=idle)) as stage:
        line = await stage.connect()
        await line.send(b"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 9\r\n\r\nfirst")
        await began.wait()
        await line.send(b"last")
        assert (await line.message())[1] == b"ok"


async def test_a_refusal_after_the_body_keeps_the_connection(tmp_path: Path) -> None:
    async def refuse(self: Plugin, exchange: Exchange) -> Refuse | None:
        found = b"<script" in await exchange.request.body.read(4096)
        return Refuse(400, "BadRequest") if found else None

    async with app() as it, plugged(tmp_path, it.url, made("refuse", filter_request=refuse)) as stage:
        line = await stage.connect()
        assert status((await line.ask(post(b"<script>")))[0]) == 400
        assert status((await line.ask(chunked(b"<scr", b"ipt>")))[0]) == 400
        assert (await line.ask(post(b"fine")))[1] == b"ok"
        assert it.bodies == [b"fine"]


async def test_a_client_that_sends_too_slowly(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    async with plugged(tmp_path, "http://127.0.0.1:1", reader(4096), site="timeouts: {entity_body: 7s}") as stage:
        line = await stage.connect()
        await line.send(post(KILO)[:-1])
        before = trio.current_time()
        assert status(await line.head()) == 408
        assert 7 <= trio.current_time() - before < 8
        assert stage.reasons == {"Timer_EntityBody": 1}


async def test_a_plugin_with_a_timer_of_its_own(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    """What had arrived when it gave up is not lost."""

    async def impatient(self: Plugin, exchange: Exchange) -> None:
        with trio.move_on_after(1):
            await exchange.request.body.read(4096)

    async with app() as it, plugged(tmp_path, it.url, made("impatient", filter_request=impatient)) as stage:
        line = await stage.connect()
        request = post(KILO)
        await line.send(request[:-10])
        await trio.sleep(2)
        await line.send(request[-10:])
        assert (await line.message())[1] == b"ok"
        assert it.bodies == [KILO]
