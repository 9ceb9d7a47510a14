"""What a client asks about what it has already: conditions (RFC 9110 13) and ranges (RFC 9110 14).

Pure: field values and facts about the representation go in, a decision comes out.  The representation is known by its
entity tag and by the second it was last modified (since the epoch).

* Conditions are asked in the order of RFC 9110 13.2.2; a date that is none counts as not there.
* A Range that is malformed, of another unit, of more than `MOST_RANGES` parts or with parts that overlap is not there
  either (RFC 9110 14.2 allows it; Apache's MaxRanges and MaxRangeOverlaps are the precedent): the answer is the whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import formatdate
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from frontd.model.errors import FrontdError, Reason
from frontd.model.headers import Headers

MOST_RANGES = 10  # Apache allows 200; who reads a document in pieces asks for two or three at once


class Span(NamedTuple):
    """`size` bytes from `offset` on."""

    offset: int
    size: int


# ---------------------------------------------------------------------------------------------------- dates

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_MONTH = "(?P<month>" + "|".join(_MONTHS) + ")"
_TIME = r"(?P<hour>[0-9]{2}):(?P<minute>[0-9]{2}):(?P<second>[0-9]{2})"
_DATES = tuple(
    re.compile(form)
    for form in (
        rf"[A-Z][a-z]{{2}}, (?P<day>[0-9]{{2}}) {_MONTH} (?P<year>[0-9]{{4}}) {_TIME} GMT",
        rf"[A-Z][a-z]{{5,8}}, (?P<day>[0-9]{{2}})-{_MONTH}-(?P<year>[0-9]{{2}}) {_TIME} GMT",
        rf"[A-Z][a-z]{{2}} {_MONTH} (?P<day>[0-9 ][0-9]) {_TIME} (?P<year>[0-9]{{4}})",
    )
)


def read_date(value: bytes) -> int | None:
    """Seconds since the epoch of an HTTP date in any of its three forms (RFC 9110 5.6.7); None when it is none."""
    text = value.decode("latin-1")
    match = next((found for form in _DATES if (found := form.fullmatch(text))), None)
    if match is None:
        return None
    year = int(match["year"])
    if len(match["year"]) == 2:  # a year that seems to lie more than 50 years ahead is a past one
        this_year = datetime.now(UTC).year
        year += this_year - this_year % 100
        year -= 100 if year > this_year + 50 else 0
    second = min(int(match["second"]), 59)  # a leap second has no number of its own in POSIX time
    month = _MONTHS.index(match["month"]) + 1
    try:
        moment = datetime(year, month, int(match["day"]), int(match["hour"]), int(match["minute"]), second, tzinfo=UTC)
    except ValueError:
        return None
    return int(moment.timestamp())


@lru_cache(maxsize=1024)  # the same files are asked for again and again, and a date costs microseconds
def http_date(seconds: int) -> bytes:
    """An HTTP date (RFC 9110 5.6.7) from seconds since the epoch."""
    return formatdate(seconds, usegmt=True).encode()


# ---------------------------------------------------------------------------------------------------- conditions

_TAG = rb'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"'
_TAGS = re.compile(rb"[ \t,]*(?:" + _TAG + rb"[ \t]*(?:,[ \t,]*|$))+")
_ONE_TAG = re.compile(_TAG)


def is_tag(value: bytes) -> bool:
    """Whether this is one entity tag (RFC 9110 8.8.3)."""
    return _ONE_TAG.fullmatch(value) is not None


def still_good(fields: Headers, tag: bytes, modified: int) -> bool:
    """Whether the client's copy still holds, so that 304 is the answer to its GET or HEAD.

    Raises `FrontdError` with ``Precondition`` (412) when the client names a state that is not the present one.
    """
    match, unmodified = fields.get_all(b"if-match"), fields.get_all(b"if-unmodified-since")
    if match:
        if not _listed(match, tag, strongly=True):
            raise FrontdError(Reason.Precondition, detail="If-Match")
    elif unmodified:
        since = _one_date(unmodified)
        if since is not None and modified > since:
            raise FrontdError(Reason.Precondition, detail="If-Unmodified-Since")
    none_match = fields.get_all(b"if-none-match")
    if none_match:
        return _listed(none_match, tag, strongly=False)
    since = _one_date(fields.get_all(b"if-modified-since"))
    return since is not None and modified <= since


def _listed(values: list[bytes], tag: bytes, *, strongly: bool) -> bool:
    """Whether `tag` is in a list of entity tags, by strong or weak comparison (RFC 9110 8.8.3.2).

    A list with anything else in it names nothing: then an update is refused, and a whole answer sent.
    """
    joined = b", ".join(values)
    if joined == b"*":
        return True
    if not _TAGS.fullmatch(joined):
        return False
    tags: Iterator[bytes] = (found.group() for found in _ONE_TAG.finditer(joined))
    if strongly:
        return not tag.startswith(b"W/") and tag in tags
    return tag.removeprefix(b"W/") in (one.removeprefix(b"W/") for one in tags)


def _one_date(values: list[bytes]) -> int | None:
    return read_date(values[0]) if len(values) == 1 else None


# ---------------------------------------------------------------------------------------------------- ranges

_RANGES = re.compile(rb"[ \t,]*(?:(?:[0-9]+-[0-9]*|-[0-9]+)[ \t]*(?:,[ \t,]*|$))+")
_ONE_RANGE = re.compile(rb"([0-9]*)-([0-9]*)")
_DIGITS = 18  # a number with more is larger than any file


def wanted_ranges(fields: Headers, size: int, tag: bytes, modified: int) -> list[Span] | None:
    """The parts of `size` bytes that a GET asks for, in its order; None: all of it.

    Raises `FrontdError` with ``Range`` (416, Content-Range in its fields) when none of them is there.
    """
    values = fields.get_all(b"range")
    if len(values) != 1 or not size:  # of an empty file there is nothing to choose from, and nothing to refuse
        return None
    unit, _, ranges = values[0].partition(b"=")
    if unit.lower() != b"bytes" or not _RANGES.fullmatch(ranges) or not _may_resume(fields, tag, modified):
        return None
    asked = _ONE_RANGE.findall(ranges)
    if len(asked) > MOST_RANGES:
        return None
    spans: list[Span] = []
    for first, last in asked:
        if first and last and _number(first) > _number(last):
            return None  # not a range at all (RFC 9110 14.1.1)
        span = _span(first, last, size)
        if span is not None:
            spans.append(span)
    if not spans:
        raise FrontdError(Reason.Range, fields=((b"Content-Range", b"bytes */%d" % size),))
    return None if _overlap(spans) else spans


def _may_resume(fields: Headers, tag: bytes, modified: int) -> bool:
    """If-Range (RFC 9110 13.1.5): the client's part is of the representation that is here now."""
    values = fields.get_all(b"if-range")
    if not values:
        return True
    if len(values) > 1:
        return False
    if is_tag(values[0]):
        return values[0] == tag and not tag.startswith(b"W/")
    return read_date(values[0]) == modified


def _span(first: bytes, last: bytes, size: int) -> Span | None:
    if not first:  # the last so many bytes
        length = min(_number(last), size)
        return Span(size - length, length) if length else None
    offset = _number(first)
    if offset >= size:
        return None
    end = min(_number(last), size - 1) if last else size - 1
    return Span(offset, end - offset + 1)


def _number(digits: bytes) -> int:
    digits = digits.lstrip(b"0")
    return int(digits or b"0") if len(digits) <= _DIGITS else int(10**_DIGITS)


def _overlap(spans: list[Span]) -> bool:
    ordered = sorted(spans)
    return any(one.offset + one.size > after.offset for one, after in pairwise(ordered))
