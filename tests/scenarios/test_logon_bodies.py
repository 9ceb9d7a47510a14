"""A 401 keeps its connection although the request's body is still to come: handshakes go on on their connection."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from frontd import Exchange, Refuse, Response
from frontd.lanes.downstream import DRAINED_BODY
from tests.scenarios.handshakes import LEG_1, LEG_2, Legs, Word
from tests.scenarios.plugged import fields, made, plugged, says, status
from tests.wire import App, Line, Stage, app, settled

BODY = bytes(range(256)) * 256  # 64 KiB


def head(*lines: str, length: int | None = len(BODY)) -> bytes:
    """The head of a POST; without a length its body is chunked."""
    framing = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    return "\r\n".join(["POST / HTTP/1.1", "Host: a.test", framing, *lines, "", ""]).encode()


def wire(body: bytes, *, chunked: bool) -> bytes:
    return b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if chunked else body


async def refused(line: Line, *, keeps: bool = True) -> list[str]:
    """The challenges of the 401 that comes now, and what it says of the connection."""
    answer, _ = await line.message()
    assert status(answer) == 401
    assert fields(answer, "connection") == ([] if keeps else ["close"])
    return fields(answer, "www-authenticate")


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_handshake_by_posts_whose_bodies_come_late(tmp_path: Path, chunked: bool) -> None:
    async with app() as it, plugged(tmp_path, it.url, Legs) as stage:
        line = await stage.connect()
        rest, length = wire(BODY, chunked=chunked), None if chunked else len(BODY)
        for credentials, challenge in (([], "NTLM"), ([LEG_1], "NTLM TlRMTVNTUAAC")):
            await line.send(head(*credentials, length=length) + rest[:100])
            (found,) = await refused(line)
            assert found.startswith(challenge)
            await settled()
            await line.send(rest[100:])
        answer, _ = await line.ask(head(LEG_2, length=length) + rest)
        assert status(answer) == 200
        assert it.bodies == [BODY]
        assert b"X-Remote-User: LAB\\ann\r\n" in it.heads[0]
        answer, _ = await line.ask(head(length=length) + rest)  # the connection has logged on
        assert status(answer) == 200
        assert stage.reasons == {"LogonRequired": 1}


async def test_wrong_credentials_and_prepared_answers_keep_it_too(tmp_path: Path) -> None:
    page = Response(401, {"WWW-Authenticate": "Word"}, b"no\n").prepare()

    def asks(self: object, exchange: Exchange) -> Response | None:
        return page if exchange.request.path == "/prepared" else None

    plugins = made("asks", filter_request=asks), Word
    async with plugged(tmp_path, "http://127.0.0.1:1", *plugins) as stage:
        line = await stage.connect()
        for start in (head("Authorization: Basic no"), head().replace(b"POST / ", b"POST /prepared ")):
            await line.send(start)
            await refused(line)
            await line.send(BODY)
        assert status((await line.get())[0]) == 401


# ---------------------------------------------------------------------------------------------------- limits


async def test_a_body_that_is_too_long_to_be_drained_ends_it(tmp_path: Path) -> None:
    async with plugged(tmp_path, "http://127.0.0.1:1", Legs) as stage:
        line = await stage.connect()
        await line.send(head(LEG_1, length=DRAINED_BODY))
        await refused(line)
        await line.send(bytes(DRAINED_BODY))
        await line.send(head(LEG_1, length=DRAINED_BODY + 1))
        await refused(line, keeps=False)
        assert await line.read_to_end() == b""


async def test_chunks_beyond_the_limit_end_it(tmp_path: Path) -> None:
    """How long they are is known at their end, so the answer does not say it."""
    async with plugged(tmp_path, "http://127.0.0.1:1", Legs) as stage:
        line = await stage.connect()
        await line.send(head(LEG_1, length=None))
        await refused(line)
        chunk = b"10000\r\n" + bytes(65536) + b"\r\n"
        await line.send(chunk * (DRAINED_BODY // 65536 + 2))
        assert await line.read_to_end() == b""


async def test_the_rest_is_waited_for_by_its_timer(tmp_path: Path, autojump_clock: object) -> None:
    extra = "timeouts: {drain_entity_body: 7s, entity_body: 100s}"
    async with plugged(tmp_path, "http://127.0.0.1:1", Legs, extra=extra) as stage:
        line = await stage.connect()
        await line.send(head(LEG_1) + BODY[:-1])
        await refused(line)
        begun = trio.current_time()
        assert await line.read_to_end() == b""
        assert 7 <= trio.current_time() - begun < 8
        await ended(stage)
        assert stage.reasons == {"Timer_DrainEntityBody": 1}


async def test_a_body_that_would_be_refused_is_not_drained(tmp_path: Path) -> None:
    async with plugged(tmp_path, "http://127.0.0.1:1", Legs, site="limits: {max_body: 1000}") as stage:
        line = await stage.connect()
        await line.send(head(LEG_1, length=1000))
        await refused(line)
        await line.send(bytes(1000))
        await line.send(head(LEG_1, length=1001))
        await refused(line, keeps=False)


@pytest.mark.parametrize("leaves", [True, False])
async def test_who_leaves_instead_of_sending_is_no_fault(tmp_path: Path, leaves: bool) -> None:
    """As curl does, which goes on through another connection; a body that goes wrong is one."""
    async with plugged(tmp_path, "http://127.0.0.1:1", Legs) as stage:
        line = await stage.connect()
        await line.send(head(length=None))
        await refused(line)
        if not leaves:
            await line.send(b"nonsense\r\n")
        await line.close()
        await ended(stage)
        assert stage.reasons == {"LogonRequired": 1} | ({} if leaves else {"Number": 1})


async def ended(stage: Stage) -> None:
    while stage.front.service.connections:
        await stage.front.service.emptied.wait()


async def test_elsewhere_a_401_is_an_answer_like_any_other(tmp_path: Path) -> None:
    """A site where nobody can log on."""
    no = made("no", filter_request=says(Refuse(401, "LogonFailed")))
    async with plugged(tmp_path, "http://127.0.0.1:1", no) as stage:
        line = await stage.connect()
        await line.send(head())
        await refused(line, keeps=False)


# ---------------------------------------------------------------------------------------------------- 100-continue


async def test_who_waits_for_100_logs_on_through_a_new_connection(tmp_path: Path) -> None:
    async with plugged(tmp_path, "http://127.0.0.1:1", Legs) as stage:
        line = await stage.connect()
        await line.send(head("Expect: 100-continue"))
        assert await refused(line, keeps=False) == ["NTLM"]
        assert await line.read_to_end() == b""
        line = await stage.connect()  # who has begun with the body does not wait any more
        await line.send(head("Expect: 100-continue") + BODY[:1])
        await refused(line)
        await line.send(BODY[1:])
        assert status((await line.get())[0]) == 401


async def test_who_waits_for_100_in_a_handshake_keeps_its_connection(tmp_path: Path) -> None:
    async with app() as it, plugged(tmp_path, it.url, Legs) as stage:
        line = await stage.connect()
        await line.send(head(LEG_1, "Expect: 100-continue"))
        await refused(line)
        await line.send(BODY)
        await line.send(head(LEG_2, "Expect: 100-continue"))
        assert await line.head() == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert status((await line.ask(BODY))[0]) == 200
        assert it.bodies == [BODY]


# ---------------------------------------------------------------------------------------------------- curl


async def curl(stage: Stage, tmp_path: Path, *options: str) -> tuple[str, bytes]:
    """One POST of 64 KiB: ``STATUS CONNECTIONS``, and what curl told on the way."""
    (tmp_path / "body").write_bytes(BODY)
    url = f"http://127.0.0.1:{stage.port()}/"
    command = ["curl", "-sSv", "-m", "20", "--noproxy", "*", "-o", "/dev/null", "-w", "%{http_code} %{num_connects}"]
    done = await trio.run_process(
        [*command, "--data-binary", f"@{tmp_path / 'body'}", "-u", "LAB\\ann:x", *options, url],
        capture_stdout=True, capture_stderr=True, check=False,
    )  # fmt: skip
    return done.stdout.decode(), done.stderr


def sent_once(it: App) -> None:
    assert [body == BODY for body in it.bodies] == [True]


@pytest.mark.parametrize("options", [["--anyauth"], ["--ntlm"], ["--anyauth", "-H", "Expect: 100-continue"]])
async def test_curl_posts_through_a_handshake(tmp_path: Path, options: list[str]) -> None:
    """When the first 401 comes before curl has sent its body, or in place of a 100, it goes on through a new connection
    rather than send the body in vain; the legs then go on there, with the body behind the last."""
    async with app() as it, plugged(tmp_path, it.url, Legs) as stage:
        figures, said = await curl(stage, tmp_path, *options)
        assert figures in (("200 1",) if "--ntlm" in options else ("200 1", "200 2")), said.decode()
        sent_once(it)


async def test_curl_chooses_the_stronger_of_two(tmp_path: Path) -> None:
    async with app() as it, plugged(tmp_path, it.url, Word, Legs) as stage:
        figures, said = await curl(stage, tmp_path, "--anyauth")
        assert figures in ("200 1", "200 2"), said.decode()
        sent_once(it)
        assert b"X-Auth-Scheme: NTLM\r\n" in it.heads[0]
