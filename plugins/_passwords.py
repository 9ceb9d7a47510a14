"""Password lines: what stands in a users file, how one is made, and whether a password belongs to it.

A users file has one line for each user, ``user:hash`` as htpasswd writes it, or ``user:hash:group,group``: the groups
are ours.  Apache ignores what follows a second colon and nginx calls it a comment, so the file can be shared; but a
comment that somebody wrote there for nginx would become a group.  ``#`` begins a comment line, blank lines mean
nothing.

Two kinds of hash are accepted: bcrypt (``$2a$``, ``$2b$``, ``$2y$``) and argon2id (RFC 9106).  All others are so fast
that a stolen file is as good as the passwords, and are errors which name the line.

Names, passwords and groups are compared in NFC, since keyboards differ in how they compose an ``é`` (RFC 7617 2.1).
Nothing here puts a hash or a password into an error, nor what stands for a name in a line that cannot be used: in one
that was broken in two, it is half of a hash.
"""

from __future__ import annotations

import base64
import os
import re
import secrets
import shlex
import stat
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

USER_MAX = 255  # bytes of a user name or group
PASSWORD_MAX = 1024  # bytes
BCRYPT_MAX = 72  # bytes of a password; bcrypt ignores what follows, bcrypt 5 raises ValueError
FILE_MAX = 16 * 1024 * 1024  # bytes; about 200,000 users
SENTENCES = 20  # errors of one file that are listed

COST = 10  # of bcrypt, 2^10 rounds, about 50 ms: OWASP's minimum (htpasswd -B: 5)
COSTS = range(4, 17)  # 16 keeps a thread for more than 3 s
ARGON2_MEMORY = 256 * 1024  # KiB that one check may take; RFC 9106's second recommendation is 64 MiB
ARGON2_TIME = 32  # passes

