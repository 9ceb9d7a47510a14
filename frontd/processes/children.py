"""Processes of the family: started by exec, and gone when the master is.

How it works
------------
A child is a fresh interpreter in a session of its own, so that Ctrl-C in the terminal reaches the master alone.  It
gets the files it needs by number, and nothing secret by its arguments or its environment, which /proc shows to others.

Invariants
----------
* No child outlives the master: the kernel kills it when the master ends, however that happens (prctl(2),
  PR_SET_PDEATHSIG).  The signal is bound to the thread that started the child: the master has one.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence

PR_SET_PDEATHSIG = 1
REFUSED = 3  # exit code of a front that has told control why it cannot serve the world it was given


def raise_file_limit() -> None:
    """The soft limit of open files to the hard one: a front needs two for each exchange."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def command(module: str, arguments: Sequence[str]) -> list[str]:
    """How to run `module` as this process was run: warnings as here, the current directory trusted only if it is."""
    trusts_here = not sys.flags.safe_path and sys.path[:1] in ([""], [os.getcwd()])
    flags = [*(f"-W{option}" for option in sys.warnoptions), *(["-Xdev"] if sys.flags.dev_mode else [])]
    return [sys.executable, *flags, *([] if trusts_here else ["-P"]), "-m", module, *arguments]


def spawn(
    module: str, arguments: Sequence[str], files: Sequence[int], *, reads: bool = False
) -> subprocess.Popen[bytes]:
    """Start `module` as a child that inherits `files`; `reads`: also standard input.  Raises `OSError`."""
    return subprocess.Popen(
        command(module, arguments),
        stdin=None if reads else subprocess.DEVNULL,
        pass_fds=tuple(files),
        start_new_session=True,
    )


def be_child(parent: int, name: str) -> None:
    """To be called first in a child of the master `parent`: end with it, and leave its signals to it."""
    import ctypes  # the master does without it

    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)
    with contextlib.suppress(OSError), open("/proc/self/comm", "w") as comm:  # what `ps` and `top` show
        comm.write(name)
