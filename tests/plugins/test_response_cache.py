"""The response cache as clients meet it: what is given again, for how long, and what it says about that."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest
import trio
from frontd_plugins._cache_entry import NOT_KEPT, OBSTACLES

from tests.plugins.cachedsite import FRESH, Pages, Play, ask, cached, field, how, status
from tests.wire import Line, settled

OLD, MADE, NEW = (f"Sun, 06 Nov 1994 08:49:{second} GMT" for second in (36, 37, 38))

# ---------------------------------------------------------------------------------------------------- again


async def test_a_page_is_made_once_and_given_again_until_it_is_stale(tmp_path: Path, autojump_clock: object) -> None:
    async with cached(tmp_path) as play:
        head, body = await play.get("/a")
        assert (how(head), field(head, "age"), body) == ("fwd=uri-miss; stored", "", "GET /a #1 for nobody")
        await trio.sleep(7)
        head, body = await play.get("/a")
        assert field(head, "cache-status") == "frontd; hit; ttl=53"
        assert (field(head, "age"), body) == ("7", "GET /a #1 for nobody")
        await trio.sleep(52.9)
        head, body = await play.get("/a")
        assert (field(head, "cache-status"), field(head, "age")) == ("frontd; hit; ttl=0", "59")
        await trio.sleep(0.1)
        head, body = await play.get("/a")
        assert (how(head), body) == ("fwd=stale; stored", "GET /a #2 for nobody")
        assert (await play.hows(("/a",))) == ["hit"]


async def test_a_stored_answer_has_the_fields_it_was_stored_with(tmp_path: Path, autojump_clock: object) -> None:
    async with cached(tmp_path) as play:
        play.pages.fields["/"] = [
            FRESH, "X-One: 1", "x-ONE: 2", "Content-Type: text/plain", 'ETag: "a"', f"Date: {MADE}",
            "Cache-Status: Origin; hit; ttl=9", "Via: 1.1 inner",
        ]  # fmt: skip
        first, second = [(await play.get())[0] for _ in range(2)]
        for name in ("x-one", "content-type", "etag", "date", "via", "cache-control", "content-length"):
            assert field(first, name) == field(second, name) != "", name
        assert field(second, "x-one") == "1, 2"
        assert b"\r\nx-ONE: 2\r\n" in second
        assert field(second, "cache-status") == "Origin; hit; ttl=9, frontd; hit; ttl=60"
        assert field(first, "x-rewritten") != field(second, "x-rewritten")


async def test_what_plugins_do_to_an_answer_on_its_way_out_does_not_touch_the_store(tmp_path: Path) -> None:
    async with cached(tmp_path) as play:
        heads = [(await play.get())[0] for _ in range(4)]
        assert [head.count(b"X-Rewritten") for head in heads] == [1, 1, 1, 1]
        assert [field(head, "cache-status").count("frontd") for head in heads] == [1, 1, 1, 1]


async def test_fields_of_one_client_or_connection_are_not_given_to_another(tmp_path: Path) -> None:
    async with cached(tmp_path) as play:
        names = sorted(name.decode() for name in NOT_KEPT - {b"set-cookie", b"content-length", b"transfer-encoding"})
        play.pages.fields["/"] = [FRESH, "X_Remote.User: alice", "X-Kept: 1", *(f"{name}: 5" for name in names)]
        first, second = [(await play.get())[0] for _ in range(2)]
        assert (how(second), field(second, "x-kept"), field(second, "age")) == ("hit", "1", "5")
        assert field(first, "x-remote-user") == field(first, "www-authenticate") == "5"  # its own client sees them
        for name in {*names, "x_remote.user"} - {"age"}:
            assert field(second, name) == "", name


@pytest.mark.parametrize("code", ["200 OK", "203 X", "204 No", "300 X", "301 X", "308 X", "404 X", "410 X"])
async def test_statuses_that_are_given_again(tmp_path: Path, code: str) -> None:
    async with cached(tmp_path) as play:
        play.pages.status["/"] = code
        if code.startswith("204"):
            play.pages.bodies["/"] = b""
        play.pages.fields["/"] = [FRESH, "Location: /there"]
        (first, body), (second, again) = [await play.get() for _ in range(2)]
        assert status(first) == status(second) == int(code[:3])
        assert (body, field(first, "location")) == (again, field(second, "location"))
        assert (how(first), how(second)) == ("fwd=uri-miss; stored", "hit")


@pytest.mark.parametrize(
    ("fields", "code", "detail"),
    [
        ((), "200 OK", "not-fresh"),
        (("Cache-Control: private, max-age=60",), "200 OK", "private"),
        ((FRESH, "Set-Cookie: a=b"), "200 OK", "set-cookie"),
        ((FRESH, "Vary: Accept-Encoding"), "200 OK", "vary"),
        ((FRESH,), "206 Partial Content", "status"),
        ((FRESH,), "302 Found", "status"),
        ((FRESH,), "500 Oops", "status"),
        (("Cache-Control: max-age=60; public",), "200 OK", "malformed"),
        ((FRESH, "Age: 60"), "200 OK", "not-fresh"),
    ],
)
async def test_what_is_not_given_again_and_why(
    tmp_path: Path, fields: tuple[str, ...], code: str, detail: str
) -> None:
    async with cached(tmp_path) as play:
        play.pages.fields["/"], play.pages.status["/"] = list(fields), code
        assert await play.hows(("/",), ("/",)) == [f"fwd=uri-miss; detail={detail}"] * 2
        assert play.made == {"/": 2}
        assert len(play.store) == 0


async def test_frontds_own_answers_have_no_cache_status(tmp_path: Path) -> None:
    """RFC 9211 2: they are based on nothing stored."""

    async def hang_up(pages: Pages, line: Line, head: bytes) -> None:
        raise EOFError

    async with cached(tmp_path) as play:
        play.pages.scripts["/"] = hang_up
        head, _ = await play.get()
        assert (status(head), field(head, "cache-status")) == (502, "")
        head, _ = await play.get("/inside")
        assert (status(head), field(head, "cache-status")) == (401, "")
        assert len(play.store) == 0


# ---------------------------------------------------------------------------------------------------- whole or not


async def test_an_answer_that_breaks_off_is_not_stored(tmp_path: Path) -> None:
    async def break_off(pages: Pages, line: Line, head: bytes) -> None:
        await line.send(f"HTTP/1.1 200 OK\r\n{FRESH}\r\nContent-Length: 10\r\n\r\n12345".encode())
        raise EOFError

    async with cached(tmp_path) as play:
        play.pages.scripts["/"] = break_off
        for _ in range(2):
            line = await play.stage.connect()
            await line.send(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
            assert b"\r\n\r\n12345" in await line.read_to_end()
        assert play.made["/"] == 2
        assert len(play.store) == 0


async def test_a_chunked_answer_is_stored_whole(tmp_path: Path) -> None:
    async def chunks(pages: Pages, line: Line, head: bytes) -> None:
        await line.send(f"HTTP/1.1 200 OK\r\n{FRESH}\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n".encode())
        for part in (b"3\r\nabc\r\n", b"2\r\nde\r\n", b"0\r\nX-Sum: 1\r\n\r\n"):
            await line.send(part)
            await settled()

    async with cached(tmp_path) as play:
        play.pages.scripts["/"] = chunks
        line = await play.stage.connect()
        first = await line.get()
        head, body = await line.get()
        assert (first[1], body, how(head)) == (b"abcde", b"abcde", "hit")
        framing = [field(head, name) for name in ("content-length", "transfer-encoding", "trailer")]
        assert framing == ["5", "", ""]
        assert play.made["/"] == 1


@pytest.mark.parametrize("chunked", [False, True])
async def test_max_entry_is_exact(tmp_path: Path, chunked: bool) -> None:
    async def page(pages: Pages, line: Line, head: bytes) -> None:
        body = b"x" * (100 if b" /small" in head else 101)
        if chunked:
            framing, data = "Transfer-Encoding: chunked", b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
        else:
            framing, data = f"Content-Length: {len(body)}", body
        await line.send(f"HTTP/1.1 200 OK\r\n{FRESH}\r\n{framing}\r\n\r\n".encode() + data)

    async with cached(tmp_path, "max_entry: 100") as play:
        play.pages.scripts["/small"] = play.pages.scripts["/large"] = page
        line = await play.stage.connect()
        for path, size in (("/small", 100), ("/large", 101)):
            answers = [await line.get(path) for _ in range(2)]
            assert [len(body) for _, body in answers] == [size, size]
        if not chunked:  # known from the start, and said
            assert how(answers[0][0]) == "fwd=uri-miss; detail=too-large"
        assert play.made == {"/small": 1, "/large": 2}


# ---------------------------------------------------------------------------------------------------- the key


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("/a",), ("/A",)),
        (("/a",), ("/a/",)),
        (("/a",), ("/a?",)),
        (("/a?x=1",), ("/a?x=2",)),
        (("/a%2Fb",), ("/a/b",)),
        (("/a", "X-Pool: app"), ("/a", "X-Pool: other")),
        (("/a",), ("/a", "X-Pool: app")),  # another way to the same pool: another route
    ],
)
async def test_what_is_another_page(tmp_path: Path, one: tuple[str, ...], other: tuple[str, ...]) -> None:
    async with cached(tmp_path) as play:
        assert await play.hows(one, other, one, other) == ["fwd=uri-miss; stored"] * 2 + ["hit"] * 2


async def test_hosts_and_the_ports_in_them_are_apart(tmp_path: Path) -> None:
    """An app makes links of the port it is told, and those would be everybody's."""
    async with cached(tmp_path) as play:
        hosts = ["a.test", "b.test", "a.test:1337", "a.test.", "[::1]"]
        for expected in ("fwd=uri-miss; stored", "hit"):
            assert [how((await play.get(host=host))[0]) for host in hosts] == [expected] * len(hosts)
        assert how((await play.get(host="A.TEST"))[0]) == "hit"


