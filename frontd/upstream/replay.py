"""What a front keeps of request bodies, for one pool, so that a request can be sent again.

Invariant: `used` is the sum of what was taken and not given back, and never more than `limit`.
"""

from __future__ import annotations


class ReplayMemory:
    """`limit` bytes for all exchanges of a pool in this front, of which `used` are taken.

    `missed` counts the requests for which there was no room: they are served, and are not sent again.
    """

    __slots__ = ("limit", "missed", "used")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self.missed = 0

    def __repr__(self) -> str:
        return f"<ReplayMemory {self.used} of {self.limit} bytes>"

    def take(self, size: int) -> bool:
        """Take `size` bytes, if they are free."""
        if self.used + size > self.limit:
            return False
        self.used += size
        return True

    def give(self, size: int) -> None:
        """Return what was taken."""
        self.used -= size
