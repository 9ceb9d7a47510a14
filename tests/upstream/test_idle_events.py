"""Idle connections to an app, looked after by a reactor: what the app does to them is noticed when it happens."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from frontd.lanes.reactor import Reactor
from frontd.model.headers import Headers
from frontd.net.streams import Stream
from frontd.upstream.balance import Place
from frontd.upstream.client import Address, Dialect, Upstream
from tests.lanes.guests import House, house
from tests.wire import Line, app, front, one_pool, settled

ADDRESS = Address("192.0.2.1", 80)


@pytest.fixture(autouse=True)
def driven(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reactor drives: else nobody registers these connections, and they are looked at when they are taken."""
    monkeypatch.delenv("FRONTD_REACTOR", raising=False)


def idle(it: House, reactor: Reactor, place: Place) -> tuple[Upstream, Line]:
    """A registered connection that waits at `place`, and the app's end of it."""
    near, far = it.sockets_of()
    upstream = Upstream(Stream(near))
    reactor.register(upstream.stream, upstream)
    upstream.place, upstream.is_idle = place, True
    place.idle.append(upstream)
    far.setblocking(False)
    it.sockets.remove(far)
    line = Line(trio.SocketStream(trio.socket.from_stdlib_socket(far)))
    return upstream, line


def watched(upstream: Upstream) -> bool:
    """`watched` as it is now."""
    return upstream.watched


@pytest.mark.parametrize("what", ["ends", "speaks"])
async def test_one_that_the_app_ends_or_speaks_on_leaves_its_place(what: str) -> None:
    async with house() as it:
        place = Place("app", ADDRESS, Dialect())
        (gone, far), (kept, other) = idle(it, it.reactor, place), idle(it, it.reactor, place)
        await settled()
        assert watched(gone)
        if what == "ends":
            await far.close()
        else:
            await far.send(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
        await settled()
        assert list(place.idle) == [kept]
        assert gone.stream.closed
        assert not watched(gone)
        assert watched(kept)
        assert it.reactor.streams == [kept.stream]
        place.close_idle()
        assert it.reactor.streams == []
        for line in (far, other):
            await line.close()


async def test_one_that_is_leased_is_left_to_its_exchange() -> None:
    async with house() as it:
        place = Place("app", ADDRESS, Dialect())
        upstream, far = idle(it, it.reactor, place)
        await settled()
        upstream.is_idle = False
        place.idle.clear()
        upstream.send_now(upstream.http.send_head("GET", b"/", Headers.of((b"Host", b"a"))) + upstream.http.send_end())
        await far.send(b"HTTP/1.1 200 OK\r\n\r\n")
        await settled()
        assert not upstream.stream.closed
        assert upstream.stream.ready
        assert not watched(upstream)  # whoever takes it has to look
        assert upstream.head_now() is not None
        upstream.stream.close_now()
        await far.close()


async def test_forgetting_one_that_is_not_there_leaves_it_alone() -> None:
    async with house() as it:
        place, elsewhere = Place("app", ADDRESS, Dialect()), Place("app", ADDRESS, Dialect())
        upstream, far = idle(it, it.reactor, place)
        elsewhere.forget(upstream)
        assert it.reactor.streams == [upstream.stream]
        place.forget(upstream)
        assert it.reactor.streams == []
        place.forget(upstream)
        assert upstream.stream.closed
        await far.close()


async def test_an_app_that_ends_idle_connections_costs_no_request(tmp_path: Path) -> None:
    """It ends each connection behind its answer without a word; the next request never meets a dead one."""

    async def script(line: Line) -> None:
        await line.head()
        await line.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async with app(script) as it, front(one_pool(it.url), tmp_path) as stage:
        line = await stage.connect()
        for number in range(20):
            head, body = await line.ask(b"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 1\r\n\r\nx")
            assert (head[:15], body) == (b"HTTP/1.1 200 OK", b"ok")
            await settled()
            assert it.connections == number + 1
        assert stage.reasons == {}
