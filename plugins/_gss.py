"""Kerberos logons (RFC 4120) by way of the GSS-API (RFC 2743), the only place that knows of `gssapi`.

How it works
------------
A `Handshake` is one GSS-API context as its acceptor.  Its credential is acquired with the first leg, out of the keytab
as it is then, so a keytab that was replaced is in force with the next logon.  Kerberos is accepted in both forms in
which clients send it: inside of SPNEGO (RFC 4178) and bare (RFC 4121).  With SPNEGO the mechanism is pinned to
Kerberos: other mechanisms that somebody installed on this machine are not offered.

The library blocks: it reads the keytab and writes the replay cache, and a disk may be slow.  So each leg is done in a
thread, of at most `THREADS` for the whole process, and it takes at most `DEADLINE`.

A keytab may hold keys of many services, so the credential is pinned to one principal: one that the caller allows (RFC
4559 4: ``HTTP/host``) and that is in the keytab.  Where there are several, they are tried one after the other with the
first leg, since the name in a ticket is not encrypted and proves nothing; only the key does.  Not pinned, the library
would take the first key that fits and call the ticket one for that name.  Names of one account in Active Directory have
the same key: they are one service, and a ticket for one of them is good for the others.

`password_logon` is for passwords: it is a client of the KDC, and then its own acceptor.

Invariants
----------
* Nobody is a `Logon` but by a context that says it is complete, of Kerberos, by the key of a name that is allowed.
* Where the ticket has the PAC of a Windows domain, a `Logon` is the account that it names, whatever name the client has
  asked for.  A ticket without any PAC is nobody's, unless the caller says that its realm makes none: so that a client
  of a domain cannot have it left out (docs/decisions/0023).
* Errors are raised by the call they belong to.  (`gssapi` would return the token of an error as if it were progress,
  and raise with the next look at the context: `__DEFER_STEP_ERRORS__`.)
* A handshake that has failed, or was given up, cannot go on.
* The replay cache is on, whatever the environment says (RFC 4120 3.2.3).
* What is said of an error is for the log: one line, of bounded length, without anything of a token.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import trio
from frontd_plugins import _keytab as keytab
from frontd_plugins import _pac as pac

T = TypeVar("T")

THREADS = trio.CapacityLimiter(4)  # a logon takes a tenth of a millisecond, and more threads do not make more of them
QUEUE = 256  # legs that may wait for a thread: what four threads do in a moment, unless the disk hangs
DEADLINE = 5.0  # s for one leg, after which somebody who waits gives up
SENTENCE = 240  # letters of what the library says

SPNEGO = "1.3.6.1.5.5.2"
KRB5 = "1.2.840.113554.1.2.2"
CHANNEL_BOUND = 0x800  # GSS_C_CHANNEL_BOUND_FLAG, MIT krb5 1.19
ANONYMOUS = 0x40  # GSS_C_ANON_FLAG, RFC 2744
PAC = b"urn:mspac:"  # the whole of it
LOGON_INFO = b"urn:mspac:logon-info"
MEANINGS = frozenset("/\\@")  # what has a meaning in the name of a principal (RFC 1964 2.1.1)
NTLM_MARK = b"NTLMSSP\0"  # MS-NLMP 2.2.1
NTLM_OID = bytes.fromhex("2b06010401823702020a")  # 1.3.6.1.4.1.311.2.2.10, as DER has it
NO_PAC = (
    "the ticket has no PAC, which require_pac wants: the client has declined it, or the account of the service has "
    "(NO_AUTH_DATA_REQUIRED), or the KDC makes none"
)
ONLY_KERBEROS = "NTLM token offered, only Kerberos available (the client has got no ticket for this name)"

# What the library says, and what is the matter.  By text: its numbers depend on which errors came before.
_MEANINGS = (
    ("is a replay", "replay: this token was used before"),
    ("Clock skew", "clock skew: the clocks of the client and of this machine are too far apart"),
    ("expired", "the ticket has expired"),
    ("not yet valid", "the ticket is not valid yet"),
    ("Decrypt integrity", "the token was changed on its way, or is of another key than the ticket's"),
    ("encryption type", "encryption type: the ticket is of one that is not allowed here"),
    ("replay cache", "the replay cache cannot be used (KRB5RCACHEDIR names its directory)"),
    ("Permission denied", "the keytab or the replay cache may not be opened"),
    ("No such file", "the directory of the replay cache is not there"),
    ("can't decode byte", "a name in the ticket is not UTF-8"),
    ("malformed", "the token is damaged"),
)
_SAYS_NOTHING = ("", "Success", "Unknown error")
_OTHER_KEY = re.compile(r"Cannot decrypt ticket for (\S+) using keytab key for (\S+)|Cannot find key for ")


class GssError(Exception):
    """A logon has failed; its text is for the log."""


class Unworkable(GssError):
    """Kerberos could not even begin: there is no key for the ticket, or no token that the library knows."""


class _OtherKey(GssError):
    """The ticket is of another key than that of the principal it was tried with."""


class _NoKey(_OtherKey, Unworkable):
    """The ticket says that it is for another principal, or of another version of the key."""


class PasswordError(GssError):
    """A password logon has failed; `is_known`: the KDC knows the user, so that the log may show the name."""

    def __init__(self, why: str, *, is_known: bool = False) -> None:
        super().__init__(why)
        self.is_known = is_known


class GssBusy(Exception):
    """No thread was free, or the library did not answer in time; its text is for the log."""


class Leg(NamedTuple):
    """The handshake goes on: what the client has to be sent."""

    token: bytes


class Proxy(NamedTuple):
    """Who we are to the KDC where we act for others: a principal, its key in `keytab`, and the library's name of the
    cache that has our ticket-granting ticket."""

    principal: str
    keytab: Path
    cache: str


class Delegated(NamedTuple):
    """What the logon of `name` lets us do at other services in his name: a credential of the library's; None: nothing,
    and `why`."""

    name: str
    credential: Any
    why: str


# `exchange.state(DELEGATED)["logon"]` is the `Delegated` of the exchange, if its logon had one: what is there ends with
# the exchange
DELEGATED = "kerberos delegation"


class Logon(NamedTuple):
    """Somebody has logged on: ``user@REALM``, for how many seconds more, his SIDs, whether he said which channel he is
    on, the token that proves to the client who we are (empty: he did not ask), and what he has delegated (None: nobody
    asked for that)."""

    name: str
    lifetime: int
    sids: tuple[str, ...]
    is_bound: bool
    token: bytes
    delegated: Delegated | None = None


Acting = Callable[[frozenset[str]], Awaitable[Proxy]]  # by which account for logons to these names; see `Handshake`


def unavailable() -> str:
    """Why the library of Kerberos cannot be used, and what to install; empty: it can."""
    try:
        library()
    except ImportError as error:
        return (
            f"Kerberos needs the package gssapi, and it cannot be loaded ({error}): pip install 'frontd[kerberos]', "
            "which needs a C compiler and libkrb5-dev (Debian), and libgssapi-krb5-2 where it runs"
        )
    return ""


@functools.cache
def library() -> Any:
    """`gssapi`, so that errors are raised where they belong.  Raises `ImportError`."""
    gssapi = importlib.import_module("gssapi")
    gssapi.SecurityContext.__DEFER_STEP_ERRORS__ = False
    return gssapi


@functools.cache
def oid(dotted: str) -> Any:
    """A mechanism as the library takes it."""
    return library().OID.from_int_seq(dotted)


async def in_thread(function: Callable[..., T], *arguments: object) -> T:
    """`function` in a thread of this module.  Raises what it raises, and `GssBusy`."""
    if THREADS.available_tokens < 1 and THREADS.statistics().tasks_waiting >= QUEUE:
        raise GssBusy(f"{QUEUE} logons wait")
    with trio.move_on_after(DEADLINE):
        return await trio.to_thread.run_sync(function, *arguments, limiter=THREADS, abandon_on_cancel=True)
    raise GssBusy(f"the library of Kerberos has not answered for {DEADLINE:g} s (a slow disk, or its name service)")


class Handshake:
    """One logon, leg by leg.

    `keytab` has the keys, `spns` are the allowed names in lower case (``http/www.example.com``, or with a realm behind
    ``@``), `binding` is the application data of RFC 5929 (None: any channel will do).

    Without `requires_pac` a ticket may have no PAC; its name is then believed.

    With `acting` the logon tells what was delegated: the ticket that the client has forwarded, or else the one for us
    as evidence (S4U2Proxy, MS-SFU 3.2.5.2), where `acting` finds an account for it and does not raise `GssError` or
    `GssBusy`.
    """

    def __init__(
        self, keytab: Path, spns: frozenset[str], binding: bytes | None, acting: Acting | None = None, *,
        requires_pac: bool = True,
    ) -> None:  # fmt: skip
        self._keytab = keytab
        self._spns = spns
        self._binding = binding
        self._acting = acting
        self._requires_pac = requires_pac
        self._proxy: Proxy | None = None
        self._alone = "no ticket was forwarded, and the logon is for another name than our account's"
        self._context: Any = None
        self._is_over = False

    async def step(self, token: bytes) -> Leg | Logon:
        """Take a token of the client's.  Raises `GssError` and `GssBusy`, after which the handshake is over."""
        if self._is_over:
            raise GssError("the handshake is over")
        self._is_over = True  # until it is known to go on, also when we are cancelled while the thread is at work
        if self._acting is not None and self._context is None:
            try:
                self._proxy = await self._acting(self._spns)
            except (GssError, GssBusy) as error:  # which keeps nobody from logging on
                self._alone = str(error)
        found = await in_thread(self._step, token)
        self._is_over = isinstance(found, Logon)
        return found

    def _step(self, token: bytes) -> Leg | Logon:
        if not token:
            raise GssError("the token is empty")
        if token.startswith(NTLM_MARK):
            raise GssError(ONLY_KERBEROS)
        if self._context is not None:
            return self._stepped(token)
        *others, last = self._principals()
        for principal in others:
            with contextlib.suppress(_OtherKey):
                self._context = self._begun(principal)
                return self._stepped(token)
        self._context = self._begun(last)
        return self._stepped(token)

    def _principals(self) -> list[str]:
        """The principals of the keytab that are allowed; at least one.  Raises `GssError`."""
        try:
            stat = self._keytab.stat()
            keys = _keys(self._keytab, (stat.st_mtime_ns, stat.st_size, stat.st_ino))
        except OSError as error:
            raise GssError(f"the keytab {self._keytab} cannot be used: {error.strerror}") from error
        except keytab.BadKeytab as error:
            raise GssError(f"the keytab cannot be used: {error}") from error
        names = dict.fromkeys(key.principal for key in keys if {key.spn.lower(), key.principal.lower()} & self._spns)
        if not names:
            raise Unworkable(f"the keytab {self._keytab} has no key for {' or '.join(sorted(self._spns))}")
        return list(names)

    def _begun(self, principal: str) -> Any:
        """A context that accepts tickets for `principal`.  Raises `GssError`."""
        gssapi = library()
        store, usage = {"keytab": f"FILE:{self._keytab}", "rcache": "dfl:"}, "accept"
        if self._proxy is not None and self._proxy.principal == principal:
            store |= {"client_keytab": f"FILE:{self._proxy.keytab}", "ccache": self._proxy.cache}
            usage = "both"
        binding = None
        if self._binding is not None:
            binding = gssapi.raw.ChannelBindings(application_data=self._binding)
        try:
            credential = gssapi.Credentials(
                name=gssapi.Name(principal, gssapi.NameType.kerberos_principal),
                usage=usage, mechs=[oid(SPNEGO), oid(KRB5)], store=store,
            )  # fmt: skip
            gssapi.raw.set_neg_mechs(credential, [oid(KRB5)])
            return gssapi.SecurityContext(creds=credential, usage="accept", channel_bindings=binding)
        except gssapi.exceptions.GSSError as error:
            raise GssError(f"the keytab {self._keytab} cannot be used: {statement(error)}") from error

    def _stepped(self, token: bytes) -> Leg | Logon:
        """Raises `GssError`."""
        context = self._context
        try:
            answer = context.step(token) or b""
            if context.complete:
                return self._logon(answer)
        except library().exceptions.GSSError as error:
            raise _meaning(error, token) from error
        except UnicodeDecodeError as error:
            raise GssError("a name in the ticket is not UTF-8") from error
        if not answer:
            raise GssError("the handshake is not complete, and there is nothing to send")
        return Leg(answer)

    def _logon(self, answer: bytes) -> Logon:
        context = self._context
        flags = int(context.actual_flags)
        if context.mech != oid(KRB5):
            raise GssError("the handshake was not done with Kerberos")
        asked = str(context.initiator_name)
        if flags & ANONYMOUS or asked.lower().startswith("wellknown/anonymous@"):
            raise GssError("the ticket is an anonymous one (RFC 8062)")
        info = _info(context.initiator_name, self._requires_pac)
        name = _name(asked, info)
        delegated = Delegated(name, context.delegated_creds, self._alone) if self._acting is not None else None
        is_bound = bool(flags & CHANNEL_BOUND)
        sids = info.sids if info is not None else ()
        return Logon(name, int(context.lifetime), sids, is_bound, answer, delegated)


