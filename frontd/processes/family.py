"""What control knows of the fronts, and how it changes them all or none.

How it works
------------
Each front has a channel; a question carries a number, and its answer the same number.  A reload is two-phase:

    control                          every front                         master
    listen ──────────────────────────────────────────────────────────▶  binds what is new
    prepare (world, listeners) ──▶   builds it beside the one that serves
                              ◀──    built, or refused and why
    commit ──────────────────────────────────────────────────────────▶  new fronts get this world from now on
    swap ────────────────────────▶   serves it
    keep ────────────────────────────────────────────────────────────▶  closes what nobody listens on any more

One *no*, one front that ends while it builds, or one that takes longer than `BUILD_TIME`: ``drop``, nothing is
committed, and the world before serves on everywhere.  Between ``prepare`` and ``swap`` every front has the new world
at hand, so that what comes after ``commit`` takes no longer than a message.

A control that has just been started is told by the master which fronts there are and what is committed, and asks each
of them where it stands: one that has prepared what was committed swaps, one that has prepared something else drops it.

Invariants
----------
* The committed world is what wins: a front that serves another one (it was being started while it was committed) is
  brought up to date by itself, and replaced if it cannot follow.
* Nobody waits for a front for ever, and a front that ends answers every question that was put to it: with `Gone`.
"""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from socket import socket
from typing import Any, Protocol

import trio

from frontd.config.load import Loaded
from frontd.config.model import Config
from frontd.lanes.listener import identity_of
from frontd.pipeline.discovery import Discovery
from frontd.pipeline.logwriter import LogWriter
from frontd.processes.channel import Message
from frontd.processes.fronts import COMING, LEAVING, SERVING
from frontd.processes.handover import Handover, pack, read_whole, tried_tickets, unpack
from frontd.processes.line import Gone, Line
from frontd.processes.reload import ReloadReport, attempt, check_fixed
from frontd.processes.runtime import BuildProblem, differences
from frontd.processes.status import Facts, mute

BUILD_TIME = 90.0  # s for a front to build a world; each of its plugins has 30
SWAP_TIME = 10.0
ANSWER_TIME = 3.0  # s for facts; the control socket waits no longer for a front that is blocked
START_WAIT = 10.0  # s that a reload waits for fronts that are just being started
MASTER_TIME = 20.0
NUMBERS = 1_000_000  # questions of one control


@dataclass(eq=False, slots=True)
class Member:
    """A front as control knows it; `generation` is what it serves, 0 while it is being started, and `role` what the
    master's book has (`frontd.processes.fronts`)."""

    index: int
    pid: int
    since: float
    line: Line
    role: str = SERVING
    generation: int = 0
    changed: trio.Event = field(default_factory=trio.Event)


class Watcher(Protocol):
    """Somebody who has to do with pools whose apps control looks after."""

    def ready(self, member: Member) -> None:
        """A front has begun to serve."""

    def wanted(self, pools: list[str]) -> None:
        """Requests wait in `pools`, and no app has been started for them."""

    def check(self, config: Config) -> None:
        """Raises `BuildProblem` when what `config` asks for cannot be done here."""

    def committed(self, config: Config) -> None:
        """Another configuration is about to serve."""


