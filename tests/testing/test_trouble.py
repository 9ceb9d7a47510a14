"""What goes wrong in a plugin or in a test comes out in the test, soon and with the line; nothing stays behind."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import trio

import frontd
from frontd.testing import AppRequest, site

RELEASE = threading.Event()


class Sleeper(frontd.Plugin):
    """Waits for what never comes."""

    name = "sleeper"

    async def filter_request(self, exchange: frontd.Exchange) -> None:
        await trio.sleep(3600)  # here it sleeps


class Blocker(frontd.Plugin):
    """Holds the loop."""

    name = "blocker"

    def filter_request(self, exchange: frontd.Exchange) -> None:
        RELEASE.wait(30)  # here it blocks


class Spinner(frontd.Plugin):
    """Never rests."""

    name = "spinner"

    async def filter_request(self, exchange: frontd.Exchange) -> None:
        while not RELEASE.is_set():
            await trio.lowlevel.checkpoint()


class Threaded(frontd.Plugin):
    """Works in a thread."""

    name = "threaded"

    @frontd.blocking
    def filter_request(self, exchange: frontd.Exchange) -> frontd.Response:
        time.sleep(0.05)
        return frontd.Response(200, text=threading.current_thread().name)

    def log(self, exchange: frontd.Exchange) -> None:
        self.remark(f"logged {exchange.request.path}")


class Keeper(frontd.Plugin):
    """Keeps a thread for itself, for as long as it runs."""

    name = "keeper"

    async def run(self, *, task_status: Any) -> None:
        task_status.started()
        await trio.to_thread.run_sync(RELEASE.wait, 30, abandon_on_cancel=True)


class Failing(frontd.Plugin):
    """Raises where it is told to."""

    name = "failing"

    class Settings(frontd.Settings):
        hook: str

    settings: Settings

    def _fail(self, hook: str) -> None:
        if self.settings.hook == hook:
            raise RuntimeError(f"{hook} is broken")

    def filter_request(self, exchange: frontd.Exchange) -> None:
        self._fail("filter_request")

    def rewrite_response(self, exchange: frontd.Exchange) -> None:
        self._fail("rewrite_response")

    def log(self, exchange: frontd.Exchange) -> None:
        self._fail("log")

    def client_closed(self, client: frontd.Client) -> None:
        self._fail("client_closed")


class Gate(frontd.Plugin):
    """Raises when a connection comes."""

    name = "gate"

    def accept_client(self, client: frontd.Client) -> None:
        raise RuntimeError("accept_client is broken")


def line_of(mark: str) -> str:
    """``file:line`` of the line of this file that ends in a comment."""
    lines = Path(__file__).read_text().splitlines()
    return f"{__file__}:{next(number for number, line in enumerate(lines, 1) if line.endswith('# ' + mark))}"


# ---------------------------------------------------------------------------------------------------- what hangs


def test_a_hook_that_waits_for_ever_is_named() -> None:
    with site([Sleeper], patience=0.5) as s, pytest.raises(TimeoutError) as told:
        s.get("/")
    assert f"a task waits at {line_of('here it sleeps')} in filter_request" in str(told.value)
    assert "clock.advance" in str(told.value)


def test_a_hook_that_blocks_is_named() -> None:
    RELEASE.clear()
    with site([Blocker], patience=0.5) as s:
        with pytest.raises(TimeoutError) as told:
            s.get("/")
        RELEASE.set()
    assert f"the loop is blocked at {line_of('here it blocks')} in filter_request" in str(told.value)
    assert "frontd.blocking" in str(told.value)


def test_a_hook_that_never_rests_is_told() -> None:
    RELEASE.clear()
    with site([Spinner], patience=0.5) as s:
        with pytest.raises(TimeoutError, match=r"did not come to rest within 0\.5 s"):
            s.get("/")
        RELEASE.set()


def test_a_test_that_fails_while_the_loop_is_blocked_ends() -> None:
    RELEASE.clear()
    began = time.monotonic()
    with pytest.raises(TimeoutError, match="the loop is blocked"):
        with site([Blocker], patience=0.5) as s:
            s.get("/")
    RELEASE.set()
    assert time.monotonic() - began < 10


# ---------------------------------------------------------------------------------------------------- threads


def test_a_hook_in_a_thread_is_waited_for() -> None:
    with site([Threaded]) as s:
        assert s.get("/").text != threading.current_thread().name
        with s.connect() as c:
            c.send(b"GET /sent HTTP/1.1\r\nHost: test.example\r\n\r\n")
            assert s.remarks[-1].endswith("logged /sent")  # `send` came back when the thread had ended


def test_a_thread_that_a_plugin_keeps_costs_one_second_and_no_more() -> None:
    RELEASE.clear()
    began = time.monotonic()
    with site([Keeper]) as s:
        for _ in range(10):
            assert s.get("/").status == 200
    RELEASE.set()
    assert time.monotonic() - began < 9


# ---------------------------------------------------------------------------------------------------- faults


def test_a_fault_that_is_answered_is_in_the_log_and_in_errors(capfd: pytest.CaptureFixture[str]) -> None:
    with site({Failing: {"hook": "filter_request"}}) as s:
        assert s.get("/").status == 500
        assert s.log[-1].reason == "PluginFault"
        assert s.log[-1].detail == "failing.filter_request: RuntimeError"
        assert "RuntimeError: filter_request is broken" in s.errors[0]
    assert "RuntimeError: filter_request is broken" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("hook", "status"), [("filter_request", 500), ("rewrite_response", 200), ("log", 200), ("client_closed", 200)]
)
def test_a_fault_that_nobody_looked_at_fails_the_test(hook: str, status: int) -> None:
    """Also one that was answered with 500: a test that only asks whether something was refused would not see it."""
    with pytest.raises(AssertionError, match=rf"(?s)a plugin failed.*RuntimeError: {hook} is broken"):
        with site({Failing: {"hook": hook}}) as s:
            assert s.get("/").status == status


def test_a_fault_of_a_connection_that_nobody_looked_at_fails_the_test() -> None:
    def play() -> None:
        with site(server_plugins={Gate: None}) as s, s.connect() as c:
            assert c.closed
            assert s.log[-1].reason == "PluginFault"

    with pytest.raises(AssertionError, match=r"(?s)a plugin failed.*RuntimeError: accept_client is broken"):
        play()


def test_to_look_before_a_fault_is_not_to_look_at_it() -> None:
    def play() -> None:
        with site({Failing: {"hook": "filter_request"}}) as s:
            assert s.errors == []
            s.get("/")

    with pytest.raises(AssertionError, match="filter_request is broken"):
        play()


@pytest.mark.parametrize("hook", ["rewrite_response", "log", "client_closed"])
def test_a_fault_that_the_test_looks_at_does_not(hook: str) -> None:
    with site({Failing: {"hook": hook}}) as s:
        assert s.get("/").status == 200
        (error,) = s.errors
        assert f"RuntimeError: {hook} is broken" in error


def test_what_an_app_of_the_test_raises_is_raised_in_the_test() -> None:
    def broken(request: AppRequest) -> str:
        raise ZeroDivisionError(request.path)

    def play() -> None:
        with site() as s:
            s.app.respond(broken)
            s.get("/x")

    with pytest.raises(ZeroDivisionError, match="/x"):
        play()


def test_what_a_test_raises_is_not_hidden() -> None:
    def play() -> None:
        with site({Failing: {"hook": "log"}}) as s:
            s.get("/")
            raise LookupError("of the test")

    with pytest.raises(LookupError, match="of the test"):
        play()


# ---------------------------------------------------------------------------------------------------- nothing stays


def test_nothing_stays_behind() -> None:
    def files() -> int:
        return len(os.listdir("/proc/self/fd"))

    with site([Threaded]) as s:  # what is opened once for the whole process is open after this
        s.get("/")
    before = files()
    with site([Threaded]) as s:
        directory = s.app.path.parent
        kept = s.connect()
        kept.get("/")
        s.connect().send(b"GET / HT")
        s.app.stop()
        assert files() > before
        assert directory.is_dir()
    assert files() == before
    assert not directory.exists()
    assert not [one for one in threading.enumerate() if one.name.startswith("frontd")]
    with pytest.raises(RuntimeError, match="has been closed"):
        s.get("/")


def test_two_sites_do_not_know_of_each_other() -> None:
    with site({Failing: {"hook": "filter_request"}}) as one, site() as two:
        assert (one.get("/").status, two.get("/").status) == (500, 200)
        one.clock.advance(60)
        assert (round(one.clock.now), round(two.clock.now)) == (60, 0)
        assert (len(one.log), len(two.log)) == (1, 1)
        assert (len(one.errors), len(two.errors)) == (1, 0)


async def test_it_works_inside_of_an_asynchronous_test() -> None:
    await trio.lowlevel.checkpoint()
    with site() as s:
        assert s.get("/").status == 200


def test_a_site_is_there_at_once() -> None:
    """Tests of plugins are run often: 0.2 s is the most a site may take; it is about 0.02 s on a machine of today."""

    def opened() -> float:
        began = time.perf_counter()
        with site([Threaded]):
            return time.perf_counter() - began

    assert min(opened() for _ in range(3)) < 0.2
