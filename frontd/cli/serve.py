"""`frontd serve`: run the front door until it is told to stop."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING

import click

from frontd import __version__
from frontd.cli.common import ConfigFailure, Failure, discovery, file_argument, find_config, print_problems

if TYPE_CHECKING:
    from frontd.config.load import Loaded


@click.command(short_help="Serve a configuration.")
@file_argument
@click.option("--demo", is_flag=True, hidden=True)
def serve(config: str | None, demo: bool) -> None:
    """Serve a configuration until SIGTERM or Ctrl-C.

    Says 'frontd ready' on stderr when it accepts connections.  SIGHUP or 'frontd reload' reads the file again, SIGUSR1
    reopens the logs, SIGUSR2 or 'frontd upgrade' replaces the fronts by ones with the code that is on the disk now.
    FILE is the same as -c FILE.
    """
    # Before anything is imported: their default is to kill, and whoever reloads does not know that we only just start.
    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    from frontd.processes.master import Master

    name = find_config(config)
    # The demo's apps are in its own container if it is in one, so the warnings of containers are not for its file.
    wanted = {"config": name, "container": False if demo else None}
    raise SystemExit(Master([json.dumps(wanted)], reads=name == "-").run())


def run(loaded: Loaded) -> None:
    """Serve what has no file to read again, in this process, and end it with its exit code."""
    from frontd.processes.runtime import BuildProblem
    from frontd.processes.solo import run_front

    print_problems(loaded.warnings)
    try:
        code = run_front(
            loaded, None, ready=lambda line: click.echo(line, err=True), version=__version__,
            discovery=discovery(),
        )  # fmt: skip
    except BuildProblem as error:
        raise ConfigFailure(f"{loaded.name} cannot be served: {error}") from None
    except OSError as error:
        raise Failure(f"cannot serve: {error.strerror or error}") from error
    raise SystemExit(code)
