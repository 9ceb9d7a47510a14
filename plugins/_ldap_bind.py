"""Passwords that a directory knows: a simple bind as the user, over TLS (RFC 4511 4.2, RFC 4513 5.1.3).

How it works
------------
Each logon has a connection of its own: connect, TLS, bind with the user's name and password.  A success is not yet
somebody: directories compare names without regard to case, blanks or width, and Active Directory lets a user in under
several, so the directory is asked, on the same connection and with the user's own rights, who that was.

* Active Directory tells who is bound by SIDs (``tokenGroups`` of the root DSE, MS-ADTS 3.1.1.3.2), those of the user
  and of his groups: the one that leads to an entry of a user (``<SID=…>``, 3.1.1.3.1.2.4) is his.
* Elsewhere the user is the entry whose name we have bound with, and his name the value of the attribute that the
  template names.

Groups are the entries at `groups` that name the user as a member.  Everything is trio's own I/O, without threads.

Invariants
----------
* Nothing is sent without TLS before the password, nor with a certificate that is not good for the host of the URL; that
  a directory gets the password without it has to be said in the configuration.  What comes in plain behind the answer
  to StartTLS is an error, not data (CVE-2021-38371 and its kind).
* No referral is followed: a password goes to the host of the URL and nowhere else.
* The user's name goes into a DN escaped (RFC 4514), and into a filter as a value, never as text.  What is told as the
  user and his groups are single values which the directory has, and that have no meaning elsewhere.
* A group counts under a name that is unique: right at `groups` its only ``cn``, in Active Directory its
  ``sAMAccountName``.  When there are more than `GROUPS_MAX`, nobody is let in: rules may deny by group.
* A logon ends within `DEADLINE`, and not more than `LINES` of them are under way.
"""

from __future__ import annotations

import re
import ssl
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Self
from urllib.parse import urlsplit

import trio
from frontd_plugins import _ldap as ldap
from frontd_plugins import _passwords as passwords
from frontd_plugins._winbind import Denied, Unavailable
from pydantic import Field, field_validator, model_validator

import frontd

DEADLINE = 10.0  # s for a logon, as for those of other domains
GOODBYE = 1.0  # s to close a connection
LINES = trio.CapacityLimiter(8)  # connections to directories, of the process; 2 ms of a core for each, mostly of TLS
GROUPS_MAX = 1000  # of one user; Active Directory has a limit of 1015 for a token
CHUNK = 65536  # bytes

_Make = Callable[[int], bytes]  # a request by its number

# Result codes (RFC 4511 appendix A.2)
NO_SUCH_OBJECT, INVALID_CREDENTIALS, INSUFFICIENT_ACCESS = 32, 49, 50
# of a bind that say that nobody has looked at the password
_TROUBLE = {
    2: "protocolError: it does not speak LDAP 3",
    7: "authMethodNotSupported: it takes no simple bind",
    8: "strongerAuthRequired: it takes passwords over TLS only",
    10: "referral: another server is responsible, and none is followed",
    13: "confidentialityRequired: it takes passwords over TLS only",
    51: "busy",
    52: "unavailable",
}
# What Active Directory says with invalidCredentials to somebody it knows, in hexadecimal: Windows' codes (MS-ERREF 2.2)
_DATA = {
    "530": "the account may not log on at this hour",
    "531": "the account may not log on from this workstation",
    "532": "the password has expired",
    "533": "the account is disabled",
    "701": "the account has expired",
    "773": "the password has to be changed first",
    "775": "the account is locked out",
}
_AS_DN = re.compile(r"([A-Za-z][A-Za-z0-9-]*)=\{user\},[^{}]+")
_AS_PRINCIPAL = re.compile(r"\{user\}@[^\s\\/@{}]+|[^\s\\/@{}]+\\\{user\}")


