"""The memory that plugins of one process share: least recently used entries leave when its bytes run out."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from typing import Any

# Bytes counted for each entry beside what its owner says: its place in the map, 165 to 375 since a map grows by
# doubling, and 135 for a key of a few short texts.  Measured with tracemalloc on Python 3.11.
ENTRY_COST = 512


class MemoryStore:
    """A bounded map.  `limit` and `used` are in bytes; what an entry costs is said by who puts it in.

    Keys are chosen by plugins; by convention a tuple that begins with the plugin's name.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._entries: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Hashable]:
        return iter(self._entries)

    def get(self, key: Hashable) -> Any:
        """The value of `key`, which is now the most recently used; None when there is none."""
        found = self._entries.get(key)
        if found is None:
            return None
        self._entries.move_to_end(key)
        return found[0]

    def put(self, key: Hashable, value: Any, size: int) -> bool:
        """Keep `value`, which takes `size` bytes; False when it is larger than the whole store."""
        self.remove(key)
        cost = size + ENTRY_COST
        if cost > self.limit:
            return False
        self._entries[key] = value, cost
        self.used += cost
        self._shrink()
        return True

    def remove(self, key: Hashable) -> None:
        """Forget `key`; a key that is not there is fine."""
        found = self._entries.pop(key, None)
        if found is not None:
            self.used -= found[1]

    def resize(self, limit: int) -> None:
        """Another limit from now on."""
        self.limit = limit
        self._shrink()

    def _shrink(self) -> None:
        while self.used > self.limit:
            _, (_, cost) = self._entries.popitem(last=False)
            self.used -= cost
