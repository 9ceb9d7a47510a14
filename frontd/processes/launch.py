"""Becomes a worker: what must be set in the new process, and then exec.

It runs as a file of its own (``python -I -S launch.py ORDER``), imports nothing of frontd, and is gone as soon as the
app's program is loaded: the process stays, with the pid that the master knows.

Invariants
----------
* The worker ends when the master does (prctl(2), PR_SET_PDEATHSIG); that is set after the change of the user, which
  would clear it.
* Whatever cannot be done ends the process with `FAILED` and a sentence on stderr: nothing runs with less restraint than
  was asked for.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys

FAILED = 126  # exit code: it could not be made what was asked for; 127: there is no such program (as shells have it)
PR_SET_PDEATHSIG = 1


def main() -> None:
    """Do as the order says; it does not return."""
    order = json.loads(sys.argv[1])
    command = order["command"]
    try:
        for name, most in order["rlimits"].items():
            resource.setrlimit(getattr(resource, f"RLIMIT_{name.upper()}"), (most, most))
        if order["cpus"]:
            os.sched_setaffinity(0, order["cpus"])
        if order["user"]:
            name, uid, gid = order["user"]
            os.initgroups(name, gid)
            os.setgid(gid)
            os.setuid(uid)
        if order["directory"]:
            os.chdir(order["directory"])
    except (OSError, ValueError, OverflowError) as error:
        sys.stderr.write(f"cannot be started: {error}\n")
        raise SystemExit(FAILED) from None
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != order["parent"]:  # it died before the line above
        os._exit(1)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # which Python ignores, and exec would hand on
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.stderr.write(f"cannot be started: {command[0]}: {error.strerror}\n")
        raise SystemExit(127) from None


if __name__ == "__main__":
    main()
