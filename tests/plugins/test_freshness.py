"""RFC 9111's decisions by themselves: what Cache-Control says, what may be stored and for how long."""

from __future__ import annotations

import pytest
from frontd_plugins import freshness
from frontd_plugins.freshness import NO_WISHES, Admission, Wishes, admission, directives, wishes
from hypothesis import given
from hypothesis import strategies as st

from frontd import Headers

DATE = "Sun, 06 Nov 1994 08:49:37 GMT"
NOW = 784111777.0  # the same moment


def fields(*lines: str) -> Headers:
    """Header fields from ``Name: value`` lines."""
    pairs = (line.partition(": ") for line in lines)
    return Headers.of(*((name.encode("latin-1"), value.encode("latin-1")) for name, _, value in pairs))


def decide(*lines: str, status: int = 200, personal: bool = False, now: float = NOW) -> Admission:
    """The decision about an answer with these fields."""
    return admission(status, fields(*lines), personal=personal, now=now)


def refusal(*lines: str, status: int = 200, personal: bool = False) -> str:
    return decide(*lines, status=status, personal=personal).refusal


def lifetime(*lines: str) -> int:
    """How long an answer with these fields is fresh; 0 when it is not stored."""
    return decide(*lines).lifetime


# ---------------------------------------------------------------------------------------------------- Cache-Control


@pytest.mark.parametrize(
    ("value", "meaning"),
    [
        ("", {}),
        ("no-store", {"no-store": None}),
        ("Max-Age=60 , PUBLIC", {"max-age": "60", "public": None}),
        (" ,, max-age=60,\t,", {"max-age": "60"}),
        ('max-age="60"', {"max-age": "60"}),
        (r'x="a, no-store \"b\"", max-age=1', {"x": 'a, no-store "b"', "max-age": "1"}),
        ("max-age=1, max-age=1", {"max-age": "1"}),
        ("max-age=1, max-age=2", {"max-age": ""}),
        ("max-age=1, max-age=2, max-age=1", {"max-age": ""}),
        ("max-age, max-age=2", {"max-age": ""}),
    ],
)
def test_directives(value: str, meaning: dict[str, str | None]) -> None:
    assert directives([value.encode()]) == meaning


@pytest.mark.parametrize(
    "value",
    [
        "max-age=60; public", "max-age = 60", "max-age=", "=60", 'private="x', 'x="no-store, max-age=60', "a b", "ü",
        '"x"', "a,b c",
    ],
)  # fmt: skip
def test_malformed_is_not_half_read(value: str) -> None:
    assert directives([value.encode("latin-1")]) is None
    assert refusal(f"Cache-Control: {value}, max-age=60") == "malformed"
    assert refusal("Cache-Control: max-age=60", f"Cache-Control: {value}") == "malformed"


def test_how_many_are_read_is_bounded() -> None:
    assert directives([b",".join([b"a"] * 64)]) == {"a": None}
    assert directives([b",".join([b"a"] * 65)]) is None


def test_several_lines_are_one_list() -> None:
    assert refusal("Cache-Control: max-age=60", "cache-control: no-store") == "no-store"
    assert directives([b"a", b"b=1", b""]) == {"a": None, "b": "1"}


@pytest.mark.parametrize(
    "value",
    [
        "a," + " " * 300_000 + "x y", "a" + "\t " * 150_000 + "x", 'a="' + '\\"' * 300_000, "," * 300_000 + "=",
        "a" * 300_000 + " y", "a=" * 300_000, 'a="",' * 50_000 + "x y", " ," * 150_000 + "x y",
    ],
)  # fmt: skip
def test_what_a_client_makes_long_is_read_once(value: str) -> None:
    """Time that grows with the square of the length would make minutes of these."""
    assert directives([value.encode()]) is None
    assert wishes(fields(f"Cache-Control: {value}")) == Wishes(no_store=True, no_cache=True)


ELEMENTS = [
    "no-store", "No-Store", "no-store=1", "x", "x=1", 'x="no-store"', 'x="a, no-store, b"', r'x="\", no-store"', "",
]  # fmt: skip
elements = st.lists(st.tuples(st.sampled_from(ELEMENTS), st.sampled_from(["", " ", "\t "])))


