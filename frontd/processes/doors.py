"""The attach sockets of pools: one for each tenant, which the master holds and control answers on.

How it works
------------
The master binds them, with owner, group and mode as configured, so that a tenant finds its socket also while control is
started again.  They follow the configuration: what a reload adds is bound when it serves, what it takes away is closed
and removed.

Invariants
----------
* A call belongs to the pool whose socket it came in on, as of the configuration that serves at that moment.
* What can be said before a reload serves is said then (`check`); a socket that cannot be bound all the same is told in
  the log, and the others stand.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import trio

from frontd.config.model import Attach, Config
from frontd.config.urlacl import gid_of, uid_of
from frontd.processes.calls import Call, Reply, as_json, serve_calls
from frontd.processes.family import Family, Member
from frontd.processes.master import ATTACH
from frontd.processes.runtime import BuildProblem

Answer = Callable[[str, Call], Awaitable[Reply]]


class Doors:
    """All attach sockets.  `answer` is given the pool and the call; `closed` runs after some have been closed."""

    def __init__(self, family: Family, answer: Answer, closed: Callable[[], Awaitable[None]]) -> None:
        self.family = family
        self.answer = answer
        self.closed = closed
        self._open: dict[Path, trio.CancelScope] = {}
        self._nursery: trio.Nursery | None = None
        self._fitting = trio.Lock()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Answer on what is open until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            await trio.sleep_forever()

    async def fit(self, config: Config) -> None:
        """Have one socket for each pool that asks for one.  Raises `OSError`; the others stand then."""
        assert self._nursery is not None
        wanted = sockets_of(config)
        async with self._fitting:
            unwanted = self._open.keys() - wanted.keys()
            if unwanted:
                self._nursery.start_soon(self.closed)
            for path in unwanted:
                self._open.pop(path).cancel()
                self.family.master.tell({"do": "close", "key": ATTACH + str(path)})
            failed: OSError | None = None
            for path, attach in wanted.items():
                if path in self._open:
                    continue
                try:
                    (fd,) = await self.family.bind([[ATTACH + str(path), "attach", str(path), list(rights_of(attach))]])
                except OSError as error:
                    failed = error
                else:
                    await self._nursery.start(self._serve, path, fd)
            if failed is not None:
                raise failed

    async def _serve(self, path: Path, fd: int, *, task_status: trio.TaskStatus[None]) -> None:
        with trio.CancelScope() as scope, socket.socket(fileno=fd) as sock:
            self._open[path] = scope
            task_status.started()
            await serve_calls(sock, partial(self._answer, path), self.family.log_fault)

    async def _answer(self, path: Path, call: Call) -> Reply:
        if self.family.state == "starting":  # the socket is there before the fronts are
            return as_json({"error": "frontd is still starting"}, 503)
        for name, pool in self.family.base.pools.items():
            if pool.attach is not None and pool.attach.socket == path:
                return await self.answer(name, call)
        return as_json({"error": "this socket is no pool's any more"}, 403)

    # ------------------------------------------------------------------ the configuration

    def check(self, config: Config) -> None:
        """Raises `BuildProblem` when an attach socket of `config` cannot be there."""
        for path in sockets_of(config).keys() - self._open.keys():
            if os.path.lexists(path) and not stat.S_ISSOCK(path.lstat().st_mode):
                raise BuildProblem(f"attach socket {path}: the path is taken by something else")
            there = next(one for one in path.parents if one.exists())
            if not os.access(there, os.W_OK | os.X_OK):
                raise BuildProblem(f"attach socket {path}: {there} cannot be written")

    def committed(self, config: Config) -> None:
        """Another configuration is about to serve."""
        assert self._nursery is not None
        self._nursery.start_soon(self.fit_or_tell, config)

    async def fit_or_tell(self, config: Config) -> None:
        """As `fit`; what fails is told in the log."""
        try:
            await self.fit(config)
        except OSError as error:
            self.family.remark(f"{error}; nobody can attach there")

    def ready(self, member: Member) -> None:
        """Fronts do not know of these sockets."""

    def wanted(self, pools: list[str]) -> None:
        """Nor does who waits where matter here."""


def sockets_of(config: Config) -> dict[Path, Attach]:
    """The attach sockets of the pools, by path."""
    found = [pool.attach for pool in config.pools.values() if pool.attach is not None]
    return {attach.socket: attach for attach in found if attach.socket is not None}


def rights_of(attach: Attach) -> tuple[int, int, int]:
    """Mode, uid and gid of a socket; -1: as it comes.  Raises `OSError` when a name has ceased to exist."""
    try:
        owner = uid_of(attach.owner) if attach.owner is not None else -1
        group = gid_of(attach.group) if attach.group is not None else -1
    except ValueError as error:
        raise OSError(f"attach socket {attach.socket}: {error}") from None
    return int(attach.mode, 8), owner, group
