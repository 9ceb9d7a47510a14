"""`frontd pool start|stop|recycle|restart NAME`, `frontd show workers`, `frontd show events`."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import click

from frontd.cli.common import Failure
from frontd.cli.controlclient import Where, call, fetch, find_socket, read_options, said, socket_option
from frontd.cli.live import memory
from frontd.cli.tables import duration
from frontd.cli.views import columns, json_option, shown

Data = dict[str, Any]
PAUSE = 0.2  # s between two looks at how far it is


@click.group()
def pool() -> None:
    """Start, stop and replace the workers of a pool."""


@pool.command(short_help="Put a pool back into service.")
@click.argument("name")
@click.option("--no-wait", is_flag=True, help="Do not wait until it runs.")
@socket_option
def start(name: str, no_wait: bool, socket_path: str | None) -> None:
    """Put the pool NAME back into service, and have its workers run."""
    Errand(name, socket_path, no_wait).run("start", lambda _, now: complete(now), "runs")


@pool.command(short_help="Take a pool out of service.")
@click.argument("name")
@click.option("--no-wait", is_flag=True, help="Do not wait until its workers have ended.")
@socket_option
def stop(name: str, no_wait: bool, socket_path: str | None) -> None:
    """Take the pool NAME out of service: its requests are answered 503 (AppOffline) until it is started again."""
    Errand(name, socket_path, no_wait).run("stop", lambda _, now: not now["workers"], "is stopped")


@pool.command(short_help="Replace the workers of a pool, without a gap.")
@click.argument("name")
@click.option("--no-wait", is_flag=True, help="Do not wait for the successors.")
@socket_option
def recycle(name: str, no_wait: bool, socket_path: str | None) -> None:
    """Replace the workers of the pool NAME: each old one serves until its successor answers."""
    Errand(name, socket_path, no_wait).run("recycle", replaced, "has new workers")


@pool.command(short_help="End the workers of a pool and start others.")
@click.argument("name")
@click.option("--no-wait", is_flag=True, help="Do not wait for the new ones.")
@socket_option
def restart(name: str, no_wait: bool, socket_path: str | None) -> None:
    """End the workers of the pool NAME and start others; requests wait meanwhile."""
    Errand(name, socket_path, no_wait).run("restart", restarted, "has new workers")


def replaced(before: set[int], now: Data) -> bool:
    """Whether none of the workers before gets requests any more, and others do.

    Raises `Failure` when one of them stays.
    """
    ready = [worker for worker in now["workers"] if worker["state"] == "ready"]
    stays = [worker["pid"] for worker in ready if worker["pid"] in before and worker["leaves"] is None]
    if stays:
        raise Failure(
            f"worker {stays[0]} stays: its successor did not start ('frontd show events' and the error log say why)"
        )
    return not before & {worker["pid"] for worker in ready} and (complete(now) or not before)


def restarted(before: set[int], now: Data) -> bool:
    """`replaced`, also when none ran before."""
    return replaced(before, now) and complete(now)


def complete(now: Data) -> bool:
    """Whether as many workers get requests as there should be."""
    ready = [worker for worker in now["workers"] if worker["state"] == "ready"]
    return len(ready) >= int(now["count"])


class Errand:
    """A verb for the pool `name`, and the wait for what comes of it."""

    def __init__(self, name: str, socket_path: str | None, no_wait: bool) -> None:
        self.name = name
        self.path = find_socket(socket_path)
        self.no_wait = no_wait

    def run(self, verb: str, is_done: Callable[[set[int], Data], bool], done: str) -> None:
        """Say it, wait until `is_done` of the pids before and what is now, and print that it is.  Raises `Failure`."""
        before = {worker["pid"] for worker in self._now()["workers"] if worker["state"] == "ready"}
        answer = call(self.path, "POST", f"/pool/{verb}?name={quote(self.name)}")
        if answer.status != 200:
            raise Failure(said(answer.data))
        if self.no_wait:
            return
        now = answer.data
        began = time.monotonic()
        limit = now["start_limit"] + now["stop_limit"] + 10
        told = ""
        while not is_done(before, now):
            if now["state"] == "failed":
                raise Failure(f"pool {self.name} is out of service: {now['off']} ('frontd show events' says why)")
            if time.monotonic() - began > limit:
                raise Failure(f"pool {self.name}: not done within {duration(limit)}; {progress(now)}")
            if (text := progress(now)) != told:
                told = text
                click.echo(f"{self.name}: {text}", err=True)
            time.sleep(PAUSE)
            now = self._now()
        pids = ", ".join(str(worker["pid"]) for worker in now["workers"] if worker["state"] == "ready")
        click.echo(f"pool {self.name} {done}{f': pid {pids}' if pids else ''}")

    def _now(self) -> Data:
        pools = fetch(self.path, "/workers")["pools"]
        found = next((one for one in pools if one["name"] == self.name), None)
        if found is None:
            known = ", ".join(one["name"] for one in pools) or "there is none"
            raise Failure(f"there is no pool {self.name!r} with workers; known: {known}")
        return dict(found)


def progress(now: Data) -> str:
    """How many workers are in which state."""
    states = [worker["state"] for worker in now["workers"]]
    return ", ".join(f"{states.count(one)} {one}" for one in dict.fromkeys(sorted(states))) or "no worker yet"


@click.command(short_help="The workers of supervised pools.")
@json_option
@read_options
def workers(where: Where, as_json: bool) -> None:
    """Every pool with `workers:`, and each of its workers."""
    shown(fetch(where, "/workers"), as_json, workers_text)


def workers_text(answer: Data) -> str:
    """The answer of ``GET /workers``."""
    pools: list[list[object]] = [
        [one["name"], one["state"], len([w for w in one["workers"] if w["state"] == "ready"]), one["count"],
         one["start"], one["failures"], one["off"], one["until"]]
        for one in answer["pools"]
    ]  # fmt: skip
    heads = ["POOL", "STATE", "READY", "COUNT", "START", "FAILURES", "OUT OF SERVICE", "UNTIL"]
    rows: list[list[object]] = [
        [one["name"], worker["pid"], worker["state"], worker["since"], worker["active"], worker["served"],
         memory(worker["memory"]), f"{worker['cpu']:.1f} s", worker["address"], worker["leaves"]]
        for one in answer["pools"]
        for worker in one["workers"]
    ]  # fmt: skip
    parts = [columns(heads, pools, "No pool has workers.")]
    if rows:
        names = ["POOL", "PID", "STATE", "SINCE", "ACTIVE", "SERVED", "MEMORY", "CPU", "ADDRESS", "LEAVES"]
        parts.append(columns(names, rows))
    return "\n\n".join(parts)


@click.command(short_help="What happened to supervised pools.")
@json_option
@read_options
def events(where: Where, as_json: bool) -> None:
    """The latest events of supervised pools, with the numbers that WAS gives them on Windows."""
    shown(fetch(where, "/events"), as_json, events_text)


def events_text(answer: Data) -> str:
    """The answer of ``GET /events``."""
    rows: list[list[object]] = [
        [one["time"], one["id"], one["level"], one["pool"], one["text"]] for one in answer["events"]
    ]
    return columns(["TIME", "ID", "LEVEL", "POOL", "WHAT"], rows, "Nothing has happened yet.")