async def test_other_spellings_of_a_path_are_the_same_page(tmp_path: Path) -> None:
    async with cached(tmp_path) as play:
        assert await play.hows(("/a/b",), ("/a/%62",), ("/x/../a/./b",), ("http://a.test/a/b",)) == [
            "fwd=uri-miss; stored", "hit", "hit", "hit",
        ]  # fmt: skip


async def test_what_only_a_trusted_proxy_can_tell_the_app_is_part_of_the_key(tmp_path: Path) -> None:
    said = [
        ("X-Forwarded-Host: evil.test",), ("X-Forwarded-Proto: https",), ("X-Forwarded-Port: 1",),
        ("X-Forwarded-Prefix: /x",), ("Forwarded: for=1.2.3.4;proto=https",), ("Forwarded: host=evil.test",),
        ('Forwarded: host="a;for=1.2.3.4"',), ('Forwarded: host="a;for=5.6.7.8"',), ("X-Forwarded-Ssl: on",),
        ("X-Forwarded-Scheme: https",), ("X-Forwarded-Protocol: ssl",), ("X-Url-Scheme: https",), ("X-Scheme: https",),
        ("Front-End-Https: on",), ("X-Host: evil.test",), ("X-Original-Host: evil.test",),
        ("X-HTTP-Host-Override: evil.test",), ("X-Forwarded-Server: evil.test",), ("X.Forwarded.Host: evil.test",),
    ]  # fmt: skip
    async with cached(tmp_path, extra="trusted_proxies: [127.0.0.1]") as play:
        paths = [("/", *fields) for fields in said]
        assert await play.hows(("/",), *paths) == ["fwd=uri-miss; stored"] * (1 + len(said))
        assert await play.hows(("/",), *paths) == ["hit"] * (1 + len(said))
        for client in ("X-Forwarded-For: 5.6.7.8", "X-Real-IP: 5.6.7.8", "Forwarded: for=5.6.7.8;by=x, for=y"):
            assert await play.hows(("/", client)) == ["hit"], client  # who asks makes no other page
        assert await play.hows(("/", 'Forwarded: for="[::1]:5;x";proto=https')) == ["hit"]


