"""What a reload is, whoever carries it out: read, try, and say what came of it.

Invariant: whatever goes wrong, the world that serves goes on and every error is in the report.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from frontd.config.load import Loaded
from frontd.config.model import Config
from frontd.config.problems import ConfigProblems
from frontd.processes.runtime import BuildProblem

READ_TIME = 60.0  # s for the files of a configuration
FIXED = ("control", "health", "state_dir", "fronts")  # nouns whose change needs a restart


@dataclass(slots=True)
class ReloadReport:
    """What the last reload did: when (s since the epoch), what changed, or every error."""

    at: float
    changed: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether the new world serves."""
        return not self.errors

    def told(self, generation: int) -> str:
        """The report as a line of the log; `generation` is what serves now."""
        if not self.ok:
            return f"reload refused, the old configuration stays: {'; '.join(self.errors)}"
        return f"reloaded: generation {generation}: {', '.join(self.changed) or 'unchanged'}"


async def attempt(
    read: Callable[[], Loaded],
    replace: Callable[[Loaded], Awaitable[list[str]]],
    fault: Callable[[str, Exception], None],
    stale_files: Callable[[], Sequence[Path]] | None,
) -> ReloadReport:
    """Read and replace; never raises what was wrong with it.

    `read` runs in a thread and may raise `ConfigProblems`; `replace` puts a new world in place and says what changed;
    `fault` is told of faults of our own; `stale_files` are those of plugins that are other than what was loaded.
    """
    report = ReloadReport(time.time())
    try:
        with trio.fail_after(READ_TIME):  # a mount that hangs must not hold later reloads, or the end
            loaded = await trio.to_thread.run_sync(read, abandon_on_cancel=True)
        report.warnings = [str(problem) for problem in loaded.warnings]
        report.changed = await replace(loaded)
    except ConfigProblems as error:
        report.errors = [str(problem) for problem in error.problems if problem.severity == "error"]
    except trio.TooSlowError:
        report.errors = [f"the configuration could not be read within {READ_TIME:g} s"]
    except (BuildProblem, OSError) as error:
        report.errors = [str(error)]
    except Exception as error:  # a fault of ours must not take the running world along
        report.errors = [f"{type(error).__name__}: {error}"]
        fault("reload", error)
    if stale_files is not None:
        stale = await trio.to_thread.run_sync(stale_files, abandon_on_cancel=True)
        report.warnings += [f"plugin file {one} has changed on disk: 'frontd upgrade' loads it" for one in stale]
    return report


def fixed_of(config: Config) -> dict[str, Any]:
    """What only a restart changes, as JSON has it."""
    return config.model_dump(mode="json", include=set(FIXED))


def changed_fixed(old: object, new: object) -> str:
    """The first noun of `fixed_of` that differs between two versions of the code; empty: none.  A setting that only one
    of them knows is no difference."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return "" if old == new else "it"
    return next((key for key in old if key in new and changed_fixed(old[key], new[key])), "")


def check_fixed(old: Config, new: Config) -> None:
    """Refuse what a reload cannot change.  Raises `BuildProblem`."""
    for noun in FIXED:
        if getattr(old, noun) != getattr(new, noun):
            raise BuildProblem(f"{noun} cannot be changed by a reload: restart frontd")
