"""Tickets for other services: Kerberos (RFC 4120) as its client, in our own name or in that of a user.

How it works
------------
An `Account` is who we are: a principal whose key stands in a keytab.  With it the library gets a ticket-granting
ticket, which is kept in memory and renewed when half of its life is over.  What a service is sent is the first token of
a GSS-API context (RFC 2743 2.2.1) that is made with one of these credentials:

* the account's own;
* what a logon has delegated (`_gss.Delegated`): the user's forwarded ticket (RFC 4120 2.8), or his ticket for us as the
  evidence with which we ask for one in his name (S4U2Proxy, MS-SFU 3.2.5.2);
* one in the name of a user who has logged on in some other way (S4U2Self, MS-SFU 3.1.5.1, and then S4U2Proxy).

The token is that of Kerberos inside of SPNEGO (RFC 4178 4.2.1), with Kerberos alone on offer, so it is the only one:
nobody answers us.  The library keeps the ticket for the service with the credential, so that the KDC is asked once for
each; a token is made anew each time, since it may be used once (RFC 4120 3.2.3).

The KDC is asked over the network, which may take long.  That happens in threads of this module, so logons do not wait
for it, and somebody who waits gives up after `DEADLINE`.

Invariants
----------
* A credential in the name of a user is found under his principal alone, and under that of one account.
* Nothing is written to a file; nothing of a ticket or a token is in what is said of an error.
* While the KDC does not answer, or refuses our own key, it is asked again after a pause, not for each request.
"""

from __future__ import annotations

import itertools
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import trio
from frontd_plugins import _gss as gss
from frontd_plugins import _spnego as spnego
from frontd_plugins._gss import GssBusy, GssError

T = TypeVar("T")

THREADS = trio.CapacityLimiter(8)  # a new ticket took 4 to 10 ms in a small network, one that is there 0.1 ms
QUEUE = 256  # tokens that may wait for a thread
DEADLINE = 10.0  # s for one token, after which somebody who waits gives up
PAUSE = 2.0  # s between attempts to reach a KDC that has not answered
REFUSED = 60.0  # s between attempts to log on ourselves with a key that was refused: some lock the account
USERS = 1000  # credentials in the name of users that an account keeps; some kilobytes each
MARGIN = 60.0  # s before its end a credential is not used any more
RENEWED = 600.0  # s between caches of tickets, which the library keeps until the process ends

INTEGRITY = 0x20  # GSS_C_INTEG_FLAG: with no flag at all the binding would ask for mutual authentication

_UNREACHED = ("Cannot contact any KDC", "Cannot find KDC", "Cannot resolve", "Clock skew")
# What the library says about our own logon, and what is the matter (RFC 4120 7.5.9)
_OWN = (
    ("not found in Kerberos database", "the KDC has no account {name} (Active Directory: its userPrincipalName)"),
    ("Preauthentication failed", "the keytab's key is not that of {name}"),
    ("Decrypt integrity", "the keytab's key is not that of {name}"),
    ("Keytab contains no suitable keys", "the keytab has no key of {name}"),
    ("No key table entry", "the keytab has no key of {name}"),
    ("have been revoked", "the account {name} is disabled or locked out"),
    ("expired", "the account {name}, or its password, has expired"),
)
_USER = (
    ("not found in Kerberos database", "the KDC has no user {name}"),
    ("expired", "the account of {name} has expired"),
    ("have been revoked", "the account of {name} is disabled or locked out"),
    ("policy rejects", "the KDC refuses tickets in the name of {name} (an account that is disabled, or locked out)"),
)
_SERVICE = (
    ("not found in Kerberos database", "the KDC has no service {name}"),
    ("policy rejects", "the account may not delegate to {name}, or the user may not be delegated"),
    ("fulfill requested option", "the account may not delegate to {name}, or the user may not be delegated"),
    ("Matching credential not found", "the evidence is for another name of ours than that under which we ask"),
    ("has expired", "the ticket has expired"),
    ("have been revoked", "the account of the user is disabled or locked out"),
)
_numbers = itertools.count()


class _Kept(NamedTuple):
    """A credential, and until when it is used (s of trio's clock)."""

    credential: Any
    until: float


