"""Fronts that are processes of their own: each maps the shared memory and does what it is told, line by line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from frontd.net.permits import Permits, permits
from frontd.net.shared import SharedFds, Slots

ROOT = Path(__file__).parent.parent.parent
PATIENCE = 20  # s


class Front:
    """The parent's side of one such process: number `index` of those of `shared`."""

    def __init__(self, shared: SharedFds, index: int) -> None:
        fds = (shared.fd, *shared.eventfds)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.net.fronts", str(index), str(shared.fronts), *map(str, fds)],
            cwd=ROOT, pass_fds=fds, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
        )  # fmt: skip
        self.do("None")

    def begin(self, expression: str) -> None:
        """Have `expression` evaluated; the names are those of `main`."""
        assert self.process.stdin is not None
        self.process.stdin.write(expression + "\n")

    def result(self) -> str:
        """What became of it, as ``repr`` says it; "" when the process is dead."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def do(self, expression: str) -> str:
        """Both."""
        self.begin(expression)
        return self.result()

    def kill(self) -> None:
        """End it as nobody can refuse, and wait until it is gone."""
        self.process.kill()
        self.end()

    def end(self) -> None:
        """Let it come to the end of its orders."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(PATIENCE)
        self.process.stdout.close()


def fill(slots: Slots, name: str, limit: int) -> int:
    """Add to the counter one by one as long as the sum is below `limit`; how often that went."""
    counter, added = slots.counter(name), 0
    kept.append(counter)
    while counter.total() < limit:
        counter.add(1)
        added += 1
    return added


def flicker(slots: Slots, name: str, times: int) -> None:
    """Write a value of eight zero bytes and one of eight 0xff bytes in turn."""
    counter = slots.counter(name)
    for _ in range(times):
        counter.add(-1)
        counter.add(1)


def churn(some: Permits, times: int) -> int:
    """Take and give `times`; how often one was free."""
    got = 0
    for _ in range(times):
        if some.take():
            got += 1
            some.give()
    return got


def die_at(call: str) -> None:
    """Be killed in the moment at which `os.call` is called."""
    setattr(os, call, lambda *arguments: os.kill(os.getpid(), signal.SIGKILL))


def die_after(call: str) -> None:
    """Be killed in the moment after `os.call` has done its work."""
    real = getattr(os, call)

    def last(*arguments: int) -> None:
        real(*arguments)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(os, call, last)


kept: list[object] = []  # what an order made and later ones need


def main() -> None:
    """Evaluate each line of stdin and print what came of it."""
    front, fronts, fd, *eventfds = map(int, sys.argv[1:])
    names = {
        "slots": Slots(fd, front, fronts, eventfds), "permits": permits, "kept": kept, "fill": fill,
        "flicker": flicker, "churn": churn, "die_at": die_at, "die_after": die_after,
    }  # fmt: skip
    for line in sys.stdin:
        print(repr(eval(line, names)), flush=True)


if __name__ == "__main__":
    main()