@given(elements)
def test_a_directive_is_seen_wherever_it_stands_and_only_outside_of_quotes(plan: list[tuple[str, str]]) -> None:
    found = directives([",".join(blank + element + blank for element, blank in plan).encode()])
    assert found is not None
    assert ("no-store" in found) == any(element.lower().startswith("no-store") for element, _ in plan)
    assert ("x" in found) == any(element.startswith("x") for element, _ in plan)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(value: bytes) -> None:
    found = directives([value])
    assert found is None or all(name == name.lower() for name in found)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0), ("007", 7), ("2147483648", 2**31), ("2147483649", 2**31), ("9" * 5000, 2**31), ("0" * 5000 + "5", 5),
        ("", None), (None, None), ("-1", None), ("+1", None), ("1.5", None), ("1 ", None), ("1_0", None), ("٣", None),
        ("²", None),
    ],
)  # fmt: skip
def test_delta_seconds(text: str | None, seconds: int | None) -> None:
    assert freshness.delta_seconds(text) == seconds


# ---------------------------------------------------------------------------------------------------- lifetimes


def test_s_maxage_before_max_age_before_expires() -> None:
    expires = ("Expires: Sun, 06 Nov 1994 08:50:37 GMT", f"Date: {DATE}")
    assert lifetime(*expires) == 60
    assert lifetime("Cache-Control: max-age=7", *expires) == 7
    assert lifetime("Cache-Control: max-age=7, s-maxage=5", *expires) == 5
    assert refusal("Cache-Control: max-age=7, s-maxage=0", *expires) == "not-fresh"


@pytest.mark.parametrize("argument", ["", "x", "-1", "1.5", '" 5"', "5, max-age=6", '""'])
def test_a_lifetime_that_is_no_number_is_none_and_nothing_stands_in_for_it(argument: str) -> None:
    assert lifetime(f"Cache-Control: max-age={argument}", "Expires: Sun, 06 Nov 2094 08:50:37 GMT") == 0
    assert lifetime("Cache-Control: s-maxage", "Cache-Control: max-age=60") == 0


def test_expires_counts_from_the_date_of_the_answer_not_from_ours() -> None:
    late = "Expires: Sun, 06 Nov 1994 08:50:37 GMT"
    assert decide(late, f"Date: {DATE}", now=NOW + 1e6).lifetime == 60  # the app's clock is behind ours
    assert decide(late, f"Date: {DATE}", now=NOW - 1e6).lifetime == 60
    assert decide(late, now=NOW + 20.9).lifetime == 40  # without a date: when it came
    assert decide(late, "Date: yesterday", now=NOW + 20).lifetime == 40
    assert refusal(late, "Date: Sun, 06 Nov 1994 08:50:37 GMT") == "not-fresh"


@pytest.mark.parametrize(
    "value",
    [
        "0", "-1", "", "never", "Sun, 06 Nov 1994 08:50:37", "Sun, 06 Nov 1994 08:50:37 +0100",
        "Sun, 31 Feb 2094 08:50:37 GMT",
    ],
)  # fmt: skip
def test_expires_that_is_no_date_is_past(value: str) -> None:
    assert refusal(f"Expires: {value}", f"Date: {DATE}") == "not-fresh"


def test_two_expires_that_differ_are_none() -> None:
    later = "Expires: Sun, 06 Nov 1994 08:50:37 GMT"
    assert lifetime(later, later, f"Date: {DATE}") == 60
    assert lifetime(later, "Expires: Sun, 06 Nov 1994 08:51:37 GMT", f"Date: {DATE}") == 0


def test_nothing_is_guessed() -> None:
    assert refusal("Last-Modified: Sun, 06 Nov 1984 08:49:37 GMT", f"Date: {DATE}", 'ETag: "x"') == "not-fresh"
    assert refusal("Cache-Control: public", f"Date: {DATE}") == "not-fresh"


@pytest.mark.parametrize(
    ("age", "seconds"),
    [("0", 0), ("59", 59), ("5, 100", 5), (" 5 ", 5), ("x", 0), ("-5", 0), ("", 0), ("99999999999999", 2**31)],
)
def test_the_age_an_answer_comes_with(age: str, seconds: int) -> None:
    assert freshness.initial_age(fields(f"Age: {age}", "Age: 7")) == seconds
    assert (refusal(f"Age: {age}", "Cache-Control: max-age=59") == "not-fresh") == (seconds >= 59)


