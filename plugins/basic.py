"""Basic authentication (RFC 7617) against a file of users, or against a domain.

How it works
------------
`authenticate` answers at once whatever it can: a password that was proved right a moment ago, credentials that cannot
be right, a guesser who has to wait.  What is left has to be hashed, which takes 50 ms and more on purpose, and is
answered by a coroutine.  Hashing happens in threads: one fewer than there are cores for the whole process, of low
priority, so that the loop, which serves everybody else, gets its core whenever it wants it.  Logons wait for such a
thread in line; beyond `queue` of them the answer is 503 ``LogonBusy``.

A right password is remembered for `cache_ttl` under an HMAC-SHA256 whose key is made anew in every process, over the
site, the realm, the user, the stored hash and the password: so nothing that is remembered is of use outside of the
process, and a line that is changed or removed is no longer found, at once.  Wrong passwords are not remembered.

Clients send the same credentials with every request.  So that they need not be read each time, what right ones meant is
kept as well, under a keyed BLAKE2b of the field as it was sent: the user, and the key under which the logon is
remembered.  It opens nothing by itself: the account has to be the one of the file as it was last read, and the logon
still remembered.

A domain (`_directory`) is asked in the place of the hash, by the same rules.  It tells with each logon who somebody is;
of those who are remembered, what it told last is kept in the place of the file's lines.

How often somebody may guess, and why nobody can lock anybody else out, is told in `_throttle`.

Invariants
----------
* Whoever gets in has a line in the file as it was last read, with the hash that the password was checked against; or
  the domain has let him in, with this password, not longer than `cache_ttl` ago.
* For one key there is never more than one hash or question in work: who comes with the same logon meanwhile waits for
  its outcome, and takes over when the first one leaves before there is one.
* A name that is not in the file goes the same way as a wrong password: counted, queued, hashed, and refused alike.
* Only a guess that turned out right is taken from the count again, or one that the domain could not be asked about; one
  that was broken off stays counted.
* A file that cannot be read any more, or has a bad line, changes nothing: the users read before stay, and it is
  remarked once.  A file without users is not bad; it lets nobody in.
"""

from __future__ import annotations

import hmac
import math
import re
import secrets
from collections import OrderedDict
from collections.abc import Coroutine, Iterable
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple, Self
from weakref import WeakValueDictionary

import trio
from frontd_plugins import _directory as directories
from frontd_plugins import _low_priority as low_priority
from frontd_plugins import _passwords as passwords
from frontd_plugins._throttle import Throttle, counted
from pydantic import Field, field_validator, model_validator

import frontd

POLL = 1.0  # s between two looks at the users file
REMEMBERED = 10_000  # right passwords: about 3 MB; the one that was used longest ago is forgotten

# Of the process: what is remembered means nothing elsewhere.
_KEY = secrets.token_bytes(32)
_FIELD_KEY = secrets.token_bytes(32)

# The users as they were read last.  A configuration is checked in a thread, its instances are made in the loop: what
# was read for the check waits here for the first of them, so that a large file does not hold up everybody.
MOST_AHEAD = 8  # files
_READ_AHEAD: dict[Path, passwords.Users] = {}
_IN_USE: WeakValueDictionary[Path, passwords.Users] = WeakValueDictionary()

THREADS = trio.CapacityLimiter(max(1, low_priority.cores() - 1))  # of all instances together: they share the cores


class Account(NamedTuple):
    """A user: the stored hash (empty: the domain has it), and the identity that a right password gives."""

    stored: str
    identity: frontd.Identity


class Flight:
    """A hash or a question in work: `is_right` is None until it is known, or for ever when it was broken off.

    `refusal` is why the domain said no; `trouble` why nothing could be found out.
    """

    __slots__ = ("done", "is_right", "refusal", "trouble")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.is_right: bool | None = None
        self.refusal = ""
        self.trouble = ""


class Attempt(NamedTuple):
    """A logon: what was sent, what to check it against, the key under which it is remembered, where it came from."""

    user: str
    password: str
    stored: str
    key: bytes
    address: str


class Meaning(NamedTuple):
    """What credentials that were right have meant: the key under which the logon is remembered, and the user."""

    key: bytes
    user: str


