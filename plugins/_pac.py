"""Who somebody is in a Windows domain, out of the authorization data of a Kerberos ticket (MS-PAC 2.5).

How it works
------------
The domain controller puts a PAC into each ticket.  The library of Kerberos verifies its signature with our key and
hands out the buffer ``logon-info``: a KERB_VALIDATION_INFO in NDR (C706 14, 32 bit, little endian).  NDR writes a
structure flat, pointers as numbers of no meaning but null or not, and what they point to behind it in the same order.
`read` goes through it once, from the front to the end of what is needed.

Other KDCs make PACs as well, without that buffer (MIT since 1.20): `buffers` tells which ones there are.

Invariants
----------
* Nothing is read beyond the end, and no count is believed that contradicts another: a damaged PAC is a `BadPac`, never
  half of a user.
* A group that is there only to deny (SE_GROUP_ENABLED is not set, MS-PAC 2.2.1) is left out.
"""

from __future__ import annotations

from typing import NamedTuple

SUBAUTHORITIES = 15  # MS-DTYP 2.4.2: at most
ENABLED = 0x4  # SE_GROUP_ENABLED, MS-PAC 2.2.1
BUFFERS = 64  # of a PAC, at most; MS-PAC 2.4 has 20 types
# What a PAC has that says nothing of an account (MS-PAC 2.4): the name and time of the ticket, who delegated it, and
# the checksums of the server, the KDC, the ticket and the whole
PLAIN = frozenset({6, 7, 10, 11, 16, 19})


class BadPac(ValueError):
    """A PAC that cannot be read; its text says why."""


class LogonInfo(NamedTuple):
    """The account's name, its domain's NetBIOS name, and the SIDs of the account and of its groups, each once."""

    user: str
    domain: str
    sids: tuple[str, ...]


