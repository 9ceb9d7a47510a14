"""Who may listen where: URL reservations, registrations of request queues, and HTTP.sys's rules about both.

How it works
------------
A *reservation* is lasting and names who may register a UrlPrefix and everything below it, and perhaps hand a part of it
on (the delegate right).  A *queue* is what somebody has registered prefixes for at run time; its prefixes are the
*registrations*.  A `Namespace` has both; `register`, `reserve` and `unreserve` return another one or raise `Denied`.

The checks and their order are HTTP.sys's (HttpAddUrlToUrlGroup; "Processing Registrations", "Processing
Reservations"):

1. http and https do not share a port: ``SCHEME_CONFLICT``;
2. the same prefix is there already: ``ALREADY_EXISTS``;
3. the reservation with the same scheme, host and port and the longest path of complete segments decides:
   ``ACCESS_DENIED`` names its owner.  Where there is none, the root is implicitly the administrators'.

"The same host" keeps the categories apart: what is reserved for ``+`` bars nobody from ``shop.example.com``, and the
other way round; the table of UrlPrefixes (`frontd.model.urlprefix`) says who is asked first.

Accounts are numbers where the system has numbers (uid, gid), as HTTP.sys stores SIDs: a name that is given to somebody
else later takes no reservation along.

Invariants
----------
* Pure: nothing here looks at the system; whoever asks is a `Holder` that somebody else has made sure of.
* Fails closed: a registration whose reservation is no longer its owner's is not among `Namespace.claims`.
* The delegate right does not let its holder register, nor does the right to register let him delegate.
* A reserved prefix is among `Namespace.claims` whether or not anybody has registered it: it shields.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum
from typing import Literal, NamedTuple

from frontd.model.urlprefix import UrlPrefix, is_under, path_key

MOST_RESERVATIONS = 1000
MOST_QUEUES = 256
MOST_URLS = 32  # of one queue
LONGEST_NAME = 260  # characters of a queue's name (HTTP.sys: MAX_PATH)

_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.@-]*[A-Za-z0-9_])?")

Kind = Literal["user", "group", "pool"]


class Word(Enum):
    """Why something is refused; the first two are Windows' words, and there are no others than these."""

    ACCESS_DENIED = "ACCESS_DENIED"  # ERROR_ACCESS_DENIED (5)
    ALREADY_EXISTS = "ALREADY_EXISTS"  # ERROR_ALREADY_EXISTS (183)
    NOT_FOUND = "NOT_FOUND"  # ERROR_FILE_NOT_FOUND (2)
    SCHEME_CONFLICT = "SCHEME_CONFLICT"  # http and https on one port
    INVALID = "INVALID"  # ERROR_INVALID_PARAMETER (87)
    TOO_MANY = "TOO_MANY"


class Denied(Exception):
    """A refusal: one of the words, and a sentence for people."""

    def __init__(self, word: Word, sentence: str) -> None:
        super().__init__(f"{word.value}: {sentence}")
        self.word = word
        self.sentence = sentence


class Account(NamedTuple):
    """Whom a reservation or a queue is for: a user or group by its number, or a pool by its name."""

    kind: Kind
    number: int  # uid or gid; -1 for a pool
    name: str  # for people; of a pool: what counts

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"

    def same(self, other: Account) -> bool:
        """Whether both are one; the name of a user or group is for people only."""
        if self.kind != other.kind:
            return False
        return self.name == other.name if self.kind == "pool" else self.number == other.number


@dataclass(frozen=True, slots=True)
class Holder:
    """Who asks, as the system has it: the account, its groups, and whether it is an administrator (root, or the user
    that frontd runs as)."""

    account: Account
    groups: frozenset[int] = frozenset()
    is_admin: bool = False

    def __str__(self) -> str:
        return str(self.account)

    def has(self, account: Account) -> bool:
        """Whether what belongs to `account` is this holder's."""
        return account.same(self.account) or (account.kind == "group" and account.number in self.groups)


@dataclass(frozen=True, slots=True)
class Reservation:
    """A UrlPrefix that is `account`'s; `delegate`: who may reserve parts of it for others.  `is_fixed`: it stands in
    the configuration file, and only there it can be taken back."""

    url: UrlPrefix
    account: Account
    delegate: bool = False
    is_fixed: bool = False


@dataclass(frozen=True, slots=True)
class Queue:
    """A request queue that was made at run time.  `grants` are the accounts of the reservations by which each of its
    `urls` was registered; None: an administrator did it."""

    name: str
    owner: Account
    urls: tuple[UrlPrefix, ...] = ()
    grants: tuple[Account | None, ...] = ()


