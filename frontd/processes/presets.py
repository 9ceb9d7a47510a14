"""The commands behind ``app: asgi:…`` and ``app: wsgi:…``: stock servers, started as they are behind frontd.

How it works
------------
The server loads `frontd.processes.frontd_app`, which loads the app and puts the client's address and scheme where the
app looks for them; which app that is, and which proxies are trusted, stands in the environment (`variables_of`).

Lines for each request are off where the server has a switch for them: the access log is frontd's.  Connections are
kept for `KEEP`, so that it is frontd that closes them: a request never meets a connection that the server has just
given up.  A server that would run the app in a process of its own is kept from it (hypercorn), or that process ends
with the one that frontd knows (gunicorn).  Requests may take as long as frontd lets them (gunicorn kills after 30 s).
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import sys
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

from frontd.config.workers import Workers

HERE = Path(__file__).parent
BEHIND = HERE / "frontd_app.py"
KEEP = "86400"  # s

# What runs: the program's name, and its words.
SERVERS: dict[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    "asgi": (
        (
            "uvicorn",
            (
                "frontd_app:app", "--app-dir", str(HERE), "--fd", "{fd}", "--no-proxy-headers", "--no-access-log",
                "--timeout-keep-alive", KEEP,
            ),
        ),
        ("hypercorn", (f"{BEHIND}:app", "--bind", "fd://{fd}", "--workers", "0", "--keep-alive", KEEP)),
    ),
    "wsgi": (
        (
            "gunicorn",
            (
                "frontd_app:app", "--pythonpath", str(HERE), "--config", str(HERE / "gunicorn_conf.py"),
                "--bind", "fd://{fd}", "--worker-class", "gthread", "--keep-alive", KEEP, "--timeout", "0",
                "--threads",
            ),
        ),
    ),
}  # fmt: skip


class NoServer(Exception):
    """None of the servers that could run an app is installed; the text says which would do."""


def command_of(workers: Workers) -> tuple[str, ...]:
    """The words of the command that runs a worker, with the placeholder still in them.  Raises `NoServer`."""
    if workers.app is None:
        return workers.command
    kind = workers.app.partition(":")[0]
    for server, words in SERVERS[kind]:
        if (program := _program(server, workers.environment.get("PATH"))) is not None:
            return (*program, *words, *([str(workers.concurrency or 1)] if words[-1] == "--threads" else []))
    names = " or ".join(server for server, _ in SERVERS[kind])
    path = workers.environment.get("PATH")
    where = f"beside {sys.executable} or on the path" if path is None else f"on the path of these workers, {path}"
    raise NoServer(f"{workers.app} needs {names}, and there is none {where}: pip install {SERVERS[kind][0][0]}")


def variables_of(workers: Workers, trusted: Iterable[IPv4Network | IPv6Network]) -> dict[str, str]:
    """What a preset says by the environment; `trusted`: networks of proxies."""
    if workers.app is None:
        return {}
    return {"FRONTD_APP": workers.app, "FRONTD_TRUSTED": " ".join(map(str, trusted))}


def _program(server: str, path: str | None) -> Sequence[str] | None:
    """How to start a server: by its script on `path`, if the worker has a ``PATH`` of its own; else as a module of the
    Python that runs frontd; else by its script on frontd's path."""
    if path is None and importlib.util.find_spec(server) is not None:
        return [sys.executable, "-m", server]
    found = shutil.which(server, path=path)
    return None if found is None else [found]


def obstacle(workers: Workers) -> str:
    """Why workers cannot be started on this machine by this user, to stand behind ``pools.NAME.workers``; or empty."""
    try:
        command_of(workers)
    except NoServer as error:
        return f": {error}"
    if workers.user is not None:
        try:
            entry = pwd.getpwnam(workers.user)
        except KeyError:
            return f".user: there is no user {workers.user}"
        if os.geteuid() not in (0, entry.pw_uid):
            return f".user: only root can run workers as {workers.user}"
    return ""
