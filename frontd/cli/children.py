"""Child processes that never outlive their parent.

Each child has its own process group, so Ctrl-C in the terminal reaches only the parent, which then ends the children in
order.  Should the parent die without a word (SIGKILL), the kernel sends the child SIGTERM:
``PR_SET_PDEATHSIG``, prctl(2).
The setting is made by a tiny program that then becomes the child, since `preexec_fn` is not safe beside threads; it
survives exec and is bound to the *thread* that started the child, so children are started from the main thread.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from typing import IO

GRACE = 1.3  # seconds between SIGTERM and SIGKILL: all of it is over in less than two

_GUARD = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 15, 0, 0, 0)  # PR_SET_PDEATHSIG, SIGTERM
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)  # the parent died before the line above
os.execv(sys.argv[2], sys.argv[2:])
"""


def spawn(
    command: Sequence[str], *, stdout: int | IO[bytes] | None = None, stderr: int | IO[bytes] | None = None
) -> subprocess.Popen[bytes]:
    """Start `command` (an absolute program and its arguments) as a child as described above.  Raises `OSError`."""
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _GUARD, str(os.getpid()), *command],
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        process_group=0,
    )


def stop(children: Iterable[subprocess.Popen[bytes]], grace: float = GRACE) -> None:
    """SIGTERM to all, SIGKILL to what is left of their groups after `grace` seconds; reaps them.

    A group is killed before its leader is reaped: after that its number may belong to somebody else.  Whoever was
    reaped before this call is left alone for the same reason.
    """
    children = list(children)
    alive = [child for child in children if child.returncode is None]
    for child in alive:
        os.kill(child.pid, signal.SIGTERM)  # not child.terminate(): that would reap
    deadline = time.monotonic() + grace
    for child in alive:
        _wait_for_end(child.pid, deadline)
    for child in alive:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)  # also whatever the child itself started
        child.wait()
    for child in children:
        if child.stdout is not None:
            child.stdout.close()


def _wait_for_end(pid: int, deadline: float) -> None:
    """Until a child is a zombie or the deadline (monotonic) has come; does not reap it."""
    descriptor = os.pidfd_open(pid)
    try:
        select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
    finally:
        os.close(descriptor)
