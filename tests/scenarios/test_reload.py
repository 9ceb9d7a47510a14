"""Reload: the whole new world or the old one, and nothing lost on the way."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import trio
import trustme

from frontd.config.load import Loaded
from frontd.processes.reload import ReloadReport
from tests.wire import OK, Line, Script, Stage, app, configuration, free_port, front, one_pool, settled

GET = b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"


async def reload(stage: Stage, text: str) -> ReloadReport:
    return await stage.front.reload(lambda: configuration(text, stage.state))


async def reloaded(stage: Stage, text: str) -> list[str]:
    """Reload, which must succeed; what it says changed."""
    report = await reload(stage, text)
    assert report.errors == []
    assert report is stage.front.last_reload
    return report.changed


def open_files() -> int:
    """Sockets, and files that exist in memory only.  Log files are opened when the writer gets to it."""
    count = 0
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the directory's own
            count += os.readlink(f"/proc/self/fd/{name}").startswith(("socket:", "/memfd:"))
    return count


async def until(condition: Callable[[], object]) -> None:
    """Let everything go on, on the real clock, until `condition()`."""
    with trio.fail_after(5):
        while not condition():  # noqa: ASYNC110
            await trio.sleep(0.001)


# ---------------------------------------------------------------------------------------------------- shown by


def told(name: str) -> Script:
    """An app that says its name, the path it was asked for and whether it saw the field with an underscore."""

    async def script(line: Line) -> None:
        while head := await line.head():
            path = head.split(b" ", 2)[1]
            body = name.encode() + b" " + path + (b" seen" if b"X_Field" in head else b" unseen")
            await line.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))

    return script


async def test_ten_thousand_requests_across_twenty_reloads(tmp_path: Path) -> None:
    """Each configuration is a set of choices that belong together: target, prefix, fields.  None may be mixed."""
    clients, batches, batch = 20, 50, 10
    async with app(told("even")) as even, app(told("odd")) as odd:

        def text(generation: int) -> str:
            it, strip, keep = (even, "false", "true") if generation % 2 == 0 else (odd, "true", "false")
            return f"""
listen: {{http: {{port: 0}}}}
sites:
  main:
    urls: ["http://*/"]
    underscores_in_headers: {keep}
    routes: {{/p/: {{pool: app, strip_prefix: {strip}}}}}
pools: {{app: {{targets: ["{it.url}"], concurrency: 15}}}}
"""

        async with front(text(0), tmp_path) as stage:
            answers: Counter[bytes] = Counter()

            async def client() -> None:
                line = await stage.connect()
                for _ in range(batches):
                    await line.send(b"GET /p/x HTTP/1.1\r\nHost: a.test\r\nX_Field: 1\r\n\r\n" * batch)
                    for _ in range(batch):
                        head, body = await line.message()
                        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
                        answers[body] += 1

            async def reloads() -> None:
                for generation in range(1, 21):
                    while answers.total() < generation * 475:  # noqa: ASYNC110
                        await trio.sleep(0.001)
                    await reloaded(stage, text(generation))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(reloads)
                for _ in range(clients):
                    nursery.start_soon(client)
            assert answers.total() == 10_000
            assert set(answers) == {b"even /p/x seen", b"odd /x unseen"}
            assert min(answers.values()) > 2000
            assert stage.front.service.world.generation == 21
            assert stage.reasons == {}


# ---------------------------------------------------------------------------------------------------- refused


def with_certificate(path: Path) -> str:
    return f"""
