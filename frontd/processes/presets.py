"""The commands behind ``app: asgi:…`` and ``app: wsgi:…``: stock servers, started as they are behind frontd.

The forwarded fields are believed, since only frontd reaches the socket.  Lines for each request are off where the
server has a switch for them: the access log is frontd's.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Sequence

from frontd.config.workers import Workers

# What runs: the program's name, and its words after the app.
SERVERS: dict[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    "asgi": (
        ("uvicorn", ("--fd", "{fd}", "--forwarded-allow-ips", "*", "--no-access-log")),
        ("hypercorn", ("--bind", "fd://{fd}")),
    ),
    "wsgi": (("gunicorn", ("--bind", "fd://{fd}", "--forwarded-allow-ips", "*")),),
}


class NoServer(Exception):
    """None of the servers that could run an app is installed; the text says which would do."""


def command_of(workers: Workers) -> tuple[str, ...]:
    """The words of the command that runs a worker, with the placeholder still in them.  Raises `NoServer`."""
    if workers.app is None:
        return workers.command
    kind, _, app = workers.app.partition(":")
    for server, words in SERVERS[kind]:
        if (program := _program(server)) is not None:
            return (*program, app, *words, *_threads(server, workers))
    names = " or ".join(server for server, _ in SERVERS[kind])
    raise NoServer(f"{workers.app} needs {names}, and there is none: pip install {SERVERS[kind][0][0]}")


def _program(server: str) -> Sequence[str] | None:
    """How to start a server: by its own script on the path, else as a module of the Python that runs frontd."""
    if (found := shutil.which(server)) is not None:
        return [found]
    return [sys.executable, "-m", server] if importlib.util.find_spec(server) is not None else None


def _threads(server: str, workers: Workers) -> Sequence[str]:
    """gunicorn answers as many requests at once as it has threads."""
    return ["--threads", str(workers.concurrency)] if server == "gunicorn" and (workers.concurrency or 1) > 1 else []
