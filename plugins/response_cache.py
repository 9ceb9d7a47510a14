"""The `response_cache` plugin: answers of apps kept in memory and given again while they are fresh (RFC 9111).

How it works
------------
`cache_lookup` gives a stored answer, or lets the exchange go forward as a *fetch*.  `admit_response` sees the head of
the app's answer, decides whether it may be stored, and asks for a copy of the whole; when the copy is there it is
judged once more, since plugins that were asked later may have changed it, and put into the memory that all plugins of
the process share.  `freshness` holds the decisions that are pure, `_cache_entry` what is kept and its key.

Single flight: the first fetch of a URL leads a *flight*, and requests for the same wait for its end, at most
`lock_timeout`.  They are given what the leader has stored.  When its answer may not be stored, or the app gave none,
they all go forward at once; and of a URL whose answer may not be stored this is remembered for a while (Varnish's
hit-for-miss), so that its requests do not stand in line.  When the leader's client leaves, one of them leads on.
Personal requests wait for one another only where the last answer was for everybody: most answers to them are not.

Who gets what: a request is *personal* when there is an identity, a client certificate or an ``Authorization`` field.
An answer passes from or to a personal request only when the app said ``public`` or ``s-maxage``.  A cookie makes no
request personal (RFC 9111, nginx): an app whose answers depend on one says ``private`` or ``Vary: Cookie``.

Invariants
----------
* What is given is fresh, was complete, and has no field of a single client or connection (`_cache_entry.NOT_KEPT`).
* An answer is not stored when an unsafe method succeeded on its URL after it was asked for (RFC 9111 4.4).
* Whoever leads a flight ends it: by its answer, or at the latest in `log`.  What is kept on the instance is bounded by
  the exchanges that are under way, and by `_MOST_MARKS`.
* Ages are of trio's clock; Date and Expires count by their difference only, so no clock has to agree with an app's.
"""

from __future__ import annotations

import time
from collections.abc import Coroutine
from functools import partial
from typing import Any, NamedTuple

import trio
from frontd_plugins import freshness
from frontd_plugins._cache_entry import NAME, Ask, Destination, Entry, Url, ask_of, is_personal, url_of, url_size
from pydantic import Field

import frontd

# Methods that change nothing, from IANA's registry; one that is unknown counts as unsafe (RFC 9111 4.4).
_SAFE = frozenset(("GET", "HEAD", "OPTIONS", "PRI", "PROPFIND", "QUERY", "REPORT", "SEARCH", "TRACE"))

_MARKED = 120.0  # s for which a URL counts as not storable: Varnish's default for uncacheable objects
_MOST_MARKS = 8192  # of about 100 bytes
_MOST_DESTINATIONS = 8  # of one URL; more than one only where a plugin routes


class Flight:
    """The fetch that others wait for.  `gave_up`: it has ended with nothing for them, and the next would too."""

    __slots__ = ("ended", "gave_up")

    def __init__(self) -> None:
        self.ended = trio.Event()
        self.gave_up = False


class Miss(NamedTuple):
    """Why nothing is given out of the store (RFC 9211 2.2).  `hopes`: what was there could be given to others."""

    why: str
    detail: str = ""
    hopes: bool = False


_NOT_THERE = Miss("uri-miss")
_OF_SOMEBODY = Miss("bypass", "identity")
_NOT_WELCOME = Miss("request")
_OTHER_METHOD = Miss("method")


class Trail:
    """What is known of an exchange here: the URL it asks for, why it went forward (RFC 9211 2.2), what became of it.

    `asked` is when it went forward, on trio's clock; `flight` the one it leads; `response` the app's answer; `stores`
    tells that it is on its way into the store, `hopes` that an answer which others can use is to be expected.
    """

    __slots__ = (
        "asked", "destination", "detail", "flight", "hopes", "is_personal", "is_unsafe", "may_store", "response",
        "stores", "url", "why",
    )  # fmt: skip

    def __init__(self, method: str, url: Url, destination: Destination, miss: Miss, *, is_personal: bool) -> None:
        self.url = url
        self.destination = destination
        self.is_personal = is_personal
        self.is_unsafe = method not in _SAFE
        self.hopes = miss.hopes or not is_personal
        self.may_store = False
        self.asked = 0.0
        self.why = miss.why
        self.detail = miss.detail
        self.flight: Flight | None = None
        self.response: frontd.Response | None = None
        self.stores = False

    @property
    def key(self) -> tuple[Url, Destination, bool]:
        """What a flight is about.  What others get is not for personal requests: those wait for one another."""
        return self.url, self.destination, self.is_personal