listen: {{http: {{port: 0}}, https: {{port: 0}}}}
tls: {{certificates: [{{cert: {path}/c.pem, key: {path}/k.pem}}]}}
sites: {{main: {{urls: ["http://*/", "https://a.test/"], routes: {{/: app}}}}}}
pools: {{app: {{targets: ["http://127.0.0.1:1"]}}}}
"""


@pytest.mark.parametrize("case", ["not YAML", "not valid", "no certificate", "port taken", "fixed", "fault"])
async def test_a_refused_reload_changes_nothing_and_says_why(tmp_path: Path, case: str) -> None:
    async with app() as it, front(one_pool(it.url), tmp_path) as stage:
        line = await stage.connect()
        assert (await line.get())[1] == b"ok"
        files = open_files()
        before = (stage.front.service.world, list(stage.front.listeners), stage.front.loaded)

        def fault() -> Loaded:
            raise RecursionError("too deep")

        (busy,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        taken = busy.socket.getsockname()[1]
        other = "listen:\n  http: {port: 0}\n  new: {kind: http, address: 127.0.0.1, port: 0, public_port: 81}\n"
        texts = {
            "not YAML": ("sites: [", "frontd.yaml:"),
            "not valid": (one_pool(it.url, extra="limits: {max_haed: 1}"), "max_head"),
            "no certificate": (with_certificate(tmp_path / "nowhere"), "c.pem"),
            "port taken": (
                one_pool(it.url).replace(
                    "listen: {http: {port: 0}}", other + f"  z: {{kind: http, address: 127.0.0.1, port: {taken}}}"
                ),
                f"listener z: 127.0.0.1:{taken}: Address already in use",
            ),
            "fixed": (
                one_pool(it.url, extra='health: {listen: "127.0.0.1:9"}'),
                "health cannot be changed by a reload",
            ),
            "fault": ("", "RecursionError"),
        }
        text, why = texts[case]
        report = await stage.front.reload(fault if case == "fault" else lambda: configuration(text, stage.state))
        await busy.aclose()
        assert not report.ok
        assert report.changed == []
        assert any(why in error for error in report.errors), report.errors
        assert stage.front.last_reload is report
        assert (stage.front.service.world, stage.front.listeners, stage.front.loaded) == before
        assert open_files() == files
        assert (await line.get())[1] == b"ok"
        assert (await (await stage.connect()).get())[1] == b"ok"
        assert await reloaded(stage, one_pool(it.url)) == []  # the next one is not hurt by it
        assert "reload refused, the old configuration stays: " in stage.log("error")


async def test_the_certificate_of_a_reload_is_missing_its_key(tmp_path: Path) -> None:
    """Valid on paper, refused by the build: the old listeners and their connections stay."""
    certificate = trustme.CA().issue_cert("a.test")
    certificate.cert_chain_pems[0].write_to_path(str(tmp_path / "c.pem"))
    trustme.CA().issue_cert("a.test").private_key_pem.write_to_path(str(tmp_path / "k.pem"))
    async with app() as it, front(one_pool(it.url), tmp_path) as stage:
        files = open_files()
        report = await reload(stage, with_certificate(tmp_path))
        assert not report.ok
        assert "c.pem" in report.errors[0]
        assert open_files() == files
        assert (await (await stage.connect()).get())[1] == b"ok"


async def test_reloads_at_once_come_one_after_the_other(tmp_path: Path) -> None:
    async with app() as it, front(one_pool(it.url), tmp_path) as stage:
        async with trio.open_nursery() as nursery:
            for number in range(6):
                nursery.start_soon(reloaded, stage, one_pool(it.url, pool=f"concurrency: {number + 1}"))
        assert stage.front.service.world.generation == 7


# ---------------------------------------------------------------------------------------------------- state


async def test_an_unchanged_pool_keeps_its_connections_and_its_queue(tmp_path: Path) -> None:
    port = free_port()
    async with app() as it:

        def text(limit: str) -> str:
            return f"""
listen: {{http: {{port: 0}}}}
limits: {{max_body: {limit}}}
sites: {{main: {{urls: ["http://*/"], routes: {{/: app, /wait/: waiting}}}}}}
pools:
  app: {{targets: ["{it.url}"]}}
  waiting: {{targets: ["http://127.0.0.1:{port}"]}}
"""

        async with front(text("1MB"), tmp_path) as stage:
            line, stuck = await stage.connect(), await stage.connect()
            assert (await line.get())[1] == b"ok"
            await stuck.send(b"GET /wait/ HTTP/1.1\r\nHost: a\r\n\r\n")
            pools = dict(stage.front.pools)
            await until(lambda: len(pools["waiting"].queue))
            assert await reloaded(stage, text("2MB")) == ["site main changed", "limits changed"]
            assert stage.front.pools == pools
            assert len(pools["waiting"].queue) == 1
            assert (await line.get())[1] == b"ok"
            assert it.connections == 1
            async with app(port=port):
                assert (await stuck.message())[1] == b"ok"
            (site,) = stage.front.service.world.all_sites
            assert site.state.requests == 3  # counted on


async def test_a_changed_pool_finishes_what_it_has(tmp_path: Path) -> None:
    go = trio.Event()

    async def slow(line: Line) -> None:
        while await line.head():
            await go.wait()
            await line.send(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nold")

    async with app(slow) as old, app() as new, front(one_pool(old.url, pool="concurrency: 1"), tmp_path) as stage:
        running, waiting, fresh = [await stage.connect() for _ in range(3)]
        pool = stage.front.pools["app"]
        await running.send(GET)
        await until(lambda: old.connections)
        await waiting.send(GET)
        await until(lambda: len(pool.queue))
        assert await reloaded(stage, one_pool(new.url, pool="concurrency: 1")) == ["pool app changed"]
        assert (await fresh.get())[1] == b"ok"  # the new world does not wait for the old one
        go.set()
        assert (await running.message())[1] == b"old"
        assert (await waiting.message())[1] == b"old"
        for line in (running, waiting):
            assert (await line.get())[1] == b"ok"  # the next request of the same connection
        assert not any(place.active or place.idle for place in pool.places)
        assert old.connections == 2


async def test_retired_pools_end(tmp_path: Path) -> None:
    async with app() as it, front(one_pool(it.url), tmp_path) as stage:
        nursery = stage.front._nursery
        assert nursery is not None
        line = await stage.connect()
        await line.get()
        await settled()
        tasks, files = len(nursery.child_tasks), open_files()
        retired = []
        for number in range(12):
            retired.append(stage.front.pools["app"])
            await reloaded(stage, one_pool(it.url, pool=f"queue: {{limit: {number + 1}}}"))
            assert (await line.get())[1] == b"ok"
        await until(lambda: len(nursery.child_tasks) == tasks)
        assert open_files() == files
        assert not any(place.active or place.idle for pool in retired for place in pool.places)


async def test_a_pool_that_is_gone_for_good_finishes_too(tmp_path: Path) -> None:
    go = trio.Event()

    async def slow(line: Line) -> None:
        await line.head()
        await line.send(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nold")
        await go.wait()
        await line.send(b"end")

    async with app(slow) as old, front(one_pool(old.url), tmp_path) as stage:
        line = await stage.connect()
        await line.send(GET)
        await line.head()
        text = """
