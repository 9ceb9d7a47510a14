"""A trio run in a thread of its own, on a clock that stands still, driven by plain calls.

How it works
------------
The test's thread hands a function to the loop's thread and waits for its result, at most `patience` seconds of real
time.  `settle` waits until every task is blocked and no worker thread is busy: then nothing can happen any more but by
the next call, so what a test asserts does not depend on timing.  The clock moves by `advance` alone, from one deadline
to the next, with everything settled in between.

Invariants
----------
* Everything of trio's is touched in the loop's thread only; what passes between the threads are calls and results.
* A call ends: with its result, with the exception that ended the loop, or with a `TimeoutError` that names the lines
  at which plugins wait or block.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import suppress
from types import FrameType
from typing import Any, TypeVar

import trio
import trio.testing

from frontd.net.traps import carry

T = TypeVar("T")

THREAD_TIME = 1.0  # s of real time that a busy worker thread is waited for
BRIEFLY = 0.02  # s of real time, when one was waited for in vain
MOST_STEPS = 1000  # of one `advance`: a day would otherwise be a step for each second, since pools look around so often
LOOK_TIME = 1.0  # s of real time in which a loop that is not blocked says where its tasks wait
_OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_TRIOS = os.path.dirname(os.path.abspath(trio.__file__)) + os.sep
_PYTHONS = os.path.dirname(os.path.abspath(threading.__file__)) + os.sep


class Loop:
    """The loop and its thread.  `patience` is in seconds of real time."""

    def __init__(self, patience: float) -> None:
        self.patience = patience
        self.clock = trio.testing.MockClock()
        self._has_busy_thread = False
        self._is_blocked = False
        self._ended: Future[None] = Future()
        self._begun: Future[tuple[trio.lowlevel.TrioToken, trio.Nursery]] = Future()
        self._thread = threading.Thread(target=self._run, name="frontd-testing", daemon=True)
        self._thread.start()
        self._wait(self._begun, patience)
        self._token, self.nursery = self._begun.result(0)

    def _run(self) -> None:
        try:
            trio.run(self._main, clock=self.clock)
        except BaseException as error:
            self._ended.set_exception(alone(error))
        else:
            self._ended.set_result(None)

    async def _main(self) -> None:
        async with trio.open_nursery() as nursery:
            self._begun.set_result((trio.lowlevel.current_trio_token(), nursery))
            await trio.sleep_forever()

    # ------------------------------------------------------------------ calls

    def call(self, function: Callable[..., Awaitable[T]], *args: object) -> T:
        """What the coroutine function returns, run as a task of the loop; what it raises is raised here.

        Raises `TimeoutError` after `patience` seconds of real time, and whatever ended the loop.
        """
        answer = self._begin(function, *args)
        self._wait(answer, self.patience)
        if not answer.done():
            raise TimeoutError(self.stuck("the site did not come to rest"))
        return answer.result()

    def _begin(self, function: Callable[..., Awaitable[T]], *args: object) -> Future[T]:
        answer: Future[T] = Future()

        async def run() -> None:
            try:
                answer.set_result(await function(*args))
            except Exception as error:
                answer.set_exception(alone(error))

        self._raise_if_ended()
        try:
            self._token.run_sync_soon(lambda: self.nursery.start_soon(run))
        except trio.RunFinishedError:
            self._wait(answer, self.patience)
        return answer

    def _wait(self, answer: Future[T], seconds: float) -> None:
        """Wait for `answer` for at most `seconds` of real time.  Raises whatever ended the loop meanwhile."""
        futures: list[Future[Any]] = [answer, self._ended]
        wait(futures, seconds, FIRST_COMPLETED)
        if not answer.done():
            self._raise_if_ended()

    def _raise_if_ended(self) -> None:
        if self._ended.done():
            self._ended.result()
            raise RuntimeError("the site of this test has been closed")

    def run(self, function: Callable[..., T], *args: object) -> T:
        """The same for a plain function."""

        async def once() -> T:
            return function(*args)

        return self.call(once)

    # ------------------------------------------------------------------ rest, and time

    def settle(self) -> None:
        """Wait until nothing more can happen by itself.

        A worker thread that stays busy for `THREAD_TIME` is not waited for, and the next time only briefly: the `run`
        of a plugin may keep one for ever.
        """
        scope = trio.CancelScope()
        rest = self._begin(_at_rest, scope)
        self._wait(rest, BRIEFLY if self._has_busy_thread else min(THREAD_TIME, self.patience))
        self._has_busy_thread = not rest.done()
        if self._has_busy_thread:
            self.run(scope.cancel)
            self.call(trio.testing.wait_all_tasks_blocked)

    def advance(self, seconds: float) -> None:
        """Move the clock by `seconds`, from deadline to deadline; steps are a thousandth of `seconds` at least.

        Raises `ValueError` for a negative time.
        """
        if seconds < 0:
            raise ValueError("the clock goes forward only")
        least, left = seconds / MOST_STEPS, seconds
        self.settle()
        while left > 0:
            left -= self.call(self._jump, least, left)
            self.settle()

    async def _jump(self, least: float, most: float) -> float:
        """Jump to the next deadline, but by `least` seconds at least; returns by how many."""
        step = min(most, max(await _to_next_deadline(), least))
        self.clock.jump(step)
        return step

    @property
    def now(self) -> float:
        """Seconds on the clock, which began at 0."""
        return float(self.clock.current_time())

    def step(self, most: float) -> float:
        """Move the clock to the next deadline, by at most `most` seconds; returns by how many."""
        seconds = min(self.call(_to_next_deadline), most)
        self.advance(seconds)
        return seconds

    # ------------------------------------------------------------------ the end

    def close(self) -> None:
        """Cancel everything and wait for the thread.  Raises what ended the loop.

        A loop that is blocked for longer than that is left to its thread, which is a daemon.
        """
        if not self._ended.done():
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self.nursery.cancel_scope.cancel)
        self._thread.join(min(LOOK_TIME, self.patience) if self._is_blocked else self.patience)
        if self._ended.done():
            self._ended.result()
        elif not self._is_blocked:  # else the test has been told before
            raise TimeoutError(self.stuck("the site did not end"))

    # ------------------------------------------------------------------ saying where it hangs

    def stuck(self, what: str) -> str:
        """`what` did not happen in time, and the lines outside of frontd where tasks wait, or the loop is blocked."""
        lines = [f"{what} within {self.patience:g} s of real time"]
        waiting: Future[list[str]] = Future()
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(lambda: waiting.set_result(_waiting_places()))
            wait([waiting], min(LOOK_TIME, self.patience))
        if waiting.done():
            lines += [f"  a task waits at {place}" for place in waiting.result()]
            lines.append("  (the clock of the test stands still; site.clock.advance(seconds) moves it)")
        elif (frame := sys._current_frames().get(self._thread.ident or 0)) is not None:
            self._is_blocked = True
            lines.append(f"  the loop is blocked at {_blocked_place(frame)}")
            lines.append("  (a hook that blocks needs @frontd.blocking, or trio's own functions)")
        return "\n".join(lines)


async def _at_rest(scope: trio.CancelScope) -> None:
    """Wait until all tasks are blocked and no worker thread is busy."""
    quiet = 0
    with scope:
        while quiet < 2:  # twice: a thread may have ended, and its task have begun another, while this one looked
            await trio.testing.wait_all_tasks_blocked()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.testing.wait_all_threads_completed)
                await trio.testing.wait_all_tasks_blocked()
                quiet = 0 if nursery.child_tasks else quiet + 1


async def _to_next_deadline() -> float:
    return max(trio.lowlevel.current_statistics().seconds_to_next_deadline, 0.0)


def alone(error: BaseException) -> BaseException:
    """What a nursery raised, without the groups around a single exception."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


