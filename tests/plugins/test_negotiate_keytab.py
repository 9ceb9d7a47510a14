"""Keytabs: what the reader tells is what `klist` tells, and bytes gone wrong are an error."""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path

import pytest
from frontd_plugins import _keytab as keytab
from hypothesis import given
from hypothesis import strategies as st

from tests.windows.realm import Realm, house, kdc

__all__ = ["house", "kdc"]  # fixtures


def entry(principal: str = "HTTP/a.test", *, version: int = 7, encryption: int = 18, after: bytes = b"") -> bytes:
    """A record of a keytab (version 2)."""
    parts = principal.encode().split(b"/")
    names = b"".join(struct.pack(">H", len(part)) + part for part in [b"EXAMPLE.COM", *parts])
    key = struct.pack(">HH", encryption, 32) + bytes(32)
    body = struct.pack(">H", len(parts)) + names + struct.pack(">IIB", 1, 0, version & 0xFF) + key + after
    return struct.pack(">i", len(body)) + body


def read(folder: Path, data: bytes) -> tuple[keytab.Key, ...]:
    (folder / "keytab").write_bytes(data)
    return keytab.read(folder / "keytab")


def test_it_tells_what_klist_tells(house: Realm) -> None:
    path = house.service("HTTP/listed.example", "host/listed.example", keytab="listed.keytab")
    house.admin(f"ktadd -k {path} HTTP/listed.example")  # a second version
    lines = re.findall(r"^ +(\d+) (\S+) \((\S+)\)", house.run("klist", "-ke", str(path)), re.MULTILINE)
    assert len(lines) == 6
    assert [(str(key.version), key.principal, key.encryption) for key in keytab.read(path)] == lines


def test_holes_versions_of_four_bytes_and_types_of_tomorrow(tmp_path: Path) -> None:
    hole = struct.pack(">i", -5) + b"xxxxx"
    data = b"\5\2" + entry() + hole + entry(version=300, after=struct.pack(">I", 300)) + entry(encryption=99)
    assert keytab.told(read(tmp_path, data)) == (
        "HTTP/a.test@EXAMPLE.COM version 7 (aes256-cts-hmac-sha1-96, encryption type 99); "
        "HTTP/a.test@EXAMPLE.COM version 300 (aes256-cts-hmac-sha1-96)"
    )
    assert read(tmp_path, data + bytes(100)) == read(tmp_path, data)
    assert read(tmp_path, data)[0].spn == "HTTP/a.test"


def test_a_record_that_is_cut_off(tmp_path: Path) -> None:
    for size in range(4, len(entry())):  # with fewer bytes of its length it is zeros, with which files are filled up
        with pytest.raises(keytab.BadKeytab, match="ends too early"):
            read(tmp_path, b"\5\2" + entry() + entry()[:size])


def test_what_is_no_keytab(tmp_path: Path) -> None:
    for data, says in (
        (b"", "is no keytab"),
        (b"\5\1" + entry(), "is no keytab"),
        (b"-----BEGIN PRIVATE KEY-----", "is no keytab"),
        (b"\5\2" + bytes(keytab.FILE_MAX), "is longer than 1 MiB"),
        (b"\5\2" + struct.pack(">i", -(2**31)), "ends too early"),
        (b"\5\2" + struct.pack(">i", 2**31 - 1), "ends too early"),
    ):
        with pytest.raises(keytab.BadKeytab, match=says):
            read(tmp_path, data)
    os.mkfifo(tmp_path / "fifo")
    for path, says in (
        (tmp_path, "not a regular file"),
        (tmp_path / "fifo", "not a regular file"),
        (tmp_path / "none", "there is no such keytab"),
    ):
        with pytest.raises(keytab.BadKeytab, match=says):
            keytab.read(path)


@given(at=st.floats(0, 1), size=st.integers(0, 9), put=st.binary(max_size=9))
def test_bytes_gone_wrong(tmp_path_factory: pytest.TempPathFactory, at: float, size: int, put: bytes) -> None:
    whole = b"\5\2" + entry() + entry("host/b.test")
    place = int(at * len(whole))
    try:
        found = read(tmp_path_factory.getbasetemp(), whole[:place] + put + whole[place + size :])
    except keytab.BadKeytab:
        return
    assert len(found) <= 4
