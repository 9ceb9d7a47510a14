"""Many at once ask for one page: one asks the app, and whatever becomes of it, the others are not left standing."""

from __future__ import annotations

import gc
from collections import Counter
from pathlib import Path

import pytest
import trio
from frontd_plugins import response_cache

from frontd import Response
from tests.plugins.cachedsite import FRESH, Page, Pages, Play, ask, cached, field, how, status
from tests.plugins.exchanges import asked, placed
from tests.wire import Line, configuration, settled

NO_STORE = ["Cache-Control: no-store"]


def after(seconds: float) -> Page:
    """A page that takes so long."""

    async def page(pages: Pages, line: Line, head: bytes) -> None:
        made = pages.page(head)
        await trio.sleep(seconds)
        await line.send(made)

    return page


class Crowd:
    """Visitors of ``/``: what each got, and how many seconds after the crowd came."""

    def __init__(self, play: Play, nursery: trio.Nursery) -> None:
        self.play = play
        self.nursery = nursery
        self.began = trio.current_time()
        self.got: list[tuple[str, str, float]] = []
        self.numbered: list[Line] = []

    async def come(self, count: int, *fields: str, method: str = "GET") -> list[Line]:
        """So many more, one after the other but at the same moment; the lines they are on."""
        lines = [await self.play.stage.connect() for _ in range(count)]
        for line in lines:
            self.nursery.start_soon(self._visit, line, fields, method)
            await settled()
        return lines

    async def come_numbered(self, count: int) -> None:
        """So many more who tell the app their number."""
        for number in range(count):
            self.numbered += await self.come(1, f"X-Number: {number}")

    async def leader_leaves(self) -> None:
        """The one whose request the app got last closes its connection."""
        await self.numbered[int(field(self.play.pages.heads[-1], "x-number"))].close()
        await settled()

    async def _visit(self, line: Line, fields: tuple[str, ...], method: str) -> None:
        try:
            head, body = await ask(line, "/", *fields, method=method)
        except (AssertionError, EOFError, trio.ClosedResourceError, trio.BrokenResourceError):  # it, or the app, left
            return
        made = body.decode().partition(" for ")[0] if status(head) == 200 else str(status(head))
        self.got.append((made, how(head), round(trio.current_time() - self.began, 3)))

    @property
    def counted(self) -> dict[tuple[str, str, float], int]:
        """How many got the same in the same way after the same time."""
        return dict(Counter(self.got))


async def test_a_stampede_makes_one_request_to_the_app(tmp_path: Path, autojump_clock: object) -> None:
    async with cached(tmp_path) as play:
        play.pages.scripts["/"] = after(2)
        async with trio.open_nursery() as nursery:
            crowd = Crowd(play, nursery)
            await crowd.come(200)
        assert crowd.counted == {
            ("GET / #1", "fwd=uri-miss; stored", 2): 1,
            ("GET / #1", "fwd=uri-miss; collapsed", 2): 199,
        }
        assert play.app.connections == 1
        await trio.sleep(60)
        async with trio.open_nursery() as nursery:
            crowd = Crowd(play, nursery)
            await crowd.come(3)
        assert crowd.counted == {
            ("GET / #2", "fwd=stale; stored", 2): 1,
            ("GET / #2", "fwd=uri-miss; collapsed", 2): 2,
        }


async def test_other_pages_do_not_wait(tmp_path: Path, autojump_clock: object) -> None:
    async with cached(tmp_path) as play:
        play.pages.scripts["/"] = after(2)
        async with trio.open_nursery() as nursery:
            await Crowd(play, nursery).come(2)
            for other in (("/?",), ("/", "X-Pool: other"), ("/b",)):
                began = trio.current_time()
                if other[0] == "/":
                    play.pages.scripts.clear()
                await play.get(*other)
                assert trio.current_time() == began


