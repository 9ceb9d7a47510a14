"""The client of the control socket: HTTP/1.1 and JSON over a Unix socket, so `curl --unix-socket` can do the same."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

import click

from frontd.cli.common import ContactFailure, Failure

if TYPE_CHECKING:
    from frontd.config.marks import MapNode, Node

Function = TypeVar("Function", bound=Callable[..., Any])



class Remote(NamedTuple):
    """The admin listener of a running frontd."""

    url: str
    host: str
    port: int
    token: str

    def __str__(self) -> str:
        return self.url


Where = Path | Remote

TIMEOUT = 10.0  # seconds; every answer but that of a reload is made from memory
RELOAD_TIMEOUT = 60.0  # a reload reads files and builds TLS contexts before it answers
UPGRADE_TIMEOUT = 240.0  # it also starts processes

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
        "[default: $FRONTD_CONTROL, what the configuration says that 'frontd serve' would find here, "
        "/run/frontd/control.sock, control.sock in the state directory]",
    )(function)


def read_options(function: Function) -> Function:
    """``--socket PATH``, or ``--control URL`` with ``--token-file FILE``; the verb gets `where` to ask."""

    @functools.wraps(function)
    def chosen(
        *args: Any, socket_path: str | None, control: str | None, token_file: str | None, **kwargs: Any
    ) -> Any:
        if control is None and token_file is not None:
            raise click.UsageError("--token-file goes with --control URL")
        where = find_socket(socket_path) if control is None else remote(control, token_file)
        return function(*args, where=where, **kwargs)

    url = click.option(
        "--control", metavar="URL", help="Ask the admin listener instead of the socket: http://127.0.0.1:9901."
    )
    token = click.option("--token-file", metavar="FILE", help="File with the token of the admin listener.")
    return socket_option(url(token(chosen)))  # type: ignore[return-value]


def remote(url: str, token_file: str | None) -> Remote:
    """The admin listener that `url` names.  Raises a usage error, and `Failure` for the file."""
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = None
    if parts.scheme != "http" or not parts.hostname or port is None or parts.path not in ("", "/"):
        raise click.BadParameter(f"{url} is not http://address:port", param_hint="--control")
    if token_file is None:
        raise click.UsageError("--control needs --token-file FILE: the admin listener answers to its token alone")
    try:
        token = Path(token_file).read_text("ascii").strip()
    except (OSError, ValueError) as error:
        raise Failure(f"cannot read the token in {token_file}: {getattr(error, 'strerror', None) or error}") from None
    return Remote(url, parts.hostname, port, token)


def find_socket(option: str | None) -> Path:
    """The socket that was named, else the one of the default configuration file, else the place where `frontd serve`
    puts it by default."""
    if option:
        return Path(option)
    from frontd.config.places import default_config, default_control_socket, default_state_dir

    return configured_socket(default_config()) or default_control_socket(default_state_dir())


def configured_socket(file: Path) -> Path | None:
    """Where the configuration `file` puts the control socket, if it says so plainly.

    None when it is silent, cannot be read or is no valid YAML, and when the words hold a ``$``: what the environment
    of the running frontd makes of them is not known here.
    """
    if not file.is_file():  # also: nobody wants to wait for a pipe
        return None
    from frontd.config.marks import MAX_TEXT, MapNode, Stop, read
    from frontd.config.places import default_control_socket
    from frontd.config.problems import Source

    try:
        with file.open("rb") as opened:
            text = opened.read(MAX_TEXT + 1).decode("utf-8-sig")
        root = read(Source(str(file), text))
    except (OSError, ValueError, Stop):
        return None
    base = Path(os.path.abspath(file)).parent
    if not isinstance(root, MapNode):
        return None
    if isinstance(control := _entry(root, "control"), MapNode) and (named := _path(_entry(control, "socket"), base)):
        return named
    state_dir = _path(_entry(root, "state_dir"), base)
    return default_control_socket(state_dir) if state_dir else None


def _entry(node: MapNode, key: str) -> Node | None:
    return next((entry.value for entry in node.entries if entry.key.scalar == key), None)


def _path(node: Node | None, base: Path) -> Path | None:
    word = getattr(getattr(node, "scalar", None), "value", None)
    return Path(os.path.abspath(base / word)) if isinstance(word, str) and word and "$" not in word else None


def call(path: Where, method: str, target: str, timeout: float = TIMEOUT, data: dict[str, Any] | None = None) -> Answer:
    """One request on the control socket or the admin listener, with `data` as JSON.

    Raises `Failure` (4) that names it and says why there is no contact.
    """
    import http.client

    from frontd.cli.unixhttp import UnixConnection

    headers = {"Accept": "application/json"}
    connection: http.client.HTTPConnection
    if isinstance(path, Remote):
        connection = http.client.HTTPConnection(path.host, path.port, timeout)
        headers["Authorization"] = f"Bearer {path.token}"
    else:
        connection = UnixConnection(str(path), timeout)
    try:
        body = None if data is None else json.dumps(data)
        connection.request(method, target, body, headers)
        response = connection.getresponse()
        received = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise ContactFailure(_no_contact(path, error)) from None
    finally:
        connection.close()
    answer: Any = received.decode("utf-8", "replace")
    if (response.getheader("Content-Type") or "").partition(";")[0].strip() == "application/json":
        try:
            answer = json.loads(answer)
        except ValueError:
            raise ContactFailure(f"{path} answered with something that is not JSON; is it frontd's?") from None
    if response.status == 401:
        raise ContactFailure(f"{path}: not permitted: {said(answer)}")
    if response.status == 403 and not (isinstance(answer, dict) and "word" in answer):
        raise ContactFailure(f"{path}: not permitted: {said(answer)}\n{_who_may(path)}")
    return Answer(response.status, answer)


def fetch(path: Where, target: str, timeout: float = TIMEOUT) -> dict[str, Any]:
    """GET that must succeed with a JSON object.  Raises `Failure` 4 without contact, 1 with the server's own words."""
    answer = call(path, "GET", target, timeout)
    if answer.status != 200 or not isinstance(answer.data, dict):
        raise Failure(f"{path} answered {answer.status}: {said(answer.data)}")
    return answer.data


def said(data: Any) -> str:
    """The server's own words about an error."""
    return str(data.get("error", data) if isinstance(data, dict) else data).strip()


def _no_contact(path: Where, error: Exception) -> str:
    head = f"no contact with frontd on {path}: "
    if isinstance(path, Remote):
        return f"{head}{getattr(error, 'strerror', None) or error or type(error).__name__}."
    if isinstance(error, FileNotFoundError):
        return f"{head}there is no such socket, so frontd is not running there.\n{_ALTERNATIVES}"
    if isinstance(error, ConnectionRefusedError):
        return f"{head}nobody listens on it (left over from a frontd that was killed?).\n{_ALTERNATIVES}"
    if isinstance(error, PermissionError):
        return f"{head}permission denied.\n{_who_may(path)}"
    if isinstance(error, TimeoutError):
        return f"{head}it accepted but did not answer in time."
    return f"{head}{error or type(error).__name__}.\n{_ALTERNATIVES}"


def _who_may(path: Where) -> str:
    if isinstance(path, Remote):
        return "Its token does not allow that."
    try:
        owner = f"uid {path.stat().st_uid}"
    except OSError:
        owner = "the uid that frontd runs as"
    return f"Only {owner} and root may use it; you are uid {os.geteuid()}."
