"""The corpus of heads: one file for one head, with the verdict of the scanner in the file's name.

``NAME.request.VERDICT.http`` is what a client sends, ``NAME.answer.VERDICT.http`` what an app does.  The verdict is
``plain``, ``other`` (fine on the wire, but not plain), ``more`` (not complete, and no error is certain), or the
`Reason` for which it is refused.
"""

from __future__ import annotations

from pathlib import Path

import h11
import pytest

from frontd.model.errors import FrontdError, Reason
from frontd.protocol.scan import RequestHead, ResponseHead, WireLimits, scan_request, scan_response
from tests.protocol.referee import asker, check_plain_request, check_plain_response, keeps_alive

HEADS = Path(__file__).parent / "corpus" / "heads"
FILES = sorted(path.name for path in HEADS.iterdir())
ACCEPTED = ("plain", "other")


def named(side: str, *verdicts: str) -> list[str]:
    """The files of one side, with one of the verdicts."""
    found = [name for name in FILES if name.split(".")[1] == side and name.split(".")[2] in verdicts]
    assert found
    return found


def scan(name: str, data: bytes | bytearray) -> RequestHead | ResponseHead | None:
    return scan_request(data, WireLimits()) if name.split(".")[1] == "request" else scan_response(data)


def verdict(name: str, data: bytes | bytearray) -> str:
    try:
        head = scan(name, data)
    except FrontdError as error:
        return error.reason.name
    if head is None:
        return "more"
    return "plain" if head.plain else "other"


def test_the_names_say_what_there_is() -> None:
    words = {"plain", "other", "more", *Reason.__members__}
    for name in FILES:
        _, side, word, ending = name.split(".")
        assert side in ("request", "answer")
        assert word in words
        assert ending == "http"


@pytest.mark.parametrize("name", FILES)
def test_a_head_gets_the_verdict_in_its_name(name: str) -> None:
    data = (HEADS / name).read_bytes()
    for _ in range(4):  # the second time its lines may be known, then all of them as one
        assert verdict(name, bytearray(data)) == name.split(".")[2]
        assert verdict(name, data) == name.split(".")[2]


@pytest.mark.parametrize("name", FILES)
def test_a_head_gets_it_however_it_is_cut(name: str) -> None:
    data = (HEADS / name).read_bytes()
    expected = name.split(".")[2]
    size = len(data)
    if expected in ACCEPTED:
        head = scan(name, data)
        assert head is not None
        size = head.size
    for end in range(min(size, 400)):
        early = verdict(name, data[:end])
        assert early in ("more", expected)
        assert early == "more" or expected not in ACCEPTED


@pytest.mark.parametrize("name", named("request", "plain"))
def test_a_plain_request_is_what_h11_says(name: str) -> None:
    data = (HEADS / name).read_bytes()
    for _ in range(4):
        head = scan_request(bytearray(data), WireLimits())
        assert head is not None
        check_plain_request(head, data)


@pytest.mark.parametrize("name", named("answer", "plain"))
def test_a_plain_answer_is_what_h11_says(name: str) -> None:
    data = (HEADS / name).read_bytes()
    for _ in range(4):
        head = scan_response(bytearray(data))
        assert head is not None
        check_plain_response(head, data)


@pytest.mark.parametrize("name", named("request", *ACCEPTED))
def test_an_accepted_request_keeps_its_connection_as_h11_does(name: str) -> None:
    data = (HEADS / name).read_bytes()
    head = scan_request(data, WireLimits())
    assert head is not None
    assert head.keep_alive is keeps_alive(data)


@pytest.mark.parametrize("name", named("request", *ACCEPTED) + named("answer", *ACCEPTED))
def test_what_is_accepted_h11_accepts(name: str) -> None:
    http = h11.Connection(h11.SERVER) if ".request." in name else asker("GET")
    http.receive_data((HEADS / name).read_bytes())
    assert isinstance(http.next_event(), h11.Request | h11.Response | h11.InformationalResponse)


TAILS = (b"\n", b"\r\n", b"\n\r\n", b"\r\n\r\n", b"Host: a.test\r\n\r\n", b"\nHost: a.test\r\n\r\n")


@pytest.mark.parametrize("name", named("request", "more") + named("answer", "more"))
def test_where_more_is_needed_h11_needs_more_or_refuses(name: str) -> None:
    data = (HEADS / name).read_bytes()
    http = h11.Connection(h11.SERVER) if ".request." in name else asker("GET")
    if data:  # nothing at all is the end of the stream to h11
        http.receive_data(data)
    try:
        assert http.next_event() is h11.NEED_DATA
    except h11.RemoteProtocolError:  # wrong already, so no continuation of these bytes may be accepted
        assert not any(verdict(name, data + tail) in ACCEPTED for tail in TAILS)


def test_every_rule_is_shown_from_both_sides() -> None:
    """Much of what h11 alone would accept is refused here, and all that it refuses is refused or not yet complete."""
    lenient, strict = 0, 0
    for name in FILES:
        _, side, word, _ = name.split(".")
        http = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20) if side == "request" else asker("GET")
        http.receive_data((HEADS / name).read_bytes())
        try:
            event = http.next_event()
        except h11.RemoteProtocolError:
            assert word not in ACCEPTED
            strict += 1
        else:
            lenient += event is not h11.NEED_DATA and word not in ACCEPTED
    assert lenient > 50
    assert strict > 50