async def test_a_page_that_is_not_stored_stands_in_line_once(tmp_path: Path, autojump_clock: object) -> None:
    """Varnish's hit-for-miss: the first answer's head lets all go at once, and for two minutes nobody waits at all."""

    async def head_then_body(pages: Pages, line: Line, head: bytes) -> None:
        made = pages.page(head)
        cut = made.index(b"\r\n\r\n") + 4
        await trio.sleep(1)
        await line.send(made[:cut])
        await trio.sleep(10)
        await line.send(made[cut:])

    async with cached(tmp_path) as play:
        play.pages.scripts["/"], play.pages.fields["/"] = head_then_body, NO_STORE
        for expected in ([11] + [12] * 9, [11] * 10):  # not one after the other, and not after the body
            async with trio.open_nursery() as nursery:
                crowd = Crowd(play, nursery)
                await crowd.come(10)
            assert sorted(seconds for _, _, seconds in crowd.got) == expected
            assert {way for _, way, _ in crowd.got} == {"fwd=uri-miss; detail=no-store"}
        assert play.made == {"/": 20}
        await trio.sleep(120)
        async with trio.open_nursery() as nursery:
            crowd = Crowd(play, nursery)
            await crowd.come(2)
        assert sorted(seconds for _, _, seconds in crowd.got) == [11, 12]


async def test_a_page_that_can_be_stored_again_is(tmp_path: Path, autojump_clock: object) -> None:
    async with cached(tmp_path) as play:
        play.pages.scripts["/"], play.pages.fields["/"] = after(1), NO_STORE
        await play.get("/")
        play.pages.fields["/"] = [FRESH]
        assert await play.hows(("/",), ("/",)) == ["fwd=uri-miss; stored", "hit"]
        await trio.sleep(60)
        async with trio.open_nursery() as nursery:  # and its requests wait for one another again
            crowd = Crowd(play, nursery)
            await crowd.come(5)
        assert play.made == {"/": 3}


async def test_an_app_in_trouble_is_no_reason_not_to_wait_next_time(tmp_path: Path, autojump_clock: object) -> None:
    async with cached(tmp_path) as play:
        play.pages.scripts["/"], play.pages.status["/"] = after(1), "503 Busy"
        for _ in range(2):
            async with trio.open_nursery() as nursery:
                crowd = Crowd(play, nursery)
                await crowd.come(5)
            assert crowd.counted == {
                ("503", "fwd=uri-miss; detail=status", 1): 1,
                ("503", "fwd=uri-miss; detail=status", 2): 4,
            }


async def test_how_many_urls_are_remembered_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(response_cache, "_MOST_MARKS", 10)
    async with cached(tmp_path) as play:
        line = await play.stage.connect()
        for number in range(30):
            play.pages.fields[f"/{number}"] = NO_STORE
            await line.get(f"/{number}")
        assert len(play.cache._marks) == 10


@pytest.mark.parametrize("completes", [True, False])
async def test_nothing_of_an_exchange_is_left_to_the_collector_of_cycles(completes: bool) -> None:
    cache = placed(response_cache.ResponseCache)
    exchange = asked("/")
    exchange.pool = "app"
    gc.collect()
    gc.disable()
    try:
        assert cache.cache_lookup(exchange) is None
        exchange.response = Response(200, {"Cache-Control": "max-age=60"}, None)
        cache.admit_response(exchange)
        (want,) = exchange.response.captures
        if completes:
            want.then(Response(200, exchange.response.headers.copy(), b"whole"))
        cache.log(exchange)
        assert len(cache.store) == completes
        del exchange, want
        assert [one for one in gc.get_objects() if isinstance(one, response_cache.Trail)] == []
    finally:
        gc.enable()


# ---------------------------------------------------------------------------------------------------- the first fails


