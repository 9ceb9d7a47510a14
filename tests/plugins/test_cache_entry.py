"""The key of the response cache: what a trusted proxy says is in it, and is read in time that grows with its length."""

from __future__ import annotations

import pytest
from frontd_plugins._cache_entry import url_of
from hypothesis import given
from hypothesis import strategies as st

from frontd import Headers
from tests.plugins.exchanges import asked


def said(*forwarded: str, trusted: bool = True, name: str = "Forwarded") -> tuple[bytes, ...]:
    """What is in the key of these values of a field from a trusted proxy, or from anybody else."""
    exchange = asked("/")
    exchange.client.is_trusted_proxy = trusted
    exchange.request.headers = Headers.of(*((name.encode(), value.encode("latin-1")) for value in forwarded))
    return url_of(exchange)[-1]


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("for=1.2.3.4", ()),
        ('FOR="[::1]:5";by=_x, for=y', ()),
        ("for=1.2.3.4;proto=https", (b"forwarded:;proto=https",)),
        ('host="a;for=1"', (b'forwarded:host="a;for=1"',)),
        (r'host="a\";for=1"', (rb'forwarded:host="a\";for=1"',)),
        # a quote without an end: what an app makes of it nobody knows, so all of it counts
        ('for="a;proto=https', (b'forwarded:"a;proto=https',)),
        ('host="a;for=1;for="b', (b'forwarded:host="a;for=1;for="b',)),
    ],
)
def test_what_forwarded_says_of_the_url(value: str, kept: tuple[bytes, ...]) -> None:
    assert said(value) == kept
    assert said(value, trusted=False) == ()


def test_values_of_equal_names_are_one_and_names_are_in_order() -> None:
    assert said("a", "b", name="X-Forwarded-Host") == (b"x-forwarded-host:a,b",)
    exchange = asked("/", "X-Host: a", "Front-End-Https: on", "X-Forwarded-For: 1.2.3.4", "X-Other: b")
    exchange.client.is_trusted_proxy = True
    assert url_of(exchange)[-1] == (b"front-end-https:on", b"x-host:a")


@pytest.mark.parametrize(
    "value",
    ['"' + '\\"' * 300_000, '"' * 300_001, 'for="' * 100_001, "for=" * 200_000, 'for="' + "\\\\" * 300_000],
)
def test_what_a_client_makes_long_is_read_once(value: str) -> None:
    """Time that grows with the square of the length would make minutes of these."""
    said(value)


@given(st.text(st.sampled_from('"\\;,=foryx'), max_size=40))
def test_only_what_for_and_by_say_is_left_out(value: str) -> None:
    if "for=" not in value:
        assert said(value) == ((f"forwarded:{value}".encode(),) if value.strip(";,") else ())
