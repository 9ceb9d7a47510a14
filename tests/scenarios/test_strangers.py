"""What strangers, and proxies that let strangers' fields pass, say of a client: nothing of it opens a door."""

from __future__ import annotations

from pathlib import Path

import pytest

import frontd
from tests.scenarios.plugged import fields, made, plugged, reload, status, text
from tests.wire import app, front, one_pool

PROXY = "trusted_proxies: [127.0.0.0/8]\n"
INSIDE = "plugins: [{ip_filter: {allow: [127.0.0.0/8]}}]"


@pytest.mark.parametrize(
    ("lines", "answer"),
    [
        ((), 200),  # the proxy itself
        (("X-Forwarded-For: 127.0.0.9",), 200),
        (("X-Forwarded-For: 203.0.113.7",), 403),
        (("X-Forwarded-For: 203.0.113.7", "Forwarded: x"), 403),
        (("X-Forwarded-For: 203.0.113.7", "Forwarded: for=127.0.0.1"), 403),
        (("X-Forwarded-For: 203.0.113.7", "X-Forwarded-For: what"), 403),
        (("X-Forwarded-For: unknown",), 403),
        (("Forwarded: for=_hidden",), 403),
    ],
)
async def test_a_rule_by_address_behind_a_proxy(tmp_path: Path, lines: tuple[str, ...], answer: int) -> None:
    async with app() as it, front(one_pool(it.url, site=INSIDE, extra=PROXY), tmp_path) as stage:
        head, _ = await (await stage.connect()).get("/", *lines)
        assert status(head) == answer


@pytest.mark.parametrize(
    "name",
    ["X-Forwarded-Ssl", "X-Forwarded-Scheme", "X-Forwarded-User", "X-FORWARDED-anything", "X.Forwarded.Port",
     "X-Url-Scheme", "Front-End-Https", "X-Host", "X-Original-Host", "X-HTTP-Host-Override", "True-Client-IP",
     "Remote-User"],
)  # fmt: skip
async def test_fields_of_strangers_about_themselves(tmp_path: Path, name: str) -> None:
    async with app() as it, front(one_pool(it.url), tmp_path) as stage:
        await (await stage.connect()).get("/", f"{name}: on")
        assert fields(it.heads[0].decode().replace(".", "-").encode(), name.replace(".", "-")) in ([], ["http"])
    async with app() as it, front(one_pool(it.url, extra=PROXY), tmp_path) as stage:
        await (await stage.connect()).get("/", f"{name}: on")
        assert name.lower() in it.heads[0].decode().lower()


@pytest.mark.parametrize(
    "value", ["Bearer x", "bEARER x", "Bearer\tx", "Bearer", "Basic eDp5, Bearer x", "Digest a=b ,\tbearer\tx"]
)
async def test_credentials_that_a_plugin_consumes_do_not_reach_the_app(tmp_path: Path, value: str) -> None:
    open_to_all = made("open_to_all", scheme="Bearer", authorize=lambda self, exchange: frontd.Allow())
    async with app() as it, plugged(tmp_path, it.url, open_to_all) as stage:
        line = await stage.connect()
        await line.get("/", f"Authorization: {value}")
        await line.get("/", "Authorization: Digest username=bearer")
        assert [fields(head, "Authorization") for head in it.heads] == [[], ["Digest username=bearer"]]


@pytest.mark.parametrize(
    ("said", "scheme"),
    [((), "http"), (("https",), "https"), (("https", "https"), "https"), (("http", "https"), "http"),
     (("ftp",), "http"), (("https, http",), "http")],
)  # fmt: skip
async def test_the_scheme_that_a_proxy_reports(tmp_path: Path, said: tuple[str, ...], scheme: str) -> None:
    def tells(self: frontd.Plugin, exchange: frontd.Exchange) -> frontd.Response:
        return frontd.Response(200, text=exchange.request.scheme)

    plugin = made("tells", filter_request=tells)
    async with plugged(tmp_path, "http://127.0.0.1:1", plugin, extra=PROXY) as stage:
        _, body = await (await stage.connect()).get("/", *(f"X-Forwarded-Proto: {one}" for one in said))
        assert body.decode() == scheme


async def test_pools_on_demand_do_not_follow_a_refused_reload(tmp_path: Path) -> None:
    class Broken(frontd.Plugin):
        name = "broken"

        async def run(self, *, task_status: object) -> None:
            raise ValueError("no")

    async with app() as it:
        routes = made("routes", route=lambda self, exchange: it.url)
        async with plugged(tmp_path, "http://127.0.0.1:1", routes, extra="timeouts: {keep_alive: 7s}") as stage:
            report = await reload(stage, text("http://127.0.0.1:1", [routes, Broken]), routes, Broken)
            assert not report.ok
            await (await stage.connect()).get("/")
            (pool,) = stage.front.service.world.ondemand
            assert pool.settings.keep_alive == 7


async def test_a_capture_says_at_once_that_it_is_given_up(tmp_path: Path) -> None:
    said: list[str] = []

    def asks(self: frontd.Plugin, exchange: frontd.Exchange) -> None:
        exchange.response.capture(3, lambda whole: said.append("short"), lambda: said.append("dropped"))
        exchange.response.capture(100, lambda whole: said.append(f"long {whole.body!r}"))

    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n2\r\ncd\r\n0\r\n\r\n"
    async with app(answer) as it, plugged(tmp_path, it.url, made("asks", admit_response=asks)) as stage:
        await (await stage.connect()).get("/")
    assert said == ["dropped", "long b'abcd'"]


def test_what_a_refusal_may_hold() -> None:
    refusal = frontd.Refuse(403, "Rejected", headers=(pair for pair in [("A", "b")]))
    assert list(refusal.headers) == list(refusal.headers) == [("A", "b")]
    for wrong in ("x", -1, 1.5, True):
        with pytest.raises(ValueError, match="retry_after is a number of seconds"):
            frontd.Refuse(503, "LogonBusy", retry_after=wrong)  # type: ignore[arg-type]
