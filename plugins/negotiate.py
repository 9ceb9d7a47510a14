"""Negotiate authentication (RFC 4559): logons of a Windows domain, or of any other realm of Kerberos.

How it works
------------
A browser that is challenged with ``Negotiate`` gets itself a ticket for ``HTTP/host`` from the KDC and sends it in
``Authorization``.  One such token is a whole logon as a rule; `_gss` verifies it with the key of the keytab, in a
thread.  The answer to it, by which the client knows that we have the key, goes out with the answer to the request,
whichever that is.  A handshake of several legs (RFC 4178 4.2) lives in the state of the connection meanwhile.

Each request is a logon of its own, as with HTTP.sys, where ``EnableKerberosCredentialCaching`` is off: a client that
asks for mutual authentication expects a proof with each answer.  With ``persist: connection`` the connection is
remembered to be somebody's, until the ticket ends.

NTLM is there only when it is listed.  Then it is done where the client prefers it, and where the client would rather
have Kerberos but sends no ticket, or one that we have no key for: the server chooses NTLM, and asks for a signature of
the list of mechanisms (RFC 4178 5).  A token that Kerberos has looked at and refused, as a replay is, or one of another
channel, stays refused.  Its legs are read by `_spnego` and `_ntlm`, and never shown to GSSAPI.  It logs on the
connection, not the request, as with HTTP.sys (`_ntlm_desk` says how).  Where it is not listed, GSSAPI gets every token,
and Kerberos is all it knows.

Extended protection (RFC 5929, tls-server-end-point): the client tells in its token which certificate it has been shown.
``allow`` refuses whoever tells of another one than ours, ``require`` also whoever tells of none.  On plain http there
is no certificate of ours: with ``allow`` whoever tells of one is refused, unless it may be that of a trusted proxy.

What a logon lets us do in the user's name elsewhere (``delegation``) is left in the exchange for whoever forwards it.
The KDC has then to know us; while it cannot be asked, people log on all the same and nothing is delegated.

Invariants
----------
* Only a handshake that `_gss`, or `_spnego`, calls complete gives an identity.
* An ``Authorization`` field, whatever is in it, ends the connection's identity before anything else is done with it,
  and so does an error end a handshake: nothing of it is left for the next request.
* No connection is remembered to be somebody's that comes from a trusted proxy, or carries a request with ``Via``: it
  may have many users.
* The proof for the client goes out with its own exchange alone, and after anybody who keeps answers has had his copy.
  Tokens that an app sends are dropped: here they mean nothing, and in a cache they would be somebody else's.
* What was delegated ends with the exchange, or with the connection where that is remembered; only with
  ``delegation: true`` is there any.
* A 401 carries no proof: there a token would be a leg of a handshake (RFC 4559 4.2), and this one is over.
"""

from __future__ import annotations

import base64
import binascii
import math
import secrets
import time
from collections.abc import Coroutine, Iterable, Mapping
from typing import Any, ClassVar, Literal, NamedTuple, Self

import trio
from frontd_plugins import _gss as gss
from frontd_plugins import _gss_initiate as initiate
from frontd_plugins import _keytab as keytab
from frontd_plugins import _ntlm_desk as desk
from frontd_plugins import _winbind as winbind
from frontd_plugins._ntlm import SIGNATURE, NtlmError, is_first
from frontd_plugins._spnego import NTLM, NtlmInSpnego, offer, wants_ntlm
from pydantic import Field, field_validator, model_validator

import frontd

LEGS = 4  # of one handshake: Kerberos takes one, SPNEGO's negotiation at most two more (RFC 4178 4.2)
HANDSHAKE = 30.0  # s from the first leg to the last
TOKEN = 48 << 10  # bytes; MaxTokenSize of Windows is 48000 (in base64 HTTP.sys could not take more: MaxFieldLength)
FIELD = 4 * TOKEN // 3  # letters of it in base64
END_POINT = b"tls-server-end-point:"  # RFC 5929 4
INITIAL = 0x60  # the first byte of a first token, RFC 2743 3.1

Answer = frontd.Identity | frontd.Continue | frontd.Refuse


class Pending(NamedTuple):
    """A handshake of which a leg was answered: when it began (s of trio's clock), how many legs it has had, and why
    Kerberos did not work before NTLM was chosen."""

    handshake: gss.Handshake | NtlmInSpnego
    began: float
    legs: int
    before: str = ""


