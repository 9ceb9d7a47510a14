"""However the bytes arrive: messages cut at random points mean the same as in one piece, on both sides of the front.

Whole and mutated messages go over a real connection.  Compared are the answers (without what counts requests or time)
and the complete messages that the other side received; the parts of one that was never completed depend on timing.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.wire import Line, app, front, one_pool, settled

REQUESTS = (
    b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n",
    b"\r\nHEAD /x?y HTTP/1.1\r\nHost: a.test:80\r\nAccept: */*\r\n\r\n",
    b"POST /up HTTP/1.1\r\nHost: a.test\r\nContent-Length: 12\r\nX-Y: z\r\n\r\nhello, world",
    b"PUT /c HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n"
    b"5;a=b\r\nhello\r\n00A\r\n0123456789\r\n0\r\nX-T: 1\r\n\r\n",
    b"GET http://a.test/abs?q HTTP/1.1\r\nHost: a.test\r\nConnection: X-A\r\nX-A: 1\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a.test\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc",
    b"GET /old HTTP/1.0\r\n\r\n",
)
ANSWERS = (
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX: y\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n00a\r\n0123456789\r\n0\r\nX-T: 1\r\n\r\n",
    b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 204 No Content\r\nDate: x\r\n\r\n",
    b"HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n",
    b"HTTP/1.1 404\r\nContent-Length: 0\r\nSet-Cookie: a\r\nSet-Cookie: b\r\n\r\n",
)
SPICE = (b"\r", b"\n", b"\r\n", b" ", b"\t", b"\x00", b":", b";", b",", b"0", b"9", b"A", b"_", b"\x7f", b"\x80", b"")


@st.composite
def mutated(draw: st.DrawFn, messages: tuple[bytes, ...], most: int) -> bytes:
    """One to `most` messages in a row, in which up to three places were replaced, taken out or added to."""
    data = b"".join(draw(st.lists(st.sampled_from(messages), min_size=1, max_size=most)))
    for _ in range(draw(st.integers(0, 3))):
        at, gone = draw(st.integers(0, len(data))), draw(st.integers(0, 2))
        data = data[:at] + draw(st.sampled_from(SPICE)) + data[at + gone :]
    return data


def pieces(data: bytes, cuts: list[float]) -> list[bytes]:
    """`data` cut at these parts of its length, and always inside a line end when there is one near."""
    places = sorted({0, len(data), *(round(cut * len(data)) for cut in cuts)})
    places = sorted({*places, *(at + 1 for cut in places if (at := data.find(b"\r\n", cut)) >= 0)})
    return [data[start:end] for start, end in pairwise(places) if start < end]


CUTS = st.lists(st.floats(0, 1), min_size=1, max_size=5)
fast = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


async def deliver(line: Line, parts: list[bytes]) -> None:
    """Each part on its own: the next is sent when nobody has anything more to do about the last."""
    for part in parts:
        try:
            await line.send(part)
        except trio.BrokenResourceError:
            return
        await settled()


def comparable(answer: bytes) -> bytes:
    """Without numbers of requests, dates, and ``100 Continue``, which is only for who waits."""
    answer = re.sub(rb"HTTP/1\.1 100 Continue\r\n\r\n", b"", answer)
    answer = re.sub(rb"\r\nDate: [^\r]*GMT\r\n", b"\r\n", answer)
    answer = re.sub(rb"Content-Length: \d+(?=\r\nCache-Control: no-store)", b"Content-Length: N", answer)
    return re.sub(rb"Request: \d+", b"Request: N", answer)


async def ask(tmp_path: Path, parts: list[bytes]) -> tuple[bytes, list[tuple[bytes, bytes]], dict[str, int]]:
    """What a client that sends `parts` is answered, what the app was asked, and the reasons that were counted."""
    asked: list[tuple[bytes, bytes]] = []

    async def tells(line: Line) -> None:
        while True:
            head, body = await line.message()
            if not head:
                return
            asked.append((head, body))
            said = head.split(b"\r\n")[0] + b" " + body
            if head.startswith(b"HEAD"):
                said = b""
            await line.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(said), said))

    async with app(tells) as it, front(one_pool(it.url), tmp_path) as stage:
        line = await stage.connect()
        answer = await converse(line, parts)
        return comparable(answer), asked, stage.reasons


async def converse(line: Line, parts: list[bytes], busy: Callable[[], bool] = bool) -> bytes:
    """Send `parts` and take what comes until nobody has anything more to do and the other side is not `busy`."""
    got: list[bytes] = []

    async def read() -> None:
        try:
            while data := await line.read():
                got.append(data)
            got.append(b"<end>")
        except trio.BrokenResourceError:
            got.append(b"<reset>")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await deliver(line, parts)
        while busy():
            await settled()
        nursery.cancel_scope.cancel()
    return b"".join(got)


@given(data=mutated(REQUESTS, 3), cuts=CUTS)
@fast
async def test_requests(tmp_path: Path, data: bytes, cuts: list[float]) -> None:
    whole = await ask(tmp_path, [data])
    assert await ask(tmp_path, pieces(data, cuts)) == whole


@given(data=st.lists(st.sampled_from(REQUESTS[:6]), min_size=1, max_size=4).map(b"".join))
@settings(fast, max_examples=5)
async def test_good_requests_byte_by_byte(tmp_path: Path, data: bytes) -> None:
    answer, asked, reasons = await ask(tmp_path, [bytes([byte]) for byte in data])
    assert (answer, asked, reasons) == await ask(tmp_path, [data])
    assert reasons == {}
    assert answer.count(b"HTTP/1.1 200 OK") == len(asked) == data.count(b"HTTP/1.1")


async def relay(tmp_path: Path, method: bytes, parts: list[bytes], *, end: bool) -> tuple[bytes, dict[str, int]]:
    """What a client gets when the app answers with `parts` (and then ends, or says no more), and the reasons."""

    saying: set[Line] = set()

    async def says(line: Line) -> None:
        await line.head()
        saying.add(line)
        await deliver(line, parts)
        saying.discard(line)
        if not end:
            await line.read_to_end()

    async with app(says) as it, front(one_pool(it.url), tmp_path) as stage:
        line = await stage.connect()
        answer = await converse(line, [method + b" / HTTP/1.1\r\nHost: a.test\r\n\r\n"], lambda: bool(saying))
        return comparable(answer), stage.reasons


def decoded(answer: bytes) -> bytes:
    """Chunked bodies joined: where the chunks of a relayed body begin is nobody's business."""
    head, mark, body = answer.partition(b"\r\n\r\n")
    if b"\r\nTransfer-Encoding: chunked" not in head:
        return answer
    joined, rest = b"", body
    while match := re.match(rb"([0-9a-fA-F]+)\r\n", rest):
        size = int(match[1], 16)
        joined += rest[match.end() : match.end() + size]
        rest = rest[match.end() + size + 2 :]
        if not size:
            break
    return head + mark + joined + rest


@given(data=mutated(ANSWERS, 1), cuts=CUTS, method=st.sampled_from((b"GET", b"HEAD")), end=st.booleans())
@fast
async def test_answers(tmp_path: Path, data: bytes, cuts: list[float], method: bytes, end: bool) -> None:
    """An answer that breaks off is a 502 until its head has gone to the client and a cut then: no bytes to compare."""
    whole, reasons = await relay(tmp_path, method, [data], end=end)
    split, split_reasons = await relay(tmp_path, method, pieces(data, cuts), end=end)
    assert split_reasons == reasons
    if not reasons:
        assert decoded(split) == decoded(whole)
    else:
        assert not split.endswith(b"<end>")
