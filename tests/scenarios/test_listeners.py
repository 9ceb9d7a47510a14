"""Listeners: which addresses they hear, what they say about a client, and that no mishap of one ends the front."""

from __future__ import annotations

import errno
import json
import socket
from pathlib import Path

import pytest
import trio
import trio.testing

from frontd.config.model import Listen
from frontd.lanes.listener import REFUSED_AT_ONCE, Listener, bind
from frontd.processes.front import Front
from tests.net.pki import Pki
from tests.net.tlsclient import client_context, secure_site, tls_line
from tests.wire import Line, Stage, app, configuration, free_port, front, one_pool


def has_ipv6() -> bool:
    with socket.socket(socket.AF_INET6) as sock:
        try:
            sock.bind(("::1", 0))
        except OSError:
            return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="no IPv6 on this machine")


async def to(stage: Stage, address: str, name: str = "http") -> Line:
    """A line to a listener by a certain address."""
    line = Line(await trio.open_tcp_stream(address, stage.port(name)))
    stage.lines.append(line)
    return line


# ---------------------------------------------------------------------------------------------------- addresses


@needs_ipv6
async def test_without_an_address_both_families_are_heard_and_told_apart(tmp_path: Path) -> None:
    async with app() as it, front(one_pool(it.url), tmp_path) as stage:
        for address in ("127.0.0.1", "::1"):
            line = await to(stage, address)
            assert (await line.get())[1] == b"ok"
            assert f"\r\nX-Forwarded-For: {address}\r\n".encode() in it.heads[-1]
        quoted = b'Forwarded: for="[::1]";host=a.test;proto=http\r\n'
        assert quoted in it.heads[-1]
        assert [json.loads(entry)["client"] for entry in stage.log().splitlines()] == ["127.0.0.1", "::1"]


@needs_ipv6
@pytest.mark.parametrize("address", ["::1", "::"])
async def test_an_ipv6_listener_hears_ipv6_alone(tmp_path: Path, address: str) -> None:
    async with app() as it:
        text = one_pool(it.url).replace("{port: 0}", f"{{address: '{address}', port: 0}}")
        async with front(text, tmp_path) as stage:
            line = await to(stage, "::1")
            assert (await line.get("/", host="[::1]"))[1] == b"ok"
            with pytest.raises(OSError, match="failed"):
                await to(stage, "127.0.0.1")


async def test_an_ipv4_listener_hears_its_own_address_alone(tmp_path: Path) -> None:
    text = one_pool("http://127.0.0.1:1").replace("{port: 0}", "{address: 127.0.0.1, port: 0}")
    async with front(text, tmp_path) as stage:
        await to(stage, "127.0.0.1")
        with pytest.raises(OSError, match="failed"):
            await to(stage, "127.0.0.2")


@needs_ipv6
async def test_a_name_by_its_ipv6_address_alone(pki: Pki, tmp_path: Path) -> None:
    async with app() as it, front(secure_site(it.url, f"{pki.entry('b')}, {pki.entry('a')}"), tmp_path) as stage:
        line = await to(stage, "::1", "https")
        tls = await tls_line(stage, client_context(pki), None, line=line)
        assert "0:0:0:0:0:0:0:1" in tls.subject()
        assert (await tls.get(host="[::1]"))[1] == b"ok"


TWO = """
listen:
  http: {port: 0}
  second: {kind: http, port: 0, public_port: 8080}
sites:
  any: {urls: ["http://a.test/"], routes: {/: any}}
  eight: {urls: ["http://a.test:8080/", "http://b.test:8080/"], routes: {/: eight}}
pools:
  any: {targets: ["ANY"]}
  eight: {targets: ["EIGHT"]}
"""


async def test_two_listeners_and_their_public_ports(tmp_path: Path) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\neight"
    async with app() as one, app(answer) as other:
        text = TWO.replace("ANY", one.url).replace("EIGHT", other.url)
        async with front(text, tmp_path) as stage:
            first, second = stage.port("http"), stage.port("second")
            assert first != second
            assert 0 not in (first, second)
            assert stage.front.addresses() == [f"http on *:{first}", f"http on *:{second}"]
            line = await stage.connect("http")  # on a free port without a public one: by host alone
            assert (await line.get(host="a.test"))[1] == b"ok"
            assert (await line.get(host="b.test"))[1] == b"eight"
            other_line = await stage.connect("second")
            for host in ("a.test", "a.test:8080", "a.test:9999"):  # the port in Host does not count
                assert (await other_line.get(host=host))[1] == b"eight"
            assert (await other_line.get(host="c.test"))[0].startswith(b"HTTP/1.1 400 ")
            counts = stage.front.service.by_listener
            assert [counts[listener.identity] for listener in stage.front.listeners] == [1, 1]


