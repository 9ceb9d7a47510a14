"""``frontd show NOUN`` against a front that serves: what netsh would say of it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import trio
import trio.testing
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from frontd.cli.root import cli
from frontd.processes.rates import EVERY, Rates
from tests.net.pki import Pki
from tests.scenarios.test_control import Desk, desk
from tests.wire import app, one_pool


async def show(it: Desk, *words: str, code: int = 0) -> str:
    """What ``frontd show …`` prints."""
    arguments = ["show", *words, "--socket", str(it.path)]
    result = await trio.to_thread.run_sync(partial(CliRunner().invoke, cli, arguments))
    assert result.exit_code == code, result.output
    return result.output


async def data(it: Desk, *words: str) -> Any:
    return json.loads(await show(it, *words, "--json"))


@asynccontextmanager
async def shop(pki: Pki, state: Path) -> AsyncIterator[Desk]:
    """A site with https, a logon, timers of its own and two pools, one of which is away."""
    (state / "users").write_text("")
    text = f"""
listen: {{http: {{port: 0}}, https: {{port: 0, public_port: 443}}}}
tls:
  certificates: [{pki.entry('a')}]
  hosts: {{a.test: {{client_certificate: optional, ca: {pki.client_ca}, min_version: '1.3'}}}}
limits: {{max_connections: 5000}}
sites:
  shop:
    urls: ["https://a.test/", "https://a.test/shop/"]
    plugins: [{{basic: {{users_file: users}}}}, {{authorize: [{{allow: [anonymous]}}]}}]
    timeouts: {{idle_connection: 30s}}
    limits: {{max_connections: 7}}
    routes: {{/: app, /away/: away, /again/: app, /old/: {{redirect: /}}}}
  plain:
    urls: ["http://*/"]
    redirect_http: false
    routes: {{/: app}}
pools:
  app: {{targets: ["{{target}}"], concurrency: 3}}
  away: {{targets: ["http://127.0.0.1:1"], queue: {{limit: 2, wait: 5s}}, refuse_with: status}}
