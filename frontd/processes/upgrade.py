"""An upgrade: fronts with the code that is on the disk now in the place of those that serve.

How it works
------------
Every process is started by exec, so a new one has the code of frontd, of its packages and of plugins as it is then.

    control                            reading                master                    new fronts
    starts it ────────────────────▶    reads, packs
                      world, words ◀──
    beside (world) ─────────────────────────────────────▶     starts N ────────────▶    build the world, and wait
                                                                         serve ◀──
    promote ────────────────────────────────────────────▶     commits;  accept ────▶    serve
                                                              the old ones: drain
    retire, and ends ───────────────────────────────────▶     starts a new control

Until ``promote`` nothing has changed for any client: on any *no*, on a front that ends, and after `START_TIME`, what
was begun is ended, and the old fronts serve on.  ``promote`` is one step of the master, and control may die before or
after it at any time.  The old fronts drain as at the end of frontd, with `PATIENCE` for idle connections.

The master itself keeps the code it was started with.  It is small and does not look into worlds; what it says to the
others is numbered (`frontd.processes.channel.PROTOCOL`), and code of another protocol is refused here, by name.

Invariants
----------
* All new fronts serve, or none.
* A reload and an upgrade wait for each other; a second upgrade is refused while one is under way and while fronts of
  the one before drain: there are two rows in the shared memory for each front, and twice the memory in use.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import trio

from frontd.processes.channel import next_message, other_code, pair
from frontd.processes.children import spawn
from frontd.processes.family import MASTER_TIME, Family, closing_files
from frontd.processes.fronts import COMING, LEAVING, SERVING
from frontd.processes.line import Gone
from frontd.processes.reload import READ_TIME, changed_fixed, fixed_of
from frontd.processes.runtime import BuildProblem

START_TIME = 90.0  # s for all new fronts to build their world; each plugin has 30
PATIENCE = 5.0  # s for idle connections of old fronts: whoever asks before is answered, and told to connect anew
END_TIME = 10.0  # s for processes that end, or were killed, to be gone
MODULE = "frontd.processes.reading_process"

Outcome = dict[str, Any]


async def upgrade(family: Family, wanted: dict[str, Any], protocol: int) -> Outcome:
    """Replace all fronts; never raises what was wrong with it.

    `wanted` is what `frontd serve` was asked for, `protocol` the master's.  The outcome has ``errors`` when the old
    fronts serve on, and ``now: False`` when it is not the time for an upgrade; else ``generation``, ``warnings``,
    ``plugins`` (files that were other than what was loaded), ``fronts`` and ``draining`` (index and pid), and ``drain``
    (s).
    """
    if refused := _standing_in_the_way(family, wanted):
        return {"errors": [refused], "now": False}
    family.is_upgrading = True
    try:
        async with family.reloading:
            outcome = await _upgrade(family, wanted, protocol)
    except (BuildProblem, OSError) as error:
        outcome = {"errors": [str(error)]}
    except (Gone, trio.TooSlowError):
        outcome = {"errors": ["the master does not answer"]}
    finally:
        family.is_upgrading = False
    _tell(family, outcome)
    if "errors" not in outcome:
        family.upgraded.set()
    return outcome


def _standing_in_the_way(family: Family, wanted: dict[str, Any]) -> str:
    if wanted["config"] == "-":
        return "this frontd was started without a file to read again"
    if family.state != "serving":
        return "frontd is shutting down" if family.state == "draining" else "frontd is still starting"
    if family.is_upgrading or family.upgraded.is_set():
        return "an upgrade is under way"
    if draining := family.of(LEAVING):
        who = ", ".join(f"front {one.index} (pid {one.pid})" for one in draining)
        return f"fronts of the upgrade before still drain: {who}; try again when they have ended"
    return ""


def _tell(family: Family, outcome: Outcome) -> None:
    """The outcome as a line of the log."""
    if "errors" in outcome:
        family.remark(f"upgrade refused, the old fronts serve on: {'; '.join(outcome['errors'])}")
        return
    new, old = (", ".join(str(one["index"]) for one in outcome[key]) for key in ("fronts", "draining"))
    family.remark(f"upgraded: generation {outcome['generation']}: fronts {new} serve, fronts {old} drain")


async def _upgrade(family: Family, wanted: dict[str, Any], protocol: int) -> Outcome:
    stale = [str(path) for path, _ in await trio.to_thread.run_sync(family.discovery.changed, abandon_on_cancel=True)]
    with _file_of(*await _read(wanted)) as (said, world):
        if said["protocol"] != protocol:
            raise BuildProblem(other_code(said["protocol"], protocol))
        if noun := changed_fixed(fixed_of(family.config), said["fixed"]):
            raise BuildProblem(f"{noun} cannot be changed by an upgrade: restart frontd")
        generation, drain = family.generation + 1, family.config.timeouts.drain
        try:
            with closing_files(await family.bind(said["listen"])):
                await _start(family, said, world, generation)
            before, new = family.serving(), family.of(COMING)
            answer = await family.master.ask({"do": "promote", "patience": PATIENCE}, within=MASTER_TIME)
            if "error" in answer.data:
                raise BuildProblem(answer.data["error"])
        except BaseException:
            with trio.CancelScope(shield=True):
                await _abandon(family)
            raise
    for member in family.members.values():
        member.role = SERVING if member.role == COMING else LEAVING
    family.generation = generation
    family.master.tell({"do": "keep"})
    return {
        "generation": generation, "warnings": said["warnings"], "plugins": stale, "drain": drain,
        "fronts": [{"index": one.index, "pid": one.pid} for one in new],
        "draining": [{"index": one.index, "pid": one.pid} for one in before],
    }  # fmt: skip


@contextmanager
def _file_of(said: Outcome, world: int) -> Iterator[tuple[Outcome, int]]:
    try:
        yield said, world
    finally:
        os.close(world)


async def _read(wanted: dict[str, Any]) -> tuple[Outcome, int]:
    """What the code on the disk makes of the configuration.  Raises `BuildProblem` and `OSError`."""
    ours, theirs = pair()
    with ours:
        with theirs:
            arguments = [str(theirs.fileno()), str(os.getpid()), json.dumps(wanted)]
            # in this thread: the kernel ends the child when the thread ends that has started it
            child = spawn(MODULE, arguments, [theirs.fileno()])
        patience = 0.0
        try:
            with trio.fail_after(READ_TIME):
                message = await next_message(ours)
            patience = 0.0 if message else END_TIME  # without a word: its exit code is all that is known
        except trio.TooSlowError:
            raise BuildProblem(f"the configuration could not be read within {READ_TIME:g} s") from None
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(_reap, child, patience)
    if message is None:
        raise BuildProblem(f"the code on the disk cannot read the configuration (exit code {child.returncode})")
    if "errors" in message.data or not message.files:
        message.close()
        raise BuildProblem("\n".join(message.data.get("errors", ["too many files are open"])))
    return message.data, message.files.pop()


def _reap(child: subprocess.Popen[bytes], patience: float) -> None:
    """End a process that is not needed any more, should it not have ended within `patience` (s)."""
    with suppress(subprocess.TimeoutExpired):
        child.wait(patience)
    child.kill()
    child.wait()


async def _start(family: Family, said: Outcome, world: int, generation: int) -> None:
    """Have the new fronts started, and wait until all of them could serve.  Raises `BuildProblem`."""
    family.refused = ""
    data = {"do": "beside", "generation": generation, "drain": said["drain"], "farewell": said["farewell"]}
    data["keys"] = [key for key, *_ in said["listen"]]
    answer = await family.master.ask(data, [world], within=MASTER_TIME)
    if "error" in answer.data:
        raise BuildProblem(answer.data["error"])
    with trio.move_on_after(START_TIME):
        while not family.refused and sum(bool(one.generation) for one in family.of(COMING)) < family.count:
            await family.news.wait()
            if family.state == "draining":
                raise BuildProblem("frontd is shutting down")
        if not family.refused:
            return
    raise BuildProblem(family.refused or f"the new fronts were not ready within {START_TIME:g} s")


async def _abandon(family: Family) -> None:
    """End what was begun."""
    try:
        await family.master.ask({"do": "abandon"}, within=MASTER_TIME)
        family.master.tell({"do": "keep"})
    except (Gone, trio.TooSlowError):
        return
    with trio.move_on_after(END_TIME):
        while family.of(COMING):
            await family.news.wait()
