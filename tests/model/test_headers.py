"""The multi-map of fields, and what may pass a proxy."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontd.model.headers import (
    HOP_BY_HOP,
    NOT_IN_TRAILERS,
    Headers,
    announced_trailers,
    end_to_end,
    without_underscores,
)


def names(headers: Headers) -> list[bytes]:
    return [raw for _, raw, _ in headers]


def test_fields_keep_their_order_and_case_and_are_found_in_any_case() -> None:
    headers = Headers.of((b"X-One", b"1"), (b"B", b"2"), (b"x-oNE", b"3"))
    assert headers.pairs() == [(b"X-One", b"1"), (b"B", b"2"), (b"x-oNE", b"3")]
    assert headers.get(b"x-one") == headers.get(b"X-ONE") == b"1"
    assert headers.get_all(b"X-one") == [b"1", b"3"]
    assert b"X-ONE" in headers
    assert b"c" not in headers
    assert len(headers) == 3
    assert (headers.get(b"c"), headers.get(b"c", b"d"), headers.get_all(b"c")) == (b"", b"d", [])


def test_set_replaces_all_of_a_name_and_add_none() -> None:
    headers = Headers.of((b"X", b"1"), (b"B", b"2"), (b"x", b"3"))
    headers.set(b"X", b"4")
    assert headers.pairs() == [(b"B", b"2"), (b"X", b"4")]
    headers.add(b"x", b"5")
    assert headers.get_all(b"X") == [b"4", b"5"]
    headers.remove(b"X")
    headers.remove(b"nothing")
    assert headers.pairs() == [(b"B", b"2")]


def test_tokens_of_a_list_field() -> None:
    headers = Headers.of((b"Connection", b" Close ,\tX-a,,"), (b"connection", b""), (b"CONNECTION", b"b"))
    assert headers.tokens(b"Connection") == [b"close", b"x-a", b"b"]


def test_text_never_fails() -> None:
    headers = Headers.of((b"A", "é".encode()), (b"B", b"\xe9"))
    assert (headers.text(b"a"), headers.text(b"b"), headers.text(b"c", "d")) == ("é", "\ufffd", "d")


def test_a_repr_shows_no_values() -> None:
    assert "secret" not in repr(Headers.of((b"Authorization", b"secret")))


@pytest.mark.parametrize("name", sorted(HOP_BY_HOP))
def test_hop_by_hop_fields_end_here(name: bytes) -> None:
    assert names(end_to_end(Headers.of((name.title(), b"x"), (b"Other", b"y")))) == [b"Other"]


def test_fields_that_connection_names_end_here() -> None:
    headers = Headers.of(
        (b"Connection", b"x-one, X-Two"),
        (b"X-One", b"1"),
        (b"x-two", b"2"),
        (b"X-Three", b"3"),
        (b"connection", b"X-FOUR"),
        (b"X-Four", b"4"),
    )
    assert names(end_to_end(headers)) == [b"X-Three"]


def test_connection_takes_no_length_away() -> None:
    headers = Headers.of((b"Connection", b"Content-Length, close"), (b"Content-Length", b"3"))
    assert end_to_end(headers).pairs() == [(b"Content-Length", b"3")]
    headers = Headers.of((b"Connection", b"transfer-encoding"), (b"Transfer-Encoding", b"chunked"))
    assert end_to_end(headers).pairs() == []  # that one is set anew by whoever sends


def test_end_to_end_leaves_the_original_alone() -> None:
    headers = Headers.of((b"Connection", b"x"), (b"X", b"1"))
    end_to_end(headers)
    assert len(headers) == 2


def test_names_with_an_underscore_are_dropped_and_counted() -> None:
    headers = Headers.of((b"X_Remote_User", b"root"), (b"X-Remote-User", b"me"), (b"_", b"1"))
    kept, count = without_underscores(headers)
    assert (names(kept), count) == ([b"X-Remote-User"], 2)


def test_trailers_pass_when_they_were_announced() -> None:
    head = Headers.of((b"Trailer", b"X-Sum, x-time"), (b"trailer", b"Content-Length"))
    trailers = Headers.of((b"x-SUM", b"1"), (b"X-Time", b"2"), (b"X-Other", b"3"), (b"Content-Length", b"4"))
    assert names(announced_trailers(head, trailers)) == [b"x-SUM", b"X-Time"]
    assert names(announced_trailers(Headers(), trailers)) == []


@pytest.mark.parametrize("name", sorted(NOT_IN_TRAILERS))
def test_some_fields_are_no_trailers_even_when_announced(name: bytes) -> None:
    assert names(announced_trailers(Headers.of((b"Trailer", name)), Headers.of((name, b"x")))) == []


@pytest.mark.parametrize("name", [b"x-forwarded-for", b"x-real-ip", b"host", b"authorization", b"transfer-encoding"])
def test_nothing_that_says_who_somebody_is_passes_as_a_trailer(name: bytes) -> None:
    assert name in NOT_IN_TRAILERS


letters = st.sampled_from([b"connection", b"x-a", b"X-A", b"x-b", b"TE", b"content-length", b"close"])


@given(st.lists(st.tuples(letters, letters)))
def test_end_to_end_is_idempotent_and_only_takes_away(pairs: list[tuple[bytes, bytes]]) -> None:
    headers = Headers.of(*pairs)
    once = end_to_end(headers)
    assert end_to_end(once).items == once.items
    assert [item for item in headers.items if item in once.items] == once.items
    assert headers.get_all(b"content-length") == once.get_all(b"content-length")