# ---------------------------------------------------------------------------------------------------- binding


def test_a_taken_port_is_named_and_nothing_stays_bound(tmp_path: Path) -> None:
    free = free_port()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        text = TWO.replace("{port: 0}", f"{{address: 127.0.0.1, port: {free}, public_port: 80}}")
        text = text.replace("port: 0,", f"address: 127.0.0.1, port: {port},")
        text = text.replace("ANY", "http://x").replace("EIGHT", "http://x")
        with pytest.raises(OSError, match=rf"listener second: 127.0.0.1:{port}: .*another program has it") as caught:
            Front.open(configuration(text, tmp_path))
        assert caught.value.errno == errno.EADDRINUSE
    socket.create_server(("127.0.0.1", free)).close()


def test_an_address_of_nobody(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"listener x: 192.0.2.1:80: .*no interface of this machine has it"):
        bind(Listen(name="x", kind="http", address="192.0.2.1", port=80))


# ---------------------------------------------------------------------------------------------------- accepting


class CloseWhenWoken(trio.abc.Instrument):
    """Closes a listener in the moment between its wake-up and its turn."""

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        self.happened = False

    def task_scheduled(self, task: trio.lowlevel.Task) -> None:
        if task.name.endswith("Listener.run") and not self.happened:
            self.happened = True
            self.listener.close()


async def test_a_listener_closed_between_wake_up_and_accept_ends_quietly(tmp_path: Path) -> None:
    """As a reload or a drain may do it, in the same turn of the loop in which a client comes."""
    async with app() as it, front(one_pool(it.url), tmp_path) as stage:
        line = await stage.connect()
        assert (await line.get())[1] == b"ok"
        (listener,) = stage.front.listeners
        instrument = CloseWhenWoken(listener)
        trio.lowlevel.add_instrument(instrument)
        with socket.create_connection(("127.0.0.1", listener.port)):
            await trio.testing.wait_all_tasks_blocked()
        trio.lowlevel.remove_instrument(instrument)
        assert instrument.happened
        assert (await line.get())[1] == b"ok"  # what was accepted goes on
        assert "accepting again" not in stage.log("error")


async def test_beyond_the_limit_plain_clients_are_told_and_many_are_reset(tmp_path: Path) -> None:
    text = one_pool("http://127.0.0.1:1", extra="limits: {max_connections: 2}")
    async with front(text, tmp_path) as stage:
        kept = [await stage.connect() for _ in range(2)]
        await trio.testing.wait_all_tasks_blocked()
        told = await stage.connect()
        answer = await told.read_to_end()
        assert answer.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        assert b"Reason: ConnLimit" in answer
        await told.close()
        crowd, resets = [], 0
        for _ in range(REFUSED_AT_ONCE + 6):
            try:
                crowd.append(await stage.connect())
            except OSError:  # reset before connect() was over
                resets += 1
        answers = [(await line.read_to_end())[:12] for line in crowd]
        assert answers.count(b"HTTP/1.1 503") == REFUSED_AT_ONCE
        assert answers.count(b"<reset>") + resets == 6
        for line in crowd:
            await line.close()
        await kept.pop().close()
        while len(stage.front.service.connections) == 2:
            await trio.testing.wait_all_tasks_blocked()
        again = await stage.connect()
        await again.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        await trio.testing.wait_all_tasks_blocked()
        assert len(stage.front.service.connections) == 2
        assert stage.reasons == {"ConnLimit": REFUSED_AT_ONCE + 7}


async def test_beyond_the_limit_tls_clients_are_reset(pki: Pki, tmp_path: Path) -> None:
    text = secure_site("http://127.0.0.1:1", pki.entry("a"), extra="limits: {max_connections: 1}")
    async with front(text, tmp_path) as stage:
        await tls_line(stage, client_context(pki), "a.test")
        with pytest.raises((trio.BrokenResourceError, OSError), match=r"(?i)reset|failed"):
            await tls_line(stage, client_context(pki), "a.test")
        assert stage.reasons == {"ConnLimit": 1}
