"""What stands in a keytab, the keys left out: for people who look for the reason why a logon fails.

How it works
------------
A keytab (MIT's file format, version 2, the one that every implementation writes) is two bytes of version and a list of
records, each behind its length; a negative length is a hole that a removed record has left.  All numbers are big
endian.  The library of Kerberos reads the file by itself whenever it needs a key; this reader only tells what is there,
and works where that library is not installed.

Invariants
----------
* Keys are skipped, never kept.
* No number of the file is believed before it is known that the file is long enough for it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

FILE_MAX = 1 << 20  # bytes; a key with its name takes about 100

# RFC 3961 8, RFC 3962 7, RFC 8009 4, RFC 4757, RFC 6803
ENCRYPTION = {
    1: "des-cbc-crc", 2: "des-cbc-md4", 3: "des-cbc-md5", 16: "des3-cbc-sha1", 17: "aes128-cts-hmac-sha1-96",
    18: "aes256-cts-hmac-sha1-96", 19: "aes128-cts-hmac-sha256-128", 20: "aes256-cts-hmac-sha384-192",
    23: "rc4-hmac", 25: "camellia128-cts-cmac", 26: "camellia256-cts-cmac",
}  # fmt: skip


def is_spn(text: str) -> bool:
    """Whether a text can be a service principal name: ``service/host``, perhaps with ``@REALM``."""
    service, slash, host = text.partition("/")
    return bool(service and slash and host) and text.isprintable() and " " not in text


class Key(NamedTuple):
    """A key of a keytab without the key: ``HTTP/www.example.com@EXAMPLE.COM``, its version, its encryption type."""

    principal: str
    version: int
    encryption: str

    @property
    def spn(self) -> str:
        """The principal without its realm."""
        return self.principal.rpartition("@")[0]


class BadKeytab(ValueError):
    """A file that is no keytab, or cannot be read; its text says why."""


class _Record:
    """The bytes of one record, read from the front."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, size: int) -> bytes:
        """The next `size` bytes."""
        if size > self.left:
            raise BadKeytab("a record ends too early")
        self._at += size
        return self._data[self._at - size : self._at]

    def number(self, size: int) -> int:
        """A number of `size` bytes."""
        return int.from_bytes(self.take(size), "big")

    def text(self) -> str:
        """A text behind its length."""
        return self.take(self.number(2)).decode("utf-8", "backslashreplace")

    @property
    def left(self) -> int:
        """How many bytes have not been read."""
        return len(self._data) - self._at


def read(path: Path) -> tuple[Key, ...]:
    """The keys of a keytab; blocks.  Raises `BadKeytab`."""
    try:
        if not path.is_file():
            raise BadKeytab(f"{path}: " + ("it is not a regular file" if path.exists() else "there is no such keytab"))
        with path.open("rb") as file:
            data = file.read(FILE_MAX + 1)
    except OSError as error:
        raise BadKeytab(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > FILE_MAX:
        raise BadKeytab(f"{path} is longer than {FILE_MAX >> 20} MiB")
    if data[:2] != b"\x05\x02":
        raise BadKeytab(f"{path} is no keytab (one of version 2 begins with the bytes 05 02)")
    try:
        return tuple(_keys(data))
    except BadKeytab as error:
        raise BadKeytab(f"{path} is damaged: {error}") from error


def _keys(data: bytes) -> Iterator[Key]:
    at = 2
    while at + 4 <= len(data):
        (size,) = struct.unpack_from(">i", data, at)
        at += 4
        if size == 0:  # the end: some writers fill up with zeros
            return
        if at + abs(size) > len(data):
            raise BadKeytab("the last record ends too early")
        if size > 0:
            yield _key(_Record(data[at : at + size]))
        at += abs(size)
    if any(data[at:]):
        raise BadKeytab("the last record ends too early")


def _key(record: _Record) -> Key:
    parts = record.number(2)
    realm = record.text()
    name = "/".join(record.text() for _ in range(parts))
    record.take(8)  # type of the name, time
    version = record.number(1)
    encryption = record.number(2)
    record.take(record.number(2))
    if record.left >= 4:  # a version that does not fit into one byte
        version = record.number(4) or version
    return Key(f"{name}@{realm}", version, ENCRYPTION.get(encryption, f"encryption type {encryption}"))


def told(keys: Iterable[Key]) -> str:
    """The keys in one line, a principal with its versions and types once."""
    found: dict[tuple[str, int], list[str]] = {}
    for key in keys:
        found.setdefault((key.principal, key.version), []).append(key.encryption)
    return "; ".join(f"{name} version {version} ({', '.join(types)})" for (name, version), types in found.items())
