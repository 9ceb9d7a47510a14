"""What a driver knows of a connection: the reactor, or the task that stands in for it."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, Protocol

import trio

from frontd.net.streams import Owner, Stream

Life = Coroutine[Any, Any, None]


class Driven(Owner, Protocol):
    """A connection as its driver sees it.

    `coroutine` is what is being done (None: it is idle), `parked` what that waits for, `scope` that of the task it runs
    in (None: it runs in the reactor); `more`: its turn ended for the sake of others, and goes on; `deadline` (trio's
    clock, s) is that of the wait it is in, `due` when its bucket of the wheel begins (infinite: it is in none).
    """

    coroutine: Life | None
    more: bool
    parked: Stream | None
    scope: trio.CancelScope | None
    deadline: float
    due: float
    stream: Stream

    def next_turn(self) -> Life:
        """What to do with bytes that came while it was idle."""

    def at_rest(self) -> float:
        """It has nothing to do: until when it may be idle (trio's clock, s)."""

    def expired(self) -> Life:
        """What to do when it was idle for too long."""

    def finish(self) -> None:
        """It is over; may be called more than once."""

    @property
    def is_gone(self) -> bool:
        """Whether its client, whose end was announced, has left in the middle of an exchange."""
