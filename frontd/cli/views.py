"""The reads of a running frontd: ``frontd show NOUN`` (netsh http show NOUN, where there is such a noun)."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import quote

import click

from frontd.cli.common import count
from frontd.cli.controlclient import Where, fetch, read_options
from frontd.cli.live import address, memory
from frontd.cli.servicestate import servicestate_text, timer_word
from frontd.cli.tables import duration, table, use_colour

Data = dict[str, Any]
Function = TypeVar("Function", bound=Callable[..., Any])
STYLES = {"up": "green", "serving": "green", "down": "red", "silent": "red", "draining": "yellow", "starting": "yellow"}


def json_option(function: Function) -> Function:
    """``--json``."""
    return click.option("--json", "as_json", is_flag=True, help="The whole answer as JSON.")(function)


def shown(answer: Data, as_json: bool, text: Callable[[Data], str]) -> None:
    """Print an answer: as it is, or what `text` makes of it."""
    click.echo(json.dumps(answer, indent=2) if as_json else text(answer))


def rate(value: float | None) -> str:
    """Something per second; ``-``: not known yet."""
    return "-" if value is None else f"{value:.1f}"


def columns(heads: list[str], rows: list[list[object]], nothing: str = "") -> str:
    """A table, or `nothing` when it has no rows."""
    return table(heads, rows, colour=use_colour(), styles=STYLES) if rows or not nothing else nothing


@click.command(short_help="Sites and request queues in netsh's shape.")
@click.option(
    "--view", type=click.Choice(["session", "requestq"]), default="session", show_default=True,
    help="What comes first: what serves, or the request queues.",
)  # fmt: skip
@json_option
@read_options
def servicestate(where: Where, view: str, as_json: bool) -> None:
    """The service state in the shape of 'netsh http show servicestate'.

    A server session is frontd as a whole, a URL group is a site, a request queue is that of a pool.
    """
    shown(fetch(where, f"/servicestate?view={view}"), as_json, servicestate_text)


@click.command(short_help="The request queues: size, age, rates.")
@json_option
@read_options
def requestq(where: Where, as_json: bool) -> None:
    """The request queues of all pools: how many wait, for how long, how many come and are refused per second."""
    shown(fetch(where, "/requestq"), as_json, requestq_text)


def requestq_text(answer: Data) -> str:
    """The answer of ``GET /requestq``; where there are several fronts, each of them has its row."""
    queues = answer["request_queues"]
    parts = [columns(QUEUE_HEADS, [queue_row(queue) for queue in queues], "There is no request queue.")]
    rows: list[list[object]] = [
        [
            queue["name"], one["index"], one["size"], duration(one["oldest"]), rate(one["rates"]["arrived"]),
            rate(one["rates"]["refused"]), rate(one["rates"]["served"]), one["refused"],
        ]
        for queue in queues
        if len(queue["fronts"]) > 1
        for one in queue["fronts"]
    ]  # fmt: skip
    if rows:
        heads = ["REQUEST QUEUE", "FRONT", "SIZE", "OLDEST", "ARRIVED/S", "REFUSED/S", "SERVED/S", "REFUSED"]
        parts.append(columns(heads, rows))
    return "\n\n".join([*parts, window_line(answer)])


QUEUE_HEADS = [
    "REQUEST QUEUE", "SIZE", "MAX", "OLDEST", "ARRIVED/S", "REFUSED/S", "SERVED/S", "REFUSED", "ACTIVE", "TARGETS",
    "UP",
]  # fmt: skip


def queue_row(queue: Data) -> list[object]:
    """A queue with what it is drained by."""
    rates = queue["rates"]
    return [
        queue["name"], queue["size"], queue["max_requests"], duration(queue["oldest"]), rate(rates["arrived"]),
        rate(rates["refused"]), rate(rates["served"]), queue["refused"], queue["active"], queue["targets"], queue["up"],
    ]  # fmt: skip


def window_line(answer: Data) -> str:
    """What time rates are over."""
    over = answer["window"]
    return "Rates are not known yet." if over is None else f"Rates are over the last {duration(over)}."


@click.command(short_help="What runs now, in which phase, since when.")
@click.option(
    "--older", default="0s", metavar="TIME", show_default=True,
    help="Only what has been running for at least so long: 5s, 500ms, 2m.",
)  # fmt: skip
@click.option("--most", default=1000, type=click.IntRange(1, 1000), show_default=True, help="At most so many.")
@json_option
@read_options
def requests(where: Where, older: str, most: int, as_json: bool) -> None:
    """The requests that run now, the oldest first.

    The phase is what each waits for: its head, a plugin, the queue, a connection, the app, its client.  Queries are not
    shown, since they may hold tokens.
    """
    from frontd.config.units import seconds

    try:
        least = seconds(older)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--older") from None
    shown(fetch(where, f"/requests?older={quote(str(least))}&most={most}"), as_json, requests_text)


def requests_text(answer: Data) -> str:
    """The answer of ``GET /requests``."""
    heads = ["ID", "FRONT", "SINCE", "PHASE", "METHOD", "URL", "CLIENT", "SITE", "POOL", "TARGET"]
    rows: list[list[object]] = [
        [
            row["id"], row["front"], duration(row["seconds"]), row["phase"], row["method"], row["url"], row["client"],
            row["site"], row["pool"], row["target"],
        ]
        for row in answer["requests"]
    ]  # fmt: skip
    text = columns(heads, rows, "Nothing runs now.")
    notes = [f"and {answer['more']} more"] if answer["more"] else []
    notes += [f"front {index} does not answer: what runs there is missing" for index in answer["silent"]]
    return "\n\n".join([text, *notes])


@click.command(short_help="Which certificate answers for which name.")
@json_option
@read_options
def sslcert(where: Where, as_json: bool) -> None:
    """The SSL certificate bindings: by name and port, in the words of 'netsh http show sslcert'."""
    shown(fetch(where, "/sslcert"), as_json, sslcert_text)


def sslcert_text(answer: Data) -> str:
    """The answer of ``GET /sslcert``."""
    heads = [
        "HOSTNAME:PORT", "NEGOTIATE CLIENT CERTIFICATE", "VERIFY REVOCATION", "DISABLE TLS1.2", "EXPIRES", "FILE",
        "CERTIFICATE HASH (SHA-256)",
    ]  # fmt: skip
    rows: list[list[object]] = [
        [
            f"{one['host'] or '(any other)'}:{one['port'] or '*'}", one["client_certificate"],
            "Enabled" if one["revocation"] else "Disabled", "Set" if one["min_version"] == "1.3" else "Not Set",
            one["not_after"], one["source"], one["hash"],
        ]
        for one in answer["bindings"]
    ]  # fmt: skip
    return columns(heads, rows, "There is no certificate.")


@click.command(short_help="The addresses that are listened on.")
@json_option
@read_options
def iplisten(where: Where, as_json: bool) -> None:
    """The listeners with their addresses; * is every address of this machine."""
    shown(fetch(where, "/iplisten"), as_json, iplisten_text)


def iplisten_text(answer: Data) -> str:
    """The answer of ``GET /iplisten``."""
    heads = ["LISTENER", "KIND", "ADDRESS", "PUBLIC PORT", "CONNECTIONS"]
    return columns(heads, [
        [one["name"], one["kind"], address(one), one["public_port"], one["connections"]] for one in answer["listeners"]
    ])  # fmt: skip


@click.command(short_help="The timers, and where they differ.")
@json_option
@read_options
def timeout(where: Where, as_json: bool) -> None:
    """The timers of the server, of sites where they differ, and of the request queues."""
    shown(fetch(where, "/timeout"), as_json, timeout_text)


def timeout_text(answer: Data) -> str:
    """The answer of ``GET /timeout``."""
    common = answer["timeouts"]
    rows: list[list[object]] = [[timer_word(name), "server", f"{value:g}"] for name, value in common.items()]
    for site, own in answer["sites"].items():
        rows += [[timer_word(name), f"site {site}", f"{value:g}"] for name, value in own.items()]
    for queue, wait in answer["request_queues"].items():
        rows.append(["Request queue timeout (secs)", f"pool {queue}", f"{wait:g}"])
    return columns(["TIMER", "OF", "VALUE"], rows)


@click.command(short_help="Everything that is counted.")
@json_option
@read_options
def counters(where: Where, as_json: bool) -> None:
    """What is counted: in each front, for each site and each request queue, and the reasons of what went wrong."""
    shown(fetch(where, "/counters"), as_json, counters_text)


def counters_text(answer: Data) -> str:
    """The answer of ``GET /counters``."""
    parts = [
        columns(
            ["FRONT", "PID", "STATE", "CONNECTIONS", "REQUESTS", "REQUESTS/S", "MEMORY"],
            [
                [
                    one["index"], one["pid"], one["state"], one["connections"], one["requests"],
                    rate(one["rates"]["requests"]), memory(one["memory"]) if one["memory"] else None,
                ]
                for one in answer["fronts"]
            ],
        ),
        columns(
            ["URL GROUP", "REQUESTS", "REQUESTS/S", "ERRORS", "ERRORS/S"],
            [
                [
                    one["name"], one["requests"], rate(one["rates"]["requests"]), one["errors"],
                    rate(one["rates"]["errors"]),
                ]
                for one in answer["url_groups"]
            ],
        ),
        columns(QUEUE_HEADS, [queue_row(queue) for queue in answer["request_queues"]], "There is no request queue."),
    ]  # fmt: skip
    if answer["reasons"]:
        parts.append(columns(["REASON", "COUNT"], [list(pair) for pair in sorted(answer["reasons"].items())]))
    lost = answer["log"]["dropped"]
    return "\n\n".join([*parts, *([f"{count(lost, 'log line')} lost"] if lost else []), window_line(answer)])