async def test_what_a_stranger_says_of_the_url_neither_reaches_the_app_nor_parts_the_store(tmp_path: Path) -> None:
    async with cached(tmp_path) as play:
        said = [
            "Forwarded: host=evil.test", "X-Forwarded-Host: evil.test", "X-Forwarded-Ssl: on", "X-Host: evil.test",
            "X-Forwarded-Server: evil.test", "X-Original-Host: evil.test", "X-HTTP-Host-Override: evil.test",
            "X-Forwarded-Scheme: evil", "X-Forwarded-Protocol: evil", "X-Url-Scheme: evil", "Front-End-Https: evil",
        ]  # fmt: skip
        assert await play.hows(*(("/", one) for one in said), ("/",)) == [
            "fwd=uri-miss; stored", *["hit"] * len(said),
        ]  # fmt: skip
        assert b"evil" not in play.pages.heads[0]


async def test_head_is_answered_from_a_get_but_never_stored(tmp_path: Path) -> None:
    async with cached(tmp_path) as play:
        line = await play.stage.connect()
        for _ in range(2):
            head, _ = await ask(line, method="HEAD")
            assert how(head) == "fwd=uri-miss"
        await ask(line)
        head, _ = await ask(line, method="HEAD")
        assert (how(head), field(head, "content-length")) == ("hit", str(len("GET / #3 for nobody")))
        _, body = await ask(line)  # nothing of a body stands on the connection
        assert body == b"GET / #3 for nobody"