def _name(asked: str, info: pac.LogonInfo | None) -> str:
    """``user@REALM``: the account that the PAC names, or where none does the name in the ticket, whose parts are plain.

    The name in a ticket is what the client has asked the KDC for.  A domain controller takes many names for one account
    (MS-KILE 3.3.5.6.1): in other letters, without a machine's ``$``, a userPrincipalName that is another's account
    name.  Raises `GssError`.
    """
    user, _, realm = asked.rpartition("@")
    if not user or not realm or user.endswith("\\"):  # there is none, or the @ is one of the name
        raise GssError("the realm in the ticket is none")
    if info is None:
        if MEANINGS & set(user):
            raise GssError("the ticket tells of no account, and its name is none of a user (RFC 1964 2.1.1)")
        return asked
    if not info.user or MEANINGS & set(info.user) or not info.user.isprintable():
        raise GssError("the account in the PAC of the ticket has a name that is none of a user")
    return f"{info.user}@{realm}"


def _info(name: Any, requires_pac: bool) -> pac.LogonInfo | None:
    """What the PAC says of the account; None where the KDC is none of a Windows domain.

    The PAC of a domain controller has logon information (MS-PAC 2.4), or the ticket has no PAC at all (MS-KILE
    3.3.5.3).  One with nothing but the name of the ticket and checksums is that of a KDC which has one name for each of
    its users.  Raises `GssError` for a PAC that is damaged, or missing.
    """
    attributes = set(name.attributes)
    try:
        if LOGON_INFO in attributes:
            return pac.read(_signed(name, LOGON_INFO))
        if not requires_pac:
            return None
        if PAC not in attributes:
            raise GssError(NO_PAC)
        if others := pac.buffers(_signed(name, PAC)) - pac.PLAIN:
            raise GssError(f"the PAC of the ticket has no logon information, but buffers of type {sorted(others)}")
    except pac.BadPac as error:
        raise GssError(f"the PAC of the ticket cannot be read: {error}") from error
    return None