class ResponseCache(frontd.Plugin):
    """Keeps answers in memory while they are fresh, and gives them to whoever may see them."""

    name = NAME
    follow_ups = frozenset(("admit_response", "rewrite_response", "log"))

    class Settings(frontd.Settings):
        """Settings of `response_cache`."""

        max_entry: frontd.Size = Field(
            262144, description="The longest body that is stored (HTTP.sys's UriMaxUriBytes: 256 KiB)."
        )
        lock_timeout: frontd.Duration = Field(
            5.0,
            description="How long a request waits for the answer to another one for the same URL before it asks the "
            "app itself; 0: it never waits (nginx's proxy_cache_lock_timeout: 5 s).",
        )

    settings: Settings

    def prepare(self) -> None:
        """Nothing is under way yet."""
        self._flights: dict[tuple[Url, Destination, bool], Flight] = {}
        self._fetches: dict[Url, set[Trail]] = {}
        self._marks: dict[int, float] = {}  # by hash, since URLs are long: of two that meet, one only waits less

    # ------------------------------------------------------------------ the way in

    def cache_lookup(
        self, exchange: frontd.Exchange
    ) -> frontd.Response | Coroutine[Any, Any, frontd.Response | None] | None:
        """A stored answer, or the wait for one that is on its way.  ``only-if-cached`` gets 504 (RFC 9111 5.2.1.7)."""
        request = exchange.request
        if not exchange.pool or not request.host:  # a file or a redirect; HTTP/1.0 without a host
            return None
        method, url, destination = request.method, url_of(exchange), (exchange.route, exchange.pool)
        ask = ask_of(request)
        personal = is_personal(exchange, ask)
        miss = _OTHER_METHOD
        if method == "GET" or method == "HEAD":
            if ask.obstacle:
                miss = Miss("bypass", ask.obstacle)
            else:
                found = self._stored(request, url, destination, ask, personal)
                if not isinstance(found, Miss):
                    return found
                miss = found
            if ask.wishes.only_if_cached:
                return frontd.Response(504, {"Cache-Control": "no-store"}, text="Nothing that fits is stored.\n")
        trail = Trail(method, url, destination, miss, is_personal=personal)
        exchange.state(self)["trail"] = trail
        if ask.obstacle or miss is _OTHER_METHOD:
            return None
        trail.may_store = method == "GET" and not ask.wishes.no_store
        if ask.wishes.are_none and self.settings.lock_timeout and not self._is_marked(trail):
            flight = self._flights.get(trail.key)
            if flight is not None:
                return self._wait(request, trail, ask, flight)
            self._lead(trail, ask)
        self._go_forward(trail)
        return None

    def _stored(
        self, request: frontd.Request, url: Url, destination: Destination, ask: Ask, personal: bool,
        how: str = "hit",
    ) -> frontd.Response | Miss:  # fmt: skip
        """The answer out of the store, or why there is none; `how` it came is told in Cache-Status."""
        shelf: dict[Destination, Entry] | None = self.store.get(url)
        entry = shelf.get(destination) if shelf else None
        if shelf is None or entry is None:
            return _NOT_THERE
        now = trio.current_time()
        age = now - entry.born
        left = entry.lifetime - age
        if left <= 0:
            if len(shelf) == 1:
                self.store.remove(url)
            return Miss("stale", hopes=entry.is_shared)
        if personal and not entry.is_shared:
            return _OF_SOMEBODY
        if ask.is_plain and how == "hit":
            return entry.hit(now)
        if not ask.wishes.accept(age, left):
            return _NOT_WELCOME
        return entry.answer(request, age, left, how, is_conditional=ask.is_conditional)

    # ------------------------------------------------------------------ single flight

    def _lead(self, trail: Trail, ask: Ask) -> None:
        """Others wait for this one from now on; not for a HEAD, nor for a GET whose answer may be a 304."""
        if trail.may_store and trail.hopes and not ask.is_conditional:
            trail.flight = self._flights[trail.key] = Flight()

    async def _wait(
        self, request: frontd.Request, trail: Trail, ask: Ask, flight: Flight
    ) -> frontd.Response | None:
        """The answer that `flight` brings, or that of whoever leads after it; None: ask the app after all."""
        trail.hopes = True
        with trio.move_on_after(self.settings.lock_timeout):
            while True:
                await flight.ended.wait()
                found = self._stored(
                    request, trail.url, trail.destination, ask, trail.is_personal,
                    f"fwd={trail.why}; collapsed",
                )  # fmt: skip
                if not isinstance(found, Miss):
                    return found
                if found is not _NOT_THERE:
                    trail.why, trail.detail = found.why, found.detail
                if flight.gave_up:
                    break
                following = self._flights.get(trail.key)
                if following is None:
                    self._lead(trail, ask)
                    break
                flight = following
        self._go_forward(trail)
        return None

    def _go_forward(self, trail: Trail) -> None:
        trail.asked = trio.current_time()
        if trail.may_store:
            self._fetches.setdefault(trail.url, set()).add(trail)

    def _end_flight(self, trail: Trail, *, gave_up: bool) -> None:
        """Let those go who wait for `trail`.  Harmless when nobody does, or when they were let go before."""
        flight, trail.flight = trail.flight, None
        if flight is not None:
            del self._flights[trail.key]
            flight.gave_up = gave_up
            flight.ended.set()

    def _cannot_store(self, trail: Trail) -> None:
        """The answer may not be stored, and the next one probably neither."""
        if trail.flight is not None:
            if len(self._marks) >= _MOST_MARKS:
                del self._marks[next(iter(self._marks))]
            mark = hash(trail.key)
            self._marks.pop(mark, None)  # to the end: the first is the oldest
            self._marks[mark] = trio.current_time() + _MARKED
        self._end_flight(trail, gave_up=True)

    def _is_marked(self, trail: Trail) -> bool:
        if not self._marks:
            return False
        until = self._marks.get(hash(trail.key))
        return until is not None and until > trio.current_time()

    # ------------------------------------------------------------------ the way back

    def admit_response(self, exchange: frontd.Exchange) -> None:
        """Ask for a copy of an answer that may be stored; forget what an unsafe method has changed."""
        trail = self._trail(exchange)
        if trail is None:
            return
        response = trail.response = exchange.response
        if trail.may_store and trail.destination != (exchange.route, exchange.pool):
            # handed over to another queue since: what answers there is not what was looked for
            trail.may_store = trail.stores = False
            trail.detail = "handed-over"
            self._end_flight(trail, gave_up=True)
        if trail.is_unsafe and response.status < 400:
            self._invalidate(trail.url)
        if not trail.may_store:
            return
        decision = self._decide(trail, response)
        if not decision.refusal:
            trail.stores = True
            response.capture(self._longest(), partial(self._keep, trail), partial(self._cannot_store, trail))
            return
        trail.detail = trail.detail or decision.refusal
        if response.status < 500:
            self._cannot_store(trail)
        else:  # an app in trouble says nothing about the URL
            self._end_flight(trail, gave_up=True)

    def _longest(self) -> int:
        return min(self.settings.max_entry, self.store.limit)

    def _decide(self, trail: Trail, answer: frontd.Response) -> freshness.Admission:
        length = freshness.delta_seconds(answer.headers.text(b"content-length"))
        if length is not None and length > self._longest():
            return freshness.Admission("too-large")
        return freshness.admission(answer.status, answer.headers, personal=trail.is_personal, now=time.time())

    def _keep(self, trail: Trail, whole: frontd.Response) -> None:
        """Store an answer that is complete, as it was at the end of `admit_response`."""
        if not trail.may_store:  # its URL was changed meanwhile; those who waited have been let go
            return
        decision = self._decide(trail, whole)
        if decision.refusal or not self._put(trail, Entry(whole, decision, trail.asked)):
            self._cannot_store(trail)
            return
        self._marks.pop(hash(trail.key), None)
        self._end_flight(trail, gave_up=False)

    def _put(self, trail: Trail, entry: Entry) -> bool:
        """Put `entry` beside those of the same URL from elsewhere; False when the store is too small for it."""
        shelf: dict[Destination, Entry] = dict(self.store.get(trail.url) or {})
        known = shelf.pop(trail.destination, None)
        if known is not None and known.born > entry.born:  # this one took longer: the most recent counts (RFC 9111 4)
            return True
        while len(shelf) >= _MOST_DESTINATIONS:
            del shelf[next(iter(shelf))]
        shelf[trail.destination] = entry
        return self.store.put(trail.url, shelf, url_size(trail.url) + sum(one.size for one in shelf.values()))

    def _invalidate(self, url: Url) -> None:
        """Forget what is stored of a URL, and do not store what was asked for before now."""
        self.store.remove(url)
        for trail in self._fetches.get(url, ()):
            trail.may_store = False
            self._end_flight(trail, gave_up=False)

    def rewrite_response(self, exchange: frontd.Exchange) -> None:
        """Say on the app's answers how the cache handled the request (RFC 9211 2: on those and on stored ones)."""
        trail = self._trail(exchange)
        if trail is None:
            return
        response = exchange.response
        if trail.response is not response:  # an error page, another plugin's, or what was waited for
            self._end_flight(trail, gave_up=True)
            return
        if trail.stores and not response.captures:  # a plugin failed, and then nothing is kept
            trail.stores = False
            self._end_flight(trail, gave_up=True)
        stored = "; stored" if trail.stores else ""
        detail = f"; detail={trail.detail}" if trail.detail else ""
        response.headers.add(b"Cache-Status", f"frontd; fwd={trail.why}{stored}{detail}")

    def log(self, exchange: frontd.Exchange) -> None:
        """Nobody waits any longer for an exchange that is over."""
        trail = self._trail(exchange)
        if trail is None:
            return
        fetches = self._fetches.get(trail.url)
        if fetches is not None:
            fetches.discard(trail)
            if not fetches:
                del self._fetches[trail.url]
        if trail.is_unsafe and trail.response is None and exchange.attempts:  # the app may have done it all the same
            self._invalidate(trail.url)
        # An app that failed would fail the next too; a client that left says nothing: then one of the others leads on.
        failed = exchange.reason is not None and exchange.reason.source.value != "downstream"
        self._end_flight(trail, gave_up=failed)
        trail.response = None  # which refers to the trail: nothing of an exchange is left to the collector of cycles

    def _trail(self, exchange: frontd.Exchange) -> Trail | None:
        found: Trail | None = exchange.state(self).get("trail")
        return found
