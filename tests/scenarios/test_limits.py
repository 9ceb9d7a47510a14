"""Every limit, global and of a site: what is exactly at it passes, one more is refused and told the key."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from tests.scenarios.bystander import logged
from tests.scenarios.plugged import made, of
from tests.wire import OK, Line, Stage, app, front, one_pool, settled

START = b"GET / HTTP/1.1\r\nHost: a\r\n"


def head_of(size: int) -> bytes:
    return START + b"X: " + b"x" * (size - len(START) - 7) + b"\r\n\r\n"


def field_of(size: int) -> bytes:
    return START + b"Name:  " + b"x" * (size - 4) + b" \r\n\r\n"  # white space around a value is not part of it


def fields_of(count: int) -> bytes:
    return START + b"a: b\r\n" * (count - 1) + b"\r\n"


def path(text: str) -> bytes:
    return START.replace(b" / ", f" {text} ".encode()) + b"\r\n"


def body_of(size: int) -> bytes:
    return b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size


def chunks_of(size: int) -> bytes:
    parts = b"".join(b"1;ext=ext\r\nx\r\n" for _ in range(size))
    return b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + parts + b"0\r\n\r\n"


Maker = Callable[[int], bytes]
LIMITS: dict[str, tuple[str, int, Maker, int, str]] = {
    "head": ("max_head", 300, head_of, 431, "RequestLength"),
    "field": ("max_field", 100, field_of, 431, "FieldLength"),
    "fields": ("max_fields", 7, fields_of, 431, "FieldLength"),
    "segment": ("max_segment", 20, lambda n: path("/a/" + "b" * n + "/c"), 414, "URL_Length"),
    "segments": ("max_segments", 5, lambda n: path("/b" * n), 414, "URL_Length"),
    "url": ("max_url", 20, lambda n: path("/" + "b" * (n - 4) + "?d=1"), 414, "URL_Length"),
    "url without query": ("max_url", 20, lambda n: path("/" + "b" * (n - 1)), 414, "URL_Length"),
    "query": ("max_query", 20, lambda n: path("/?" + "b" * n), 414, "URL_Length"),
    "body by length": ("max_body", 50, body_of, 413, "EntityTooLarge"),
    "body by counting": ("max_body", 50, chunks_of, 413, "EntityTooLarge"),
}


@pytest.mark.parametrize("where", ["global", "site", "site above global"])
@pytest.mark.parametrize(("key", "limit", "make", "status", "reason"), LIMITS.values(), ids=LIMITS)
async def test_at_the_limit_and_over(
    tmp_path: Path, key: str, limit: int, make: Maker, status: int, reason: str, where: str
) -> None:
    own, least = f"limits: {{{key}: {limit}}}", 64 if key in ("max_head", "max_field") else 2
    extra = {"global": own, "site": "", "site above global": f"limits: {{{key}: {least}}}"}
    async with app() as it:
        text = one_pool(it.url, extra=extra[where], site="" if where == "global" else own)
        async with front(text, tmp_path) as stage:
            line = await stage.connect()
            assert (await line.ask(make(limit)))[1] == b"ok"
            head, page = await line.ask(make(limit + 1))
            assert head.startswith(b"HTTP/1.1 %d " % status)
            assert f"limits.{key} ({limit} ".encode() in page
            assert f"Reason: {reason}\n".encode() in page
            assert len(it.bodies) == 1  # of what was too much the app never saw the whole
    logged(stage, reason, status=status)


async def test_the_sizes_of_one_site_do_not_bind_another(tmp_path: Path) -> None:
    """What is read before the site is known is the largest head of them all; then each site's own limit holds."""
    async with app() as it:
        text = f"""
listen: {{http: {{port: 0}}}}
limits: {{max_head: 1000}}
sites:
  large: {{urls: ["http://large.test/"], limits: {{max_head: 64KiB, max_field: 64KiB}}, routes: {{/: "{it.url}"}}}}
  small: {{urls: ["http://small.test/"], limits: {{max_head: 200}}, routes: {{/: "{it.url}"}}}}
"""
        async with front(text, tmp_path) as stage:
            line = await stage.connect()
            long = "X: " + "x" * 30_000
            assert (await line.get("/", long, host="large.test"))[1] == b"ok"
            head, page = await line.get("/", long, host="small.test")
            assert head.startswith(b"HTTP/1.1 431 ")
            assert b"limits.max_head (200 bytes)" in page
            head, page = await line.get("/", long, host="large.test")  # the connection goes on
            assert page == b"ok"
            head, page = await line.get("/", "X: " + "x" * 70_000, host="large.test")
            assert b"limits.max_head (65536 bytes)" in page


