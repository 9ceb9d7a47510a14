"""What is reserved and registered lies over the configuration: which site, which queue, and what `explain` says."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from frontd.config.effective import effective
from frontd.model.reservations import Account, Holder, Namespace, Reservation
from frontd.model.urlprefix import UrlPrefix
from frontd.processes.claims import overlay, queue_in_file, registered_in_file, whole
from frontd.processes.explain import explain
from frontd.processes.front import Front
from frontd.processes.runtime import differences
from tests.scenarios.test_routing import named, said
from tests.wire import Line, Stage, app, configuration

ANN = Account("user", 1001, "ann")
ROOT = Holder(Account("user", 0, "root"), is_admin=True)

TEXT = """
listen: {{http: {{port: 0}}}}
plugins: [{{headers: {{set_response: {{X-Server: "1"}}}}}}]
sites:
  main:
    urls: ["http://a.test/", "http://b.test/"]
    plugins: [{{headers: {{set_response: {{X-Site: main}}}}}}]
    limits: {{max_segment: 20}}
    routes: {{/: app, /shop/admin/: app, /Fixed/: app, /pool/: pooled}}
  files: {{urls: ["http://a.test/shop/static/"], routes: {{/: app}}}}
pools:
  app: {{targets: ["{url}"]}}
  pooled: {{attach: {{}}, queue: {{wait: 0}}}}
urlacl:
  - {{url: "http://a.test/shop/", uid: 1001}}
  - {{url: "http://+/own/", uid: 1001}}
  - {{url: "http://a.test/fixed/", uid: 1001}}
  - {{url: "http://a.test/queued/", pool: pooled}}
  - {{url: "http://a.test/pool/", pool: pooled}}
