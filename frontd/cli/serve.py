"""`frontd serve`: run the front door until it is told to stop."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from frontd import __version__
from frontd.cli.common import ConfigFailure, Failure, discovery, file_argument, find_config, print_problems, read_config

if TYPE_CHECKING:
    from frontd.config.load import Loaded


@click.command(short_help="Serve a configuration.")
@file_argument
@click.option("--demo", is_flag=True, hidden=True)
def serve(config: str | None, demo: bool) -> None:
    """Serve a configuration until SIGTERM or Ctrl-C.

    Says 'frontd ready' on stderr when it accepts connections.  SIGHUP or 'frontd reload' reads the file again, SIGUSR1
    reopens the logs.  FILE is the same as -c FILE.
    """
    # Before anything is imported: their default is to kill, and whoever reloads does not know that we only just start.
    for number in (signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    name = find_config(config)
    # The demo's apps are in its own container if it is in one, so the warnings of containers are not for its file.
    container = False if demo else None
    loaded = read_config(name, container)
    run(loaded, None if name == "-" else lambda: _load_again(name, container))


def _load_again(name: str, container: bool | None) -> Loaded:
    from pathlib import Path

    from frontd.config.load import load

    return load(Path(name), discover=discovery().catalogue, container=container)


def run(loaded: Loaded, reload_from: Callable[[], Loaded] | None) -> None:
    """Run the front in this process and end the process with its exit code."""
    from frontd.processes.runtime import BuildProblem
    from frontd.processes.solo import run_front

    print_problems(loaded.warnings)
    try:
        code = run_front(
            loaded, reload_from, ready=lambda line: click.echo(line, err=True), version=__version__,
            discovery=discovery(),
        )  # fmt: skip
    except BuildProblem as error:
        raise ConfigFailure(f"{loaded.name} cannot be served: {error}") from None
    except OSError as error:
        raise Failure(f"cannot serve: {error.strerror or error}") from error
    raise SystemExit(code)
