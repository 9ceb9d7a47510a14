"""The one canonical path: what matching, forwarding and every rule about paths see."""

from __future__ import annotations

import re
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from frontd.model.errors import FrontdError, Reason
from frontd.model.urlprefix import canonical_path, canonical_prefix, is_under, path_key


@pytest.mark.parametrize(
    ("path", "canonical"),
    [
        ("/", "/"),
        ("/a/b.c/d", "/a/b.c/d"),
        ("/a/", "/a/"),
        ("//", "//"),
        ("/a//b", "/a//b"),
        # dot segments, as in RFC 3986 5.2.4
        ("/.", "/"),
        ("/..", "/"),
        ("/./", "/"),
        ("/../", "/"),
        ("/a/.", "/a/"),
        ("/a/..", "/"),
        ("/a/b/..", "/a/"),
        ("/a/b/../", "/a/"),
        ("/a/./b", "/a/b"),
        ("/a/../../../b", "/b"),
        ("/a/b/c/./../../g", "/a/g"),
        ("/a//../b", "/a/b"),
        ("//..", "/"),
        ("/...", "/..."),
        ("/.a/b./..c", "/.a/b./..c"),
        ("/..;/x", "/..;/x"),
        # escaped dots are dots
        ("/a/%2e%2E/b", "/b"),
        ("/a/.%2e/b", "/b"),
        ("/%2e", "/"),
        # unreserved characters are decoded, and only once
        ("/%41%7a%30%2D%5F%7E", "/Az0-_~"),
        ("/%2541", "/%2541"),
        ("/%252e%252e/a", "/%252e%252e/a"),
        # all others stay escaped, in upper case
        ("/a%2fb", "/a%2Fb"),
        ("/a%2F..%2Fb", "/a%2F..%2Fb"),
        ("/a/..%2f", "/a/..%2F"),
        ("/%3f%23%3b%25%20%0d%0a%7f", "/%3F%23%3B%25%20%0D%0A%7F"),
        ("/%c3%a9", "/%C3%A9"),
        # what RFC 3986 does not allow in a path is escaped
        ('/"<>^`{|}[]', "/%22%3C%3E%5E%60%7B%7C%7D%5B%5D"),
        ("/a b", "/a%20b"),
        ("/!$&'()*+,;=:@-._~", "/!$&'()*+,;=:@-._~"),
        # the case of letters is the client's
        ("/App/%41", "/App/A"),
    ],
)
def test_the_canonical_form(path: str, canonical: str) -> None:
    assert canonical_path(path) == canonical
    assert canonical_path(path.encode()) == canonical


@pytest.mark.parametrize(
    "path",
    ["", "a", "*", "http://a/", "/%00", "/a%00.png", "/%5c", "/%5C", "/..%5c..", "/\\", "/a\\..\\b", "/%", "/a%", "/%4",
     "/%4g", "/%g4", "/% 41", "/%u0041", "/%-1", "/a#b", "/a\0", "/a\r\nb", "/a\tb", "/a\x7f", "/\xe9", "/\u2025/a"],
)  # fmt: skip
def test_what_has_no_canonical_form_is_refused(path: str) -> None:
    with pytest.raises(FrontdError) as refused:
        canonical_path(path)
    assert (refused.value.reason, refused.value.status) == (Reason.URL, 400)


def rfc3986_remove_dot_segments(path: str) -> str:
    """RFC 3986 5.2.4, step by step as it is written there."""
    given_, out = path, ""
    while given_:
        if given_.startswith("../"):
            given_ = given_[3:]
        elif given_.startswith("./") or given_.startswith("/./"):
            given_ = given_[2:]
        elif given_ == "/.":
            given_ = "/"
        elif given_.startswith("/../"):
            given_, out = given_[3:], out.rpartition("/")[0]
        elif given_ == "/..":
            given_, out = "/", out.rpartition("/")[0]
        elif given_ in (".", ".."):
            given_ = ""
        else:
            end = given_.find("/", 1)
            end = len(given_) if end < 0 else end
            out, given_ = out + given_[:end], given_[end:]
    return out