"""
QUEUE = Namespace().create(ROOT, "shop").register(ROOT, "shop", [UrlPrefix.parse("http://a.test/shop/cart/")])


def url(text: str) -> UrlPrefix:
    return UrlPrefix.parse(text)


@asynccontextmanager
async def claimed(text: str, state: Path, kept: Namespace) -> AsyncIterator[Stage]:
    loaded = configuration(text, state)
    it = Front.open(dataclasses.replace(loaded, config=overlay(loaded.config, kept)))
    async with trio.open_nursery() as nursery:
        await nursery.start(it.run)
        stage = Stage(it, state)
        try:
            yield stage
        finally:
            for line in stage.lines:
                await trio.aclose_forcefully(line.stream)
            it.service.log.close()
        nursery.cancel_scope.cancel()


async def fields(line: Line, path: str, host: str = "a.test") -> tuple[int, bool, bool]:
    """Status, and whether the plugins of the server and of the site saw it."""
    head, _ = await line.get(path, host=host)
    return int(head[9:12]), b"X-Server: 1" in head, b"X-Site: main" in head


async def test_a_reservation_shields_and_its_site_holds(tmp_path: Path) -> None:
    async with app(named("app")) as it, claimed(TEXT.format(url=it.url), tmp_path, Namespace()) as stage:
        line = await stage.connect()
        for path in ("/shop/", "/shop", "/SHOP/x", "/shop/admins"):
            assert await said(line, "a.test", path) == "503 AppOffline", path
        for path in ("/", "/shopping", "/shop/admin/", "/shop/static/x", "/fixed/", "/FIXED/x"):
            assert await said(line, "a.test", path) == "app", path  # what the file itself routes stands
        assert await said(line, "b.test", "/shop/") == "app", "another host of the same site"
        assert await fields(line, "/shop/x") == (503, True, True)
        assert await said(line, "a.test", "/shop/" + "x" * 21) == "414 URL_Length", "the site's limits hold"
        # under no site: the plugins of the server, and + comes before every name
        assert await fields(line, "/own/x", "b.test") == (503, True, False)
        assert await said(line, "nobody.test", "/own/") == "503 AppOffline"
        assert await said(line, "nobody.test", "/other/") == "404 NotFound"
        assert it.connections == 1
        head, body = await line.get("/shop/")
        assert b"\r\nRetry-After: 5\r\n" in head
        assert b"ann" not in body


async def test_what_has_a_queue_waits_in_it(tmp_path: Path) -> None:
    """The queues have no process and wait for nobody: what is said is that nobody could be reached in time."""
    async with app(named("app")) as it, claimed(TEXT.format(url=it.url), tmp_path, QUEUE) as stage:
        line = await stage.connect()
        pools = stage.front.pools
        assert await said(line, "a.test", "/queued/x") == "503 AppOffline"
        assert await said(line, "a.test", "/pool/x") == "503 AppOffline"
        assert pools["shop"].settings.queue_wait == 30
        with trio.move_on_after(5) as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(line.get, "/shop/cart/x")
                while not len(pools["shop"].queue):  # noqa: ASYNC110 - a reactor does it
                    await trio.sleep(0.001)
                scope.cancel()
        line = await stage.connect()
        assert await said(line, "a.test", "/shop/other") == "503 AppOffline", "the rest is reserved still"


async def test_the_status_of_what_is_reserved(tmp_path: Path) -> None:
    async with app(named("app")) as it:
        async with claimed(TEXT.format(url=it.url) + "reserved_status: 400\n", tmp_path, Namespace()) as stage:
            line = await stage.connect()
            assert await said(line, "a.test", "/shop/") == "400 AppOffline"
            assert await said(line, "a.test", "/queued/") == "503 AppOffline"


def told(kept: Namespace, asked: str, tmp_path: Path) -> dict[str, str]:
    """What `explain` says, by step."""
    config = overlay(configuration(TEXT.format(url="http://127.0.0.1:1"), tmp_path).config, kept)
    answer = explain(config, asked)
    steps = {step["step"]: f"{step['chosen']}: {step['why']}" for step in answer["steps"]}
    return {**steps, "answer": answer["answer"]}


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        ("http://a.test/shop/x", "503 AppOffline: "),
        ("http://a.test/shop/admin/", "forwarded to http://127.0.0.1:1 as /shop/admin/"),
        ("http://a.test/shop/static/", "forwarded to http://127.0.0.1:1 as /shop/static/"),
        ("http://a.test/shop/cart/1", "forwarded to a process that is attached to the queue shop as /shop/cart/1"),
        ("http://a.test/queued/", "forwarded to a process that is attached to the queue pooled as /queued/"),
        ("http://a.test/pool/", "forwarded to a process that is attached to the queue pooled as /pool/"),
        ("http://a.test/fixed/", "forwarded to http://127.0.0.1:1 as /fixed/"),
        ("http://b.test/shop/", "forwarded to http://127.0.0.1:1 as /shop/"),
        ("http://b.test/own/", "503 AppOffline: "),
    ],
)
def test_explain_tells_the_truth(asked: str, answer: str, tmp_path: Path) -> None:
    assert told(QUEUE, asked, tmp_path)["answer"].startswith(answer)


def test_explain_names_the_owner(tmp_path: Path) -> None:
    steps = told(Namespace(), "http://a.test/shop/x", tmp_path)
    assert steps["site"] == "main: http://a.test:80/shop/ is reserved (user uid 1001); its site covers it"
    assert steps["plugins"].startswith("headers, headers: ")
    assert steps["route"] == "/shop/: it is reserved for user uid 1001, and nobody has registered it yet"
    steps = told(Namespace(), "http://x.test/own/", tmp_path)
    assert steps["site"].endswith("is reserved (user uid 1001); no site covers it: the plugins of the server hold")


def test_the_overlay_leaves_the_configuration_alone(tmp_path: Path) -> None:
    config = configuration(TEXT.format(url="http://127.0.0.1:1"), tmp_path).config
    before = effective(config)
    over = overlay(config, QUEUE)
    assert effective(config) == before
    assert config.claims == ()
    assert over == overlay(config, QUEUE)
    assert over != config
    assert differences(overlay(config, Namespace()), over) == ["pool shop added", "http://a.test:80/shop/cart/ claimed"]
    assert differences(over, over) == []
    assert "http://a.test:80/shop/cart/ no longer claimed" in differences(over, overlay(config, Namespace()))


def test_a_queue_never_takes_the_name_of_a_configured_pool(tmp_path: Path) -> None:
    config = configuration(TEXT.format(url="http://127.0.0.1:1"), tmp_path).config
    kept = Namespace().create(ROOT, "app").register(ROOT, "app", [url("http://a.test/x/")])
    over = overlay(config, kept)
    assert over.pools["app"] == config.pools["app"]
    assert url("http://a.test/x/") not in [claim.url for claim in over.claims]
    kept = (
        Namespace()
        .create(ROOT, "pooled")
        .register(ROOT, "pooled", [url("http://a.test/x/"), url("http://a.test/pool/")])
    )
    claims = {str(claim.url): claim.queue for claim in overlay(config, kept).claims}
    assert "http://a.test:80/x/" not in claims, "it would go to the tenant who has the name now"
    assert claims["http://a.test:80/pool/"] == "pooled", "reserved for that pool"


def test_the_file_wins_over_what_is_kept_at_one_prefix(tmp_path: Path) -> None:
    config = configuration(TEXT.format(url="http://127.0.0.1:1"), tmp_path).config
    kept = Namespace((Reservation(url("http://a.test/SHOP/"), Account("user", 7, "eve")),))
    assert [one.account.number for one in whole(config, kept).reservations if "shop" in str(one.url).lower()] == [1001]


def test_what_the_file_has_registered(tmp_path: Path) -> None:
    config = configuration(TEXT.format(url="http://127.0.0.1:1"), tmp_path).config
    assert registered_in_file(config, url("http://a.test/fixed/")) == "the route /Fixed/ of the site main"
    assert registered_in_file(config, url("http://a.test/shop/static/")) == "the URL of the site files"
    assert registered_in_file(config, url("http://a.test/shop/")) == ""
    assert queue_in_file(config, url("http://a.test/pool/")) == "pooled"