async def test_a_request_without_a_host_passes_by(tmp_path: Path) -> None:
    async with cached(tmp_path) as play:
        for _ in range(2):
            line = await play.stage.connect()
            await line.send(b"GET / HTTP/1.0\r\n\r\n")
            assert b"Cache-Status" not in await line.read_to_end()
        assert play.made == {"/": 2}


# ---------------------------------------------------------------------------------------------------- what clients want


async def stored(play: Play) -> None:
    """The page ``/`` has been stored."""
    assert await play.hows(("/",), ("/",)) == ["fwd=uri-miss; stored", "hit"]


@pytest.mark.parametrize("wish", ["Cache-Control: no-cache", "Pragma: no-cache", "Cache-Control: max-age=3"])
async def test_a_client_that_wants_a_newer_one_gets_it_and_so_does_everybody_after_it(
    tmp_path: Path, autojump_clock: object, wish: str
) -> None:
    async with cached(tmp_path) as play:
        await stored(play)
        await trio.sleep(4)
        head, body = await play.get("/", wish)
        assert (how(head), body) == ("fwd=request; stored", "GET / #2 for nobody")
        head, body = await play.get("/")
        assert (how(head), field(head, "age"), body) == ("hit", "0", "GET / #2 for nobody")


async def test_an_age_or_a_rest_that_a_client_accepts(tmp_path: Path, autojump_clock: object) -> None:
    async with cached(tmp_path) as play:
        await stored(play)
        await trio.sleep(20)
        wishes = ["max-age=20", "min-fresh=40", "max-stale=5", "no-transform"]
        assert await play.hows(*(("/", f"Cache-Control: {wish}") for wish in wishes)) == ["hit"] * 4
        assert await play.hows(("/", "Cache-Control: min-fresh=41")) == ["fwd=request; stored"]


async def test_no_store_is_not_stored(tmp_path: Path) -> None:
    async with cached(tmp_path) as play:
        for _ in range(2):
            assert await play.hows(("/", "Cache-Control: no-store")) == ["fwd=uri-miss"]
        assert len(play.store) == 0
        await stored(play)
        assert await play.hows(("/", "Cache-Control: no-store")) == ["hit"]  # nothing of it is stored by that


async def test_only_if_cached(tmp_path: Path) -> None:
    async with cached(tmp_path) as play:
        only = "Cache-Control: only-if-cached"
        head, body = await play.get("/", only)
        assert (status(head), field(head, "cache-status"), play.made) == (504, "", {})
        assert body == "Nothing that fits is stored.\n"
        await stored(play)
        assert (await play.get("/", only))[1] == "GET / #1 for nobody"
        assert status((await play.get("/", only, "Range: bytes=0-1"))[0]) == 504
        assert status((await play.get("/", f"{only}, no-cache"))[0]) == 504
        assert play.made == {"/": 1}


