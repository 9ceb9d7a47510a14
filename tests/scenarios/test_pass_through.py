"""Pass-through of connection logons: each of its rules as a play, in both drivers."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from frontd.pipeline.pinned import AGE
from frontd.processes.status import pool_facts
from tests.scenarios.logons import HELLO, Logons, hello, log_on, logons, status
from tests.wire import Line, Stage, app, free_port, front, one_pool, settled

PASS = "pass_through: [ntlm, negotiate]"


@pytest.fixture(autouse=True, params=["on", "off"])
def driver(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The reactor, or a task for each connection."""
    monkeypatch.setenv("FRONTD_REACTOR", request.param)
    return str(request.param)


def passing(book: Logons, more: str = "", site: str = "", extra: str = "") -> str:
    """The configuration: one site, one pool that passes logons through."""
    return one_pool(book.url, pool=f"{PASS}\n    {more}", site=site, extra=extra)


async def ends(line: Line) -> bytes:
    """What the client still gets; returns when its connection has ended."""
    with trio.fail_after(5):
        return await line.read_to_end()


def pins(stage: Stage) -> int:
    """How many pins have a connection."""
    return sum(len(pool.keepers) for pool in stage.front.pools.values())


# ---------------------------------------------------------------------------------------------------- the handshake


async def test_a_handshake_and_what_follows_go_over_one_fresh_connection(tmp_path: Path) -> None:
    async with logons() as book, front(passing(book), tmp_path) as stage:
        anybody = await stage.connect()
        assert (await anybody.get("/open"))[1] == b"nobody"  # leaves a pooled connection, number 0
        line = await stage.connect()
        assert (await log_on(line, "alice"))[1] == b"alice 1"
        assert (await line.get())[1] == b"alice 1"  # without credentials: the connection is hers
        assert book.asked == {0: ["/open"], 1: ["/ ntlm", "/ ntlm", "/"]}
        (pool,) = stage.front.pools.values()
        assert pool_facts(pool, trio.current_time(), {}, on_demand=False)["pins"] == 1  # as `frontd status` shows it
        assert (await anybody.get("/open"))[1] == b"nobody"
        assert book.asked[0] == ["/open", "/open"]
        assert stage.reasons == {}


async def test_the_challenge_to_an_anonymous_request_pins_the_next_one(tmp_path: Path) -> None:
    async with logons() as book, front(passing(book), tmp_path) as stage:
        line = await stage.connect()
        assert status((await line.get())[0]) == 401
        await settled()
        assert book.ended == [0]  # what has asked for a logon serves nobody else
        assert (await line.get("/open"))[1] == b"nobody"
        other = await stage.connect()
        assert (await other.get("/open"))[1] == b"nobody"
        assert book.asked == {0: ["/"], 1: ["/open"], 2: ["/open"]}  # 1 is the pin, so `other` got one of its own


async def test_negotiate_before_any_challenge_is_pinned(tmp_path: Path) -> None:
    async with logons() as book, front(passing(book), tmp_path) as stage:
        line, other = await stage.connect(), await stage.connect()
        assert (await line.get("/", "Authorization: nEGOTIATE bob"))[1] == b"bob 0"
        assert status((await other.get())[0]) == 401
        assert book.users == {0: {"bob"}}


async def test_a_post_with_a_handshake(tmp_path: Path) -> None:
    async with logons() as book, front(passing(book), tmp_path) as stage:
        line = await stage.connect()
        await line.send(f"POST / HTTP/1.1\r\nHost: a.test\r\nAuthorization: NTLM {HELLO}\r\n".encode())
        head, _ = await line.ask(b"Content-Length: 0\r\n\r\n")
        nonce = head.split(b"NTLM ")[1].split(b"\r\n")[0].decode()
        payload = b"x" * 200_000
        await line.send(f"POST / HTTP/1.1\r\nHost: a.test\r\nAuthorization: NTLM carol:{nonce}\r\n".encode())
        _, body = await line.ask(b"Content-Length: %d\r\n\r\n" % len(payload) + payload)
        assert body == b"carol 0"
        assert book.bodies == [payload]


async def test_a_handshake_survives_an_app_that_answers_before_it_has_read_a_body(tmp_path: Path) -> None:
    """The 401 comes at once, the body after it: both connections are kept, and the app gets all of it."""
    size, got = 150_000, 0

    async def script(line: Line) -> None:
        nonlocal got
        while head := await line.head():
            await line.send(b"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: NTLM abc\r\nContent-Length: 0\r\n\r\n")
            if b"POST" in head:
                got += len(await line.read_exactly(size))

    async with app(script) as it, front(one_pool(it.url, pool=PASS), tmp_path) as stage:
        line = await stage.connect()
        fields = f"Authorization: NTLM {HELLO}\r\nContent-Length: {size}".encode()
        await line.send(b"POST / HTTP/1.1\r\nHost: a.test\r\n" + fields + b"\r\n\r\n" + b"x" * 1000)
        assert status((await line.message())[0]) == 401
        await line.send(b"x" * (size - 1000))
        await settled()
        assert status((await line.get())[0]) == 401
        assert (it.connections, got) == (1, size)


