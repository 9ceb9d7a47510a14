"""Answers that are prepared are sent like all others, and are never what somebody else made of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontd.model.headers import Headers
from frontd.model.messages import Response
from frontd.pipeline.answers import complete, now
from frontd.protocol.framing import field_lines

NAMES = st.sampled_from(
    [b"A", b"X-Some", b"Date", b"ETag", b"Connection", b"Keep-Alive", b"Content-Length", b"content-length", b"Upgrade"]
)
VALUES = st.sampled_from([b"", b"1", b"close", b"a b\tc", b"\xe9", b'"tag"'])
FIELDS = st.lists(st.tuples(NAMES, VALUES), max_size=6)
STATUSES = st.sampled_from([200, 204, 304, 404, 599])


def sent_lines(response: Response) -> list[bytes]:
    """The field lines of an answer the way that looks at every field, in the order of their text."""
    complete(response)
    return sorted(field_lines(response.headers.items).splitlines())


def prepared_lines(response: Response) -> list[bytes]:
    """Those of a prepared one, with the Date that is added where it is sent."""
    assert response.ready is not None
    lines = response.ready.lines.splitlines()
    return sorted(lines if response.ready.is_dated else [*lines, b"Date: %b" % now()])


@given(STATUSES, FIELDS, st.lists(st.tuples(NAMES, VALUES), max_size=3))
def test_it_has_the_same_lines(status: int, fields: list[tuple[bytes, bytes]], more: list[tuple[bytes, bytes]]) -> None:
    answer, other = Response(status, fields, b"body").prepare(), Response(status, fields, b"body")
    longer = sent_lines(Response(status, fields + more, b"body"))
    assert prepared_lines(answer.copy(*more)) == sent_lines(other.copy(*more)) == longer
    assert prepared_lines(answer) == sent_lines(other)


@pytest.mark.parametrize("name", [b"X y", b"", b"X:"])
def test_a_name_that_cannot_be_sent(name: bytes) -> None:
    with pytest.raises(ValueError, match="field name"):
        Response(200, Headers.of((name, b"1"))).prepare()
    with pytest.raises(ValueError, match="field name"):
        Response(200).prepare().copy((name, b"1"))


@pytest.mark.parametrize("value", [b"a\r\nSet-Cookie: b", b"a\0", b" a", b"a\n"])
def test_a_value_that_would_break_out(value: bytes) -> None:
    with pytest.raises(ValueError, match="control character"):
        Response(200, Headers.of((b"X", value))).prepare()
    with pytest.raises(ValueError, match="control character"):
        Response(200).prepare().copy((b"X", value))


def test_the_app_s_answer_cannot_be_prepared() -> None:
    with pytest.raises(ValueError, match="the app's"):
        Response(200, (), None).prepare()


def test_whoever_looks_at_the_fields_may_change_them() -> None:
    answer = Response(200, {"A": "1"}).prepare()
    answer.headers.add("B", "2")
    assert answer.ready is None
    assert answer.headers.pairs() == [(b"A", b"1"), (b"B", b"2")]
    answer.prepare()
    answer.headers = Headers.of((b"C", b"3"))
    assert answer.ready is None


def test_what_was_held_before_is_not_what_is_sent() -> None:
    fields = Headers.of((b"A", b"1"))
    answer = Response(200, fields).prepare()
    fields.add(b"A", b"2")
    assert answer.copy().headers.pairs() == [(b"A", b"1")]


@pytest.mark.parametrize("attribute", ["status", "body"])
def test_another_status_or_body(attribute: str) -> None:
    answer = Response(200, {"A": "1"}, b"body").prepare()
    setattr(answer, attribute, 404 if attribute == "status" else b"longer")
    assert answer.ready is None
    assert answer.copy().ready is None
    assert sent_lines(answer.copy())[0] == b"A: 1"


@pytest.mark.parametrize("is_prepared", [False, True])
def test_a_copy_has_nothing_in_common_that_changes(is_prepared: bool) -> None:
    first = Response(200, {"A": "1"}, b"body")
    if is_prepared:
        first.prepare()
    second = first.copy()
    third = second.copy((b"B", b"2"))
    assert [one.ready is not None for one in (first, second, third)] == [is_prepared] * 3
    second.headers.set("A", "3")
    second.status, second.body = 404, b""
    second.capture(1, print)
    first.headers.remove("A")
    assert (first.status, first.body, first.headers.pairs(), first.captures) == (200, b"body", [], [])
    assert (second.status, second.headers.pairs()) == (404, [(b"A", b"3")])
    assert (third.status, third.headers.pairs(), third.captures) == (200, [(b"A", b"1"), (b"B", b"2")], [])
