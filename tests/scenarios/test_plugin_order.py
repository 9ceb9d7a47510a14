"""Who is asked when: phases in the order of a request's life, plugins in the order of the configuration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import trio

import frontd
from frontd import Allow, Exchange, Identity, Plugin, Redirect, Refuse, Response
from frontd.pipeline.phases import SPECS
from tests.scenarios.plugged import PluginClass, made, of, plugged, says, status, text
from tests.scenarios.test_upgrade import AGREED, ASK
from tests.wire import OK, Line, app, front, settled

OF_AN_EXCHANGE = [name for name, spec in SPECS.items() if spec.arguments[0] == "exchange"]


def diary(name: str, said: list[str], **answers: object) -> PluginClass:
    """A plugin that writes down each of its hooks that is asked; `answers` are what some of them answer."""

    def hook(which: str) -> Callable[..., object]:
        def asked(self: Plugin, exchange: Exchange) -> object:
            said.append(f"{name}.{which}")
            answer = answers.get(which)
            return answer() if callable(answer) else answer

        return asked

    def failed(self: Plugin, exchange: Exchange, error: frontd.FrontdError) -> object:
        said.append(f"{name}.forward_failed")
        return answers.get("forward_failed")

    hooks = {which: hook(which) for which in OF_AN_EXCHANGE if which != "forward_failed"}
    return made(name, **hooks, forward_failed=failed)


LOGGED_ON: dict[str, object] = {"authenticate": Identity("alice")}
EVERYTHING = [
    "filter_request", "authenticate", "authorize", "route", "cache_lookup", "rewrite_request", "admit_response",
    "rewrite_response", "log",
]  # fmt: skip


async def test_the_phases_of_a_request(tmp_path: Path) -> None:
    said: list[str] = []

    async def script(line: Line) -> None:
        while await line.head():
            said.append("the app")
            await line.send(OK)

    async with app(script) as it, plugged(tmp_path, it.url, diary("a", said, **LOGGED_ON)) as stage:
        line = await stage.connect()
        await line.get()
        await settled()
        expected = [f"a.{which}" for which in EVERYTHING]
        expected.insert(EVERYTHING.index("admit_response"), "the app")
        assert said == expected
        first = list(said)
        await line.get()
        await settled()
        assert said == first * 2  # on the same connection


@pytest.mark.parametrize(
    ("answers", "phases", "code"),
    [
        ({"filter_request": Refuse(404, "Rejected")}, "filter_request rewrite_response log", 404),
        ({"filter_request": Response(200)}, "filter_request rewrite_response log", 200),
        ({}, "filter_request authenticate authorize challenge rewrite_response log", 401),
        ({"authenticate": Refuse(403, "Forbidden")}, "filter_request authenticate rewrite_response log", 403),
        ({"authenticate": frontd.Continue("x", "NTLM")}, "filter_request authenticate rewrite_response log", 401),
        (LOGGED_ON | {"authorize": Response(401)},
         "filter_request authenticate authorize challenge rewrite_response log", 401),
        (LOGGED_ON | {"route": Redirect("/")}, "filter_request authenticate authorize route rewrite_response log", 308),
        (LOGGED_ON | {"route": "no target"}, "filter_request authenticate authorize route rewrite_response log", 500),
        (LOGGED_ON | {"cache_lookup": Response(200)},
         "filter_request authenticate authorize route cache_lookup rewrite_response log", 200),
        (LOGGED_ON | {"admit_response": Response(404)},
         "filter_request authenticate authorize route cache_lookup rewrite_request admit_response rewrite_response log",
         404),
        (LOGGED_ON | {"rewrite_request": 1},
         "filter_request authenticate authorize route cache_lookup rewrite_request rewrite_response log", 500),
    ],
)  # fmt: skip
async def test_what_an_answer_leaves_out(tmp_path: Path, answers: dict[str, object], phases: str, code: int) -> None:
    """`rewrite_response` and `log` see every answer; nothing between them and the answer is asked."""
    said: list[str] = []
    async with app() as it, plugged(tmp_path, it.url, diary("a", said, **answers)) as stage:
        assert status((await (await stage.connect()).get())[0]) == code
        await settled()
        assert said == [f"a.{which}" for which in phases.split()]


@pytest.mark.parametrize(("path", "code"), [("/file/x", 200), ("/file/y", 404), ("/to/", 308), ("/nowhere", 404)])
async def test_answers_without_an_app(tmp_path: Path, path: str, code: int) -> None:
    """No app: nothing is looked up in a cache, rewritten for it or admitted; but the answer is seen and logged."""
    (tmp_path / "x").write_text("x")
    said: list[str] = []
    plugin = diary("a", said, **LOGGED_ON)
    routes = f"/file/: {{files: {tmp_path}}}, /to/: {{redirect: 'http://b.test/'}}"
    async with plugged(tmp_path, "http://127.0.0.1:1", plugin, routes=routes) as stage:
        assert status((await (await stage.connect()).get(path))[0]) == code
        await settled()
        asked = ("filter_request", "authenticate", "authorize", "route", "rewrite_response", "log")
        assert said == [f"a.{which}" for which in asked]


async def test_an_app_that_gives_no_answer(tmp_path: Path) -> None:
    async def gone(line: Line) -> None:
        await line.head()

    said: list[str] = []
    a, b = (
        diary(name, said, **LOGGED_ON, forward_failed=Response(200, text="sorry") if name == "b" else None)
        for name in "ab"
    )
    async with app(gone) as it, plugged(tmp_path, it.url, a, b) as stage:
        line = await stage.connect()
        head, body = await line.ask(b"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 1\r\n\r\nx")
        assert (status(head), body) == (200, b"sorry")
        await settled()
        assert said[-6:] == [
            "a.forward_failed", "b.forward_failed", "a.rewrite_response", "b.rewrite_response", "a.log", "b.log",
        ]  # fmt: skip
        assert stage.reasons == {"Connection_Abandoned_By_ReqQueue": 1}


async def test_plugins_are_asked_in_the_order_of_the_configuration(tmp_path: Path) -> None:
    """Within each phase; the server's before the site's, although pluggy would call the last one first."""
    said: list[str] = []
    names = ["z", "a", "m", "b"]
    plugins = [diary(name, said, authorize=Allow()) for name in names]
    async with app() as it:
        async with plugged(tmp_path, it.url, plugins[1], plugins[3], plugins[2], server=plugins[:1]) as stage:
            await (await stage.connect()).get()
            await settled()
    assert said == [f"{name}.{which}" for which in EVERYTHING for name in "zabm"]


async def test_a_plugin_that_stands_twice(tmp_path: Path) -> None:
    """Two instances with settings of their own, each in its place."""

    class Mark(frontd.Plugin):
        name = "mark"

        class Settings(frontd.Settings):
            value: str

        def rewrite_response(self, exchange: Exchange) -> None:
            exchange.response.headers.add("X-Mark", self.settings.value)

    between = made("between", rewrite_response=lambda self, exchange: exchange.response.headers.add("X-Mark", "-"))
    twice: list[PluginClass | str] = ["mark: {value: one}", between, "mark: {value: two}"]
    written = text("http://127.0.0.1:1", twice, routes="/: {redirect: 'http://b.test/'}")
    async with front(written, tmp_path, of(Mark, between)) as stage:
        head, _ = await (await stage.connect()).get()
        assert head.count(b"X-Mark: ") == 3
        assert head.index(b"X-Mark: one") < head.index(b"X-Mark: -") < head.index(b"X-Mark: two")


async def test_a_whole_phase_is_over_before_the_next(tmp_path: Path) -> None:
    """Also when the first plugin of a phase takes its time."""
    said: list[str] = []

    async def slow(self: Plugin, exchange: Exchange) -> None:
        await trio.lowlevel.checkpoint()
        said.append("slow.filter_request")

    quick = diary("quick", said)
    async with app() as it, plugged(tmp_path, it.url, made("slow", filter_request=slow), quick) as stage:
        await (await stage.connect()).get()
        assert said[:3] == ["slow.filter_request", "quick.filter_request", "quick.authenticate"]


# ---------------------------------------------------------------------------------------------------- the end


Ended = list[tuple[int, str]]


def keeper(ended: Ended, **hooks: object) -> PluginClass:
    """Keeps status and reason of what has ended."""

    def log(self: Plugin, exchange: Exchange) -> None:
        ended.append((exchange.status, exchange.reason.word if exchange.reason else ""))

    return made("keeper", log=log, **hooks)


async def test_the_end_is_told_once_with_what_came_of_it(tmp_path: Path) -> None:
    ended: Ended = []
    routes = "/app/: app, /to/: {redirect: 'http://b.test/'}"
    async with app() as it, plugged(tmp_path, it.url, keeper(ended), routes=routes) as stage:
        line = await stage.connect()
        for path in ("/app/", "/to/", "/none"):
            await line.get(path)
        await line.ask(b"POST /app/ HTTP/1.1\r\nHost: a.test\r\nContent-Length: 99999999\r\n\r\n")
        await settled()
        assert ended == [(200, ""), (308, ""), (404, "NotFound"), (413, "EntityTooLarge")]


async def test_what_an_earlier_plugin_refused_is_told_to_all(tmp_path: Path) -> None:
    """Also to those that were never asked: they look into the state of the exchange before they undo anything."""
    seen: list[dict[object, object]] = []
    first = made("first", filter_request=says(Refuse(404, "Rejected")))

    def count(self: Plugin, exchange: Exchange) -> None:
        exchange.state(self)["counted"] = True

    second = made("second", filter_request=count, log=lambda self, exchange: seen.append(exchange.state(self)))
    async with app() as it, plugged(tmp_path, it.url, second, first, second) as stage:
        await (await stage.connect()).get()
        await settled()
        assert seen == [{"counted": True}, {}]


async def test_a_client_that_leaves(tmp_path: Path) -> None:
    """While a plugin thinks, while the app does, and while the answer is on its way."""
    ended: Ended = []

    async def think(self: Plugin, exchange: Exchange) -> None:
        if exchange.request.path == "/think":
            await trio.sleep_forever()

    async def script(line: Line) -> None:
        if b"/half" in await line.head():
            await line.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
        await line.read()

    async with app(script) as it, plugged(tmp_path, it.url, keeper(ended, filter_request=think)) as stage:
        for path in ("/think", "/slow", "/half"):
            line = await stage.connect()
            await line.send(f"GET {path} HTTP/1.1\r\nHost: a.test\r\n\r\n".encode())
            if path == "/half":
                await line.read_until(b"half")
            await settled()
            await line.close()
            await settled()
        assert ended == [(0, "Client_Reset"), (0, "Client_Reset"), (200, "Connection_Dropped")]


async def test_an_app_that_breaks_off(tmp_path: Path) -> None:
    ended: Ended = []

    async def script(line: Line) -> None:
        await line.head()
        await line.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")

    async with app(script) as it, plugged(tmp_path, it.url, keeper(ended)) as stage:
        line = await stage.connect()
        await line.send(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
        await line.read_to_end()
        await settled()
        assert ended == [(200, "BadUpstreamBody")]


async def test_a_tunnel_is_logged_when_it_ends(tmp_path: Path) -> None:
    ended: Ended = []
    said: list[str] = []

    async def script(line: Line) -> None:
        await line.head()
        await line.send(AGREED)
        await line.read_to_end()

    async with app(script) as it, plugged(tmp_path, it.url, keeper(ended), diary("a", said, **LOGGED_ON)) as stage:
        line = await stage.connect()
        await line.send(ASK)
        assert status(await line.head()) == 101
        await settled()
        assert ended == []
        assert "a.log" not in said
        await line.close()
        await settled()
        assert ended == [(101, "")]
        assert said == [f"a.{which}" for which in EVERYTHING if which not in ("admit_response", "rewrite_response")]


async def test_an_end_that_cuts_it_short(tmp_path: Path) -> None:
    """A front that stops with an exchange running tells its plugins all the same."""
    ended: Ended = []

    async def script(line: Line) -> None:
        await line.read_to_end()

    async with app(script) as it:
        async with plugged(tmp_path, it.url, keeper(ended)) as stage:
            client = await trio.open_tcp_stream("127.0.0.1", stage.port())  # one that is still there at the end
            await client.send_all(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
            await settled()
            assert ended == []
        await client.aclose()
        assert ended == [(0, "AppShutdown")]


async def test_what_is_no_request_of_a_site_is_told_to_nobody(tmp_path: Path) -> None:
    ended: Ended = []
    written = text("http://127.0.0.1:1", [keeper(ended)], urls='"http://a.test/in/"')
    async with front(written, tmp_path, of(keeper(ended))) as stage:
        assert status((await (await stage.connect()).get("/out"))[0]) == 404
        assert status((await (await stage.connect()).get("/in/", host="b.test"))[0]) == 400
        assert status((await (await stage.connect()).ask(b"GET /in/\r\n\r\n"))[0]) == 400
        await settled()
        assert ended == []
