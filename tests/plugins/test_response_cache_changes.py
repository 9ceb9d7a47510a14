"""What makes a stored answer wrong: unsafe methods on its URL, and what other plugins do before it is kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from frontd_plugins import response_cache

from tests.plugins.cachedsite import Pages, Play, ask, cached, field, how, status
from tests.wire import Line, settled

STORED = "fwd=uri-miss; stored"


async def change(play: Play, path: str = "/", *fields: str, method: str = "POST") -> int:
    """An unsafe request; the status of its answer."""
    head, _ = await play.get(path, *fields, method=method)
    assert how(head) in ("fwd=method", "")
    return status(head)


# ---------------------------------------------------------------------------------------------------- unsafe methods


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "MKCOL", "LOCK", "get", "X-OWN"])
async def test_what_changes_a_page_makes_it_forgotten(tmp_path: Path, method: str) -> None:
    async with cached(tmp_path) as play:
        for path in ("/", "/?x", "/b"):
            await play.get(path)
        assert await change(play, method=method) == 200
        assert await play.hows(("/",), ("/?x",), ("/b",)) == [STORED, "hit", "hit"]
        assert (await play.get())[1] == "GET / #3 for nobody"


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "PROPFIND", "SEARCH", "REPORT", "QUERY"])
async def test_what_only_looks_does_not(tmp_path: Path, method: str) -> None:
    async with cached(tmp_path) as play:
        await play.get()
        await play.get(method=method)
        assert await play.hows(("/",)) == ["hit"]


@pytest.mark.parametrize(("code", "forgotten"), [("204 X", 1), ("303 X", 1), ("400 X", 0), ("409 X", 0), ("500 X", 0)])
async def test_only_what_succeeds_counts(tmp_path: Path, code: str, forgotten: bool) -> None:
    async with cached(tmp_path) as play:
        await play.get()
        play.pages.status["/"], play.pages.bodies["/"] = code, b""
        assert await change(play) == int(code[:3])
        play.pages.status.clear()
        assert await play.hows(("/",)) == [STORED if forgotten else "hit"]


async def test_whoever_changes_it_by_whatever_spelling_and_wherever_it_went(tmp_path: Path) -> None:
    """RFC 9111 4.4: the URI is what counts, not the way to it nor who asked."""
    async with cached(tmp_path) as play:
        everywhere = (("/b",), ("/b", "X-Pool: app"), ("/b", "X-Pool: other"))
        for way in (("/%62", "X-Who: alice"), ("/x/../b", "X-Pool: other"), ("http://a.test/b",)):
            assert await play.hows(*everywhere, *everywhere) == [STORED] * 3 + ["hit"] * 3
            assert await change(play, *way) == 200
        assert await play.hows(*everywhere) == [STORED] * 3


async def test_a_change_of_which_nobody_knows_whether_it_was_made_counts(tmp_path: Path) -> None:
    async def done_and_gone(pages: Pages, line: Line, head: bytes) -> None:
        raise EOFError

    async with cached(tmp_path) as play:
        await play.get()
        play.pages.scripts["/"] = done_and_gone
        assert await change(play) == 502
        play.pages.scripts.clear()
        assert await play.hows(("/",)) == [STORED]


async def test_a_change_that_never_reached_the_app_does_not(tmp_path: Path) -> None:
    async with cached(tmp_path) as play:
        await play.get("/inside", "X-Who: alice")
        await play.get()
        assert await change(play, "/inside") == 401
        assert await change(play, "/", "X-Do: break") == 500
        assert await play.hows(("/",)) == ["hit"]


async def test_an_answer_that_another_plugin_replaced_was_a_change_all_the_same(tmp_path: Path) -> None:
    async with cached(tmp_path) as play:
        await play.get()
        assert await change(play, "/", "X-Do: replace") == 200
        assert await play.hows(("/",)) == [STORED]


@pytest.mark.parametrize("early", [0, 70])  # bytes of the answer that come before the change: none, or its head
async def test_what_was_asked_for_before_a_change_is_not_stored_after_it(
    tmp_path: Path, autojump_clock: object, early: int
) -> None:
    """And those who wait for it are not given it: one of them asks anew."""

    async def slow_get(pages: Pages, line: Line, head: bytes) -> None:
        made = pages.page(head)
        if head.startswith(b"GET"):
            await line.send(made[:early])
            await trio.sleep(2)
            made = made[early:]
        await line.send(made)

    async with cached(tmp_path) as play:
        play.pages.scripts["/"] = slow_get
        got: list[tuple[str, str]] = []
        began = trio.current_time()

        async def visit(*fields: str) -> None:
            head, body = await play.get("/", *fields)
            got.append((body, how(head)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(visit)
            nursery.start_soon(visit, "Cache-Control: no-cache")
            await settled()
            for _ in range(2):
                nursery.start_soon(visit)
                await settled()
            await trio.sleep(1)
            assert await change(play) == 200
            await trio.sleep(1.5)
            assert len(play.store) == 0
        assert sorted(body for body, _ in got[:2]) == ["GET / #1 for nobody", "GET / #2 for nobody"]
        assert sorted(got[2:]) == [("GET / #4 for nobody", "fwd=uri-miss; collapsed"), ("GET / #4 for nobody", STORED)]
        assert trio.current_time() - began == 3  # asked when the change was made, and two seconds on its way
        assert await play.hows(("/",)) == ["hit"]
        assert play.made == {"/": 4}


async def test_an_old_answer_that_took_long_does_not_replace_a_newer_one(
    tmp_path: Path, autojump_clock: object
) -> None:
    async def ever_faster(pages: Pages, line: Line, head: bytes) -> None:
        made, number = pages.page(head), pages.made["/"]
        await trio.sleep(5 - 2 * number)
        await line.send(made)

    async with cached(tmp_path) as play:
        play.pages.scripts["/"] = ever_faster
        async with trio.open_nursery() as nursery:
            nursery.start_soon(play.get)
            await trio.sleep(1)
            assert (await play.get("/", "Cache-Control: no-cache"))[1] == "GET / #2 for nobody"
        assert (await play.get())[1] == "GET / #2 for nobody"


async def test_one_url_does_not_fill_the_store_from_any_number_of_destinations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(response_cache, "_MOST_DESTINATIONS", 2)
    ways = (("/",), ("/", "X-Pool: app"), ("/", "X-Pool: other"))
    async with cached(tmp_path) as play:
        assert await play.hows(*ways, ways[2], ways[1], ways[0]) == [STORED] * 3 + ["hit", "hit", STORED]


# ---------------------------------------------------------------------------------------------------- other plugins


async def test_what_is_stored_is_as_of_the_end_of_admit_response(tmp_path: Path) -> None:
    async with cached(tmp_path) as play:
        head, _ = await play.get("/", "X-Do: add X-Added=1")
        assert field(head, "x-added") == "1"
        head, _ = await play.get("/")
        assert (how(head), field(head, "x-added")) == ("hit", "1")


@pytest.mark.parametrize(
    "what", ["Set-Cookie=a=b", "Cache-Control=no-store", "Cache-Control=private", "Vary=*", "Cache-Control=max-age=0"]
)
async def test_a_plugin_after_it_may_still_forbid_it(tmp_path: Path, what: str) -> None:
    async with cached(tmp_path) as play:
        await play.get("/", f"X-Do: add {what}")
        assert len(play.store) == 0


async def test_what_a_plugin_put_in_place_of_an_answer_is_not_stored_nor_what_it_replaced(tmp_path: Path) -> None:
    async with cached(tmp_path) as play:
        head, body = await play.get("/", "X-Do: replace")
        assert (field(head, "cache-status"), body) == ("", "replaced")
        assert len(play.store) == 0


async def test_where_a_plugin_failed_nothing_is_stored(tmp_path: Path) -> None:
    async with cached(tmp_path) as play:
        head, _ = await play.get("/", "X-Do: fail")
        assert (status(head), how(head)) == (200, "fwd=uri-miss")
        assert len(play.store) == 0


async def test_a_redirect_of_a_route_has_nothing_to_do_with_it(tmp_path: Path) -> None:
    async with cached(tmp_path, routes="/: app, /old/: {redirect: /new}") as play:
        for _ in range(2):
            head, _ = await play.get("/old/")
            assert (status(head), field(head, "cache-status")) == (308, "")
        assert len(play.store) == 0


async def test_hits_keep_a_connection_and_its_order(tmp_path: Path) -> None:
    async with cached(tmp_path) as play:
        play.pages.fields["/n"] = []
        line = await play.stage.connect()
        for path in ("/a", "/a", "/n", "/a", "/n", "/a"):
            _, body = await ask(line, path)
            assert body.startswith(f"GET {path} #".encode())
        await line.send(b"".join(b"GET %s HTTP/1.1\r\nHost: a.test\r\n\r\n" % path for path in (b"/a", b"/n", b"/a")))
        bodies = [(await line.message())[1] for _ in range(3)]
        assert bodies == [b"GET /a #1 for nobody", b"GET /n #3 for nobody", b"GET /a #1 for nobody"]