class _Reader:
    """NDR from the front; numbers stand at multiples of their size (C706 14.2.2)."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, size: int) -> bytes:
        """The next `size` bytes."""
        if size > len(self._data) - self._at:
            raise BadPac("it ends too early")
        self._at += size
        return self._data[self._at - size : self._at]

    def _number(self, size: int) -> int:
        self.take(-self._at % size)
        return int.from_bytes(self.take(size), "little")

    def short(self) -> int:
        """An unsigned short."""
        return self._number(2)

    def long(self) -> int:
        """An unsigned long, a pointer, a count."""
        return self._number(4)

    def count(self, expected: int) -> int:
        """The size of a conformant array, which has to be what the structure said."""
        if (found := self.long()) != expected:
            raise BadPac(f"an array of {expected} says that it has {found} elements")
        return found


class _Text(NamedTuple):
    """An RPC_UNICODE_STRING whose letters come later: its length in letters, and whether there are any."""

    length: int
    is_there: bool


def _text(reader: _Reader) -> _Text:
    length, maximum, pointer = reader.short(), reader.short(), reader.long()
    if length > maximum or length % 2:
        raise BadPac(f"a text of {length} bytes in a buffer of {maximum}")
    return _Text(length // 2, pointer != 0)


def _letters(reader: _Reader, text: _Text) -> str:
    if not text.is_there:
        return ""
    maximum, offset, actual = reader.long(), reader.long(), reader.long()
    if offset or actual > maximum or actual != text.length:
        raise BadPac(f"a text of {text.length} letters has {actual} of {maximum} from {offset}")
    try:
        return reader.take(2 * actual).decode("utf-16-le")
    except UnicodeDecodeError as error:
        raise BadPac("a text is not UTF-16") from error


def _sid(reader: _Reader) -> str:
    """An RPC_SID (MS-DTYP 2.4.2.3) as a text (2.4.2.1)."""
    size = reader.long()
    revision, count = reader.take(2)
    if revision != 1 or count != size or count > SUBAUTHORITIES:
        raise BadPac(f"a SID of revision {revision} with {count} of {size} parts")
    authority = int.from_bytes(reader.take(6), "big")
    shown = f"{authority:#x}" if authority >= 1 << 32 else str(authority)
    return "-".join(["S-1", shown, *(str(reader.long()) for _ in range(count))])


def _relative(reader: _Reader, count: int, is_there: bool) -> list[int]:
    """The RIDs of the enabled groups in an array of GROUP_MEMBERSHIP (MS-PAC 2.2.2)."""
    if not is_there:
        if count:
            raise BadPac(f"{count} groups are nowhere")
        return []
    pairs = [(reader.long(), reader.long()) for _ in range(reader.count(count))]
    return [rid for rid, attributes in pairs if attributes & ENABLED]


def _extra(reader: _Reader, count: int, is_there: bool) -> list[str]:
    """The enabled SIDs in an array of KERB_SID_AND_ATTRIBUTES (MS-PAC 2.2.1)."""
    if not is_there:
        if count:
            raise BadPac(f"{count} SIDs are nowhere")
        return []
    pairs = [(reader.long(), reader.long()) for _ in range(reader.count(count))]
    found = [(_sid(reader) if pointer else "", attributes) for pointer, attributes in pairs]
    return [sid for sid, attributes in found if sid and attributes & ENABLED]


def buffers(data: bytes) -> frozenset[int]:
    """The types of the buffers of a whole PAC (MS-PAC 2.3, 2.4).  Raises `BadPac`."""
    reader = _Reader(data)
    count, version = reader.long(), reader.long()
    if version or count > BUFFERS:
        raise BadPac(f"a PAC of version {version} with {count} buffers")
    found = set()
    for _ in range(count):
        found.add(reader.long())
        reader.take(4 + 8)  # size, offset
    return frozenset(found)


def read(data: bytes) -> LogonInfo:
    """The logon information of a PAC's buffer (MS-PAC 2.5).  Raises `BadPac`."""
    if len(data) < 16 or data[:4] != b"\x01\x10\x08\x00":  # MS-RPCE 2.2.6.1: version 1, little endian, 8 bytes long
        raise BadPac("it does not begin like NDR")
    if int.from_bytes(data[8:12], "little") > len(data) - 16:
        raise BadPac("it is shorter than it says")
    reader = _Reader(data)
    reader.take(16)
    if not reader.long():
        raise BadPac("it is empty")
    reader.take(6 * 8)  # times
    names = [_text(reader) for _ in range(6)]  # account, full name, script, profile, home directory, its drive
    reader.take(2 * 2)  # counts of logons
    user, primary, count = reader.long(), reader.long(), reader.long()
    groups_there = reader.long() != 0
    reader.take(4 + 16)  # flags, session key
    server, domain = _text(reader), _text(reader)
    base_there = reader.long() != 0
    reader.take(8 + 4 + 4 + 8 + 8 + 4 + 4)  # what Kerberos has no use for
    extra_count, extra_there = reader.long(), reader.long() != 0
    resource_there = reader.long() != 0
    resource_count, resource_groups_there = reader.long(), reader.long() != 0

    account, *_ = [_letters(reader, name) for name in names]
    groups = _relative(reader, count, groups_there)
    _letters(reader, server)
    domain_name = _letters(reader, domain)
    base = _sid(reader) if base_there else ""
    extra = _extra(reader, extra_count, extra_there)
    resource_base = _sid(reader) if resource_there else ""
    resources = _relative(reader, resource_count, resource_groups_there)
    if (groups and not base) or (resources and not resource_base):
        raise BadPac("there are groups of no domain")

    own = [user, primary] if user else []  # 0: the account's SID is among the extra ones
    sids = [f"{base}-{rid}" for rid in [*own, *groups]] if base else []
    sids += [*extra, *(f"{resource_base}-{rid}" for rid in resources)]
    return LogonInfo(account, domain_name, tuple(dict.fromkeys(sids)))
