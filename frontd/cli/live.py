"""Verbs that ask a running frontd: `status`, `reload`, `healthcheck`."""

from __future__ import annotations

import json
from typing import Any

import click

from frontd.cli.common import ConfigFailure, Failure, count
from frontd.cli.controlclient import RELOAD_TIMEOUT, Where, call, fetch, find_socket, read_options, said, socket_option
from frontd.cli.tables import duration, styled, table, use_colour
from frontd.model.addresses import bracketed

_STATES = {"up": "green", "serving": "green", "down": "red", "draining": "yellow", "unknown": "dim", "silent": "red"}


@click.command(short_help="What the running frontd serves.")
@read_options
@click.option("--json", "as_json", is_flag=True, help="The whole answer as JSON.")
def status(where: Where, as_json: bool) -> None:
    """Fronts, listeners, sites, plugins, pools and certificates of the running frontd."""
    answer = fetch(where, "/status")
    if as_json:
        click.echo(json.dumps(answer, indent=2))
    else:
        click.echo(status_text(answer, use_colour()))


# The row of a pool whose workers are not started, or out of service.
NOBODY: dict[str, Any] = {
    "target": None, "address": None, "state": "none", "active": 0, "idle": 0, "concurrency": None,
    "error": "frontd show workers",
}  # fmt: skip


def status_text(answer: dict[str, Any], colour: bool = False) -> str:
    """The answer of ``GET /status`` as text: a headline, then one table per kind of thing."""
    parts = [_headline(answer, colour)]

    def add(heads: list[str], rows: list[list[object]]) -> None:
        if rows:
            parts.append(table(heads, rows, colour=colour, styles=_STATES))

    add(
        ["FRONT", "PID", "STATE", "SINCE", "CONNECTIONS", "REQUESTS", "MEMORY"],
        [
            [
                row["index"], row["pid"], row["state"], row["since"], row["connections"], row["requests"],
                memory(row["memory"]) if row["memory"] else None,
            ]
            for row in answer["fronts"]
        ],
    )
    add(
        ["LISTENER", "KIND", "ADDRESS", "PUBLIC PORT", "CONNECTIONS"],
        [
            [row["name"], row["kind"], address(row), row["public_port"], row["connections"]]
            for row in answer["listeners"]
        ],
    )
    add(
        ["SITE", "REQUESTS", "ERRORS", "URLS"],
        [[row["name"], row["requests"], row["errors"], ", ".join(row["urls"])] for row in answer["sites"]],
    )
    add(["SITE", "PLUGIN", "HOOKS"], _plugin_rows(answer["sites"]))
    add(
        ["POOL", "TARGET", "ADDRESS", "STATE", "ACTIVE", "IDLE", "CONCURRENCY", "ERROR"],
        [
            [
                "on demand" if pool["on_demand"] else pool["name"], target["target"], target["address"],
                target["state"], target["active"], target["idle"], target["concurrency"], target["error"],
            ]
            for pool in answer["pools"]
            for target in pool["targets"] or [NOBODY]
        ],
    )
    add(
        ["QUEUE OF POOL", "WAITING", "LIMIT", "MAY WAIT", "LONGEST NOW"],
        [
            [
                pool["name"], pool["queue"]["length"], pool["queue"]["limit"],
                duration(pool["queue"]["wait"]), duration(pool["queue"]["longest"]),
            ]
            for pool in answer["pools"]
        ],
    )
    add(
        ["LOGONS PASS TO POOL", "PINNED CONNECTIONS"],
        [[pool["name"], pool["pins"]] for pool in answer["pools"] if pool.get("pins") is not None],
    )
    add(
        ["CERTIFICATE FOR", "EXPIRES", "FILE"],
        [[", ".join(row["hosts"]), row["not_after"], row["source"]] for row in answer["certificates"]],
    )
    add(["REASON", "COUNT"], [[word, number] for word, number in sorted(answer["reasons"].items())])
    return "\n\n".join(parts)


