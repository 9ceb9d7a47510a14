"""The client of the control socket: HTTP/1.1 and JSON over a Unix socket, so `curl --unix-socket` can do the same."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import click

from frontd.cli.common import ContactFailure, Failure

Function = TypeVar("Function", bound=Callable[..., Any])

TIMEOUT = 10.0  # seconds; every answer but that of a reload is made from memory
RELOAD_TIMEOUT = 60.0  # a reload reads files and builds TLS contexts before it answers

_ALTERNATIVES = (
    "Name another socket with --socket PATH or $FRONTD_CONTROL\n"
    "(it stands in the configuration as control.socket; 'frontd show config -c FILE' prints it)."
)


class Answer(NamedTuple):
    """Status and body of an answer; `data` is the parsed JSON, or the text of another content type."""

    status: int
    data: Any


def socket_option(function: Function) -> Function:
    """``--socket PATH`` with its default."""
    return click.option(
        "--socket",
        "socket_path",
        metavar="PATH",
        envvar="FRONTD_CONTROL",
        help="Control socket of the running frontd.  "
        "[default: $FRONTD_CONTROL, /run/frontd/control.sock, control.sock in the state directory]",
    )(function)


def find_socket(option: str | None) -> Path:
    """The socket that was named, else the place where `frontd serve` puts it by default."""
    if option:
        return Path(option)
    from frontd.config.places import default_control_socket, default_state_dir

    return default_control_socket(default_state_dir())


def call(path: Path, method: str, target: str, timeout: float = TIMEOUT) -> Answer:
    """One request on the control socket.  Raises `Failure` (4) that names the socket and why there is no contact."""
    import http.client

    from frontd.cli.unixhttp import UnixConnection

    connection = UnixConnection(str(path), timeout)
    try:
        connection.request(method, target, headers={"Accept": "application/json"})
        response = connection.getresponse()
        body = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise ContactFailure(_no_contact(path, error)) from None
    finally:
        connection.close()
    data: Any = body.decode("utf-8", "replace")
    if (response.getheader("Content-Type") or "").partition(";")[0].strip() == "application/json":
        try:
            data = json.loads(data)
        except ValueError:
            raise ContactFailure(f"{path} answered with something that is not JSON; is it frontd's?") from None
    if response.status == 403:
        raise ContactFailure(f"{path}: not permitted: {said(data)}\n{_who_may(path)}")
    return Answer(response.status, data)


def fetch(path: Path, target: str) -> dict[str, Any]:
    """GET that must succeed with a JSON object.  Raises `Failure` 4 without contact, 1 with the server's own words."""
    answer = call(path, "GET", target)
    if answer.status != 200 or not isinstance(answer.data, dict):
        raise Failure(f"{path} answered {answer.status}: {said(answer.data)}")
    return answer.data


def said(data: Any) -> str:
    """The server's own words about an error."""
    return str(data.get("error", data) if isinstance(data, dict) else data).strip()


def _no_contact(path: Path, error: Exception) -> str:
    head = f"no contact with frontd on {path}: "
    if isinstance(error, FileNotFoundError):
        return f"{head}there is no such socket, so frontd is not running there.\n{_ALTERNATIVES}"
    if isinstance(error, ConnectionRefusedError):
        return f"{head}nobody listens on it (left over from a frontd that was killed?).\n{_ALTERNATIVES}"
    if isinstance(error, PermissionError):
        return f"{head}permission denied.\n{_who_may(path)}"
    if isinstance(error, TimeoutError):
        return f"{head}it accepted but did not answer in time."
    return f"{head}{error or type(error).__name__}.\n{_ALTERNATIVES}"


def _who_may(path: Path) -> str:
    try:
        owner = f"uid {path.stat().st_uid}"
    except OSError:
        owner = "the uid that frontd runs as"
    return f"Only {owner} and root may use it; you are uid {os.geteuid()}."
