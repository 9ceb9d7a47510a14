"""The simplest plays: one request through, one refused, one that waits."""

from __future__ import annotations

from pathlib import Path

from tests.wire import app, free_port, front, one_pool, settled


async def test_a_request_passes_and_comes_back(tmp_path: Path) -> None:
    async with app() as it, front(one_pool(it.url), tmp_path) as stage:
        line = await stage.connect()
        head, body = await line.get("/a/%7Eb/../c?d=%20", "Connection: X-Secret", "X-Secret: 1", "X-Keep: 2")
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert body == b"ok"
        sent = it.heads[0]
        assert sent.startswith(b"GET /a/c?d=%20 HTTP/1.1\r\nHost: a.test\r\n")
        assert b"X-Secret" not in sent
        assert b"X-Keep: 2\r\n" in sent
        assert b"X-Forwarded-For: 127.0.0.1\r\n" in sent
        assert b"\r\nVia: 1.1 frontd\r\n" in sent
        head, body = await line.get("/again")
        assert body == b"ok"
        assert it.connections == 1
        assert stage.reasons == {}
        await line.close()


async def test_a_request_waits_for_an_app_that_is_not_there_yet(tmp_path: Path, autojump_clock: object) -> None:
    port = free_port()
    async with front(one_pool(f"http://127.0.0.1:{port}"), tmp_path) as stage:
        line = await stage.connect()
        await line.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        await settled()
        assert len(stage.front.pools["app"].queue) == 1
        async with app(port=port):
            head, body = await line.message()
        assert (head[:15], body) == (b"HTTP/1.1 200 OK", b"ok")


async def test_an_app_that_never_comes_is_offline(tmp_path: Path, autojump_clock: object) -> None:
    async with front(one_pool(f"http://127.0.0.1:{free_port()}"), tmp_path) as stage:
        line = await stage.connect()
        head, body = await line.get()
        assert head.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        assert b"Retry-After: 5\r\n" in head
        assert b"Reason: AppOffline" in body
        assert b"127.0.0.1" not in body
        assert stage.reasons == {"AppOffline": 1}
