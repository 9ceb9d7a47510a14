"""The fixture of the domain leaves nothing behind, and a play that fails says so."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tests.windows.ad import NAMESPACES, ROOT, Domain, missing, needs

# In the place of ad.sh: a daemon, and the process that plays
SETUP = 'sleep 1000 </dev/null >/dev/null 2>&1 & exec "$0" -m tests.windows.inside'
OWNER = f"""
import subprocess, sys
command = [*{NAMESPACES!r}, "bash", "-c", {SETUP!r}, sys.executable]
it = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
assert it.stdout.readline() == b"ready\\n"
print(it.pid, flush=True)
it.wait()
"""


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_everything_ends_with_a_session_that_is_killed() -> None:
    needs(missing())
    owner = subprocess.Popen([sys.executable, "-c", OWNER], cwd=ROOT, stdout=subprocess.PIPE)
    assert owner.stdout is not None
    with closing(owner.stdout):
        unshare = int(owner.stdout.readline())
        (first,) = children(unshare)
        (daemon,) = children(first)
        ends = [os.pidfd_open(pid) for pid in (first, daemon)]
        owner.kill()
        owner.wait()
        try:
            for end in ends:
                assert select.select([end], [], [], 10)[0]
        finally:
            for end in ends:
                os.close(end)


def fails(word: str) -> None:
    raise ValueError(word)


async def forgets() -> None:
    open(os.devnull)  # noqa: ASYNC230, SIM115  that is the point


def test_what_fails_in_a_play_fails_the_test(domain: Domain) -> None:
    with pytest.raises(AssertionError, match=r"(?s)in fails.*ValueError: of the play"):
        domain.play(fails, word="of the play")
    with pytest.raises(AssertionError, match="ResourceWarning: unclosed file"):
        domain.play(forgets)
    assert domain.play(os.path.basename, p="/a/b") == "b"  # and nothing of it is left
