"""A front as a process of its own: what it is given, and what it is asked.

How it works
------------
The first message comes from the master and has everything: the world, the bound sockets, the number among the fronts.
It builds the world, accepts, and then does what control asks for, one message after the other:

| asked for | it |
|---|---|
| ``state`` | says which generation it serves, and which it has prepared |
| ``prepare`` generation, world, sockets | builds that world beside its own; ``built``, or ``refused`` and why |
| ``swap``, ``drop`` | serves what it has prepared, or forgets it |
| ``status`` | says what there is to say about it (`frontd.processes.status`) |
| ``places`` by pool | knows where the apps are that control has started (`frontd.processes.supervisor`) |
| ``load`` | says how busy it keeps them |
| a view | tells what only it can know (`frontd.processes.frontviews`) |
| ``reopen`` | opens its log files anew |
| ``accept`` | accepts, where it was started to wait for this (`frontd.processes.fronts`) |
| ``drain`` patience | accepts no more, finishes what runs, and ends; idle connections have that patience (s) |

By itself it says ``wanted`` and which pools: requests wait there, and no app has been started.

Invariants
----------
* It reads neither the configuration's file nor a certificate: all of it is in the world it was handed.
* It ends when the other side of its channel does, which means that master and control are dead; should the loop be
  blocked at that moment, the kernel ends it (`frontd.processes.children`).
* SIGTERM drains this front alone, and the master starts another one; other signals are the master's.
"""

from __future__ import annotations

import math
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import trio

from frontd.config.model import Config
from frontd.lanes.listener import Listener, identity_of
from frontd.net.shared import Slots
from frontd.net.tickets import VERDICT, FamilySecret
from frontd.pipeline.world import Shared
from frontd.processes.channel import PROTOCOL, Message, next_message, other_code, send
from frontd.processes.children import REFUSED, be_child, raise_file_limit
from frontd.processes.collector import freeze
from frontd.processes.front import Front, Prepared
from frontd.processes.frontviews import VIEWS
from frontd.processes.handover import Handover, unpack
from frontd.processes.runtime import BuildProblem, only_problem
from frontd.processes.watch import Watchdog
from frontd.upstream.targets import address_of

CONFIGURATION = 3  # exit code, as of `frontd.cli.common`


def main() -> None:
    """Run the front whose channel and whose master the command line names."""
    channel, master = (int(word) for word in sys.argv[1:3])
    be_child(master, "frontd-front")
    raise_file_limit()
    sock = socket.socket(fileno=channel)
    sock.set_inheritable(False)
    with sock:
        code = trio.run(_serve, sock)
    raise SystemExit(code)


async def _serve(sock: socket.socket) -> int:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what holds again when the receiver below has closed
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        start = await next_message(sock)
        if start is None:
            return 0
        try:
            front = _open(start)
        except Exception as error:
            return _refuse(sock, error)
        try:
            async with trio.open_nursery() as nursery:
                desk = Desk(front, sock, nursery)
                await nursery.start(Watchdog(lambda: front.service.world.plugins, front.remark).run)
                await nursery.start(front.run)
                front.settled = freeze
                freeze()
                nursery.start_soon(desk.build)
                nursery.start_soon(desk.answer)
                async for _ in signals:
                    nursery.start_soon(desk.drain)
        except BaseExceptionGroup as group:
            problem = only_problem(group)
            if problem is None:
                raise
            return _refuse(sock, problem)
        finally:
            front.service.log.close()
    return 0


def _open(start: Message) -> Front:
    """The front that the master has asked for."""
    data, (world, *sockets) = start.data, start.files
    if data["protocol"] != PROTOCOL:
        raise BuildProblem(other_code(PROTOCOL, data["protocol"]))
    handover = unpack(world)
    os.close(world)
    listeners = adopted(handover.config, sockets, [])
    memory, *eventfds = data["shared"]
    for fd in data["shared"]:
        os.set_inheritable(fd, False)
    slots = Slots(memory, data["index"], data["fronts"], eventfds)
    shared = Shared(slots, FamilySecret(bytes.fromhex(data["secret"])))
    know_tickets(handover)
    front = Front.on(
        handover.loaded, listeners, generation=data["generation"], files=handover.files, shared=shared,
        index=data["index"], leads=data["index"] % data["fronts"] == 0,
    )  # fmt: skip
    front.waits = data["waits"]
    return front


def _refuse(sock: socket.socket, error: Exception) -> int:
    """Tell control why this front cannot start; the exit code."""
    is_fault = not isinstance(error, BuildProblem | OSError)
    text = f"{type(error).__name__}: {error}" if is_fault else str(error)
    code = CONFIGURATION if isinstance(error, BuildProblem) else 1  # of `frontd serve`, should this be its start
    with suppress(OSError):
        send(sock, {"refused": text, "code": code})
    if is_fault:
        raise error
    return REFUSED


def know_tickets(handover: Handover) -> None:
    """Take over what the trial of ticket keys has shown: one process for it is enough in a family."""
    if handover.tickets:
        os.environ[VERDICT] = handover.tickets