Stamp = tuple[int, int, int]  # mtime (ns), size (bytes), inode

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")  # RFC 7617 2 forbids the ASCII ones; those after are no better
_BCRYPT = re.compile(r"\$2[aby]\$(\d\d)\$[./A-Za-z0-9]{21}[.Oeu][./A-Za-z0-9]{31}")  # the 22nd character has 2 bits
_ARGON2 = re.compile(
    r"\$argon2id\$v=19\$m=([1-9]\d{0,8}),t=([1-9]\d{0,8}),p=([1-9]\d{0,2})\$([A-Za-z0-9+/]+)\$([A-Za-z0-9+/]+)"
)
_OTHER_KINDS = (
    (r"\$apr1\$", "MD5 (apr1)"), (r"\$1\$", "MD5 (crypt)"), (r"\$5\$", "SHA-256 (crypt)"),
    (r"\$6\$", "SHA-512 (crypt)"), (r"\$(y|gy|7)\$", "yescrypt or scrypt"), (r"\$2x?\$", "bcrypt before 2011"),
    (r"\$argon2[id]\$", "argon2, but not argon2id"), (r"\{SHA\}", "SHA-1"), (r"\{SSHA\}", "salted SHA-1"),
    (r"[./A-Za-z0-9]{13}$", "DES (crypt)"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Record:
    """A user of the file: the name in NFC, the hash as it stands there, the groups."""

    name: str
    stored: str
    groups: tuple[str, ...] = ()


class Records(Mapping[str, Record]):
    """The users of a file by name.  A record is made when it is asked for.

    What is kept are texts: 150,000 users in objects of their own would hold up the loop for the collector of cycles.
    """

    __slots__ = ("lines",)

    def __init__(self, lines: dict[str, str]) -> None:
        """From what stands in each line behind the name, which was found to be right."""
        self.lines = lines

    def __getitem__(self, name: str) -> Record:
        stored, _, groups = self.lines[name].partition(":")
        return Record(name, stored, groups_of(groups))

    def __contains__(self, name: object) -> bool:
        return name in self.lines

    def __iter__(self) -> Iterator[str]:
        return iter(self.lines)

    def __len__(self) -> int:
        return len(self.lines)


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class Users:
    """A users file as it was read.

    `decoys` are hashes of no password, one for each record and with its parameters; `stamp` tells whether the file is
    still the one that was read.
    """

    records: Records
    decoys: tuple[str, ...]
    stamp: Stamp

    def decoy(self, name: str) -> str:
        """The hash to check for a user who is not there.

        The same name always gets the same one, and strangers get each kind as often as users have it: in a file of
        mixed parameters the time of a check tells nothing either.  (`hash` of a text is keyed by process, PEP 456.)
        """
        return self.decoys[hash(name) % len(self.decoys)]


NOBODY = Users(Records({}), ("",), (0, 0, 0))  # where somebody else knows the passwords


class BadUsers(ValueError):
    """A users file cannot be used; `sentences` name file, line and remedy, and hold no secrets."""

    def __init__(self, sentences: tuple[str, ...]) -> None:
        more = len(sentences) - 1
        super().__init__(sentences[0] + (f" (and {more} more)" if more else ""))
        self.sentences = sentences


# ---------------------------------------------------------------------------------------------------- words


def normal(text: str) -> str:
    """The form in which names, groups and passwords are compared: NFC."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def alike(name: str) -> tuple[str, str]:
    """Equal for names that differ in case alone: rules take them for one user, so they may not be two here."""
    return name.lower(), name.upper()


def bad_user(name: str) -> str:
    """What is wrong with a user name, as a sentence; empty: nothing."""
    if ":" in name:
        return "a user name has no colon (RFC 7617 2)"
    return _bad_word(name, "a user name")


def bad_group(name: str) -> str:
    """What is wrong with a group, as a sentence; empty: nothing."""
    if ":" in name or "," in name:
        return "a group has neither colon nor comma"
    return _bad_word(name, "a group")


def _bad_word(name: str, what: str) -> str:
    if not name:
        return f"{what} is not empty"
    if len(name.encode("utf-8", "replace")) > USER_MAX:
        return f"{what} has at most {USER_MAX} bytes"
    if _CONTROL.search(name) or name != name.strip():
        return f"{what} has no control characters, and no blanks at its ends"
    return ""


def bad_password(password: str) -> str:
    """What is wrong with a password whatever hash it gets, as a sentence; empty: nothing."""
    if not password:
        return "a password is not empty"
    if len(password.encode("utf-8", "replace")) > PASSWORD_MAX:
        return f"a password has at most {PASSWORD_MAX} bytes"
    if _CONTROL.search(password):
        return "a password has no control characters (RFC 7617 2)"
    return ""


def credentials(token: str) -> tuple[str, str]:
    """(user, password), both in NFC, of what follows ``Basic`` in ``Authorization`` (RFC 7617 2).

    Raises `ValueError` with a sentence for the log, which shows nothing of either, for all that cannot be right.
    """
    if len(token) > 4 * (USER_MAX + PASSWORD_MAX + 4) // 3:
        raise ValueError("the credentials are too long")
    try:
        text = base64.b64decode(token, validate=True).decode()
    except ValueError:  # binascii.Error and UnicodeError are ValueErrors
        raise ValueError("the credentials are not base64 of UTF-8") from None
    user, colon, password = text.partition(":")
    if not colon:
        raise ValueError("the credentials have no colon")
    user, password = normal(user), normal(password)
    if wrong := bad_user(user) or bad_password(password):
        raise ValueError(wrong)
    return user, password


# ---------------------------------------------------------------------------------------------------- hashes


def make(password: str, *, argon2id: bool = False, cost: int = COST) -> str:
    """A hash of `password` (NFC): bcrypt of `cost`, or argon2id with RFC 9106's second recommendation.

    Raises `ValueError` with a sentence for a password that could not be used.
    """
    password = normal(password)
    if wrong := bad_password(password):
        raise ValueError(wrong)
    if argon2id:
        import argon2

        return argon2.PasswordHasher().hash(password)
    import bcrypt

    secret = password.encode()
    if len(secret) > BCRYPT_MAX:
        raise ValueError(f"bcrypt takes at most {BCRYPT_MAX} bytes of a password; argon2id takes longer ones")
    return bcrypt.hashpw(secret, bcrypt.gensalt(cost)).decode()


def verify(stored: str, password: str) -> bool:
    """Whether `password` (NFC) belongs to `stored`.  Takes its time, mostly without the GIL.

    Raises `MemoryError` when argon2id does not get the memory that the line asks for.
    """
    secret = password.encode()
    if stored.startswith("$2"):
        if len(secret) > BCRYPT_MAX:  # bcrypt 4 would ignore the rest, bcrypt 5 raises
            return False
        import bcrypt

        return bcrypt.checkpw(secret, stored.encode())
    from argon2 import exceptions, low_level

    try:
        return low_level.verify_secret(stored.encode(), secret, low_level.Type.ID)
    except exceptions.VerifyMismatchError:
        return False
    except exceptions.VerificationError as error:  # the line was checked when it was read, so what is left is malloc
        raise MemoryError(f"argon2id: {error}") from None


def decoy_like(stored: str) -> str:
    """A hash with the parameters of `stored`, to which no password is known; it is made without hashing."""
    if found := _BCRYPT.fullmatch(stored):
        import bcrypt

        return bcrypt.gensalt(int(found[1])).decode() + secrets.token_hex(16)[:31]
    *head, salt, digest = stored.split("$")
    return "$".join([*head, _random(len(_decoded(salt))), _random(len(_decoded(digest)))])


def _random(size: int) -> str:
    return base64.b64encode(secrets.token_bytes(size)).decode().rstrip("=")


def _decoded(text: str) -> bytes:
    """Raises `ValueError` unless `text` is base64 without padding, written in the one way that libargon2 reads."""
    data = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    if base64.b64encode(data).decode().rstrip("=") != text:
        raise ValueError("bits are left over")
    return data


def _check_hash(stored: str) -> None:
    """Raises `ValueError` with the rest of a sentence about a hash when it cannot be used."""
    if found := _BCRYPT.fullmatch(stored):
        if int(found[1]) not in COSTS:
            raise ValueError(f"is bcrypt of cost {int(found[1])}; a cost from {COSTS[0]} to {COSTS[-1]} is accepted")
        return
    if found := _ARGON2.fullmatch(stored):
        memory, time, lanes = (int(found[at]) for at in (1, 2, 3))
        if memory > ARGON2_MEMORY or time > ARGON2_TIME or lanes > 16 or memory < 8 * lanes:
            raise ValueError(
                f"is argon2id with m={memory},t={time},p={lanes}; at most m={ARGON2_MEMORY},t={ARGON2_TIME},p=16 and "
                "at least 8 KiB for each lane are accepted"
            )
        try:
            sizes = len(_decoded(found[4])), len(_decoded(found[5]))
        except ValueError:
            sizes = 0, 0
        if not (8 <= sizes[0] <= 64 and 16 <= sizes[1] <= 64):
            raise ValueError("is a damaged argon2id hash")
        return
    for pattern, kind in _OTHER_KINDS:
        if re.match(pattern, stored):
            raise ValueError(f"is a hash of another kind: {kind}")
    if stored.startswith(("$2", "$argon2id$")):
        raise ValueError("is a damaged hash")
    raise ValueError("is no hash that is known here, perhaps a plain password")


class Kind(NamedTuple):
    """What a users file keeps of passwords: what checks it (raising `ValueError` with the rest of a sentence), and the
    command that makes a line."""

    check: Callable[[str], None]
    command: str


HASHED = Kind(_check_hash, "frontd passwd")


# ---------------------------------------------------------------------------------------------------- files


def name_of(line: str) -> str | None:
    """The user (NFC) that a line of a users file is about; None when it is blank or a comment."""
    line = line.strip(" \t\r\n")
    return None if not line or line.startswith("#") else normal(line.partition(":")[0])


def stamp_of(path: Path) -> Stamp | None:
    """What changes when the file does; None when there is no way to it."""
    try:
        return _stamp(os.stat(path))
    except OSError:
        return None


def _stamp(status: os.stat_result) -> Stamp:
    return status.st_mtime_ns, status.st_size, status.st_ino


def read(path: Path) -> Users:
    """The users of a file; blocks.  A file without users is fine: then nobody can log on.

    Raises `BadUsers`.
    """
    records, stamp = records_of(path, HASHED)
    return Users(records, _decoys(records.lines), stamp)


def records_of(path: Path, kind: Kind) -> tuple[Records, Stamp]:
    """The users of a file whose hashes are of this kind, and the file's stamp; blocks.  Raises `BadUsers`."""
    try:
        status, data = content(path)
    except FileNotFoundError:
        remedy = f"make it with: {kind.command} {_quoted(path)} USER"
        raise BadUsers((f"{path}: there is no such users file; {remedy}",)) from None
    except OSError as error:
        raise BadUsers((f"{path}: the users file cannot be read: {error.strerror or error}",)) from None
    faults: list[str] = []
    lines = _lines(path, data, kind, faults)
    if faults:
        more = len(faults) - SENTENCES
        raise BadUsers((*faults[:SENTENCES], *([f"{path}: {more} more lines cannot be used"] if more > 0 else [])))
    return Records(lines), _stamp(status)


def content(path: Path) -> tuple[os.stat_result, bytes]:
    """What the file is, and what stands in it.

    Raises `OSError`, also for what is no regular file or longer than 16 MiB.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # or a FIFO would be waited for
    try:
        status = os.fstat(descriptor)  # before it is read: what is written into it meanwhile makes another stamp
        if not stat.S_ISREG(status.st_mode):
            raise OSError("it is not a regular file")
        if status.st_size > FILE_MAX:
            raise OSError(f"it is longer than {FILE_MAX // 1024 // 1024} MiB")
        with open(descriptor, "rb", closefd=False) as file:
            return status, file.read(FILE_MAX)
    finally:
        os.close(descriptor)


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


def _lines(path: Path, data: bytes, kind: Kind, faults: list[str]) -> dict[str, str]:
    """What stands behind each name; what is wrong with the lines goes to `faults`."""
    found: dict[str, str] = {}
    numbers: dict[str, int] = {}
    groups: set[str] = set()
    for number, raw in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        try:
            record = _record(path, raw.decode(), kind, groups)
        except ValueError as error:
            wrong = "the line is not UTF-8" if isinstance(error, UnicodeError) else error
            faults.append(f"{path}:{number}: {wrong}")
            continue
        if record is None:
            continue
        name, rest = record
        before = numbers.setdefault(":".join(alike(name)), number)
        if before != number:
            faults.append(f"{path}:{number}: {name} stands in line {before} already; remove one of them")
            continue
        found[name] = rest
    return found


def _record(path: Path, line: str, kind: Kind, known: set[str]) -> tuple[str, str] | None:
    """The name and what stands behind it.  `known` are the lists of groups that were found to be right.

    Raises `ValueError` with a sentence, to which path and line are put.
    """
    name = name_of(line)
    if name is None:
        return None
    _, colon, rest = line.strip(" \t\r\n").partition(":")
    if not colon:  # it may be a password: nothing of it is shown
        raise ValueError("a line is user:hash or user:hash:group,group, and this one has no colon")
    if wrong := bad_user(name):
        raise ValueError(wrong)
    stored, _, groups = rest.partition(":")
    try:
        kind.check(stored)
    except ValueError as error:
        remedy = f"make the line anew with: {kind.command} {_quoted(path)} USER"
        raise ValueError(f"what follows the name {error}; {remedy}") from None
    if ":" in groups:
        raise ValueError("too many colons; a line is user:hash or user:hash:group,group")
    if groups not in known:
        groups_of(groups)
        known.add(groups)
    return name, rest


def groups_of(text: str) -> tuple[str, ...]:
    """``group,group`` as groups in NFC, each once.  Raises `ValueError` with a sentence."""
    if not text.strip():
        return ()
    groups = [normal(word.strip()) for word in text.split(",")]
    if wrong := next(filter(None, map(bad_group, groups)), ""):
        raise ValueError(wrong)
    return tuple(dict.fromkeys(groups))


def _decoys(lines: dict[str, str]) -> tuple[str, ...]:
    """One decoy for each line; lines with equal parameters share one."""
    by_parameters: dict[str, str] = {}
    found = []
    for line in lines.values():
        stored = line.partition(":")[0]
        parameters = stored[4:6] if stored.startswith("$2") else stored.rsplit("$", 2)[0]
        decoy = by_parameters.get(parameters)
        if decoy is None:
            decoy = by_parameters[parameters] = decoy_like(stored)
        found.append(decoy)
    return tuple(found) or (decoy_like(f"$2b${COST:02}${'.' * 53}"),)
