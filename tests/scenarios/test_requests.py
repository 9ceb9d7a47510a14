"""What runs now, as ``GET /requests`` tells it: each play stops a request in one phase and asks."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from frontd.lanes.running import LONGEST_URL
from tests.net.pki import Pki
from tests.net.tlsclient import secure_site
from tests.scenarios.test_control import Desk, desk
from tests.wire import Line, app, one_pool

PLUGIN = """
import frontd, trio

class Waits(frontd.Plugin):
    name = "waits"

    async def filter_request(self, exchange):
        if exchange.request.path == "/filter":
            await trio.sleep(3600)

    async def rewrite_response(self, exchange):
        if exchange.request.path == "/rewrite":
            await trio.sleep(3600)
"""


@pytest.fixture(params=["on", "off"], autouse=True)
def drives(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the reactor, and by tasks alone."""
    monkeypatch.setenv("FRONTD_REACTOR", request.param)


async def seen(it: Desk, phase: str, query: str = "") -> dict[str, Any]:
    """The only request that runs, once it is in this phase."""
    found: dict[str, Any] = {}
    with trio.move_on_after(5):
        while True:
            status, found = await it.ask(f"GET /requests{query}")
            assert status == 200, found
            if [row["phase"] for row in found["requests"]] == [phase]:
                row = found["requests"][0]
                assert isinstance(row, dict)
                return row
            await trio.sleep(0.005)
    raise AssertionError(found)


@asynccontextmanager
async def asked(it: Desk, data: bytes, name: str = "http") -> AsyncIterator[Line]:
    line = await it.stage.connect(name)
    await line.send(data)
    yield line
    await trio.aclose_forcefully(line.stream)
    with trio.fail_after(5):
        while it.stage.front.service.connections:  # noqa: ASYNC110 - a bound, and no event to wait for
            await trio.sleep(0.005)


def get(path: str = "/") -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: a.test\r\n\r\n".encode()


async def silent(line: Line) -> None:
    """An app that takes a request and says nothing."""
    await line.head()
    await trio.sleep_forever()


async def test_nothing_runs(tmp_path: Path) -> None:
    async with desk(one_pool("http://127.0.0.1:1"), tmp_path) as it:
        idle = await it.stage.connect()
        assert await it.ask("GET /requests") == (200, {"total": 0, "requests": [], "more": 0, "silent": []})
        await idle.close()


async def test_a_head_that_has_begun(tmp_path: Path) -> None:
    async with desk(one_pool("http://127.0.0.1:1"), tmp_path) as it:
        async with asked(it, b"GET /secret HTTP/1.1\r\nHost: "):
            row = await seen(it, "reading head")
            assert (row["id"], row["method"], row["url"], row["client"]) == (None, "", "", "127.0.0.1")
            assert 0 <= row["seconds"] < 5


async def test_a_handshake_that_has_begun(pki: Pki, tmp_path: Path) -> None:
    async with desk(secure_site("http://127.0.0.1:1", pki.entry("a")), tmp_path) as it:
        async with asked(it, b"\x16\x03\x01\x02\x00\x01", "https"):
            assert (await seen(it, "handshake"))["listener"] == "https"


async def test_the_app_is_asked(tmp_path: Path) -> None:
    async with app(silent) as other, desk(one_pool(other.url), tmp_path) as it:
        async with asked(it, get("/a/b?token=secret")):
            row = await seen(it, "waiting for the app")
            port = it.stage.port()
            assert row == {
                "front": 0, "id": row["id"], "client": "127.0.0.1", "listener": "http", "method": "GET",
                "url": f"http://a.test:{port}/a/b", "site": "main", "pool": "app",
                "target": f"127.0.0.1:{other.port}", "phase": "waiting for the app",
                "since": row["since"], "seconds": row["seconds"],
                "status": None, "attempts": 1, "bytes_in": row["bytes_in"], "bytes_out": 0,
            }  # fmt: skip
            assert row["id"] > 0
            assert abs(datetime.fromisoformat(row["since"]).timestamp() + row["seconds"] - time.time()) < 2
            assert row["bytes_in"] > 20


async def test_nobody_answers(tmp_path: Path) -> None:
    async with desk(one_pool("http://127.0.0.1:1"), tmp_path) as it:
        async with asked(it, get()):
            row = await seen(it, "queued")
            assert (row["pool"], row["target"], row["attempts"]) == ("app", "", 0)