PIECES = '/ / . .. /.. /. a B %2e %2E %2f %2F %41 %25 %252e %c3%A9 %20 %7e ; = [ { " ~ %0d%0a %3F ? :'
pieces = st.sampled_from(PIECES.split())
sane_paths = st.lists(pieces, max_size=14).map(lambda parts: "/" + "".join(parts))
any_paths = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=20).map("/".__add__)

PCHAR = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-F]{2})*")


@given(sane_paths | any_paths)
@example("/%%32%65")
def test_laws_of_the_canonical_path(path: str) -> None:
    try:
        canonical = canonical_path(path)
    except FrontdError:
        low = path.lower()
        assert "\\" in path or "#" in path or "%00" in low or "%5c" in low or re.search("%(?![0-9a-f]{2})", low)
        return
    assert canonical_path(canonical) == canonical
    assert canonical.startswith("/")
    assert not {".", ".."} & set(canonical.split("/"))
    assert PCHAR.fullmatch(canonical)
    for digits in re.findall("%(..)", canonical):
        assert not re.match(r"[A-Za-z0-9._~\\\0-]", chr(int(digits, 16)))


@given(sane_paths)
def test_the_canonical_path_means_what_the_path_means(path: str) -> None:
    """Resolved by RFC 3986 and decoded segment by segment, both name the same thing."""
    dots = re.sub("%2e", ".", path, flags=re.IGNORECASE)
    resolved = rfc3986_remove_dot_segments(dots)
    canonical = canonical_path(path)
    assert [unquote_to_bytes(part) for part in canonical.split("/")] == [
        unquote_to_bytes(part) for part in resolved.split("/")
    ]
    assert canonical.count("%2F") == resolved.lower().count("%2f")


@given(sane_paths, st.integers(0, 40))
def test_two_writings_of_one_path_have_one_canonical_form(path: str, at: int) -> None:
    """Escaping an unreserved character, or lower case in an escape, changes nothing."""
    at %= len(path)
    if path[at].isalnum() and "%" not in path[max(0, at - 2) : at + 1]:
        assert canonical_path(path[:at] + f"%{ord(path[at]):02x}" + path[at + 1 :]) == canonical_path(path)
    swapped = re.sub("%..", lambda match: match.group().swapcase(), path)
    assert canonical_path(swapped) == canonical_path(path)


# ------------------------------------------------------------------------------------------------------- prefixes


@pytest.mark.parametrize(
    ("written", "prefix"),
    [
        ("/", "/"),
        ("/app", "/app/"),
        ("/app/", "/app/"),
        ("/a/../b", "/b/"),
        ("/caf\u00e9 x", "/caf%C3%A9%20x/"),
        ("/a%2fb", "/a%2Fb/"),
    ],
)
def test_a_prefix_as_people_write_it(written: str, prefix: str) -> None:
    assert canonical_prefix(written) == prefix


@pytest.mark.parametrize("written", ["", "app", "/a?b", "/a#b", "/%00", "/%zz", "/a\\b", "/a\0", "/a\x7f"])
def test_what_is_no_prefix_is_explained(written: str) -> None:
    with pytest.raises(ValueError, match=r"\w") as wrong:
        canonical_prefix(written)
    assert not isinstance(wrong.value, UnicodeError)


def covers(prefix: str, path: str) -> bool:
    return is_under(path_key(canonical_path(path)), path_key(canonical_prefix(prefix)))


def test_a_prefix_covers_complete_segments_in_any_case() -> None:
    for path in ("/app", "/app/", "/app/x", "/APP/x", "/x/../aPp", "/%61pp/x"):
        assert covers("/app/", path)
    for path in ("/", "/ap", "/apple", "/app%2Fx", "/app;x", "/x/app", "/app/../x", "/app.", "//app/x"):
        assert not covers("/app/", path)
    assert covers("/", "/anything")
    assert covers("/a%2fb", "/a%2Fb/c")
    assert not covers("/a%2fb", "/a/b/c")
