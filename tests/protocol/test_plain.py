"""The law of plain heads, for all heads that hypothesis thinks of: plain means exactly what h11 says.

The other two parts of the law (what is refused, when more is needed) stand in `test_laws`.  Here is also shown that the
tables of remembered lines change nothing, and stay small and without secrets.
"""

from __future__ import annotations

import re

import pytest
from hypothesis import event, example, given
from hypothesis import strategies as st

from frontd.model.errors import FrontdError
from frontd.model.headers import LONGEST_NAME
from frontd.protocol import fieldlines, scan
from frontd.protocol.fieldlines import (
    FACTS,
    LONGEST_LINE,
    MOST_LINES,
    REMEMBERED,
    read_field,
    read_fields,
)
from frontd.protocol.scan import RequestHead, ResponseHead, WireLimits, scan_request, scan_response
from tests.protocol.grammar import PIECES, answers, damaged, requests, spaces, targets, tokens, values
from tests.protocol.referee import check_plain_request, check_plain_response, keeps_alive

LIMITS = WireLimits()
TABLES = (fieldlines._ordinary, fieldlines._facts, fieldlines._names)
BLOCKS = (scan._requests, scan._answers)

# Heads around the border between plain and not: each line is fine alone, many pairs of them are not.
_known_values = {
    b"Host": [b"a.test", b"", b"a b", b"[::1]:80"],
    b"Connection": [b"close", b"keep-alive", b"Keep-Alive", b"CLOSE", b"", b"close,", b"upgrade", b"close, TE", b"x"],
    b"Content-Length": [b"0", b"3", b"0003", b"99999", b"+3", b"3,3", b"", b"1" * 18, b"1" * 19],
    b"Transfer-Encoding": [b"chunked", b"Chunked", b"gzip", b""],
    b"Expect": [b"100-continue", b"x"],
    b"Upgrade": [b"websocket", b""],
    b"User-Agent": [b"a", b"b\tc", b"\xff", b"x" * 300],
    b"Cookie": [b"a=b"],
    b"Accept": [b"*/*"],
}
known_lines = st.sampled_from([(name, value) for name, found in _known_values.items() for value in found])
any_case = known_lines.flatmap(lambda it: st.sampled_from([it, (it[0].lower(), it[1]), (it[0].upper(), it[1])]))
lines = st.tuples(any_case | st.tuples(tokens, values), spaces, spaces).map(
    lambda it: it[0][0] + b":" + it[1] + it[0][1] + it[2] + b"\r\n"
)
few_lines = st.lists(lines, max_size=5).map(b"".join)
methods = st.sampled_from([b"GET", b"HEAD", b"POST", b"OPTIONS", b"CONNECT", b"TRACE", b"connect", b"A!"])
odd_targets = targets | st.sampled_from([b"/#", b"/a#b", b"*", b"a.test:80", b"?", b"/\x7e\x21", b"#/"])
versions = st.sampled_from([b"1.1", b"1.1", b"1.1", b"1.0"])
border_requests = st.builds(
    lambda method, target, version, lines, behind: (
        method + b" " + target + b" HTTP/" + version + b"\r\nHost: a.test\r\n" + lines + b"\r\n" + behind
    ),
    methods, odd_targets, versions, few_lines, st.sampled_from([b"", b"abc", b"\r\n", b"GET / HTTP/1.1\r\n\r\n"]),
)  # fmt: skip
statuses = st.sampled_from([b"200 OK", b"200", b"200 ", b"204 x", b"304", b"100 C", b"199", b"599 \xff", b"404\tx"])
border_answers = st.builds(
    lambda version, status, lines: b"HTTP/" + version + b" " + status + b"\r\n" + lines + b"\r\n",
    versions, statuses, few_lines,
)  # fmt: skip


def request_head(data: bytes | bytearray, start: int = 0) -> RequestHead | None:
    try:
        return scan_request(data, LIMITS, start)
    except FrontdError:
        return None


