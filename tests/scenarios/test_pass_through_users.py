"""Nobody ever meets the logon of somebody else: two users in one pool, with and without pass-through, behind proxies,
beside a cache, over reloads and at the end of a front."""

from __future__ import annotations

import random
import ssl
from collections import Counter
from pathlib import Path

import pytest
import trio

from tests.net.pki import Pki
from tests.net.tlsclient import client_context, secure_site, tls_line
from tests.scenarios.logons import HELLO, Logons, hello, log_on, logons, status
from tests.scenarios.test_reload import reloaded
from tests.wire import DISCOVERY, Line, Stage, app, front, one_pool, settled

PASS = "pass_through: [ntlm, negotiate]"
REQUESTS = 17  # of each of six clients over each of its connections, of which it has one after the other


@pytest.fixture(autouse=True, params=["on", "off"])
def driver(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The reactor, or a task for each connection."""
    monkeypatch.setenv("FRONTD_REACTOR", request.param)
    return str(request.param)


def passing(book: Logons, more: str = "", site: str = "", extra: str = "") -> str:
    return one_pool(book.url, pool=f"{PASS}\n    {more}", site=site, extra=extra)


async def user_of(line: Line, *fields: str, path: str = "/") -> str:
    """Who the app takes the client for; empty: it asks for a logon."""
    head, body = await line.get(path, *fields)
    assert status(head) in (200, 401), head
    return body.decode().split(" ")[0] if status(head) == 200 else ""


# ---------------------------------------------------------------------------------------------------- two users


@pytest.mark.parametrize(("concurrency", "rounds"), [("none", 20), ("3", 5)])
async def test_two_users_who_hammer_one_pool_never_meet(tmp_path: Path, concurrency: str, rounds: int) -> None:
    """Credentials come before any challenge, by one leg or two, among requests of nobody: each answer is for who asked,
    and no connection of the app has known two of them."""
    asked: Counter[str] = Counter()

    async def client(user: str, scheme: str, seed: int) -> None:
        dice = random.Random(seed)
        for _ in range(rounds):
            line = await stage.connect()
            stage.lines.remove(line)
            logged_on = ""
            for _ in range(REQUESTS):
                what = dice.random()
                if scheme == "none":
                    assert await user_of(line, path=dice.choice(("/", "/open"))) in ("", "nobody")
                elif scheme == "negotiate" and (what < 0.5 or not logged_on):
                    assert await user_of(line, f"Authorization: Negotiate {user}") == user
                    logged_on = user
                elif not logged_on:
                    assert (await log_on(line, user))[1].decode().split(" ")[0] == user
                    logged_on = user
                else:
                    assert await user_of(line) == user
                asked[user] += 1
            await line.close()

    async with logons() as book, front(passing(book, f"concurrency: {concurrency}"), tmp_path) as stage:
        async with trio.open_nursery() as nursery:
            for seed, (user, scheme) in enumerate(
                [("alice", "negotiate"), ("bob", "negotiate"), ("alice", "ntlm"), ("bob", "ntlm"), ("", "none"),
                 ("", "none")]
            ):  # fmt: skip
                nursery.start_soon(client, user, scheme, seed)
        assert asked.total() == 6 * rounds * REQUESTS >= 2000 * rounds / 20
        assert {frozenset(users) for users in book.users.values()} == {frozenset({"alice"}), frozenset({"bob"})}
        assert len(book.users) == 4 * rounds  # one connection for each connection of a client that logs on
        assert stage.reasons == {}


async def test_a_pool_that_says_nothing_gives_each_logon_a_connection_for_one_exchange(tmp_path: Path) -> None:
    """One leg works, two do not, and nobody meets anybody."""
    async with logons() as book, front(one_pool(book.url), tmp_path) as stage:
        alice, nobody = await stage.connect(), await stage.connect()
        for _ in range(20):
            assert await user_of(alice, "Authorization: Negotiate alice") == "alice"
            assert await user_of(nobody) == ""
            assert await user_of(nobody, path="/open") == "nobody"
            assert await user_of(alice) == ""
        nonce = await hello(alice)
        assert await user_of(alice, f"Authorization: NTLM alice:{nonce}") == ""
        await settled()
        assert all(len(asked) == 1 or set(asked[:-1]) == {"/open"} for asked in book.asked.values()), book.asked
        assert {asked[-1] for asked in book.asked.values()} == {"/ negotiate", "/", "/ ntlm"}


async def test_credentials_that_a_plugin_adds_stay_off_the_pool(tmp_path: Path) -> None:
    (tmp_path / "adds.py").write_text(
        '''
import frontd

class Adds(frontd.Plugin):
    """Logs on for the client."""

    name = "adds"

    def rewrite_request(self, exchange: frontd.Exchange) -> None:
        if exchange.request.path == "/alice":
            exchange.request.headers.set(b"Authorization", b"Negotiate alice")
'''
    )
    text = one_pool("URL", site="plugins: [adds]", extra="plugins_dir: .")
    async with logons() as book, front(text.replace("URL", book.url), tmp_path, DISCOVERY.catalogue) as stage:
        line = await stage.connect()
        for _ in range(5):
            assert await user_of(line, path="/alice") == "alice"
            assert await user_of(line) == ""


async def test_a_scheme_that_is_not_listed_is_not_pinned(tmp_path: Path) -> None:
    async with logons() as book, front(one_pool(book.url, pool="pass_through: [ntlm]"), tmp_path) as stage:
        line = await stage.connect()
        assert await user_of(line, "Authorization: Negotiate bob") == "bob"
        assert await user_of(line, path="/open") == "nobody"
        assert (await log_on(line, "alice"))[1] == b"alice 2"
        assert await user_of(line) == "alice"


@pytest.mark.parametrize("challenge", ["Nego2", "negotiate abc=", "Basic realm=\"x\", NTLM", "KERBEROS"])
async def test_relatives_of_the_schemes(tmp_path: Path, challenge: str) -> None:
    """Whatever is spelt like one is taken for one."""
    answer = f"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: {challenge}\r\nContent-Length: 0\r\n\r\n".encode()
    async with app(answer) as it, front(one_pool(it.url), tmp_path) as stage:
        line = await stage.connect()
        for _ in range(3):
            head, _ = await line.get()
            assert f"\r\nWWW-Authenticate: {challenge}\r\n".encode() in head  # as it was (RFC 9110 11.6.1)
        assert it.connections == 3


async def test_a_connection_that_says_it_is_logged_on_serves_nobody_else(tmp_path: Path) -> None:
    """Whoever asked, and whatever they said: ``Persistent-Auth`` is enough."""
    answer = b"HTTP/1.1 200 OK\r\nPersistent-Auth: true\r\nContent-Length: 2\r\n\r\nok"
    async with app(answer) as it, front(one_pool(it.url, pool=PASS), tmp_path) as stage:
        line, other = await stage.connect(), await stage.connect()
        for number in range(3):
            assert (await line.get())[1] == b"ok"
            assert it.connections == min(number + 1, 2)  # the one it was told on, then its pin
        assert (await other.get())[1] == b"ok"
        assert it.connections == 3


async def test_other_challenges_cost_no_connection(tmp_path: Path) -> None:
    answer = b'HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm="x"\r\nContent-Length: 0\r\n\r\n'
    async with app(answer) as it, front(one_pool(it.url), tmp_path) as stage:
        line = await stage.connect()
        for _ in range(3):
            await line.get("/", "Authorization: Basic eDp5")
        assert it.connections == 1


# ---------------------------------------------------------------------------------------------------- who gets none


async def test_behind_a_trusted_proxy_nobody_is_pinned(tmp_path: Path) -> None:
    text = "trusted_proxies: [127.0.0.0/8]"
    async with logons() as book, front(passing(book, extra=text), tmp_path) as stage:
        line = await stage.connect()
        assert await user_of(line) == ""
        head, body = await line.get("/", f"Authorization: NTLM {HELLO}", "X-Forwarded-For: 192.0.2.1")
        assert status(head) == 403
        assert b"Reason: Forbidden" in body
        assert await user_of(line, path="/open") == "nobody"
        assert stage.reasons == {"Forbidden": 1}
        assert book.asked == {0: ["/"], 1: ["/open"]}
        assert "ntlm+logs+a+connection+on" in stage.log("error")


async def test_an_older_client_is_told(tmp_path: Path) -> None:
    async with logons() as book, front(passing(book), tmp_path) as stage:
        line = await stage.connect()
        head, _ = await line.ask(
            f"GET / HTTP/1.0\r\nHost: a.test\r\nConnection: keep-alive\r\nAuthorization: NTLM {HELLO}\r\n\r\n".encode()
        )
        assert status(head) == 505
        assert book.connections == 0


async def test_what_a_user_was_answered_is_not_cached(tmp_path: Path) -> None:
    """The second request of a user shows no credentials, and its answer says that it may be kept."""
    async with logons() as book, front(passing(book, site="plugins: [response_cache]"), tmp_path) as stage:
        alice, bob, nobody = await stage.connect(), await stage.connect(), await stage.connect()
        await log_on(alice, "alice")
        assert await user_of(alice, path="/cached") == "alice"
        assert await user_of(nobody, path="/cached") == ""
        await log_on(bob, "bob")
        assert await user_of(bob, path="/cached") == "bob"
        assert await user_of(alice, path="/cached") == "alice"


# ---------------------------------------------------------------------------------------------------- ends


async def test_a_reload_ends_what_is_idle_and_lets_finish_what_is_not(tmp_path: Path) -> None:
    going = trio.Event()

    async def script(line: Line) -> None:
        while head := await line.head():
            if b"/slow" in head:
                await going.wait()
            await line.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%d" % line.number)

    async with app(script) as it, front(one_pool(it.url, pool=PASS), tmp_path) as stage:
        idle, busy = await stage.connect(), await stage.connect()
        for number, line in enumerate((idle, busy)):
            assert (await line.get("/", "Authorization: Negotiate x"))[1] == b"%d" % number
        assert await reloaded(stage, one_pool(it.url, pool=PASS, extra="x-a: 1")) == []
        assert (await idle.get())[1] == b"0"  # a pool that has not changed keeps its pins
        await busy.send(b"GET /slow HTTP/1.1\r\nHost: a.test\r\n\r\n")
        await settled()
        old = stage.front.pools["app"]
        assert await reloaded(stage, one_pool(it.url, pool=f"{PASS}\n    replay_body: 1KiB")) != []
        assert await idle.read_to_end() == b""
        going.set()
        assert (await busy.message())[1] == b"1"
        assert await busy.read_to_end() == b""
        await settled()
        assert not old.keepers
        line = await stage.connect()
        assert (await line.get("/", "Authorization: Negotiate x"))[1] == b"2"


async def test_a_front_that_ends_lets_an_exchange_finish(tmp_path: Path) -> None:
    going = trio.Event()

    async def script(line: Line) -> None:
        while head := await line.head():
            if b"/slow" in head:
                await going.wait()
            await line.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        ended.append(line.number)

    ended: list[int] = []
    async with app(script) as it, front(one_pool(it.url, pool=PASS), tmp_path) as stage:
        idle, busy = await stage.connect(), await stage.connect()
        for line in (idle, busy):
            await line.get("/", "Authorization: Negotiate x")
        await busy.send(b"GET /slow HTTP/1.1\r\nHost: a.test\r\n\r\n")
        await settled()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stage.front.drain)
            assert await idle.read_to_end() == b""
            await idle.close()  # else frontd waits a moment for that
            await settled()
            assert ended == [0]
            going.set()
            head, body = await busy.message()
            assert (body, b"\r\nConnection: close\r\n" in head) == (b"ok", True)
            assert await busy.read_to_end() == b""
            await busy.close()
        await settled()
        assert ended == [0, 1]


async def test_each_user_stays_with_one_app(tmp_path: Path) -> None:
    """No balancing once pinned; a new pin is balanced like everything else."""
    async with logons() as one, logons() as two:
        text = one_pool(one.url, pool=PASS).replace(f'["{one.url}"]', f'["{one.url}", "{two.url}"]')
        async with front(text, tmp_path) as stage:
            for number in range(4):
                line = await stage.connect()
                await log_on(line, f"user{number}")
                for _ in range(5):
                    assert await user_of(line) == f"user{number}"
            assert (len(one.users), len(two.users)) == (2, 2)
            assert (one.connections, two.connections) == (2, 2)


async def test_a_client_with_two_pools_has_a_pin_in_each(tmp_path: Path) -> None:
    async with logons() as one, logons() as two:
        text = f"""
listen: {{http: {{port: 0}}}}
sites: {{main: {{urls: ["http://*/"], routes: {{/: one, /two: two}}}}}}
pools:
  one: {{targets: ["{one.url}"], {PASS}}}
  two: {{targets: ["{two.url}"], {PASS}}}
"""
        async with front(text, tmp_path) as stage:
            line = await stage.connect()
            await log_on(line, "alice")
            await log_on(line, "bob", "/two")
            assert await user_of(line) == "alice"
            assert await user_of(line, path="/two") == "bob"
            await line.close()
            await settled()
            assert (one.ended, two.ended) == ([0], [0])


async def test_over_tls_on_both_sides(tmp_path: Path, pki: Pki) -> None:
    """The bytes that TLS itself sends over an idle connection (session tickets) are no end and no word unasked."""
    book = Logons()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pki.cert("a"), pki.key("a"))
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    served: list[trio.SSLStream[trio.SocketStream]] = []

    async def handle(stream: trio.SSLStream[trio.SocketStream]) -> None:
        served.append(stream)
        try:
            await book.serve(Line(stream, len(served) - 1))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            await trio.aclose_forcefully(stream)

    url = f"https://127.0.0.1:{listener.socket.getsockname()[1]}"
    text = secure_site(url, pki.entry("a")).rstrip().removesuffix("}") + f", tls: {{ca: {pki.ca}}}, {PASS}}}\n"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, handle, [trio.SSLListener(listener, context)])
        async with front(text, tmp_path) as stage:
            line, other = [await tls_line(stage, client_context(pki), "a.test") for _ in range(2)]
            assert (await log_on(line, "alice"))[1] == b"alice 0"
            assert (await log_on(other, "bob"))[1] == b"bob 1"
            await settled()
            for _ in range(3):
                assert await user_of(line) == "alice"
                assert await user_of(other) == "bob"
            await trio.aclose_forcefully(served[0])
            assert await line.read_to_end() == b""
            assert await user_of(other) == "bob"
        nursery.cancel_scope.cancel()


def seen(stage: Stage) -> dict[str, int]:
    """Connections that clients have now, and pins."""
    return {"clients": len(stage.front.service.connections), "pins": len(stage.front.pools["app"].keepers)}


async def test_nothing_is_left_behind(tmp_path: Path) -> None:
    async with logons() as book, front(passing(book), tmp_path) as stage:
        for number in range(30):
            line = await stage.connect()
            await (log_on(line, "alice") if number % 2 else hello(line))
            await line.close()
        await settled()
        assert seen(stage) == {"clients": 0, "pins": 0}
        assert len(book.ended) == book.connections