class Claim(NamedTuple):
    """A prefix that is reserved or registered, and the queue its requests go to; an empty one: there is none yet."""

    url: UrlPrefix
    queue: str
    owner: str


def compared(url: UrlPrefix) -> UrlPrefix:
    """A prefix in the form in which two are compared: letter case of the path does not count."""
    return replace(url, path=path_key(url.path))


def covers(outer: UrlPrefix, inner: UrlPrefix) -> bool:
    """Whether `inner` is `outer` or below it, in the same category: same scheme, host and port."""
    same = (outer.scheme, outer.host, outer.port) == (inner.scheme, inner.host, inner.port)
    return same and is_under(path_key(inner.path), path_key(outer.path))


def covering(reservations: Iterable[Reservation], url: UrlPrefix) -> Reservation | None:
    """The reservation that decides about `url`: the longest one that covers it."""
    return max((one for one in reservations if covers(one.url, url)), key=lambda one: len(one.url.path), default=None)


def check_name(name: str) -> None:
    """Raises `Denied` when `name` cannot be the name of a queue."""
    if len(name) > LONGEST_NAME:
        raise Denied(Word.INVALID, f"the name of a queue has at most {LONGEST_NAME} characters, not {len(name)}")
    if not _NAME.fullmatch(name):
        raise Denied(
            Word.INVALID,
            "the name of a queue has letters, digits and _ . @ -, and begins and ends with a letter, digit or _",
        )