class Remembered(NamedTuple):
    """Whose a connection is, until when (s of trio's clock), and what was delegated with the logon."""

    identity: frontd.Identity
    until: float
    delegated: gss.Delegated | None


class Negotiate(frontd.Plugin):
    """Logs people on with the tickets that they have already."""

    name = "negotiate"
    scheme = "Negotiate"
    # A ticket of somebody with many groups, and beside it as much as every request may have (16 KiB)
    limits: ClassVar[Mapping[str, int]] = {"max_field": FIELD + 64, "max_head": FIELD + (16 << 10)}
    follow_ups = frozenset({"rewrite_response"})

    class Settings(frontd.Settings):
        """What may stand under ``negotiate:``."""

        keytab: frontd.File = Field(
            description="File with the keys of the service, made by `ktpass`, `kadmin` or `samba-tool`. Read again "
            "with each logon, so a new one is in force at once."
        )
        spns: tuple[str, ...] = Field(
            default=(),
            description="The service principal names that tickets may be for, as `HTTP/www.example.com`, with or "
            "without `@REALM`. Default: `HTTP/` and the host of the request, which is one of the site's (RFC 4559 4).",
        )
        require_pac: frontd.Flag = Field(
            default=True,
            description="Refuse tickets without a PAC, by which the KDC says whose account it is. A domain controller "
            "leaves it out when the client wishes, and the name in such a ticket may be another account's. `false` is "
            "for realms without Windows whose KDC makes no PACs: MIT before 1.20, Heimdal.",
        )
        mechanisms: tuple[Literal["kerberos", "ntlm"], ...] = Field(
            default=("kerberos",),
            min_length=1,
            description="What may be negotiated. HTTP.sys offers both; here NTLM is left out until it is listed, since "
            "its tokens can be relayed.",
        )
        persist: Literal["request", "connection"] = Field(
            default="request",
            description="For how long a logon holds: for its request, or for its connection while the ticket lasts "
            "(HTTP.sys: request, EnableKerberosCredentialCaching off).",
        )
        extended_protection: Literal["none", "allow", "require"] = Field(
            default="allow",
            description="Whether a token must be bound to this TLS connection (RFC 5929, tls-server-end-point): `none` "
            "does not look, `allow` refuses a wrong binding (on plain http any, except from a trusted proxy), "
            "`require` also none (IIS tokenChecking: None; `allow` here, since whoever tells of another certificate "
            "was shown another one).",
        )

        delegation: frontd.Flag = Field(
            default=False,
            description="Keep what a logon lets us do at other services in the user's name, which "
            "`upstream_kerberos` needs: the ticket that his client forwards, or else his ticket for us as evidence "
            "(S4U2Proxy). The account of the keytab has to be allowed to log on under its SPN, and to delegate.",
        )
        group_names: Literal["none", "winbind"] = Field(
            default="none",
            description="Where the names of groups come from, of which a ticket has only the SIDs: `winbind`, on a "
            "member of the domain, makes them `DOMAIN\\group` for rules and apps.",
        )
        ntlm: desk.NtlmSettings | None = Field(
            default=None,
            description="Who may log on by NTLM, where `mechanisms` has it: the settings of the plugin `ntlm` without "
            "`spns` and `extended_protection`, which are those from here.",
        )

        @field_validator("spns")
        @classmethod
        def _named(cls, spns: tuple[str, ...]) -> tuple[str, ...]:
            for spn in spns:
                if not keytab.is_spn(spn):
                    raise ValueError(f"{spn!r} is no service principal name; one is written HTTP/www.example.com")
            return spns

        @model_validator(mode="after")
        def _both(self) -> Self:
            if ("ntlm" in self.mechanisms) != (self.ntlm is not None):
                raise ValueError("NTLM is for mechanisms: [kerberos, ntlm], and ntlm: has then to say who may log on")
            if "kerberos" not in self.mechanisms:
                raise ValueError("without kerberos there is nothing to negotiate: use the plugin ntlm")
            return self

    settings: Settings

    @classmethod
    def check(cls, settings: Any, site: frontd.SiteFacts) -> Iterable[str]:
        """A library that is missing, a keytab without the site's keys, a protection that cannot be had."""
        if fault := gss.unavailable():
            yield fault
        if settings.ntlm is not None:
            yield from desk.complaints(settings.ntlm)
        if settings.group_names == "winbind" and (fault := winbind.missing()):
            yield fault
        plain = [str(url) for url in site.urls if url.scheme != "https"]
        if plain and settings.extended_protection == "require":
            yield (
                f"extended_protection: require needs TLS that ends here, and this site has {plain[0]}: "
                "serve it over https only, or say allow"
            )
        try:
            keys = keytab.read(settings.keytab)
        except keytab.BadKeytab as error:
            yield str(error)
            return
        if not keys:
            yield f"{settings.keytab} has no keys"
        elif absent := _absent(settings, site, keys):
            yield (
                f"{settings.keytab} has no key for {', '.join(absent)}, for which clients of this site will have "
                f"tickets (or say spns); it has: {keytab.told(keys)}"
            )

    @classmethod
    def untold(cls, settings: Any) -> frozenset[str]:
        """Tickets have no names of groups."""
        by_ticket = {"groups"} if settings.group_names == "none" else ()
        return frozenset(by_ticket) | (desk.untold(settings.ntlm) if settings.ntlm is not None else frozenset())

    def prepare(self) -> None:
        """Say which keys there are.  Raises `ValueError` when nobody could log on."""
        if fault := gss.unavailable():
            raise ValueError(fault)
        self._spns = frozenset(spn.lower() for spn in self.settings.spns)
        self._desk: desk.Desk | None = None
        if self.settings.ntlm is not None:
            services = [spn.partition("@")[0] for spn in self.settings.spns]  # NTLM knows no realms
            self._desk = desk.Desk(self.settings.ntlm, self.settings.extended_protection, services, self.remark)
        keys = keytab.read(self.settings.keytab)
        self._acting: gss.Acting | None = None
        if self.settings.delegation:
            self._acting = initiate.acting(self.settings.keytab, (key.principal for key in keys))
        self.remark(f"{self.settings.keytab}: {keytab.told(keys)}")

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Read the users file of NTLM again whenever it has changed."""
        task_status.started()
        if self._desk is not None:
            await self._desk.follow()

    # ---------------------------------------------------------------------------------------------- hooks

    def challenge(self, exchange: frontd.Exchange) -> str | None:
        """``Negotiate`` (RFC 4559 4.1)."""
        return "Negotiate"

    def authenticate(self, exchange: frontd.Exchange) -> frontd.Identity | Coroutine[Any, Any, Answer] | None:
        """Whose ticket it is.

        Refuses with 401 ``LogonFailed`` (IIS 401.1), 429 ``LogonThrottled`` (RFC 6585 4) and 503 ``LogonBusy``.
        """
        state = exchange.client.state(self)
        pending: Pending | None = state.pop("pending", None)
        if b"authorization" not in exchange.request.headers:
            return self._remembered(exchange, state)
        state.clear()
        scheme, token = exchange.request.credentials
        if scheme != "negotiate" or token is None:
            return None
        return self._logon(exchange, pending, token)

    def admit_response(self, exchange: frontd.Exchange) -> None:
        """Drop tokens of the app's: the handshake is ours."""
        headers = exchange.response.headers
        sent = headers.get_all(b"www-authenticate")
        kept = [value for value in sent if not _is_token(value)]
        if len(kept) < len(sent):
            headers.remove(b"WWW-Authenticate")
            for value in kept:
                headers.add(b"WWW-Authenticate", value)

    def rewrite_response(self, exchange: frontd.Exchange) -> None:
        """Add the proof that we have the key (RFC 4559 5)."""
        proof: str | None = exchange.state(self).get("proof")
        if proof and exchange.response.status != 401:
            exchange.response.headers.add(b"WWW-Authenticate", f"Negotiate {proof}".encode())

    # ---------------------------------------------------------------------------------------------- a logon

    def _remembered(self, exchange: frontd.Exchange, state: dict[Any, Any]) -> frontd.Identity | None:
        """Whose the connection is, while the ticket lasts, or by NTLM."""
        found: Remembered | None = state.get("remembered")
        if found is None:
            return self._desk.remembered(exchange, state) if self._desk is not None else None
        if _is_shared(exchange):
            return None
        if trio.current_time() >= found.until:
            del state["remembered"]
            return None
        _delegate(exchange, found.delegated)
        return found.identity

    async def _logon(self, exchange: frontd.Exchange, pending: Pending | None, text: str) -> Answer:
        try:
            token = _decoded(text)
            pending = self._begun(exchange, pending, token)
            if isinstance(pending.handshake, NtlmInSpnego):
                return await self._by_ntlm(exchange, pending, token)
            try:
                found = await pending.handshake.step(token)
            except gss.Unworkable as error:
                pending = self._fallen_back(exchange, pending, token, error)
                return await self._by_ntlm(exchange, pending, token)
            if isinstance(found, gss.Leg):
                return self._next_leg(exchange, pending, found.token)
            groups = await self._groups(found.sids)
            return self._identity(exchange, found, groups)
        except winbind.Busy as error:
            return frontd.Refuse(503, "LogonBusy", log=f"NTLM: {error}", retry_after=1)
        except NtlmError as error:
            before = f" (before it, Kerberos: {pending.before})" if pending is not None and pending.before else ""
            return frontd.Refuse(401, "LogonFailed", substatus=1, log=f"NTLM: {error}{before}")
        except gss.GssError as error:
            return frontd.Refuse(401, "LogonFailed", substatus=1, log=str(error))
        except gss.GssBusy as error:
            return frontd.Refuse(503, "LogonBusy", log=str(error), retry_after=1)

    def _begun(self, exchange: frontd.Exchange, pending: Pending | None, token: bytes) -> Pending:
        """The handshake that a token belongs to, with this leg counted.  Raises `GssError` and `NtlmError`."""
        now = trio.current_time()
        is_ntlm = token.startswith(SIGNATURE)
        # Whoever begins anew has given up the old one
        if token[0] == INITIAL or (is_ntlm and (pending is None or is_first(token))):
            if self._desk is not None and (is_ntlm or _has_no_ticket(token)):
                if obstacle := self._desk.obstacle(exchange):
                    raise NtlmError(obstacle)
                return Pending(NtlmInSpnego(self._desk.acceptor(exchange)), now, 1)
            spns = self._spns or frozenset({f"http/{exchange.request.host.lower()}"})
            handshake = gss.Handshake(
                self.settings.keytab, spns, self._binding(exchange), self._acting,
                requires_pac=self.settings.require_pac,
            )  # fmt: skip
            return Pending(handshake, now, 1)
        if pending is None:
            raise gss.GssError("it is no first token, and no handshake is under way on this connection")
        if now - pending.began > HANDSHAKE:
            raise gss.GssError(f"the handshake took longer than {HANDSHAKE:g} s")
        if pending.legs >= LEGS:
            raise gss.GssError(f"the handshake took more than {LEGS} legs")
        return pending._replace(legs=pending.legs + 1)

    def _binding(self, exchange: frontd.Exchange) -> bytes | None:
        """What the client's token has to be bound to, if it is bound.  Raises `GssError` where it must and cannot."""
        protection = self.settings.extended_protection
        if protection == "none":
            return None
        tls = exchange.client.tls
        binding = tls.channel_binding if tls is not None else None
        if binding is None and protection == "require":
            raise gss.GssError("extended_protection: require, and this connection has no TLS that ends here")
        if tls is None and not exchange.client.is_trusted_proxy:
            return END_POINT + secrets.token_bytes(32)  # nobody's: whoever tells of TLS has it with somebody else
        return binding

    def _fallen_back(self, exchange: frontd.Exchange, pending: Pending, token: bytes, error: gss.Unworkable) -> Pending:
        """Choose NTLM after a first leg that was nothing for Kerberos.  Raises `error` where that cannot be."""
        if self._desk is None or pending.legs > 1 or not _offers_ntlm(token) or self._desk.obstacle(exchange):
            raise error
        return Pending(NtlmInSpnego(self._desk.acceptor(exchange)), pending.began, pending.legs, str(error))

    async def _by_ntlm(self, exchange: frontd.Exchange, pending: Pending, token: bytes) -> Answer:
        """One leg of NTLM.  Raises `NtlmError`."""
        handshake = pending.handshake
        assert self._desk is not None
        assert isinstance(handshake, NtlmInSpnego)
        found = handshake.receive(token)
        if isinstance(found, bytes):
            return self._next_leg(exchange, pending, found)
        address = exchange.client.address
        if wait := self._desk.throttled(found, address):
            return frontd.Refuse(429, "LogonThrottled", retry_after=math.ceil(wait))
        identity, last = await self._desk.verify(found, address, handshake.complete)
        self._desk.remember(exchange, exchange.client.state(self), identity)
        self._prove(exchange, last)
        return identity

    def _next_leg(self, exchange: frontd.Exchange, pending: Pending, token: bytes) -> Answer:
        if exchange.client.is_trusted_proxy:
            raise gss.GssError("a handshake of several legs over a trusted proxy, whose connections carry many users")
        exchange.client.state(self)["pending"] = pending
        return frontd.Continue(base64.b64encode(token).decode(), "Negotiate")

    async def _groups(self, sids: tuple[str, ...]) -> tuple[str, ...]:
        """What the groups of a ticket are called, where that is wanted.  Raises `GssBusy`."""
        if self.settings.group_names == "none" or not sids:
            return ()
        try:
            return await winbind.group_names(sids)
        except winbind.Unavailable as error:  # the ticket was right, and rules may refuse by the name of a group
            raise gss.GssBusy(f"the names of the groups: {error}") from error

    def _identity(self, exchange: frontd.Exchange, logon: gss.Logon, groups: tuple[str, ...]) -> frontd.Identity:
        if self.settings.extended_protection == "require" and not logon.is_bound:
            raise gss.GssError("extended_protection: require, and the token is bound to no channel")
        if logon.lifetime <= 0:
            raise gss.GssError("the ticket has expired")
        keeps = self.settings.persist == "connection" and not _is_shared(exchange)
        identity = frontd.Identity(
            logon.name, groups, logon.sids, scheme="Negotiate", expires=_end(time.time(), logon.lifetime),
            connection_bound=keeps,
        )  # fmt: skip
        if keeps:
            until = trio.current_time() + logon.lifetime
            exchange.client.state(self)["remembered"] = Remembered(identity, until, logon.delegated)
        self._prove(exchange, logon.token)
        _delegate(exchange, logon.delegated)
        return identity

    def _prove(self, exchange: frontd.Exchange, token: bytes) -> None:
        """Have the client sent the last token of the handshake, if there is one."""
        if token:
            exchange.state(self)["proof"] = base64.b64encode(token).decode()