listen: {http: {port: 0}}
sites: {other: {urls: ["http://*/"], routes: {/: {redirect: "http://b.test/"}}}}
"""
        assert await reloaded(stage, text) == ["site other added", "site main removed", "pool app removed"]
        go.set()
        assert await line.read_exactly(6) == b"oldend"
        head, _ = await line.get()
        assert head.startswith(b"HTTP/1.1 308 ")


async def test_an_exchange_ends_under_the_limits_it_began_with(tmp_path: Path) -> None:
    async with app() as it, front(one_pool(it.url, site="limits: {max_body: 100}"), tmp_path) as stage:
        line = await stage.connect()
        await line.send(b"POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n")
        await until(lambda: it.connections)
        await reloaded(stage, one_pool(it.url, site="limits: {max_body: 5}"))
        head, body = await line.ask(b"32\r\n" + b"x" * 50 + b"\r\n0\r\n\r\n")
        assert body == b"ok"
        head, _ = await line.ask(b"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 50\r\n\r\n" + b"x" * 50)
        assert head.startswith(b"HTTP/1.1 413 ")


async def test_a_tunnel_outlives_its_world(tmp_path: Path) -> None:
    async def echo(line: Line) -> None:
        await line.head()
        await line.send(b"HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        while data := await line.read():
            await line.send(data)

    async with app(echo) as old, app() as new, front(one_pool(old.url), tmp_path) as stage:
        line = await stage.connect()
        await line.send(GET[:-2] + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        await line.head()
        await reloaded(stage, one_pool(new.url))
        await line.send(b"still there?")
        assert await line.read() == b"still there?"
        await line.close()
        await until(lambda: not stage.front.service.connections)


# ---------------------------------------------------------------------------------------------------- listeners


def listening(url: str, *listeners: str, urls: str = '"http://*/"') -> str:
    lines = "\n".join(f"  {one}" for one in listeners)
    return f"""