@pytest.mark.parametrize("name", [*sorted(OBSTACLES), b"translate", b"content-length"])
async def test_requests_that_pass_by(tmp_path: Path, name: bytes) -> None:
    """They get nothing stored and leave nothing behind, whatever the app answers."""
    line, detail = f"{name.decode()}: F", name.decode()
    if name == b"content-length":
        line, detail = "Content-Length: 1\r\n\r\nx", "body"
    async with cached(tmp_path) as play:
        for path in ("/", "/new"):
            if path == "/":
                await stored(play)
            connection = await play.stage.connect()
            end = "" if "\r\n\r\n" in line else "\r\n\r\n"
            await connection.send(f"GET {path} HTTP/1.1\r\nHost: a.test\r\n{line}{end}".encode())
            head, body = await connection.message()
            assert how(head) == f"fwd=bypass; detail={detail}"
            assert body.startswith(f"GET {path} #".encode())
        assert await play.hows(("/",), ("/new",)) == ["hit", "fwd=uri-miss; stored"]


async def test_translate_other_than_f_is_nothing_special(tmp_path: Path) -> None:
    async with cached(tmp_path) as play:
        await stored(play)
        assert await play.hows(("/", "Translate: t")) == ["hit"]


@pytest.mark.parametrize("name", ["X_Http_Method_Override", "X_Original_URL"])
async def test_a_name_that_cgi_apps_take_for_another_is_that_other(tmp_path: Path, name: str) -> None:
    async with cached(tmp_path, more="underscores_in_headers: true") as play:
        assert await play.hows(("/", f"{name}: DELETE")) == [f"fwd=bypass; detail={name.lower().replace('_', '-')}"]


# ---------------------------------------------------------------------------------------------------- ages


async def test_the_age_an_answer_comes_with_and_its_time_on_the_way_count(
    tmp_path: Path, autojump_clock: object
) -> None:
    async def slow(pages: Pages, line: Line, head: bytes) -> None:
        await trio.sleep(3)
        await line.send(pages.page(head))

    async with cached(tmp_path) as play:
        play.pages.scripts["/"], play.pages.fields["/"] = slow, [FRESH, "Age: 20"]
        head, _ = await play.get()
        assert field(head, "age") == "20"
        await trio.sleep(2)
        head, _ = await play.get()
        assert (field(head, "age"), field(head, "cache-status")) == ("25", "frontd; hit; ttl=35")
        await trio.sleep(35)
        assert await play.hows(("/",)) == ["fwd=stale; stored"]


async def test_expires_is_a_span_from_the_apps_own_date(tmp_path: Path, autojump_clock: object) -> None:
    async with cached(tmp_path) as play:
        play.pages.fields["/"] = ["Date: Sun, 06 Nov 1994 08:49:37 GMT", "Expires: Sun, 06 Nov 1994 08:49:47 GMT"]
        await play.get()
        head, _ = await play.get()
        assert field(head, "cache-status") == "frontd; hit; ttl=10"
        await trio.sleep(10)
        assert await play.hows(("/",)) == ["fwd=stale; stored"]


# ---------------------------------------------------------------------------------------------------- 304

TAGGED = [FRESH, 'ETag: W/"a"', "Content-Type: text/plain", "X-One: 1", "Content-Location: /b"]


