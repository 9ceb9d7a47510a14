"""Plugins that choose the destination, replace answers, and keep them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from frontd import Exchange, FrontdError, Plugin, Redirect, Response
from frontd.upstream import ondemand
from tests.scenarios.plugged import PluginClass, fields, made, plugged, reload, says, status, text, told
from tests.wire import OK, Line, Stage, app, settled

NAMED = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nother"


def pools(stage: Stage) -> list[str]:
    return [pool.settings.name for pool in stage.front.service.world.ondemand]


def chooses(choice: Callable[[Exchange], object]) -> PluginClass:
    return made("chooses", route=lambda self, exchange: choice(exchange))


def by_path(exchange: Exchange) -> str | None:
    """``/to/DESTINATION``."""
    _, _, rest = exchange.request.query.partition("to=")
    return rest or None


# ---------------------------------------------------------------------------------------------------- route


async def test_a_pool_by_name_a_target_by_url_or_as_the_routes_say(tmp_path: Path) -> None:
    async with app() as it, app(NAMED) as other:
        async with plugged(tmp_path, it.url, chooses(by_path), extra=f"x-other: {other.url}") as stage:
            line = await stage.connect()
            assert (await line.get("/x?to=app"))[1] == b"ok"
            assert (await line.get("/y"))[1] == b"ok"
            assert pools(stage) == []
            for _ in range(3):
                assert (await line.get(f"/z?to={other.url}"))[1] == b"other"
            assert pools(stage) == [other.url]
            assert (it.connections, other.connections) == (1, 1)
            assert other.heads[0].startswith(f"GET /z?to={other.url} HTTP/1.1\r\nHost: a.test\r\n".encode())
            log = stage.log()
            assert log.count(f'"route":"chooses.route","pool":"{other.url}"') == 3


async def test_a_route_that_no_path_has(tmp_path: Path) -> None:
    """The plugin decides before the routes: a path that none of them covers has a destination too, a file has
    another."""
    (tmp_path / "x").write_text("a file")
    routes = f"/files/: {{files: {tmp_path}}}"
    async with app() as it, plugged(tmp_path, it.url, chooses(by_path), routes=routes) as stage:
        line = await stage.connect()
        assert status((await line.get("/none"))[0]) == 404
        assert (await line.get("/none?to=app"))[1] == b"ok"
        assert (await line.get("/files/x"))[1] == b"a file"
        assert (await line.get("/files/x?to=app"))[1] == b"ok"


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
async def test_a_redirect(tmp_path: Path, code: int) -> None:
    plugin = chooses(lambda exchange: Redirect("https://b.test/x?y=1", code))
    async with plugged(tmp_path, "http://127.0.0.1:1", plugin) as stage:
        line = await stage.connect()
        for _ in range(2):
            head, body = await line.get()
            assert (status(head), fields(head, "Location")) == (code, ["https://b.test/x?y=1"])
            assert b"https://b.test/x?y=1" in body


@pytest.mark.parametrize(
    "wrong",
    ["nowhere", "app ", "APP", "http://", "http://*/", "http://a/path", "http://u:p@a/", "ftp://a/", "unix:", "\0",
     "//a", "http://127.0.0.1:99999", "h2c://a", "http://[::1", "http://a.test:80/?x"],
)  # fmt: skip
async def test_no_such_destination(tmp_path: Path, wrong: str) -> None:
    async with app() as it, plugged(tmp_path, it.url, chooses(lambda exchange: wrong)) as stage:
        line = await stage.connect()
        for _ in range(2):
            head, body = await line.get()
            assert status(head) == 500
            assert b"nowhere" not in body
        assert it.heads == []
        assert pools(stage) == []
        assert "plugin chooses.route: ValueError: " in await told(stage)


async def test_the_first_that_chooses(tmp_path: Path) -> None:
    plugins = [made(name, route=says(answer)) for name, answer in (("a", None), ("b", "app"), ("c", "nowhere"))]
    async with app() as it, plugged(tmp_path, it.url, *plugins) as stage:
        assert (await (await stage.connect()).get())[1] == b"ok"


async def test_pools_for_targets_stay_over_a_reload(tmp_path: Path) -> None:
    async with app() as it, app(NAMED) as other, plugged(tmp_path, it.url, chooses(by_path)) as stage:
        line = await stage.connect()
        await line.get(f"/?to={other.url}")
        plugin = chooses(by_path)
        assert (await reload(stage, text(it.url, [plugin], extra="limits: {max_fields: 99}"), plugin)).ok
        assert (await line.get(f"/?to={other.url}"))[1] == b"other"
        assert other.connections == 1


async def test_pools_for_targets_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that was asked for longest ago leaves; what it is asked for at that moment is answered."""
    monkeypatch.setattr(ondemand, "MOST", 3)
    waiting, go = trio.Event(), trio.Event()

    async def slow(line: Line) -> None:
        await line.head()
        waiting.set()
        await go.wait()
        await line.send(OK)

    async with app(slow) as first, app(host="0.0.0.0") as it, plugged(tmp_path, it.url, chooses(by_path)) as stage:
        line = await stage.connect()
        await line.send(f"GET /?to={first.url} HTTP/1.1\r\nHost: a.test\r\n\r\n".encode())
        await waiting.wait()
        other = await stage.connect()
        names = [f"http://127.0.0.{n}:{it.port}" for n in range(1, 6)]
        for name in [names[0], names[1], names[0], names[2]]:
            assert (await other.get(f"/?to={name}"))[1] == b"ok"
        assert pools(stage) == [names[1], names[0], names[2]]
        go.set()
        assert (await line.message())[1] == b"ok"


