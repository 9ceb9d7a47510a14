"""The users file of `ntlm`: NT hashes, and whom a response belongs to.

How it works
------------
A line is ``user:hash`` or ``user:hash:group,group`` as in the file of `basic` (`_passwords` reads both), with the NT
hash as 32 hexadecimal digits and a name that may have a domain before it: ``DOMAIN\\user``.  A line without a domain is
a user of this server: clients may name none, or that of the server, or its domain, as with a local account of Windows.
A line with a domain is found under that domain alone.

The NT hash is all that a client needs to log on; nobody has to break it first.  So the file is worth as much as one of
plain passwords, which NTLM cannot do without.

The file is looked at every second, in a thread, and read again when it has changed.

Invariants
----------
* Names are found in any case (MS-NLMP 3.3.2 makes the key of a name in capitals); the spelling of the file is what
  rules and apps see.
* A name that is not there takes the same way as a wrong password, and the same time.
* What was verified still holds as long as the line is there with the same hash and the same groups.
* A file that cannot be read any more, or has a bad line, changes nothing: the users read before stay, and it is
  remarked once.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import trio
from frontd_plugins import _passwords as passwords
from frontd_plugins._ntlm import NtlmError, Response, Verified, nt_proof, upper

POLL = 1.0  # s between two looks at the file

_HASH = re.compile(r"[0-9A-Fa-f]{32}")
_DECOY = secrets.token_bytes(16)  # the NT hash of whoever is not there

Place = tuple[str, str]  # domain ("": this server) and user, in capitals


def _check_hash(stored: str) -> None:
    if _HASH.fullmatch(stored) is None:
        raise ValueError("is no NT hash of 32 hexadecimal digits")


NT_HASHES = passwords.Kind(_check_hash, "frontd passwd --ntlm")


def bad_name(name: str) -> str:
    """What is wrong with a name of this file, as a sentence; empty: nothing."""
    if wrong := passwords.bad_user(name):
        return wrong
    parts = name.split("\\")
    if len(parts) > 2 or not all(parts):
        return "a name is user or DOMAIN\\user"
    return ""


class NtUsers(NamedTuple):
    """A file as it was read: its lines, and the names as they stand there by domain and user."""

    records: passwords.Records
    names: Mapping[Place, str]
    stamp: passwords.Stamp


class UsersFile:
    """The users as they were read last: a `Verifier`."""

    def __init__(self, path: Path, local: Iterable[str], remark: Callable[[str], None]) -> None:
        """Reads the file; blocks.  `local` are the domains that stand for none.  Raises `BadUsers`."""
        self._path = path
        self._local = local_names(local)
        self._remark = remark
        self._users = read(path, self._local)
        self._stamp: passwords.Stamp | None = self._users.stamp

    def account(self, response: Response) -> str:
        """Under which name guesses at this user are counted, whether there is one or not."""
        return "\\".join(_place(response.domain, response.user, self._local))

    async def verify(self, response: Response) -> Verified:
        """Whose password the proof belongs to.  Raises `NtlmError`."""
        users = self._users
        record = users.records.get(users.names.get(_place(response.domain, response.user, self._local), ""))
        stored = bytes.fromhex(record.stored) if record is not None else _DECOY
        is_right, key = nt_proof(stored, response)
        if record is None:  # the name is not shown: it may be a password in the wrong field
            raise NtlmError("there is no such user")
        if not is_right:
            raise NtlmError(f"the password for {record.name} is wrong")
        return Verified(record.name, record.groups, (), key)

    def standing(self, name: str) -> object:
        """The line of a user; None: there is none."""
        return self._users.records.lines.get(name)

    async def follow(self) -> None:
        """Read the file again whenever it has changed, for ever."""
        while True:
            await trio.sleep(POLL)
            # In threads: the file may lie on a network drive that does not answer
            stamp = await trio.to_thread.run_sync(passwords.stamp_of, self._path, abandon_on_cancel=True)
            if stamp == self._stamp:
                continue
            self._stamp = stamp
            try:
                users = await trio.to_thread.run_sync(read, self._path, self._local, abandon_on_cancel=True)
            except passwords.BadUsers as error:
                self._remark(f"{error}; the users that were read before stay")
            else:
                self._users, self._stamp = users, users.stamp
                self._remark(f"{self._path}: read again, users: {len(users.records)}")


def local_names(names: Iterable[str]) -> frozenset[str]:
    """The domains that stand for none, in capitals: these, none at all, and Windows' word for "this computer"."""
    return frozenset(("", ".", *map(upper, names)))


def read(path: Path, local: frozenset[str]) -> NtUsers:
    """The users of a file of NT hashes; blocks.  `local` are the domains that stand for none.  Raises `BadUsers`."""
    records, stamp = passwords.records_of(path, NT_HASHES)
    names: dict[Place, str] = {}
    faults: list[str] = []
    for name in records:
        if wrong := bad_name(name):
            faults.append(f"{path}: {name}: {wrong}")
            continue
        domain, _, user = name.rpartition("\\")
        before = names.setdefault(_place(domain, user, local), name)
        if before != name:
            faults.append(f"{path}: {before} and {name} are one user; remove one of them")
    if faults:
        raise passwords.BadUsers(tuple(faults[: passwords.SENTENCES]))
    return NtUsers(records, names, stamp)


def _place(domain: str, user: str, local: frozenset[str]) -> Place:
    domain = upper(passwords.normal(domain))
    return "" if domain in local else domain, upper(passwords.normal(user))