class Basic(frontd.Plugin):
    """Asks for a user name and a password, and checks them against a file, or against a domain."""

    name = "basic"
    scheme = "Basic"

    class Settings(frontd.Settings):
        """What may stand under ``basic:``."""

        users_file: frontd.File | None = Field(
            default=None,
            description="Who knows passwords: a file of lines `user:hash` or `user:hash:group,group`; bcrypt or "
            "argon2id, written by `frontd passwd`. Read again within a second or two of a change.",
        )
        winbind: directories.WinbindSettings | None = Field(
            default=None, description="Or the Windows domain that this machine is a member of; `{}` is enough."
        )
        kerberos: directories.KerberosSettings | None = Field(
            default=None, description="Or the KDC of a realm, without being a member."
        )
        ldap: directories.LdapSettings | None = Field(
            default=None, description="Or an LDAP directory, Active Directory among them, by a bind as the user."
        )
        realm: str = Field(
            default="",
            max_length=255,
            description="What clients are told that the logon is for. Default: the site's name.",
        )
        allow_http: frontd.Flag = Field(
            default=False,
            description="Whether passwords may come over plain http, where everybody on the way can read them. If not, "
            "plain requests get 403.4, as with IIS's requireSSL. RFC 7617 4 wants TLS.",
        )
        cache_ttl: frontd.Duration = Field(
            default=60.0,
            description="For how long a right password is remembered instead of hashed again; 0s: never. Apache's "
            "AuthnCacheTimeout is 300s; shorter here, since it costs one hash.",
        )
        queue: int = Field(
            default=64,
            ge=0,
            description="How many logons may wait for a hashing thread; the next one gets 503. No precedent: 64 of "
            "50 ms are about 3 s, after which people press reload.",
        )
        failures_per_user: frontd.CountOrNone = Field(
            default=10,
            ge=1,
            description="Wrong passwords for one user from one address in each `failure_window`; then 429. Windows 11 "
            "locks an account after 10.",
        )
        failures_per_address: frontd.CountOrNone = Field(
            default=100,
            ge=1,
            description="Wrong passwords from one address (IPv6: one /64) in each `failure_window`; then 429. NIST SP "
            "800-63B 5.2.2 stops at 100.",
        )
        failure_window: frontd.Duration = Field(
            default=60.0,
            gt=0,
            description="The time for both. Windows waits for 10 minutes; 1 minute here, since a password hashed with "
            "bcrypt does not fall to 10 guesses a minute, and people mistype.",
        )

        @field_validator("realm")
        @classmethod
        def _plain(cls, realm: str) -> str:
            if re.search(r"[\x00-\x1f\x7f-\x9f]", realm):
                raise ValueError("a realm has no control characters")
            return realm

        @model_validator(mode="after")
        def _one(self) -> Self:
            if sum(it is not None for it in (self.users_file, *self._domains)) != 1:
                words = "one of users_file, winbind, kerberos and ldap has to be there"
                raise ValueError(f"{words}, to say who knows passwords")
            return self

        @property
        def _domains(self) -> tuple[directories.Settings | None, ...]:
            return self.winbind, self.kerberos, self.ldap

        @property
        def domain(self) -> directories.Settings | None:
            """Who knows passwords, if it is no file."""
            return next((it for it in self._domains if it is not None), None)

    settings: Settings

    @classmethod
    def check(cls, settings: Any, site: frontd.SiteFacts) -> Iterable[str]:
        """Passwords that would be readable, and whatever is wrong with the users file or the way to the domain."""
        plain = [str(url) for url in site.urls if url.scheme != "https"]
        if site.name and plain and not settings.allow_http:
            yield (
                f"over http everybody on the way can read passwords, and this site has {plain[0]}: "
                'serve it over https only, or say "allow_http: true"'
            )
        if settings.users_file is None:
            yield from directories.complaints(settings.domain)
            return
        try:
            _read(settings.users_file, is_ahead=True)
        except passwords.BadUsers as error:
            yield from error.sentences

    @classmethod
    def untold(cls, settings: Any) -> frozenset[str]:
        """A file has no SIDs, tickets have no names of groups; a directory is asked for them where it is told to."""
        has_no_groups = settings.kerberos or (settings.ldap and not settings.ldap.groups)
        return frozenset({"sids"} if settings.users_file else {"groups"} if has_no_groups else ())

    def prepare(self) -> None:
        """Read the users.  Raises `ValueError` when the file is not there or has a bad line."""
        limits = self.settings
        self._directory = directories.of(limits.domain) if limits.domain is not None else None
        self._take(_read(limits.users_file) if limits.users_file is not None else passwords.NOBODY)
        self._threads = THREADS if self._directory is None else self._directory.threads
        self._throttle = Throttle(limits.failures_per_user, limits.failures_per_address, limits.failure_window)
        self._right: OrderedDict[bytes, float] = OrderedDict()  # until when (s of trio's clock), oldest use first
        self._flights: dict[bytes, Flight] = {}

    def _take(self, users: passwords.Users) -> None:
        self._users = users
        self._accounts: dict[str, Account] = {}  # of those who have tried
        self._meanings: dict[tuple[str, bytes], Meaning] = {}  # by site, and digest of the field
        self._stamp: passwords.Stamp | None = users.stamp

    def _account(self, user: str) -> Account | None:
        account = self._accounts.get(user)
        if account is None and user in self._users.records:
            record = self._users.records[user]
            account = Account(record.stored, frontd.Identity(user, record.groups, scheme="Basic"))
            self._keep(user, account)
        return account

    def _keep(self, user: str, account: Account) -> None:
        if user not in self._accounts and len(self._accounts) >= REMEMBERED:
            del self._accounts[next(iter(self._accounts))]
        self._accounts[user] = account

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Read the users file again whenever it has changed."""
        task_status.started()
        while self.settings.users_file is not None:
            await trio.sleep(POLL)
            await self._look_again()

    async def _look_again(self) -> None:
        # In threads: the file may lie on a network drive that does not answer
        path = self.settings.users_file
        assert path is not None
        stamp = await trio.to_thread.run_sync(passwords.stamp_of, path, abandon_on_cancel=True)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            users = await trio.to_thread.run_sync(_read, path, abandon_on_cancel=True)
        except passwords.BadUsers as error:
            self.remark(f"{error}; the users that were read before stay")
        else:
            self._take(users)
            self.remark(f"{path}: read again, users: {len(users.records)}")

    # ---------------------------------------------------------------------------------------------- hooks

    def challenge(self, exchange: frontd.Exchange) -> str | None:
        """``Basic realm="…", charset="UTF-8"`` (RFC 7617 2.1); nothing where the password would be readable."""
        if self._is_readable(exchange):
            return None
        realm = re.sub(r'(["\\])', r"\\\1", self._realm(exchange))  # quoted-string, RFC 9110 5.6.4
        return f'Basic realm="{realm}", charset="UTF-8"'

    def authenticate(
        self, exchange: frontd.Exchange
    ) -> frontd.Identity | frontd.Refuse | Coroutine[Any, Any, frontd.Identity | frontd.Refuse] | None:
        """The user whose password was sent.

        Refuses with 401 ``LogonFailed`` (IIS 401.1), 403 ``TlsRequired`` (IIS 403.4), 429 ``LogonThrottled`` (RFC 6585
        4) and 503 ``LogonBusy``.
        """
        request = exchange.request
        sent = request.headers.get_all(b"authorization")
        place = (exchange.site, blake2b(sent[0], key=_FIELD_KEY, digest_size=32).digest()) if len(sent) == 1 else None
        if place is not None and (known := self._known(place, exchange)) is not None:
            return known
        scheme, token = request.credentials
        if scheme is not None and scheme != "basic":
            return None
        if self._is_readable(exchange):  # also without credentials: a challenge would only ask for them
            return frontd.Refuse(403, "TlsRequired", substatus=4)
        if token is None:
            return None
        try:
            user, password = passwords.credentials(token)
            if self._directory is not None:
                user = self._directory.spelled(user)
        except ValueError as error:
            return frontd.Refuse(401, "LogonFailed", substatus=1, log=str(error))
        account = self._account(user)
        stored = account.stored if account is not None else self._users.decoy(user)
        key = _digest(exchange.site, self._realm(exchange), user, stored, password)
        attempt = Attempt(user, password, stored, key, exchange.client.address)
        if account is not None and self._remembers(key, user, attempt.address):
            if place is not None:
                if len(self._meanings) >= REMEMBERED:
                    del self._meanings[next(iter(self._meanings))]
                self._meanings[place] = Meaning(key, user)
            return account.identity
        if attempt.key not in self._flights and (refusal := self._refusal(attempt)):
            return refusal
        return self._check(attempt)

    def _known(self, place: tuple[str, bytes], exchange: frontd.Exchange) -> frontd.Identity | None:
        """The user of credentials that were right before and still are; None: they have to be read."""
        meaning = self._meanings.get(place)
        if meaning is None or self._is_readable(exchange):
            return None
        account = self._accounts.get(meaning.user)
        if account is None or not self._remembers(meaning.key, meaning.user, exchange.client.address):
            return None
        return account.identity

    def _is_readable(self, exchange: frontd.Exchange) -> bool:
        """Whether passwords would be readable on the way, and the site does not say that they may."""
        return exchange.request.scheme != "https" and not self.settings.allow_http

    def _realm(self, exchange: frontd.Exchange) -> str:
        return self.settings.realm or exchange.site

    # ---------------------------------------------------------------------------------------------- a logon

    def _counted(self, user: str) -> str:
        """Under which name guesses are counted: a file's names are compared exactly, those of a domain are not."""
        return user if self._directory is None else counted(user)

    def _remembers(self, key: bytes, user: str, address: str) -> bool:
        until = self._right.get(key)
        if until is None:
            return False
        now = trio.current_time()
        if until <= now:
            del self._right[key]
            return False
        self._right.move_to_end(key)
        return not self._throttle.is_shut(self._counted(user), address, now)

    def _refusal(self, attempt: Attempt) -> frontd.Refuse | None:
        """Why nothing can be hashed now."""
        now = trio.current_time()
        who = self._counted(attempt.user)
        wait = self._throttle.wait(who, attempt.address, now)
        if wait:
            self._throttle.refuse(who, attempt.address, now)
            return frontd.Refuse(429, "LogonThrottled", retry_after=math.ceil(wait))
        if self._threads.available_tokens < 1 and self._threads.statistics().tasks_waiting >= self.settings.queue:
            return frontd.Refuse(503, "LogonBusy", log=f"{self.settings.queue} logons wait", retry_after=1)
        return None

    async def _check(self, attempt: Attempt) -> frontd.Identity | frontd.Refuse:
        flight = self._flights.get(attempt.key)
        while flight is not None:
            await flight.done.wait()
            if flight.trouble or flight.is_right is not None:
                return self._verdict(attempt, flight)
            flight = self._flights.get(attempt.key)  # the first one has left: another has taken over, or I do
        if refusal := self._refusal(attempt):
            return refusal
        self._throttle.guess(self._counted(attempt.user), attempt.address, trio.current_time())
        flight = self._flights[attempt.key] = Flight()
        try:
            if self._directory is None:
                await self._hashed(attempt, flight)
            else:
                await self._asked(self._directory, attempt, flight)
        finally:
            del self._flights[attempt.key]
            flight.done.set()
        if flight.is_right:
            self._throttle.forgive(self._counted(attempt.user), attempt.address)
            self._remember(attempt)
        return self._verdict(attempt, flight)

    async def _hashed(self, attempt: Attempt, flight: Flight) -> None:
        try:
            verify = partial(low_priority.run, passwords.verify, attempt.stored, attempt.password)
            flight.is_right = await trio.to_thread.run_sync(verify, limiter=THREADS)
        except MemoryError as error:
            flight.trouble = str(error)

    async def _asked(self, directory: directories.Directory, attempt: Attempt, flight: Flight) -> None:
        try:
            identity = await directories.verified(directory, attempt.user, attempt.password)
        except directories.Denied as error:
            flight.is_right = False
            flight.refusal = f"{attempt.user}: {error}" if error.is_known else str(error)
        except directories.Unavailable as error:
            if not error.was_asked:  # nobody has looked at the password
                self._throttle.forgive(self._counted(attempt.user), attempt.address)
            flight.trouble = str(error)
        else:
            self._keep(attempt.user, Account(attempt.stored, identity))
            flight.is_right = True

    def _remember(self, attempt: Attempt) -> None:
        if self.settings.cache_ttl:
            self._right[attempt.key] = trio.current_time() + self.settings.cache_ttl
            while len(self._right) > REMEMBERED:
                self._right.popitem(last=False)

    def _verdict(self, attempt: Attempt, flight: Flight) -> frontd.Identity | frontd.Refuse:
        if flight.trouble:
            return frontd.Refuse(503, "LogonBusy", log=flight.trouble, retry_after=1)
        if flight.refusal:
            return frontd.Refuse(401, "LogonFailed", substatus=1, log=flight.refusal)
        account = self._account(attempt.user)
        if account is None:  # the name is not shown: it may be a password in the wrong field
            return frontd.Refuse(401, "LogonFailed", substatus=1, log="there is no such user")
        if flight.is_right and account.stored == attempt.stored:  # else the line was changed while it was checked
            return account.identity
        return frontd.Refuse(401, "LogonFailed", substatus=1, log=f"the password for {attempt.user} is wrong")


def _read(path: Path, *, is_ahead: bool = False) -> passwords.Users:
    """The users file; blocks, unless it was read for another instance, or `is_ahead` of one.  Raises `BadUsers`."""
    stamp = passwords.stamp_of(path)
    users = _READ_AHEAD.pop(path, None) or _IN_USE.get(path)
    if users is None or users.stamp != stamp:
        users = passwords.read(path)
    _IN_USE[path] = users
    if is_ahead:
        _READ_AHEAD[path] = users
        for old in list(_READ_AHEAD)[:-MOST_AHEAD]:
            _READ_AHEAD.pop(old, None)
    return users


def _digest(site: str, realm: str, user: str, stored: str, password: str) -> bytes:
    """The key under which a logon is remembered: each part behind its length, so that none runs into another."""
    where = f"{len(site)}:{site}{len(realm)}:{realm}"
    who = f"{len(user)}:{user}{len(stored)}:{stored}{len(password)}:{password}"
    return hmac.digest(_KEY, (where + who).encode(), "sha256")