@pytest.mark.parametrize("sent", [0, 30, 80])  # bytes of the answer: nothing of it, some of its head, some of its body
async def test_when_the_first_one_leaves_another_asks_for_all(
    tmp_path: Path, autojump_clock: object, sent: int
) -> None:
    async def broken_off(pages: Pages, line: Line, head: bytes) -> None:
        made = pages.page(head)
        if pages.made["/"] == 1:
            await line.send(made[:sent])
            await trio.sleep(100)
        await trio.sleep(1)
        await line.send(made)

    async with cached(tmp_path) as play:
        play.pages.scripts["/"] = broken_off
        async with trio.open_nursery() as nursery:
            crowd = Crowd(play, nursery)
            (first,) = await crowd.come(1)
            await crowd.come(5)
            await trio.sleep(2)
            assert play.made == {"/": 1}
            await first.close()
        assert crowd.counted == {
            ("GET / #2", "fwd=uri-miss; stored", 3): 1,
            ("GET / #2", "fwd=uri-miss; collapsed", 3): 4,
        }
        assert play.made == {"/": 2}


async def test_those_who_wait_may_leave(tmp_path: Path, autojump_clock: object) -> None:
    async with cached(tmp_path) as play:
        play.pages.scripts["/"] = after(3)
        async with trio.open_nursery() as nursery:
            crowd = Crowd(play, nursery)
            await crowd.come(1)
            leavers = await crowd.come(3)
            await crowd.come(2)
            for line in leavers:
                await line.close()
        assert len(crowd.got) == 3
        assert play.made == {"/": 1}
        assert play.stage.reasons == {"Client_Reset": 3}


async def test_those_who_ask_for_all_may_leave_too(tmp_path: Path, autojump_clock: object) -> None:
    async with cached(tmp_path) as play:
        play.pages.scripts["/"] = after(1.5)
        async with trio.open_nursery() as nursery:
            crowd = Crowd(play, nursery)
            await crowd.come_numbered(5)
            for _ in range(3):
                await trio.sleep(1)
                await crowd.leader_leaves()
        assert crowd.counted == {
            ("GET / #4", "fwd=uri-miss; stored", 4.5): 1,
            ("GET / #4", "fwd=uri-miss; collapsed", 4.5): 1,
        }


async def test_when_the_app_fails_the_first_one_the_others_ask_at_once(tmp_path: Path, autojump_clock: object) -> None:
    async def fail_at_first(pages: Pages, line: Line, head: bytes) -> None:
        made = pages.page(head)
        await trio.sleep(1)
        if pages.made["/"] <= 2:  # frontd tries an idempotent request twice
            raise EOFError
        await line.send(made)

    async with cached(tmp_path) as play:
        play.pages.scripts["/"] = fail_at_first
        async with trio.open_nursery() as nursery:
            crowd = Crowd(play, nursery)
            await crowd.come(5)
        assert sorted(way for _, way, _ in crowd.got) == ["", *["fwd=uri-miss; stored"] * 4]
        assert {round(seconds) for _, _, seconds in crowd.got} == {2, 3}
        assert play.made == {"/": 6}


async def test_when_the_answer_breaks_off_the_others_ask_at_once(tmp_path: Path, autojump_clock: object) -> None:
    """They would not do better one after the other."""

    async def break_off(pages: Pages, line: Line, head: bytes) -> None:
        made = pages.page(head)
        await line.send(made[:-5])
        await trio.sleep(1)
        if pages.made["/"] == 1:
            raise EOFError
        await line.send(made[-5:])

    async with cached(tmp_path) as play:
        play.pages.scripts["/"] = break_off
        async with trio.open_nursery() as nursery:
            crowd = Crowd(play, nursery)
            await crowd.come(5)
        assert sorted((way, seconds) for _, way, seconds in crowd.got) == [("fwd=uri-miss; stored", 2)] * 4
        assert play.made == {"/": 5}


@pytest.mark.parametrize("what", ["fail", "replace", "add Set-Cookie=a"])
async def test_when_another_plugin_spoils_it_the_others_go_on(
    tmp_path: Path, autojump_clock: object, what: str
) -> None:
    async with cached(tmp_path) as play:
        play.pages.scripts["/"] = after(1)
        async with trio.open_nursery() as nursery:
            crowd = Crowd(play, nursery)
            await crowd.come(1, f"X-Do: {what}")
            await crowd.come(3)
        assert [(way, seconds) for _, way, seconds in crowd.got[1:]] == [("fwd=uri-miss; stored", 2)] * 3
        assert await play.hows(("/",)) == ["hit"]


