"""NTLM over HTTP (MS-NTHT): Windows' logon of a connection, against a file of users or a domain.

How it works
------------
A handshake has two legs, both on one connection: ``Authorization: NTLM`` with a Type 1 message is answered with 401 and
a challenge, and the Type 3 message that follows either logs on or is refused.  `_ntlm` reads and writes the messages,
`_ntlm_users` knows the passwords, or a domain controller that `_winbind` asks; this module knows connections.

With ``persist: connection`` (as HTTP.sys does) requests that follow on the connection without ``Authorization`` are the
user's, too; with ``request`` each one begins anew.  A request with ``Via`` has come through a proxy, which may use one
connection for many users: there each one begins anew, whatever is said.  A trusted proxy does so for certain, and all
that is remembered of its connections is dropped after each exchange; so NTLM is neither offered nor taken there.

Guesses are counted as `basic` counts them (`_throttle`); a guess is a Type 3 message whose proof is looked at.

Invariants
----------
* Whatever comes in ``Authorization``, also for another scheme, ends what the connection was before: its user is
  forgotten first, and a handshake that was under way goes on with this request or not at all.
* A handshake has one challenge, two legs, and `HANDSHAKE_TIME`.  A Type 1 message begins another one, with another
  challenge.  After an error nothing is left of it; the answer is 401 with fresh challenges, and only the log says why.
* A user who stays logged on stands in the file as they did at the logon, hash and groups alike; a user of the domain
  stays as long as the connection.
* A client learns nothing but yes or no; neither names of strangers nor tokens are logged.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Coroutine, Iterable
from typing import Any, Literal, NamedTuple

import trio
from frontd_plugins import _ntlm_desk as desk
from frontd_plugins import _winbind as winbind
from frontd_plugins._ntlm import MESSAGE_MAX, Acceptor, NtlmError, Response, is_first
from pydantic import Field, field_validator

import frontd

TOKEN_MAX = 4 * (MESSAGE_MAX + 2) // 3  # characters of base64

_SPN = re.compile(r"[A-Za-z][A-Za-z0-9]*/[^\s/]+(/[^\s/]+)?")


Verdict = frontd.Identity | frontd.Refuse


class Handshake(NamedTuple):
    """A challenge that is out: what goes on with it, and until when (s of trio's clock)."""

    acceptor: Acceptor
    until: float


class Ntlm(frontd.Plugin):
    """Logs Windows users on by NTLMv2, and checks them against a file, or with a domain controller."""

    name = "ntlm"
    scheme = "NTLM"

    class Settings(desk.NtlmSettings):
        """What may stand under ``ntlm:``."""

        extended_protection: Literal["none", "allow", "require"] = Field(
            default="allow",
            description="Whether a logon must be bound to the TLS connection it came by: `require`; `allow`, right if "
            "it is (clients that cannot do it get in); `none`, not looked at (IIS extendedProtection tokenChecking; "
            "there None).",
        )
        spns: tuple[str, ...] = Field(
            default=(),
            description="Services that clients may mean, such as `HTTP/intranet.example.com`, where they say which. "
            "Default: not looked at (IIS extendedProtection spn).",
        )

        @field_validator("spns")
        @classmethod
        def _service(cls, spns: tuple[str, ...]) -> tuple[str, ...]:
            if wrong := next((spn for spn in spns if _SPN.fullmatch(spn) is None), None):
                raise ValueError(f"{wrong} is no service principal name; write SERVICE/HOST, such as HTTP/a.example")
            return spns

    settings: Settings

    @classmethod
    def check(cls, settings: Any, site: frontd.SiteFacts) -> Iterable[str]:
        """Protection that cannot be had, and whatever is wrong with the users file."""
        plain = [str(url) for url in site.urls if url.scheme != "https"]
        if plain and settings.extended_protection == "require":
            yield (
                f"extended_protection: require binds a logon to a TLS connection that ends here, and {plain[0]} has "
                "none (TLS that ends at another proxy cannot be bound to): serve the site over https only, or say "
                '"extended_protection: allow"'
            )
        yield from desk.complaints(settings)

    @classmethod
    def untold(cls, settings: Any) -> frozenset[str]:
        """A file has no SIDs."""
        return desk.untold(settings)

    def prepare(self) -> None:
        """Read the users.  Raises `ValueError` when the file is not there or has a bad line."""
        settings = self.settings
        self._desk = desk.Desk(settings, settings.extended_protection, settings.spns, self.remark)
        self._has_told = False

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Read the users file again whenever it has changed."""
        task_status.started()
        await self._desk.follow()

    # ---------------------------------------------------------------------------------------------- hooks

    def challenge(self, exchange: frontd.Exchange) -> str | None:
        """``NTLM``; nothing where no logon can come of it."""
        obstacle = self._desk.obstacle(exchange)
        if not obstacle:
            return self.scheme
        if not self._has_told:
            self._has_told = True
            self.remark(f"a client was not offered NTLM: {obstacle}")
        return None

    def authenticate(
        self, exchange: frontd.Exchange
    ) -> frontd.Continue | Verdict | Coroutine[Any, Any, Verdict] | None:
        """The user of this connection, or the next leg of a handshake.

        Refuses with 401 ``LogonFailed`` (IIS 401.1), 429 ``LogonThrottled`` (RFC 6585 4) and 503
        ``LogonBusy``.
        """
        state = exchange.client.state(self)
        if b"authorization" not in exchange.request.headers:
            return self._desk.remembered(exchange, state)
        handshake: Handshake | None = state.get(Handshake)
        state.clear()
        scheme, token = exchange.request.credentials
        if scheme != "ntlm" or token is None:
            return None
        if obstacle := self._desk.obstacle(exchange):
            return _refusal(f"NTLM: {obstacle}")
        is_late = handshake is not None and trio.current_time() > handshake.until
        leg = 1 if handshake is None or is_late else 2
        try:
            message = _decoded(token)
            if handshake is None or is_late or is_first(message):
                return self._begin(exchange, message, state)
            response = handshake.acceptor.response(message)
        except NtlmError as error:
            late = f" (the challenge before it was out for more than {desk.HANDSHAKE_TIME:.0f} s)" if is_late else ""
            return _refusal(f"NTLM, leg {leg}: {error}{late}")
        if wait := self._desk.throttled(response, exchange.client.address):
            return frontd.Refuse(429, "LogonThrottled", retry_after=math.ceil(wait))
        return self._verify(exchange, handshake.acceptor, response, state)

    # ---------------------------------------------------------------------------------------------- a logon

    def _begin(self, exchange: frontd.Exchange, type1: bytes, state: dict[Any, Any]) -> frontd.Continue:
        """The first leg.  Raises `NtlmError`."""
        acceptor = self._desk.acceptor(exchange)
        type2 = acceptor.challenge(type1)
        state[Handshake] = Handshake(acceptor, trio.current_time() + desk.HANDSHAKE_TIME)
        return frontd.Continue(base64.b64encode(type2).decode(), self.scheme)

    async def _verify(
        self, exchange: frontd.Exchange, acceptor: Acceptor, response: Response, state: dict[Any, Any]
    ) -> Verdict:
        """The second leg, the proof and all that it covers."""
        try:
            identity, _ = await self._desk.verify(response, exchange.client.address, acceptor.complete)
        except winbind.Busy as error:
            return frontd.Refuse(503, "LogonBusy", log=f"NTLM, leg 2: {error}", retry_after=1)
        except NtlmError as error:
            return _refusal(f"NTLM, leg 2: {error}")
        self._desk.remember(exchange, state, identity)
        return identity


def _decoded(token: str) -> bytes:
    if len(token) > TOKEN_MAX:
        raise NtlmError("the token is too long")
    try:
        return base64.b64decode(token, validate=True)
    except ValueError:
        raise NtlmError("the token is not base64") from None


def _refusal(why: str) -> frontd.Refuse:
    return frontd.Refuse(401, "LogonFailed", substatus=1, log=why)
