"""What may be stored, for how long, and what a client wants of a cache (RFC 9111): pure decisions.

Fields go in, a decision comes out; the one clock that is needed is handed in.  This is a shared cache without
heuristics, so only a response that says how long it is fresh is ever stored.

What is malformed is never read to anybody's advantage: a response whose Cache-Control is not one is not stored, a
lifetime that is no number is none, a request whose Cache-Control is not one gets neither a stored answer nor its own
stored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

import frontd

# Final statuses that mean the same to everybody who asks (RFC 9110 15.1 calls them heuristically cacheable, and 308).
# Of its list 206 needs ranges, 405, 414 and 501 are answers to a client's mistake.
STORABLE = frozenset((200, 203, 204, 300, 301, 308, 404, 410))

Directives = Mapping[str, str | None]

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
_QUOTED = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
# An element of a list and the empty ones before it (RFC 9110 5.6.1.2).  Nothing that was matched is given back, since
# a client chooses what stands there: so the time is proportional to its length.
_ELEMENT = re.compile(
    rb"[ \t,]*+(?:\Z|(" + _TOKEN + rb")(?:=(" + _TOKEN + rb"|" + _QUOTED + rb"))?+[ \t]*+(?=,|\Z))", re.DOTALL
)
_ESCAPED = re.compile(r"\\(.)", re.S)

_MOST = 64  # directives: RFC 9111 knows a dozen, and reading each takes a microsecond
_LONGEST = 2**31  # s; what is longer counts as this (RFC 9111 1.2.2)
_DIGITS = 10
_NEVER = float("inf")


def directives(values: list[bytes]) -> Directives | None:
    """The directives of a Cache-Control field (RFC 9111 5.2), names in lower case; None when it is malformed, and that
    is also one of more than 64.

    A directive that stands there twice with different arguments has the argument ``""``, which is no number.
    """
    joined = b",".join(values)
    found: dict[str, str | None] = {}
    position = count = 0
    while position < len(joined):
        element = _ELEMENT.match(joined, position)
        if element is None:
            return None
        position = element.end()
        if element[1] is None:  # the end
            break
        count += 1
        if count > _MOST:
            return None
        name, argument = element[1].decode("ascii").lower(), None
        if element[2] is not None:
            argument = element[2].decode("latin-1")
            if argument.startswith('"'):
                argument = _ESCAPED.sub(r"\1", argument[1:-1])
        found[name] = "" if found.get(name, argument) != argument else argument
    return found


def delta_seconds(text: str | None) -> int | None:
    """A number of seconds (RFC 9111 1.2.2), 2**31 for any that is larger; None when it is none."""
    if not text or not text.isascii() or not text.isdigit():
        return None
    digits = text.lstrip("0") or "0"
    return min(int(digits), _LONGEST) if len(digits) <= _DIGITS else _LONGEST


# ---------------------------------------------------------------------------------------------------- responses


class Admission(NamedTuple):
    """Whether an answer may be stored: `refusal` is empty, or one word for why not.

    `lifetime` is in seconds; `is_shared` tells whether the app lets it be given to whoever may ask, even where the
    request said who is asking (RFC 9111 3.5).
    """

    refusal: str
    lifetime: int = 0
    is_shared: bool = False


def admission(status: int, headers: frontd.Headers, *, personal: bool, now: float) -> Admission:
    """Decide about the answer to a GET (RFC 9111 3).

    `personal`: the request had an identity, a client certificate or ``Authorization``.  Then only ``public`` and
    ``s-maxage`` open the store; ``must-revalidate``, which RFC 9111 3.5 accepts as well, says nothing of who may see
    the answer.  `now` is in seconds since the epoch, and used only when there is no Date.
    """
    if status not in STORABLE:
        return Admission("status")
    if b"set-cookie" in headers:
        return Admission("set-cookie")
    if b"vary" in headers:
        return Admission("vary")
    if b"content-range" in headers:
        return Admission("content-range")
    said = directives(headers.get_all(b"cache-control"))
    if said is None:
        return Admission("malformed")
    for word in ("no-store", "private", "no-cache"):  # with field names in it too: they narrow what is forbidden
        if word in said:
            return Admission(word)
    if b"no-cache" in headers.tokens(b"pragma"):  # HTTP.sys's managed side stores nothing that has a Pragma
        return Admission("no-cache")
    is_shared = "public" in said or "s-maxage" in said
    if personal and not is_shared:
        return Admission("identity")
    lifetime = _lifetime(said, headers, now)
    if lifetime <= initial_age(headers):
        return Admission("not-fresh")
    return Admission("", lifetime, is_shared)


def _lifetime(said: Directives, headers: frontd.Headers, now: float) -> int:
    """How long the answer is fresh from when it was made, in seconds (RFC 9111 4.2.1); 0 when it does not say."""
    for name in ("s-maxage", "max-age"):
        if name in said:
            return delta_seconds(said[name]) or 0
    expires = set(headers.get_all(b"expires"))
    moment = frontd.read_date(expires.pop()) if len(expires) == 1 else None
    if moment is None:
        return 0
    made = frontd.read_date(headers.get(b"date"))
    return min(max(0, moment - (int(now) if made is None else made)), _LONGEST)


def initial_age(headers: frontd.Headers) -> int:
    """How old an answer was already where it came from, in seconds (RFC 9111 5.1); an Age that is none is ignored."""
    first = headers.get(b"age").partition(b",")[0].strip(b" \t")
    return delta_seconds(first.decode("latin-1")) or 0


# ---------------------------------------------------------------------------------------------------- requests


class Wishes(NamedTuple):
    """What a request asks of caches (RFC 9111 5.2.1); ages in seconds."""

    no_store: bool = False
    no_cache: bool = False
    only_if_cached: bool = False
    max_age: float = _NEVER
    min_fresh: float = 0

    @property
    def are_none(self) -> bool:
        """Whether any stored answer that is fresh will do, and the answer may be stored."""
        return self == NO_WISHES

    def accept(self, age: float, left: float) -> bool:
        """Whether a stored answer `age` seconds old, fresh for another `left` seconds, is welcome."""
        return not self.no_cache and age <= self.max_age and left >= self.min_fresh


NO_WISHES = Wishes()


def wishes(headers: frontd.Headers) -> Wishes:
    """What a request asks of caches.  ``Pragma: no-cache`` is the old way to say ``no-cache`` (RFC 9111 5.4).

    ``max-stale`` is not among them, since nothing stale is ever given.
    """
    said = directives(headers.get_all(b"cache-control"))
    if said is None:
        return Wishes(no_store=True, no_cache=True)
    return Wishes(
        no_store="no-store" in said,
        no_cache="no-cache" in said or b"no-cache" in headers.tokens(b"pragma"),
        only_if_cached="only-if-cached" in said,
        max_age=_number(said["max-age"], 0) if "max-age" in said else _NEVER,
        min_fresh=_number(said["min-fresh"], _LONGEST) if "min-fresh" in said else 0,
    )


def _number(text: str | None, otherwise: int) -> int:
    found = delta_seconds(text)
    return otherwise if found is None else found
