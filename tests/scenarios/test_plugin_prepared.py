"""Plugins that give the same answer again and again, and those that only follow what they have begun."""

from __future__ import annotations

from pathlib import Path

import pytest

from frontd import Exchange, Plugin, Response
from tests.scenarios.plugged import PluginClass, fields, made, plugged
from tests.wire import app


def gives(answer: Response) -> PluginClass:
    """A plugin that gives this one answer to everybody."""
    return made("gives", filter_request=lambda self, exchange: answer)


def kept(status: int = 200, body: bytes = b"body") -> Response:
    return Response(status, {"X-Kept": "yes", "Date": "then", "Connection": "close", "Content-Length": "99"}, body)


@pytest.mark.parametrize("is_prepared", [False, True])
async def test_it_is_framed_like_any_other(tmp_path: Path, is_prepared: bool) -> None:
    answer = kept().prepare() if is_prepared else kept()
    async with app() as it, plugged(tmp_path, it.url, gives(answer)) as stage:
        line = await stage.connect()
        for _ in range(2):  # on one connection: nothing is left over
            head, body = await line.get()
            assert head.startswith(b"HTTP/1.1 200 OK\r\n")
            assert body == b"body"
            assert fields(head, "content-length") == ["4"]
            assert fields(head, "connection") == []
            assert fields(head, "date") == ["then"]
        await line.send(b"HEAD / HTTP/1.1\r\nHost: a.test\r\n\r\n")
        head = await line.head()
        assert fields(head, "content-length") == ["4"]
        assert (await line.get())[1] == b"body"  # the HEAD had none
        await line.send(b"GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n")
        last = await line.read_to_end()
        assert fields(last, "connection") == ["close"]
        assert last.endswith(b"\r\n\r\nbody")
    assert stage.log().count('"status":200') == 5


@pytest.mark.parametrize("status", [204, 304])
async def test_some_answers_have_no_body(tmp_path: Path, status: int) -> None:
    async with app() as it, plugged(tmp_path, it.url, gives(kept(status).prepare())) as stage:
        line = await stage.connect()
        for _ in range(2):
            await line.send(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
            head = await line.head()
            assert head.startswith(b"HTTP/1.1 %d " % status)
            assert fields(head, "content-length") == []


async def test_a_date_is_added_when_it_is_sent(tmp_path: Path) -> None:
    async with app() as it, plugged(tmp_path, it.url, gives(Response(200, {"A": "1"}).prepare())) as stage:
        head, _ = await (await stage.connect()).get()
        assert len(fields(head, "date")) == 1
        assert fields(head, "date")[0].endswith(" GMT")


async def test_an_unread_body_ends_the_connection(tmp_path: Path) -> None:
    async with app() as it, plugged(tmp_path, it.url, gives(kept().prepare())) as stage:
        line = await stage.connect()
        await line.send(b"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 5\r\n\r\nab")
        answer = await line.read_to_end()
        assert fields(answer, "connection") == ["close"]
        assert answer.endswith(b"\r\n\r\nbody")


async def test_what_is_added_on_the_way_out_does_not_stay(tmp_path: Path) -> None:
    def rewrite(self: Plugin, exchange: Exchange) -> None:
        exchange.response.headers.add("X-Number", str(exchange.id))

    answer = kept().prepare()
    adds = made("adds", rewrite_response=rewrite)
    async with app() as it, plugged(tmp_path, it.url, gives(answer), adds) as stage:
        line = await stage.connect()
        numbers = [fields((await line.get())[0], "x-number") for _ in range(3)]
        assert [len(found) for found in numbers] == [1, 1, 1]
        assert answer.ready is not None


async def test_a_body_that_a_plugin_changes_is_sent_as_it_is_then(tmp_path: Path) -> None:
    def rewrite(self: Plugin, exchange: Exchange) -> None:
        exchange.response.body = b"another body"

    changes = made("changes", rewrite_response=rewrite)
    async with app() as it, plugged(tmp_path, it.url, gives(kept().prepare()), changes) as stage:
        head, body = await (await stage.connect()).get()
        assert (fields(head, "content-length"), body) == (["12"], b"another body")


async def test_hooks_that_only_follow(tmp_path: Path) -> None:
    """They are asked where an earlier one has left something; the others, and those of other plugins, always."""
    seen: list[str] = []

    def begin(self: Plugin, exchange: Exchange) -> None:
        if exchange.request.path == "/mine":
            exchange.state(self)["begun"] = True

    def note(what: str) -> object:
        return lambda self, exchange: seen.append(f"{what} {exchange.request.path}")

    followed = ("admit_response", "rewrite_response", "log")
    hooks = {name: note(name) for name in followed}
    follows = made("follows", filter_request=begin, follow_ups=frozenset(followed), **hooks)
    some = made("some", filter_request=begin, follow_ups=frozenset(("log",)), **hooks)
    async with app() as it, plugged(tmp_path, it.url, follows, some) as stage:
        line = await stage.connect()
        await line.get("/mine")
        assert seen == [f"{name} /mine" for name in ("admit_response",) * 2 + ("rewrite_response",) * 2 + ("log",) * 2]
        seen.clear()
        await line.get("/other")
        assert seen == ["admit_response /other", "rewrite_response /other"]
