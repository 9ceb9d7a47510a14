"""`frontd proxy`: one URL in front of one app, without a file.

What it runs is an ordinary configuration that it writes itself; ``--print-config`` prints that text and `frontd serve
-c` runs it unchanged.  The choices made for you are therefore visible lines, each with its reason as a comment.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import click

from frontd.cli.common import (
    DEFAULT_PORTS,
    is_local_host,
    loopback_addresses,
    port_is_free,
    problems_failure,
    split_url,
    state_dir_failure,
)

if TYPE_CHECKING:
    from frontd.config.load import Loaded


@click.command(short_help="Put HTTPS in front of an app, without a file.")
@click.option(
    "--from", "from_url", metavar="URL", default="https://localhost:8443", show_default=True,
    help="Where clients come in.",
)  # fmt: skip
@click.option(
    "--to", "to", metavar="TARGET", required=True, multiple=True,
    help="The app: 9000, host:port, http://host:port, https://host, unix:/path.  Give it again for more than one.",
)  # fmt: skip
@click.option("--cert", metavar="FILE", type=click.Path(path_type=Path), help="PEM certificate (chain).")
@click.option("--key", metavar="FILE", type=click.Path(path_type=Path), help="PEM key of the certificate.")
@click.option(
    "--http", "http_port", metavar="PORT", type=click.IntRange(1, 65535),
    help="Also listen for http there and redirect to https.  [default: 80 when URL is on 443 and 80 is "
    "free; --print-config does not ask whether it is]",
)  # fmt: skip
@click.option("--print-config", is_flag=True, help="Print the configuration instead of running it.")
def proxy(
    from_url: str, to: tuple[str, ...], cert: Path | None, key: Path | None, http_port: int | None, print_config: bool
) -> None:
    """Put an HTTPS front door in front of an app, no file needed.

    \b
      frontd proxy --to 9000
      frontd proxy --from https://localhost:8443 --to http://127.0.0.1:9000

    For localhost, *.localhost, 127.0.0.1 and ::1 a development certificate is made and kept in the state directory;
    other hosts need --cert and --key.  While the app restarts, requests wait for it.
    """
    text, notes = configuration(from_url, to, cert, key, http_port, anywhere=print_config)
    if print_config:
        _load(text)
        click.echo(text, nl=False)
        return
    from frontd.cli.serve import run

    lines, other = _control(from_url)
    loaded = _load(text + lines)
    for note in [*notes, *other]:
        click.echo(note, err=True)
    run(loaded)


def _load(text: str) -> Loaded:
    """Read what `configuration` wrote.  Prints every problem and raises `Failure` when it has errors, as a certificate
    that is not there.

    Warnings of containers (a target on the loopback address, no volume) are for files that are kept, so this is read
    as outside of one; what that changes besides, the state directory, is said.
    """
    from frontd.config.load import ConfigProblems, loads
    from frontd.config.places import default_state_dir

    environ = {**os.environ, "FRONTD_STATE_DIR": str(default_state_dir())}
    try:
        return loads(text, name="frontd proxy", base=Path.cwd(), environ=environ, container=False)
    except ConfigProblems as error:
        raise problems_failure(error.problems) from None


def _control(from_url: str) -> tuple[str, list[str]]:
    """Lines for a control socket of its own, and a sentence, when another frontd has the default one."""
    from frontd.config.places import default_control_socket, default_state_dir

    state_dir = default_state_dir()
    if not answers(default_control_socket(state_dir)):
        return "", []
    other = state_dir / f"control-{_from(from_url)[2]}.sock"
    note = f"another frontd has the default control socket; ask this one with --socket {other}"
    return f"control:\n  socket: {quoted(str(other))}\n", [note]


def configuration(
    from_url: str,
    to: tuple[str, ...],
    cert: Path | None = None,
    key: Path | None = None,
    http_port: int | None = None,
    container: bool | None = None,
    anywhere: bool = False,
) -> tuple[str, list[str]]:
    """The YAML for the options of the command, and sentences for the user; `container` is found out when left out;
    `anywhere` asks for a text that does not depend on which ports are free at this moment.

    Raises `click.UsageError`, and `Failure` when the state directory cannot be written.
    Makes the development certificate when the host needs it.
    """
    from frontd.config.places import default_state_dir, in_container

    scheme, host, port, path = _from(from_url)
    url = f"{scheme}://{f'[{host}]' if ':' in host else host}"
    url += ("" if port == DEFAULT_PORTS[scheme] else f":{port}") + path
    targets = [target(text) for text in to]
    local = is_local_host(host)
    notes: list[str] = []
    if scheme == "http" and (cert or key or http_port):
        raise click.UsageError("--cert, --key and --http go with an https URL in --from")
    if bool(cert) != bool(key):
        raise click.UsageError("--cert and --key go together")
    if scheme == "https" and cert is None:
        if not local:
            raise click.UsageError(
                f"no certificate for {host}: give --cert and --key "
                "(the development certificate covers localhost, *.localhost, 127.0.0.1 and ::1 only)"
            )
        from frontd.cli.devca import ensure

        try:
            made = ensure(default_state_dir(), host)
        except OSError as error:
            raise state_dir_failure(error) from None
        cert, key = made.cert, made.key
        notes.append(f"development certificate for {host}; try: curl --cacert {made.ca} {url}")
    # On a workstation nobody else has a use for a name that means "this machine"; in a container the port is published.
    inside = in_container() if container is None else container
    addresses = loopback_addresses() if local and not inside else None
    if scheme == "https" and http_port is None and port == 443 and (anywhere or _bindable(80, addresses)):
        http_port = 80
    lines = ["# frontd serve -c FILE runs this"]
    lines += ["listen:"]
    if http_port is not None and http_port != port:
        lines += listeners("http", http_port, addresses)
    lines += listeners(scheme, port, addresses)
    if cert and key:
        lines += [
            "tls:",
            "  certificates:",
            f"    - cert: {quoted(str(cert.absolute()))}",
            f"      key: {quoted(str(key.absolute()))}",
        ]
        if _is_ip(host):
            lines += ["  default: localhost   # a URL with an address sends no name in its TLS hello"] if local else []
    lines += ["sites:", f"  {quoted(host)}:", "    urls:", f"      - {quoted(url)}"]
    lines += ["    routes:", f"      {quoted(path if path.endswith('/') else path + '/')}: "]
    if len(targets) == 1:
        lines[-1] += quoted(targets[0])
    else:
        lines[-1] += "app"
        lines += ["pools:", "  app:", "    targets:", *(f"      - {quoted(text)}" for text in targets)]
    lines += ["log:", "  access:   # where you look while you try it", "    to: stdout", "    format: w3c"]
    return "\n".join(lines) + "\n", notes


def _from(text: str) -> tuple[str, str, int, str]:
    try:
        return split_url(text if "://" in text else "https://" + text)
    except ValueError as error:
        raise click.UsageError(f"--from {error}") from None


def target(text: str) -> str:
    """A target as the configuration wants it, from the short forms people type.  Raises `click.UsageError`."""
    if text.startswith("unix:"):
        return "unix:" + str(Path(text.removeprefix("unix:")).absolute())
    if "://" in text:
        return text.rstrip("/")
    number = text.removeprefix(":")
    host, colon, port = ("127.0.0.1", ":", number) if number.isascii() and number.isdigit() else text.rpartition(":")
    if host and colon and port.isascii() and port.isdigit():
        if not 0 < int(port[:6]) < 65536:
            raise click.UsageError(f"--to {text!r}: the port is a number from 1 to 65535")
        return f"http://{host}:{port}"
    raise click.UsageError(f"--to {text!r}: write a port, host:port, a URL like http://127.0.0.1:9000, or unix:/path")


def listeners(kind: str, port: int, addresses: list[str] | None) -> list[str]:
    """Lines of ``listen:`` for one port: on every address (None), or one listener for each of `addresses`."""
    if addresses is None:
        return [f"  {kind}: {port}"]
    lines = []
    for address in addresses:
        # The names http and https imply their kind; the second one, for IPv6, says it.
        name = kind if address == addresses[0] else f"{kind}6"
        lines += [f"  {name}:", f"    kind: {kind}", f"    address: {quoted(address)}", f"    port: {port}"]
    return lines


def quoted(text: str) -> str:
    """A YAML scalar that is `text` and nothing else: plain where that is safe, otherwise in double quotes."""
    safe = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_./-:"
    plain = text and all(c in safe for c in text) and text[0].isalpha() | (text[0] == "/") and not text.endswith(":")
    if plain and text.lower() not in ("yes", "no", "on", "off", "true", "false", "null", "y", "n"):
        return text
    # $ begins a substitution in a configuration, $$ is one dollar
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("$", "$$") + '"'


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def answers(path: Path) -> bool:
    """Whether somebody listens on the Unix socket `path`."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def _bindable(port: int, addresses: list[str] | None) -> bool:
    return port_is_free(port, addresses or ["0.0.0.0"])


