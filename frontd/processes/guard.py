"""Ends what workers have started when the master ends without doing it itself (``kill -9``).

The kernel kills a worker with the master (see `launch`), but not the processes that a worker has made: a server with
processes of its own would go on by them.  This process is told by standard input of each worker that begins (``+PID``)
and ends (``-PID``); at the end of its input the master is gone, and it kills what is left.

It runs as a file of its own (``python -I -S guard.py``), imports nothing of frontd, and starts with the first worker.
Invariant: it is in a session of its own, so that nothing but the end of the master ends it.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress


def main() -> None:
    """Read until the master has ended."""
    groups: set[int] = set()
    for line in sys.stdin:
        sign, pid = line[0], int(line[1:])
        (groups.add if sign == "+" else groups.discard)(pid)
    for pid in groups:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
