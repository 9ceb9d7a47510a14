"""`frontd demo`: all of it on this machine, in one command, and `--check`: the same, verified."""

from __future__ import annotations

import contextlib
import shutil
import signal
import time
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING

import click

from frontd.cli.common import Failure, port_is_free
from frontd.cli.tables import styled, table, use_colour

if TYPE_CHECKING:
    from frontd.cli.demo_lines import Line
    from frontd.cli.demo_world import World


class Stopped(BaseException):
    """SIGINT or SIGTERM; not an `Exception`, so that nothing on the way takes it for an error."""


@click.command(short_help="See all of it on this machine; nothing to set up.")
@click.option("--check", "verify", is_flag=True, help="Run the printed lines, verify each answer, exit 0 or 1.")
def demo(verify: bool) -> None:
    """See all of it: three small apps, frontd with plugins in front of them, lines to try.

    Then one app is killed and started again under load, and a worker of frontd's own is killed and replaced, and no
    request fails.  Ctrl-C stops everything.
    """
    if verify and shutil.which("curl") is None:
        raise Failure("--check runs curl, and there is no curl here (Debian: apt install curl)")
    try:
        with _signals():
            _check() if verify else _play()
    except Stopped:
        click.echo("stopped; nothing is left running")
        # As shells expect of a command that a signal ended on purpose: it did its work.
        if verify:
            raise SystemExit(1) from None


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """SIGINT and SIGTERM raise `Stopped` once; while the world is being stopped, further ones are ignored."""

    def handler(number: int, frame: FrameType | None) -> None:
        for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(one, signal.SIG_IGN)
        raise Stopped

    before = {one: signal.signal(one, handler) for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for one, action in before.items():
            signal.signal(one, action)


def _play() -> None:
    from frontd.cli.demo_lines import lines_to_try
    from frontd.cli.demo_show import run_show, run_worker_show
    from frontd.cli.demo_world import build

    colour = use_colour()
    click.echo("Starting three small apps and frontd …")
    with build() as world:
        _introduce(world, colour)
        click.echo(f"{styled('Try in another terminal', 'bold', colour)}\n")
        _print_lines(lines_to_try(world), colour)
        for title, show in (
            ("Now the app dies and comes back, and nobody notices", run_show),
            ("Now the worker that frontd runs dies, then is replaced, and nobody notices", run_worker_show),
        ):
            click.echo(f"{styled(title, 'bold', colour)}\n")
            result = show(world, lambda line: click.echo("  " + line))
            click.echo(f"\n  {styled(str(result), 'red' if result.failed else 'green', colour)}\n")
            for problem, number in result.failures.items():
                click.echo(f"  {number} × {problem}")
        click.echo("Running.  Ctrl-C stops everything.")
        _stay(world)


def _introduce(world: World, colour: bool) -> None:
    from frontd.cli.demo_files import PASSWORD, USER, plugin_file, static_folder
    from frontd.cli.demo_world import HTTP_PORT, HTTPS_PORT

    for wanted, got in ((HTTPS_PORT, world.https_port), (HTTP_PORT, world.http_port)):
        if wanted != got:
            click.echo(f"Port {wanted} is taken, so this is on {got}.")
    rows = [
        (f"{world.url}/", f"one app, {world.apps['app'].target}"),
        (f"{world.url}/replicas/", f"two apps in turn, {world.apps['blue'].target} and {world.apps['green'].target}"),
        (f"{world.url}/worker/", "an app that frontd starts itself, watches and replaces"),
        (f"{world.url}/dead/", "an address where nothing listens"),
        (f"{world.url}/private/", f"after a logon: user {USER}, password {PASSWORD}"),
        (f"{world.url}/cached", "a page that the app lets anybody keep for a minute"),
        (f"{world.url}/static/", f"files in {static_folder(world.folder)}"),
        (f"{world.url}/hello", f"answered by {plugin_file(world.folder)}"),
        (f"{world.http_url}/", "redirects to https"),
    ]
    files = [
        ("configuration", world.config),
        ("access log", world.folder / "access.log"),
        ("frontd's own words", world.log),
        ("CA of the certificate", f"{world.ca}  (for localhost only; nothing trusts it unless you tell it to)"),
    ]
    click.echo()
    for head, pairs in (("frontd serves", rows), ("Files", files)):
        width = max(len(left) for left, _ in pairs)
        click.echo(styled(head, "bold", colour))
        for left, right in pairs:
            click.echo(f"  {left:<{width}}   {right}")
        click.echo()


def _print_lines(lines: list[Line], colour: bool) -> None:
    for line in lines:
        click.echo(f"  {styled('# ' + line.title, 'dim', colour)}")
        click.echo(f"  {line.command}\n")


def _stay(world: World) -> None:
    """Until a signal comes; raises `Failure` when frontd ends by itself."""
    assert world.front is not None
    while world.front.poll() is None:
        time.sleep(0.2)
    said = world.log.read_text(errors="replace").strip()
    raise Failure(f"frontd ended with exit code {world.front.returncode}. It said:\n{said}")


def _check() -> None:
    from frontd.cli.common import loopback_addresses
    from frontd.cli.demo_lines import lines_to_try, run_line
    from frontd.cli.demo_show import run_show, run_worker_show
    from frontd.cli.demo_world import build

    rows: list[tuple[str, str, str]] = []
    details: list[str] = []

    def note(title: str, problem: str, seconds: float) -> None:
        rows.append((title, f"FAILED: {problem}" if problem else "ok", f"{seconds:.1f} s"))

    began = time.monotonic()
    with build() as world:
        note("three apps and frontd start", "", time.monotonic() - began)
        for line in lines_to_try(world):
            outcome = run_line(line)
            note(line.title, outcome.problem, outcome.seconds)
            if outcome.problem:
                details.append(f"$ {line.command}\n{outcome.output.rstrip()}")
        for title, show in (("an app dies under load", run_show), ("a worker dies, then is replaced", run_worker_show)):
            since = time.monotonic()
            result = show(world, lambda line: None)
            problem = "; ".join(f"{number} × {cause}" for cause, number in result.failures.items())
            if show is run_show and not problem and result.longest <= 1:
                problem = "no request waited for the app: it was not gone"
            details += [f"{title}: {problem}"] if problem else []
            note(f"{title}: {result}", problem, time.monotonic() - since)
        if details:
            details.append(f"frontd's own words:\n{world.log.read_text(errors='replace').rstrip()}")
        since = time.monotonic()
    seconds = time.monotonic() - since
    left = [process.args for process in world.processes if process.returncode is None]
    ports = [port for port in (world.https_port, world.http_port) if not port_is_free(port, loopback_addresses())]
    problem = f"still running: {left}" if left else f"ports {ports} are still taken" if ports else ""
    note("all of it stops, ports are free", problem or ("" if seconds < 2 else "too slow"), seconds)
    colour = use_colour()
    click.echo(table(["WHAT", "RESULT", "TIME"], rows, colour=colour, styles={"ok": "green"}))
    for detail in details:
        click.echo(f"\n{detail}")
    failed = sum(row[1] != "ok" for row in rows)
    if failed:
        raise Failure(f"{failed} of {len(rows)} checks failed")
    click.echo(f"\nall {len(rows)} checks passed in {time.monotonic() - began:.1f} s")
