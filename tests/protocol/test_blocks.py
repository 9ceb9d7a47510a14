"""Fields that come again and again: the lines of a whole head, remembered as one, change nothing."""

from __future__ import annotations

import pytest
from hypothesis import given

from frontd.model.errors import FrontdError
from frontd.protocol import scan
from frontd.protocol.fieldlines import MOST_BLOCKS
from frontd.protocol.scan import WireLimits, scan_request
from tests.protocol.grammar import answers, requests
from tests.protocol.test_plain import LIMITS, answer_head, border_answers, border_requests, facts, forget, request_head


@given(border_requests | requests())
def test_a_request_is_the_same_however_often_it_comes(data: bytes) -> None:
    forget()
    first = request_head(data)
    for _ in range(4):
        again = request_head(data)
        assert (again is None) is (first is None)
        if again is not None and first is not None:
            assert facts(again) == facts(first)
            again.headers.items.clear()  # what plugins do to theirs stays theirs


@given(border_answers | answers())
def test_an_answer_is_the_same_however_often_it_comes(data: bytes) -> None:
    forget()
    first = answer_head(data)
    for _ in range(4):
        again = answer_head(data)
        assert (again is None) is (first is None)
        if again is not None and first is not None:
            assert facts(again) == facts(first)
            again.headers.items.clear()


def test_a_block_is_remembered_when_all_of_its_lines_are() -> None:
    forget()
    for data in (b"Host: a\r\nAccept: */*\r\n", b"Host: a\r\nCookie: a\r\n", b"Host: a\r\nX-Token: a\r\n"):
        for _ in range(3):
            assert request_head(b"GET / HTTP/1.1\r\n" + data + b"\r\n") is not None
    assert list(scan._requests) == [b"Host: a\r\nAccept: */*\r\n"]


def test_blocks_are_bounded_in_number_and_length() -> None:
    forget()
    for number in range(3 * MOST_BLOCKS):
        for _ in range(2):
            assert request_head(b"GET / HTTP/1.1\r\nHost: %d\r\n\r\n" % number) is not None
        assert len(scan._requests) <= MOST_BLOCKS
    assert scan._requests
    forget()
    names = (b"Accept", b"Server", b"Vary", b"TE", b"Pragma", b"DNT")
    long = b"".join(b"%b: %b\r\n" % (name, b"x" * 200) for name in names)
    for _ in range(3):
        assert request_head(b"GET / HTTP/1.1\r\nHost: a\r\n" + long + b"\r\n") is not None
    assert not scan._requests


def test_a_remembered_block_is_still_within_the_limits_of_who_asks() -> None:
    forget()
    data = b"GET / HTTP/1.1\r\nHost: a\r\nAccept: */*\r\nVary: x\r\n\r\n"
    for _ in range(3):
        assert scan_request(data, LIMITS) is not None
    for limits in (WireLimits(max_fields=2), WireLimits(max_field=7)):
        with pytest.raises(FrontdError):
            scan_request(data, limits)