def adopted(config: Config, sockets: Sequence[int], standing: Sequence[Listener]) -> list[Listener]:
    """Listeners on `sockets`, which are those of `config` in its order; those of `standing` that are the same are used
    again, and the second descriptor of their socket is closed."""
    same = {listener.identity: listener for listener in standing}
    listeners = []
    for settings, fd in zip(config.listen.values(), sockets, strict=True):
        listener = same.get(identity_of(settings))
        if listener is None:
            listener = Listener(settings, socket.socket(fileno=fd))
        else:
            os.close(fd)
        listeners.append(listener)
    return listeners


class Desk:
    """Answers what control asks of one front."""

    def __init__(self, front: Front, sock: socket.socket, nursery: trio.Nursery) -> None:
        self.front = front
        self.prepared: Prepared | None = None
        self._sock = sock
        self._nursery = nursery
        self._preparing = trio.CancelScope()
        front.wanted = self._want
        self._jobs, self._asked = trio.open_memory_channel[Callable[[], Awaitable[None]]](math.inf)

    async def answer(self) -> None:
        """Do what is asked for until the other side ends."""
        while (message := await next_message(self._sock)) is not None:
            self._do(message)
        self._nursery.cancel_scope.cancel()

    def _do(self, message: Message) -> None:
        front, data = self.front, message.data
        match data["do"]:
            case "prepare":
                self._preparing = trio.CancelScope()
                self._jobs.send_nowait(partial(self._prepare, message, self._preparing))
                return
            case "state":
                prepared = self.prepared.world.generation if self.prepared else None
                self._say(data, generation=front.generation, prepared=prepared, wanted=front.waiting())
            case "places":
                limits = {address_of(text): limit for text, limit in data.get("limits", {}).items()}
                front.tell(
                    {
                        name: ([address_of(text) for text in texts], data["off"].get(name, ""), limits)
                        for name, texts in data["pools"].items()
                    }
                )
            case "load":
                self._say(data, pools=front.loads())
            case "status":
                self._nursery.start_soon(self._status, data)
            case view if view in VIEWS:
                self._nursery.start_soon(self._view, data)
            case "swap" if self.prepared is not None:
                front.swap(self.prepared)
                self.prepared = None
                self._say(data, swapped=front.generation)
            case "drop":
                self._preparing.cancel()
                self._jobs.send_nowait(partial(self._drop_and_say, data))
            case "reopen":
                front.service.log.reopen()
            case "accept":
                front.accept()
            case "drain":
                self._nursery.start_soon(self.drain, data.get("patience", 0.0))
        message.close()

    async def build(self) -> None:
        """Prepare and drop, in the order in which it was asked for."""
        async for job in self._asked:
            await job()

    async def _prepare(self, message: Message, scope: trio.CancelScope) -> None:
        self._drop()
        front, data = self.front, message.data
        fresh: list[Listener] = []
        try:
            with scope:
                if not message.files:
                    raise BuildProblem(f"front {front.index} has too many files open")
                handover = unpack(message.files[0])
                know_tickets(handover)
                sockets = message.files[1:]
                del message.files[1:]
                listeners = adopted(handover.config, sockets, front.listeners)
                fresh = [one for one in listeners if one not in front.listeners]
                self.prepared = await front.prepare(handover.loaded, listeners, data["generation"], handover.files)
                self._say(data, built=data["generation"])
        except (BuildProblem, OSError) as error:
            self._say(data, refused=str(error))
        except Exception as error:  # a fault of ours must not take the running world along
            front.service.log_fault("reload", error)
            self._say(data, refused=f"{type(error).__name__}: {error}")
        finally:
            message.close()
            if self.prepared is None:
                for listener in fresh:
                    listener.close()

    async def _drop_and_say(self, data: dict[str, object]) -> None:
        """Forget what was prepared, or is being; when that is answered, no socket of it is open here any more."""
        self._drop()
        self._say(data)

    def _drop(self) -> None:
        if self.prepared is not None:
            for listener in self.prepared.listeners:
                if listener not in self.front.listeners:
                    listener.close()
            self.prepared = None
            self.front.drop()

    async def _status(self, data: dict[str, object]) -> None:
        self._say(data, facts=(await self.front.facts())[0])

    async def _view(self, data: dict[str, Any]) -> None:
        told: dict[str, Any] = {}
        try:
            told = (await self.front.ask_each(data))[self.front.index]
        except Exception as error:  # who looks on must not hurt what is looked at
            self.front.log_fault(f"view {data['do']}", error)
        self._say(data, **told)

    async def drain(self, patience: float = 0.0) -> None:
        """Drain, then end this process.  Once: a service manager may have asked each process of the family."""
        if not self.front.draining:
            await self.front.drain(patience)
            self._nursery.cancel_scope.cancel()

    def _want(self, pools: list[str]) -> None:
        """Tell control that apps are wanted; a control that is not there asks when it is."""
        with suppress(OSError):
            send(self._sock, {"wanted": pools})

    def _say(self, question: dict[str, object], **answer: object) -> None:
        """Answer; nobody to hear it is no trouble, the next control asks again."""
        with suppress(OSError):
            send(self._sock, {"id": question.get("id"), **answer})


if __name__ == "__main__":
    main()