def _end(now: float, lifetime: int) -> float:
    """When a ticket ends, rounded down to a whole minute, so that all logons with one ticket are equal; exactly in its
    last minute."""
    end = now + lifetime
    return end if lifetime < 60 else end - end % 60


def _is_shared(exchange: frontd.Exchange) -> bool:
    """Whether a proxy has sent this: its connections may carry many users."""
    return exchange.client.is_trusted_proxy or b"via" in exchange.request.headers


def _delegate(exchange: frontd.Exchange, delegated: gss.Delegated | None) -> None:
    """Leave what was delegated for whoever forwards the request."""
    if delegated is not None:
        exchange.state(gss.DELEGATED)["logon"] = delegated


def _decoded(text: str) -> bytes:
    """The token of the field.  Raises `GssError`."""
    if len(text) > FIELD:
        raise gss.GssError(f"the token is longer than {TOKEN} bytes")
    try:
        token = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise gss.GssError("the token is not base64") from error
    if not token:
        raise gss.GssError("the token is empty")
    return token


def _has_no_ticket(token: bytes) -> bool:
    """Whether a first token is NTLM's: the client prefers it, or would rather have Kerberos and sends no ticket."""
    try:
        offered = offer(token)
    except NtlmError:
        return False
    return wants_ntlm(offered) or (offered.token is None and NTLM in offered.mechanisms)


def _offers_ntlm(token: bytes) -> bool:
    """Whether a first token is of SPNEGO, and NTLM is one of its mechanisms."""
    try:
        return NTLM in offer(token).mechanisms
    except NtlmError:
        return False


def _is_token(challenge: bytes) -> bool:
    """Whether a value of ``WWW-Authenticate``, a list, has a leg of Negotiate and not only its offer."""
    parts = (part.split(None, 1) for part in challenge.split(b","))
    return any(len(words) > 1 and words[0].lower() == b"negotiate" for words in parts)


def _absent(settings: Any, site: frontd.SiteFacts, keys: Iterable[keytab.Key]) -> list[str]:
    """The names that clients will want tickets for, as far as they are known, of which there is no key."""
    hosts = [f"HTTP/{url.host}" for url in site.urls if not set("+*") & set(url.host)]
    have = {name.lower() for key in keys for name in (key.spn, key.principal)}
    return [spn for spn in dict.fromkeys(settings.spns or hosts) if spn.lower() not in have]
