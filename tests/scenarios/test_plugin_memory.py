"""What plugins remember of a connection and of an exchange, and how long."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import trio

import frontd
from frontd import Client, Exchange, Identity, Plugin, Refuse, Response
from tests.scenarios.plugged import PluginClass, fields, made, of, plugged, reload, says, text, told
from tests.wire import app, front, settled


class Counter(frontd.Plugin):
    """Answers with how often it was asked on this connection, and what the instance is called."""

    name = "counter"

    class Settings(frontd.Settings):
        label: str = "x"
        step: int = 1

    def filter_request(self, exchange: Exchange) -> Response:
        memory = exchange.client.state(self)
        memory["asked"] = memory.get("asked", 0) + self.settings.step
        return Response(200, text=f"{self.settings.label} {memory['asked']}")


def counting(settings: str = "", more: str = "") -> str:
    return text("http://127.0.0.1:1", [f"counter: {{{settings}}}"], extra=more)


async def test_per_connection(tmp_path: Path) -> None:
    async with front(counting(), tmp_path, of(Counter)) as stage:
        one, other = await stage.connect(), await stage.connect()
        assert [(await line.get())[1] for line in (one, one, other, one)] == [b"x 1", b"x 2", b"x 1", b"x 3"]


async def test_per_instance(tmp_path: Path) -> None:
    """The same plugin twice on a site, with equal settings even: each has its own."""
    seen: list[tuple[str, int]] = []

    class Sees(frontd.Plugin):
        name = "sees"

        class Settings(frontd.Settings):
            label: str

        def filter_request(self, exchange: Exchange) -> None:
            for memory in (exchange.client.state(self), exchange.state(self)):
                memory["asked"] = memory.get("asked", 0) + 1
                seen.append((self.settings.label, memory["asked"]))

    async with app() as it:
        written = text(it.url, ["sees: {label: a}", "sees: {label: a}", "sees: {label: b}"])
        async with front(written, tmp_path, of(Sees)) as stage:
            line = await stage.connect()
            for asked in (1, 2):
                seen.clear()
                await line.get()
                assert seen == [("a", asked), ("a", 1), ("a", asked), ("a", 1), ("b", asked), ("b", 1)]


async def test_per_site(tmp_path: Path) -> None:
    """A client that asks for two sites on one connection: what a plugin knows of it on one, it does not on the other.
    A plugin of the whole server knows it on both."""
    written = """
listen: {http: {port: 0}}
%s
sites:
  one: {urls: ["http://one.test/"], plugins: [%s], routes: {/: "http://127.0.0.1:1"}}
  two: {urls: ["http://two.test/"], plugins: [%s], routes: {/: "http://127.0.0.1:1"}}
