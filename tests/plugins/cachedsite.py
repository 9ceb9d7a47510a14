"""A cached site for the plays: an app whose pages say how often they were made and for whom, and ways to ask for it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from frontd_plugins.response_cache import ResponseCache

from frontd.pipeline.store import MemoryStore
from tests.wire import App, Line, Stage, app, front

FRESH = "Cache-Control: max-age=60"

# Plugins for the plays: who is asking stands in X-Who, where to in X-Pool.
HELPERS = '''
import frontd

class Who(frontd.Plugin):
    """Believes what it is told."""

    name = "who"

    def authenticate(self, exchange: frontd.Exchange) -> frontd.Identity | None:
        name = exchange.request.headers.text("x-who")
        return frontd.Identity(name) if name else None

    def authorize(self, exchange: frontd.Exchange) -> frontd.Allow | None:
        return None if exchange.request.path.startswith("/inside") else frontd.Allow()

    def route(self, exchange: frontd.Exchange) -> str | None:
        return exchange.request.headers.text("x-pool") or None


class Meddler(frontd.Plugin):
    """Does to answers what X-Do says."""

    name = "meddler"

    def rewrite_request(self, exchange: frontd.Exchange) -> None:
        if exchange.request.headers.get("x-do") == b"break":
            raise RuntimeError("broken")

    def admit_response(self, exchange: frontd.Exchange) -> frontd.Response | None:
        what = exchange.request.headers.text("x-do")
        if what == "replace":
            return frontd.Response(200, {"Cache-Control": "max-age=60"}, text="replaced")
        if what == "fail":
            raise RuntimeError("failed")
        if what.startswith("add "):
            name, _, value = what[4:].partition("=")
            exchange.response.headers.add(name, value)
        return None

    def rewrite_response(self, exchange: frontd.Exchange) -> None:
        exchange.response.headers.add("X-Rewritten", str(exchange.id))
'''

Page = Callable[["Pages", Line, bytes], Awaitable[None]]


class Pages:
    """The app.  Every page counts how often it was made; `fields` are its fields, `scripts` answer in their own way."""

    def __init__(self) -> None:
        self.made: Counter[str] = Counter()
        self.heads: list[bytes] = []
        self.fields: dict[str, list[str]] = {}
        self.status: dict[str, str] = {}
        self.bodies: dict[str, bytes] = {}
        self.scripts: dict[str, Page] = {}

    async def serve(self, line: Line) -> None:
        """One connection."""
        while True:
            head, _ = await line.message()
            if not head:
                return
            self.heads.append(head)
            path = target(head)
            self.made[path] += 1
            script = self.scripts.get(path)
            if script is not None:
                await script(self, line, head)
            else:
                await line.send(self.page(head))

    def page(self, head: bytes) -> bytes:
        """The page that a request asks for: ``METHOD PATH #NUMBER for WHOM``."""
        method, path = head.split(b" ", 1)[0].decode(), target(head)
        whom = field(head, "x-remote-user") or field(head, "authorization") or "nobody"
        body = self.bodies.get(path, f"{method} {path} #{self.made[path]} for {whom}".encode())
        fields = [*self.fields.get(path, [FRESH]), f"Content-Length: {len(body)}"]
        lines = "".join(f"{one}\r\n" for one in fields)
        answer = f"HTTP/1.1 {self.status.get(path, '200 OK')}\r\n{lines}\r\n".encode("latin-1")
        return answer if method == "HEAD" else answer + body


def target(head: bytes) -> str:
    return head.split(b" ", 2)[1].decode()


def field(head: bytes, name: str) -> str:
    """The value of a field of a head (all of them, joined); empty when there is none."""
    found = re.findall(rb"(?i)\r\n" + re.escape(name.encode()) + rb": *([^\r]*)", head)
    return b", ".join(found).decode("latin-1")


def status(head: bytes) -> int:
    return int(head.split(b" ", 2)[1])


def how(head: bytes) -> str:
    """Cache-Status without the time to live: ``hit``, ``fwd=uri-miss; stored``, …"""
    return re.sub(r"; ttl=-?\d+", "", field(head, "cache-status")).removeprefix("frontd; ")


class Play:
    """A running cached site."""

    def __init__(self, stage: Stage, pages: Pages, it: App, text: str) -> None:
        self.text = text
        self.stage = stage
        self.pages = pages
        self.app = it

    async def get(self, path: str = "/", *fields: str, method: str = "GET", host: str = "a.test") -> tuple[bytes, str]:
        """One request on a connection of its own: the head and the body of its answer."""
        line = await self.stage.connect()
        head, body = await ask(line, path, *fields, method=method, host=host)
        await line.close()
        return head, body.decode()

    async def hows(self, *requests: tuple[str, ...]) -> list[str]:
        """How the cache handled each of these requests, one after the other."""
        return [how((await self.get(*request))[0]) for request in requests]

    @property
    def store(self) -> MemoryStore:
        return self.stage.front.service.world.store

    @property
    def cache(self) -> ResponseCache:
        (found,) = (one for one in self.stage.front.service.world.plugins if isinstance(one, ResponseCache))
        return found

    @property
    def made(self) -> dict[str, int]:
        """How often the app was asked for each path."""
        return dict(self.pages.made)


async def ask(
    line: Line, path: str = "/", *fields: str, method: str = "GET", host: str = "a.test"
) -> tuple[bytes, bytes]:
    """One request on this connection."""
    lines = "".join(f"{one}\r\n" for one in fields)
    await line.send(f"{method} {path} HTTP/1.1\r\nHost: {host}\r\n{lines}\r\n".encode("latin-1"))
    head = await line.head()
    assert head, "the connection ended"
    length = field(head, "content-length")
    bodyless = method == "HEAD" or status(head) in (204, 304)
    return head, b"" if bodyless or not length else await line.read_exactly(int(length))


SITE = """
plugins_dir: {folder}
{extra}
listen: {{http: {{port: 0}}}}
sites:
  main:
    urls: ["http://*/"]
    plugins: [who, {{response_cache: {{{settings}}}}}{others}]
    routes: {{{routes}}}
    {more}
pools:
  app: {{targets: ["{target}"]}}
  other: {{targets: ["{target}"]}}
"""


@asynccontextmanager
async def cached(
    tmp_path: Path, settings: str = "", extra: str = "", more: str = "", routes: str = "/: app",
    others: str = ", meddler",
) -> AsyncIterator[Play]:  # fmt: skip
    """A cached site: the plugin's `settings`, `extra` lines at the top, `more` of the site, its `routes`, and the
    `others` of its plugins.

    At its end nothing of any exchange is left on the plugin.
    """
    folder = tmp_path / "plugins"
    folder.mkdir()
    (folder / "helpers.py").write_text(HELPERS)
    pages = Pages()
    async with AsyncExitStack() as stack:
        it = await stack.enter_async_context(app(pages.serve))
        text = SITE.format(
            folder=folder, target=it.url, settings=settings, extra=extra, more=more, routes=routes,
            others=others,
        )
        play = Play(await stack.enter_async_context(front(text, tmp_path)), pages, it, text)
        cache = play.cache
        yield play
    assert not cache._flights
    assert not cache._fetches
