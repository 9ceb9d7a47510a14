"""Where NTLM handshakes are begun, verified and remembered, for whichever scheme of HTTP carries them.

How it works
------------
A `Desk` stands for one place of the configuration: its settings, its verifier, its count of guesses.  It makes an
`Acceptor` for each handshake; who carries the messages is up to the plugin: `ntlm` sends them bare, `negotiate` also
inside of SPNEGO.

Invariants
----------
* A guess is counted before its proof is looked at, and taken from the count again only when it was right, or when
  nobody could look at it.
* A logon that is remembered holds as long as what it stands on: the user's line in the file, hash and groups alike.
* A request with ``Via`` has come through a proxy, which may use one connection for many users: nothing is remembered.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple, Self, TypeVar

import trio
from frontd_plugins import _ntlm_crypto, _ntlm_users
from frontd_plugins import _passwords as passwords
from frontd_plugins import _winbind as winbind
from frontd_plugins._ntlm import Acceptor, Protection, Response, Verified, Verifier
from frontd_plugins._throttle import Throttle
from pydantic import Field, field_validator, model_validator

import frontd

HANDSHAKE_TIME = 30.0  # s from the challenge to the response; a client that asks nobody answers at once
COMPUTER = "FRONTD"  # not the machine's own name: a challenge tells it to everybody

_NETBIOS = re.compile(r"[A-Za-z0-9!@#$%^&')(.\-_{}~]{1,15}")  # MS-NBTE 2.2.1 and Windows' rules for names of computers

T = TypeVar("T")


class NtlmSettings(frontd.Settings):
    """Who may log on by NTLM, and for how long."""

    verifier: Literal["users_file", "winbind"] = Field(
        default="users_file",
        description="Who knows the users: `users_file`, or `winbind`, the Windows domain that this machine is a "
        "member of.",
    )
    users_file: frontd.File | None = Field(
        default=None,
        description="File of lines `user:hash` or `DOMAIN\\user:hash`, with groups as for `basic`; NT hashes, "
        "written by `frontd passwd --ntlm`. Read again within a second or two of a change. Whoever reads it can "
        "log on as anybody in it.",
    )
    computer: str = Field(
        default=COMPUTER,
        description="NetBIOS name that clients are told. Not the machine's own, since everybody can ask for it; "
        "with `winbind` it is, since the domain controller looks for it.",
    )
    domain: str = Field(
        default="",
        description="NetBIOS name of the domain that clients are told. Default: `computer`, as on a Windows "
        "machine that is in none; with `winbind` the machine's.",
    )
    persist: Literal["connection", "request"] = Field(
        default="connection",
        description="Whose requests are after a logon: `connection`, all that follow on it (HTTP.sys); `request`, "
        "none (IIS authPersistSingleRequest).",
    )
    machine_accounts: frontd.Flag = Field(
        default=False,
        description="Let in machines by the accounts that they have in the domain (`DOMAIN\\PC1$`), as services of "
        "Windows do log on; with `winbind` only. Whoever can make a machine log on at a place of his can pass that on "
        "to us, so better together with `extended_protection: require` (IIS lets them in).",
    )
    require_mic: frontd.Flag = Field(
        default=False,
        description="Refuse clients that do not protect the handshake with a MIC. Windows sends one; curl never does.",
    )
    failures_per_user: frontd.CountOrNone = Field(
        default=10,
        ge=1,
        description="Wrong passwords for one user from one address in each `failure_window`; then 429. As for `basic`.",
    )
    failures_per_address: frontd.CountOrNone = Field(
        default=100,
        ge=1,
        description="Wrong passwords from one address (IPv6: one /64) in each `failure_window`; then 429. As for "
        "`basic`.",
    )
    failure_window: frontd.Duration = Field(default=60.0, gt=0, description="The time for both. As for `basic`.")

    @field_validator("computer", "domain")
    @classmethod
    def _netbios(cls, name: str) -> str:
        if name and _NETBIOS.fullmatch(name) is None:
            raise ValueError("a NetBIOS name has 1 to 15 letters, digits and marks, and no blanks")
        return name.upper()

    @field_validator("computer")
    @classmethod
    def _not_empty(cls, name: str) -> str:
        if not name:
            raise ValueError("a computer has a name")
        return name

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.users_file is None) == (self.verifier == "users_file"):
            raise ValueError("a users_file has to be there, or else verifier: winbind, which takes none")
        if self.machine_accounts and self.verifier != "winbind":
            raise ValueError("machine_accounts are those of a domain: they need verifier: winbind")
        return self


class Logon(NamedTuple):
    """Whose a connection is, and what that stands on."""

    identity: frontd.Identity
    standing: object


class Desk:
    """One place of the configuration where people log on by NTLM.

    `protection` is what is made of channel bindings, `spns` the services that clients may mean (empty: any), `remark`
    where remarks go.
    """

    def __init__(
        self, settings: NtlmSettings, protection: Protection, spns: Iterable[str], remark: Callable[[str], None]
    ) -> None:
        """Reads the users; blocks.  Raises `ValueError` when the file is not there or has a bad line."""
        self._settings = settings
        self._protection: Protection = protection
        self._spns = frozenset(spns)
        self._computer, self._domain = settings.computer, settings.domain
        self._file: _ntlm_users.UsersFile | None = None
        if settings.users_file is None:
            self._computer, self._domain = winbind.names()
        else:
            self._file = _ntlm_users.UsersFile(settings.users_file, _local(settings), remark)
        self._verifier: Verifier = self._file or winbind.Winbind(machines=settings.machine_accounts)
        self._throttle = Throttle(settings.failures_per_user, settings.failures_per_address, settings.failure_window)

    async def follow(self) -> None:
        """Read the users file again whenever it has changed."""
        if self._file is not None:
            await self._file.follow()

    def obstacle(self, exchange: frontd.Exchange) -> str:
        """Why nobody can log on this way here, as a sentence; empty: nothing."""
        if exchange.client.is_trusted_proxy:
            return "a connection from a trusted proxy carries many users, and NTLM logs on connections"
        if self._protection == "require" and channel_binding(exchange) is None:
            return "extended_protection is required, and there is no TLS of ours that the logon could be bound to"
        return ""

    def acceptor(self, exchange: frontd.Exchange) -> Acceptor:
        """For one handshake on this connection."""
        return Acceptor(
            computer=self._computer,
            domain=self._domain or self._computer,
            is_member=bool(self._domain),
            binding=channel_binding(exchange),
            protection=self._protection,
            spns=self._spns,
            require_mic=self._settings.require_mic,
        )

    def throttled(self, response: Response, address: str) -> float:
        """Seconds until the next guess may be made; 0: now, and it is counted."""
        now, account = trio.current_time(), self._verifier.account(response)
        wait = self._throttle.wait(account, address, now)
        if not wait:
            self._throttle.guess(account, address, now)
        return wait

    async def verify(
        self, response: Response, address: str, complete: Callable[[Response, Verified], T]
    ) -> tuple[frontd.Identity, T]:
        """Whose response it is, and what `complete` says, which checks all that the proof covers.

        Raises `NtlmError`.
        """
        account = self._verifier.account(response)
        try:
            verified = await self._verifier.verify(response)
        except winbind.Unavailable as error:
            if not error.was_asked:  # nobody has looked at the proof
                self._throttle.forgive(account, address)
            raise
        self._throttle.forgive(account, address)
        last = complete(response, verified)
        return frontd.Identity(
            verified.name, verified.groups, verified.sids, scheme="NTLM", connection_bound=True
        ), last

    def remember(self, exchange: frontd.Exchange, state: dict[Any, Any], identity: frontd.Identity) -> None:
        """From now on this connection is somebody's, if that is wanted."""
        if self._settings.persist == "connection" and b"via" not in exchange.request.headers:
            state[Logon] = Logon(identity, self._verifier.standing(identity.name))

    def remembered(self, exchange: frontd.Exchange, state: dict[Any, Any]) -> frontd.Identity | None:
        """Whose this connection is."""
        logon: Logon | None = state.get(Logon)
        if logon is None or b"via" in exchange.request.headers:
            return None
        if self._verifier.standing(logon.identity.name) != logon.standing:
            state.clear()
            return None
        return logon.identity


def complaints(settings: NtlmSettings) -> Iterable[str]:
    """What is wrong with the settings, for `check`: whatever the users file, winbind and the machine say."""
    if not _ntlm_crypto.available():
        yield "this machine forbids MD5 (FIPS mode), and NTLM is made of it"
    if settings.users_file is None:
        if fault := winbind.missing():
            yield fault
        return
    try:
        _ntlm_users.read(settings.users_file, _local(settings))
    except passwords.BadUsers as error:
        yield from error.sentences


def untold(settings: NtlmSettings) -> frozenset[str]:
    """What is never known of the users."""
    return frozenset({"sids"} if settings.users_file else ())


def channel_binding(exchange: frontd.Exchange) -> bytes | None:
    """The TLS channel of this connection (RFC 5929), as far as it is known."""
    tls = exchange.client.tls
    return tls.channel_binding if tls is not None else None


def _local(settings: NtlmSettings) -> frozenset[str]:
    return _ntlm_users.local_names((settings.computer, settings.domain))
