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
| ``started`` | from now on whoever dies is replaced, and the end is a drain | |
| ``replace`` pid | kills a front, which is then replaced | |
| ``spawn`` order | starts a worker (`frontd.processes.workers`) | its pid and its output, or why not |
| ``signal`` key, number | sends a worker a signal | |
| ``note`` key, note; ``memo`` | keeps what control wants the next one to know | |

and tells control what it cannot know: ``hello`` (everything that stands, to a control that has just started), ``front``
and ``gone``, ``worker`` and ``worker gone`` (processes that come and go), ``reload``, ``reopen``, ``drain`` and ``end``
(signals).  Each front has a channel to control; the master keeps a copy of control's end and hands it to the next
control.

SIGHUP reload · SIGUSR1 reopen logs · SIGTERM, SIGINT drain and exit 0 · a second one, or one before it serves: at once

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
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from frontd.net.binding import bind_control, bind_tcp
from frontd.net.shared import SharedFds
from frontd.processes import channel, children
from frontd.processes.workers import Workers

PAUSE = 0.05  # s before a dead process is replaced, doubling
PAUSE_MOST = 5.0
LIVED = 10.0  # s after which a process counts as one that works
TRIES = 3  # deaths of fronts before frontd has started
GRACE = 10.0  # s beyond `timeouts.drain` for a front to end
FAREWELL = 2.0  # s for control to end
MOST_SOCKETS = channel.MOST_FILES - 10

CONTROL, HEALTH, ADMIN = "@control", "@health", "@admin"  # keys of the sockets that are not for requests
HERE = "frontd.processes"


@dataclass(slots=True)
class Child:
    """Control (`index` -1) or a front: its process, if there is one, and when the next is due (monotonic)."""

    index: int
    process: subprocess.Popen[bytes] | None = None
    since: float = 0.0  # s since the epoch
    born: float = 0.0  # monotonic
    pause: float = PAUSE
    due: float | None = 0.0
    line: socket.socket | None = None  # the channel: for control the master's own end, for a front control's


@dataclass(slots=True)
class World:
    """What was committed: the generation, the file that holds it, and the keys of the sockets it listens on."""

    generation: int
    file: int
    keys: list[str]
    drain: float
    farewell: float  # s for workers to end


