"""LDAP on the wire: what is put together, and bytes that come in pieces, damaged, or from somebody who means harm."""

from __future__ import annotations

import contextlib
import itertools
import re

import pytest
from frontd_plugins import _ldap as ldap
from hypothesis import given
from hypothesis import strategies as st

# A search result entry as Active Directory writes it: lengths of four bytes each (uid=ann,dc=x with uid: ann).
ENTRY = bytes.fromhex(
    "30 84 00 00 00 2b 02 01 03"
    "64 84 00 00 00 22 04 0c 7569643d616e6e2c64633d78"
    "30 84 00 00 00 0e 30 0c 04 03 554944 31 05 04 03 616e6e"
)
DONE = bytes.fromhex("30 0c 02 01 03 65 07 0a 01 00 04 00 04 00")


def read(data: bytes) -> list[object]:
    """All that the messages in `data` say."""
    inbox, found = ldap.Inbox(), list[object]()
    inbox.receive(data)
    while (message := inbox.next()) is not None:
        kind = ldap.entry if message.operation == ldap.ENTRY else ldap.result
        found.append(kind(message.content))
    return found


MEANT = [ldap.Entry("uid=ann,dc=x", {"uid": (b"ann",)}), ldap.Result(0, "")]


def test_what_a_directory_says() -> None:
    assert read(ENTRY + DONE) == MEANT


@given(st.lists(st.integers(0, len(ENTRY + DONE))))
def test_messages_come_in_any_pieces(cuts: list[int]) -> None:
    inbox, found = ldap.Inbox(), list[int]()
    places = [0, *sorted(cuts), len(ENTRY + DONE)]
    for start, end in itertools.pairwise(places):
        inbox.receive((ENTRY + DONE)[start:end])
        while (message := inbox.next()) is not None:
            found.append(message.operation)
    assert found == [ldap.ENTRY, ldap.DONE]
    assert inbox.is_empty


@given(st.data())
def test_damaged_messages_are_errors_or_mean_something_else(data: st.DataObject) -> None:
    damaged = bytearray(ENTRY + DONE)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ldap.LdapError):
        read(bytes(damaged[: data.draw(st.integers(0, len(damaged)))]))


@given(st.binary(max_size=200))
def test_noise_is_an_error_or_nothing(data: bytes) -> None:
    for noise in (data, b"\x30\x81\xc8" + data):
        with contextlib.suppress(ldap.LdapError):
            read(noise)


def test_a_message_longer_than_allowed_is_refused_before_it_comes() -> None:
    with pytest.raises(ldap.LdapError, match="more than 1048576 bytes"):
        read(b"\x30\x83\x10\x00\x01")


def test_so_many_elements_are_enough() -> None:
    many = b"\x04\x00" * (ldap.ELEMENTS_MAX + 1)
    with pytest.raises(ldap.LdapError, match="damaged"):
        ldap.result(many)


def test_a_bind_has_a_name_and_a_password() -> None:
    assert ldap.bind(1, "cn=a", "b").hex(" ") == "30 11 02 01 01 60 0c 02 01 03 04 04 63 6e 3d 61 80 01 62"
    for name, password in (("", "b"), ("cn=a", ""), ("", "")):
        with pytest.raises(ValueError, match="proves nothing"):
            ldap.bind(1, name, password)


def test_lengths_of_requests() -> None:
    for size in (1, 100, 127, 128, 255, 256, 70_000):
        request = ldap.bind(200, "cn=a", "b" * size)
        inbox = ldap.Inbox()
        inbox.receive(request)
        message = inbox.next()
        assert message is not None
        assert (message.number, message.operation, len(message.content) > size) == (200, ldap.BIND, True)
        assert inbox.is_empty


@given(st.text())
def test_a_value_in_a_dn_has_nothing_that_means_something(text: str) -> None:
    escaped = ldap.dn_value(text)
    assert not re.search(r'[\0"#+,;<=> ]', escaped)
    assert re.sub(r"\\([0-9A-F]{2})", lambda found: chr(int(found[1], 16)), escaped) == text
    assert not re.search(r"\\(?![0-9A-F]{2})", escaped)