def answer_head(data: bytes | bytearray, start: int = 0) -> ResponseHead | None:
    try:
        return scan_response(data, start=start)
    except FrontdError:
        return None


def is_plain(data: bytes, head: RequestHead) -> bool:
    """The definition of a plain request, in the words of RFC 9110 and without the scanner's own shortcuts."""
    names = [name for name, _, _ in head.headers]
    connection = [value.lower() for name, _, value in head.headers if name == b"connection"]
    return (
        data.split(b"\r\n")[0].endswith(b" HTTP/1.1")
        and head.target.startswith(b"/")
        and b"#" not in head.target
        and head.method not in (b"CONNECT", b"TRACE")
        and not {b"transfer-encoding", b"expect", b"upgrade"} & set(names)
        and connection in ([], [b"keep-alive"], [b"close"])
    )


# ------------------------------------------------------------------------------------------------------- the law


@given(border_requests | damaged(border_requests) | damaged(requests()))
@example(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nConnection: close\r\n\r\n")
@example(b"GET / HTTP/1.1\r\nHost: a\r\nExpect:\r\n\r\n")
@example(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcGET")
def test_a_plain_request_is_exactly_what_h11_says(data: bytes) -> None:
    head = request_head(bytearray(data))
    if head is None:
        return
    assert head.plain is is_plain(data, head)
    assert head.keep_alive is keeps_alive(data)
    event("plain" if head.plain else "other")
    if head.plain:
        check_plain_request(head, data)


@given(border_answers | damaged(border_answers) | damaged(answers()))
@example(b"HTTP/1.1 204 No\r\nContent-Length: 5\r\n\r\n")
@example(b"HTTP/1.1 304 No\r\nTransfer-Encoding: chunked\r\n\r\n")
@example(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
@example(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n")
@example(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n")
@example(b"HTTP/1.1 200 OK\r\nConnection: close\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
def test_a_plain_answer_is_exactly_what_h11_says(data: bytes) -> None:
    head = answer_head(bytearray(data))
    if head is None:
        return
    event("plain" if head.plain else "other")
    if head.plain:
        check_plain_response(head, data)
    else:
        names = [name for name, _, _ in head.headers]
        said = [value.lower() for name, _, value in head.headers if name == b"connection"]
        assert (
            head.version == b"1.0"
            or head.status < 200
            or {b"upgrade", b"expect"} & set(names)
            or any(name == b"transfer-encoding" and value != b"chunked" for name, _, value in head.headers)
            or said not in ([], [b"close"], [b"keep-alive"])
            or names.count(b"host") > 1
            or (not {b"content-length", b"transfer-encoding"} & set(names) and head.status not in (204, 304))
        )


@given(border_requests | damaged(border_requests), st.data())
def test_a_head_in_pieces_is_the_head_in_one(data: bytes, choice: st.DataObject) -> None:
    whole = request_head(bytearray(data))
    buffer, seen, head = bytearray(), 0, None
    while head is None and len(buffer) < len(data):
        buffer += data[len(buffer) : len(buffer) + choice.draw(st.integers(1, 40))]
        try:
            head = scan_request(buffer, LIMITS, seen)
        except FrontdError:
            assert whole is None
            return
        seen = len(buffer)
    assert (head is None) is (whole is None)
    if head is not None and whole is not None:
        assert facts(head) == facts(whole)


@given(
    border_requests | damaged(border_requests),
    st.lists(border_requests | st.sampled_from(PIECES), max_size=3).map(b"".join),
    st.sampled_from([b"", b"\r\n\r\n"]),
)
@example(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"X: y", b"\r\n\r\n")
@example(b"GET /\x01 HTTP/1.1\r\nHost: a\r\n\r\n", b"\n", b"\r\n\r\n")
def test_a_head_does_not_depend_on_what_stands_behind_it(data: bytes, behind: bytes, end: bytes) -> None:
    first = data[: data.find(b"\r\n\r\n") + 4] if b"\r\n\r\n" in data else data + b"\r\n\r\n"
    try:
        alone = scan_request(bytearray(first), LIMITS)
    except FrontdError as error:
        with pytest.raises(FrontdError, match=re.escape(str(error))):
            scan_request(bytearray(first + behind + end), LIMITS)
    else:
        among = scan_request(bytearray(first + behind + end), LIMITS)
        assert alone is not None
        assert among is not None
        assert facts(among) == facts(alone)


def facts(head: RequestHead | ResponseHead) -> tuple[object, ...]:
    """All that a head says, as something to compare."""
    start = (head.method, head.target) if isinstance(head, RequestHead) else (head.status, head.reason)
    framing = (head.content_length, head.chunked, head.plain, head.keep_alive)
    return (*start, head.version, head.headers.items, head.size, *framing)


# ------------------------------------------------------------------------------------------------- remembered lines


def forget() -> None:
    for table in (*TABLES, *BLOCKS):
        table.clear()


@given(st.lists(border_requests | damaged(border_requests) | st.sampled_from(PIECES), max_size=4), border_requests)
def test_what_is_remembered_changes_nothing(before: list[bytes], data: bytes) -> None:
    forget()
    alone = request_head(bytearray(data))
    for other in before:
        request_head(bytearray(other))
        answer_head(bytearray(other))
    again = request_head(bytearray(data))
    assert (alone is None) is (again is None)
    if alone is not None and again is not None:
        assert facts(again) == facts(alone)


@given(st.lists(damaged(lines), max_size=4))
def test_a_line_is_read_alike_alone_and_among_others(some: list[bytes]) -> None:
    block = b"".join(some).split(b"\r\n")[:-1]
    forget()
    for _ in range(2):
        found = read_fields(block)
        alone = [read_field(line) for line in block]
        assert (found is None) is (None in alone)
        if found is not None:
            assert found[0] == alone


def remembered() -> list[bytes]:
    return [*fieldlines._ordinary, *fieldlines._facts]


@pytest.mark.parametrize("name", [b"Authorization", b"Cookie", b"Set-Cookie", b"Proxy-Authorization", b"X-Token"])
def test_no_line_that_may_be_a_secret_is_remembered(name: bytes) -> None:
    forget()
    assert read_fields([name + b": secret", b"Accept: */*"]) is not None
    assert remembered() == [b"Accept: */*"]
    assert name.lower() not in REMEMBERED


def test_nothing_is_remembered_of_a_line_that_is_wrong() -> None:
    forget()
    for line in (b"Accept: \x01", b"Accept: a\rb", b"Accept: a\nb", b"Host: \x7f", b"Accept", b"Acc ept: a"):
        for _ in range(2):
            assert read_fields([line]) is None
    assert not remembered()


def test_long_lines_and_names_are_not_remembered() -> None:
    forget()
    longest = b"Accept: " + b"a" * (LONGEST_LINE - 8)
    assert read_fields([longest, longest + b"a", b"n" * (LONGEST_NAME + 1) + b":", b"m" * LONGEST_NAME + b":"])
    assert remembered() == [longest]
    assert max(map(len, fieldlines._names)) == LONGEST_NAME


def test_the_tables_are_bounded_whatever_comes() -> None:
    forget()
    for number in range(3 * MOST_LINES):
        assert read_fields([b"Accept: %d" % number, b"Host: %d" % number, b"name-%d: x" % number]) is not None
        assert all(len(table) <= MOST_LINES for table in TABLES)
    assert all(TABLES)


def test_a_fact_is_a_fact_however_often_it_was_seen() -> None:
    forget()
    line = b"Content-Length: 3"
    for _ in range(3):
        found = read_fields([line, line])
        assert found is not None
        assert found[:3] == ([(b"content-length", b"Content-Length", b"3")] * 2, {b"content-length": b"3"},
                             (b"content-length",))  # fmt: skip
    assert set(fieldlines._facts) == {line}
    assert not any(read_field(known)[0] in FACTS for known in fieldlines._ordinary)  # type: ignore[index]
