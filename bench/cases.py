"""The cases of the benchmark and the goals they are judged by.

A case measures every one of its servers in each round and says in which unit; a goal takes the ratio of two of them
in the same round (these machines are noisy: only what ran side by side can be compared) and knows its must and its
aim.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench import connections
from bench.figures import Goal, Sample
from bench.processes import Running
from bench.servers import HOST, PASSWORD, Stage
from bench.tools import h2load_at_rate, wrk

ALL = ("frontd", "nginx", "haproxy", "plain")
CACHING = ("frontd", "nginx")

Measure = Callable[[Stage, Running, float], Sample]


@dataclass(frozen=True)
class Case:
    """One thing that is measured."""

    id: str
    what: str
    servers: tuple[str, ...]
    measure: Measure
    tools: tuple[str, ...] = ("wrk",)
    unit: str = "CPU µs/request"
    paths: tuple[str, ...] = ("/1k",)  # asked once before, so that caches are filled and connections made
    fresh: bool = False  # a new server for every sample
    both_cores: bool = False
    most_rounds: int = 99
    warm: bool = True  # run once before it counts
    takes_extra: bool = False  # proxies named on the command line can take part
    prepare: Callable[[Stage, Sequence[Running]], None] | None = None  # once, before the rounds
    needs: Callable[[Stage], str] = lambda stage: ""  # why it cannot be measured


# ---------------------------------------------------------------------------------------------------- kept connections

# What a browser of today sends for a page of a site it has been to.
BROWSER = (
    "User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/130.0.0.0 Safari/537.36",
    "Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8",
    "Accept-Language: en-GB,en;q=0.9,de;q=0.8",
    "Accept-Encoding: gzip, deflate, br, zstd",
    "Referer: http://bench.localhost/start",
    "Cookie: session=3f9a1d6c52e84b07a1d0; theme=dark; consent=1",
    'Sec-CH-UA: "Chromium";v="130", "Not?A_Brand";v="99"',
    "Sec-CH-UA-Mobile: ?0",
    'Sec-CH-UA-Platform: "Linux"',
    "Sec-Fetch-Dest: document",
    "Sec-Fetch-Mode: navigate",
    "Sec-Fetch-Site: same-origin",
    "Upgrade-Insecure-Requests: 1",
    "Priority: u=0, i",
)  # with Host: fifteen

POST = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = '{"text": "' .. string.rep("x", 1024 - 12) .. '"}'
"""


def requests(stage: Stage, running: Running, seconds: float, path: str, *fields: str, post: bool = False) -> Sample:
    """CPU per request with 64 kept connections."""
    script = None
    if post:
        script = stage.folder / "post.lua"
        script.write_text(POST)
    url = f"http://127.0.0.1:{running.port}{path}"
    return by_wrk(stage, running, seconds, url, fields, script=script)


def by_wrk(
    stage: Stage,
    running: Running,
    seconds: float,
    url: str,
    fields: tuple[str, ...] = (),
    *,
    script: Path | None = None,
    cores: set[int] | None = None,
) -> Sample:
    """Run wrk and read the CPU time of the server before and after."""
    before = running.cpu()
    load = wrk(url, cores or {stage.load_core}, seconds, fields=fields, script=script)
    used = (running.cpu() - before).used
    return Sample(used / max(1, load.requests) / 1000, load.rate, load.requests, load.errors, load.detail)


def proxied(stage: Stage, running: Running, seconds: float) -> Sample:
    """GET of 1 KiB from the origin."""
    return requests(stage, running, seconds, "/1k")


def browser(stage: Stage, running: Running, seconds: float) -> Sample:
    """The same with fifteen fields."""
    return requests(stage, running, seconds, "/1k", *BROWSER)


def post(stage: Stage, running: Running, seconds: float) -> Sample:
    """POST of 1 KiB of JSON."""
    return requests(stage, running, seconds, "/post", post=True)


def hit(stage: Stage, running: Running, seconds: float) -> Sample:
    """GET of 1 KiB from the cache."""
    return requests(stage, running, seconds, "/cached/1k")