# ---------------------------------------------------------------------------------------------------- both ends


@pytest.mark.parametrize("when", ["idle", "in the middle of the handshake"])
async def test_the_client_leaves_and_the_apps_connection_ends(tmp_path: Path, when: str) -> None:
    async with logons() as book, front(passing(book), tmp_path) as stage:
        line = await stage.connect()
        await hello(line)
        if when == "idle":
            await log_on(line, "alice")
        await line.close()
        await settled()
        assert book.ended == [0]
        assert pins(stage) == 0


async def test_the_app_ends_an_idle_connection_and_the_clients_ends(tmp_path: Path) -> None:
    ending = trio.Event()

    async def script(line: Line) -> None:
        await line.head()
        await line.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await ending.wait()

    async with app(script) as it, front(one_pool(it.url, pool=PASS), tmp_path) as stage:
        line = await stage.connect()
        assert (await line.get("/", "Authorization: Negotiate x"))[1] == b"ok"
        await settled()
        ending.set()
        assert await ends(line) == b""
        assert stage.reasons == {}
        assert pins(stage) == 0


async def test_a_close_of_the_app_is_the_clients_too(tmp_path: Path) -> None:
    async with logons() as book, front(passing(book), tmp_path) as stage:
        line = await stage.connect()
        await log_on(line, "alice")
        head, body = await line.get("/close")
        assert body == b"alice 0"
        assert b"\r\nConnection: close\r\n" in head
        assert await ends(line) == b""


async def test_an_app_that_goes_away_in_a_handshake_is_not_asked_again(tmp_path: Path) -> None:
    """The second leg meets the end of its connection: the client's is cut, and a new one starts over."""
    heads = 0

    async def script(line: Line) -> None:
        nonlocal heads
        await line.head()
        heads += 1
        await line.send(b"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: NTLM abc\r\nContent-Length: 0\r\n\r\n")
        await line.head()
        heads += 1

    async with app(script) as it, front(one_pool(it.url, pool=PASS), tmp_path) as stage:
        line = await stage.connect()
        await line.get("/", f"Authorization: NTLM {HELLO}")
        await line.send(b"GET / HTTP/1.1\r\nHost: a.test\r\nAuthorization: NTLM x\r\n\r\n")
        assert await ends(line) == b""
        assert (it.connections, heads) == (1, 2)
        assert stage.reasons == {"Connection_Abandoned_By_ReqQueue": 1}


async def test_a_fresh_connection_that_breaks_is_a_502(tmp_path: Path) -> None:
    async def script(line: Line) -> None:
        await line.head()

    async with app(script) as it, front(one_pool(it.url, pool=PASS), tmp_path) as stage:
        line = await stage.connect()
        head, _ = await line.get("/", f"Authorization: NTLM {HELLO}")
        assert status(head) == 502
        assert b"\r\nConnection: close\r\n" in head
        assert it.connections == 1


async def test_an_app_that_restarts_in_a_handshake(tmp_path: Path) -> None:
    port = free_port()
    async with front(one_pool(f"http://127.0.0.1:{port}", pool=PASS), tmp_path) as stage:
        async with logons(port):
            line = await stage.connect()
            nonce = await hello(line)
        assert await ends(line) == b""  # the app's connection has gone, and so has the client's
        async with logons(port) as book:
            line = await stage.connect()
            head, _ = await line.get("/", f"Authorization: NTLM alice:{nonce}")
            assert status(head) == 401  # a nonce of another connection opens nothing
            assert (await log_on(line, "alice"))[1] == b"alice 0"
            assert book.users == {0: {"alice"}}


# ---------------------------------------------------------------------------------------------------- caps and limits


