"""What is sent of a file: conditions in their order, ranges against a naive model, and the fields that say so."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from email import message_from_bytes
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from frontd.model.conditions import MOST_RANGES, http_date, read_date, still_good, wanted_ranges
from frontd.model.errors import FrontdError, Reason
from frontd.model.headers import Headers
from frontd.model.mediatypes import media_type
from frontd.pipeline.fileroot import FileRoot, OpenFile
from frontd.pipeline.files import select
from tests.pipeline.asking import asking, body_of

TEXT = b"0123456789abcdefghij"
MODIFIED = 784111777
DATE = "Sun, 06 Nov 1994 08:49:37 GMT"
BEFORE, AFTER = "Sun, 06 Nov 1994 08:49:36 GMT", "Sun, 06 Nov 1994 08:49:38 GMT"


@pytest.fixture
def file(tmp_path: Path) -> Iterator[OpenFile]:
    path = tmp_path / "a.txt"
    path.write_bytes(TEXT)
    os.utime(path, ns=(0, MODIFIED * 10**9 + 5))
    with FileRoot.open(tmp_path).open_file(b"a.txt") as it:
        yield it


def answer(file: OpenFile, *fields: str, method: str = "GET", app: Headers | None = None) -> tuple[int, Headers, bytes]:
    """Status, fields and body; a refusal is its status, its own fields and its word."""
    try:
        response, pieces = select(asking("/a.txt", *fields, method=method), file, app)
    except FrontdError as error:
        return error.status, Headers.of(*error.fields), error.reason.word.encode()
    assert response.body is None
    body = body_of(pieces, file)
    if response.status != 304 and method != "HEAD":
        assert response.headers.get_all(b"content-length") == [b"%d" % len(body)]
    return response.status, response.headers, body


# ---------------------------------------------------------------------------------------------------- all of it


def test_the_whole_file(file: OpenFile) -> None:
    status, headers, body = answer(file)
    assert (status, body) == (200, TEXT)
    assert [name for _, name, _ in headers] == [
        b"Date", b"ETag", b"Last-Modified", b"Accept-Ranges", b"Content-Type", b"Content-Length",
    ]  # fmt: skip
    assert re.fullmatch(rb'"[0-9a-f]+-[0-9a-f]+-14"', headers.get(b"etag"))
    assert headers.get(b"last-modified") == DATE.encode()
    assert headers.get(b"accept-ranges") == b"bytes"
    assert headers.get(b"content-type") == b"text/plain; charset=utf-8"


def test_head_says_the_same_without_a_body(file: OpenFile) -> None:
    got, head = answer(file), answer(file, "Range: bytes=0-1", method="HEAD")  # Range is for GET (RFC 9110 14.2)
    assert head[0] == got[0] == 200
    assert head[1].items[1:] == got[1].items[1:]
    assert head[2] == b""


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "none").touch()
    with FileRoot.open(tmp_path).open_file(b"none") as file:
        for fields in ((), ("Range: bytes=0-",), ("Range: bytes=-1",), ("Range: bytes=5-6, 7-",)):
            status, headers, body = answer(file, *fields)
            assert (status, headers.get(b"content-length"), body) == (200, b"0", b"")
        assert answer(file, f"If-None-Match: {file.tag.decode()}")[0] == 304


def test_a_file_of_the_future_was_changed_just_now(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    os.utime(tmp_path / "x", (0, 2**33))
    with FileRoot.open(tmp_path).open_file(b"x") as file:
        said = read_date(answer(file)[1].get(b"last-modified"))
        assert said is not None
        assert said <= time.time()
    os.utime(tmp_path / "x", (0, -(2**33)))
    with FileRoot.open(tmp_path).open_file(b"x") as file:
        assert answer(file)[1].get(b"last-modified") == b"Thu, 01 Jan 1970 00:00:00 GMT"


def test_every_other_file_has_another_tag(tmp_path: Path) -> None:
    """Also where an image was built with one time for all of its files."""
    root, tags = FileRoot.open(tmp_path), set()
    path = tmp_path / "x"
    changes = [(b"1", 5), (b"2", 5), (b"2", 6), (b"22", 6)]
    for number, (text, at) in enumerate(changes):
        new = tmp_path / f"new{number}"
        new.write_bytes(text)
        os.utime(new, ns=(0, at))
        if path.exists():
            path.rename(tmp_path / f"old{number}")  # its inode stays in use
        new.rename(path)
        with root.open_file(b"x") as file:
            tags.add(file.tag)
    assert len(tags) == len(changes)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (b"index.html", b"text/html; charset=utf-8"),
        (b"a.b.JS", b"text/javascript; charset=utf-8"),
        (b"x.mjs", b"text/javascript; charset=utf-8"),
        (b"x.css", b"text/css; charset=utf-8"),
        (b"x.svg", b"image/svg+xml"),
        (b"x.json", b"application/json"),
        (b"x.wasm", b"application/wasm"),
        (b"x.woff2", b"font/woff2"),
        (b"x.JPEG", b"image/jpeg"),
        (b"x.tar.gz", b"application/gzip"),
        (b"html", b"application/octet-stream"),
        (b"x.", b"application/octet-stream"),
        (b"x.exe", b"application/octet-stream"),
        (b"x.\xff", b"application/octet-stream"),
        (b"", b"application/octet-stream"),
    ],
)
def test_media_types(name: bytes, expected: bytes) -> None:
    assert media_type(name) == expected


# ---------------------------------------------------------------------------------------------------- conditions


@pytest.mark.parametrize(
    ("status", "fields"),
    [
        (304, ["If-None-Match: TAG"]),
        (304, ["If-None-Match: W/TAG"]),  # compared weakly
        (304, ['If-None-Match: "x", TAG']),
        (304, ['If-None-Match: "a,b"', "If-None-Match: W/TAG"]),
        (304, ["If-None-Match: *"]),
        (200, ['If-None-Match: "x"']),
        (200, ["If-None-Match: TAGx"]),
        (200, ["If-None-Match: TAG TAG"]),
        (200, ["If-None-Match: *, TAG"]),
        (200, ["If-None-Match:"]),
        (304, [f"If-Modified-Since: {DATE}"]),
        (304, [f"If-Modified-Since: {AFTER}"]),
        (304, ["If-Modified-Since: Sunday, 06-Nov-94 08:49:37 GMT"]),
        (304, ["If-Modified-Since: Sun Nov  6 08:49:37 1994"]),
        (200, [f"If-Modified-Since: {BEFORE}"]),
        (200, ["If-Modified-Since: yesterday"]),
        (200, ["If-Modified-Since: Sun, 31 Feb 2094 08:49:37 GMT"]),
        (200, [f"If-Modified-Since: {DATE}", f"If-Modified-Since: {DATE}"]),
        (200, [f"If-Modified-Since: {DATE}", 'If-None-Match: "x"']),  # a tag is the better witness
        (304, [f"If-Modified-Since: {BEFORE}", "If-None-Match: TAG"]),
        (200, ["If-Match: TAG"]),
        (200, ['If-Match: "x" ,, TAG']),
        (200, ["If-Match: *"]),
        (412, ['If-Match: "x"']),
        (412, ["If-Match: W/TAG"]),  # compared strongly
        (412, ["If-Match: TAG; x"]),
        (200, [f"If-Unmodified-Since: {DATE}"]),
        (412, [f"If-Unmodified-Since: {BEFORE}"]),
        (200, ["If-Unmodified-Since: yesterday"]),
        (200, [f"If-Unmodified-Since: {BEFORE}", "If-Match: TAG"]),
        (412, ['If-Match: "x"', "If-None-Match: TAG"]),
        (304, ["If-Match: TAG", "If-None-Match: TAG"]),
        (412, ['If-Match: "x"', "Range: bytes=99-"]),  # conditions come before ranges
        (304, ["If-None-Match: TAG", "Range: bytes=99-"]),
    ],
)
def test_conditions(file: OpenFile, status: int, fields: list[str]) -> None:
    fields = [field.replace("TAG", file.tag.decode()) for field in fields]
    for method in ("GET", "HEAD"):
        got, headers, body = answer(file, *fields, method=method)
        assert got == status
        if status == 304:
            assert body == b""
            assert {name for name, _, _ in headers} == {b"date", b"etag", b"last-modified"}
        if status == 412:
            assert body == Reason.Precondition.word.encode()


DATES = st.integers(0, 253402300799)


@settings(deadline=None)
@given(DATES)
@example(MODIFIED)
def test_dates_are_read_as_they_are_written(seconds: int) -> None:
    assert read_date(http_date(seconds)) == seconds
    asctime = time.strftime("%a %b %e %H:%M:%S %Y", time.gmtime(seconds))
    assert read_date(asctime.encode()) == seconds
    this_year = time.gmtime().tm_year
    if this_year - 49 <= time.gmtime(seconds).tm_year <= this_year + 49:
        assert read_date(time.strftime("%A, %d-%b-%y %H:%M:%S GMT", time.gmtime(seconds)).encode()) == seconds


@settings(deadline=None)
@given(st.binary(max_size=40) | st.from_regex(rb"[A-Z][a-z]{2}, \d\d Nov \d{4} \d\d:\d\d:\d\d GMT"))
@example(b"Sun, 99 Nov 0000 99:99:99 GMT")
@example(b"Sun, 06 Nov 1994 08:49:60 GMT")
def test_what_is_no_date_is_none(value: bytes) -> None:
    seconds = read_date(value)
    assert seconds is None or -62135596800 <= seconds <= 253402300799


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from((b"If-Match", b"If-None-Match", b"If-Range", b"If-Modified-Since",
                                           b"If-Unmodified-Since", b"Range")), st.binary(max_size=30))))  # fmt: skip
def test_no_condition_is_a_fault(fields: list[tuple[bytes, bytes]]) -> None:
    headers = Headers.of(*fields)
    for ask in (still_good, lambda *rest: wanted_ranges(rest[0], 20, *rest[1:])):
        with suppress(FrontdError):  # 412 or 416
            ask(headers, b'"t"', MODIFIED)


@pytest.mark.parametrize("value", [b'"x"' + b"\t" * 200_000 + b"y", b'"x",' * 100_000 + b"y", b'"' * 300_001])
def test_long_lists_take_no_long_time(value: bytes) -> None:
    began = time.process_time()
    assert not still_good(Headers.of((b"If-None-Match", value)), b'"t"', 0)
    ranges = b"bytes=" + value.replace(b'"x"', b"1-1")
    assert wanted_ranges(Headers.of((b"Range", ranges)), 20, b'"t"', 0) is None
    assert time.process_time() - began < 1


# ---------------------------------------------------------------------------------------------------- ranges

SPEC = st.tuples(st.integers(0, 24), st.integers(0, 24)).map(lambda pair: f"{pair[0]}-{pair[1]}") | st.one_of(
    st.integers(0, 24).map(lambda first: f"{first}-"), st.integers(0, 24).map(lambda last: f"-{last}")
)


def naive(specs: list[str], text: bytes) -> tuple[int, list[bytes]]:
    """What RFC 9110 14.1.2 says, index by index: (status, parts)."""
    parts: list[list[int]] = []
    for spec in specs:
        first, _, last = spec.partition("-")
        if first and last and int(first) > int(last):
            return 200, [text]
        if not first:
            here = [at for at in range(len(text)) if at >= len(text) - int(last)]
        else:
            here = [at for at in range(len(text)) if at >= int(first) and (not last or at <= int(last))]
        if here:
            parts.append(here)
    indices = [at for part in parts for at in part]
    if len(specs) > MOST_RANGES or len(indices) != len(set(indices)):
        return 200, [text]
    if not parts:
        return 416, []
    return 206, [bytes(text[at] for at in part) for part in parts]


@settings(deadline=None)
@given(st.lists(SPEC, min_size=1, max_size=12), st.sampled_from([",", ", ", " ,\t, "]))
@example(["0-19"], ",")
@example(["0-4", "5-9"], ",")
@example(["-0"], ",")
@example(["99-", "-0", "19-"], ",")
def test_ranges_against_a_naive_model(specs: list[str], comma: str) -> None:
    status, parts = naive(specs, TEXT)
    fields = Headers.of((b"Range", f"bytes={comma.join(specs)}".encode()))
    if status == 416:
        with pytest.raises(FrontdError) as refused:
            wanted_ranges(fields, len(TEXT), b'"t"', 0)
        assert refused.value.reason is Reason.Range
        assert refused.value.fields == ((b"Content-Range", b"bytes */20"),)
        return
    spans = wanted_ranges(fields, len(TEXT), b'"t"', 0)
    if spans is None:
        assert status == 200
    else:
        assert (status, parts) == (206, [TEXT[span.offset : span.offset + span.size] for span in spans])


@pytest.mark.parametrize(
    "value",
    [
        "bytes", "bytes=", "bytes=-", "bytes=a-b", "bytes=0", "bytes=0-1;", "bytes=0-1,x", "bytes 0-1", "bytes =0-1",
        "bytes= 0 - 1", "items=0-1", "bytes=--1", "bytes=0-1-2", "bytes=+0-1", "bytes=0x0-1", "bytes=0-1 2-3",
        "bytes=5-4", "bytes=0-1,5-4", "bytes=0-5,3-8", "bytes=0-,0-", "bytes=" + "0-0," * 11, "bytes=0-1\xff",
        "bytes=\u00b2-3",
    ],
)  # fmt: skip
def test_a_range_that_is_none_is_the_whole(file: OpenFile, value: str) -> None:
    status, headers, body = answer(file, f"Range: {value}")
    assert (status, body) == (200, TEXT)
    assert b"content-range" not in headers


def test_one_range(file: OpenFile) -> None:
    for value, expected in (("bytes=2-4", b"234"), ("BYTES=-3", b"hij"), ("bytes=18-" + "9" * 5000, b"ij"),
                            ("bytes=" + "0" * 5000 + "-0", b"0"), ("bytes= ,0-0,,99-", b"0")):  # fmt: skip
        status, headers, body = answer(file, f"Range: {value}")
        at = TEXT.index(expected)
        assert (status, body) == (206, expected)
        assert headers.get(b"content-range") == b"bytes %d-%d/20" % (at, at + len(expected) - 1)
        assert headers.get(b"content-type") == b"text/plain; charset=utf-8"
        assert headers.get(b"etag") == file.tag


def test_two_range_fields_are_none(file: OpenFile) -> None:
    assert answer(file, "Range: bytes=0-0", "Range: bytes=1-1")[0] == 200


def test_several_ranges_come_in_the_order_asked_for(file: OpenFile) -> None:
    status, headers, body = answer(file, "Range: bytes=-2, 99-, 0-0,5-7")
    assert status == 206
    assert b"content-range" not in headers
    kind = headers.get(b"content-type")
    assert kind.startswith(b"multipart/byteranges; boundary=")
    message = message_from_bytes(b"Content-Type: " + kind + b"\r\n\r\n" + body)
    parts: Any = message.get_payload()
    assert [(part["Content-Range"], part["Content-Type"], part.get_payload()) for part in parts] == [
        ("bytes 18-19/20", "text/plain; charset=utf-8", "ij"),
        ("bytes 0-0/20", "text/plain; charset=utf-8", "0"),
        ("bytes 5-7/20", "text/plain; charset=utf-8", "567"),
    ]
    boundary = kind.partition(b"=")[2]
    assert body.startswith(b"--" + boundary + b"\r\n")
    assert body.endswith(b"\r\n--" + boundary + b"--\r\n")
    assert boundary not in answer(file, "Range: bytes=0-0,5-7")[1].get(b"content-type")  # nobody can foresee it


def test_a_range_outside(file: OpenFile) -> None:
    status, headers, word = answer(file, "Range: bytes=20-")
    assert (status, word) == (416, b"Range")
    assert headers.get(b"content-range") == b"bytes */20"


@pytest.mark.parametrize(
    ("value", "status"),
    [
        ("TAG", 206),
        ("W/TAG", 200),
        ('"x"', 200),
        ("*", 200),
        (DATE, 206),
        (BEFORE, 200),
        (AFTER, 200),  # exactly that date, or none
        ("x", 200),
        ("TAG, TAG", 200),
    ],
)
def test_if_range(file: OpenFile, value: str, status: int) -> None:
    value = value.replace("TAG", file.tag.decode())
    assert answer(file, "Range: bytes=0-0", f"If-Range: {value}")[0] == status
    assert answer(file, "Range: bytes=0-0", f"If-Range: {value}", f"If-Range: {value}")[0] == 200
    assert answer(file, f"If-Range: {value}")[0] == 200
    # a part that is outside of a file that has changed means nothing
    assert answer(file, "Range: bytes=99-", f"If-Range: {value}")[0] == (416 if status == 206 else 200)


def test_numbers_beyond_32_bits(tmp_path: Path) -> None:
    size = 5 * 2**30
    with (tmp_path / "big").open("wb") as big:
        big.truncate(size)
        big.seek(3 * 2**30)
        big.write(b"here")
    with FileRoot.open(tmp_path).open_file(b"big") as file:
        assert answer(file, "Range: bytes=3221225472-3221225475")[2] == b"here"
        status, headers, body = answer(file, "Range: bytes=-1")
        assert (status, body) == (206, b"\0")
        assert headers.get(b"content-range") == b"bytes 5368709119-5368709119/5368709120"
        assert answer(file, method="HEAD")[1].get(b"content-length") == b"5368709120"