async def test_a_plugin_that_needs_long_heads_raises_them_on_its_site_alone(tmp_path: Path) -> None:
    """A ticket of 40 KiB; on one connection, since an HTTP/1 connection belongs to no site."""
    tickets = made("tickets", limits={"max_head": 65536, "max_field": 65536})
    async with app() as it:
        text = f"""
listen: {{http: {{port: 0}}}}
sites:
  large: {{urls: ["http://large.test/"], plugins: [tickets], routes: {{/: "{it.url}"}}}}
  small: {{urls: ["http://small.test/"], routes: {{/: "{it.url}"}}}}
"""
        async with front(text, tmp_path, of(tickets)) as stage:
            line = await stage.connect()
            ticket = "Authorization: Negotiate " + "x" * 40_000
            assert (await line.get("/", ticket, host="large.test"))[1] == b"ok"
            head, page = await line.get("/", ticket, host="small.test")
            assert head.startswith(b"HTTP/1.1 431 ")
            assert b"limits.max_head (16384 bytes)" in page
            assert (await line.get("/", ticket, host="large.test"))[1] == b"ok"
            head, page = await line.get("/", ticket + "x" * 30_000, host="large.test")
            assert b"limits.max_head (65536 bytes)" in page


async def test_no_limit_on_a_body(tmp_path: Path) -> None:
    async def counts(line: Line) -> None:
        await line.head()
        size = 0
        while size < 40_000_000:
            size += len(await line.read())
        await line.send(OK)

    async with app(counts) as it, front(one_pool(it.url, extra="limits: {max_body: none}"), tmp_path) as stage:
        line = await stage.connect()
        await line.send(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 40000000\r\n\r\n")
        for _ in range(40):
            await line.send(b"x" * 1_000_000)
        assert (await line.message())[1] == b"ok"


async def test_a_body_of_nothing_at_the_smallest_limit(tmp_path: Path) -> None:
    async with app() as it, front(one_pool(it.url, extra="limits: {max_body: 0}"), tmp_path) as stage:
        line = await stage.connect()
        assert (await line.ask(body_of(0)))[1] == b"ok"
        assert (await line.ask(chunks_of(0)))[1] == b"ok"
        assert (await line.ask(chunks_of(1)))[0].startswith(b"HTTP/1.1 413 ")


# ---------------------------------------------------------------------------------------------------- uploads


async def uploading(stage: Stage, head: bytes, part: bytes, parts: int, answers: list[bytes]) -> None:
    """Send all of it, whatever comes back, and then read: the least polite client there is."""
    line = await stage.connect()
    with contextlib.suppress(trio.BrokenResourceError):
        await line.send(head)
        for _ in range(parts):
            await line.send(part)
    answers.append(await line.read_to_end())
    await line.close()


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_client_that_is_still_uploading_sees_the_413(tmp_path: Path, chunked: bool) -> None:
    """20 of 20, with the whole page, although none of them looks before it has sent 4 MB."""
    head = b"PUT / HTTP/1.1\r\nHost: a\r\n"
    head += b"Transfer-Encoding: chunked\r\n\r\n" if chunked else b"Content-Length: 4000000\r\n\r\n"
    part = (b"9c40\r\n" if chunked else b"") + b"x" * 40_000 + (b"\r\n" if chunked else b"")
    answers: list[bytes] = []

    async def reads(line: Line) -> None:
        await line.read_to_end()

    async with app(reads) as it, front(one_pool(it.url, extra="limits: {max_body: 1MB}"), tmp_path) as stage:
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(uploading, stage, head, part, 100, answers)
        assert len(answers) == 20
        for answer in answers:
            assert answer.startswith(b"HTTP/1.1 413 Content Too Large\r\n")
            assert b"limits.max_body (1000000 bytes)" in answer
            assert not answer.endswith(b"<reset>")
        assert stage.reasons == {"EntityTooLarge": 20}
        await settled()
        assert len(stage.front.service.connections) == 0
        assert stage.front.pools["app"].places[0].active == 0


async def test_an_upload_larger_than_the_default_limit_sees_the_413(tmp_path: Path) -> None:
    """31 MB, all sent before the client looks, as http.client does it."""
    answers: list[bytes] = []
    async with app() as it, front(one_pool(it.url), tmp_path) as stage:
        head = b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 31000000\r\n\r\n"
        await uploading(stage, head, b"x" * 1_000_000, 31, answers)
        assert answers[0].startswith(b"HTTP/1.1 413 Content Too Large\r\n")
        assert not answers[0].endswith(b"<reset>")


# ---------------------------------------------------------------------------------------------------- connections


async def test_max_connections_in_all(tmp_path: Path) -> None:
    """At the limit everybody is served; one more is told without being asked anything; who leaves makes room."""
    async with app() as it, front(one_pool(it.url, extra="limits: {max_connections: 3}"), tmp_path) as stage:
        lines = [await stage.connect() for _ in range(3)]
        for line in lines:
            assert (await line.get())[1] == b"ok"
        late = await stage.connect()
        head, page = await late.message()
        assert head.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        assert b"\r\nConnection: close\r\n" in head
        assert b"\r\nRetry-After: 1\r\n" in head
        assert b"Reason: ConnLimit\n" in page
        assert await late.read_to_end() == b""
        assert stage.reasons == {"ConnLimit": 1}
        for line in lines:
            assert (await line.get())[1] == b"ok"
        await lines.pop().close()
        await settled()
        assert (await (await stage.connect()).get())[1] == b"ok"
    assert " ConnLimit " in stage.log("error")


async def test_max_connections_of_a_burst(tmp_path: Path) -> None:
    """30 in the backlog before any of them was looked at: still exactly as many as allowed."""
    answers: list[bytes] = []

    async def ask(line: Line) -> None:
        answers.append((await line.get())[0][9:12])

    async with app() as it:
        # the site would inherit the limit and refuse what the listener let through
        text = one_pool(it.url, extra="limits: {max_connections: 5}", site="limits: {max_connections: none}")
        async with front(text, tmp_path) as stage:
            await settled()
            socks = [socket.create_connection(("127.0.0.1", stage.port())) for _ in range(30)]  # no turn for the front
            for sock in socks:
                sock.setblocking(False)
                stage.lines.append(Line(trio.SocketStream(trio.socket.from_stdlib_socket(sock))))
            async with trio.open_nursery() as nursery:
                for line in stage.lines:
                    nursery.start_soon(ask, line)
            assert answers.count(b"200") == 5
            assert answers.count(b"503") == 25


async def test_an_upload_over_the_connection_limit_sees_the_answer(tmp_path: Path) -> None:
    answers: list[bytes] = []
    async with app() as it, front(one_pool(it.url, extra="limits: {max_connections: 1}"), tmp_path) as stage:
        line = await stage.connect()
        await line.get()
        head = b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 4000000\r\n\r\n"
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(uploading, stage, head, b"x" * 40_000, 100, answers)
        assert [answer[:12] for answer in answers] == [b"HTTP/1.1 503"] * 20
        assert stage.reasons == {"ConnLimit": 20}


async def test_max_connections_of_a_site(tmp_path: Path) -> None:
    """Counted once the site is known; a connection that goes to another site gives its place back."""
    async with app() as it:
        text = f"""
listen: {{http: {{port: 0}}}}
sites:
  one: {{urls: ["http://one.test/"], limits: {{max_connections: 2}}, routes: {{/: "{it.url}"}}}}
  two: {{urls: ["http://two.test/"], routes: {{/: "{it.url}"}}}}
"""
        async with front(text, tmp_path) as stage:
            first, second, third = [await stage.connect() for _ in range(3)]
            for line in (first, second, first):
                assert (await line.get(host="one.test"))[1] == b"ok"
            head, page = await third.get(host="one.test")
            assert head.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
            assert b"\r\nConnection: close\r\n" in head
            assert b"Reason: ConnLimit\n" in page
            third = await stage.connect()
            assert (await third.get(host="two.test"))[1] == b"ok"
            assert (await second.get(host="two.test"))[1] == b"ok"
            assert (await third.get(host="one.test"))[1] == b"ok"
            assert (await second.get(host="one.test"))[0].startswith(b"HTTP/1.1 503 ")
            states = {site.name: site.state for site in stage.front.service.world.all_sites}
            assert (states["one"].crowd.mine, states["two"].crowd.mine) == (2, 0)
            assert (states["one"].errors, states["two"].errors) == (2, 0)
            assert stage.reasons == {"ConnLimit": 2}
            for line in (first, third):
                await line.close()
            await settled()
            assert states["one"].crowd.mine == 0


async def test_an_unknown_host_is_no_error_of_the_site_before(tmp_path: Path) -> None:
    async with app() as it:
        text = one_pool(it.url).replace("http://*/", "http://one.test/")
        async with front(text, tmp_path) as stage:
            line = await stage.connect()
            assert (await line.get(host="one.test"))[1] == b"ok"
            assert (await line.get(host="nobody.test"))[0].startswith(b"HTTP/1.1 400 ")
            (site,) = stage.front.service.world.all_sites
            assert (site.state.requests, site.state.errors) == (1, 0)
            assert stage.reasons == {"Hostname": 1}


async def test_a_limit_of_connections_does_not_count_who_is_refused(tmp_path: Path) -> None:
    async with app(OK) as it, front(one_pool(it.url, extra="limits: {max_connections: 1}"), tmp_path) as stage:
        line = await stage.connect()
        await line.get()
        for _ in range(100):  # more than are told at one time; none of them closes
            with contextlib.suppress(OSError):  # reset so fast that it never knew it was connected
                await stage.connect()
        assert (await line.get())[1] == b"ok"
        assert len(stage.front.service.connections) == 1
        await line.close()
        await settled()
        assert (await (await stage.connect()).get())[1] == b"ok"
