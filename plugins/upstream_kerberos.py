"""Kerberos towards the app (RFC 4559 as a client): it sees the user, or frontd itself, by a ticket of his.

How it works
------------
Requests to the pools that are named get an ``Authorization: Negotiate`` with a token for the app's service principal
name, made by `_gss_initiate` in a thread.  In whose name it is says `mode`:

* ``own``: frontd's, by the key of a keytab.
* ``delegate``: the user's, by what his Kerberos logon has delegated (`negotiate` with ``delegation: true`` leaves that
  in the exchange): the ticket that he forwarded, or his ticket for us as evidence (constrained delegation, S4U2Proxy).
* ``transition``: as ``delegate``; and whoever has logged on in another way is named to the KDC, which gives us a ticket
  for ourselves in his name without a proof of his (protocol transition, S4U2Self), and with it one for the app.

The KDC decides who may delegate whom, and to which services.

An app that refuses the token answers 401 with a challenge.  Nobody else can do anything about that: a client would log
on to us again, in vain.  So it becomes 502, and the tickets that we made the token with are got anew next time.

Invariants
----------
* No request goes to such a pool without a token of its own; whoever has none is refused, and nothing was forwarded
  then.  Some apps remember on a connection whose it is: one that carried a token ends with it.
* What was delegated serves the identity with which it came into the exchange, and no other.
* Users of a directory of our own, such as a users file, are taken for users of a realm only as the settings say.
* The app's side of the handshake ends here: no challenge and no token of it reaches the client.
"""

from __future__ import annotations

import base64
import difflib
from collections.abc import Coroutine, Iterable, Mapping
from typing import Any, Literal, NamedTuple

from frontd_plugins import _gss as gss
from frontd_plugins import _gss_initiate as initiate
from frontd_plugins import _keytab as keytab
from pydantic import Field, field_validator

import frontd

OURS = frozenset((b"negotiate", b"kerberos", b"ntlm"))  # challenges of Windows authentication
MEANINGS = frozenset("/\\@")  # what has a meaning in the name of a principal (RFC 1964 2.1.1)


class Token(NamedTuple):
    """What the app is sent, and in whose name it was got by us (empty: in no user's)."""

    value: bytes
    user: str = ""


class Realms(NamedTuple):
    """Where users are at home: the realm of each Windows domain, the realms that a name may have, both by their names
    in capital letters, and the realm of names that have neither (empty: such names are nobody's)."""

    domains: Mapping[str, str]
    known: Mapping[str, str]
    default: str

    def principal(self, name: str) -> str:
        """The ``user@REALM`` of somebody who has logged on.  Raises `GssError` where that is not known."""
        domain, backslash, user = name.rpartition("\\")
        if backslash:
            realm = self.domains.get(domain.upper())
            why = "the realm of the user's domain is not known (realms)"
        elif "@" in name:
            user, _, named = name.rpartition("@")
            realm = self.known.get(named.upper())
            why = "the user's realm is none of ours (realms)"
        else:
            realm = self.default
            why = "the user has neither domain nor realm (default_realm)"
        if not realm:
            raise gss.GssError(why)
        if not user or MEANINGS & set(user) or not user.isprintable():
            raise gss.GssError("the user's name is none of a principal")
        return f"{user}@{realm}"


