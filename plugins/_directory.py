"""Who knows the passwords of a domain: winbind, a KDC, or an LDAP directory.

How it works
------------
A `Directory` is asked with a user and a password, and answers with an identity.  Winbind's is `_winbind`.  The KDC's
is a logon as that user, and then one of that user at ourselves, which the key in our keytab proves to come from the
realm (`_gss.password_logon`).  Both block, in threads of their own and for at most `DEADLINE`: while a controller is
away, logons of other kinds go on.  Those for the KDC are of low priority (`_low_priority`).  LDAP's is `_ldap_bind`,
which does not block.

Invariants
----------
* A refusal takes at least `FLOOR`, so that the time does not tell an unknown name (1 ms) from a wrong password (10 ms).
* `Denied` means that the domain has looked at the logon; `Unavailable` that nobody has looked at the password, so that
  it was no guess (unless `was_asked`: then nobody knows).  What is not known to be the second is the first.
* Users are spelled in one way each, as far as the directory takes spellings for one account.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Protocol

import trio
from frontd_plugins import _gss as gss
from frontd_plugins import _keytab as keytab
from frontd_plugins import _ldap_bind as ldap_bind
from frontd_plugins import _low_priority as low_priority
from frontd_plugins import _winbind as winbind
from frontd_plugins._ldap_bind import LdapSettings
from frontd_plugins._winbind import Denied, Unavailable
from pydantic import Field, field_validator

import frontd

__all__ = [
    "Denied", "Directory", "KerberosSettings", "LdapSettings", "Settings", "Unavailable", "WinbindSettings", "verified",
]  # fmt: skip

DEADLINE = winbind.DEADLINE  # s
FLOOR = winbind.FLOOR
# Of passwords at the KDC, of the process.  As many as there are cores, since each makes a key of a password (RFC 3962
# 4), which takes one for 5 ms: with 8 on two cores everybody else waited for 40 to 60 ms at the 99th percentile, with 2
# for 6 to 10.  Two at least: they wait for the KDC, too.
THREADS = trio.CapacityLimiter(min(8, max(2, low_priority.cores())))


class WinbindSettings(frontd.Settings):
    """Windows accounts, by the winbindd of this machine, which is a member of the domain."""

    domain: str = Field(
        default="",
        max_length=15,  # of a NetBIOS name
        pattern=r"^[^\s\\/@:]*$",
        description="NetBIOS name of the domain of users who write none; others write `DOMAIN\\user` or "
        "`user@realm`. Default: the domain that the machine is a member of (IIS: defaultLogonDomain).",
    )


class KerberosSettings(frontd.Settings):
    """Accounts of a Kerberos realm, a Windows domain among them, by a logon at its KDC as `/etc/krb5.conf` names it."""

    realm: str = Field(
        pattern=r"^[^\s\\/@:]+$",
        description="Realm of the users, as `EXAMPLE.COM`; others are refused.",
    )
    keytab: frontd.File = Field(
        description="File with our key, by which the KDC's answer is verified: without it, whoever can pretend to be "
        "the KDC could let anybody in. Read again with each logon."
    )
    spn: str = Field(description="Our service principal name in that keytab, as `HTTP/www.example.com`.")
    require_pac: frontd.Flag = Field(
        default=True,
        description="Refuse users whose ticket has no PAC, as for `negotiate`, and as there `false` for "
        "realms without Windows whose KDC makes none.",
    )

    @field_validator("spn")
    @classmethod
    def _named(cls, spn: str) -> str:
        if not re.fullmatch(r"[^\s\\/@]+/[^\s\\/@]+", spn) or not spn.isprintable():
            raise ValueError(f"{spn!r} is no service principal name; one is written HTTP/www.example.com")
        return spn


Settings = KerberosSettings | LdapSettings | WinbindSettings


class Directory(Protocol):
    """Somebody who knows passwords."""

    @property
    def threads(self) -> trio.CapacityLimiter:
        """Where logons wait."""

    def spelled(self, user: str) -> str:
        """The one spelling of a user as it was typed.  Raises `ValueError`, which does not show it."""

    async def ask(self, user: str, password: str) -> frontd.Identity:
        """Whose password it is, `user` being `spelled`.  Raises `Denied` and `Unavailable`."""


async def verified(directory: Directory, user: str, password: str) -> frontd.Identity:
    """`Directory.ask`, with refusals that all take their time."""
    floor = trio.current_time() + FLOOR
    try:
        return await directory.ask(user, password)
    except (Denied, Unavailable):
        await trio.sleep_until(floor)
        raise


# ---------------------------------------------------------------------------------------------------- winbind


class Domain:
    """Accounts that winbind knows.  Names are compared without regard to case, as Windows does."""

    def __init__(self, settings: WinbindSettings) -> None:
        """Asks winbind for the domain's name where settings have none; blocks.  Raises `ValueError`."""
        self._domain = (settings.domain or winbind.names()[1]).lower()
        self._winbind = winbind.Winbind(DEADLINE)

    @property
    def threads(self) -> trio.CapacityLimiter:
        """Those of winbind."""
        return winbind.THREADS

    def spelled(self, user: str) -> str:
        """``domain\\user``, or ``user@realm`` as it is.  Raises `ValueError` for other backslashes."""
        domain, backslash, account = user.lower().rpartition("\\")
        if not account or "\\" in domain or (backslash and not domain):
            raise ValueError("the user name is none of Windows")
        if not backslash and "@" not in account:
            domain = self._domain
        return f"{domain}\\{account}"

    async def ask(self, user: str, password: str) -> frontd.Identity:
        """Ask winbind."""
        domain, _, account = user.partition("\\")
        found = await self._winbind.password(domain, account, password)
        return frontd.Identity(found.name, found.groups, found.sids, scheme="Basic")