class Account:
    """Who we are: `principal` (``HTTP/www.example.com@EXAMPLE.COM``), by the key in `keytab`."""

    def __init__(self, keytab: Path, principal: str) -> None:
        self.principal = principal
        self._keytab = keytab
        self._cache = _new_cache()
        self._since = -RENEWED
        self._lock = trio.Lock()
        self._own: _Kept | None = None
        self._renew = 0.0
        self._pause = 0.0
        self._failure: GssError | GssBusy | None = None
        self._users: OrderedDict[str, _Kept] = OrderedDict()

    @property
    def realm(self) -> str:
        """The realm of the account."""
        return self.principal.rpartition("@")[2]

    async def proxy(self) -> gss.Proxy:
        """What an acceptor needs so that its logons may be delegated by this account.  Raises `GssError` and
        `GssBusy`."""
        await self._credential()
        return gss.Proxy(self.principal, self._keytab, self._cache)

    async def token(self, spn: str) -> bytes:
        """A token for a service in our own name.  Raises `GssError` and `GssBusy`."""
        return await token(await self._credential(), self._whole(spn))

    async def token_of(self, user: str, spn: str) -> bytes:
        """A token for a service in the name of ``user@REALM``.  Raises `GssError` and `GssBusy`."""
        kept = self._users.get(user)
        if kept is None or trio.current_time() >= kept.until:
            self._users.pop(user, None)
            credential = await self._credential()
            kept = await in_thread(_impersonated, credential, user, trio.current_time())
            self._users[user] = kept
            while len(self._users) > USERS:
                self._users.popitem(last=False)
        self._users.move_to_end(user)
        return await token(kept.credential, self._whole(spn))

    async def token_with(self, delegated: gss.Delegated, spn: str) -> bytes:
        """A token for a service with what a logon has delegated.  Raises `GssError` and `GssBusy`."""
        return await token(delegated.credential, self._whole(spn))

    def forget(self, user: str) -> None:
        """A service has not accepted our token: get the tickets that it was made with anew (empty: our own)."""
        if user:
            self._users.pop(user, None)
        elif trio.current_time() - self._since >= RENEWED:
            self._cache, self._since, self._own = _new_cache(), trio.current_time(), None

    def _whole(self, spn: str) -> str:
        return spn if "@" in spn else f"{spn}@{self.realm}"

    async def _credential(self) -> Any:
        """Our own credential, renewed in time."""
        own = self._own
        if own is None or trio.current_time() >= self._renew:
            async with self._lock:
                own = await self._renewed()
        return own.credential

    async def _renewed(self) -> _Kept:
        own, now = self._own, trio.current_time()
        if own is not None and now < self._renew:  # somebody did it while we waited
            return own
        if self._failure is None or now >= self._pause:
            try:
                own = self._own = await in_thread(_acquired, self._keytab, self.principal, self._cache, now)
            except (GssBusy, GssError) as error:
                self._failure = type(error)(str(error))
                self._pause = trio.current_time() + (PAUSE if isinstance(error, GssBusy) else REFUSED)
            else:
                self._failure = None
                self._renew = now + max((own.until - now) / 2, PAUSE)
        if own is None or (self._failure is not None and now >= own.until):
            assert self._failure is not None
            raise type(self._failure)(str(self._failure))
        return own


def acting(keytab: Path, principals: Iterable[str]) -> gss.Acting:
    """How logons with the keys of a keytab may be delegated: by the account of the name that they are for."""
    accounts = {name.rpartition("@")[0].lower(): Account(keytab, name) for name in principals}

    async def proxy(spns: frozenset[str]) -> gss.Proxy:
        for spn in sorted(spns):
            account = accounts.get(spn) or accounts.get(spn.rpartition("@")[0])
            if account is not None:
                return await account.proxy()
        raise GssError("the keytab had no key of that name when frontd read it")

    return proxy


async def token(credential: Any, service: str) -> bytes:
    """A token for a service, whose name has its realm.  Raises `GssError` and `GssBusy`."""
    return await in_thread(_token, credential, service)


async def in_thread(function: Callable[..., T], *arguments: object) -> T:
    """`function` in a thread of this module.  Raises what it raises, and `GssBusy`."""
    if THREADS.available_tokens < 1 and THREADS.statistics().tasks_waiting >= QUEUE:
        raise GssBusy(f"{QUEUE} requests wait for tickets")
    with trio.move_on_after(DEADLINE):
        return await trio.to_thread.run_sync(function, *arguments, limiter=THREADS, abandon_on_cancel=True)
    raise GssBusy(f"the KDC has not answered for {DEADLINE:g} s")


# ---------------------------------------------------------------------------------------------------- in threads


def _new_cache() -> str:
    """The name of a credential cache of its own, in memory."""
    return f"MEMORY:frontd-{os.getpid()}-{next(_numbers)}"


def _acquired(keytab: Path, principal: str, cache: str, now: float) -> _Kept:
    gssapi = gss.library()
    store = {"client_keytab": f"FILE:{keytab}", "ccache": cache}
    try:
        name = gssapi.Name(principal, gssapi.NameType.kerberos_principal)
        credential = gssapi.Credentials(usage="initiate", name=name, mechs=[gss.oid(gss.KRB5)], store=store)
        return _Kept(credential, now + credential.lifetime - MARGIN)
    except gssapi.exceptions.GSSError as error:
        raise _failure(error, _OWN, principal) from error


def _impersonated(own: Any, user: str, now: float) -> _Kept:
    gssapi = gss.library()
    try:
        name = gssapi.Name(user, gssapi.NameType.kerberos_principal)
        credential = own.impersonate(name, mechs=[gss.oid(gss.KRB5)])
        return _Kept(credential, now + credential.lifetime - MARGIN)
    except gssapi.exceptions.GSSError as error:
        raise _failure(error, _USER, user) from error


def _token(credential: Any, service: str) -> bytes:
    gssapi = gss.library()
    kerberos = gss.oid(gss.KRB5)
    try:
        name = gssapi.Name(service, gssapi.NameType.kerberos_principal)
        context = gssapi.SecurityContext(name=name, creds=credential, mech=kerberos, usage="initiate", flags=INTEGRITY)
        made = context.step()
    except gssapi.exceptions.GSSError as error:
        raise _failure(error, _SERVICE, service) from error
    if not made or not context.complete:
        raise GssError(f"the library has made no whole token for {service}")
    return spnego.initial(gss.KRB5, bytes(made))


def _failure(error: Any, meanings: tuple[tuple[str, str], ...], name: str) -> GssError | GssBusy:
    """What is the matter, in a sentence, and what the library says."""
    said = gss.statement(error)
    if any(text.lower() in said.lower() for text in _UNREACHED):
        return GssBusy(f"the KDC cannot be asked: {said}")
    meaning = next((meaning for text, meaning in meanings if text.lower() in said.lower()), "")
    return GssError(f"{meaning.format(name=name)} ({said})" if meaning else said or type(error).__name__)