# ---------------------------------------------------------------------------------------------------- admit_response


BIG = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + bytes(1000000)


@pytest.mark.parametrize("script", [OK, BIG, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"])
async def test_what_is_replaced_is_not_seen(tmp_path: Path, script: bytes) -> None:
    """Nothing of the app's answer reaches the client, and its connection is not used again half-read."""
    plugin = made("instead", admit_response=says(Response(451, [("X-New", "1")], text="instead")))
    async with app(script) as it, plugged(tmp_path, it.url, plugin) as stage:
        line = await stage.connect()
        for number in (1, 2, 3):
            head, body = await line.get()
            assert (status(head), body, fields(head, "X-New")) == (451, b"instead", ["1"])
            assert it.connections == number
        await settled()
        assert stage.reasons == {}


async def test_what_is_replaced_while_the_upload_runs(tmp_path: Path) -> None:
    async def script(line: Line) -> None:
        await line.head()
        await line.send(OK)
        await line.read_to_end()

    plugin = made("instead", admit_response=says(Response(451, text="instead")))
    async with app(script) as it, plugged(tmp_path, it.url, plugin) as stage:
        line = await stage.connect()
        await line.send(b"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 100\r\n\r\nfirst")
        head, body = await line.message()
        assert (status(head), body, fields(head, "Connection")) == (451, b"instead", ["close"])


async def test_the_first_replacement_ends_the_phase(tmp_path: Path) -> None:
    asked: list[str] = []
    first = made("first", admit_response=says(Response(404)))
    second = made("second", admit_response=lambda self, exchange: asked.append("second"))
    async with app() as it, plugged(tmp_path, it.url, first, second) as stage:
        assert status((await (await stage.connect()).get())[0]) == 404
        assert asked == []


async def test_what_is_admitted_may_be_changed(tmp_path: Path) -> None:
    seen: list[tuple[int, object]] = []

    def admit(self: Plugin, exchange: Exchange) -> None:
        response = exchange.response
        seen.append((response.status, response.body))
        response.headers.set("Server", "x")
        response.headers.remove("X-Secret")

    answer = b"HTTP/1.1 201 Made\r\nX-Secret: 1\r\nServer: old\r\nContent-Length: 2\r\n\r\nok"
    async with app(answer) as it, plugged(tmp_path, it.url, made("admits", admit_response=admit)) as stage:
        head, body = await (await stage.connect()).get()
        assert head.startswith(b"HTTP/1.1 201 Made\r\n")
        assert (fields(head, "Server"), fields(head, "X-Secret"), body) == (["x"], [], b"ok")
        assert seen == [(201, None)]


# ---------------------------------------------------------------------------------------------------- forward_failed


async def test_instead_of_an_error(tmp_path: Path) -> None:
    seen: list[str] = []

    def failed(self: Plugin, exchange: Exchange, error: FrontdError) -> Response | None:
        seen.append(error.reason.word)
        return Response(200, text="please wait") if "html" in exchange.request.headers.text("accept") else None

    pool = "queue: {limit: 1, wait: 10ms}"
    async with plugged(tmp_path, "http://127.0.0.1:1", made("waits", forward_failed=failed), pool=pool) as stage:
        line = await stage.connect()
        head, body = await line.get("/", "Accept: text/html")
        assert (status(head), body) == (200, b"please wait")
        assert status((await line.get())[0]) == 503
        await settled()
        assert seen == ["AppOffline", "AppOffline"]
        assert stage.reasons == {"AppOffline": 2}  # it did fail, whatever the client was told


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
    ],
)
async def test_not_when_the_answer_has_begun(tmp_path: Path, answer: bytes) -> None:
    async def script(line: Line) -> None:
        await line.head()
        await line.send(answer)

    asked: list[str] = []
    plugin = made("waits", forward_failed=lambda self, exchange, error: asked.append(error.reason.word))
    async with app(script) as it, plugged(tmp_path, it.url, plugin) as stage:
        line = await stage.connect()
        await line.send(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
        assert (await line.read_to_end()).endswith(b"<reset>")
        assert asked == []


async def test_not_for_what_the_client_did(tmp_path: Path) -> None:
    asked: list[str] = []
    plugin = made("waits", forward_failed=lambda self, exchange, error: asked.append(error.reason.word))
    async with app() as it, plugged(tmp_path, it.url, plugin, site="limits: {max_body: 2}") as stage:
        chunked = b"POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
        assert status((await (await stage.connect()).ask(chunked))[0]) == 413
        assert asked == []


# ---------------------------------------------------------------------------------------------------- capture


Kept = list[Response]


def captures(kept: Kept, max_bytes: int = 100, name: str = "captures", **more: Any) -> PluginClass:
    def admit(self: Plugin, exchange: Exchange) -> None:
        exchange.response.capture(max_bytes, kept.append)

    return made(name, admit_response=admit, **more)


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-A: 1\r\n\r\n3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n"


async def test_the_whole_of_an_answer(tmp_path: Path) -> None:
    """As it is at the end of `admit_response`: what is changed on its way out is not kept."""
    kept: Kept = []

    def admit(self: Plugin, exchange: Exchange) -> None:
        exchange.response.headers.set("X-Admitted", "1")

    def rewrite(self: Plugin, exchange: Exchange) -> None:
        exchange.response.status = 203
        exchange.response.headers.set("X-Rewritten", "1")

    plugins = [captures(kept), made("admits", admit_response=admit), made("rewrites", rewrite_response=rewrite)]
    async with app(CHUNKED) as it, plugged(tmp_path, it.url, *plugins) as stage:
        line = await stage.connect()
        for _ in range(2):
            head, body = await line.get()
            assert (status(head), body, fields(head, "X-Rewritten")) == (203, b"abcdefg", ["1"])
        assert len(kept) == 2
        for response in kept:
            assert (response.status, response.body) == (200, b"abcdefg")
            assert response.headers.get("x-admitted") == b"1"
            assert b"x-rewritten" not in response.headers
        kept[0].headers.set("X-Admitted", "changed")  # a copy for everybody
        assert kept[1].headers.get("x-admitted") == b"1"


async def test_as_much_as_was_asked_for(tmp_path: Path) -> None:
    """Exactly so much is fine, one byte more is not; who wants more gets it all the same."""
    six, seven, more = Kept(), Kept(), Kept()
    plugins = [captures(six, 6, "six"), captures(seven, 7, "seven"), captures(more, 1000, "more")]
    async with app(CHUNKED) as it, plugged(tmp_path, it.url, *plugins) as stage:
        assert (await (await stage.connect()).get())[1] == b"abcdefg"
        assert [[response.body for response in kept] for kept in (six, seven, more)] == [[], [b"abcdefg"], [b"abcdefg"]]


async def test_a_long_answer_is_not_collected(tmp_path: Path) -> None:
    kept: Kept = []
    async with app(BIG) as it, plugged(tmp_path, it.url, captures(kept)) as stage:
        assert len((await (await stage.connect()).get())[1]) == 1_000_000
        assert kept == []


@pytest.mark.parametrize("how", ["the app breaks off", "the client leaves", "it is replaced", "an app without an end"])
async def test_never_a_part_for_the_whole(tmp_path: Path, how: str) -> None:
    kept: Kept = []

    async def script(line: Line) -> None:
        await line.head()
        if how == "an app without an end":
            await line.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
            return
        await line.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
        if how == "the client leaves":
            await line.read_to_end()

    plugins = [captures(kept)]
    if how == "it is replaced":
        plugins.append(made("instead", admit_response=says(Response(200, text="instead"))))
    async with app(script) as it, plugged(tmp_path, it.url, *plugins) as stage:
        line = await stage.connect()
        await line.send(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
        if how == "the client leaves":
            await line.read_until(b"half")
            await line.close()
        elif how == "it is replaced":
            assert (await line.message())[1] == b"instead"
        else:
            await line.read_to_end()
        await settled()
        assert kept == []


async def test_a_faulty_neighbour_keeps_everything_out(tmp_path: Path) -> None:
    """It may have been the one to forbid that the answer is kept."""
    kept: Kept = []
    bad = made("bad", admit_response=says(RuntimeError()))
    for order in ([captures(kept), bad], [bad, captures(kept)]):
        async with app() as it, plugged(tmp_path, it.url, *order) as stage:
            assert (await (await stage.connect()).get())[1] == b"ok"
    assert kept == []


async def test_what_takes_it_may_fail(tmp_path: Path) -> None:
    kept: Kept = []

    def fail(response: Response) -> None:
        raise RuntimeError("no room")

    broken = made("broken", admit_response=lambda self, exchange: exchange.response.capture(9, fail))
    async with app() as it, plugged(tmp_path, it.url, broken, captures(kept)) as stage:
        assert (await (await stage.connect()).get())[1] == b"ok"
        await settled()
        assert [response.body for response in kept] == [b"ok"]
        assert ": plugin broken.admit_response (capture): RuntimeError: no room" in await told(stage)
