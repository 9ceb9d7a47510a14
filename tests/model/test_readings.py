"""What an app may take a path for: every game is found, nothing odd is one search, and the work has an end."""

from __future__ import annotations

import time
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontd.model.errors import FrontdError
from frontd.model.readings import LONGEST, MOST, WORK, path_readings, unescaped
from frontd.model.urlprefix import canonical_path


@pytest.mark.parametrize("path", ["/", "/a/b.c", "/A/", "/a.b/..c", "/a:b/@c", "/.well-known/x", "/...a"])
def test_an_ordinary_path_is_read_in_one_way(path: str) -> None:
    assert path_readings(path) == frozenset((path.lower(),))


@pytest.mark.parametrize(
    ("sent", "reading"),
    [
        ("//admin/", "/admin/"),
        ("///admin", "/admin"),
        ("/a//..%2fadmin", "/a/admin"),
        ("/a//..%2fadmin", "/admin"),  # whoever takes // for / first goes one up from a
        ("/admin;x=1/y", "/admin/y"),
        ("/;/admin", "/admin"),
        ("/..;/admin", "/admin"),
        ("/x/..;a=b/admin", "/admin"),
        ("/%3b/admin", "/admin"),
        ("/x%2f..%2fadmin", "/admin"),
        ("/%2fadmin", "/admin"),
        ("/admin%2f..", "/admin/.."),  # an app that does not resolve dots looks for it below /admin/
        ("/admin%2f..", "/"),
        ("/%2561dmin", "/admin"),
        ("/%252561dmin", "/admin"),
        ("/x%255c..%255cadmin", "/admin"),
        ("/admin%3fx", "/admin"),
        ("/admin%23", "/admin"),
        ("/admin.", "/admin"),
        ("/admin%20/x", "/admin/x"),
        ("/%20admin", "/admin"),
        ("/admin.%20./x", "/admin/x"),
        ("/%ef%bd%81dmin", "/admin"),  # a full-width a
        ("/tas%e2%84%aa", "/task"),  # the Kelvin sign
        ("/a%ef%bc%8fb", "/a/b"),  # a full-width slash
        ("/m%fcnchen", "/münchen"),  # Latin-1
        ("/M%c3%9cNCHEN", "/münchen"),
    ],
)
def test_a_game_is_seen_through(sent: str, reading: str) -> None:
    readings = path_readings(canonical_path(sent))
    assert readings is not None
    assert reading in readings
    assert canonical_path(sent).lower() in readings


@pytest.mark.parametrize(
    "path", ["/a%0Ab", "/%250a", "/%2500", "/%C0%AFadmin", "/%c1%9c", "/%E0%80%AF", "/%F0%80%80%AF", "/%25c0%25af"]
)
def test_what_could_be_anything_is_told_as_that(path: str) -> None:
    assert path_readings(canonical_path(path)) is None


@pytest.mark.parametrize(
    "path",
    [
        "/" + "%25" * (LONGEST // 3 + 1),
        "/" + "%252525" * 500,
        "/" + "/;%2F..a./" * 400,
        "/" + "%EF%BD%81;." * 360,
        "/" + "//".join(f"a;{'%25' * depth}2F../b." for depth in range(20)),
        "/a" + "%25" * 690 + "%E9//",
        "/%2F..%EF%BC%8F%25c3%25a9..%2520" + "%25/." * 800,
        "/..;/" + "%CCb%EF%BC%85..;/" * 230,
    ],
)
def test_the_worst_path_takes_milliseconds(path: str) -> None:
    begun = time.perf_counter()
    readings = path_readings(canonical_path(path))
    assert time.perf_counter() - begun < 0.25  # a few milliseconds, on a machine that has better things to do
    assert readings is None or (len(readings) <= MOST and sum(map(len, readings)) <= WORK)


@pytest.mark.parametrize(
    "path", ["/" + "%E3%81%82" * 455, "/" + "%20" * 1364 + "a", "/;jsessionid=x//" + "a/" * 1000, "/a." + "b" * 4000]
)
def test_a_long_path_of_somebody_honest_is_told(path: str) -> None:
    assert path_readings(canonical_path(path)) is not None


@pytest.mark.parametrize("games", [1, 2, 3, 4])
def test_what_takes_too_much_work_is_not_told(games: int) -> None:
    """The longest path may have one game, two that end in different lengths are four readings of it."""
    odd = "".join(("//", ";p/", "%255c", ".%2f")[:games])
    readings = path_readings(canonical_path("/" + odd + "a" * (LONGEST - 1 - len(odd))))
    assert (readings is not None) == (games == 1)


@given(st.text(st.sampled_from("aA/.%;2fF35cC\\ ?#é\u212a"), max_size=40))
def test_whatever_it_is_the_path_itself_is_among_the_readings_and_all_are_paths(text: str) -> None:
    try:
        path = canonical_path(b"/" + text.encode())
    except FrontdError:
        return
    readings = path_readings(path)
    if readings is not None:
        assert path.lower() in readings
        assert all(reading.startswith("/") for reading in readings)
        assert len(readings) <= MOST
        assert sum(map(len, readings)) <= WORK


@given(st.lists(st.sampled_from(["%", "%C3", "%a9", "%25", "%41", "2", "f", "/", "é", "\u212a", "%e2%84%aa"])))
def test_escapes_are_decoded_as_the_standard_library_does(parts: list[str]) -> None:
    text = "".join(parts)
    try:
        expected = unquote(text, errors="strict")
    except UnicodeDecodeError:
        expected = unquote(text, "latin-1")
    assert unescaped(text) == expected


def test_escapes_that_are_not_utf8_are_latin1() -> None:
    assert unescaped("/%C3%BC") == "/ü"
    assert unescaped("/%FC") == "/ü"
    assert unescaped("/100%") == "/100%"