def _plugin_rows(sites: list[dict[str, Any]]) -> list[list[object]]:
    """Who is asked on each site, in that order; the plugins of the whole server come first, once."""
    everywhere = [row for row in sites[0]["plugins"] if row["server"]] if sites else []
    rows: list[list[object]] = [["every site", row["name"], ", ".join(row["hooks"])] for row in everywhere]
    for site in sites:
        rows += [[site["name"], row["name"], ", ".join(row["hooks"])] for row in site["plugins"] if not row["server"]]
    return rows


def _headline(answer: dict[str, Any], colour: bool) -> str:
    state = answer["state"] if answer["ready"] or answer["state"] != "serving" else "not ready"
    config = answer["config"]
    lines = [
        f"frontd {answer['version']}   {styled(state, _STATES.get(state, 'yellow'), colour)}   pid {answer['pid']}   "
        f"up {duration(answer['uptime'])}   {count(answer['connections'], 'connection')}",
        f"configuration {config['file']}, loaded {config['loaded']}, generation {answer['generation']}",
    ]
    last = answer.get("last_reload")
    if last and not last["ok"]:
        lines.append(styled(f"the last reload ({last['at']}) failed, what was before it serves on:", "red", colour))
        lines += ["  " + line for error in last["errors"] for line in str(error).splitlines()]
    elif last:
        lines.append(f"last reload {last['at']}: {', '.join(last['changed']) or 'nothing changed'}")
    if any(site["plugins"] for site in answer["sites"]):
        store = answer["store"]
        used, limit = memory(store["used"]), memory(store["limit"])
        lines.append(f"memory of plugins: {used} of {limit}, entries: {store['entries']}")
    if answer["log"]["dropped"]:
        lines.append(styled(f"{count(answer['log']['dropped'], 'log line')} lost: the log is too slow", "red", colour))
    if answer["dropped_underscore_fields"]:
        lines.append(f"{count(answer['dropped_underscore_fields'], 'header field')} with _ in the name dropped")
    return "\n".join(lines)


def memory(size: int) -> str:
    """Bytes for people: ``512 bytes``, ``1.2 KiB``, ``64.0 MiB``."""
    if size < 1024:
        return f"{size} bytes"
    amount, unit = size / 1024, "KiB"
    for larger in ("MiB", "GiB", "TiB"):
        if amount < 1024:
            break
        amount, unit = amount / 1024, larger
    return f"{amount:.1f} {unit}"


def address(listener: dict[str, Any]) -> str:
    """``*:443``, ``127.0.0.1:8443``, ``[::1]:8443``."""
    return f"{bracketed(listener['address'] or '*')}:{listener['port']}"


@click.command(short_help="Make the running frontd read its configuration again.")
@socket_option
def reload(socket_path: str | None) -> None:
    """Read the configuration again and swap to it.

    Waits until the new one serves and says what changed.  With errors nothing changes: they are printed, exit code 3.
    """
    path = find_socket(socket_path)
    answer = call(path, "POST", "/reload", timeout=RELOAD_TIMEOUT)
    if answer.status == 422:
        for error in answer.data["errors"]:
            click.echo(f"{error}\n", err=True)
        raise ConfigFailure("not reloaded; the configuration from before is still served")
    if answer.status != 200:
        raise Failure(f"not reloaded: {path} answered {answer.status}: {said(answer.data)}")
    for warning in answer.data["warnings"]:
        click.echo(f"{warning}\n", err=True)
    changed = answer.data["changed"]
    click.echo(f"reloaded, generation {answer.data['generation']}" + ("" if changed else ": nothing changed"))
    for line in changed:
        click.echo(f"  {line}")


@click.command(short_help="Exit 0 when the running frontd is ready.")
@socket_option
@click.option("-q", "--quiet", is_flag=True, help="Print nothing.")
def healthcheck(socket_path: str | None, quiet: bool) -> None:
    """Exit 0 when frontd is ready for requests, 1 when it is not (made for HEALTHCHECK of a container)."""
    answer = call(find_socket(socket_path), "GET", "/readyz", timeout=5.0)
    if answer.status != 200:
        raise Failure(f"not ready: {said(answer.data) or answer.status}")
    if not quiet:
        click.echo("ready")