# ---------------------------------------------------------------------------------------------------- Kerberos


class Realm:
    """Users of a realm.  Their names are compared exactly (RFC 4120 6.1), the realm's is not."""

    threads = THREADS

    def __init__(self, settings: KerberosSettings) -> None:
        self._realm = settings.realm
        self._keytab: Path = settings.keytab
        self._spn = f"{settings.spn}@{settings.realm}"
        self._requires_pac = settings.require_pac

    def spelled(self, user: str) -> str:
        """``user@REALM``.  Raises `ValueError` for other realms, and for what a principal gives a meaning to."""
        name, at, realm = user.partition("@")
        if at and realm.lower() != self._realm.lower():
            raise ValueError("the user is not of the realm that may log on here")
        if not name or re.search(r"[\\/@\s]", name):
            raise ValueError("the user name is none of a person in Kerberos")
        return f"{name}@{self._realm}"

    async def ask(self, user: str, password: str) -> frontd.Identity:
        """Ask the KDC, and verify its answer."""
        turn = winbind.Turn()

        def work() -> gss.Logon:
            turn.begin()
            ask = partial(gss.password_logon, user, password, self._keytab, self._spn, requires_pac=self._requires_pac)
            return low_priority.run(ask)

        with trio.move_on_after(DEADLINE):
            try:
                found = await trio.to_thread.run_sync(work, limiter=THREADS, abandon_on_cancel=True)
            except gss.GssBusy as error:
                raise Unavailable(str(error)) from error
            except gss.PasswordError as error:
                raise Denied(str(error), is_known=error.is_known) from error
            except gss.GssError as error:
                raise Denied(f"the answer of the KDC cannot be verified: {error}", is_known=False) from error
            if found.name.rpartition("@")[2] != self._realm:
                raise Denied("the KDC says that the user is of another realm", is_known=False)
            return frontd.Identity(found.name, sids=found.sids, scheme="Basic")
        was_asked = not turn.give_up()
        raise Unavailable(f"the KDC has not answered within {DEADLINE:g} s", was_asked=was_asked)


def complaints(settings: Settings) -> Iterable[str]:
    """What `check` says about a directory.  Blocks for a moment."""
    if isinstance(settings, LdapSettings):
        yield from ldap_bind.complaints(settings)
        return
    if isinstance(settings, WinbindSettings):
        if fault := winbind.missing():
            yield fault
        return
    if fault := gss.unavailable():
        yield fault
    try:
        keys = keytab.read(settings.keytab)
    except keytab.BadKeytab as error:
        yield str(error)
        return
    wanted = f"{settings.spn}@{settings.realm}"
    if wanted.lower() not in {key.principal.lower() for key in keys}:
        yield f"{settings.keytab} has no key for {wanted}; it has: {keytab.told(keys) or 'none'}"


def of(settings: Settings) -> Directory:
    """The directory that settings mean.  Raises `ValueError`."""
    if isinstance(settings, LdapSettings):
        return ldap_bind.Bind(settings)
    return Domain(settings) if isinstance(settings, WinbindSettings) else Realm(settings)