listen:
{lines}
sites: {{main: {{urls: [{urls}], routes: {{/: app}}}}}}
pools: {{app: {{targets: ["{url}"]}}}}
"""


HTTP = "http: {address: 127.0.0.1, port: 0}"
MORE = "more: {kind: http, address: 127.0.0.1, port: 0}"


async def test_a_listener_is_added_and_taken_away(tmp_path: Path) -> None:
    port = free_port()
    added = f"more: {{kind: http, address: 127.0.0.1, port: {port}, public_port: 80}}"
    async with app() as it, front(listening(it.url, HTTP), tmp_path) as stage:
        first = stage.port("http")
        assert await reloaded(stage, listening(it.url, HTTP, added)) == ["listener more added"]
        line, idle = await stage.connect("more"), await stage.connect("more")
        assert (await line.get())[1] == b"ok"
        assert (await idle.get())[1] == b"ok"
        assert stage.port("http") == first
        assert await reloaded(stage, listening(it.url, HTTP)) == ["listener more removed"]
        with pytest.raises(OSError, match="all attempts to connect"):
            await trio.open_tcp_stream("127.0.0.1", port)
        assert await idle.read_to_end() == b""  # nothing can be asked through it any more
        assert await reloaded(stage, listening(it.url, HTTP, added)) == ["listener more added"]
        assert (await (await stage.connect("more")).get())[1] == b"ok"


async def test_what_came_through_a_listener_that_is_gone_is_finished(tmp_path: Path) -> None:
    go = trio.Event()

    async def slow(line: Line) -> None:
        while await line.head():
            await go.wait()
            await line.send(OK)

    async with app(slow) as it, front(listening(it.url, HTTP, MORE), tmp_path) as stage:
        line, half = await stage.connect("more"), await stage.connect("more")
        await line.send(GET)
        await half.send(GET[:20])
        await until(lambda: it.connections)
        await reloaded(stage, listening(it.url, HTTP))
        go.set()
        head, body = await line.message()
        assert body == b"ok"
        assert b"\r\nConnection: close\r\n" in head
        assert await line.read_to_end() == b""
        await half.send(GET[20:])  # a head that had begun is answered as well
        head, body = await half.message()
        assert b"\r\nConnection: close\r\n" in head


async def test_two_listeners_on_free_ports_stay_two(tmp_path: Path) -> None:
    async with app() as it, front(listening(it.url, HTTP, MORE), tmp_path) as stage:
        lines = [await stage.connect("http"), await stage.connect("more")]
        ports = [stage.port("http"), stage.port("more")]
        assert await reloaded(stage, listening(it.url, HTTP, MORE)) == []
        assert [stage.port("http"), stage.port("more")] == ports
        for line in [*lines, await stage.connect("http"), await stage.connect("more")]:
            assert (await line.get())[1] == b"ok"
        assert await reloaded(stage, listening(it.url, MORE)) == ["listener http removed"]
        assert stage.port("more") == ports[1]
        assert (await (await stage.connect("more")).get())[1] == b"ok"


async def test_another_public_port_holds_for_connections_that_stand(tmp_path: Path) -> None:
    async with app() as it:
        port = free_port()
        one = f"http: {{address: 127.0.0.1, port: {port}, public_port: 80}}"
        two = f"http: {{address: 127.0.0.1, port: {port}, public_port: 8080}}"
        async with front(listening(it.url, one, urls='"http://a.test/"'), tmp_path) as stage:
            line = await stage.connect()
            assert (await line.get())[1] == b"ok"
            changed = await reloaded(stage, listening(it.url, two, urls='"http://a.test:8080/"'))
            assert changed == ["site main changed", "listener http changed"]
            for each in (line, await stage.connect()):
                assert (await each.get())[1] == b"ok"
            assert stage.reasons == {}


async def test_redirects_follow_the_public_port_of_the_reload(tmp_path: Path) -> None:
    certificate = trustme.CA().issue_cert("a.test")
    certificate.cert_chain_pems[0].write_to_path(str(tmp_path / "c.pem"))
    certificate.private_key_pem.write_to_path(str(tmp_path / "k.pem"))
    port = free_port()

    def text(public_port: int) -> str:
        return f"""
listen:
  http: {{address: 127.0.0.1, port: {port}, public_port: {public_port}}}
  https: {{address: 127.0.0.1, port: 0, public_port: 443}}
tls: {{certificates: [{{cert: {tmp_path}/c.pem, key: {tmp_path}/k.pem}}]}}
sites: {{main: {{urls: ["https://a.test/"], routes: {{/: "http://127.0.0.1:1"}}}}}}
"""

    async with front(text(80), tmp_path) as stage:
        line = await stage.connect("http")
        for public_port in (80, 8080):
            await reloaded(stage, text(public_port))
            for each in (line, await stage.connect("http")):
                head, _ = await each.get()
                assert re.search(rb"\r\nLocation: https://a\.test/\r\n", head)


async def test_a_listener_of_another_kind_lets_its_old_connections_go(tmp_path: Path) -> None:
    certificate = trustme.CA().issue_cert("a.test")
    certificate.cert_chain_pems[0].write_to_path(str(tmp_path / "c.pem"))
    certificate.private_key_pem.write_to_path(str(tmp_path / "k.pem"))
    port = free_port()
    async with app() as it:
        tls = f"tls: {{certificates: [{{cert: {tmp_path}/c.pem, key: {tmp_path}/k.pem}}]}}\n"
        plain = listening(it.url, f"web: {{kind: http, address: 127.0.0.1, port: {port}, public_port: 80}}")
        secure = tls + listening(
            it.url,
            f"web: {{kind: https, address: 127.0.0.1, port: {port}, public_port: 443}}",
            urls='"https://a.test/"',
        )
        async with front(plain, tmp_path) as stage:
            line = await stage.connect("web")
            assert (await line.get())[1] == b"ok"
            await reloaded(stage, secure)
            assert await line.read_to_end() == b""
            _, body = await (await stage.connect("web")).get()
            assert b"PlainHttp" in body
