"""Whose answer is it?  Nobody sees a page that was made for somebody else."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import trio

from tests.net.pki import Pki
from tests.net.tlsclient import client_context, locked_site, tls_line
from tests.plugins.cachedsite import FRESH, Pages, Play, ask, cached, field, how, status
from tests.wire import Line, app, front, settled

SHARED = "Cache-Control: public, max-age=60"
ALICE, BOB, NOBODY = ("X-Who: alice",), ("X-Who: bob",), ()


@pytest.mark.parametrize("who", [ALICE, ("Authorization: Basic YWxpY2U6eA==",), ("authorization: ",)])
async def test_a_page_for_somebody_is_neither_stored_nor_given(tmp_path: Path, who: tuple[str, ...]) -> None:
    async with cached(tmp_path) as play:
        for number in (1, 2):
            head, body = await play.get("/", *who)
            assert (how(head), body.startswith(f"GET / #{number} for ")) == ("fwd=uri-miss; detail=identity", True)
        assert len(play.store) == 0
        assert (await play.get("/"))[1] == "GET / #3 for nobody"
        head, body = await play.get("/", *who)
        assert (how(head), body.startswith("GET / #4 for ")) == ("fwd=bypass; detail=identity", True)
        assert (await play.get("/"))[1] == "GET / #3 for nobody"  # what was stored stays, and is nobody's


@pytest.mark.parametrize("control", ["public, max-age=60", "s-maxage=60", "public, s-maxage=60, max-age=0"])
async def test_what_the_app_calls_public_is_everybodys(tmp_path: Path, control: str) -> None:
    async with cached(tmp_path) as play:
        play.pages.fields["/"] = [f"Cache-Control: {control}", "X-Remote-User: alice", "X-Kept: 1"]
        head, body = await play.get("/", *ALICE)
        assert (how(head), body) == ("fwd=uri-miss; stored", "GET / #1 for alice")
        assert field(head, "x-remote-user") == "alice"
        for who in (BOB, NOBODY, ALICE, ("Authorization: Bearer x",)):
            head, body = await play.get("/", *who)
            assert (how(head), body, field(head, "x-kept")) == ("hit", "GET / #1 for alice", "1")
            assert field(head, "x-remote-user") == ""  # the page is public, who asked for it is not


@pytest.mark.parametrize("control", ["max-age=60, must-revalidate", "max-age=60, proxy-revalidate", "max-age=60"])
async def test_nothing_less_than_public_or_s_maxage_will_do(tmp_path: Path, control: str) -> None:
    async with cached(tmp_path) as play:
        play.pages.fields["/"] = [f"Cache-Control: {control}"]
        await play.get("/", *ALICE)
        assert (await play.get("/", *BOB))[1] == "GET / #2 for bob"
        assert (await play.get("/"))[1] == "GET / #3 for nobody"
        assert (await play.get("/", *BOB))[1] == "GET / #4 for bob"


async def test_public_is_no_way_round_the_rules_that_stand_before_the_cache(tmp_path: Path) -> None:
    async with cached(tmp_path) as play:
        play.pages.fields["/inside"] = [SHARED]
        assert how((await play.get("/inside", *ALICE))[0]) == "fwd=uri-miss; stored"
        for method in ("GET", "HEAD", "POST"):
            head, body = await play.get("/inside", method=method)
            assert (status(head), field(head, "cache-status")) == (401, "")
            assert "alice" not in body
        assert status((await play.get("/inside", 'If-None-Match: *'))[0]) == 401
        assert (await play.get("/inside", *BOB))[1] == "GET /inside #1 for alice"


async def test_a_page_that_ceases_to_be_public_ceases_to_be_shared(tmp_path: Path) -> None:
    async with cached(tmp_path) as play:
        play.pages.fields["/"] = [SHARED]
        await play.get("/")
        assert (await play.get("/", *ALICE))[1] == "GET / #1 for nobody"
        play.pages.fields["/"] = [FRESH]
        await play.get("/", "Cache-Control: no-cache")
        assert (await play.get("/", *ALICE))[1] == "GET / #3 for alice"
        assert (await play.get("/"))[1] == "GET / #2 for nobody"


async def test_conditions_tell_nobody_what_was_stored_for_another(tmp_path: Path) -> None:
    async with cached(tmp_path) as play:
        play.pages.fields["/"] = [FRESH, 'ETag: "secret"']
        await play.get("/")
        head, body = await play.get("/", *ALICE, 'If-None-Match: "secret"')
        assert (status(head), body) == (200, "GET / #2 for alice")
        assert status((await play.get("/", *ALICE, "Cache-Control: only-if-cached"))[0]) == 504


async def test_alice_bob_and_nobody_in_any_order_on_any_connection_pipelined_or_not(tmp_path: Path) -> None:
    """A page is for whoever asked, or it was made for nobody and nobody asked, or it is public."""
    chance = random.Random(5)
    people = {"alice": ALICE, "bob": BOB, "nobody": NOBODY}
    async with cached(tmp_path) as play:
        paths = {f"/{number}": chance.choice([[FRESH], [FRESH], [SHARED], ["Cache-Control: no-store"], []])
                 for number in range(12)}  # fmt: skip
        paths |= {"/fresh": [FRESH], "/public": [SHARED]}
        play.pages.fields.update(paths)
        seen = set()

        async def visitor(rounds: int) -> None:
            line = await play.stage.connect()
            for _ in range(rounds):
                size = chance.choice([1, 5])
                batch = [(chance.choice(list(people)), chance.choice(list(paths))) for _ in range(size)]
                heads = ("\r\n".join([f"GET {path} HTTP/1.1", "Host: a.test", *people[who]]) for who, path in batch)
                await line.send("".join(f"{head}\r\n\r\n" for head in heads).encode())
                for who, path in batch:
                    head, body = await line.message()
                    assert body.startswith(f"GET {path} #".encode())
                    made_for = body.decode().rpartition(" ")[2]
                    assert made_for == who or paths[path] == [SHARED], (who, path, body, head)
                    seen.add((who, how(head).partition(";")[0]))

        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(visitor, 20)
    assert {("nobody", "hit"), ("alice", "hit"), ("bob", "fwd=bypass"), ("alice", "fwd=uri-miss")} <= seen


async def slow(pages: Pages, line: Line, head: bytes) -> None:
    """A page that takes a second."""
    await trio.sleep(1)
    await line.send(pages.page(head))


async def together(play: Play, *people: tuple[str, ...]) -> list[tuple[str, str, float]]:
    """All ask at once: for whom the page was made that each got, how the cache says it came about, after how long."""
    got: list[tuple[str, str, float]] = []
    began = trio.current_time()

    async def visit(who: tuple[str, ...]) -> None:
        head, body = await play.get("/", *who)
        got.append((body.rpartition(" ")[2], how(head), round(trio.current_time() - began, 3)))

    async with trio.open_nursery() as nursery:
        for who in people:
            nursery.start_soon(visit, who)
            await settled()
    return sorted(got)


async def test_nobody_waits_for_what_will_be_anothers(tmp_path: Path, autojump_clock: object) -> None:
    async with cached(tmp_path) as play:
        play.pages.scripts["/"] = slow
        assert await together(play, NOBODY, NOBODY, ALICE, BOB) == [
            ("alice", "fwd=uri-miss; detail=identity", 1),
            ("bob", "fwd=uri-miss; detail=identity", 1),
            ("nobody", "fwd=uri-miss; collapsed", 1),
            ("nobody", "fwd=uri-miss; stored", 1),
        ]
        assert await together(play, NOBODY, ALICE, BOB) == [
            ("alice", "fwd=bypass; detail=identity", 1),
            ("bob", "fwd=bypass; detail=identity", 1),
            ("nobody", "hit", 0),
        ]


async def test_where_the_last_answer_was_everybodys_one_asks_for_all(tmp_path: Path, autojump_clock: object) -> None:
    async with cached(tmp_path) as play:
        play.pages.scripts["/"], play.pages.fields["/"] = slow, [SHARED]
        await play.get("/")
        await trio.sleep(60)
        assert await together(play, ALICE, BOB, BOB) == [
            ("alice", "fwd=stale; stored", 1),
            ("alice", "fwd=uri-miss; collapsed", 1),
            ("alice", "fwd=uri-miss; collapsed", 1),
        ]
        play.pages.fields["/"] = [FRESH]
        await trio.sleep(60)
        waited = await together(play, ALICE, BOB, BOB)  # it is not any more: they are told by the first one's answer
        assert [(whom, seconds) for whom, _, seconds in waited] == [("alice", 1), ("bob", 2), ("bob", 2)]


async def test_and_when_that_one_leaves_another_does(tmp_path: Path, autojump_clock: object) -> None:
    async with cached(tmp_path) as play:
        play.pages.scripts["/"], play.pages.fields["/"] = slow, [SHARED]
        await play.get("/")
        await trio.sleep(60)
        line = await play.stage.connect()
        await line.send(b"GET / HTTP/1.1\r\nHost: a.test\r\nX-Who: alice\r\n\r\n")
        await settled()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(together, play, BOB, BOB, BOB)
            await settled()
            await line.close()
        assert play.made == {"/": 3}


async def test_a_client_certificate_is_somebody(pki: Pki, tmp_path: Path) -> None:
    pages = Pages()
    pages.fields["/public"] = [SHARED]
    async with app(pages.serve) as it:
        async with front(locked_site(pki, it.url, extra="plugins: [response_cache]"), tmp_path) as stage:
            known = await tls_line(stage, client_context(pki, "good"), "optional.test")
            stranger = await tls_line(stage, client_context(pki), "optional.test")
            for line, way in (
                (known, "fwd=uri-miss; detail=identity"),
                (stranger, "fwd=uri-miss; stored"),
                (known, "fwd=bypass; detail=identity"),
                (stranger, "hit"),
            ):
                assert how((await ask(line, "/", host="optional.test"))[0]) == way
            assert how((await ask(known, "/public", host="optional.test"))[0]) == "fwd=uri-miss; stored"
            assert how((await ask(stranger, "/public", host="optional.test"))[0]) == "hit"
            await known.close()
            await stranger.close()


async def test_http_and_https_are_two_pages(pki: Pki, tmp_path: Path) -> None:
    """An app that redirects http to https would else send https clients round in circles."""
    pages = Pages()
    async with app(pages.serve) as it:
        text = f"""
listen: {{http: {{port: 0}}, https: {{port: 0}}}}
tls: {{certificates: [{pki.entry('a')}]}}
plugins: [response_cache]
sites: {{main: {{urls: ["http://*/", "https://*/"], routes: {{/: "{it.url}"}}}}}}
"""
        async with front(text, tmp_path) as stage:
            plain, secure = await stage.connect(), await tls_line(stage, client_context(pki), "a.test")
            for way in ("fwd=uri-miss; stored", "hit"):
                assert [how((await ask(line))[0]) for line in (plain, secure)] == [way, way]
            await secure.close()
