"""Processes of the benchmark: started on a core, read from /proc, ended by their own ids.

How it works: a `Running` is one server with everything it has started (found by parent ids, threads included). CPU
time is the first number of `/proc/PID/task/TID/schedstat` of every thread: nanoseconds on a core, in user and kernel
mode, with the interrupts that came meanwhile, exact where a thread sleeps. A thread that has ended is missing there,
so `utime + stime` of `/proc/PID/stat` (10 ms steps, ended threads and waited-for children included) is read beside it
and the two are compared.

Invariants: only processes started here are ended; `close` leaves none of them.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

PROC = Path("/proc")
TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")  # ns
SLACK = 3 * TICK  # the two clocks may differ by this much, for the rounding of each process
START_WAIT = 20.0  # s
STOP_WAIT = 5.0  # s


class StartError(Exception):
    """A server did not come up; the text ends with what it wrote."""


@dataclass(frozen=True)
class Cpu:
    """CPU time of a process tree in ns: by schedstat, and by the ticks of stat."""

    fine: int
    ticks: int

    def __sub__(self, before: Cpu) -> Cpu:
        return Cpu(self.fine - before.fine, self.ticks - before.ticks)

    @property
    def used(self) -> int:
        """The fine figure; the ticks where they show that threads which have ended are missing from it."""
        return self.ticks if self.ticks - self.fine > SLACK + self.fine // 20 else self.fine


@dataclass
class Running:
    """One started server."""

    name: str
    child: subprocess.Popen[bytes]
    port: int
    output: Path
    tls_port: int = 0
    seen: dict[int, int] = field(default_factory=dict)  # id: when it began

    def tree(self) -> list[int]:
        """The ids of the process and all its descendants."""
        found = descendants(self.child.pid, parents())
        for pid in found:
            self.seen.setdefault(pid, started_at(pid))
        return found

    def cpu(self) -> Cpu:
        """CPU time so far of the whole tree."""
        pids = self.tree()
        return Cpu(sum(map(fine_time, pids)), sum(map(tick_time, pids)))

    def cpu_by_process(self) -> dict[int, int]:
        """ns so far of each process of the tree."""
        return {pid: fine_time(pid) for pid in self.tree()}

    def busy_since(self, before: dict[int, int]) -> int:
        """How many of its processes had more than a tenth of the CPU time since then."""
        used = [now - before.get(pid, 0) for pid, now in self.cpu_by_process().items()]
        return sum(share > sum(used) / 10 for share in used)

    def peak_memory(self) -> int:
        """Bytes: VmHWM of every process of the tree, summed (pages they share count in each)."""
        return sum(status_bytes(pid, "VmHWM") for pid in self.tree())

    def memory(self) -> int:
        """Bytes: PSS of the tree (a shared page counts once), or RSS where the kernel does not tell."""
        return sum(pss(pid) for pid in self.tree())

    def close(self) -> None:
        """Ask it to end, then end everything of it that is left."""
        self.tree()
        if self.child.poll() is None:
            self.child.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.child.wait(STOP_WAIT)
        for pid, begun in self.seen.items():
            if pid != self.child.pid and begun == started_at(pid) != 0:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        if self.child.poll() is None:
            self.child.kill()
            self.child.wait()


def parents(proc: Path = PROC) -> dict[int, int]:
    """The parent of every process there is."""
    found = {}
    for entry in proc.iterdir():
        if entry.name.isdigit():
            with suppress(OSError, IndexError, ValueError):
                found[int(entry.name)] = int(stat_fields((entry / "stat").read_text())[1])
    return found


def descendants(root: int, parent_of: dict[int, int]) -> list[int]:
    """`root` and every process below it that still runs."""
    children: dict[int, list[int]] = {}
    for pid, parent in parent_of.items():
        children.setdefault(parent, []).append(pid)
    found, waiting = [], [root] if root in parent_of else []
    while waiting:
        pid = waiting.pop()
        found.append(pid)
        waiting += children.get(pid, [])
    return found


def stat_fields(text: str) -> list[str]:
    """The fields of a stat line from the third on; the name before them may contain blanks and parentheses."""
    return text[text.rindex(")") + 1 :].split()


def fine_time(pid: int, proc: Path = PROC) -> int:
    """ns on a core of every living thread of the process."""
    total = 0
    with suppress(OSError):
        for thread in (proc / str(pid) / "task").iterdir():
            with suppress(OSError, IndexError, ValueError):
                total += int((thread / "schedstat").read_text().split()[0])
    return total


def tick_time(pid: int, proc: Path = PROC) -> int:
    """ns by the ticks: user and system time of the process and of its children that have ended."""
    with suppress(OSError, IndexError, ValueError):
        return sum(map(int, stat_fields((proc / str(pid) / "stat").read_text())[11:15])) * TICK
    return 0


def status_bytes(pid: int, key: str, file: str = "status") -> int:
    """A line such as `VmHWM:  123 kB` of /proc/PID/status in bytes; 0 when it is not there."""
    with suppress(OSError):
        for line in (PROC / str(pid) / file).read_text().splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * 1024
    return 0


def pss(pid: int) -> int:
    """Bytes of the process, a page shared by n processes counting 1/n."""
    return status_bytes(pid, "Pss", "smaps_rollup") or status_bytes(pid, "VmRSS")


def started_at(pid: int) -> int:
    """When the process began, in ticks since boot, which tells it from a later one with its id; 0: there is none."""
    with suppress(OSError, IndexError, ValueError):
        return int(stat_fields((PROC / str(pid) / "stat").read_text())[19])
    return 0


PORTS = range(20_000, 32_000)  # below those that the kernel gives to outgoing connections


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on now."""
    found: list[int] = []
    for port in random.sample(PORTS, len(PORTS)):
        with suppress(OSError):
            socket.create_server(("127.0.0.1", port), reuse_port=False).close()
            found.append(port)
            if len(found) == count:
                break
    return found


def start(
    name: str, command: Sequence[str], folder: Path, port: int, cores: Iterable[int], tls_port: int = 0
) -> Running:
    """Start a server on these cores and wait until it listens on its ports.

    Raises:
        StartError: it ended, or nothing listened in time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    output, wanted = folder / "output.log", set(cores)
    with output.open("wb") as written:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=written,
            stderr=subprocess.STDOUT,
            cwd=folder,
            start_new_session=True,
            preexec_fn=lambda: os.sched_setaffinity(0, wanted),
        )
    running = Running(name, child, port, output, tls_port)
    try:
        for wanted_port in filter(None, (port, tls_port)):
            wait_for_port(running, wanted_port)
    except BaseException:
        running.close()
        raise
    return running


def wait_for_port(running: Running, port: int) -> None:
    """Return when something listens on the port.

    Raises:
        StartError: the process ended, or `START_WAIT` is over.
    """
    until = time.monotonic() + START_WAIT
    while True:
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        ended = running.child.poll() is not None
        if ended or time.monotonic() > until:
            said = running.output.read_text(errors="replace")[-600:]
            raise StartError(f"{running.name} {'ended' if ended else 'does not listen'}: {said.strip()}")
        time.sleep(0.02)