@pytest.mark.parametrize(
    ("condition", "is_304"),
    [
        ('If-None-Match: "a"', True),
        ('If-None-Match: W/"a"', True),
        ('If-None-Match: "x", "a"', True),
        ("If-None-Match: *", True),
        ('If-None-Match: "b"', False),
        ("If-None-Match: a", False),
        (f'If-None-Match: "b"\r\nIf-Modified-Since: {NEW}', False),
        (f"If-Modified-Since: {MADE}", True),
        (f"If-Modified-Since: {NEW}", True),
        (f"If-Modified-Since: {OLD}", False),
        ("If-Modified-Since: yesterday", False),
    ],
)
async def test_a_client_whose_copy_holds_is_told_so(
    tmp_path: Path, autojump_clock: object, condition: str, is_304: bool
) -> None:
    async with cached(tmp_path) as play:
        play.pages.fields["/"] = [*TAGGED, f"Last-Modified: {MADE}"]
        await play.get()
        await trio.sleep(5)
        for method in ("GET", "HEAD"):
            head, _ = await play.get("/", condition, method=method)
            assert status(head) == (304 if is_304 else 200), method
            assert (how(head), field(head, "age")) == ("hit", "5")
        if is_304:
            assert [field(head, name) for name in ("etag", "cache-control", "content-location", "via")] == [
                'W/"a"', "max-age=60", "/b", "1.1 frontd",
            ]  # fmt: skip
            assert field(head, "date")
            for name in ("content-type", "x-one", "content-length", "last-modified"):
                assert field(head, name) == "", name
        assert play.made == {"/": 1}


async def test_without_a_tag_the_dates_decide_and_stand_in_the_304(tmp_path: Path) -> None:
    async with cached(tmp_path) as play:
        play.pages.fields["/"] = [FRESH, f"Last-Modified: {MADE}"]
        play.pages.fields["/dated"] = [FRESH, f"Date: {MADE}"]
        for path, last_modified in (("/", MADE), ("/dated", "")):
            await play.get(path)
            head, _ = await play.get(path, f"If-Modified-Since: {MADE}")
            assert (status(head), field(head, "last-modified")) == (304, last_modified)
            assert status((await play.get(path, f"If-Modified-Since: {OLD}"))[0]) == 200


async def test_only_a_200_has_conditions(tmp_path: Path) -> None:
    async with cached(tmp_path) as play:
        play.pages.status["/"], play.pages.fields["/"] = "404 Not Found", TAGGED
        await play.get()
        head, _ = await play.get("/", 'If-None-Match: "a"')
        assert (status(head), how(head)) == (404, "hit")


async def test_a_condition_that_goes_to_the_app_is_answered_by_it(tmp_path: Path) -> None:
    async def not_modified(pages: Pages, line: Line, head: bytes) -> None:
        await line.send(f'HTTP/1.1 304 Not Modified\r\n{FRESH}\r\nETag: "a"\r\n\r\n'.encode())

    async with cached(tmp_path) as play:
        play.pages.scripts["/"] = not_modified
        head, _ = await play.get("/", 'If-None-Match: "a"')
        assert (status(head), how(head)) == (304, "fwd=uri-miss; detail=status")
        assert len(play.store) == 0
        del play.pages.scripts["/"]
        assert await play.hows(("/", 'If-None-Match: "b"'), ("/",)) == ["fwd=uri-miss; stored", "hit"]


# ---------------------------------------------------------------------------------------------------- memory


async def test_the_least_recently_used_page_makes_room(tmp_path: Path) -> None:
    async with cached(tmp_path) as play:
        for path in ("/a", "/b", "/c"):
            play.pages.bodies[path] = b"x" * 100_000
            await play.get(path)
        play.store.resize(350_000)
        await play.get("/a")
        play.pages.bodies["/d"] = b"x" * 100_000
        await play.get("/d")
        assert await play.hows(("/a",), ("/c",), ("/d",), ("/b",)) == ["hit", "hit", "hit", "fwd=uri-miss; stored"]
        assert play.store.used <= play.store.limit


async def test_pages_take_no_more_memory_than_is_counted(tmp_path: Path) -> None:
    async with cached(tmp_path) as play:
        line = await play.stage.connect()
        fields = [FRESH, *(f"X-Field-{number}: {'v' * number}" for number in range(10))]
        for number in range(400):
            play.pages.fields[f"/{number}"] = fields
        await ask(line, "/warm")
        before = play.store.used
        tracemalloc.start()
        try:
            for number in range(400):
                await ask(line, f"/{number}")
            play.pages.heads.clear()
            play.pages.made.clear()
            taken = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
        counted = play.store.used - before
        assert len(play.store) == 401
        assert 0.4 * counted < taken <= counted
