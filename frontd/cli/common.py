"""What the verbs share: exit codes, finding and reading the configuration, loopback addresses.

Exit codes: 0 ok · 1 failed while running · 2 wrong usage · 3 configuration · 4 no contact with the control socket.
"""

from __future__ import annotations

import contextlib
import functools
import socket
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar, cast
from urllib.parse import urlsplit

import click

if TYPE_CHECKING:
    from frontd.config.load import Loaded, Problem
    from frontd.pipeline.discovery import Discovery

DEFAULT_PORTS = {"http": 80, "https": 443}

Function = TypeVar("Function", bound=Callable[..., Any])


class Failure(click.ClickException):
    """Ends a verb with a sentence on stderr; exit code 1, it failed while running."""

    exit_code = 1

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"frontd: {self.message}", file=file, err=file is None)


class ConfigFailure(Failure):
    """The configuration has errors, or there is none: exit code 3."""

    exit_code = 3


class ContactFailure(Failure):
    """No contact with the control socket: exit code 4."""

    exit_code = 4


def config_option(function: Function) -> Function:
    """``-c FILE`` with its usual defaults (see `find_config`)."""
    return click.option(
        "-c",
        "--config",
        "config",
        metavar="FILE",
        envvar="FRONTD_CONFIG",
        help="Configuration, - for standard input.  [default: $FRONTD_CONFIG, ./frontd.yaml, /etc/frontd/frontd.yaml]",
    )(function)


def file_argument(function: Function) -> Function:
    """``[FILE]`` beside ``-c FILE``: people type it either way.  The verb gets one `config`, whichever was used."""

    @functools.wraps(function)
    def chosen(*args: Any, file: str | None, config: str | None, **kwargs: Any) -> Any:
        source = click.get_current_context().get_parameter_source("config")
        if file and source == click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError(f"the configuration is named twice: {file} and -c {config}")
        return function(*args, config=file or config, **kwargs)

    return cast("Function", config_option(click.argument("file", required=False)(chosen)))


def find_config(option: str | None) -> str:
    """The configuration file to read: what was named, else the default of `frontd.config.places`.

    Raises `ConfigFailure` when nothing was named and there is none in the default places.
    """
    if option:
        return option
    from frontd.config.places import SYSTEM_CONFIG, default_config

    path = default_config()
    if path.exists():
        return str(path)
    raise ConfigFailure(
        f"no configuration: neither ./frontd.yaml nor {SYSTEM_CONFIG} exists.\n"
        "Name one with -c FILE or $FRONTD_CONFIG; 'frontd demo' and 'frontd proxy' need none."
    )


@functools.cache
def discovery() -> Discovery:
    """What this process has loaded of plugins; one, so that a reload finds what is loaded already."""
    from frontd.pipeline.discovery import Discovery

    return Discovery()


def read_config(option: str | None, container: bool | None = None) -> Loaded:
    """Read the configuration; prints every problem and raises `ConfigFailure` when it has errors.

    `container` is found out when left out.
    """
    from frontd.config.load import ConfigProblems, load

    name = find_config(option)
    try:
        path = "-" if name == "-" else Path(name)
        return load(path, discover=lambda folder, words: discovery().catalogue(folder, words), container=container)
    except ConfigProblems as error:
        raise problems_failure(error.problems) from None


def problems_failure(problems: Iterable[Problem]) -> ConfigFailure:
    """Prints the problems of a configuration on stderr and returns what to raise after it."""
    problems = list(problems)
    print_problems(problems)
    errors = sum(problem.severity == "error" for problem in problems)
    return ConfigFailure(f"the configuration has {count(errors, 'error')}")


def state_dir_failure(error: OSError) -> Failure:
    """What to raise when the state directory cannot be made or written."""
    return Failure(f"cannot write to the state directory: {error}\nChoose another with FRONTD_STATE_DIR.")


def print_problems(problems: Iterable[Problem]) -> None:
    """Errors and warnings on stderr, each with its excerpt."""
    for problem in problems:
        click.echo(str(problem), err=True)
        click.echo(err=True)


def count(number: int, noun: str) -> str:
    """``1 site``, ``2 sites``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


# ------------------------------------------------------------------------------------------- local names and ports


def is_local_host(host: str) -> bool:
    """Whether `host` (lower case, IPv6 without brackets) means this machine, so that the development certificate is
    for it (RFC 6761 6.3: every name below localhost does)."""
    return host in ("localhost", "127.0.0.1", "::1") or host.endswith(".localhost")


def loopback_addresses() -> list[str]:
    """The loopback addresses this machine has; IPv6 is often switched off in containers."""
    addresses = ["127.0.0.1"]
    if port_is_free(0, ["::1"]):
        addresses.append("::1")
    return addresses


def port_is_free(port: int, addresses: Iterable[str]) -> bool:
    """Whether `port` can be bound on every one of `addresses` at this moment."""
    for address in addresses:
        try:
            with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM) as probe:
                # As the server itself will: connections of an earlier run in TIME_WAIT do not count.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if probe.family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind((address, port))
                probe.listen(1)
        except OSError:
            return False
    return True


def pick_port(preferred: int, addresses: list[str]) -> int:
    """`preferred` when it is free, else the first free one of the ten after it, else any free port."""
    for port in range(preferred, preferred + 11):
        if port_is_free(port, addresses):
            return port
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def split_url(text: str) -> tuple[str, str, int, str]:
    """scheme, host (lower case, no brackets), port and path of an http or https URL.

    Raises `ValueError` with a sentence.
    """
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{text!r} is not a URL such as https://localhost:8443/")
    with contextlib.suppress(ValueError):
        port = DEFAULT_PORTS[parts.scheme] if parts.port is None else parts.port
        if port:
            return parts.scheme, parts.hostname, port, parts.path or "/"
    raise ValueError(f"{text!r}: the port is a number from 1 to 65535")
