"""The master: holds what must not get lost, starts the other processes, and is otherwise idle.

How it works
------------
    frontd serve = master ─┬─ control            reads the configuration, reloads, answers the control socket
                           ├─ front 0 … N-1      accept, TLS, HTTP: all requests
                           └─ workers            apps, when control wants some

It does what control asks for over a channel (`frontd.processes.channel`):

| control says | the master | and answers with |
|---|---|---|
| ``listen`` sockets | binds those it does not have yet | all of them, or why one cannot be bound |
| ``commit`` generation, world | holds that world; starts the fronts if it is the first | |
| ``keep`` | closes what the committed world does not listen on | |
| ``close`` key | closes a Unix socket and removes its file | |
| ``started`` | from now on whoever dies is replaced, and the end is a drain | |
| ``replace`` pid | kills a front, which is then replaced | |
| ``spawn`` order | starts a worker (`frontd.processes.workers`) | its pid and its output, or why not |
| ``signal`` key, number | sends a worker a signal | |
| ``note`` key, note; ``memo`` | keeps what control wants the next one to know | |
| ``beside`` generation, world | starts a set of new fronts for it beside the old ones | why not, if it cannot |
| ``promote`` | commits that world; the new fronts accept, the old ones drain (`frontd.processes.fronts`) | |
| ``abandon`` | ends the new fronts | |
| ``retire`` | when control has ended, starts the next one at once | |

and tells control what it cannot know: ``hello`` (everything that stands, to a control that has just started), ``front``
and ``gone``, ``workers`` and ``worker gone`` (processes that come and go), ``reload``, ``upgrade``, ``reopen``,
``drain`` and ``end`` (signals).  Each front has a channel to control; the master keeps a copy of control's end and
hands it to the next control.

SIGHUP reload · SIGUSR1 reopen logs · SIGUSR2 upgrade · SIGTERM, SIGINT drain and exit 0 · a second one, or one before
it serves: at once

Invariants
----------
* It imports little (no trio, no plugins, no configuration), runs one thread, and waits in one place: it has next to
  nothing to die of.  A SIGKILL of it ends the whole family (`frontd.processes.children`).
* Sockets, the world that was committed last and the channels are held here: control and fronts may die at any time, and
  are started again after 50 ms, doubling to 5 s for those that do not live for 10 s.  A new front serves the committed
  world also while there is no control.
* Before ``started`` it gives up instead: with control's exit code, or when fronts died `TRIES` times.
* It never waits for another process: a control that does not read its channel is killed, and the next one is told how
  things stand.
* As PID 1 it reaps whatever it inherits.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from frontd.net.binding import bind_control, bind_tcp
from frontd.processes import channel, children
from frontd.processes.fronts import COMING, GRACE, LEAVING, SERVING, Child, Fronts, World
from frontd.processes.workers import Workers

TRIES = 3  # deaths of fronts before frontd has started
FAREWELL = 2.0  # s for control to end
MOST_SOCKETS = channel.MOST_FILES - 10

SIGNALS = signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT
CONTROL, HEALTH, ADMIN = "@control", "@health", "@admin"  # keys of the sockets that are not for requests
ATTACH = "@attach "  # begins the keys of those of tenants
HERE = "frontd.processes"


@dataclass(slots=True)
class Master:
    """The state of the master; `arguments` are control's."""

    arguments: Sequence[str]
    reads: bool  # control may read the configuration from standard input
    started_at: float = field(default_factory=time.time)
    secret: str = field(default_factory=lambda: os.urandom(32).hex())
    control: Child = field(default_factory=lambda: Child(-1))
    fronts: Fronts = field(default_factory=Fronts)
    workers: Workers = field(default_factory=Workers)
    memo: dict[str, Any] = field(default_factory=dict)  # control's, for the control after it
    held: dict[str, socket.socket] = field(default_factory=dict)
    paths: dict[str, Path] = field(default_factory=dict)  # of the Unix sockets, by key
    world: World | None = None
    started: bool = False
    ending: bool = False
    retires: bool = False  # control ends of itself, for the next one
    deadline: float | None = None  # of the end (monotonic)
    epoch: int = 0  # counts controls
    deaths: int = 0  # of fronts before `started`
    code: int | None = None  # to exit with
    poll: select.poll = field(default_factory=select.poll)

    def run(self) -> int:
        """Serve until a signal says otherwise; returns the exit code."""
        signals, wakeup = socket.socketpair()
        for sock in (signals, wakeup):
            sock.setblocking(False)
        for number in (*SIGNALS, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(wakeup.fileno(), warn_on_full_buffer=False)
        self.poll.register(signals, select.POLLIN)
        children.raise_file_limit()
        with signals, wakeup:
            try:
                while self.code is None:
                    self._start_due()
                    for fd, _ in self.poll.poll(self._patience()):
                        if fd == signals.fileno():
                            self._obey(signals.recv(4096))
                        else:
                            self._hear()
                    self._reap()
                return self.code
            finally:
                self._end_all()
                signal.set_wakeup_fd(-1)

    def _patience(self) -> float | None:
        """Milliseconds until something is due; None: nothing is."""
        times = [child.due for child in (self.control, *self.fronts) if child.due is not None]
        times += [child.until for child in self.fronts if child.until is not None]
        times += [self.deadline] if self.deadline is not None else []
        return max(0.0, (min(times) - time.monotonic()) * 1000 + 1) if times else None

    # ------------------------------------------------------------------ signals

    def _obey(self, numbers: bytes) -> None:
        for number in numbers:
            if number == signal.SIGHUP:
                self._tell({"do": "reload"})
            elif number == signal.SIGUSR2:
                self._tell({"do": "upgrade"})
            elif number == signal.SIGUSR1:
                self._tell({"do": "reopen"})
                self._tell_fronts({"do": "reopen"})
            elif number in (signal.SIGTERM, signal.SIGINT):
                if self.ending or not self.started:
                    self.code = 0
                else:
                    self._drain()

    def _drain(self) -> None:
        self.ending = True
        assert self.world is not None
        self.deadline = time.monotonic() + self.world.drain + GRACE
        for key in self.world.keys:
            self.held.pop(key).close()
        self.fronts.abandon()
        self._tell({"do": "drain"})
        self._tell_fronts({"do": "drain"})
        for child in self.fronts:
            child.due = None
        self._end_if_drained()

    def _end_if_drained(self) -> None:
        if any(child.process for child in self.fronts):
            return
        assert self.world is not None
        self.deadline = time.monotonic() + max(FAREWELL, self.world.farewell if self.workers.running else 0)
        self._tell({"do": "end"})
        self.workers.end()
        self._end_if_alone()

    def _end_if_alone(self) -> None:
        """Exit when nothing is left to wait for."""
        if self.ending and not self.workers.running and not any(one.process for one in (self.control, *self.fronts)):
            self.code = 0

    # ------------------------------------------------------------------ children

    def _start_due(self) -> None:
        now = time.monotonic()
        if self.deadline is not None and now >= self.deadline:
            self.code = 0 if self.ending else 1
        for child in (self.control, *self.fronts):
            if child.until is not None and child.until <= now:
                child.until = None
                child.kill()
            if child.due is not None and child.due <= now and self.code is None:
                child.due = None
                try:
                    self._start(child)
                except OSError as error:  # out of processes, memory or files
                    child.later(now)
                    complain(f"a process cannot be started: {error.strerror or error}")

    def _start(self, child: Child) -> None:
        ours, theirs = channel.pair()
        with theirs:
            arguments = [str(theirs.fileno()), str(os.getpid())]
            module, inherited = f"{HERE}.front_process", self._inherited()
            if child is self.control:
                module, inherited, arguments = f"{HERE}.control_process", [], [*arguments, *self.arguments]
            reads = child is self.control and self.reads and self.world is None
            try:
                child.process = children.spawn(module, arguments, [theirs.fileno(), *inherited], reads=reads)
            except OSError:
                ours.close()
                raise
        child.line, child.since, child.born = ours, time.time(), time.monotonic()
        if child is self.control:
            self.poll.register(ours, select.POLLIN)
            self._greet()
            return
        is_coming = child.role == COMING
        world = self.fronts.next if is_coming else self.world
        assert world is not None
        start = {"do": "serve", "index": child.index, "fronts": self.fronts.count, "secret": self.secret}
        start |= {"generation": world.generation, "shared": inherited, "waits": is_coming}
        start["protocol"] = channel.PROTOCOL
        channel.send(ours, start, [world.file, *(self.held[key].fileno() for key in world.keys)])
        self._tell(child.facts, [ours.fileno()])

    def _inherited(self) -> list[int]:
        """What every front has from its first moment; more than fits into a message."""
        shared = self.fronts.shared
        return [] if shared is None else [shared.fd, *shared.eventfds]

    def _greet(self) -> None:
        """Tell a new control how things stand."""
        self.epoch += 1
        hello: dict[str, Any] = {"do": "hello", "epoch": self.epoch, "started_at": self.started_at}
        hello |= {"started": self.started, "ending": self.ending, "fronts": self.fronts.count, "memo": self.memo}
        hello |= {"protocol": channel.PROTOCOL, "upgraded": self.retires, "workers": list(self.workers.running)}
        self.retires = False
        hello["generation"] = 0 if self.world is None else self.world.generation
        self._tell(hello, [] if self.world is None else [self.world.file])
        for child in self.fronts:
            if child.line is not None and child.role != COMING:
                self._tell(child.facts, [child.line.fileno()])
        for data, files in self.workers.facts():
            self._tell(data, files)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            code = os.waitstatus_to_exitcode(status)
            for child in (self.control, *self.fronts):
                if child.process is not None and child.process.pid == pid:
                    self._bury(child, code)
            if (gone := self.workers.bury(pid, code)) is not None:
                self._tell(gone)
                self._end_if_alone()

    def _bury(self, child: Child, code: int) -> None:
        """A child has ended; `code` as of `subprocess`."""
        assert child.process is not None
        assert child.line is not None
        pid = child.process.pid
        child.process.returncode = code  # it was reaped here, so Popen must not try
        child.process = None
        if child is self.control:
            self._hear()  # what it said last
            with contextlib.suppress(KeyError):
                self.poll.unregister(child.line)
        child.line.close()
        child.line = None
        if self.code is not None:
            return
        if child is self.control and not self.started:
            self.code = code if code > 0 else 1
        elif child is self.control and not self.ending:
            self.fronts.abandon()  # an upgrade that nobody can finish
            if self.retires:
                child.due = time.monotonic()
                return
            complain(f"the control process {pid} ended ({how(code)}); it is started again")
            child.later(time.monotonic())
        elif child is self.control:
            self._end_if_alone()
        else:
            self.fronts.ended(child)
            self._tell({"do": "gone", "index": child.index, "pid": pid, "how": how(code)})
            self._front_ended(child, code)

    def _front_ended(self, child: Child, code: int) -> None:
        if self.ending:
            self._end_if_drained()
            return
        if child.role != SERVING:
            return
        if not self.started and code == children.REFUSED:
            self.deadline = time.monotonic() + GRACE  # until then control has ended the start, with the reason
            return
        self.deaths += not self.started
        if self.deaths >= TRIES and not self.started:
            complain(f"cannot serve: fronts end before they are ready ({how(code)})")
            self.code = 1
            return
        child.later(time.monotonic())

    def _end_all(self) -> None:
        """Whatever still runs ends now."""
        self.workers.kill()
        for child in (self.control, *self.fronts):
            if child.process is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child.process.pid, signal.SIGKILL)
                child.process.wait()
            if child.line is not None:
                child.line.close()
        for sock in self.held.values():
            sock.close()
        if self.world is not None:
            os.close(self.world.file)
        self.fronts.close()
        for key in list(self.paths):
            self._remove(key)

    # ------------------------------------------------------------------ control

    def _tell(self, data: dict[str, Any], files: Sequence[int] = ()) -> None:
        """To control, if there is one; the next one is told everything anyway."""
        line, process = self.control.line, self.control.process
        if line is None or process is None:
            return
        try:
            channel.send(line, data, files)
        except BlockingIOError:
            self.control.kill()
        except OSError:  # it has ended, which the next look at children shows
            pass

    def _tell_fronts(self, data: dict[str, Any], role: str | None = None) -> None:
        for child in self.fronts:
            if child.line is not None and role in (None, child.role):
                try:
                    channel.send(child.line, data)
                except BlockingIOError:
                    if role == SERVING:  # who does not hear that it is to serve is replaced
                        child.kill()
                except OSError:
                    pass

    def _hear(self) -> None:
        """Do everything that control asks for now."""
        while self.control.line is not None:
            try:
                message = channel.receive(self.control.line)
            except BlockingIOError:
                return
            if message is None:
                with contextlib.suppress(KeyError):
                    self.poll.unregister(self.control.line)
                return
            try:
                answer, files = self._do(message)
            finally:
                message.close()
            if "id" in message.data:
                self._tell({"id": message.data["id"], **answer}, files)

    def _do(self, message: channel.Message) -> tuple[dict[str, Any], list[int]]:
        data = message.data
        match data["do"]:
            case "listen":
                return self._listen(data["sockets"])
            case "commit":
                if self.world is None:
                    self.fronts.begin(data["fronts"])
                self._commit(world_of(message))
            case "keep":
                assert self.world is not None
                for key in self.held.keys() - {*self.world.keys}:
                    if not key.startswith("@"):
                        self.held.pop(key).close()
            case "close" if data["key"] in self.held:
                self.held.pop(data["key"]).close()
                self._remove(data["key"])
            case "started":
                self.started = True
            case "spawn":
                return self.workers.spawn(data["order"])
            case "signal":
                self.workers.signal(data["key"], data["number"])
            case "note":
                self.workers.note(data["key"], data["note"])
            case "memo":
                self.memo = data["memo"]
            case "replace":
                for child in self.fronts:
                    if child.process is not None and child.process.pid == data["pid"]:
                        child.kill()
            case "beside":
                world = world_of(message)
                error = "frontd is shutting down" if self.ending else self.fronts.beside(world)
                if error:
                    os.close(world.file)
                    return {"error": error}, []
            case "promote":
                return self._promote(data["patience"]), []
            case "abandon":
                self.fronts.abandon()
            case "retire":
                self.retires = True
        return {}, []

    def _commit(self, world: World) -> None:
        """From now on fronts are started with `world`."""
        before, self.world = self.world, world
        if before is not None:
            os.close(before.file)

    def _promote(self, patience: float) -> dict[str, Any]:
        """The fronts that were coming serve; the others drain, and have `patience` with idle connections."""
        if self.fronts.next is None or self.world is None:
            return {"error": "frontd is shutting down"}
        self._commit(self.fronts.promote(self.world.drain, time.monotonic()))
        self._tell_fronts({"do": "accept"}, SERVING)
        self._tell_fronts({"do": "drain", "patience": patience}, LEAVING)
        return {}

    def _listen(self, wanted: list[list[Any]]) -> tuple[dict[str, Any], list[int]]:
        """Bind ``[key, name, address or path, port]`` where it is not bound yet: all of them, or none of the new."""
        if len(wanted) > MOST_SOCKETS:
            return {"error": f"there are {len(wanted)} listeners; {MOST_SOCKETS} are possible"}, []
        made: dict[str, socket.socket] = {}
        try:
            for key, name, address, port in wanted:
                if key in self.held:
                    continue
                if key == CONTROL or key.startswith(ATTACH):  # `port` has mode, owner and group then, or nothing
                    made[key] = bind_control(Path(address), name, *(port or ()))
                    self.paths[key] = Path(address)
                else:
                    made[key] = bind_tcp(name, address, port)
        except OSError as error:
            for key, sock in made.items():
                sock.close()
                self._remove(key)
            return {"error": error.strerror or str(error)}, []
        self.held |= made
        return {}, [self.held[key].fileno() for key, *_ in wanted]

    def _remove(self, key: str) -> None:
        """Remove the file of a Unix socket, if it is one."""
        if (path := self.paths.pop(key, None)) is not None:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def world_of(message: channel.Message) -> World:
    """The world that a message brings."""
    data = message.data
    return World(data["generation"], message.files.pop(), data["keys"], data["drain"], data["farewell"])


def how(code: int) -> str:
    """How a process ended, for people; `code` as of `subprocess`."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def complain(text: str) -> None:
    """A sentence on stderr, which has to do while there is no control to write it into the log."""
    with contextlib.suppress(OSError):
        sys.stderr.write(f"frontd: {text}\n")
        sys.stderr.flush()
