"""The only ways in which the life of a request may wait.

How it works
------------
`pipeline.serve` is one coroutine that different drivers can run.  It waits through three traps: `readable` ("go on when
this stream can be read, or at the deadline"), `others_first` ("there is more to do, after everybody else's turn") and
`task_lane` ("from here on I may await anything of trio's").  A trap is an object yielded to the driver: the stream
itself, an `OthersFirst`, or `TASK_LANE`.  What the driver throws back is nothing, or the `FrontdError` of the expired
timer, or `Ended`.

`carry` is the task driver: it runs such a coroutine inside the current trio task and passes trio's own traps through.
The other driver is `lanes.reactor`.

Invariants
----------
* Before `task_lane` no cancel scope, nursery or foreign await may be open in the coroutine.
* A stream has one reader at a time: who waits on it writes its deadline and reason on it.
* A timer that expires is thrown *into* the coroutine, like `trio.Cancelled`, so that one ``finally`` serves every end.
"""

from __future__ import annotations

import math
import socket
import types
from collections.abc import Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar, cast

import trio

from frontd.model.errors import FrontdError, Reason

T = TypeVar("T")


class Waitable:
    """What `readable` can wait on, and the trap itself: go on when `sock` can be read; at `deadline` (trio's clock,
    seconds) fail with `reason`."""

    __slots__ = ("deadline", "reason", "sock")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.deadline = math.inf
        self.reason = Reason.Internal

    def __await__(self) -> Generator[Any, Any, None]:
        # an iterator of one: what a generator does, at a third of its price
        return cast("Generator[Any, Any, None]", iter((self,)))

    def leave_reactor(self) -> None:
        """A task is going to wait on it: nobody else may be told of its bytes."""


class _Clock:
    """Trio's clock.  `now` is what a running front has found out: asking trio for its clock each time costs twice as
    much as asking the clock."""

    __slots__ = ("now",)

    def __init__(self) -> None:
        self.now: Callable[[], float] = trio.current_time

    @contextmanager
    def found(self) -> Iterator[None]:
        """While one run of trio goes on."""
        self.now = trio.lowlevel.current_clock().current_time
        try:
            yield
        finally:
            self.now = trio.current_time


clock = _Clock()


class TaskLane:
    """Trap: go on in a trio task of one's own."""

    __slots__ = ()


TASK_LANE = TaskLane()


class OthersFirst:
    """Trap: go on when the others had their turn.  Meanwhile the coroutine is found as if it waited on `stream`."""

    __slots__ = ("stream",)

    def __init__(self, stream: Waitable) -> None:
        self.stream = stream


class Ended(BaseException):
    """The driver ends a coroutine outside of any task: its client has left, or the front ends."""


def readable(stream: Waitable, deadline: float, reason: Reason) -> Waitable:
    """To be awaited: wait until `stream` can be read.  Raises `FrontdError(reason)` at `deadline`."""
    stream.deadline = deadline
    stream.reason = reason
    return stream


@types.coroutine
def task_lane() -> Generator[Any, Any, None]:
    """Go on in a trio task; returns at once when already in one."""
    yield TASK_LANE


@types.coroutine
def others_first(stream: Waitable) -> Generator[Any, Any, None]:
    """Leave the others their turn, in the middle of reading `stream`."""
    yield OthersFirst(stream)


async def _turn() -> None:
    await trio.lowlevel.checkpoint()


async def _wait(stream: Waitable) -> None:
    stream.leave_reactor()
    with trio.CancelScope(deadline=stream.deadline) as scope:
        with suppress(trio.ClosedResourceError):  # its owner closed it: the next read says so
            await trio.lowlevel.wait_readable(stream.sock)
    if scope.cancelled_caught:
        raise FrontdError(stream.reason)


@types.coroutine
def carry(coroutine: Coroutine[Any, Any, T]) -> Generator[Any, Any, T]:
    """Run `coroutine` in the current trio task, serving its traps; returns what it returns."""
    value: Any = None
    error: BaseException | None = None
    trap: Any = None
    while True:
        if trap is not None:
            value = error = None
            try:
                if isinstance(trap, Waitable):
                    yield from _wait(trap).__await__()
                elif isinstance(trap, OthersFirst):
                    yield from _turn().__await__()
                elif trap is not TASK_LANE:
                    value = yield trap  # one of trio's own
            except BaseException as thrown:  # Cancelled goes into the coroutine, which cleans up and raises it again
                error = thrown
        try:
            trap = coroutine.send(value) if error is None else coroutine.throw(error)
        except StopIteration as stop:
            result: T = stop.value
            return result
        except BaseException:
            error = None  # its traceback leads back to this frame
            raise


def fault_of(error: BaseException) -> Exception | None:
    """An error that came out of a plugin, as one that can be dealt with; None when it is the end of this coroutine.

    What is no `Exception` (``sys.exit``, a cancellation of another task that was kept and raised again) would else end
    tasks, and in the end the front, that have nothing to do with it.
    """
    if isinstance(error, Exception):
        return error
    if isinstance(error, Ended):
        return None
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
