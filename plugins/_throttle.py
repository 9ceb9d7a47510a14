"""How often somebody may guess a password.

How it works
------------
A *guess* is a password that has to be hashed.  Guesses are counted in token buckets, by (user, address) and by address;
a right one gives its token back.  With no token left the attempt is refused without hashing.

Why not by user alone: then anybody who knows a name could keep its owner out, from anywhere.  By (user, address) they
can do that only from the owner's own address.  What is left there is softened: a password that was proved right a
moment ago is in memory and needs no guess, so whoever is at work stays at work while a forgotten device next to them
goes on sending an old password.

Why even that has an end: if remembered passwords always passed, then whoever shares an address with a user could try
passwords as fast as the wire allows, and see the right one pass while all others are refused.  So refused attempts are
counted too, with ten times the room; beyond it nothing passes for that user from that address (or for that address)
until the attempts slow down.

One IPv6 client has at least a /64 for itself (RFC 6177), so its network is its address here.

Invariants
----------
* From one address at most `per_user` guesses at a user and `per_address` guesses at all are hashed at once, and as many
  again in each `window`; it makes no difference whether they come one by one or together, since a guess is counted
  before it is checked.
* Names that exist and names that do not are counted alike.
* All names that a directory takes for one account are counted as one (`counted`), since it locks the account.
* Every table holds at most `MOST` keys; beyond it the one that was touched longest ago is forgotten.  To make room for
  themselves guessers need more than ``MOST / per_address`` addresses in each window.
"""

from __future__ import annotations

import ipaddress
import unicodedata
from collections import OrderedDict
from collections.abc import Hashable
from functools import lru_cache

MOST = 20_000  # keys of a table: at most about 10 MB each with the longest names
REFUSED = 10  # room for refused attempts, as a multiple of the room for guesses
_ALMOST = 1e-6  # s; what floating point may be short of a whole token


class Buckets:
    """Token buckets by key: `limit` tokens at once, and `limit` new ones in each `window` seconds, evenly.

    For each key only the time is kept at which its bucket is full again (the generic cell rate algorithm, ITU-T I.371),
    so a bucket that is full needs no entry.  `limit` None: never empty.
    """

    __slots__ = ("_full_at", "_most", "_room", "_step")

    def __init__(self, limit: int | None, window: float, most: int = MOST) -> None:
        self._room = window
        self._step = window / limit if limit else 0.0
        self._most = most
        self._full_at: OrderedDict[Hashable, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._full_at)

    def wait(self, key: Hashable, now: float) -> float:
        """Seconds until `key` has a token; 0: it has one."""
        wait = self._full_at.get(key, now) + self._step - self._room - now
        return wait if self._step and wait > _ALMOST else 0.0

    def take(self, key: Hashable, now: float) -> None:
        """Take a token of `key`; one that is not there is owed."""
        if not self._step:
            return
        table = self._full_at
        table[key] = max(table.pop(key, now), now) + self._step
        for _ in range(2):  # one more goes than comes, so what is full again does not stay
            oldest = next(iter(table))
            if table[oldest] <= now or len(table) > self._most:
                del table[oldest]

    def give_back(self, key: Hashable) -> None:
        """Return a token that was taken."""
        if key in self._full_at:
            self._full_at[key] -= self._step


class Throttle:
    """Counts guesses and refused attempts.  Limits are per `window` (s); None: none.  `now` is in s of one clock."""

    def __init__(self, per_user: int | None, per_address: int | None, window: float) -> None:
        self._guesses = Buckets(per_user, window), Buckets(per_address, window)
        self._refused = (
            Buckets(per_user and per_user * REFUSED, window),
            Buckets(per_address and per_address * REFUSED, window),
        )

    def wait(self, user: str, address: str, now: float) -> float:
        """Seconds until the next guess at `user` from `address`; 0: now."""
        return max(bucket.wait(key, now) for bucket, key in zip(self._guesses, _keys(user, address), strict=True))

    def guess(self, user: str, address: str, now: float) -> None:
        """A password is going to be hashed."""
        for bucket, key in zip(self._guesses, _keys(user, address), strict=True):
            bucket.take(key, now)

    def forgive(self, user: str, address: str) -> None:
        """The password that was hashed was right."""
        for bucket, key in zip(self._guesses, _keys(user, address), strict=True):
            bucket.give_back(key)

    def refuse(self, user: str, address: str, now: float) -> None:
        """An attempt was refused because of `wait`."""
        if not self.is_shut(user, address, now):  # else a flood would fill the tables with its names
            for bucket, key in zip(self._refused, _keys(user, address), strict=True):
                bucket.take(key, now)

    def is_shut(self, user: str, address: str, now: float) -> bool:
        """Whether so many attempts were refused that not even a remembered password passes."""
        by_user, by_address = self._refused
        if not by_user and not by_address:  # on the way of every request
            return False
        key, place = _keys(user, address)
        return by_user.wait(key, now) > 0 or by_address.wait(place, now) > 0


@lru_cache(4096)
def counted(user: str) -> str:
    """Under which name guesses at a user of a directory are counted, however the name is written.

    Active Directory finds an account in any case, without accents and blanks, and under ``DOMAIN\\user``,
    ``dns.domain\\user`` and ``user@realm``.  Accounts of several domains that have one name are counted as one: that is
    stricter, and only from one address.
    """
    name = user.rpartition("\\")[2].partition("@")[0]
    letters = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", name).casefold())
    return "".join(letter for letter in letters if unicodedata.category(letter)[0] not in "CMZ")


def _keys(user: str, address: str) -> tuple[Hashable, Hashable]:
    place = address if ":" not in address else _network(address)
    return (user, place), place


@lru_cache(4096)
def _network(address: str) -> str:
    """The /64 of an IPv6 address, the IPv4 address that is mapped into one; other texts as they are."""
    try:
        it = ipaddress.IPv6Address(address)
    except ValueError:
        return address
    return str(it.ipv4_mapped or it.packed[:8].hex())