class Family:
    """All fronts, the master that keeps them, and the configuration they serve."""

    def __init__(
        self, handover: Handover, master: Line, log: LogWriter, discovery: Discovery, started_at: float
    ) -> None:
        self.loaded = handover.loaded
        self.loaded_at = handover.read_at
        self.started_at = started_at
        self.last_reload: ReloadReport | None = None
        self.state = "starting"  # starting | serving | draining
        self.generation = 0  # of the committed world
        self.log = log
        self.master = master
        self.discovery = discovery
        self.members: dict[int, Member] = {}
        self.count = 0  # of fronts, when all are there
        self.first = 0  # number of the first question
        self.refusal: tuple[str, int] | None = None  # why a front could not start at all, and its exit code
        self.news = trio.Event()  # replaced whenever a front comes, goes or changes
        self.watchers: list[Watcher] = []
        self.refused = ""  # why a front that is coming with an upgrade cannot serve
        self.is_upgrading = False
        self.upgraded = trio.Event()  # new fronts serve, and another control is to come
        self._world: int | None = None  # the file of the committed world
        self.reloading = trio.Lock()
        self._nursery: trio.Nursery | None = None

    # ------------------------------------------------------------------ what there is

    @property
    def config(self) -> Config:
        """The configuration that is served."""
        return self.loaded.config

    @property
    def base(self) -> Config:
        """The configuration as the file has it, without the overlay of what is reserved and registered."""
        return self.loaded.base or self.loaded.config

    @property
    def is_ready(self) -> bool:
        """Whether at least one front accepts requests."""
        return self.state == "serving" and bool(self.serving())

    def of(self, role: str) -> list[Member]:
        """The fronts of one role."""
        return [member for member in self.members.values() if member.role == role]

    def serving(self) -> list[Member]:
        """The fronts that are there to serve, and do."""
        return [member for member in self.of(SERVING) if member.generation]

    def remark(self, text: str) -> None:
        """Write a line into the error log."""
        self.log.remark(text)

    def log_fault(self, what: str, error: BaseException) -> None:
        """Write a fault of our own into the error log, with its traceback."""
        for line in "".join(traceback.format_exception(error)).splitlines():
            self.log.remark(f"{what}: {line}")

    async def facts(self) -> list[Facts]:
        """Of every front that answers in time; of another one, that it does not, or is just being started."""
        members = dict(self.members)
        found = await self.ask_each({"do": "status"})
        return [
            found.get(index, {}).get("facts") or mute(index, member.pid, member.since, member.generation)
            for index, member in sorted(members.items())
        ]

    async def ask_each(self, question: dict[str, Any], within: float = ANSWER_TIME) -> dict[int, dict[str, Any]]:
        """What the fronts that serve say to `question`, by their numbers; nothing, for one that does not answer."""
        members = [member for member in self.members.values() if member.generation]
        found: dict[int, dict[str, Any]] = {member.index: {} for member in members}

        async def ask(member: Member) -> None:
            with suppress(Gone, trio.TooSlowError):
                found[member.index] = (await member.line.ask(question, within=within)).data

        async with trio.open_nursery() as nursery:
            for member in members:
                nursery.start_soon(ask, member)
        return dict(sorted(found.items()))

    def tell_all(self, data: dict[str, Any]) -> None:
        """Say something to every front that serves, which is not answered."""
        for member in self.members.values():
            if member.generation:
                member.line.tell(data)

    async def ask_all(self, data: dict[str, Any], within: float = ANSWER_TIME) -> list[dict[str, Any] | None]:
        """The answers of the fronts that serve; None for one that gives none in time."""
        return [said or None for said in (await self.ask_each(data, within)).values()]

    # ------------------------------------------------------------------ fronts that come and go

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the channels until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            await trio.sleep_forever()

    def welcome(self, index: int, pid: int, since: float, role: str, sock: socket) -> None:
        """The master has started a front."""
        assert self._nursery is not None
        sock.setblocking(False)
        line = Line(sock, self.first, partial(self._heard, index))
        member = self.members[index] = Member(index, pid, since, line, role)
        self._nursery.start_soon(self._accompany, member)

    def farewell(self, index: int, pid: int, how: str) -> None:
        """The master has seen a front end."""
        member = self.members.get(index)
        if member is not None and member.pid == pid:
            del self.members[index]
            self.tell_news()
        role = member.role if member is not None else SERVING
        if self.state == "draining":
            return
        if role == SERVING:
            self.remark(f"front {index} (pid {pid}) has ended ({how}); it is started again")
        elif role == LEAVING:
            self.remark(f"front {index} (pid {pid}), which was draining after an upgrade, has ended ({how})")
        elif member is not None and self._nursery is not None:
            self._nursery.start_soon(self._lost, member, how)

    async def _lost(self, member: Member, how: str) -> None:
        """A front has ended that was coming with an upgrade; it may have said why."""
        with trio.move_on_after(ANSWER_TIME):
            await member.line.ended.wait()
        self.refused = self.refused or f"front {member.index} (pid {member.pid}) ended while it started ({how})"
        self.tell_news()

    async def _accompany(self, member: Member) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._ask_state, member)
            await member.line.run()
            nursery.cancel_scope.cancel()

    async def _ask_state(self, member: Member) -> None:
        """A front answers this when it serves."""
        try:
            said = (await member.line.ask({"do": "state"}, within=float("inf"))).data
            member.generation = said["generation"]
            self.tell_news()
            for watcher in self.watchers:
                watcher.ready(member)
                watcher.wanted(said["wanted"])
            if member.role != SERVING:  # of an upgrade: it has another world than the committed one
                return
            async with self.reloading:
                has_it = said["prepared"] == self.generation
                if not has_it:  # also when it is still at it, for a control that has died
                    await self._drop(member)
                if member.generation != self.generation:
                    await self._catch_up(member, is_prepared=has_it)
        except (Gone, trio.TooSlowError):
            pass

    async def _catch_up(self, member: Member, *, is_prepared: bool) -> None:
        """Bring a front to the committed world."""
        assert self._world is not None
        try:
            if not is_prepared:
                with closing_files(await self.listen(self.config)) as files:
                    await self._prepare(member, self.generation, [self._world, *files])
            await self._swap(member)
        except (BuildProblem, OSError) as error:
            self.remark(f"front {member.index} cannot follow: {error}; it is replaced")
            self.master.tell({"do": "replace", "pid": member.pid})

    def _heard(self, index: int, message: Message) -> None:
        """A front says something by itself: that apps are wanted, or that it cannot start."""
        if "wanted" in message.data:
            for watcher in self.watchers:
                watcher.wanted(message.data["wanted"])
            return
        text = str(message.data.get("refused"))
        member = self.members.get(index)
        if member is not None and member.role == COMING:
            self.refused = self.refused or text
            self.tell_news()
        elif self.state == "starting":
            self.refusal = text, int(message.data.get("code", 1))
            self.tell_news()
        else:
            self.remark(f"front {index} cannot start: {text}")

    def tell_news(self) -> None:
        """Wake those who wait for `news`."""
        self.news.set()
        self.news = trio.Event()

    async def until_all_serve(self) -> None:
        """Wait until every front serves, or one has said that it cannot."""
        while self.refusal is None and len(self.serving()) < self.count:
            await self.news.wait()

    # ------------------------------------------------------------------ the master

    async def listen(self, config: Config) -> list[int]:
        """The listening sockets of `config`, in its order, which the caller closes.  Raises `OSError`."""
        wanted = [[key_of(one), one.name, one.address, one.port] for one in config.listen.values()]
        return await self.bind(wanted)

    async def bind(self, wanted: list[list[Any]]) -> list[int]:
        """Sockets of the master, bound if they are not yet: ``[key, name, address or path, port]``.  Raises
        `OSError`."""
        message = await self.master.ask({"do": "listen", "sockets": wanted}, within=MASTER_TIME)
        if "error" in message.data:
            raise OSError(message.data["error"])
        if len(message.files) != len(wanted):
            message.close()
            raise OSError("too many files are open")
        return message.files

    async def commit(self, generation: int, world: int, handover: Handover) -> None:
        """From now on, `world` is what new fronts serve."""
        config = handover.config
        data = {"do": "commit", "generation": generation, "fronts": self.count, "drain": config.timeouts.drain}
        data["keys"] = [key_of(one) for one in config.listen.values()]
        data["farewell"] = farewell_of(config)
        await self.master.ask(data, [world], within=MASTER_TIME)
        self.adopt(generation, world)
        self.loaded, self.loaded_at = handover.loaded, handover.read_at
        for watcher in self.watchers:
            watcher.committed(config)

    def adopt(self, generation: int, world: int) -> None:
        """Note what is committed; `world` is kept open."""
        if self._world is not None:
            os.close(self._world)
        self.generation, self._world = generation, world

    # ------------------------------------------------------------------ reload

    async def reload(self, read: Callable[[], Loaded]) -> ReloadReport:
        """Read, prepare and swap in every front; on any error the old world stays in all of them."""
        found: dict[Path, bytes] = {}

        def whole() -> Loaded:
            loaded, files = read_whole(read)
            found.update(files)
            return loaded

        async with self.reloading:
            replace = partial(self._replace, found)
            report = await attempt(whole, replace, self.log_fault, self._stale_files)
            self.last_reload = report
            self.remark(report.told(self.generation))
            return report

    def _stale_files(self) -> list[Path]:
        return [path for path, _ in self.discovery.changed()]

    async def put(self, config: Config) -> list[str]:
        """Serve `config`, which needs nothing but what the committed one does; `reloading` is held.

        Raises `BuildProblem` and `OSError`; what was served before is served then.
        """
        assert self._world is not None
        return await self._replace(unpack(self._world).files, replace(self.loaded, config=config), self.loaded_at)

    async def _replace(self, files: dict[Path, bytes], loaded: Loaded, read_at: float = 0.0) -> list[str]:
        if self.state == "draining":
            raise BuildProblem("frontd is shutting down")
        if self.upgraded.is_set():
            raise BuildProblem("frontd has just been upgraded: ask again")
        old = self.config
        check_fixed(old, loaded.config)
        for watcher in self.watchers:
            watcher.check(loaded.config)
        tickets = await trio.to_thread.run_sync(tried_tickets, loaded.config)
        read_at, sources = read_at or time.time(), self.discovery.sources()
        handover = Handover(loaded.config, loaded.name, files, sources, read_at, loaded.base, tickets)
        world = pack(handover)
        try:
            with closing_files(await self.listen(loaded.config)) as sockets:
                members = await self._ready_members()
                await self._prepare_all(members, [world, *sockets])
            generation = self.generation + 1
            await self.commit(generation, os.dup(world), handover)
        finally:
            os.close(world)
            if self.config is not loaded.config:
                await self.master.ask({"do": "keep"}, within=MASTER_TIME)
        await self._swap_all(members)
        await self.master.ask({"do": "keep"}, within=MASTER_TIME)
        if old.log != loaded.config.log:
            self.log.change(quiet(loaded.config), loaded.config.log.error)
        return differences(old, loaded.config)

    async def _ready_members(self) -> list[Member]:
        """The fronts that serve; those that are just being started are waited for.  Raises `BuildProblem`."""
        with trio.move_on_after(START_WAIT):
            while len(self.serving()) < self.count:
                await self.news.wait()
        found = self.serving()
        if not found:
            raise BuildProblem("no front is there to try it")
        return found

    async def _prepare_all(self, members: list[Member], files: Sequence[int]) -> None:
        """Have every front build the next world; on any *no*, none keeps it.  Raises `BuildProblem`."""
        errors: list[str] = []

        async def one(member: Member, nursery: trio.Nursery) -> None:
            try:
                await self._prepare(member, self.generation + 1, files)
            except BuildProblem as error:
                errors.append(str(error))
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for member in members:
                nursery.start_soon(one, member, nursery)
        if self.state == "draining":
            errors.append("frontd is shutting down")
        if errors:
            async with trio.open_nursery() as nursery:
                for member in members:
                    nursery.start_soon(self._drop, member)
            raise BuildProblem(errors[0])

    async def _drop(self, member: Member) -> None:
        """Have a front forget what it has prepared; until then an address of it may look taken."""
        with suppress(Gone, trio.TooSlowError):
            await member.line.ask({"do": "drop"}, within=SWAP_TIME)

    async def _prepare(self, member: Member, generation: int, files: Sequence[int]) -> None:
        try:
            said = await member.line.ask({"do": "prepare", "generation": generation}, files, within=BUILD_TIME)
        except Gone:
            raise BuildProblem(f"front {member.index} ended while it built it") from None
        except trio.TooSlowError:
            raise BuildProblem(f"front {member.index} has not built it within {BUILD_TIME:g} s") from None
        if "refused" in said.data:
            raise BuildProblem(said.data["refused"])

    async def _swap_all(self, members: list[Member]) -> None:
        async with trio.open_nursery() as nursery:
            for member in members:
                nursery.start_soon(self._swap, member)

    async def _swap(self, member: Member) -> None:
        try:
            await member.line.ask({"do": "swap"}, within=SWAP_TIME)
        except Gone:
            pass  # the one that takes its place gets the committed world
        except trio.TooSlowError:
            self.remark(f"front {member.index} does not answer; it is replaced")
            self.master.tell({"do": "replace", "pid": member.pid})
        else:
            member.generation = self.generation


@contextmanager
def closing_files(files: list[int]) -> Iterator[list[int]]:
    """Close `files` at the end of the block."""
    try:
        yield files
    finally:
        for fd in files:
            os.close(fd)


def key_of(settings: Any) -> str:
    """What makes two listeners one, as text (see `identity_of`)."""
    return repr(identity_of(settings))


def farewell_of(config: Config) -> float:
    """For how long the workers of a configuration may take to end (s)."""
    return max((pool.workers.stop_limit for pool in config.pools.values() if pool.workers is not None), default=0.0)


def quiet(config: Config) -> Any:
    """The access log of a process that answers no requests: off."""
    return config.log.access.model_copy(update={"to": "off"})
