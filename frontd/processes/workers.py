"""The workers that the master has started for control: app processes, each with what must outlive control.

How it works
------------
Control orders a worker by a name of its own (``key``): the program, where it listens, what it may use.  The master
binds the socket, when it is to inherit one, and starts it; it keeps the reading end of the worker's output, so that a
worker does not die of a pipe that nobody holds, and hands a copy of it to control, and to the next control.

Invariants
----------
* A worker is the first of its session and process group; what it leaves behind when it ends is killed, and when the
  master is killed the guard does that (`guard`).
* Nobody but the worker holds its listening socket: when it dies, connects are refused and what waited in the backlog is
  reset, at once.
* The environment goes to the worker alone, by exec, and not by its arguments.
"""

from __future__ import annotations

import json
import os
import pwd
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frontd.net.binding import bind_unix

TOLD_AT_ONCE = 200  # workers in a message, which has a file for each; SCM_MAX_FD is 253
LAUNCH = Path(__file__).with_name("launch.py")
GUARD = Path(__file__).with_name("guard.py")


@dataclass(slots=True)
class Worker:
    """One that runs: `note` is what control wants to know of it again, `output` the reading end of what it writes."""

    key: str
    process: subprocess.Popen[bytes]
    since: float  # s since the epoch
    output: int
    path: Path | None
    note: dict[str, Any]


class Workers:
    """All that run, by key."""

    def __init__(self) -> None:
        self.running: dict[str, Worker] = {}
        self.guard: int | None = None  # the writing end of its standard input

    def spawn(self, order: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
        """Start one; what to answer control: its pid and the end of its output, or ``error`` and why not."""
        ours, theirs = os.pipe2(os.O_CLOEXEC)
        path = Path(order["path"]) if order["path"] else None
        try:
            user = account(order["user"])
            listening = prepare(path, user, bind=order["bind"])
            try:
                process = start(order, user, listening, theirs)
            finally:
                if listening is not None:
                    listening.close()
        except (OSError, KeyError) as error:
            os.close(ours)
            return {"error": str(error)}, []
        finally:
            os.close(theirs)
        worker = self.running[order["key"]] = Worker(order["key"], process, time.time(), ours, path, order["note"])
        self._tell_guard("+", process.pid)
        return facts(worker), [ours]

    def _tell_guard(self, sign: str, pid: int) -> None:
        """Say that a worker has begun or ended; a guard that is not there is started, and told of all."""
        if self.guard is not None:
            try:
                os.write(self.guard, f"{sign}{pid}\n".encode())
            except BlockingIOError:  # it is stopped: it would learn too late of this one
                pass
            except BrokenPipeError:
                os.close(self.guard)
                self.guard = None
            if self.guard is not None:
                return
        if self.running:
            with suppress(OSError):  # out of processes: the next worker is told again
                self.guard = start_guard()
                for worker in self.running.values():
                    os.write(self.guard, b"+%d\n" % worker.process.pid)

    def signal(self, key: str, number: int) -> None:
        """Send a signal to one, or with SIGKILL to all of its group."""
        worker = self.running.get(key)
        if worker is None:
            return
        with suppress(ProcessLookupError):
            if number == signal.SIGKILL:
                os.killpg(worker.process.pid, number)
            else:
                os.kill(worker.process.pid, number)

    def note(self, key: str, note: dict[str, Any]) -> None:
        """What the next control is to know of one."""
        if (worker := self.running.get(key)) is not None:
            worker.note = note

    def bury(self, pid: int, code: int) -> dict[str, Any] | None:
        """One has ended, with `code` as of `subprocess`: what to tell control; None: it was none of them."""
        worker = next((one for one in self.running.values() if one.process.pid == pid), None)
        if worker is None:
            return None
        worker.process.returncode = code  # it was reaped by the master, so Popen must not try
        del self.running[worker.key]
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)  # what it has left behind
        self._tell_guard("-", pid)
        os.close(worker.output)
        if worker.path is not None:
            with suppress(OSError):
                worker.path.unlink()
        return {"do": "worker gone", "key": worker.key, "pid": pid, "code": code}

    def facts(self) -> Iterator[tuple[dict[str, Any], list[int]]]:
        """What a new control is told of all, and the ends of their outputs: in few messages, as it reads none yet."""
        every = list(self.running.values())
        for at in range(0, len(every), TOLD_AT_ONCE):
            some = every[at : at + TOLD_AT_ONCE]
            yield {"do": "workers", "workers": [facts(one) for one in some]}, [one.output for one in some]

    def end(self) -> None:
        """Ask all to end."""
        for key in self.running:
            self.signal(key, signal.SIGTERM)

    def kill(self) -> None:
        """End all that are left, and wait for it."""
        for worker in list(self.running.values()):
            self.signal(worker.key, signal.SIGKILL)
            self.bury(worker.process.pid, worker.process.wait())


def start_guard() -> int:
    """Start the guard; the writing end of its standard input.  Raises `OSError`."""
    theirs, ours = os.pipe2(os.O_CLOEXEC)
    try:
        os.set_blocking(ours, False)
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(GUARD)], stdin=theirs, stdout=subprocess.DEVNULL, start_new_session=True
        )
    except OSError:
        os.close(ours)
        raise
    finally:
        os.close(theirs)
    process.returncode = 0  # the master reaps all of its children, so Popen must not wait for it
    return ours


def facts(worker: Worker) -> dict[str, Any]:
    """What control is told of one."""
    return {"key": worker.key, "pid": worker.process.pid, "since": worker.since, "note": worker.note}


def account(name: str | None) -> tuple[str, int, int] | None:
    """Name, uid and gid of a user.  Raises `KeyError`."""
    if name is None:
        return None
    entry = pwd.getpwnam(name)
    return entry.pw_name, entry.pw_uid, entry.pw_gid


def prepare(path: Path | None, user: tuple[str, int, int] | None, *, bind: bool) -> socket.socket | None:
    """Make room for a socket at `path`; with `bind`, the listening socket itself.  Raises `OSError`."""
    if path is None:
        return None
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if user is not None:
        os.chown(path.parent, user[1], user[2])
    path.unlink(missing_ok=True)
    return bind_unix(path) if bind else None


def start(
    order: dict[str, Any], user: tuple[str, int, int] | None, listening: socket.socket | None, output: int
) -> subprocess.Popen[bytes]:
    """Start the program of an order.  Raises `OSError`."""
    inherited = () if listening is None else (listening.fileno(),)
    command = [word.replace("{fd}", str(inherited[0])) if inherited else word for word in order["command"]]
    wanted = {
        "command": command, "parent": os.getpid(), "user": user,
        **{key: order[key] for key in ("rlimits", "cpus", "directory")},
    }  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-I", "-S", str(LAUNCH), json.dumps(wanted)],
        stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=order["environment"], pass_fds=inherited,
        start_new_session=True,
    )  # fmt: skip