@dataclass(slots=True)
class Master:
    """The state of the master; `arguments` are control's."""

    arguments: Sequence[str]
    reads: bool  # control may read the configuration from standard input
    started_at: float = field(default_factory=time.time)
    secret: str = field(default_factory=lambda: os.urandom(32).hex())
    control: Child = field(default_factory=lambda: Child(-1))
    fronts: list[Child] = field(default_factory=list)
    workers: Workers = field(default_factory=Workers)
    memo: dict[str, Any] = field(default_factory=dict)  # control's, for the control after it
    held: dict[str, socket.socket] = field(default_factory=dict)
    path: Path | None = None  # of the control socket
    world: World | None = None
    shared: SharedFds | None = None  # counters and permits of all fronts
    started: bool = False
    ending: bool = False
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
        for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
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
        times += [self.deadline] if self.deadline is not None else []
        return max(0.0, (min(times) - time.monotonic()) * 1000 + 1) if times else None

    # ------------------------------------------------------------------ signals

    def _obey(self, numbers: bytes) -> None:
        for number in numbers:
            if number == signal.SIGHUP:
                self._tell({"do": "reload"})
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
            if child.due is not None and child.due <= now and self.code is None:
                child.due = None
                try:
                    self._start(child)
                except OSError as error:  # out of processes, memory or files
                    self._later(child, now)
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
        assert self.world is not None
        start = {"do": "serve", "index": child.index, "fronts": len(self.fronts), "secret": self.secret}
        start |= {"generation": self.world.generation, "shared": inherited}
        channel.send(ours, start, [self.world.file, *(self.held[key].fileno() for key in self.world.keys)])
        self._tell(facts(child), [ours.fileno()])

    def _inherited(self) -> list[int]:
        """What every front has from its first moment; more than fits into a message."""
        return [] if self.shared is None else [self.shared.fd, *self.shared.eventfds]

    def _greet(self) -> None:
        """Tell a new control how things stand."""
        self.epoch += 1
        hello: dict[str, Any] = {"do": "hello", "epoch": self.epoch, "started_at": self.started_at}
        hello |= {"started": self.started, "ending": self.ending, "fronts": len(self.fronts), "memo": self.memo}
        hello["workers"] = list(self.workers.running)
        hello["generation"] = 0 if self.world is None else self.world.generation
        self._tell(hello, [] if self.world is None else [self.world.file])
        for child in self.fronts:
            if child.line is not None:
                self._tell(facts(child), [child.line.fileno()])
        for data, files in self.workers.facts():
            self._tell(data, files)

    def _later(self, child: Child, now: float) -> None:
        """Start `child` again, soon the first time, later when it keeps dying."""
        if now - child.born >= LIVED:
            child.pause = PAUSE
        child.due, child.pause = now + child.pause, min(child.pause * 2, PAUSE_MOST)

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
            complain(f"the control process {pid} ended ({how(code)}); it is started again")
            self._later(child, time.monotonic())
        elif child is self.control:
            self._end_if_alone()
        else:
            if self.shared is not None:
                self.shared.reclaim(child.index)
            self._tell({"do": "gone", "index": child.index, "pid": pid, "how": how(code)})
            self._front_ended(child, code)

    def _front_ended(self, child: Child, code: int) -> None:
        if self.ending:
            self._end_if_drained()
            return
        if not self.started and code == children.REFUSED:
            self.deadline = time.monotonic() + GRACE  # until then control has ended the start, with the reason
            return
        self.deaths += not self.started
        if self.deaths >= TRIES and not self.started:
            complain(f"cannot serve: fronts end before they are ready ({how(code)})")
            self.code = 1
            return
        self._later(child, time.monotonic())

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
        if self.shared is not None:
            self.shared.close()
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    # ------------------------------------------------------------------ control

    def _tell(self, data: dict[str, Any], files: Sequence[int] = ()) -> None:
        """To control, if there is one; the next one is told everything anyway."""
        line, process = self.control.line, self.control.process
        if line is None or process is None:
            return
        try:
            channel.send(line, data, files)
        except BlockingIOError:
            process.send_signal(signal.SIGKILL)
        except OSError:  # it has ended, which the next look at children shows
            pass

    def _tell_fronts(self, data: dict[str, Any]) -> None:
        for child in self.fronts:
            if child.line is not None:
                with contextlib.suppress(OSError):
                    channel.send(child.line, data)

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
                before, self.world = (
                    self.world,
                    World(data["generation"], message.files.pop(), data["keys"], data["drain"], data["farewell"]),
                )
                if before is not None:
                    os.close(before.file)
                else:
                    self.shared = SharedFds(data["fronts"])
                    self.fronts = [Child(index) for index in range(data["fronts"])]
            case "keep":
                assert self.world is not None
                for key in self.held.keys() - {*self.world.keys, CONTROL, HEALTH, ADMIN}:
                    self.held.pop(key).close()
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
                        child.process.send_signal(signal.SIGKILL)
        return {}, []

    def _listen(self, wanted: list[list[Any]]) -> tuple[dict[str, Any], list[int]]:
        """Bind ``[key, name, address or path, port]`` where it is not bound yet: all of them, or none of the new."""
        if len(wanted) > MOST_SOCKETS:
            return {"error": f"there are {len(wanted)} listeners; {MOST_SOCKETS} are possible"}, []
        made: dict[str, socket.socket] = {}
        try:
            for key, name, address, port in wanted:
                if key == CONTROL and key not in self.held:
                    made[key] = bind_control(Path(address))
                    self.path = Path(address)
                elif key not in self.held:
                    made[key] = bind_tcp(name, address, port)
        except OSError as error:
            for sock in made.values():
                sock.close()
            if CONTROL in made and self.path is not None:
                self.path.unlink(missing_ok=True)
                self.path = None
            return {"error": error.strerror or str(error)}, []
        self.held |= made
        return {}, [self.held[key].fileno() for key, *_ in wanted]


def facts(child: Child) -> dict[str, Any]:
    """What control is told of a front that runs."""
    assert child.process is not None
    return {"do": "front", "index": child.index, "pid": child.process.pid, "since": child.since}


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
