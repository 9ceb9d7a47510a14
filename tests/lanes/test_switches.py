"""Who drives a connection, and who judges its heads, changes nothing that anybody sees.

The same bytes go to fronts with the reactor on and off, and with the scanner trusted and h11 asked about every head:
the answers, what the app gets, and the lines of the access log are the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count, pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import pytest
import trio
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.protocol.grammar import damaged_answers, damaged_pipelines, pipelines
from tests.protocol.test_corpus import CORPUS
from tests.wire import OK, Line, Script, Stage, app, front, one_pool, settled

GET = b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"
MODES = {"as ever": ("on", True), "reactor off": ("off", True), "scanner off": ("on", False)}


@dataclass
class Seen:
    """What one client and the app saw, and the log; without what differs each time."""

    answers: bytes = b""
    asked: list[tuple[bytes, bytes]] = field(default_factory=list)
    log: list[dict[str, object]] = field(default_factory=list)


CHANGES = re.compile(rb"(?<=\r\nDate: )[^\r]*|(?<=\nRequest: )\d+|(?<=X-Request-Id: )[^\r]*")
TIMES = {"time", "seconds", "queue_wait", "request"}


async def play(stage: Stage, parts: Sequence[bytes]) -> bytes:
    """A client sends its bytes, part by part, and when nothing moves any more, its end; what it got."""
    line = await stage.connect()
    stage.lines.remove(line)
    assert isinstance(line.stream, trio.SocketStream)
    got = b""
    try:
        for part in parts:
            await line.send(part)
            await settled()
        got = arrived(line)
        await line.stream.send_eof()
        got += await line.read_to_end()
    except trio.BrokenResourceError:
        got += b"<reset>"
    finally:
        await line.close()
    await settled()
    return CHANGES.sub(b"", got)


def arrived(line: Line) -> bytes:
    """What has come so far."""
    assert isinstance(line.stream, trio.SocketStream)
    got: list[bytes] = []
    while True:
        try:
            data = line.stream.socket._sock.recv(65536)  # type: ignore[attr-defined]
        except BlockingIOError:
            return b"".join(got)
        except ConnectionResetError:
            return b"".join([*got, b"<reset>"])
        if not data:
            return b"".join(got)
        got.append(data)


async def all_plays(mode: str, plays: Sequence[Sequence[bytes]], script: Script | None, state: Path) -> list[Seen]:
    """Each play with a client of its own, all against one front."""
    seen: list[Seen] = []

    async def tells(line: Line) -> None:
        while True:
            head, body = await line.message()
            if not head:
                return
            seen[-1].asked.append((head, body))
            await line.send(OK)

    reactor, trusts = MODES[mode]
    switches = patch.dict("os.environ", FRONTD_REACTOR=reactor), patch("frontd.protocol.h1._TRUSTS_SCANNER", trusts)
    # numbers of requests stand on error pages: all of one length
    with switches[0], switches[1], patch("frontd.model.messages._numbers", count(1_000_000)):
        async with app(script or tells) as it, front(one_pool(it.url), state) as stage:
            for parts in plays:
                seen.append(Seen())
                seen[-1].answers = await play(stage, parts)
                seen[-1].asked = [(head.replace(str(it.port).encode(), b"PORT"), body) for head, body in seen[-1].asked]
            entries = [json.loads(line) for line in stage.log("access").splitlines()]
            for entry in entries:
                entry["target"] = bool(entry["target"])
            log = [{key: value for key, value in entry.items() if key not in TIMES} for entry in entries]
            seen.append(Seen(log=log))
    return seen


def compare(plays: Sequence[Sequence[bytes]], script: Script | None = None) -> list[Seen]:
    """The same in all modes; what was seen."""
    found: dict[str, list[Seen]] = {}
    for mode in MODES:
        with TemporaryDirectory() as state:
            found[mode] = trio.run(all_plays, mode, plays, script, Path(state))
    for (one, first), (other, second) in pairwise(found.items()):
        for parts, a, b in zip([*plays, ["the log"]], first, second, strict=True):
            assert a == b, f"{one} and {other} differ for {list(parts)!r}: {a} / {b}"
    return found["as ever"]


def cut(data: bytes, sizes: Sequence[int]) -> list[bytes]:
    """`data` in parts of these sizes, and the rest."""
    parts = []
    for size in sizes:
        parts.append(data[:size])
        data = data[size:]
    return [part for part in [*parts, data] if part]


# ---------------------------------------------------------------------------------------------------- requests


@pytest.mark.parametrize("folder", ["accepted", "refused"])
def test_the_corpus_of_requests(folder: str) -> None:
    files = [path.read_bytes() for path in sorted((CORPUS / folder).iterdir())]
    seen = compare([[data] for data in files])
    answered = [it for it in seen if it.answers.startswith(b"HTTP/1.1 ")]
    assert len(answered) > 0.8 * len(files)
    assert sum(bool(it.asked) for it in seen) > len(files) / 2 or folder == "refused"


def test_the_corpus_of_requests_in_halves() -> None:
    files = [path.read_bytes() for path in sorted((CORPUS / "accepted").iterdir())]
    compare([cut(data, [len(data) // 2]) for data in files])


few = settings(
    max_examples=8, phases=[Phase.explicit, Phase.generate], deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip
cuts = st.lists(st.integers(1, 120), max_size=3)


@few
@given(st.lists(st.tuples(pipelines | damaged_pipelines, cuts), min_size=4, max_size=12))
def test_any_requests(said: list[tuple[bytes, list[int]]]) -> None:
    compare([cut(data, sizes) for data, sizes in said])


def test_long_pipelines_with_bodies() -> None:
    post = b"POST /%d HTTP/1.1\r\nHost: a.test\r\nContent-Length: 5\r\n\r\nhello"
    chunked = b"PUT / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    data = b"".join(post % number + GET + chunked for number in range(10))
    seen = compare([[data], cut(data, [1, 100, 1000]), [data + data.replace(b"/1.1", b"/1.0")]])
    assert [it.answers.count(b"HTTP/1.1 200 OK") for it in seen[:2]] == [30, 30]


# ---------------------------------------------------------------------------------------------------- answers


def answering(answers: Sequence[bytes]) -> Script:
    """An app that gives one of these answers on each connection, in turn, and ends."""

    async def script(line: Line) -> None:
        await line.head()
        await line.send(answers[line.number % len(answers)])
        await line.stream.aclose()

    return script


@pytest.mark.parametrize("folder", ["responses-accepted", "responses-refused"])
def test_the_corpus_of_answers(folder: str) -> None:
    files = [path.read_bytes() for path in sorted((CORPUS / folder).iterdir())]
    seen = compare([[GET]] * len(files), answering(files))
    assert len({it.answers for it in seen}) > 2 or folder == "responses-refused"


@few
@given(st.lists(damaged_answers, min_size=4, max_size=12))
def test_any_answers(said: list[bytes]) -> None:
    compare([[GET]] * len(said), answering([data or b"x" for data in said]))
