"""A target that leads back to the front: told by its name, after few passes."""

from __future__ import annotations

from pathlib import Path

from tests.wire import app, free_port, front, one_pool


async def test_a_front_before_itself_says_so(tmp_path: Path) -> None:
    port = free_port()
    text = one_pool(f"http://127.0.0.1:{port}").replace("port: 0", f"port: {port}").replace("*/", f"*:{port}/")
    async with front(text, tmp_path) as stage:
        head, body = await (await stage.connect()).get()
        assert head.startswith(b"HTTP/1.1 508 Loop Detected\r\n")
        assert b"Reason: Loop\n" in body
        assert [site.state.requests for site in stage.front.service.world.all_sites] == [11]


async def test_fronts_in_a_row_are_no_loop(tmp_path: Path) -> None:
    async with app() as it, front(one_pool(it.url), tmp_path) as stage:
        line = await stage.connect()
        assert (await line.get("/", "Via: " + ", ".join(["1.1 frontd"] * 9)))[1] == b"ok"
        assert it.heads[0].count(b"1.1 frontd") == 10
        assert (await line.get("/", "Via: " + ", ".join(["1.1 frontd"] * 10)))[0].startswith(b"HTTP/1.1 508 ")
        assert it.connections == 1
