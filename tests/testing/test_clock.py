"""Time in a test: it stands still, it is moved from deadline to deadline, and the app may be slow or away."""

from __future__ import annotations

from typing import Any

import pytest
import trio

import frontd
from frontd.testing import site


class Ticker(frontd.Plugin):
    """Counts the seconds of its run."""

    name = "ticker"

    def prepare(self) -> None:
        self.ticks = 0

    async def run(self, *, task_status: Any) -> None:
        task_status.started()
        while True:
            await trio.sleep(1)
            self.ticks += 1

    def filter_request(self, exchange: frontd.Exchange) -> frontd.Response:
        return frontd.Response(200, text=str(self.ticks))


class Slow(frontd.Plugin):
    """Takes its time."""

    name = "slow"

    async def filter_request(self, exchange: frontd.Exchange) -> None:
        await trio.sleep(3)


def test_an_idle_connection_ends_after_its_time_and_not_before() -> None:
    with site() as s:
        with s.connect() as c:
            c.get("/")
            s.clock.advance(119)
            before = c.closed
            s.clock.advance(2)
            assert (before, c.closed) == (False, True)
        assert s.log[-1].reason == "Timer_ConnectionIdle"
        assert s.clock.now == pytest.approx(121)


def test_every_timer_on_the_way_expires() -> None:
    with site([Ticker]) as s:
        assert s.get("/").text == "0"
        s.clock.advance(0.5)
        assert s.get("/").text == "0"
        s.clock.advance(59.75)
        assert s.get("/").text == "60"


def test_a_long_time_is_passed_in_coarse_steps_and_arrives() -> None:
    with site([Ticker]) as s:
        s.clock.advance(86400)
        assert s.clock.now == pytest.approx(86400)
        assert int(s.get("/").text) >= 900


def test_the_clock_does_not_go_back() -> None:
    with site() as s, pytest.raises(ValueError, match="forward only"):
        s.clock.advance(-1)


def test_a_hook_that_sleeps_is_awake_when_the_clock_says_so() -> None:
    with site([Slow]) as s, s.connect() as c:
        c.send(b"GET / HTTP/1.1\r\nHost: test.example\r\n\r\n")
        s.clock.advance(2.9)
        assert c.receive_bytes() == b""
        s.clock.advance(0.2)
        assert c.receive().status == 200
        assert s.log[-1].seconds == pytest.approx(3.1, abs=0.11)


def test_the_clock_may_go_on_while_an_answer_is_waited_for() -> None:
    with site([Slow]) as s:
        assert s.get("/", advance=10).status == 200
        assert s.clock.now == pytest.approx(3)  # no further than needed
        assert s.log[-1].seconds == pytest.approx(3)


def test_a_slow_app_is_given_up() -> None:
    with site(config={"timeouts": {"response_head": 20}}) as s:
        s.app.respond(200, delay=30)
        answer = s.get("/", advance=100)
        assert (answer.status, s.log[-1].reason) == (504, "Timer_Response")
        assert s.clock.now == pytest.approx(20)


def test_an_app_that_is_away_is_waited_for() -> None:
    with site() as s:
        s.app.stop()
        with s.connect() as c:
            c.send(b"GET /while HTTP/1.1\r\nHost: test.example\r\n\r\n")
            s.clock.advance(5)
            assert c.receive_bytes() == b""
            s.app.start()
            answer = c.receive(advance=5)
            assert answer.status == 200
            assert answer.upstream is not None
            assert answer.upstream.target == "/while"


def test_an_app_that_stays_away_is_offline() -> None:
    with site() as s:
        assert s.get("/").status == 200
        s.app.stop()
        answer = s.get("/", advance=60)
        assert (answer.status, s.log[-1].reason) == (503, "AppOffline")
        assert s.clock.now == pytest.approx(30, abs=1)  # pools.app.queue.wait
        s.app.start()
        s.clock.advance(2)
        assert s.get("/").status == 200


def test_the_app_answers_as_it_is_told() -> None:
    with site() as s:
        s.app.respond(201, {"X-By": "table"}, "made")
        answer = s.get("/")
        assert (answer.status, answer.headers["x-by"], answer.text) == (201, "table", "made")
        s.app.respond(lambda request: f"you asked {request.path}")
        assert s.get("/a?b").text == "you asked /a"
        s.app.respond(lambda request: b"bytes")
        assert s.get("/").body == b"bytes"
        s.app.respond(b"not HTTP at all\r\n\r\n")
        assert (s.get("/").status, s.log[-1].reason) == (502, "BadUpstreamHead")
        s.app.echo()
        assert s.get("/again").text.startswith("GET /again")
        with pytest.raises(ValueError, match="200 to 599"):
            s.app.respond(99)
