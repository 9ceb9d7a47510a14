"""What pass-through does not take at its word: connections that are not one user's, as the bytes show, get no pin; who
holds many connections to an app, or holds one and does not log on, makes room."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from frontd.pipeline.pinned import ASKED, network
from tests.scenarios.logons import HELLO, Logons, hello, log_on, logons, status
from tests.scenarios.test_reload import reloaded
from tests.wire import Line, app, front, one_pool, settled

PASS = "pass_through: [ntlm, negotiate]"
VIA = "Via: 1.1 corp-proxy"
NTLM = f"Authorization: NTLM {HELLO}"


@pytest.fixture(autouse=True, params=["on", "off"])
def driver(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The reactor, or a task for each connection."""
    monkeypatch.setenv("FRONTD_REACTOR", request.param)
    return str(request.param)


def passing(book: Logons, more: str = "", extra: str = "") -> str:
    return one_pool(book.url, pool=f"{PASS}\n    {more}", extra=extra)


def request(version: str, *fields: str, path: str = "/") -> bytes:
    return "\r\n".join((f"GET {path} HTTP/{version}", "Host: a.test", *fields, "", "")).encode()


BOB = ("Cookie: user=bob",)
OTHERS = {  # what comes over alice's connection, and what it is answered
    "via": (request("1.1", VIA, *BOB), 403),
    "via, in other letters": (request("1.1", "vIA: 1.0 fred, 1.1 p.example.net", *BOB), 403),
    "via, with a logon": (request("1.1", VIA, NTLM), 403),
    "HTTP/1.0": (request("1.0", "Connection: keep-alive", *BOB), 505),
    "HTTP/1.0, with a logon": (request("1.0", "Connection: keep-alive", NTLM), 505),
    "HTTP/1.0 of a proxy": (request("1.0", "Connection: keep-alive", VIA, *BOB), 403),
}


@pytest.mark.parametrize("what", OTHERS)
async def test_what_a_proxy_sends_is_not_answered_over_the_pin_of_another(tmp_path: Path, what: str) -> None:
    """Alice has logged on; what comes behind shows that others may share her connection: both ends close, and what is
    under way behind it is not asked."""
    sent, expected = OTHERS[what]
    async with logons() as book, front(passing(book), tmp_path) as stage:
        line = await stage.connect()
        assert (await log_on(line, "alice"))[1] == b"alice 0"
        await line.send(sent + request("1.1", path="/behind"))
        head, body = await line.message()
        assert (status(head), b"alice" in body) == (expected, False)
        assert b"\r\nConnection: close\r\n" in head
        assert await line.read_to_end() == b""
        await settled()
        assert book.asked == {0: ["/ ntlm", "/ ntlm"]}
        assert book.ended == [0]
        assert not stage.front.pools["app"].keepers
        assert stage.reasons == {"Forbidden" if expected == 403 else "Version_N/S": 1}
        if expected == 403:
            assert "logs+a+connection+on" in stage.log("error")


@pytest.mark.parametrize("scheme", [NTLM, "Authorization: Negotiate alice"])
async def test_no_logon_begins_through_a_proxy(tmp_path: Path, scheme: str) -> None:
    """The client is told, the log says why, and the connection goes on for who needs none."""
    async with logons() as book, front(passing(book), tmp_path) as stage:
        line = await stage.connect()
        head, body = await line.ask(request("1.1", VIA, scheme))
        assert status(head) == 403
        assert b"Reason: Forbidden" in body
        assert (await line.ask(request("1.1", VIA, path="/open")))[1] == b"nobody"
        assert book.asked == {0: ["/open"]}
        assert "logs+a+connection+on" in stage.log("error")
        assert "Via" in stage.log("error")


async def test_a_challenge_pins_nothing_to_such_a_connection(tmp_path: Path) -> None:
    async with logons() as book, front(passing(book), tmp_path) as stage:
        line = await stage.connect()
        for _ in range(2):
            assert status((await line.ask(request("1.1", VIA)))[0]) == 401
            assert (await line.ask(request("1.1", VIA, path="/open")))[1] == b"nobody"
        assert stage.reasons == {}
        assert not stage.front.pools["app"].keepers