async def test_a_fault_before_the_app_is_asked_holds_nobody_up(tmp_path: Path) -> None:
    async with cached(tmp_path) as play:
        assert status((await play.get("/", "X-Do: break"))[0]) == 500
        assert await play.hows(("/",), ("/",)) == ["fwd=uri-miss; stored", "hit"]


async def test_when_the_answer_turns_out_too_long_the_others_go_on(tmp_path: Path, autojump_clock: object) -> None:
    async def chunked(pages: Pages, line: Line, head: bytes) -> None:
        await line.send(f"HTTP/1.1 200 OK\r\n{FRESH}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        for _ in range(3):
            await line.send(b"8\r\n12345678\r\n")
            await trio.sleep(1)
        await line.send(b"0\r\n\r\n")

    async with cached(tmp_path, "max_entry: 20") as play:
        play.pages.scripts["/"] = chunked
        async with trio.open_nursery() as nursery:
            began = trio.current_time()

            async def visit() -> None:
                line = await play.stage.connect()
                _, body = await line.get()
                assert body == b"12345678" * 3
                seconds.append(round(trio.current_time() - began))

            seconds: list[int] = []
            for _ in range(3):
                nursery.start_soon(visit)
                await settled()
        assert seconds == [3, 5, 5]  # it was too long after 2 s
        assert play.made == {"/": 3}


async def test_and_at_once_however_slowly_it_goes_on(tmp_path: Path, autojump_clock: object) -> None:
    """Who asked first gets it for a long time; nobody waits for more than what shows that it will not be stored."""

    async def endless(pages: Pages, line: Line, head: bytes) -> None:
        is_first = pages.made["/"] == 1
        await line.send(f"HTTP/1.1 200 OK\r\n{FRESH}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        for _ in range(4):
            await line.send(b"8\r\n12345678\r\n")
            await trio.sleep(1)
        if is_first:
            await trio.sleep(40)
        await line.send(b"0\r\n\r\n")

    async with cached(tmp_path, "max_entry: 20, lock_timeout: 50s") as play:
        play.pages.scripts["/"] = endless
        seconds: list[int] = []

        async def visit() -> None:
            line = await play.stage.connect()
            _, body = await line.get()
            assert body == b"12345678" * 4
            seconds.append(round(trio.current_time() - began))

        async with trio.open_nursery() as nursery:
            began = trio.current_time()
            for _ in range(3):
                nursery.start_soon(visit)
                await settled()
            await trio.sleep(20)
            assert seconds == [6, 6]  # 2 s until it was too long, and 4 s of their own
            nursery.start_soon(visit)  # and of this URL it is remembered
        assert seconds == [6, 6, 24, 44]


# ---------------------------------------------------------------------------------------------------- who waits


@pytest.mark.parametrize(("setting", "patience"), [("", 5), ("lock_timeout: 2s", 2)])
async def test_nobody_waits_longer_than_lock_timeout(
    tmp_path: Path, autojump_clock: object, setting: str, patience: float
) -> None:
    async with cached(tmp_path, setting) as play:
        play.pages.scripts["/"] = after(20)
        async with trio.open_nursery() as nursery:
            crowd = Crowd(play, nursery)
            await crowd.come(1)
            await trio.sleep(1)
            await crowd.come(3)
        assert crowd.counted[("GET / #1", "fwd=uri-miss; stored", 20)] == 1
        assert sorted(seconds for _, _, seconds in crowd.got) == [20, *[21 + patience] * 3]
        assert play.made == {"/": 4}


async def test_with_leavers_before_it_nobody_waits_longer_either(tmp_path: Path, autojump_clock: object) -> None:
    async with cached(tmp_path) as play:
        play.pages.scripts["/"] = after(20)
        async with trio.open_nursery() as nursery:
            crowd = Crowd(play, nursery)
            await crowd.come_numbered(10)
            for _ in range(4):
                await trio.sleep(0.9)
                await crowd.leader_leaves()
            await trio.sleep(1.3)
            assert play.made == {"/": 5}
            await trio.sleep(0.2)
            assert play.made == {"/": 10}
        assert sorted(seconds for _, _, seconds in crowd.got) == [23.6, *[25] * 5]


async def test_lock_timeout_0_is_no_waiting(tmp_path: Path, autojump_clock: object) -> None:
    async with cached(tmp_path, "lock_timeout: 0") as play:
        play.pages.scripts["/"] = after(1)
        async with trio.open_nursery() as nursery:
            crowd = Crowd(play, nursery)
            await crowd.come(3)
        assert {seconds for _, _, seconds in crowd.got} == {1}
        assert play.made == {"/": 3}
        assert await play.hows(("/",)) == ["hit"]


async def test_head_and_conditions_wait_but_nobody_waits_for_them(tmp_path: Path, autojump_clock: object) -> None:
    async with cached(tmp_path) as play:
        play.pages.scripts["/"], play.pages.fields["/"] = after(2), [FRESH, 'ETag: "a"']
        async with trio.open_nursery() as nursery:
            crowd = Crowd(play, nursery)
            await crowd.come(1, method="HEAD")
            await crowd.come(1, 'If-None-Match: "b"')
            await trio.sleep(1)
            await crowd.come(1)
            await crowd.come(1, method="HEAD")
            await crowd.come(1, 'If-None-Match: "a"')
        assert crowd.counted == {
            ("", "fwd=uri-miss", 2): 1,
            ("GET / #2", "fwd=uri-miss; stored", 2): 1,
            ("GET / #3", "fwd=uri-miss; stored", 3): 1,
            ("", "fwd=uri-miss; collapsed", 3): 1,
            ("304", "fwd=uri-miss; collapsed", 3): 1,
        }


async def test_who_wants_a_new_one_does_not_wait_for_an_old_one(tmp_path: Path, autojump_clock: object) -> None:
    async with cached(tmp_path) as play:
        play.pages.scripts["/"] = after(2)
        async with trio.open_nursery() as nursery:
            crowd = Crowd(play, nursery)
            await crowd.come(1)
            await trio.sleep(1)
            for wish in ("no-cache", "no-store", "max-age=0"):
                await crowd.come(1, f"Cache-Control: {wish}")
            await crowd.come(1, "Range: bytes=0-1")
        assert sorted(seconds for _, _, seconds in crowd.got) == [2, 3, 3, 3, 3]


# ---------------------------------------------------------------------------------------------------- over a reload


@pytest.mark.parametrize("settings", ["", "max_entry: 1KiB"])
async def test_what_is_stored_is_there_after_a_reload(tmp_path: Path, settings: str) -> None:
    """And who is waiting then is answered; a plugin with equal settings is the same one."""
    go_on = trio.Event()

    async def held(pages: Pages, line: Line, head: bytes) -> None:
        await go_on.wait()
        await line.send(pages.page(head))

    async with cached(tmp_path) as play:
        await play.get("/before")
        play.pages.scripts["/"] = held
        before = play.cache
        async with trio.open_nursery() as nursery:
            crowd = Crowd(play, nursery)
            await crowd.come(3)
            text = play.text.replace("response_cache: {}", f"response_cache: {{{settings}}}")
            report = await play.stage.front.reload(lambda: configuration(text, tmp_path))
            assert report.errors == []
            assert (play.cache is before) == (not settings)
            assert await play.hows(("/before",)) == ["hit"]
            go_on.set()
        assert sorted((made, way) for made, way, _ in crowd.got) == [
            ("GET / #1", "fwd=uri-miss; collapsed"),
            ("GET / #1", "fwd=uri-miss; collapsed"),
            ("GET / #1", "fwd=uri-miss; stored"),
        ]
        assert await play.hows(("/",)) == ["hit"]
        assert not before._flights
        assert not before._fetches