async def test_idle_and_age(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    async with logons() as book, front(passing(book, extra="timeouts: {keep_alive: 30s}"), tmp_path) as stage:
        line = await stage.connect()
        await log_on(line, "alice")
        began = trio.current_time()
        assert await line.read_to_end() == b""
        assert 30 <= trio.current_time() - began <= 32
        began = trio.current_time()
        for idles in (True, False):
            await trio.sleep(1.5 - trio.current_time() % 1)  # between two of the pool's looks
            line = await stage.connect()
            await log_on(line, "alice")
            for _ in range(int(AGE / 20) - 1):
                await trio.sleep(20)
                assert status((await line.get())[0]) == 200
            await trio.sleep(20.2 if not idles else 19)
            if not idles:
                assert b"\r\nConnection: close\r\n" in (await line.get())[0]
            assert await line.read_to_end() == b""
            assert AGE + 4 > trio.current_time() - began >= AGE
            began = trio.current_time()


async def test_a_pin_holds_a_permit_only_while_it_is_used(tmp_path: Path) -> None:
    async with logons() as book, front(passing(book, "concurrency: 1"), tmp_path) as stage:
        lines = [await stage.connect() for _ in range(5)]
        for number, line in enumerate(lines):
            assert (await log_on(line, f"user{number}"))[1] == f"user{number} {number}".encode()
        for number, line in enumerate(lines):
            assert (await line.get())[1] == f"user{number} {number}".encode()
        assert pins(stage) == 5
        (place,) = stage.front.pools["app"].places
        assert place.active == 0


async def test_permits_and_a_full_queue(tmp_path: Path) -> None:
    """One request at a time: a pin waits in its turn, and what is too much is told, which ends no logon."""
    going = trio.Event()
    order: list[str] = []

    async def script(line: Line) -> None:
        while head := await line.head():
            path = head.split(b" ")[1].decode()
            order.append(f"{line.number} {path}")
            if path == "/slow":
                await going.wait()
            await line.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%d" % line.number)

    text = f"{PASS}\n    concurrency: 1\n    queue: {{limit: 2}}"
    async with app(script) as it, front(one_pool(it.url, pool=text), tmp_path) as stage:
        pinned = [await stage.connect() for _ in range(2)]
        for number, line in enumerate(pinned):
            assert (await line.get("/", "Authorization: Negotiate x"))[1] == b"%d" % number
        slow, other = await stage.connect(), await stage.connect()
        await slow.send(b"GET /slow HTTP/1.1\r\nHost: a.test\r\n\r\n")
        await settled()
        await pinned[0].send(b"GET /first HTTP/1.1\r\nHost: a.test\r\n\r\n")
        await settled()
        await other.send(b"GET /second HTTP/1.1\r\nHost: a.test\r\n\r\n")
        await settled()
        head, _ = await pinned[1].get("/third")
        assert status(head) == 503
        assert stage.reasons == {"QueueFull": 1}
        going.set()
        assert (await slow.message())[1] == b"2"
        assert (await pinned[0].message())[1] == b"0"
        assert (await other.message())[1] == b"2"
        assert (await pinned[1].get("/fourth"))[1] == b"1"  # still its own
        assert order[2:] == ["2 /slow", "0 /first", "2 /second", "1 /fourth"]


async def test_a_pin_that_waits_too_long(tmp_path: Path, autojump_clock: object) -> None:
    async def script(line: Line) -> None:
        while head := await line.head():
            if b"/slow" in head:
                await trio.sleep(20)
            await line.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%d" % line.number)

    text = f"{PASS}\n    concurrency: 1\n    queue: {{wait: 5s}}"
    async with app(script) as it, front(one_pool(it.url, pool=text), tmp_path) as stage:
        line, slow = await stage.connect(), await stage.connect()
        assert (await line.get("/", "Authorization: Negotiate x"))[1] == b"0"
        await slow.send(b"GET /slow HTTP/1.1\r\nHost: a.test\r\n\r\n")
        await settled()
        assert status((await line.get())[0]) == 503
        assert stage.reasons == {"Timer_ReqQueue": 1}
        assert (await slow.message())[1] == b"1"
        assert (await line.get())[1] == b"0"


@pytest.mark.parametrize("waits", [True, False], ids=["in the queue", "after a full queue"])
async def test_the_app_ends_a_connection_that_is_wanted(tmp_path: Path, waits: bool) -> None:
    """While its client's request waits for a permit, or has been refused one: nothing is sent anywhere, and what the
    app said unasked is no answer."""
    ending, going = trio.Event(), trio.Event()
    paths: list[bytes] = []

    async def script(line: Line) -> None:
        while head := await line.head():
            paths.append(head.split(b" ")[1])
            if b"/slow" in head:
                await going.wait()
            await line.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%d" % line.number)
            if b"/pin" in head:
                await ending.wait()
                await line.send(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                return

    text = f"{PASS}\n    concurrency: 1\n    queue: {{limit: 1}}"
    async with app(script) as it, front(one_pool(it.url, pool=text), tmp_path) as stage:
        line, slow, other = [await stage.connect() for _ in range(3)]
        assert (await line.get("/pin", "Authorization: Negotiate x"))[1] == b"0"
        await slow.send(b"GET /slow HTTP/1.1\r\nHost: a.test\r\n\r\n")
        await settled()
        if waits:
            await line.send(b"GET /again HTTP/1.1\r\nHost: a.test\r\n\r\n")
            await settled()
        else:
            await other.send(b"GET /other HTTP/1.1\r\nHost: a.test\r\n\r\n")
            await settled()
            assert status((await line.get("/again"))[0]) == 503
        ending.set()
        await settled()
        if not waits:
            assert await ends(line) == b""
        going.set()
        assert (await slow.message())[1] == b"1"
        assert await ends(line) == b""
        if not waits:
            assert (await other.message())[1] == b"1"
        assert b"/again" not in paths
        assert pins(stage) == 0
