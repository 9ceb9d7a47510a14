"""The pages frontd answers with: in the form that was asked for, with their reason, without any internal address."""

from __future__ import annotations

import html.parser
import json
import re
from pathlib import Path

import pytest
import trio

from tests.scenarios.bystander import behaving, entries
from tests.wire import Line, app, free_port, front, one_pool

REFUSED = {  # request → status and reason
    "URL_Length": (b"GET /%s HTTP/1.1\r\nHost: a\r\n" % (b"x" * 300), 414),
    "NotFound": (b"GET / HTTP/1.1\r\nHost: other.test\r\n", 404),
    "Hostname": (b"GET / HTTP/1.1\r\nHost: \r\n", 400),
    "Expectation": (b"GET / HTTP/1.1\r\nHost: a\r\nExpect: miracles\r\n", 417),
    "N/I": (b"TRACE / HTTP/1.1\r\nHost: a\r\n", 501),
    "EntityTooLarge": (b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999\r\n", 413),
    "AppOffline": (b"GET / HTTP/1.1\r\nHost: a\r\n", 503),
}
SITES = """
listen: {{http: {{port: 0}}}}
sites:
  main: {{urls: ["http://a/"], routes: {{/: app}}}}
  other: {{urls: ["http://other.test/only/"], routes: {{/only/: app}}}}
pools: {{app: {{targets: ["http://127.0.0.1:{port}"], queue: {{wait: 2s}}}}}}
"""


class Parser(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("accept", ["", "text/html,application/xhtml+xml,*/*;q=0.8", "application/json", "*/*"])
@pytest.mark.parametrize("reason", REFUSED)
async def test_pages(tmp_path: Path, reason: str, accept: str, autojump_clock: object) -> None:
    request, status = REFUSED[reason]
    port = free_port()
    async with front(SITES.format(port=port), tmp_path) as stage:
        line = await stage.connect()
        head, page = await line.ask(request + (f"Accept: {accept}\r\n" if accept else "").encode() + b"\r\n")
        fields = dict(re.findall(r"(?m)^([\w-]+): (.*)\r$", head.decode()))
        assert int(head.split()[1]) == status
        assert re.fullmatch(rf'frontd; error=[a-z_]+; details="{reason}"', fields["Proxy-Status"])
        assert fields["Cache-Control"] == "no-store"
        assert fields["X-Content-Type-Options"] == "nosniff"
        assert ("Retry-After" in fields) == (status == 503)
        if "json" in accept:
            assert fields["Content-Type"] == "application/json"
            content = json.loads(page)
            assert (content["status"], content["reason"]) == (status, reason)
            number = content["request"]
        else:
            text = page.decode()
            if "html" in accept:
                assert fields["Content-Type"] == "text/html; charset=utf-8"
                parser = Parser()
                parser.feed(text)
                assert parser.open == []
                text = parser.text
            else:
                assert fields["Content-Type"] == "text/plain; charset=utf-8"
                assert "<" not in text
            assert f"{status} " in text
            assert re.search(rf"Reason: {reason}\s", text)
            number = int(re.search(r"Request:? (\d+)", text)[1])  # type: ignore[index]
        assert b"127.0.0.1" not in head + page
        assert str(port).encode() not in head + page
    (entry,) = entries(stage)
    assert (entry["request"], entry["status"], entry["reason"]) == (number, status, reason)


async def test_head_has_the_fields_of_the_page_and_no_page(tmp_path: Path, autojump_clock: object) -> None:
    """And its connection is kept: the next answer is where a client that knows HEAD looks for it."""
    async with front(SITES.format(port=free_port()), tmp_path) as stage:
        line = await stage.connect()
        await line.send(b"HEAD /x HTTP/1.1\r\nHost: other.test\r\n\r\n")
        head = await line.head()
        assert head.startswith(b"HTTP/1.1 404 Not Found\r\n")
        length = re.search(rb"\r\nContent-Length: (\d+)\r\n", head)
        assert length
        again, page = await line.get("/x", host="other.test")
        assert again.startswith(b"HTTP/1.1 404 ")
        assert len(page) == int(length[1])


@pytest.mark.parametrize("fault", ["answers rubbish", "closes", "never answers"])
async def test_no_page_names_the_app(tmp_path: Path, fault: str, autojump_clock: object) -> None:
    async def bad(line: Line, _: bytes) -> None:
        if fault == "answers rubbish":
            await line.send(b"127.0.0.1 speaking\r\n\r\n")
        if fault == "never answers":
            await trio.sleep_forever()
        raise EOFError

    async with app(behaving(bad)) as it, front(one_pool(it.url), tmp_path) as stage:
        line = await stage.connect()
        for accept in ("text/plain", "text/html", "application/json"):
            head, page = await line.get("/", f"Accept: {accept}")
            assert head.split()[1] in (b"502", b"504")
            assert b"127.0.0.1" not in head + page
            assert str(it.port).encode() not in head + page


async def test_nothing_of_the_request_is_repeated_in_a_page(tmp_path: Path) -> None:
    """A page that repeats what was asked is where scripts are injected."""
    async with front(SITES.format(port=9), tmp_path) as stage:
        for request in (
            b"GET /<script>/%s HTTP/1.1\r\nHost: a\r\n" % (b"x" * 300),
            b"GET /x HTTP/1.1\r\nHost: other.test\r\nX: <script>\r\n",
            b"<script> / HTTP/1.1\r\nHost: a\r\n",
            b"GET / HTTP/1.1\r\nHost: <script>\r\n",
            b"GET / HTTP/1.1\r\nHost: a\r\n<script>: x\r\n",
        ):
            line = await stage.connect()
            head, page = await line.ask(request + b"Accept: text/html\r\n\r\n")
            assert head[9:10] == b"4"
            assert b"<script>" not in head + page
