"""What a client sees when its request cannot be served now: `refuse_with` (HTTP.sys's 503 verbosity)."""

from __future__ import annotations

import json
import re
import ssl
from pathlib import Path

import pytest
import trio

from tests.net.pki import Pki
from tests.wire import OK, Line, Stage, app, free_port, front, one_pool, settled

GET = b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"


def pool(how: str, **more: object) -> str:
    """A pool that refuses like this; a second of waiting, unless `more` says otherwise."""
    queue = {"wait": "1s", **more}
    return f"refuse_with: {how}\n    queue: {{{', '.join(f'{key}: {value}' for key, value in queue.items())}}}"


def lines(stage: Stage) -> list[tuple[int | None, str]]:
    """Status and reason of each line of the access log; closes the log."""
    return [(one["status"], one["reason"]) for one in map(json.loads, stage.log().splitlines())]


async def test_a_reset_when_the_app_is_offline(tmp_path: Path, autojump_clock: object) -> None:
    async with front(one_pool(f"http://127.0.0.1:{free_port()}", pool=pool("reset")), tmp_path) as stage:
        line = await stage.connect()
        await line.send(GET)
        assert await line.read_to_end() == b"<reset>"
        await settled()
        assert stage.reasons == {"AppOffline": 1}
        assert lines(stage) == [(None, "AppOffline")]
        assert " AppOffline " in stage.log("error")


async def test_a_reset_when_the_queue_is_full(tmp_path: Path, autojump_clock: object) -> None:
    text = one_pool(f"http://127.0.0.1:{free_port()}", pool=pool("reset", limit=1, wait="10s"))
    async with front(text, tmp_path) as stage:
        waiting, line = await stage.connect(), await stage.connect()
        await waiting.send(GET)
        await settled()
        began = trio.current_time()
        await line.send(GET)
        assert await line.read_to_end() == b"<reset>"
        assert trio.current_time() == began
        assert len(stage.front.pools["app"].queue) == 1
        assert stage.reasons == {"QueueFull": 1}


async def test_a_reset_when_the_app_is_busy_for_too_long(tmp_path: Path, autojump_clock: object) -> None:
    async def slow(line: Line) -> None:
        await line.head()
        await trio.sleep(5)
        await line.send(OK)

    async with app(slow) as it, front(one_pool(it.url, pool=f"concurrency: 1\n    {pool('reset')}"), tmp_path) as stage:
        busy, line = await stage.connect(), await stage.connect()
        await busy.send(GET)
        await settled()
        await line.send(GET)
        assert await line.read_to_end() == b"<reset>"
        assert stage.reasons == {"Timer_ReqQueue": 1}
        assert (await busy.message())[1] == b"ok"


async def test_a_reset_of_an_upload_that_is_still_coming(tmp_path: Path, autojump_clock: object) -> None:
    async with front(one_pool(f"http://127.0.0.1:{free_port()}", pool=pool("reset")), tmp_path) as stage:
        line = await stage.connect()
        await line.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n" + b"x" * 70000)
        assert await line.read_to_end() == b"<reset>"


async def test_a_reset_over_tls_without_close_notify(tmp_path: Path, pki: Pki, autojump_clock: object) -> None:
    text = f"""
listen: {{https: {{port: 0, public_port: 443}}}}
tls: {{certificates: [{pki.entry("a")}]}}
sites: {{main: {{urls: ["https://a.test/"], routes: {{/: app}}}}}}
pools: {{app: {{targets: ["http://127.0.0.1:{free_port()}"], refuse_with: reset, queue: {{wait: 1s}}}}}}
"""
    async with front(text, tmp_path) as stage:
        raw = await trio.open_tcp_stream("127.0.0.1", stage.port("https"))
        secure = trio.SSLStream(raw, ssl.create_default_context(cafile=str(pki.ca)), server_hostname="a.test")
        await secure.send_all(GET)
        with pytest.raises(trio.BrokenResourceError) as caught:
            await secure.receive_some()
        cause: BaseException | None = caught.value
        while cause is not None and not isinstance(cause, ConnectionResetError):  # and not TLS's "ended too early"
            cause = cause.__cause__
        assert cause is not None
        await trio.aclose_forcefully(secure)
        await settled()
        assert stage.reasons == {"AppOffline": 1}


@pytest.mark.parametrize(
    ("accept", "body"),
    [
        ("*/*", rb"503 Service Unavailable\nRequest: \d+\n"),
        ("application/json", rb'\{"status": 503, "message": "Service Unavailable", "request": \d+\}\n'),
        ("text/html", rb"<!doctype html>.*<h1>503 Service Unavailable</h1>.*"),
    ],
)
async def test_a_status_without_the_word(tmp_path: Path, accept: str, body: bytes, autojump_clock: object) -> None:
    async with front(one_pool(f"http://127.0.0.1:{free_port()}", pool=pool("status")), tmp_path) as stage:
        line = await stage.connect()
        head, page = await line.get("/", f"Accept: {accept}")
        assert head.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        assert b"proxy-status" not in head.lower()
        assert b"retry-after" not in head.lower()  # 5 s or 1 s would tell one reason from another
        assert b"\r\nCache-Control: no-store\r\n" in head
        assert re.fullmatch(body, page, re.DOTALL)
        for word in (b"AppOffline", b"queue", b"reached"):
            assert word not in page
        head, _ = await line.get()  # the connection serves on
        assert head.startswith(b"HTTP/1.1 503 ")
        assert lines(stage) == [(503, "AppOffline")] * 2


async def test_by_default_the_reason_is_told(tmp_path: Path, autojump_clock: object) -> None:
    text = one_pool(f"http://127.0.0.1:{free_port()}", pool="queue: {wait: 1s}")
    async with front(text, tmp_path) as stage:
        head, body = await (await stage.connect()).get()
        assert b'details="AppOffline"' in head
        assert b"Reason: AppOffline" in body


async def test_what_is_no_matter_of_the_queue_is_told_all_the_same(tmp_path: Path) -> None:
    async def dies(line: Line) -> None:
        await line.head()

    async with app(dies) as it, front(one_pool(it.url, pool=pool("reset")), tmp_path) as stage:
        head, body = await (await stage.connect()).get()
        assert head.startswith(b"HTTP/1.1 502 ")
        assert b"Connection_Abandoned_By_ReqQueue" in body