# ---------------------------------------------------------------------------------------------------- admission

FRESH = "Cache-Control: max-age=60"


def test_the_plain_case() -> None:
    assert decide(FRESH) == Admission("", 60, False)
    assert decide(FRESH, "Cache-Control: must-revalidate, no-transform, x=y") == Admission("", 60, False)


def test_statuses() -> None:
    stored = [status for status in range(200, 600) if not refusal(FRESH, status=status)]
    assert stored == [200, 203, 204, 300, 301, 308, 404, 410]
    assert refusal(FRESH, status=206) == "status"


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("Set-Cookie: a=b", "set-cookie"),
        ("Vary: Accept", "vary"),
        ("Vary: *", "vary"),
        ("Vary: ", "vary"),
        ("Content-Range: bytes 0-1/2", "content-range"),
        ("Cache-Control: no-store", "no-store"),
        ("Cache-Control: no-store, must-understand", "no-store"),
        ("Cache-Control: private", "private"),
        ('Cache-Control: private="Set-Cookie"', "private"),
        ("Cache-Control: public, private", "private"),
        ("Cache-Control: no-cache", "no-cache"),
        ('Cache-Control: no-cache="X"', "no-cache"),
        ("Cache-Control: No-Cache", "no-cache"),
        ("Pragma: foo, No-Cache", "no-cache"),
    ],
)
def test_what_is_never_stored(line: str, word: str) -> None:
    assert refusal(FRESH, line) == word
    assert refusal("Cache-Control: public, s-maxage=60", line, personal=True) == word


@pytest.mark.parametrize(
    ("control", "opens"),
    [
        ("max-age=60", False),
        ("max-age=60, must-revalidate", False),
        ("max-age=60, proxy-revalidate", False),
        ("max-age=60, public", True),
        ("s-maxage=60", True),
        ("s-maxage=x, max-age=60", False),
        ("max-age=60, s-maxage", False),
        ('max-age=60, x="public"', False),
        ("max-age=60, private, public", False),
    ],
)
def test_what_opens_the_store_to_whoever_has_logged_on(control: str, opens: bool) -> None:
    personal, anonymous = (decide(f"Cache-Control: {control}", personal=who) for who in (True, False))
    assert (personal.refusal == "") is opens
    assert (anonymous.refusal == "" and anonymous.is_shared) is opens


# ---------------------------------------------------------------------------------------------------- requests


@pytest.mark.parametrize(
    ("line", "wish"),
    [
        ("Cache-Control: ", NO_WISHES),
        ("Cache-Control: max-stale=5, no-transform", NO_WISHES),
        ("Pragma: x", NO_WISHES),
        ("Cache-Control: no-cache", Wishes(no_cache=True)),
        ("Pragma: no-cache", Wishes(no_cache=True)),
        ("Cache-Control: no-store", Wishes(no_store=True)),
        ("Cache-Control: only-if-cached", Wishes(only_if_cached=True)),
        ("Cache-Control: max-age=5, min-fresh=6", Wishes(max_age=5, min_fresh=6)),
        ("Cache-Control: max-age=x", Wishes(max_age=0)),
        ("Cache-Control: max-age", Wishes(max_age=0)),
        ("Cache-Control: min-fresh", Wishes(min_fresh=2**31)),
        ("Cache-Control: no-cache; x", Wishes(no_store=True, no_cache=True)),
    ],
)
def test_wishes(line: str, wish: Wishes) -> None:
    assert wishes(fields(line)) == wish
    assert wishes(fields(line)).are_none == (wish == NO_WISHES)


def test_which_stored_answers_are_welcome() -> None:
    assert NO_WISHES.accept(1e9, 0.1)
    assert not Wishes(no_cache=True).accept(0, 60)
    assert [Wishes(max_age=5).accept(age, 60) for age in (0, 5, 5.1)] == [True, True, False]
    assert [Wishes(min_fresh=5).accept(0, left) for left in (60, 5, 4.9)] == [True, True, False]
