"""A terminal that shows one page again and again: plain ANSI (ECMA-48), no dependency.

Invariants
----------
* However it ends, the terminal is left as it was: the other screen, the cursor, the way keys are read.
* No line is longer than the terminal is wide, and no page longer than it is high, whatever its size is now.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

ENTER, LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"  # the other screen, without a cursor
HOME, REST_OF_LINE, REST_OF_PAGE = "\x1b[H", "\x1b[K", "\x1b[J"
BOLD, PLAIN = "\x1b[1m", "\x1b[0m"
USUAL = (80, 24)  # columns and lines of a terminal that does not say


class Screen:
    """The terminal of this process; made by `opened`."""

    def __init__(self, keys: int | None, woken: int) -> None:
        self._keys = keys  # where keys come from, if from anywhere
        self._woken = woken

    @property
    def size(self) -> tuple[int, int]:
        """Columns and lines."""
        try:
            columns, lines = os.get_terminal_size(sys.stdout.fileno())
        except OSError:
            return USUAL
        return columns or USUAL[0], lines or USUAL[1]

    def show(self, page: Sequence[str], heads: Sequence[int] = ()) -> None:
        """Put `page` in place of what stands there; the lines number `heads` are bold."""
        columns, lines = self.size
        shown = [line[:columns] for line in page[:lines]]
        text = [f"{BOLD}{line}{PLAIN}" if at in heads else line for at, line in enumerate(shown)]
        sys.stdout.write(HOME + (REST_OF_LINE + "\n").join(text) + REST_OF_LINE + REST_OF_PAGE)
        sys.stdout.flush()

    def wait(self, until: float, redraw: Callable[[], None]) -> bool:
        """Wait until `until` (`time.monotonic`); True when somebody wants to end it.  `redraw` is called when the
        terminal has another size."""
        while (left := until - time.monotonic()) > 0:
            watched = [self._woken, *([self._keys] if self._keys is not None else [])]
            ready, _, _ = select.select(watched, [], [], left)
            if self._woken in ready:
                os.read(self._woken, 4096)
                redraw()
            if self._keys in ready:
                assert self._keys is not None
                pressed = os.read(self._keys, 64)
                if not pressed:
                    self._keys = None
                elif set(pressed) & set(b"qQ\x03"):
                    return True
        return False


@contextlib.contextmanager
def opened() -> Iterator[Screen]:
    """The screen, until the block ends."""
    keys = sys.stdin.fileno() if sys.stdin.isatty() else None
    before = termios.tcgetattr(keys) if keys is not None else None
    read, write = os.pipe()
    os.set_blocking(write, False)
    previous = {
        signal.SIGWINCH: signal.signal(signal.SIGWINCH, lambda *_: _wake(write)),
        signal.SIGTERM: signal.signal(signal.SIGTERM, _end),
    }
    try:
        if keys is not None:
            tty.setcbreak(keys)
        sys.stdout.write(ENTER)
        yield Screen(keys, read)
    finally:
        sys.stdout.write(LEAVE)
        sys.stdout.flush()
        if keys is not None and before is not None:
            termios.tcsetattr(keys, termios.TCSADRAIN, before)
        for number, handler in previous.items():
            signal.signal(number, handler)
        os.close(read)
        os.close(write)


def _wake(write: int) -> None:
    with contextlib.suppress(BlockingIOError):  # it has been told often enough
        os.write(write, b"x")


def _end(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)