# ---------------------------------------------------------------------------------------------------- where tasks wait


def _waiting_places() -> list[str]:
    """The innermost lines of other people's code at which tasks wait; called in the loop."""
    found: dict[str, None] = {}
    tasks = [trio.lowlevel.current_root_task()]
    while tasks:
        task = tasks.pop()
        if task is None:
            continue
        tasks += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
        places = [_place(frame) for frame in _frames(task.coro) if _is_foreign(frame)]
        if places:
            found[places[-1]] = None
    return list(found)


def _frames(coroutine: Any) -> Iterator[FrameType]:
    """The frames of a suspended coroutine, outermost first, also through `carry`, which sends by hand."""
    while coroutine is not None:
        frame = getattr(coroutine, "cr_frame", None) or getattr(coroutine, "gi_frame", None)
        if frame is None:
            return
        yield frame
        if frame.f_code is carry.__code__:
            coroutine = frame.f_locals.get("coroutine")
        else:
            coroutine = getattr(coroutine, "cr_await", None) or getattr(coroutine, "gi_yieldfrom", None)


def _blocked_place(frame: FrameType) -> str:
    innermost: FrameType | None = frame
    while innermost is not None and not _is_foreign(innermost):
        innermost = innermost.f_back
    return _place(innermost or frame)


def _is_foreign(frame: FrameType) -> bool:
    path = frame.f_code.co_filename
    installed = "site-packages" in path or "dist-packages" in path  # which stands inside Python's own directory
    return not path.startswith((_OURS, _TRIOS, "<")) and (installed or not path.startswith(_PYTHONS))


def _place(frame: FrameType) -> str:
    return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}"