def _signed(name: Any, attribute: bytes) -> bytes:
    """A part of the PAC, or all of it.  Raises `GssError` where it is not signed with our key."""
    found = name.attributes[attribute]
    if not found.authenticated or len(found.values) != 1:
        raise GssError("the PAC of the ticket is not signed by the KDC")
    return bytes(next(iter(found.values)))


@functools.lru_cache(maxsize=64)
def _keys(path: Path, stamp: tuple[int, int, int]) -> tuple[keytab.Key, ...]:
    """The keys of a keytab, read once for each `stamp`.  Raises `BadKeytab`."""
    return keytab.read(path)


def _meaning(error: Any, token: bytes) -> GssError:
    """What is the matter, in a sentence, and what the library says."""
    exceptions = library().exceptions
    if isinstance(error, exceptions.BadMechanismError):
        if NTLM_MARK in token or NTLM_OID in token:
            return Unworkable(ONLY_KERBEROS)
        return Unworkable("a mechanism other than Kerberos was offered, and only Kerberos is available")
    if isinstance(error, exceptions.BadChannelBindingsError):
        return GssError(
            "binding mismatch: the client's channel is not ours (another TLS terminator, or somebody in between)"
        )
    if isinstance(error, exceptions.InvalidTokenError):
        return Unworkable("the token is no token of Kerberos or SPNEGO")
    said = statement(error)
    if other := _OTHER_KEY.match(said):
        ticket, ours = other.groups()
        if ticket != ours:
            return _NoKey(f"wrong SPN: the ticket is for {ticket}, not for {ours}")
        if not ours:
            return _NoKey(f"key version: the keytab is older than the ticket, or newer ({said})")
        return _OtherKey(f"wrong key: the keytab's is not the KDC's ({said})")
    if said in _SAYS_NOTHING:
        return GssError(f"the token is damaged ({type(error).__name__})")
    meaning = next((meaning for text, meaning in _MEANINGS if text.lower() in said.lower()), "")
    return GssError(f"{meaning} ({said})" if meaning else said)


