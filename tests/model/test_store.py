"""The memory that plugins share: what is in it, what leaves it first, and that its bytes are bytes."""

from __future__ import annotations

import tracemalloc
from collections import OrderedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontd.pipeline.store import ENTRY_COST, MemoryStore


def room_for(entries: int, size: int = 0) -> MemoryStore:
    """A store with exactly the room for so many entries of `size` bytes."""
    return MemoryStore(entries * (size + ENTRY_COST))


def test_what_is_put_in_is_there() -> None:
    store = room_for(2)
    assert store.put(("a", 1), "one", 0)
    assert store.put(("b", 1), "two", 0)
    assert (store.get(("a", 1)), store.get(("b", 1)), store.get(("c", 1))) == ("one", "two", None)
    assert (len(store), set(store)) == (2, {("a", 1), ("b", 1)})
    assert store.used == store.limit


def test_the_least_recently_used_leaves_first() -> None:
    store = room_for(3)
    for key in "abc":
        store.put(key, key, 0)
    store.get("a")
    store.put("b", "again", 0)
    store.put("d", "d", 0)
    assert list(store) == ["a", "b", "d"]


def test_one_large_entry_drives_out_several() -> None:
    store = room_for(4, size=1000)
    for key in "abcd":
        store.put(key, key, 1000)
    assert store.put("large", "large", 3000)
    assert list(store) == ["d", "large"]
    assert store.used == 4000 + 2 * ENTRY_COST <= store.limit


def test_what_is_larger_than_the_store_is_not_kept_and_drives_nothing_out() -> None:
    store = room_for(2)
    store.put("a", "a", 0)
    store.put("b", "b", 0)
    assert not store.put("c", "c", store.limit)
    assert list(store) == ["a", "b"]
    assert not store.put("a", "too large now", store.limit)  # and the old value is not left in its place
    assert list(store) == ["b"]
    assert store.used == ENTRY_COST


def test_replacing_counts_the_new_size_only() -> None:
    store = room_for(2, size=100)
    for size in (100, 7, 50):
        store.put("a", "a", size)
        assert store.used == size + ENTRY_COST
    assert len(store) == 1


def test_removing_gives_the_bytes_back() -> None:
    store = room_for(2, size=100)
    store.put("a", "a", 100)
    store.remove("a")
    store.remove("a")
    assert (store.used, len(store), store.get("a")) == (0, 0, None)


def test_a_smaller_limit_holds_at_once() -> None:
    store = room_for(3)
    for key in "abc":
        store.put(key, key, 0)
    store.resize(2 * ENTRY_COST)
    assert list(store) == ["b", "c"]
    store.resize(0)
    assert (len(store), store.used) == (0, 0)
    assert not store.put("a", "a", 0)
    store.resize(ENTRY_COST)
    assert store.put("a", "a", 0)


Step = tuple[str, int, int]
VERBS = ("put", "get", "remove", "resize")
steps = st.lists(st.tuples(st.sampled_from(VERBS), st.integers(0, 5), st.integers(0, 3000)))


@given(steps)
def test_it_does_what_a_naive_store_does(plan: list[Step]) -> None:
    store, naive = MemoryStore(5000), Naive(5000)
    for verb, key, size in plan:
        if verb == "put":
            assert store.put(key, size, size) == naive.put(key, size)
        elif verb == "get":
            assert store.get(key) == naive.get(key)
        elif verb == "remove":
            store.remove(key)
            naive.sizes.pop(key, None)
        else:
            store.resize(size)
            naive.limit = size
            naive.shrink()
        assert list(store) == list(naive.sizes)
        assert store.used == naive.used <= store.limit


class Naive:
    """The same by adding everything up each time."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.sizes: OrderedDict[int, int] = OrderedDict()

    @property
    def used(self) -> int:
        return sum(size + ENTRY_COST for size in self.sizes.values())

    def put(self, key: int, size: int) -> bool:
        self.sizes.pop(key, None)
        if size + ENTRY_COST > self.limit:
            return False
        self.sizes[key] = size
        self.shrink()
        return True

    def get(self, key: int) -> int | None:
        if key in self.sizes:
            self.sizes.move_to_end(key)
        return self.sizes.get(key)

    def shrink(self) -> None:
        while self.used > self.limit:
            self.sizes.popitem(last=False)


@pytest.mark.parametrize("entries", [1_000, 10_900, 10_950, 21_850])  # around the sizes at which the map doubles
def test_what_an_entry_is_said_to_cost_is_what_it_takes(entries: int) -> None:
    store = MemoryStore(2**40)
    tracemalloc.start()
    try:
        for number in range(entries):
            store.put(("a_plugin", "site", "https", f"/{number}"), b"", 0)
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert taken <= store.used  # the limit is a limit …
    assert store.used <= 2.5 * taken  # … and not so far off that a configured size means something else