async def test_a_proxy_that_a_reload_names_gets_no_answer_over_a_pin(tmp_path: Path) -> None:
    async with logons() as book, front(passing(book), tmp_path) as stage:
        line = await stage.connect()
        await log_on(line, "alice")
        assert await reloaded(stage, passing(book, extra="trusted_proxies: [127.0.0.0/8]")) != []
        await line.send(request("1.1", *BOB, "X-Forwarded-For: 192.0.2.1"))
        head, body = await line.message()
        assert (status(head), b"alice" in body) == (403, False)
        assert await line.read_to_end() == b""
        await settled()
        assert book.ended == [0]


# ---------------------------------------------------------------------------------------------------- room for others


async def test_who_is_asked_to_log_on_and_does_not_is_not_waited_for(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """A handshake goes on at once or never; a logon that stands has ``keep_alive``."""
    async with logons() as book, front(passing(book, extra="timeouts: {keep_alive: 60s}"), tmp_path) as stage:
        for logs_on in (False, True):
            line = await stage.connect()
            await hello(line)
            if logs_on:
                await log_on(line, "alice")
            began = trio.current_time()
            assert await line.read_to_end() == b""
            expected = 60 if logs_on else ASKED
            assert expected <= trio.current_time() - began <= expected + 2


async def test_a_shorter_keep_alive_is_for_all(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    async with logons() as book, front(passing(book, extra="timeouts: {keep_alive: 5s}"), tmp_path) as stage:
        line = await stage.connect()
        await hello(line)
        began = trio.current_time()
        assert await line.read_to_end() == b""
        assert 5 <= trio.current_time() - began <= 7


async def test_one_address_has_so_many_pins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A further one ends one that is idle: one that was not logged on, else the one that has been idle for longest."""
    monkeypatch.setattr("frontd.pipeline.pinned.MOST", 3)
    async with logons() as book, front(passing(book), tmp_path) as stage:
        alice, bob, asked, carol, dave = [await stage.connect() for _ in range(5)]
        await log_on(alice, "alice")
        await log_on(bob, "bob")
        await hello(asked)
        assert (await log_on(carol, "carol"))[1] == b"carol 3"
        with trio.fail_after(5):
            assert await asked.read_to_end() == b""
        assert (await alice.get())[1] == b"alice 0"
        assert (await log_on(dave, "dave"))[1] == b"dave 4"
        with trio.fail_after(5):
            assert await bob.read_to_end() == b""
        assert [(await line.get())[1] for line in (alice, carol, dave)] == [b"alice 0", b"carol 3", b"dave 4"]
        assert len(stage.front.pools["app"].keepers) == 3
        for line in (alice, carol, dave):
            await line.close()
        await settled()
        assert not stage.front.pools["app"].crowds
        assert stage.reasons == {}


async def test_where_none_of_them_is_idle_a_further_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For now: the client may ask again."""
    monkeypatch.setattr("frontd.pipeline.pinned.MOST", 2)
    going = trio.Event()

    async def script(line: Line) -> None:
        while head := await line.head():
            if b"/slow" in head:
                await going.wait()
            await line.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async with app(script) as it, front(one_pool(it.url, pool=PASS), tmp_path) as stage:
        busy, late = [await stage.connect() for _ in range(2)], await stage.connect()
        for line in busy:
            await line.send(request("1.1", "Authorization: Negotiate x", path="/slow"))
        await settled()
        with trio.fail_after(5):
            head, _ = await late.get("/", "Authorization: Negotiate x")
        assert status(head) == 503
        assert b"\r\nRetry-After: 1\r\n" in head
        assert "connections+of+one+client+address" in stage.log("error")
        assert stage.reasons == {"ConnLimit": 1}
        going.set()
        for line in busy:
            assert (await line.message())[1] == b"ok"
        assert (await late.get("/", "Authorization: Negotiate x"))[1] == b"ok"


async def test_an_app_that_is_not_there_takes_no_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("frontd.pipeline.pinned.MOST", 1)
    text = one_pool("http://127.0.0.1:9", pool=f"{PASS}\n    queue: {{wait: 100ms}}")
    async with front(text, tmp_path) as stage:
        for _ in range(2):
            line = await stage.connect()
            assert status((await line.get("/", "Authorization: Negotiate x"))[0]) == 503
        assert stage.reasons == {"AppOffline": 2}
        assert not stage.front.pools["app"].crowds


def test_one_ipv6_client_is_a_network() -> None:
    assert network("2001:db8::1") == network("2001:db8::ffff:1") != network("2001:db8:0:1::1")
    assert network("::ffff:192.0.2.1") == "192.0.2.1" != network("192.0.2.2")
    assert network("") == ""