"""
    for texts, answers in (
        ((("", "counter", "counter")), [b"x 1", b"x 1", b"x 2"]),
        ((("plugins: [counter]", "", "")), [b"x 1", b"x 2", b"x 3"]),
    ):
        async with front(written % texts, tmp_path, of(Counter)) as stage:
            line = await stage.connect()
            got = [(await line.get(host=host))[1] for host in ("one.test", "two.test", "one.test")]
            assert got == answers


async def test_per_exchange(tmp_path: Path) -> None:
    """Shared by the hooks of one instance, and gone with the exchange."""
    seen: list[object] = []

    class Times(frontd.Plugin):
        name = "times"

        def filter_request(self, exchange: Exchange) -> None:
            seen.append(dict(exchange.state(self)))
            exchange.state(self)["path"] = exchange.request.path

        def log(self, exchange: Exchange) -> None:
            seen.append(exchange.state(self)["path"])

    other = made("other", log=lambda self, exchange: seen.append(dict(exchange.state(self))))
    async with app() as it, plugged(tmp_path, it.url, Times, other) as stage:
        line = await stage.connect()
        await line.get("/a")
        await line.get("/b")
        await settled()
        assert seen == [{}, "/a", {}, {}, "/b", {}]


async def test_users_of_a_proxy_share_a_connection_and_no_memory(tmp_path: Path) -> None:
    async with front(counting(more="trusted_proxies: [127.0.0.1]"), tmp_path, of(Counter)) as stage:
        line = await stage.connect()
        answers = [(await line.get("/", f"X-Forwarded-For: 192.0.2.{n}"))[1] for n in (1, 2, 1)]
        assert answers == [b"x 1"] * 3


# ---------------------------------------------------------------------------------------------------- reload


@pytest.mark.parametrize(
    ("settings", "kept", "answer"),
    [
        ("label: x, step: 1", True, b"x 2"),
        ("", True, b"x 2"),
        ("step: '1'", True, b"x 2"),
        ("label: y", False, b"y 1"),
        ("step: 3", False, b"x 3"),
    ],
)
async def test_over_a_reload(tmp_path: Path, settings: str, kept: bool, answer: bytes) -> None:
    """Kept when the settings are equal, however they are written; else the connection is a new one to the plugin."""
    async with front(counting(), tmp_path, of(Counter)) as stage:
        line = await stage.connect()
        (before,) = stage.front.service.world.plugins
        assert (await line.get())[1] == b"x 1"
        assert (await reload(stage, counting(settings, "limits: {max_fields: 99}"), Counter)).errors == []
        (after,) = stage.front.service.world.plugins
        assert (before is after) == kept
        assert (await line.get())[1] == answer
        for connection in stage.front.service.connections:
            assert set(connection.client.states) == {after}  # type: ignore[attr-defined]


async def test_two_that_are_equal_stay_two(tmp_path: Path) -> None:
    twice = text("http://127.0.0.1:1", ["counter", "counter"])
    async with front(twice, tmp_path, of(Counter)) as stage:
        before = stage.front.service.world.plugins
        assert (await reload(stage, twice, Counter)).ok
        assert stage.front.service.world.plugins == before
        assert (await reload(stage, text("http://127.0.0.1:1", ["counter"] * 3), Counter)).ok
        assert len(set(stage.front.service.world.plugins) - set(before)) == 1
        assert len(set(before)) == 2


async def test_a_plugin_that_left_and_came_back(tmp_path: Path) -> None:
    async with app() as it, front(counting(), tmp_path, of(Counter)) as stage:
        line = await stage.connect()
        await line.get()
        assert (await reload(stage, text(it.url, []))).ok
        assert (await line.get())[1] == b"ok"
        assert (await reload(stage, counting(), Counter)).ok
        assert (await line.get())[1] == b"x 1"


async def test_an_exchange_that_waits_in_a_plugin_over_a_reload(tmp_path: Path) -> None:
    """It goes on in the world that it began in: to that one's app, with the fields of that one's plugins."""
    held, go = trio.Event(), trio.Event()

    async def hold(self: Plugin, exchange: Exchange) -> None:
        if exchange.request.path == "/held":
            held.set()
            await go.wait()

    def mark(self: Plugin, exchange: Exchange) -> None:
        exchange.response.headers.add("X-Mark", "old")

    old = made("old", filter_request=hold, rewrite_response=mark)
    async with app() as it, app(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nnew") as other:
        async with plugged(tmp_path, it.url, old) as stage:
            line = await stage.connect()
            await line.send(b"GET /held HTTP/1.1\r\nHost: a.test\r\n\r\n")
            await held.wait()
            written = text(other.url, []).replace("app", "other")  # the pool has another name: the old one retires
            assert (await reload(stage, written)).errors == []
            await settled()
            go.set()
            head, body = await line.message()
            assert (body, fields(head, "X-Mark")) == (b"ok", ["old"])
            head, body = await line.get()
            assert (body, fields(head, "X-Mark")) == (b"new", [])


async def test_a_reload_that_is_refused_forgets_nothing(tmp_path: Path) -> None:
    async with front(counting(), tmp_path, of(Counter)) as stage:
        line = await stage.connect()
        await line.get()
        assert not (await reload(stage, counting("step: many"), Counter)).ok
        assert (await line.get())[1] == b"x 2"


async def test_instances_change_places(tmp_path: Path) -> None:
    """Each keeps what it knows, wherever it stands now; the order is the new one."""
    seen: list[str] = []

    class Marked(frontd.Plugin):
        name = "marked"

        class Settings(frontd.Settings):
            label: str

        def filter_request(self, exchange: Exchange) -> None:
            memory = exchange.client.state(self)
            memory["asked"] = memory.get("asked", 0) + 1
            seen.append(f"{self.settings.label}{memory['asked']}")

    def order(labels: str) -> str:
        return text("http://127.0.0.1:1", [f"marked: {{label: {label}}}" for label in labels], routes="/x: app")

    async with front(order("ab"), tmp_path, of(Marked)) as stage:
        line = await stage.connect()
        await line.get()
        assert (await reload(stage, order("cba"), Marked)).ok
        await line.get()
        assert seen == ["a1", "b1", "c1", "b2", "a2"]


# ---------------------------------------------------------------------------------------------------- client_closed


def closes(ended: list[str], name: str = "closes", **hooks: object) -> PluginClass:
    def closed(self: Plugin, client: Client) -> None:
        ended.append(f"{self.name} {client.state(self).get('user', '-')}")

    def remember(self: Plugin, exchange: Exchange) -> Identity | None:
        user = exchange.request.headers.text("x-user")
        if user:
            exchange.client.state(self)["user"] = user
        return Identity(user) if user else None

    return made(name, client_closed=closed, authenticate=remember, **hooks)


async def test_the_end_of_a_connection_is_told_once(tmp_path: Path) -> None:
    """To those that may have been asked on it, with what they remember; not to those of a site it never asked for."""
    ended: list[str] = []
    names = ["server", "a", "b"]
    server, a, b = (closes(ended, name) for name in names)
    async with app() as it:
        written = f"""