async def test_a_connection_that_is_not_made(tmp_path: Path) -> None:
    """The app accepts and says nothing to the ClientHello."""

    async def deaf(line: Line) -> None:
        await trio.sleep_forever()

    async with app(deaf) as other:
        text = one_pool(other.url.replace("http:", "https:"))
        async with desk(text, tmp_path) as it:
            async with asked(it, get()):
                await seen(it, "connecting")


async def test_an_upload_on_its_way(tmp_path: Path) -> None:
    async with app(silent) as other, desk(one_pool(other.url), tmp_path) as it:
        async with asked(it, b"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 100\r\n\r\nabc") as line:
            row = await seen(it, "sending")
            assert row["method"] == "POST"
            await line.send(b"x" * 97)
            await seen(it, "waiting for the app")


async def test_an_answer_on_its_way(tmp_path: Path) -> None:
    async def slow(line: Line) -> None:
        await line.head()
        await line.send(b"HTTP/1.1 201 Made\r\nContent-Length: 100\r\n\r\nabc")
        await trio.sleep_forever()

    async with app(slow) as other, desk(one_pool(other.url), tmp_path) as it:
        async with asked(it, get()) as line:
            row = await seen(it, "relaying body")
            assert row["status"] == 201
            assert (await line.head()).startswith(b"HTTP/1.1 201 ")


async def test_a_tunnel(tmp_path: Path) -> None:
    switch = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"

    async def socket(line: Line) -> None:
        await line.head()
        await line.send(switch)
        await line.read_to_end()

    async with app(socket) as other, desk(one_pool(other.url), tmp_path) as it:
        head = b"GET / HTTP/1.1\r\nHost: a.test\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
        async with asked(it, head) as line:
            await line.head()
            assert (await seen(it, "tunnel"))["status"] == 101


@pytest.mark.parametrize("where", ["filter_request", "rewrite_response"])
async def test_a_plugin_takes_its_time(tmp_path: Path, where: str) -> None:
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "all.py").write_text(PLUGIN)
    async with app() as other:
        text = one_pool(other.url, site="plugins: [waits]", extra="plugins_dir: plugins")
        async with desk(text, tmp_path) as it, asked(it, get("/" + where.partition("_")[0])):
            await seen(it, f"plugin waits.{where}")


async def test_the_oldest_of_many(tmp_path: Path) -> None:
    async with app(silent) as other, desk(one_pool(other.url), tmp_path) as it:
        lines = []
        for number in range(5):
            lines.append(await it.stage.connect())
            await lines[-1].send(get(f"/{number}"))
            while (await it.ask("GET /requests"))[1]["total"] != number + 1:
                await trio.testing.wait_all_tasks_blocked()
        _, found = await it.ask("GET /requests?most=3")
        assert [row["url"][-2:] for row in found["requests"]] == ["/0", "/1", "/2"]
        assert (found["total"], found["more"]) == (5, 2)
        assert (await it.ask("GET /requests?older=3600"))[1]["total"] == 0
        for line in lines:
            await line.close()


@pytest.mark.parametrize("query", ["older=x", "older=-1", "older=nan", "older=inf", "most=0", "most=1001", "most=x"])
async def test_nonsense_is_refused(tmp_path: Path, query: str) -> None:
    async with desk(one_pool("http://127.0.0.1:1"), tmp_path) as it:
        status, said = await it.ask(f"GET /requests?{query}")
        assert (status, list(said)) == (400, ["error"])


async def test_a_long_url_is_cut(tmp_path: Path) -> None:
    async with app(silent) as other, desk(one_pool(other.url), tmp_path) as it:
        async with asked(it, get("/abc" * 200)):
            url = (await seen(it, "waiting for the app"))["url"]
            assert (len(url), url[-1]) == (LONGEST_URL, "…")


async def test_a_file_that_nobody_reads(tmp_path: Path) -> None:
    (tmp_path / "www").mkdir()
    with (tmp_path / "www" / "large").open("wb") as file:
        file.truncate(1 << 28)
    text = one_pool("http://127.0.0.1:1").replace("routes: {/: app}", "routes: {/: {files: www}, /app/: app}")
    async with desk(text, tmp_path) as it, asked(it, get("/large")):
        assert (await seen(it, "sending a file"))["status"] == 200


async def test_a_logon_that_keeps_its_connection_waits_too(tmp_path: Path) -> None:
    text = one_pool("http://127.0.0.1:1", pool="pass_through: [ntlm]")
    async with desk(text, tmp_path) as it:
        head = b"GET / HTTP/1.1\r\nHost: a.test\r\nAuthorization: NTLM TlRMTVNTUAABAAAA\r\n\r\n"
        async with asked(it, head):
            await seen(it, "queued")
