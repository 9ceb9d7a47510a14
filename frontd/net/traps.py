"""The only two ways in which the life of a request may wait.

How it works
------------
`pipeline.serve` is one coroutine that different drivers can run.  It waits through two traps: `readable` ("go on when
this stream can be read, or at the deadline") and `task_lane` ("from here on I may await anything of trio's").  A trap
is an object yielded to the driver; what the driver throws back is either nothing or the `FrontdError` of the expired
timer.

`carry` is the task driver: it runs such a coroutine inside the current trio task and passes trio's own traps through.

Invariants
----------
* Before `task_lane` no cancel scope, nursery or foreign await may be open in the coroutine.
* A timer that expires is thrown *into* the coroutine, like `trio.Cancelled`, so that one ``finally`` serves every end.
"""

from __future__ import annotations

import math
import socket
import types
from collections.abc import Callable, Coroutine, Generator
from contextlib import suppress
from typing import Any, Protocol, TypeVar

import trio

from frontd.model.errors import FrontdError, Reason

T = TypeVar("T")


class Waitable(Protocol):
    """What `readable` can wait on."""

    @property
    def sock(self) -> socket.socket: ...


class Readable:
    """Trap: go on when `stream` can be read; at `deadline` (trio's clock, seconds) fail with `reason`."""

    __slots__ = ("deadline", "reason", "stream")

    def __init__(self, stream: Waitable, deadline: float, reason: Reason) -> None:
        self.stream = stream
        self.deadline = deadline
        self.reason = reason


class TaskLane:
    """Trap: go on in a trio task of one's own."""

    __slots__ = ()


TASK_LANE = TaskLane()


@types.coroutine
def readable(stream: Waitable, deadline: float, reason: Reason) -> Generator[Any, Any, None]:
    """Wait until `stream` can be read.  Raises `FrontdError(reason)` at `deadline`."""
    yield Readable(stream, deadline, reason)


@types.coroutine
def task_lane() -> Generator[Any, Any, None]:
    """Go on in a trio task; returns at once when already in one."""
    yield TASK_LANE


async def _wait(trap: Readable) -> None:
    with trio.CancelScope(deadline=trap.deadline) as scope:
        with suppress(trio.ClosedResourceError):  # its owner closed it: the next read says so
            await trio.lowlevel.wait_readable(trap.stream.sock)
    if scope.cancelled_caught:
        raise FrontdError(trap.reason)


@types.coroutine
def carry(coroutine: Coroutine[Any, Any, T]) -> Generator[Any, Any, T]:
    """Run `coroutine` in the current trio task, serving its traps; returns what it returns."""
    value: Any = None
    error: BaseException | None = None
    while True:
        try:
            trap = coroutine.send(value) if error is None else coroutine.throw(error)
        except StopIteration as stop:
            result: T = stop.value
            return result
        value = error = None
        try:
            if type(trap) is Readable:
                yield from _wait(trap).__await__()
            elif trap is not TASK_LANE:
                value = yield trap  # one of trio's own
        except BaseException as thrown:  # Cancelled goes into the coroutine, which cleans up and raises it again
            error = thrown


def fault_of(error: BaseException) -> Exception | None:
    """An error that came out of a plugin, as one that can be dealt with; None when it is the cancellation of this task.

    What is no `Exception` (``sys.exit``, a cancellation of another task that was kept and raised again) would else end
    tasks, and in the end the front, that have nothing to do with it.
    """
    if isinstance(error, Exception):
        return error
    group = isinstance(error, BaseExceptionGroup) and error.subgroup(trio.Cancelled) is not None
    if (group or isinstance(error, trio.Cancelled)) and trio.current_effective_deadline() == -math.inf:
        return None
    return fault_at_once(error)


def fault_at_once(error: BaseException) -> Exception:
    """`fault_of` for a plain call: nothing waits in it, so no cancellation in it is of this task."""
    if isinstance(error, Exception):
        return error
    fault = RuntimeError(f"{type(error).__name__} was raised where nothing was cancelled or ended")
    fault.__cause__ = error
    return fault


async def carry_task(function: Callable[..., Coroutine[Any, Any, object]], *args: object) -> None:
    """Run a coroutine function that waits through traps as the body of a task of its own."""
    await carry(function(*args))