def statement(error: Any) -> str:
    """What the library says of an error, as a part of one line."""
    text = " ".join(error.get_all_statuses(error.min_code, False)).rstrip("\0")
    return "".join(letter if letter.isprintable() else "?" for letter in text)[:SENTENCE]


# ---------------------------------------------------------------------------------------------------- passwords


def password_logon(user: str, password: str, keytab: Path, spn: str, *, requires_pac: bool = True) -> Logon:
    """Whose password it is; blocks while the KDC is asked.

    Gets a ticket for `user` (``name@REALM``) by the password (RFC 4120 3.1), with it one for our own `spn`
    (``HTTP/host@REALM``), and accepts that with the key of `keytab`: a KDC that somebody put in the place of the
    realm's can say yes to any password, but has not got that key.  Raises `GssError` where that fails, `PasswordError`
    where it is the KDC that refuses, and `GssBusy` where it cannot be asked.
    """
    gssapi = library()
    principal, mechanism = gssapi.NameType.kerberos_principal, oid(KRB5)
    try:
        acquired = gssapi.raw.acquire_cred_with_password(
            gssapi.Name(user, principal), password.encode(), mechs=[mechanism], usage="initiate"
        )
    except gssapi.exceptions.GSSError as error:
        raise _password_refused(error) from error
    try:
        credential = gssapi.Credentials(acquired.creds)
        service = gssapi.Name(spn, principal)
        token = gssapi.SecurityContext(name=service, creds=credential, mech=mechanism, usage="initiate", flags=0).step()
    except gssapi.exceptions.GSSError as error:
        raise _trouble(error) from error
    found = Handshake(keytab, frozenset({spn.lower()}), None, requires_pac=requires_pac)._step(token or b"")
    if not isinstance(found, Logon):
        raise GssError("the ticket for ourselves is no whole logon")
    return found


