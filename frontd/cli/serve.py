"""`frontd serve`: run the front door until it is told to stop."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from frontd import __version__
from frontd.cli.common import ConfigFailure, Failure, config_option, find_config, print_problems, read_config

if TYPE_CHECKING:
    from frontd.config.load import Loaded


@click.command(short_help="Serve a configuration.")
@config_option
def serve(config: str | None) -> None:
    """Serve a configuration until SIGTERM or Ctrl-C.

    Says 'frontd ready' on stderr when it accepts connections.  SIGHUP or 'frontd reload' reads the file again, SIGUSR1
    reopens the logs.
    """
    name = find_config(config)
    loaded = read_config(name)
    run(loaded, None if name == "-" else lambda: _load_again(name))


def _load_again(name: str) -> Loaded:
    from pathlib import Path

    from frontd.config.load import load

    return load(Path(name))


def run(loaded: Loaded, reload_from: Callable[[], Loaded] | None) -> None:
    """Run the front in this process and end the process with its exit code."""
    from frontd.processes.runtime import BuildProblem
    from frontd.processes.solo import run_front

    print_problems(loaded.warnings)
    try:
        code = run_front(loaded, reload_from, ready=lambda line: click.echo(line, err=True), version=__version__)
    except BuildProblem as error:
        raise ConfigFailure(f"{loaded.name} cannot be served: {error}") from None
    except OSError as error:
        raise Failure(f"cannot serve: {error.strerror or error}") from error
    raise SystemExit(code)