@dataclass(frozen=True, slots=True)
class Namespace:
    """All reservations and queues.  `schemes` is the scheme of each port that the configuration's listeners have."""

    reservations: tuple[Reservation, ...] = ()
    queues: tuple[Queue, ...] = ()
    schemes: tuple[tuple[int, str], ...] = ()

    # ------------------------------------------------------------------ reservations

    def reserve(self, holder: Holder, wanted: Reservation) -> Namespace:
        """Add a reservation on behalf of `holder`.  Raises `Denied`."""
        self._check_scheme(wanted.url)
        if (there := self._reserved(wanted.url)) is not None:
            raise Denied(Word.ALREADY_EXISTS, f"{wanted.url} is already reserved for {there.account}")
        self._check_delegate(holder, wanted.url)
        if len(self.reservations) >= MOST_RESERVATIONS:
            raise Denied(Word.TOO_MANY, f"there are {MOST_RESERVATIONS} reservations already")
        return replace(self, reservations=(*self.reservations, wanted))

    def unreserve(self, holder: Holder, url: UrlPrefix) -> Namespace:
        """Take a reservation back on behalf of `holder`: an administrator, or who may delegate what is around it.

        Raises `Denied`.
        """
        there = self._reserved(url)
        if there is None:
            raise Denied(Word.NOT_FOUND, f"there is no reservation of {url}")
        rest = tuple(one for one in self.reservations if one is not there)
        replace(self, reservations=rest)._check_delegate(holder, url)
        if there.is_fixed:
            raise Denied(
                Word.ACCESS_DENIED,
                f"the reservation of {url} stands in the configuration, under `urlacl`: remove it there",
            )
        return replace(self, reservations=rest)

    def _reserved(self, url: UrlPrefix) -> Reservation | None:
        wanted = compared(url)
        return next((one for one in self.reservations if compared(one.url) == wanted), None)

    def _check_delegate(self, holder: Holder, url: UrlPrefix) -> None:
        """Raises `Denied` unless `holder` may decide whose `url` is."""
        if holder.is_admin:
            return
        around = covering(self.reservations, url)
        if around is None:
            raise Denied(Word.ACCESS_DENIED, f"{url} is under no reservation; only administrators may reserve it")
        if not around.delegate or not holder.has(around.account) or compared(around.url) == compared(url):
            raise Denied(
                Word.ACCESS_DENIED,
                f"{around.url} is reserved for {around.account}; {holder} may not hand parts of it on",
            )

    # ------------------------------------------------------------------ registrations

    def queue(self, name: str) -> Queue | None:
        """The queue of that name."""
        return next((one for one in self.queues if one.name == name), None)

    def create(self, holder: Holder, name: str) -> Namespace:
        """Make a queue that is `holder`'s.  Raises `Denied`."""
        check_name(name)
        if (there := self.queue(name)) is not None:
            raise Denied(Word.ALREADY_EXISTS, f"there is a queue {name} already, which is {there.owner}'s")
        if len(self.queues) >= MOST_QUEUES:
            raise Denied(Word.TOO_MANY, f"there are {MOST_QUEUES} queues already")
        return replace(self, queues=(*self.queues, Queue(name, holder.account)))

    def open(self, holder: Holder, name: str) -> Queue:
        """The queue `name`, which must be `holder`'s.  Raises `Denied`."""
        there = self.queue(name)
        if there is None:
            raise Denied(Word.NOT_FOUND, f"there is no queue {name}")
        if not holder.is_admin and not holder.has(there.owner):
            raise Denied(Word.ACCESS_DENIED, f"the queue {name} is {there.owner}'s, not {holder}'s")
        return there

    def delete(self, holder: Holder, name: str) -> Namespace:
        """Take a queue and its registrations away; only its creator may, or an administrator.  Raises `Denied`."""
        there = self.open(holder, name)
        return replace(self, queues=tuple(one for one in self.queues if one is not there))

    def register(self, holder: Holder, name: str, urls: Iterable[UrlPrefix]) -> Namespace:
        """Have the requests under `urls` go to the queue `name`; what it has already stays.  Raises `Denied`."""
        queue = self.open(holder, name)
        own = {compared(url) for url in queue.urls}
        for url in urls:
            if compared(url) in own:
                continue
            grant = self.granted(holder, url, name)
            own.add(compared(url))
            queue = replace(queue, urls=(*queue.urls, url), grants=(*queue.grants, grant))
        if len(queue.urls) > MOST_URLS:
            raise Denied(Word.TOO_MANY, f"a queue has at most {MOST_URLS} prefixes")
        return replace(self, queues=tuple(queue if one.name == name else one for one in self.queues))

    def granted(self, holder: Holder, url: UrlPrefix, name: str) -> Account | None:
        """By whose reservation `holder` may register `url` for the queue `name`; None: as an administrator.

        Raises `Denied`.
        """
        self._check_scheme(url)
        for queue in self.queues:
            for own, grant in zip(queue.urls, queue.grants, strict=True):
                if queue.name != name and compared(own) == compared(url) and self.still_granted(own, grant):
                    raise Denied(Word.ALREADY_EXISTS, f"{url} is already registered for the queue {queue.name}")
        there = covering(self.reservations, url)
        if there is not None and holder.has(there.account):
            return there.account
        if holder.is_admin:
            if there is not None and there.account.kind == "pool" and compared(there.url) == compared(url):
                raise Denied(Word.ALREADY_EXISTS, f"{url} is reserved for {there.account}, and its queue has it")
            return None
        if there is None:
            raise Denied(
                Word.ACCESS_DENIED, f"{url} is under no reservation, so it is the administrators', not {holder}'s"
            )
        raise Denied(Word.ACCESS_DENIED, f"{there.url} is reserved for {there.account}, not for {holder}")

    def _check_scheme(self, url: UrlPrefix) -> None:
        other = "http" if url.scheme == "https" else "https"
        ports = {port for port, scheme in self.schemes if scheme == other}
        ports |= {one.url.port for one in self.reservations if one.url.scheme == other}
        ports |= {one.port for queue in self.queues for one in queue.urls if one.scheme == other}
        if url.port in ports:
            raise Denied(Word.SCHEME_CONFLICT, f"port {url.port} is for {other}; http and https do not share a port")

    # ------------------------------------------------------------------ what follows from it

    def still_granted(self, url: UrlPrefix, grant: Account | None) -> bool:
        """Whether a registration stands: the reservation that decides about it is still that account's."""
        if grant is None:
            return True
        there = covering(self.reservations, url)
        return there is not None and there.account.same(grant)

    def claims(self) -> list[Claim]:
        """Every prefix that is reserved or registered, each once, and where its requests go.

        A registration that its reservation no longer allows is none.  A prefix that is reserved for a pool goes to it.
        """
        found: dict[UrlPrefix, Claim] = {}
        for queue in self.queues:
            for url, grant in zip(queue.urls, queue.grants, strict=True):
                if self.still_granted(url, grant):
                    found.setdefault(compared(url), Claim(url, queue.name, str(queue.owner)))
        for one in self.reservations:
            pool = one.account.name if one.account.kind == "pool" else ""
            found.setdefault(compared(one.url), Claim(one.url, pool, str(one.account)))
        return list(found.values())
