"""The key of the response cache, what a request asks of it, and the age of its hits.

What a trusted proxy says is in the key, and is read in time that grows with its length.
"""

from __future__ import annotations

import pytest
from frontd_plugins import _cache_entry, freshness
from frontd_plugins._cache_entry import OBSTACLES, Entry, ask_of, url_of
from hypothesis import given
from hypothesis import strategies as st

from frontd import Headers, Response, normal_name
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


# ---------------------------------------------------------------------------------------------------- what is asked

NAMES = st.sampled_from(
    [
        "Accept", "Cookie", "X-Any", "Authorization", "authorization_", "Cache-Control", "cache_control", "Pragma",
        "If-None-Match", "IF-MODIFIED-SINCE", "Translate", "X_Original_URL", "x.http.method",
        *(name.decode().title() for name in sorted(OBSTACLES)),
    ]
)  # fmt: skip
VALUES = st.sampled_from(["f", "F", "no-cache", "max-age=5, no-store", "Basic eDp5", "t"])


@given(st.lists(st.tuples(NAMES, VALUES), max_size=4), st.sampled_from(["", "0", "3"]))
def test_what_a_request_asks_for(fields: list[tuple[str, str]], length: str) -> None:
    """As one reads it field by field, whether or not its names were seen before."""
    lines = [f"{name}: {value}" for name, value in fields] + ([f"Content-Length: {length}"] if length else [])
    request = asked("/", *lines).request
    names = {normal_name(name) for name, _, _ in request.headers}
    standing = sorted(names & OBSTACLES)
    source = [value for name, _, value in request.headers if name == b"translate"][:1]
    for _ in range(2):
        ask = ask_of(request)
        if length == "3":
            assert ask.obstacle == "body"
        elif standing:
            assert ask.obstacle == standing[0].decode()
        elif source and source[0].lower() == b"f":
            assert ask.obstacle == "translate"
        else:
            assert ask.obstacle == ""
        has_wishes = not names.isdisjoint((b"cache-control", b"pragma"))
        assert ask.wishes == (freshness.wishes(request.headers) if has_wishes else freshness.NO_WISHES)
        assert ask.is_conditional is not names.isdisjoint((b"if-none-match", b"if-modified-since"))
        assert ask.has_credentials is (b"authorization" in request.headers)
        if ask.is_plain:
            assert (ask.obstacle, ask.wishes, ask.is_conditional) == ("", freshness.NO_WISHES, False)


def test_what_is_known_of_names_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cache_entry, "_MOST_ROLES", 8)
    for number in range(100):
        request = asked("/", f"X-{number}: 1", f"X-{'x' * 100}{number}: 1", "Range: bytes=0-1").request
        assert ask_of(request).obstacle == "range"
        assert len(_cache_entry._roles) <= 8
    assert max(map(len, _cache_entry._roles)) <= 64


# ---------------------------------------------------------------------------------------------------- hits


@given(
    st.integers(1, 100), st.integers(0, 100), st.floats(0, 1e9), st.lists(st.floats(0, 99.99) | st.integers(0, 99))
)
def test_a_hit_says_how_old_it_is_at_that_moment(lifetime: int, age: int, asked_at: float, later: list[float]) -> None:
    """Whatever was said a moment before."""
    decision = freshness.Admission("", lifetime + age)
    entry = Entry(Response(200, {"Age": str(age), "Date": "then"}, b"body"), decision, asked_at)
    for seconds in sorted(later):
        now = asked_at + seconds
        if now - entry.born >= lifetime + age:
            break
        old = now - entry.born
        headers = entry.hit(now).copy().headers
        assert headers.get_all("age") == [b"%d" % old]
        assert headers.get_all("cache-status") == [b"frontd; hit; ttl=%d" % (entry.lifetime - old)]
