"""What an app or a client would otherwise stumble over: small mendings on the way through."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.wire import OK, Line, app, front, one_pool


async def test_an_app_always_sees_a_host(tmp_path: Path) -> None:
    async with app() as it, front(one_pool(it.url), tmp_path) as stage:
        line = await stage.connect()
        head, _ = await line.ask(b"GET / HTTP/1.0\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert it.heads[0].startswith(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n")


async def test_a_length_has_one_spelling(tmp_path: Path) -> None:
    async with app() as it, front(one_pool(it.url), tmp_path) as stage:
        line = await stage.connect()
        await line.ask(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0003\r\n\r\nabc")
        assert re.findall(rb"(?i)content-length: *(\S+)", it.heads[0]) == [b"3"]
        assert it.bodies == [b"abc"]


@pytest.mark.parametrize(
    ("asked", "sent"), [("/app//x", b"/x"), ("/APP/y", b"/y"), ("/app", b"/"), ("/app/?q", b"/?q")]
)
async def test_a_stripped_path_begins_with_one_slash(tmp_path: Path, asked: str, sent: bytes) -> None:
    async with app() as it:
        text = one_pool(it.url).replace("{/: app}", "{/app/: {pool: app, strip_prefix: true}}")
        async with front(text, tmp_path) as stage:
            await (await stage.connect()).get(asked)
        assert it.heads[0].split(b" ")[1] == sent


async def test_a_redirect_without_a_host_names_the_address(tmp_path: Path) -> None:
    text = one_pool("http://127.0.0.1:1").replace("{/: app}", '{/: {redirect: "https://x.test{path}"}, /a/: app}')
    async with front(text, tmp_path) as stage:
        head, _ = await (await stage.connect()).ask(b"GET /b?c HTTP/1.0\r\n\r\n")
        assert b"\r\nLocation: https://x.test/b?c\r\n" in head
        assert re.search(rb"\r\nDate: \w{3}, \d\d \w{3} \d{4} [\d:]{8} GMT\r\n", head)


async def test_trailers_that_wsgi_would_confuse_do_not_pass(tmp_path: Path) -> None:
    seen: list[bytes] = []

    async def keep_trailers(line: Line) -> None:
        await line.read_until(b"\r\n0\r\n")
        seen.append(await line.read_until(b"\r\n\r\n"))
        await line.send(OK)

    async with app(keep_trailers) as it, front(one_pool(it.url), tmp_path) as stage:
        line = await stage.connect()
        await line.send(
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: X_Sum, X-Sum\r\n\r\n"
            b"1\r\na\r\n0\r\nX_Sum: 1\r\nX-Sum: 2\r\n\r\n"
        )
        await line.message()
    assert seen == [b"X-Sum: 2\r\n\r\n"]
