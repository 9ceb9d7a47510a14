"""`frontd upgrade`: new fronts from the code that is on the disk, in the place of those that serve."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import click

from frontd.cli.common import ConfigFailure, ContactFailure, Failure
from frontd.cli.controlclient import UPGRADE_TIMEOUT, Answer, call, fetch, find_socket, said, socket_option
from frontd.cli.tables import duration

LOOK = 0.25  # s between two looks at the fronts


@click.command(short_help="Put the code that is on the disk in place; no request is lost.")
@socket_option
@click.option("--wait", "waits", is_flag=True, help="Also wait until the old fronts have drained.")
@click.option("-q", "--quiet", is_flag=True, help="Print only what went wrong.")
def upgrade(socket_path: str | None, waits: bool, quiet: bool) -> None:
    """Start new fronts from the code that is on the disk now: of frontd, its packages and plugins.

    The configuration is read again as well.  When all new fronts are ready they take the place of the old ones, which
    drain.  With errors nothing changes: they are printed; exit code 3, or 1 when it is not the time for an upgrade.
    """
    path = find_socket(socket_path)
    known = states(path)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(call, path, "POST", "/upgrade", timeout=UPGRADE_TIMEOUT)
        while not wait([asked], LOOK).done:
            known = progress(path, known, quiet)
    done = outcome(asked.result(), path)
    for warning in done["warnings"]:
        click.echo(f"{warning}\n", err=True)
    if not quiet:
        click.echo("\n".join(told(done)))
    old = {(row["index"], row["pid"]) for row in done["draining"]}
    while waits and old & known.keys():
        time.sleep(LOOK)
        known = progress(path, known, quiet)


def outcome(answer: Answer, path: Path) -> dict[str, Any]:
    """What the upgrade has done.  Raises `Failure` when the old fronts serve on."""
    if answer.status in (409, 422):
        for error in answer.data["errors"]:
            click.echo(f"{error}\n", err=True)
        failure = ConfigFailure if answer.status == 422 else Failure
        raise failure("not upgraded; the fronts from before serve on")
    if answer.status != 200:
        raise Failure(f"not upgraded: {path} answered {answer.status}: {said(answer.data)}")
    assert isinstance(answer.data, dict)
    return answer.data


def told(done: dict[str, Any]) -> list[str]:
    """The outcome for people."""
    limit = duration(done["drain"])
    lines = [f"upgraded, generation {done['generation']}"]
    lines += [f"  front {row['index']} (pid {row['pid']}) serves" for row in done["fronts"]]
    lines += [f"  front {row['index']} (pid {row['pid']}) drains, for {limit} at most" for row in done["draining"]]
    return lines + [f"  plugin file {file} loaded anew" for file in done["plugins"]]


def states(path: Path) -> dict[tuple[int, int], str]:
    """The state of every front, by its index and pid.  Raises `Failure`."""
    return {(row["index"], row["pid"]): row["state"] for row in fetch(path, "/status")["fronts"]}


def progress(path: Path, known: dict[tuple[int, int], str], quiet: bool) -> dict[tuple[int, int], str]:
    """Say what has changed about the fronts since they were `known`; what is known now."""
    try:
        now = states(path)
    except ContactFailure:  # one control process makes room for the next
        return known
    for front, state in now.items():
        if not quiet and known.get(front) != state:
            click.echo(f"front {front[0]} (pid {front[1]}): {state}", err=True)
    for front in known.keys() - now.keys():
        if not quiet:
            click.echo(f"front {front[0]} (pid {front[1]}): ended", err=True)
    return now
