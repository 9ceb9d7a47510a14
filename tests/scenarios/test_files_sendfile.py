"""X-Sendfile between an app and a client: the app says who may, frontd sends."""

from __future__ import annotations

from pathlib import Path

import pytest

from frontd.net.streams import FILE_SLICE
from tests.scenarios.bystander import logged
from tests.scenarios.test_forwarding import field
from tests.wire import Line, Script, app, front, one_pool

LARGE = FILE_SLICE + 777
PATTERN = bytes(range(251)) * (LARGE // 251 + 1)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """What the app may name, and a secret beside it."""
    store = tmp_path / "store"
    store.mkdir()
    (store / "bill.pdf").write_bytes(PATTERN[:LARGE])
    (tmp_path / "secret").write_text("the secret")
    (store / "link").symlink_to("../secret")
    return store


def naming(path: Path | str, *fields: str, status: str = "200 OK", body: str = "") -> Script:
    """An app that answers everything by naming `path`."""
    lines = "".join(f"{one}\r\n" for one in fields)
    answer = f"HTTP/1.1 {status}\r\nX-Sendfile: {path}\r\nContent-Length: {len(body)}\r\n{lines}\r\n{body}".encode()

    async def script(line: Line) -> None:
        while (await line.message())[0]:
            await line.send(answer)

    return script


def allowing(store: Path) -> str:
    return f"sendfile_from: {store}"


async def test_the_file_goes_out_with_the_fields_of_the_app(tmp_path: Path, store: Path) -> None:
    script = naming(
        store / "bill.pdf", "Content-Type: application/pdf", "Set-Cookie: seen=1", 'ETag: "mine"', "X-Other: kept",
        "Content-Disposition: attachment",
    )  # fmt: skip
    async with app(script) as it, front(one_pool(it.url, pool=allowing(store)), tmp_path) as stage:
        line = await stage.connect()
        head, body = await line.get("/bill")
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert body == PATTERN[:LARGE]
        assert field(head, "X-Sendfile") == []
        assert str(store).encode() not in head
        for name, value in (
            ("Content-Type", b"application/pdf"), ("Set-Cookie", b"seen=1"), ("ETag", b'"mine"'), ("X-Other", b"kept"),
            ("Content-Disposition", b"attachment"), ("Content-Length", b"%d" % LARGE), ("Via", b"1.1 frontd"),
        ):  # fmt: skip
            assert field(head, name) == [value]
        head, body = await line.get("/bill", "Range: bytes=5-7", 'If-Range: "mine"')
        assert (head[:12], body) == (b"HTTP/1.1 206", PATTERN[5:8])
        head, body = await line.get("/bill", 'If-None-Match: "mine"')
        assert (head[:12], body) == (b"HTTP/1.1 304", b"")
        assert field(head, "Set-Cookie") == [b"seen=1"]
        post = b"POST /bill HTTP/1.1\r\nHost: a.test\r\nContent-Length: 2\r\nRange: bytes=0-0\r\n\r\nhi"
        head, body = await line.ask(post)
        assert (head[:12], body) == (b"HTTP/1.1 200", PATTERN[:LARGE])
        await line.send(b"HEAD /bill HTTP/1.1\r\nHost: a.test\r\n\r\n")
        assert field(await line.head(), "Content-Length") == [b"%d" % LARGE]
        assert (await line.get("/bill"))[1] == PATTERN[:LARGE]
    assert stage.reasons == {}


async def test_a_body_beside_it_is_not_sent(tmp_path: Path, store: Path) -> None:
    script = naming(store / "bill.pdf", body="x" * 100_000)
    async with app(script) as it, front(one_pool(it.url, pool=allowing(store)), tmp_path) as stage:
        line = await stage.connect()
        for _ in range(2):
            assert (await line.get())[1] == PATTERN[:LARGE]


BAD = ("/etc/passwd", "STORE/link", "STORE/../secret", "STORE", "STORE/none", "bill.pdf", "")


@pytest.mark.parametrize("path", BAD)
async def test_what_it_may_not_name_is_an_error_of_the_app(tmp_path: Path, store: Path, path: str) -> None:
    script = naming(path.replace("STORE", str(store)), "Set-Cookie: a=1")
    async with app(script) as it, front(one_pool(it.url, pool=allowing(store)), tmp_path) as stage:
        line = await stage.connect()
        head, body = await line.get()
        assert head.startswith(b"HTTP/1.1 502 Bad Gateway\r\n")
        assert b"Reason: BadSendfile\n" in body
        assert b"secret" not in head + body
        assert str(store).encode() not in head + body
        assert field(head, "Set-Cookie") == []
    logged(stage, "BadSendfile", status=502)


@pytest.mark.parametrize("status", ["404 Not Found", "403 Forbidden", "302 Found"])
async def test_an_answer_that_sends_no_file_is_the_apps_own(tmp_path: Path, store: Path, status: str) -> None:
    script = naming(store / "bill.pdf", status=status, body="mine")
    async with app(script) as it, front(one_pool(it.url, pool=allowing(store)), tmp_path) as stage:
        line = await stage.connect()
        head, body = await line.get()
        assert (head[9:12].decode(), body) == (status[:3], b"mine")
        assert field(head, "X-Sendfile") == []


async def test_without_a_directory_the_field_means_nothing(tmp_path: Path, store: Path) -> None:
    script = naming(store / "bill.pdf", body="mine")
    async with app(script) as it, front(one_pool(it.url), tmp_path) as stage:
        line = await stage.connect()
        assert (await line.get())[1] == b"mine"


async def test_the_connection_to_the_app_is_kept(tmp_path: Path, store: Path) -> None:
    async with app(naming(store / "bill.pdf")) as it:
        async with front(one_pool(it.url, pool=allowing(store)), tmp_path) as stage:
            line = await stage.connect()
            for _ in range(3):
                await line.get()
            assert it.connections == 1