def basic(stage: Stage, running: Running, seconds: float) -> Sample:
    """The same for a user with a password; nginx asks nobody."""
    if running.name == "nginx":
        return hit(stage, running, seconds)
    token = base64.b64encode(":".join(PASSWORD).encode()).decode()
    return requests(stage, running, seconds, "/cached/locked/1k", f"Authorization: Basic {token}")


def chunked(stage: Stage, running: Running, seconds: float) -> Sample:
    """GET of 1 KiB that the origin sends chunked."""
    return requests(stage, running, seconds, "/chunked/1k")


def file(stage: Stage, running: Running, seconds: float) -> Sample:
    """GET of a file of 1 KiB."""
    return requests(stage, running, seconds, "/files/1k")


def tls_hit(stage: Stage, running: Running, seconds: float) -> Sample:
    """GET of 1 KiB from the cache over kept TLS connections."""
    return by_wrk(stage, running, seconds, f"https://{HOST}:{running.tls_port}/cached/1k")


def both_cores(stage: Stage, running: Running, seconds: float) -> Sample:
    """GET of 1 KiB from the origin, load and proxy sharing all cores."""
    url = f"http://127.0.0.1:{running.port}/1k"
    before = running.cpu_by_process()
    sample = by_wrk(stage, running, seconds, url, cores={stage.proxy_core, stage.load_core})
    if running.name == "two fronts" and running.busy_since(before) < 2:
        return replace(sample, errors=sample.errors + 1, detail="one front took them all")
    return sample


def choose_rate(stage: Stage, running: Sequence[Running]) -> None:
    """Set `stage.rate`: half of what the slowest of them can do."""
    rates = [proxied(stage, one, 1.0).rate for one in running]
    stage.rate = max(RATE_CLIENTS, min(rates, default=0.0) / 2)


def at_rate(stage: Stage, running: Running, seconds: float) -> Sample:
    """Time to the end of the answer at the same absolute rate for all: the 99th percentile in us."""
    url, log = f"http://127.0.0.1:{running.port}/1k", stage.folder / "h2load.log"
    seen = h2load_at_rate(url, stage.load_core, seconds, stage.rate, RATE_CLIENTS, log)
    errors, detail = seen.errors, f"{seen.errors} not 2xx" if seen.errors else ""
    if not errors and seen.rate < stage.rate * 0.9:
        errors, detail = 1, f"{seen.rate:.0f}/s reached of {stage.rate:.0f}"
    return Sample(seen.p99, seen.rate, seen.count, errors, detail, seen.p50, seen.p99)


def without_fronts(stage: Stage) -> str:
    """Why two fronts cannot be measured; empty: they can."""
    return "" if stage.knows_fronts() else "this frontd does not take `fronts` (asked of frontd check)"


