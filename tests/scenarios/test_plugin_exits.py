"""What plugins raise that is no `Exception`, and cancellations of others: an exchange ends by it, never the front."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

import frontd
from frontd.net.traps import fault_of
from frontd.processes.runtime import BuildProblem
from tests.scenarios.plugged import made, plugged, reload, status, text, told
from tests.wire import OK, app, settled

RAISED: list[Callable[[], BaseException]] = [
    lambda: SystemExit(3),
    KeyboardInterrupt,
    asyncio.CancelledError,
    GeneratorExit,
    lambda: BaseExceptionGroup("several", [SystemExit(1)]),
    lambda: kept_cancellation(),
]
NAMES = ["SystemExit", "KeyboardInterrupt", "asyncio", "GeneratorExit", "group", "another's cancellation"]
each_of_them = pytest.mark.parametrize("make", RAISED, ids=NAMES)


def kept_cancellation() -> BaseException:
    """The cancellation of a task that is over."""

    async def main() -> BaseException:
        with trio.CancelScope() as scope:
            scope.cancel()
            try:
                await trio.lowlevel.checkpoint()
            except trio.Cancelled as error:
                kept: BaseException = error
                raise
        return kept

    found: list[BaseException] = []
    thread = threading.Thread(target=lambda: found.append(trio.run(main)))
    thread.start()
    thread.join()
    return found[0]


@each_of_them
@pytest.mark.parametrize("waits", [False, True], ids=["def", "async def"])
@pytest.mark.parametrize(
    ("hook", "answer"), [("filter_request", 500), ("rewrite_request", 500), ("admit_response", 200), ("log", 200)]
)
async def test_the_front_serves_on(
    tmp_path: Path, make: Callable[[], BaseException], hook: str, answer: int, waits: bool
) -> None:
    error = make()

    def plain(self: frontd.Plugin, exchange: frontd.Exchange) -> None:
        if exchange.request.path == "/bad":
            raise error

    async def later(self: frontd.Plugin, exchange: frontd.Exchange) -> None:
        await trio.lowlevel.checkpoint()
        plain(self, exchange)

    plugin = made("odd", **{hook: later if waits and hook != "log" else plain})
    async with app() as it, plugged(tmp_path, it.url, plugin) as stage:
        line, other = await stage.connect(), await stage.connect()
        head, _ = await line.get("/bad")
        assert status(head) == answer
        assert status((await line.get("/"))[0]) == 200
        assert status((await other.get("/"))[0]) == 200
        said = await told(stage)
    assert f"plugin odd.{hook}" in said


async def test_a_single_flight_that_hands_its_cancellation_on(tmp_path: Path) -> None:
    """The classic: whoever waits is given what the first one ended with."""

    class Shared(frontd.Plugin):
        name = "shared"
        ended: trio.Event | None = None
        error: BaseException | None = None

        async def filter_request(self, exchange: frontd.Exchange) -> frontd.Response | None:
            if exchange.request.path != "/shared":
                return None
            if self.ended is None:
                self.ended = trio.Event()
                try:
                    await trio.sleep_forever()
                except BaseException as error:
                    self.error = error
                    raise
                finally:
                    self.ended.set()
            await self.ended.wait()
            assert self.error is not None
            raise self.error

    async with app() as it, plugged(tmp_path, it.url, Shared) as stage:
        first, second, third = [await stage.connect() for _ in range(3)]
        await first.send(b"GET /shared HTTP/1.1\r\nHost: a\r\n\r\n")
        await settled()
        await second.send(b"GET /shared HTTP/1.1\r\nHost: a\r\n\r\n")
        await settled()
        await first.close()
        head, _ = await second.message()
        assert status(head) == 500
        assert status((await third.get("/"))[0]) == 200
        assert stage.front.is_ready


async def test_the_cancellation_of_an_exchange_is_no_fault(tmp_path: Path) -> None:
    async def waits(self: frontd.Plugin, exchange: frontd.Exchange) -> None:
        await trio.sleep_forever()

    async with app(OK) as it, plugged(tmp_path, it.url, made("waits", filter_request=waits)) as stage:
        line = await stage.connect()
        await line.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        await settled()
        await line.close()
        await settled()
        assert stage.reasons == {"Client_Reset": 1}
        assert "plugin waits" not in await told(stage)


@pytest.mark.parametrize("method", ["check", "prepare", "run"])
async def test_a_reload_that_exits_keeps_the_old_world(tmp_path: Path, method: str) -> None:
    def prepare(self: frontd.Plugin) -> None:
        raise SystemExit(0)

    def check(cls: type, settings: object, site: object) -> None:
        raise SystemExit(0)

    async def run(self: frontd.Plugin, *, task_status: object) -> None:
        raise SystemExit(0)

    member = {"check": classmethod(check), "prepare": prepare, "run": run}[method]
    good, bad = made("good"), made("bad", **{method: member})
    async with app() as it, plugged(tmp_path, it.url, good) as stage:
        report = await reload(stage, text(it.url, [bad]), bad)
        assert not report.ok
        assert "bad" in report.errors[0]
        assert "SystemExit" in report.errors[0]
        assert status((await (await stage.connect()).get("/"))[0]) == 200


async def test_a_front_that_ends_says_so(tmp_path: Path) -> None:
    """Whatever it is that ends it: a process without its front must not look alive."""

    async def ended() -> None:
        async with app() as it, plugged(tmp_path, it.url, made("fine")) as stage:
            assert stage.front._nursery is not None
            stage.front._nursery.cancel_scope.cancel()
            await trio.sleep_forever()

    with pytest.raises(BaseExceptionGroup) as caught:
        await ended()
    assert caught.group_contains(RuntimeError, match="the front has ended by itself")


async def test_only_the_cancellation_of_this_task_is_none() -> None:
    kept = kept_cancellation()
    assert isinstance(fault_of(kept), RuntimeError)
    assert fault_of(problem := BuildProblem("x")) is problem
    with trio.CancelScope() as scope:
        scope.cancel()
        assert fault_of(kept) is None
        assert fault_of(BaseExceptionGroup("", [kept, ValueError()])) is None
        assert isinstance(fault_of(SystemExit()), RuntimeError)
        await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught
