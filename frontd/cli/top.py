"""`frontd top`: what goes on, each second anew."""

from __future__ import annotations

import sys
import time

import click

from frontd.cli.common import ContactFailure
from frontd.cli.controlclient import Where, fetch, read_options
from frontd.cli.frames import Sample, page, sample_of
from frontd.cli.screen import Screen, opened

PATIENCE = 3.0  # s for an answer; a key is heard after that at the latest
LEAST = 0.1  # s between two samples


@click.command(short_help="What goes on, live.")
@click.option("-n", "most", type=click.IntRange(1), metavar="COUNT", help="Print so many times, then end.")
@click.option("--interval", default="1s", metavar="TIME", show_default=True, help="Time between two samples.")
@read_options
def top(where: Where, most: int | None, interval: str) -> None:
    """Pools and fronts of the running frontd, each second anew: queues, rates, what is refused and why, processors.

    q or Ctrl-C ends it.  With -n, or when the output is no terminal, it prints a page for each interval instead.
    """
    from frontd.config.units import seconds

    try:
        pause = seconds(interval)
        if pause < LEAST:
            raise ValueError(f"at least {LEAST:g} s")
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--interval") from None
    first = sample(where)
    try:
        if most is None and sys.stdout.isatty():
            with opened() as screen:
                live(screen, where, pause, first)
        else:
            printed(where, pause, first, most)
    except KeyboardInterrupt:
        pass


def sample(where: Where) -> Sample:
    """What is counted now.  Raises `Failure`."""
    answer = fetch(where, "/counters", PATIENCE)
    return sample_of(time.monotonic(), answer)


def printed(where: Where, pause: float, now: Sample, most: int | None) -> None:
    """Print `most` pages, or pages without end."""
    before: Sample | None = None
    count = 0
    while True:
        click.echo("\n".join(page(now, before).lines) + "\n")
        count += 1
        if count == most:
            return
        time.sleep(max(now.at + pause - time.monotonic(), 0))
        before, now = now, sample(where)


def live(screen: Screen, where: Where, pause: float, now: Sample) -> None:
    """Show page after page until somebody ends it; while frontd does not answer, the last one stays."""
    before: Sample | None = None
    note = "q quits"

    def draw() -> None:
        screen.show(*page(now, before, screen.size[1], note))

    while True:
        draw()
        if screen.wait(time.monotonic() + pause, draw):
            return
        try:
            latest = sample(where)
        except ContactFailure as failure:
            note = f"q quits   {failure.message.splitlines()[0]}"
        else:
            before, now, note = now, latest, "q quits"