"""
    async with app() as it, desk(text.replace("{target}", it.url), state) as found:
        yield found


async def test_the_session_view(pki: Pki, tmp_path: Path) -> None:
    async with shop(pki, tmp_path) as it:
        state = await data(it, "servicestate")
        assert (state["view"], state["session"]["version"], state["session"]["state"]) == ("session", "1.2.3", "Active")
        assert state["session"]["max_connections"] == 5000
        assert state["session"]["timeouts"]["idle_connection"] == 120
        group, plain = state["url_groups"]
        assert group == {
            "name": "shop", "state": "Active", "request_queues": ["app", "away"], "max_connections": 7,
            "timeouts": {"idle_connection": 30.0}, "authentication": ["Basic"],
            "urls": ["https://a.test:443/", "https://a.test:443/shop/"],
        }  # fmt: skip
        assert (plain["timeouts"], plain["authentication"]) == (None, [])
        queues = state["request_queues"]
        assert [(one["name"], one["max_requests"], one["timeout"], one["verbosity"]) for one in queues] == [
            ("app", 1000, 30.0, "Full"), ("away", 2, 5.0, "Limited"),
        ]  # fmt: skip
        text = await show(it, "servicestate")
        assert text.startswith("Snapshot of HTTP service state (Server Session View):\n----")
        assert "\n                Authentication schemes enabled: Basic\n" in text
        assert "\n            Number of registered URLs: 2\n            Registered URLs:\n" in text
        assert text.count("Request queue 503 verbosity level: Limited") == 1
        assert text.index("URL group: shop") < text.index("Request queues:") < text.index("Request queue name: away")
        assert "\n\n\n" not in text


async def test_the_request_queue_view(pki: Pki, tmp_path: Path) -> None:
    async with shop(pki, tmp_path) as it:
        state = await data(it, "servicestate", "--view", "requestq")
        assert [[one["name"] for one in queue["url_groups"]] for queue in state["request_queues"]] == [
            ["shop", "plain"], ["shop"],
        ]  # fmt: skip
        text = await show(it, "servicestate", "--view", "requestq")
        assert text.startswith("Snapshot of HTTP service state (Request Queue View):\n")
        assert text.index("Request queue name: away") < text.index("Server session:")
        assert (await it.ask("GET /servicestate?view=client"))[0] == 400


async def test_certificates_by_the_names_they_answer_for(pki: Pki, tmp_path: Path) -> None:
    async with shop(pki, tmp_path) as it:
        rows = {row["host"]: row for row in (await data(it, "sslcert"))["bindings"]}
        assert set(rows) == {"a.test", "*.wild.test", "127.0.0.1", "::1"}
        certificate = x509.load_pem_x509_certificate(pki.cert("a").read_bytes())
        assert {row["hash"] for row in rows.values()} == {certificate.fingerprint(hashes.SHA256()).hex()}
        assert {row["port"] for row in rows.values()} == {443}
        a, other = rows["a.test"], rows["*.wild.test"]
        assert (a["client_certificate"], a["min_version"], a["revocation"]) == ("optional", "1.3", False)
        assert (other["client_certificate"], other["min_version"]) == ("none", "1.2")
        text = await show(it, "sslcert")
        assert "\na.test:443        optional                       Disabled            Set " in text
        assert "\n*.wild.test:443   none                           Disabled            Not Set" in text


async def test_addresses_and_timers(pki: Pki, tmp_path: Path) -> None:
    async with shop(pki, tmp_path) as it:
        port = it.stage.port("https")
        assert f"\nhttps      https   *:{port}           443             0\n" in await show(it, "iplisten")
        text = await show(it, "timeout")
        assert "\nHeader wait timeout (secs)         server        120\n" in text
        assert "\nIdle connection timeout (secs)     site shop      30\n" in text
        assert "\nRequest queue timeout (secs)       pool away       5\n" in text
        answer = await data(it, "timeout")
        assert answer["sites"] == {"shop": {"idle_connection": 30.0}}
        assert answer["request_queues"] == {"app": 30, "away": 5}


async def test_requests_as_a_table(tmp_path: Path) -> None:
    async with desk(one_pool("http://127.0.0.1:1"), tmp_path) as it:
        assert await show(it, "requests") == "Nothing runs now.\n"
        lines = [await it.stage.connect() for _ in range(3)]
        for line in lines:
            await line.send(b"GET /x?secret HTTP/1.1\r\nHost: a.test\r\n\r\n")
        while (await it.ask("GET /requests"))[1]["total"] < 3:  # noqa: ASYNC110 - it is asked about
            await trio.sleep(0.005)
        text = await show(it, "requests", "--older", "0ms", "--most", "2")
        assert "   queued   GET      http://a.test:" in text
        assert text.endswith("\n\nand 1 more\n")
        assert "secret" not in text
        assert await show(it, "requests", "--older", "1h") == "Nothing runs now.\n"
        assert "--older" in await show(it, "requests", "--older", "soon", code=2)
        for line in lines:
            await line.close()


async def test_counters_of_queues(pki: Pki, tmp_path: Path) -> None:
    """Two wait, two find the queue full, and one is answered in another pool."""
    async with shop(pki, tmp_path) as it:
        it.text = it.text.replace("/: app}\npools", "/: app, /away/: away}\npools")
        assert (await it.ask("POST /reload"))[0] == 200
        lines = [await it.stage.connect() for _ in range(5)]
        assert (await lines[0].get(host="b.test"))[0].startswith(b"HTTP/1.1 200 ")
        for line in lines[1:3]:
            await line.send(b"GET /away/ HTTP/1.1\r\nHost: b.test\r\n\r\n")
        pool = it.stage.front.pools["away"]
        while len(pool.queue) < 2:  # noqa: ASYNC110 - requests that other tasks carry
            await trio.sleep(0.005)
        for line in lines[3:]:
            assert (await line.get("/away/", host="b.test"))[0].startswith(b"HTTP/1.1 503 ")
        app, away = (await data(it, "requestq"))["request_queues"]
        assert {**app, "rates": 0, "fronts": 0, "oldest": 0} == {
            "name": "app", "on_demand": False, "size": 0, "max_requests": 1000, "timeout": 30.0, "oldest": 0,
            "arrived": 0, "refused": 0, "served": 1, "5xx": 0, "reasons": {}, "rates": 0, "active": 0, "targets": 1,
            "up": 1, "fronts": 0,
        }  # fmt: skip
        assert (away["size"], away["arrived"], away["refused"], away["served"]) == (2, 2, 2, away["served"])
        assert (away["5xx"], away["reasons"], away["up"]) == (2, {"QueueFull": 2}, 0)
        assert 0 < away["oldest"] < 5
        (front,) = away["fronts"]
        assert (front["index"], front["size"], front["refused"]) == (0, 2, 2)
        assert (await data(it, "counters"))["request_queues"][1]["reasons"] == {"QueueFull": 2}
        status = (await it.ask("GET /status"))[1]["pools"][1]
        assert (status["counters"]["refused"], status["reasons"]) == (2, {"QueueFull": 2})
        text = await show(it, "requestq")
        assert text.startswith("REQUEST QUEUE   SIZE    MAX   OLDEST   ARRIVED/S")
        assert text.endswith("\n\nRates are not known yet.\n")
        assert "FRONT" not in text  # there is only one
        text = await show(it, "counters")
        assert "\nplain " in text
        assert "\nQueueFull       2\n" in text
        for line in lines:
            await line.close()


async def test_rates_are_known_after_a_while(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    async with app() as other, desk(one_pool(other.url), tmp_path) as it:
        it.control.views.rates = Rates(trio.current_time)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(it.control.views.run)
            await trio.sleep(2.5 * EVERY)
            line = await it.stage.connect()
            for _ in range(10):
                assert (await line.get())[0].startswith(b"HTTP/1.1 200 ")
            await line.close()
            status = (await it.ask("GET /status"))[1]
            assert status["window"] == 1.5 * EVERY
            assert status["pools"][0]["rates"] == {"arrived": 0.0, "refused": 0.0, "served": 1.333, "5xx": 0.0}
            nursery.cancel_scope.cancel()
