"""A site in memory, for the tests of plugins: plain pytest, no event loop in sight.

    from frontd.testing import site

    def test_nobody_gets_in_without_a_token():
        with site({"company_token": {"issuer": "https://login.example"}}, plugins_dir=".") as s:
            assert s.get("/").status == 401
            assert s.log[-1].reason == "LogonRequired"
            answer = s.get("/", headers={"Authorization": "Bearer good"})
            assert answer.upstream.headers["X-Remote-User"] == "app-7"

What runs is frontd itself: the configuration is loaded, checked and built as ``frontd serve`` does it, and requests are
bytes on a connection.  Behind the site stands an app that says what it saw.  Time stands still but for
``s.clock.advance(seconds)``.  A call returns when everything that could happen has happened, so nothing has to be
waited for; one that hangs fails after ten seconds and names the line.  A site takes about 20 ms, a request 1 ms.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from frontd.model.urlprefix import UrlPrefix
from frontd.testkit.app import App
from frontd.testkit.client import Client
from frontd.testkit.document import POOL, ConfigurationError, Document, Plugins
from frontd.testkit.loop import Loop
from frontd.testkit.messages import Answer, AppRequest, Entry, Fields
from frontd.testkit.stage import CLIENT_ADDRESS, SiteUnderTest

__all__ = [
    "Answer", "App", "AppRequest", "Client", "ConfigurationError", "Entry", "Fields", "SiteUnderTest", "site",
]  # fmt: skip

HOST = "test.example"
PATIENCE = 10.0  # s of real time for one call


def site(
    plugins: Plugins = (),
    *,
    plugins_dir: Path | str | None = None,
    server_plugins: Plugins = (),
    routes: Mapping[str, Any] | None = None,
    scheme: str = "https",
    urls: Sequence[str] | None = None,
    config: Mapping[str, Any] | None = None,
    client_address: str = CLIENT_ADDRESS,
    split: int | None = None,
    patience: float = PATIENCE,
) -> AbstractContextManager[SiteUnderTest]:
    """A site with these plugins, as a context manager.

    `plugins` maps words to settings, in their order (None: no settings), or is a list as in frontd.yaml; a plugin's
    class may stand for its word, and then it need not be in `plugins_dir`.  `server_plugins` stand before those of the
    site.  The site is ``https://test.example/`` (`scheme` ``http``: ``http://test.example/``, or whatever `urls` say),
    and all of it leads to the app, the pool ``app``, unless `routes` say otherwise.  `config` is more of a frontd.yaml,
    merged in: ``{"limits": {"max_body": "1MB"}}``; the site's name there is ``test``.  `client_address` is the address
    of clients that do not say theirs.  `split` sends every request in pieces of so many bytes.  `patience` is in
    seconds of real time.  Relative paths start at the directory of the file that calls.

    Raises `ConfigurationError`, with the text that ``frontd check`` would print.
    """
    base = Path(sys._getframe(1).f_globals.get("__file__") or "x").absolute().parent
    chosen = tuple(urls) if urls is not None else (f"{scheme}://{HOST}/",)
    return _running(
        plugins, server_plugins, base, plugins_dir, chosen,
        routes or {"/": POOL}, config or {}, client_address, split, patience,
    )  # fmt: skip


@contextmanager
def _running(
    plugins: Plugins, server_plugins: Plugins, base: Path, plugins_dir: Path | str | None, urls: tuple[str, ...],
    routes: Mapping[str, Any], config: Mapping[str, Any], client_address: str, split: int | None, patience: float,
) -> Iterator[SiteUnderTest]:  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="frontd-") as work:
        document = Document(base, Path(work), urls, routes, plugins_dir, config)
        it = SiteUnderTest(Loop(patience), document, *_entrance(urls), client_address, split)
        try:
            it.open(plugins, server_plugins)
            yield it
            it.check()
        finally:
            it.close()


def _entrance(urls: tuple[str, ...]) -> tuple[str, str]:
    """Scheme and host of requests that do not say theirs: those of the first URL, where it names a host."""
    try:
        prefix = UrlPrefix.parse(urls[0])
    except (ValueError, IndexError):  # told when the configuration is loaded
        return "https", HOST
    return prefix.scheme, HOST if set("+*") & set(prefix.host) else prefix.host