RATE_CLIENTS = 32
CASES: dict[str, Case] = {
    case.id: case
    for case in (
        Case("proxied", "1 KiB proxied, kept connections", ALL, proxied, takes_extra=True),
        Case("worker", "1 KiB from a local worker over a Unix socket, and proxied", ("frontd", "over unix"), proxied),
        Case("headers", "browser request of 15 fields, proxied", ALL, browser, takes_extra=True),
        Case("post", "POST of 1 KiB JSON, proxied", ALL, post, paths=("/post",)),
        Case("hit", "1 KiB from the cache", CACHING, hit, paths=("/cached/1k",)),
        Case("basic", "the same behind Basic (nginx: without)", CACHING, basic, paths=("/cached/1k",)),
        Case("tls", "1 KiB from the cache, kept TLS connections", CACHING, tls_hit, paths=("/cached/1k",)),
        Case(
            "handshake13", "a TLS 1.3 connection for each request, full handshake", CACHING, connections.handshakes_13,
            tools=(), unit="CPU µs/connection", paths=("/cached/1k",),
        ),
        Case(
            "handshake12", "a TLS 1.2 connection for each request, full handshake", CACHING, connections.handshakes_12,
            tools=(), unit="CPU µs/connection", paths=("/cached/1k",),
        ),
        Case(
            "resumed", "TLS sessions resumed over two fronts", ("two fronts",), connections.resumption, tools=(),
            unit="% resumed", paths=("/cached/1k",), both_cores=True, most_rounds=3, needs=without_fronts,
        ),
        Case("download", "100 MB from the origin", ALL, connections.download, tools=(), unit="CPU ms/100 MB", paths=()),
        Case("chunked", "1 KiB chunked from the origin, kept connections", ALL, chunked, paths=("/chunked/1k",)),
        Case("file", "a file of 1 KiB, kept connections", CACHING, file, paths=("/files/1k",)),
        Case("file-large", "a file of 100 MB", CACHING, connections.file, tools=(), unit="CPU ms/100 MB", paths=()),
        Case("upload", "100 MB to the origin", ALL, connections.upload, tools=(), unit="CPU ms/100 MB", paths=()),
        Case(
            "idle", f"{connections.IDLE} idle connections", CACHING, connections.idle, tools=(),
            unit="KiB/connection", paths=("/cached/1k",), fresh=True, warm=False, most_rounds=3,
        ),
        Case(
            "idle-tls", f"{connections.IDLE} idle TLS connections", CACHING, connections.idle_tls, tools=(),
            unit="KiB/connection", paths=("/cached/1k",), fresh=True, warm=False, most_rounds=3,
        ),
        Case(
            "p99", "1 KiB proxied at half of the slowest's full rate", ALL, at_rate, tools=("wrk", "h2load"),
            unit="µs p99", warm=False, prepare=choose_rate,
        ),
        Case(
            "fronts", "1 KiB proxied, load and proxy share both cores", ("one front", "two fronts"), both_cores,
            both_cores=True, needs=without_fronts,
        ),
    )
}  # fmt: skip

GOALS: tuple[Goal, ...] = (
    Goal("proxied", "1 KiB proxied", "proxied", 1.6, 1.2),
    Goal("worker", "a worker over a Unix socket to the proxied", "worker", 1.2, 1.0, "over unix", "frontd"),
    Goal("headers", "browser request of 15 fields, proxied", "headers", 2.0, 1.5),
    Goal("post", "POST of 1 KiB JSON, proxied", "post", 1.8, 1.4),
    Goal("hit", "1 KiB from the cache", "hit", 1.0, 0.8),
    Goal("basic", "the same behind Basic", "basic", 2.0, 1.3),
    Goal("tls", "1 KiB from the cache over TLS", "tls", 1.2, 0.95),
    Goal("handshake13", "full handshake, TLS 1.3, P-256", "handshake13", 1.4, 1.1),
    Goal("handshake12", "full handshake, TLS 1.2, P-256", "handshake12", 1.7, 1.4),
    Goal("resumed", "resumed over two fronts", "resumed", 95, 100, "two fronts", "", at_least=True, unit="%"),
    Goal("download", "100 MB from the origin", "download", 0.8, 0.5),
    Goal("upload", "100 MB to the origin", "upload", 0.8, 0.5),
    Goal("chunked", "1 KiB chunked, proxied", "chunked", 2.0, 1.5),
    Goal("file", "file of 1 KiB", "file", 2.0, 1.5),
    Goal("file-large", "file of 100 MB", "file-large", 1.2, 1.0),
    Goal("idle", "memory of an idle connection", "idle", 1.5, 0.8, against="", unit="KiB"),
    Goal("idle-tls", "memory of an idle TLS connection", "idle-tls", 1.3, 1.0),
    Goal("p99", "99th percentile at a fixed rate", "p99", 2.0, 1.2),
    Goal("fronts", "CPU of two fronts to one", "fronts", 1.1, 1.0, "two fronts", "one front"),
    Goal("plain", "plain trio + h11 to frontd", "proxied", 4.0, 6.0, "plain", "frontd", at_least=True),
)
