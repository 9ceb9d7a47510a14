"""The response cache on a site where no other plugin looks at answers: its hits are sent as they were prepared."""

from __future__ import annotations

from pathlib import Path

import trio

from frontd.model.errors import Reason
from tests.plugins.cachedsite import FRESH, ask, cached, field, status

MADE = "Sun, 06 Nov 1994 08:49:37 GMT"


async def test_every_kind_of_hit(tmp_path: Path, autojump_clock: object) -> None:
    """On one connection, so that nothing may be left over of any of them."""
    async with cached(tmp_path, others="") as play:
        play.pages.fields["/"] = [FRESH, 'ETag: "a"', f"Date: {MADE}", "Set-Other: 1", "Content-Type: text/plain"]
        line = await play.stage.connect()
        first, body = await ask(line)
        assert field(first, "cache-status") == "frontd; fwd=uri-miss; stored"
        for second in range(3):
            whole, again = await ask(line)
            assert again == body
            for name in ("etag", "date", "via", "content-type", "content-length", "set-other", "cache-control"):
                assert field(whole, name) == field(first, name) != "", name
            bare, nothing = await ask(line, method="HEAD")
            assert (bare, nothing) == (whole, b"")
            assert field(whole, "age") == str(second)
            assert field(whole, "cache-status") == f"frontd; hit; ttl={60 - second}"
            short, nothing = await ask(line, "/", 'If-None-Match: "a"')
            assert (status(short), nothing) == (304, b"")
            assert field(short, "age") == str(second)
            assert field(short, "cache-status") == f"frontd; hit; ttl={60 - second}"
            assert [field(short, name) for name in ("etag", "date", "content-type", "content-length")] == [
                '"a"', MADE, "", "",
            ]  # fmt: skip
            other, again = await ask(line, "/", 'If-None-Match: "b"')
            assert (other, again) == (whole, body)
            await trio.sleep(1)
        await line.send(b"GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n")
        last = await line.read_to_end()
        assert field(last.partition(b"\r\n\r\n")[0], "connection") == "close"
        assert last.endswith(b"\r\n\r\n" + body)
        assert play.made == {"/": 1}
        assert play.stage.log().count('"status":304') == 3


async def test_an_error_page_is_not_said_to_be_of_the_cache(tmp_path: Path) -> None:
    async with cached(tmp_path, others="") as play:
        await play.get()
        head, _ = await play.get("/", "Expect: the-impossible")
        assert (status(head), field(head, "cache-status")) == (417, "")
        assert play.stage.reasons[Reason.Expectation.word] == 1