listen: {{http: {{port: 0}}}}
plugins: [server]
sites:
  a: {{urls: ["http://a.test/"], plugins: [a], routes: {{/: "{it.url}"}}}}
  b: {{urls: ["http://b.test/"], plugins: [b], routes: {{/: "{it.url}"}}}}
"""
        async with front(written, tmp_path, of(server, a, b)) as stage:
            line = await stage.connect()
            for user in ("alice", "bob"):
                await line.get("/", f"X-User: {user}", host="a.test")
            assert (await reload(stage, written.replace("[a]", "[]"), server, a, b)).ok
            await line.get("/", host="a.test")
            assert ended == []
            await line.close()
            await settled()
            # what `a` knew is gone with the reload that dropped it, and so it is told, but has nothing to undo
            assert sorted(ended) == ["a -", "server bob"]
            ended.clear()
            line = await stage.connect()
            await line.close()
            await settled()
            assert ended == []


@pytest.mark.parametrize("how", ["it leaves", "refused", "too slow", "not HTTP"])
async def test_however_it_ends(tmp_path: Path, how: str) -> None:
    ended: list[str] = []
    answer = Refuse(429, "RateLimit") if how == "refused" else None
    plugin = closes(ended, accept_client=says_to_client(answer))
    extra = "timeouts: {header_wait: 10ms}" if how == "too slow" else ""
    async with front(text("http://127.0.0.1:1", [], server=[plugin], extra=extra), tmp_path, of(plugin)) as stage:
        line = await stage.connect()
        await settled()
        if how == "not HTTP":
            await line.send(b"\x00\x00\r\n\r\n")
        if how != "it leaves":
            await line.read_to_end()
        await line.close()
        await settled()
        assert ended == ["closes -"]
    assert ended == ["closes -"]


async def test_a_close_that_fails(tmp_path: Path) -> None:
    def fail(self: Plugin, client: Client) -> None:
        raise RuntimeError("cannot close")

    ended: list[str] = []
    broken = made("broken", client_closed=fail, filter_request=says(None))
    async with app() as it, plugged(tmp_path, it.url, broken, closes(ended)) as stage:
        line = await stage.connect()
        await line.get("/", "X-User: alice")
        await line.close()
        await settled()
        assert ended == ["closes alice"]
        assert "plugin broken.client_closed: RuntimeError: cannot close" in await told(stage)


def says_to_client(value: object) -> Callable[..., object]:
    def hook(self: Plugin, client: Client) -> object:
        return value

    return hook