class LdapSettings(frontd.Settings):
    """Accounts of an LDAP directory, Active Directory among them, by a simple bind as the user."""

    url: str = Field(description="The directory: `ldaps://HOST`, or `ldap://HOST` with `start_tls`; a port may follow.")
    bind_dn: str = Field(
        max_length=1000,
        description="Under which name a user binds: a DN as `uid={user},ou=people,dc=example,dc=com`, or in Active "
        "Directory `{user}@example.com` or `EXAMPLE\\{user}`.",
    )
    groups: str = Field(
        default="",
        max_length=1000,
        description="DN where groups are: right below it those that have the user as `member`, `uniqueMember` or "
        "`memberUid`, under their `cn`; in Active Directory anywhere below it, groups in groups as well, under their "
        "`sAMAccountName`. Default: no groups are looked for.",
    )
    ca: frontd.File | None = Field(
        default=None,
        description="Certificates (PEM) that the directory's is verified with. Default: those of the machine.",
    )
    start_tls: frontd.Flag = Field(
        default=False, description="Begin TLS on the port for plain LDAP (RFC 4511 4.14); without it nothing is sent."
    )
    allow_plain: frontd.Flag = Field(
        default=False,
        description="Whether passwords may go to the directory without TLS, where everybody on the way can read them, "
        "and whoever pretends to be the directory lets anybody in.",
    )

    @property
    def parts(self) -> tuple[str, str, int]:
        """Scheme, host and port of the URL."""
        url = urlsplit(self.url)
        return url.scheme, url.hostname or "", url.port or (636 if url.scheme == "ldaps" else 389)

    @field_validator("url")
    @classmethod
    def _directory(cls, url: str) -> str:
        try:
            found = urlsplit(url)
            is_good = bool(found.hostname) and found.port != 0
        except ValueError:
            is_good = False
        if not is_good or found.scheme not in ("ldap", "ldaps") or url != f"{found.scheme}://{found.netloc}":
            raise ValueError(f"{url!r} is no directory; write ldaps://dc1.example.com, with a port if it is not 636")
        if "@" in found.netloc:
            raise ValueError("the URL of a directory has no user in it")
        return url

    @field_validator("bind_dn")
    @classmethod
    def _template(cls, template: str) -> str:
        if not (_AS_DN.fullmatch(template) or _AS_PRINCIPAL.fullmatch(template)):
            raise ValueError(
                f"{template!r} tells no name; write uid={{user}},ou=people,dc=example,dc=com, where the user is all of "
                "the first value, {user}@example.com or EXAMPLE\\{user}"
            )
        return template

    @model_validator(mode="after")
    def _secret(self) -> Self:
        if self.url.startswith("ldaps:") and self.start_tls:
            raise ValueError("ldaps:// has TLS from the beginning: leave out start_tls, or write ldap://")
        if self.url.startswith("ldap:") and not (self.start_tls or self.allow_plain):
            raise ValueError(
                "over ldap:// everybody on the way can read passwords: write ldaps://, or start_tls: true, or "
                '"allow_plain: true" if that is meant'
            )
        return self


def complaints(settings: LdapSettings) -> list[str]:
    """What is wrong with the certificates, as sentences; the directory is not asked.  Blocks for a moment."""
    try:
        _tls(settings)
    except OSError as error:  # ssl.SSLError is one
        return [f"{settings.ca}: no certificates to verify the directory with can be read from it: {error}"]
    return []