class UpstreamKerberos(frontd.Plugin):
    """Logs requests on at the app, in the user's name or in frontd's own."""

    name = "upstream_kerberos"
    follow_ups = frozenset({"admit_response"})

    class Settings(frontd.Settings):
        """What may stand under ``upstream_kerberos:``."""

        pools: dict[str, str] = Field(
            min_length=1,
            description="The service principal name of the app behind each pool, as `HTTP/app.example.com`, with or "
            "without `@REALM`. Requests to other pools are left as they are. A route that names a target has a pool "
            "of that name.",
        )
        keytab: frontd.File = Field(description="File with the key of frontd's own account.")
        principal: str = Field(
            default="",
            description="Which account of the keytab we are, as `HTTP/www.example.com@EXAMPLE.COM`. Default: the only "
            "one there is.",
        )
        mode: Literal["own", "delegate", "transition"] = Field(
            default="delegate",
            description="In whose name: `own` is frontd's; `delegate` that of users who have logged on by Kerberos; "
            "`transition` that of all users who have logged on.",
        )
        realms: dict[str, str] = Field(
            default_factory=dict,
            description="For `transition`: the realm of the users of each Windows domain, as "
            "`{CORP: CORP.EXAMPLE.COM}` for `CORP\\user`. Users `user@REALM` are known where the realm is one of "
            "these, or of our own account.",
        )
        default_realm: str = Field(
            default="",
            description="For `transition`: the realm of users whose names have neither domain nor realm, such as those "
            "of a users file. Default: they are refused.",
        )

        @field_validator("pools")
        @classmethod
        def _named(cls, pools: dict[str, str]) -> dict[str, str]:
            for spn in pools.values():
                if not keytab.is_spn(spn):
                    raise ValueError(f"{spn!r} is no service principal name; one is written HTTP/app.example.com")
            return pools

    settings: Settings

    @classmethod
    def check(cls, settings: Any, site: frontd.SiteFacts) -> Iterable[str]:
        """A library or a key that is missing, a mode in which nobody could be known, and pools that cannot be meant."""
        if fault := gss.unavailable():
            yield fault
        if settings.mode != "own" and not site.has_authenticator:
            yield f"mode: {settings.mode} is for users who have logged on, and no plugin here logs anybody on"
        elif settings.mode == "delegate" and "negotiate" not in site.plugins:
            yield "mode: delegate is for logons of negotiate, which is not armed here (mode: transition is for others)"
        for pool in settings.pools:
            if (
                pool not in site.pools and "://" not in pool and not pool.startswith("unix:")
            ):  # which plugins may choose
                near = difflib.get_close_matches(pool, site.pools, n=1)
                yield f"there is no pool {pool}" + (f'; did you mean "{near[0]}"?' if near else "")
            if pool in site.passing:
                yield (
                    f"the pool {pool} leaves logons to its apps (pass_through), and cannot get tokens of ours too: "
                    f"take `pass_through` out of `pools.{pool}`, or `{pool}` out of the pools here"
                )
        try:
            _principal(settings)
        except ValueError as error:
            yield str(error)

    def prepare(self) -> None:
        """Find out who we are.  Raises `ValueError` where the keytab does not say it."""
        if fault := gss.unavailable():
            raise ValueError(fault)
        self._account = initiate.Account(self.settings.keytab, _principal(self.settings))
        domains = {domain.upper(): realm for domain, realm in self.settings.realms.items()}
        known = {realm.upper(): realm for realm in (self._account.realm, *domains.values())}
        self._realms = Realms(domains, known, self.settings.default_realm)

    # ---------------------------------------------------------------------------------------------- hooks

    def rewrite_request(self, exchange: frontd.Exchange) -> Coroutine[Any, Any, None] | None:
        """Add the token.  Raises `FrontdError`: ``DelegationFailed``, ``LogonRequired``."""
        spn = self.settings.pools.get(exchange.pool)
        return None if spn is None else self._logged_on(exchange, spn)

    def admit_response(self, exchange: frontd.Exchange) -> frontd.Response | None:
        """Keep the app's side of the handshake from the client."""
        headers = exchange.response.headers
        headers.remove(b"Persistent-Auth")
        sent = headers.get_all(b"www-authenticate")
        kept = [value for value in sent if not _is_ours(value)]
        if len(kept) == len(sent):
            return None
        if exchange.response.status == 401:
            self._account.forget(exchange.state(self)["user"])
            self.remark(f"request {exchange.id}: {exchange.pool} refuses the token{_of(exchange)}")
            return frontd.Response(502, text="502 Bad Gateway\nThe application refuses the logon.\n")
        headers.remove(b"WWW-Authenticate")
        for value in kept:
            headers.add(b"WWW-Authenticate", value)
        return None

    # ---------------------------------------------------------------------------------------------- tokens

    async def _logged_on(self, exchange: frontd.Exchange, spn: str) -> None:
        try:
            token = await self._token(exchange, spn)
        except (gss.GssError, gss.GssBusy) as error:
            is_busy = isinstance(error, gss.GssBusy)
            raise frontd.FrontdError(
                frontd.Reason["DelegationFailed"], detail=f"{error}{_of(exchange)}",
                status=503 if is_busy else None, retry_after=1 if is_busy else None,
            ) from error  # fmt: skip
        exchange.state(self)["user"] = token.user  # and what comes back has to be looked at
        exchange.request.headers.set(b"Authorization", b"Negotiate " + base64.b64encode(token.value))

    async def _token(self, exchange: frontd.Exchange, spn: str) -> Token:
        """Raises `GssError`, `GssBusy`, and `FrontdError` for an anonymous client."""
        if self.settings.mode == "own":
            return Token(await self._account.token(spn))
        identity = exchange.identity
        if identity is None:
            raise frontd.FrontdError(
                frontd.Reason["LogonRequired"], detail=f"{exchange.pool} is sent known users alone"
            )
        delegated: gss.Delegated | None = exchange.state(gss.DELEGATED).get("logon")
        why = f"a logon by {identity.scheme or 'this plugin'} delegates nothing (mode: transition is for those)"
        if identity.scheme == "Negotiate":
            why = "negotiate has no delegation: true"
        if delegated is not None and delegated.name == identity.name:
            if delegated.credential is not None:
                return Token(await self._account.token_with(delegated, spn))
            why = f"nothing was delegated: {delegated.why}"
        if self.settings.mode == "delegate":
            raise gss.GssError(why)
        user = self._realms.principal(identity.name)
        return Token(await self._account.token_of(user, spn), user)


def _principal(settings: Any) -> str:
    """Which account of the keytab we are.  Raises `ValueError` where that is not clear; blocks."""
    keys = keytab.read(settings.keytab)
    names = list(dict.fromkeys(key.principal for key in keys))
    if settings.principal:
        if settings.principal not in names:
            raise ValueError(f"{settings.keytab} has no key for {settings.principal}; it has: {keytab.told(keys)}")
        return str(settings.principal)
    if len(names) != 1:
        raise ValueError(
            f"{settings.keytab} has keys for {len(names)} principals, so say which one we are (principal)"
            + (f": {', '.join(names)}" if names else "")
        )
    return names[0]


def _of(exchange: frontd.Exchange) -> str:
    """Whose request it is, for the log."""
    return f", for {exchange.identity.name}" if exchange.identity is not None else ""


def _is_ours(challenge: bytes) -> bool:
    """Whether a value of ``WWW-Authenticate`` has a challenge of Windows authentication."""
    return any(part.split(None, 1)[0].lower() in OURS for part in challenge.split(b",") if part.strip())
