"""LDAP (RFC 4511) as far as a logon needs it: simple bind, StartTLS, search.  Bytes in, bytes out.

How it works
------------
A message is BER (RFC 4511 5.1): elements of tag, length and content, one inside of the other.  Requests are put
together by `bind`, `start_tls` and `search`; `Inbox` takes what comes from the directory and gives its messages;
`result` and `entry` read what stands in them.  Filters are made of `equal`, `any_of` and so on: nobody has to escape or
parse their text form (RFC 4515).  `dn_value` escapes what becomes part of a name (RFC 4514).

Invariants
----------
* Lengths are definite and checked before they are believed; no message is longer than `MESSAGE_MAX`.  Nothing is
  nested deeper than the reader looks.  All that is wrong is an `LdapError`, which shows nothing of the bytes.
* A bind has a name and a password: without a password it would be an unauthenticated one, and without both an anonymous
  one, and directories answer those with success (RFC 4513 5.1.1, 5.1.2).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

MESSAGE_MAX = 1 << 20  # bytes; the entry of a user of 1000 groups is about 100 kB
ELEMENTS_MAX = 20_000  # in one another

# Application tags of RFC 4511 4.2 to 4.14
BIND, SEARCH, EXTENDED, UNBIND = 0x60, 0x63, 0x77, 0x42
BOUND, ENTRY, DONE, REFERENCE, EXTENDED_DONE = 0x61, 0x64, 0x65, 0x73, 0x78
_INTEGER, _OCTETS, _ENUMERATED, _BOOLEAN, _SEQUENCE, _SET = 0x02, 0x04, 0x0A, 0x01, 0x30, 0x31
_SIMPLE, _REQUEST_NAME, _OR, _EQUAL, _PRESENT, _EXTENSIBLE = 0x80, 0x80, 0xA1, 0xA3, 0x87, 0xA9
_RULE, _TYPE, _VALUE = 0x81, 0x82, 0x83  # of an extensible match

START_TLS = b"1.3.6.1.4.1.1466.20037"  # RFC 4511 4.14
IN_CHAIN = "1.2.840.113556.1.4.1941"  # LDAP_MATCHING_RULE_TRANSITIVE_EVAL (MS-ADTS 3.1.1.3.4.4.3)
UNSOLICITED = 0  # messageID of a Notice of Disconnection (4.4.1)
BASE, ONE_LEVEL, SUBTREE = 0, 1, 2  # scopes (4.5.1.2)

SUCCESS, SIZE_LIMIT = 0, 4  # result codes (RFC 4511 appendix A)


class LdapError(Exception):
    """What came is no LDAP that we understand."""


class Message(NamedTuple):
    """A message of the directory: the number of its request, the tag of the operation, its content."""

    number: int
    operation: int
    content: bytes


class Result(NamedTuple):
    """How an operation ended: result code and diagnostic message (RFC 4511 4.1.9)."""

    code: int
    text: str


class Entry(NamedTuple):
    """An entry that was found: its name, and the values of each attribute (names in small letters)."""

    name: str
    attributes: Mapping[str, tuple[bytes, ...]]


# ---------------------------------------------------------------------------------------------------- requests


def _element(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 0x80:
        return bytes((tag, size)) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + content


def _integer(value: int, tag: int = _INTEGER) -> bytes:
    return _element(tag, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def _request(number: int, operation: int, content: bytes) -> bytes:
    return _element(_SEQUENCE, _integer(number) + _element(operation, content))


def bind(number: int, name: str, password: str) -> bytes:
    """A simple bind (RFC 4511 4.2).  Raises `ValueError` without a name or a password."""
    if not name or not password:
        raise ValueError("a bind without a name or a password proves nothing (RFC 4513 5.1.2)")
    credentials = _element(_OCTETS, name.encode()) + _element(_SIMPLE, password.encode())
    return _request(number, BIND, _integer(3) + credentials)


def start_tls(number: int) -> bytes:
    """Ask for TLS on this connection (RFC 4511 4.14)."""
    return _request(number, EXTENDED, _element(_REQUEST_NAME, START_TLS))


def search(number: int, base: str, scope: int, found: bytes, attributes: Iterable[str], most: int) -> bytes:
    """Look for at most `most` entries at `base`; aliases are not followed (RFC 4511 4.5.1)."""
    wanted = b"".join(_element(_OCTETS, name.encode()) for name in attributes)
    limits = _integer(most) + _integer(0) + _element(_BOOLEAN, b"\0")
    place = _element(_OCTETS, base.encode()) + _integer(scope, _ENUMERATED) + _integer(0, _ENUMERATED)
    return _request(number, SEARCH, place + limits + found + _element(_SEQUENCE, wanted))


def unbind(number: int) -> bytes:
    """Say goodbye (RFC 4511 4.3)."""
    return _element(_SEQUENCE, _integer(number) + _element(UNBIND, b""))


def equal(attribute: str, value: str) -> bytes:
    """A filter: the attribute has this value."""
    return _element(_EQUAL, _element(_OCTETS, attribute.encode()) + _element(_OCTETS, value.encode()))


def by_rule(rule: str, attribute: str, value: str) -> bytes:
    """A filter: the attribute has this value, as a matching rule compares (RFC 4511 4.5.1.7.7)."""
    parts = zip((_RULE, _TYPE, _VALUE), (rule, attribute, value), strict=True)
    return _element(_EXTENSIBLE, b"".join(_element(tag, text.encode()) for tag, text in parts))


def present(attribute: str) -> bytes:
    """A filter: the attribute is there."""
    return _element(_PRESENT, attribute.encode())


def any_of(*filters: bytes) -> bytes:
    """A filter: one of them holds."""
    return _element(_OR, b"".join(filters))


def dn_value(text: str) -> str:
    r"""`text` as the value of an attribute in a distinguished name (RFC 4514 2.4): what could mean something is
    written as ``\2C``."""
    return "".join(f"\\{ord(one):02X}" if one in '\0"#+,;<=>\\ ' else one for one in text)


# ---------------------------------------------------------------------------------------------------- answers


class Inbox:
    """Takes bytes in any pieces and gives whole messages."""

    def __init__(self) -> None:
        self._data = bytearray()

    @property
    def is_empty(self) -> bool:
        """Whether nothing of another message has come."""
        return not self._data

    def receive(self, data: bytes | bytearray) -> None:
        """Take what has come."""
        self._data += data

    def next(self) -> Message | None:
        """The next message; None: more has to come.  Raises `LdapError`."""
        if self._data and self._data[0] != _SEQUENCE:
            raise LdapError("what the directory says is no LDAP")
        found = _length(self._data, 1)
        if found is None:
            return None
        size, start = found
        if size > MESSAGE_MAX:
            raise LdapError(f"the directory says more than {MESSAGE_MAX} bytes at once")
        if len(self._data) < start + size:
            return None
        content = bytes(self._data[start : start + size])
        del self._data[: start + size]
        (tag, number), (operation, rest), *_ = _several(content, 2)
        if tag != _INTEGER:
            raise LdapError("a message of the directory has no number")
        return Message(_number(number), operation, rest)


def _length(data: bytes | bytearray, at: int) -> tuple[int, int] | None:
    """The length that stands at `at`, and where the content begins; None: it is not there yet.

    Active Directory writes four bytes where one would do, which BER allows.
    """
    if len(data) <= at:
        return None
    first = data[at]
    if first < 0x80:
        return first, at + 1
    count = first & 0x7F
    if not 1 <= count <= 4:
        raise LdapError("a length of the directory cannot be")
    end = at + 1 + count
    return (int.from_bytes(data[at + 1 : end], "big"), end) if len(data) >= end else None


def _elements(data: bytes) -> list[tuple[int, bytes]]:
    """Tag and content of each element in `data`.  Raises `LdapError`."""
    found: list[tuple[int, bytes]] = []
    at = 0
    while at < len(data):
        measured = _length(data, at + 1)
        if measured is None or measured[0] > len(data) - measured[1] or len(found) == ELEMENTS_MAX:
            raise LdapError("a message of the directory is damaged")
        size, start = measured
        found.append((data[at], data[start : start + size]))
        at = start + size
    return found


def _several(data: bytes, least: int) -> list[tuple[int, bytes]]:
    found = _elements(data)
    if len(found) < least:
        raise LdapError("a message of the directory is too short")
    return found


def _number(data: bytes) -> int:
    if not 1 <= len(data) <= 4:
        raise LdapError("a number of the directory cannot be")
    return int.from_bytes(data, "big", signed=True)


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeError:
        raise LdapError("a text of the directory is not UTF-8") from None


def result(content: bytes) -> Result:
    """The result that ends an operation.  Raises `LdapError`."""
    (tag, code), _, (_, text), *_ = _several(content, 3)
    if tag != _ENUMERATED:
        raise LdapError("a result of the directory has no code")
    return Result(_number(code), text.decode("utf-8", "replace"))


def entry(content: bytes) -> Entry:
    """What stands in a SearchResultEntry (RFC 4511 4.5.2).  Raises `LdapError`."""
    (_, name), (_, attributes), *_ = _several(content, 2)
    found: dict[str, tuple[bytes, ...]] = {}
    for _, attribute in _elements(attributes):
        (_, kind), (_, values), *_ = _several(attribute, 2)
        found[_text(kind).lower()] = tuple(value for _, value in _elements(values))
    return Entry(_text(name), found)