def _tls(settings: LdapSettings) -> ssl.SSLContext:
    """Raises `OSError`."""
    context = ssl.create_default_context(cafile=settings.ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


class Bind:
    """A `Directory` that is asked by LDAP."""

    threads = LINES

    def __init__(self, settings: LdapSettings) -> None:
        """Raises `ValueError` for certificates that cannot be read."""
        try:
            self._context = _tls(settings)
        except OSError as error:
            raise ValueError(f"{settings.ca}: {error}") from error
        self._settings = settings
        self._scheme, self._host, self._port = settings.parts
        as_dn = _AS_DN.fullmatch(settings.bind_dn)
        self._attribute = as_dn[1].lower() if as_dn else ""

    def spelled(self, user: str) -> str:
        """The user as he was typed; who it is the directory tells.  Raises `ValueError` for names that would be others
        than those the template means."""
        if not self._attribute and re.search(r'[\\/@\s"]', user):
            raise ValueError("the user name is none of a person in Active Directory")
        return user

    async def ask(self, user: str, password: str) -> frontd.Identity:
        """Bind, and ask who that was.  Raises `Denied` and `Unavailable`."""
        if not user or not password:  # an unauthenticated bind succeeds (RFC 4513 5.1.2)
            raise Denied("the user name or password is empty", is_known=False)
        name = self._settings.bind_dn.replace("{user}", ldap.dn_value(user) if self._attribute else user)
        was_asked = False
        try:
            with trio.fail_after(DEADLINE):
                async with LINES, self._line() as line:
                    was_asked = True
                    await _bind(line, name, password)
                    return await self._who(line, name, user)
        except trio.TooSlowError:
            raise Unavailable(f"the directory has not answered within {DEADLINE:g} s", was_asked=was_asked) from None
        except (OSError, trio.BrokenResourceError) as error:  # ssl.SSLError is an OSError
            why = error.__cause__ if isinstance(error, trio.BrokenResourceError) and error.__cause__ else error
            raise Unavailable(f"the directory at {self._host}: {why}", was_asked=was_asked) from error
        except ldap.LdapError as error:
            raise Unavailable(f"the directory at {self._host}: {error}", was_asked=was_asked) from error

    @asynccontextmanager
    async def _line(self) -> AsyncIterator[_Line]:
        """A connection on which passwords may be sent.  Raises `OSError`, `BrokenResourceError` and `LdapError`."""
        stream: trio.abc.Stream = await trio.open_tcp_stream(self._host, self._port)
        try:
            line = _Line(stream)
            if self._settings.start_tls:
                told = ldap.result((await line.ask(ldap.start_tls, ldap.EXTENDED_DONE))[-1].content)
                if told.code != ldap.SUCCESS or not line.is_quiet:
                    raise ldap.LdapError(f"it does not begin TLS (result {told.code})")
            if self._scheme == "ldaps" or self._settings.start_tls:
                stream = trio.SSLStream(stream, self._context, server_hostname=self._host, https_compatible=True)
                await stream.do_handshake()
                line.stream = stream
            yield line
            with trio.move_on_after(GOODBYE):
                await line.leave()
        finally:
            await trio.aclose_forcefully(stream)

    async def _who(self, line: _Line, name: str, user: str) -> frontd.Identity:
        """The account that is bound.  Raises `Unavailable` where the directory does not tell."""
        roots = await line.search("", ldap.BASE, ldap.present("objectClass"), ("tokenGroups",), 1, may_miss=True)
        sids = tuple(dict.fromkeys(_sid(it) for root in roots for it in root.attributes.get("tokengroups", ())))
        if sids:
            attribute = "sAMAccountName"
            found = await self._user_of(line, sids)
        elif self._attribute:
            attribute = self._attribute
            found = await line.search(name, ldap.BASE, ldap.present("objectClass"), (attribute,), 1, may_miss=True)
        else:
            raise Unavailable("the directory does not tell who is bound: write bind_dn as a DN", was_asked=True)
        known = _values(found[0], attribute) if found else []
        if len(known) > 1:  # the one that was meant, if that is clear
            known = [one for one in known if one.casefold() == user.casefold()]
        if len(known) != 1 or passwords.bad_user(known[0]):
            raise Unavailable(f"the directory does not show users the {attribute} of their entry", was_asked=True)
        groups: tuple[str, ...] = ()
        if self._settings.groups:
            groups = await self._groups(line, found[0].name, known[0], is_windows=bool(sids))
        return frontd.Identity(known[0], groups, sids, scheme="Basic")

    async def _user_of(self, line: _Line, sids: tuple[str, ...]) -> list[ldap.Entry]:
        """The entry of the user among the SIDs of who is bound; none of the others has one that is a user's."""
        is_user = ldap.equal("objectClass", "user")
        for sid in sids:
            if sid.startswith("S-1-5-21-"):  # of a domain
                found = await line.search(f"<SID={sid}>", ldap.BASE, is_user, ("sAMAccountName",), 1, may_miss=True)
                if found:
                    return found
        return []

    async def _groups(self, line: _Line, member: str, user: str, *, is_windows: bool) -> tuple[str, ...]:
        """The names of the groups that have the user in them."""
        if is_windows:
            attribute, scope, has = "sAMAccountName", ldap.SUBTREE, ldap.by_rule(ldap.IN_CHAIN, "member", member)
        else:
            kinds = (("member", member), ("uniqueMember", member), ("memberUid", user))
            attribute, scope, has = "cn", ldap.ONE_LEVEL, ldap.any_of(*(ldap.equal(*kind) for kind in kinds))
        found = await line.search(self._settings.groups, scope, has, (attribute,), GROUPS_MAX)
        names = [_values(one, attribute) for one in found]
        return tuple(sorted({each[0] for each in names if len(each) == 1 and not passwords.bad_group(each[0])}))


class _Line:
    """A connection to a directory, with one operation at a time."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self._inbox = ldap.Inbox()
        self._number = 0

    @property
    def is_quiet(self) -> bool:
        """Whether nothing has come that nobody has asked for."""
        return self._inbox.is_empty

    async def ask(self, make: _Make, last: int) -> list[ldap.Message]:
        """Send a request; its answers, up to the one whose operation is `last`."""
        self._number += 1
        await self.stream.send_all(make(self._number))
        found: list[ldap.Message] = []
        size = 0
        while True:
            message = self._inbox.next()
            if message is None:
                data = await self.stream.receive_some(CHUNK)
                if not data:
                    raise ldap.LdapError("it has closed the connection")
                self._inbox.receive(data)
                continue
            if message.number == ldap.UNSOLICITED:
                raise ldap.LdapError(f"it ends the connection (result {ldap.result(message.content).code})")
            size += len(message.content)
            if message.number != self._number or size > ldap.MESSAGE_MAX:
                raise ldap.LdapError("it answers what nobody has asked, or too much")
            found.append(message)
            if message.operation == last:
                return found

    async def search(
        self, base: str, scope: int, which: bytes, attributes: tuple[str, ...], most: int, *, may_miss: bool = False
    ) -> list[ldap.Entry]:
        """The entries that are found; `may_miss`: none is an answer where `base` is not there, or not to be read.

        Raises `Unavailable`.
        """
        *found, done = await self.ask(
            lambda number: ldap.search(number, base, scope, which, attributes, most), ldap.DONE
        )
        told = ldap.result(done.content)
        if told.code == ldap.SIZE_LIMIT:
            raise Unavailable(f"the directory finds more than {most} entries", was_asked=True)
        if may_miss and told.code in (NO_SUCH_OBJECT, INSUFFICIENT_ACCESS):
            return []
        if told.code != ldap.SUCCESS:
            raise Unavailable(f"a search in the directory failed (result {told.code})", was_asked=True)
        return [ldap.entry(one.content) for one in found if one.operation == ldap.ENTRY]

    async def leave(self) -> None:
        """Unbind, as RFC 4511 4.3 wants."""
        await self.stream.send_all(ldap.unbind(self._number + 1))


async def _bind(line: _Line, name: str, password: str) -> None:
    """Prove the password.  Raises `Denied` and `Unavailable`."""
    told = ldap.result((await line.ask(lambda number: ldap.bind(number, name, password), ldap.BOUND))[-1].content)
    if told.code == ldap.SUCCESS:
        return
    if told.code in _TROUBLE:
        raise Unavailable(f"the directory says {_TROUBLE[told.code]}")
    if told.code != INVALID_CREDENTIALS:
        raise Denied(f"the directory refuses (result {told.code})", is_known=False)
    data = re.search(r"\bdata ([0-9a-f]{1,8})\b", told.text)  # the text itself is not shown: it may repeat the name
    if data and data[1] in _DATA:
        raise Denied(_DATA[data[1]], is_known=True)
    raise Denied("the user name or password is wrong", is_known=False)


def _values(entry: ldap.Entry, attribute: str) -> list[str]:
    """The values of an attribute that are texts, in NFC."""
    found = []
    for value in entry.attributes.get(attribute.lower(), ()):
        try:
            found.append(passwords.normal(value.decode()))
        except UnicodeError:
            continue
    return found


def _sid(data: bytes) -> str:
    """A SID as it is written (MS-DTYP 2.4.2).  Raises `LdapError`."""
    if len(data) < 8 or data[0] != 1 or len(data) != 8 + 4 * data[1]:
        raise ldap.LdapError("a SID of the directory is damaged")
    parts = struct.unpack_from(f"<{data[1]}I", data, 8)
    return "-".join(map(str, ("S-1", int.from_bytes(data[2:8], "big"), *parts)))
