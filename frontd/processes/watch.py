"""Two eyes on plugins: files that have changed on disk, and a plugin that blocks the loop.

How it works
------------
The loop notes the time every `BEAT` seconds; a thread glances at it.  When the last note is older than `BEAT` and
`BLOCKED` together, the loop has been in the middle of something for longer than `BLOCKED`, and the stack of its thread
says of what: the innermost function that belongs to a plugin names the culprit.  Nothing of this is on the way of a
request, and without plugins there is hardly anything of it at all.

Invariants
----------
* One block is told once, however long it lasts, and then again when it is over, with how long it took.
* The thread is a daemon that only reads frames and writes to the log, which takes lines from any thread.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import trio

from frontd.pipeline.discovery import Discovery
from frontd.pipeline.plugin import Plugin, members

BEAT = 0.025  # s
BLOCKED = 0.1  # s
GLANCE = 0.05  # s
IDLE = 1.0  # s instead of `BEAT` where there are no plugins
LOOK = 2.0  # s between two looks at files; a plugin author's save is told before they have switched windows


async def watch_files(
    discovery: Discovery, remark: Callable[[str], None], advice: str = "'frontd upgrade' loads it"
) -> None:
    """Remark once for each change of a loaded file: a process loads code once."""
    told: dict[Path, bytes] = {}
    while True:
        # in a thread: a file may have become something that blocks, or lie on a drive that does not answer
        for path, digest in await trio.to_thread.run_sync(discovery.changed, abandon_on_cancel=True):
            if told.get(path) != digest:
                told[path] = digest
                remark(f"plugin file {path} has changed on disk: {advice}")
        await trio.sleep(LOOK)


class Watchdog:
    """Names the plugin that blocks the loop.  Made and run in the loop's thread."""

    def __init__(self, plugins: Callable[[], Sequence[Plugin]], remark: Callable[[str], None]) -> None:
        self._plugins = plugins
        self._remark = remark
        self._beat = time.monotonic()
        self._pause = BEAT  # until the next one
        self._over = threading.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Beat until cancelled."""
        with self._thread():
            task_status.started()
            while True:
                self._pause = BEAT if self._plugins() else IDLE
                self._beat = time.monotonic()
                await trio.sleep(self._pause)

    @contextmanager
    def _thread(self) -> Iterator[None]:
        loop = threading.get_ident()
        thread = threading.Thread(target=self._watch, args=(loop,), name="frontd plugin watchdog", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join(1.0)

    def _watch(self, loop: int) -> None:
        while not self._over.wait(max(GLANCE, self._pause)):
            beat = self._beat
            late = beat + self._pause + BLOCKED - time.monotonic()  # until then it may have begun later
            if late > BLOCKED - GLANCE or self._over.wait(max(0.0, late)) or self._beat != beat:
                continue
            culprit, stack = self._culprit(sys._current_frames().get(loop))
            if culprit:
                self._remark(f"{culprit} blocks the loop for more than {BLOCKED * 1000:.0f} ms; it stands here:")
                for line in "".join(stack).splitlines():
                    self._remark(line)
            while self._beat == beat and not self._over.wait(BEAT):
                pass
            if culprit:
                self._remark(f"{culprit} let go of the loop after {(self._beat - beat) * 1000:.0f} ms")

    def _culprit(self, frame: FrameType | None) -> tuple[str, list[str]]:
        """The plugin whose function is innermost on the stack, as ``plugin NAME.hook``, and the stack from there on;
        empty: none."""
        by_code = {
            code: f"plugin {plugin.name}.{name}"
            for plugin in self._plugins()
            for name, code in _functions(type(plugin))
        }
        top, depth = frame, 1
        while frame is not None:
            if frame.f_code in by_code:
                return by_code[frame.f_code], traceback.format_stack(top, limit=depth)
            frame, depth = frame.f_back, depth + 1
        return "", []


def _functions(plugin: type[Plugin]) -> Iterator[tuple[str, object]]:
    for _, name, value in members(plugin):
        code = getattr(value, "__code__", None)
        if code is not None:  # not hooks alone: what a hook returns to be waited for may be of another function
            yield name, code