# What the KDC, by way of the library, says to a password: the meaning, and whether it knows the user (RFC 4120 7.5.9).
_REFUSALS = (
    ("Preauthentication failed", "the password is wrong", True),
    ("Password incorrect", "the password is wrong", True),
    ("Decrypt integrity", "the password is wrong", True),
    ("credentials have been revoked", "the account is disabled, locked out or has expired", True),
    ("entry in database has expired", "the account has expired", True),
    ("has expired", "the password has expired", True),
    ("not found in Kerberos database", "there is no such user", False),
)
# What keeps the KDC from looking at a password at all.
_UNREACHED = ("Cannot contact any KDC", "Cannot find KDC", "Cannot resolve", "Clock skew")


def _password_refused(error: Any) -> PasswordError | GssBusy:
    said = statement(error)
    for text, meaning, is_known in _REFUSALS:
        if text.lower() in said.lower():
            return PasswordError(meaning, is_known=is_known)
    if any(text.lower() in said.lower() for text in _UNREACHED):
        return GssBusy(said)
    # Texts of the library name the user, and that may be a password in the wrong field
    return PasswordError(f"the KDC refuses the logon (code {error.min_code & 0xFFFFFFFF:#x})")


def _trouble(error: Any) -> GssError | GssBusy:
    """Why there is no ticket for ourselves, after the password was right: never a matter of guessing."""
    said = statement(error)
    if "not found in Kerberos database" in said:
        return GssBusy(f"the KDC has no service of this name: {said}")
    return GssBusy(said)
