"""``files:`` routes as clients meet them, plain and through TLS: answers, paths, and what the logs say."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from frontd.net.streams import FILE_SLICE
from tests.net.pki import Pki
from tests.net.tlsclient import client_context, tls_line
from tests.scenarios.bystander import entries, logged
from tests.scenarios.test_forwarding import field
from tests.wire import Line, Stage, app, front

LARGE = 2 * FILE_SLICE + 777
PATTERN = bytes(range(251)) * (LARGE // 251 + 1)


def files_site(folder: Path, pki: Pki, routes: str = "", site: str = "", rest: str = "") -> str:
    """A site over http and https whose ``/`` is the files of `folder`."""
    return f"""
listen: {{http: {{port: 0}}, https: {{port: 0}}}}
tls: {{certificates: [{pki.entry("a")}]}}
sites:
  main:
    urls: ["http://*/", "https://*/"]
    redirect_http: false
    routes:
      /: {{files: {folder}}}
{routes}
    {site}
{rest}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Some files, and a secret beside them."""
    site = tmp_path / "site"
    for name in ("deep", ".git", ".well-known", "admin"):
        (site / name).mkdir(parents=True)
    (tmp_path / "secret").write_text("the secret")
    for name in ("a.txt", "index.html", "deep/index.html", ".git/config", ".well-known/x", "admin/secret.txt"):
        (site / name).write_text(f"this is {name}")
    (site / "large").write_bytes(PATTERN[:LARGE])
    (site / "empty.css").touch()
    return site


Dial = Callable[[Stage], AbstractAsyncContextManager[Line]]


@asynccontextmanager
async def dialled(kind: str, pki: Pki, stage: Stage) -> AsyncIterator[Line]:
    """A client's line, plain or through TLS."""
    line = await (tls_line(stage, client_context(pki), "a.test") if kind == "tls" else stage.connect())
    try:
        yield line
    finally:
        await line.close()


@pytest.fixture(params=["plain", "tls"])
def dial(request: pytest.FixtureRequest, pki: Pki) -> Dial:
    return partial(dialled, request.param, pki)


# ---------------------------------------------------------------------------------------------------- answers


async def test_many_answers_on_one_connection(tmp_path: Path, folder: Path, pki: Pki, dial: Dial) -> None:
    async with front(files_site(folder, pki), tmp_path) as stage, dial(stage) as line:
        head, body = await line.get("/a.txt")
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert body == b"this is a.txt"
        assert field(head, "Content-Type") == [b"text/plain; charset=utf-8"]
        assert b"\r\nConnection:" not in head
        (tag,) = field(head, "ETag")

        assert (await line.get("/large"))[1] == PATTERN[:LARGE]
        head, body = await line.get("/large", "Range: bytes=-10")
        assert head.startswith(b"HTTP/1.1 206 Partial Content\r\n")
        assert body == PATTERN[LARGE - 10 : LARGE]

        head, body = await line.get("/a.txt", f"If-None-Match: {tag.decode()}")
        assert head.startswith(b"HTTP/1.1 304 Not Modified\r\n")
        assert field(head, "Content-Length") == []
        assert body == b""

        await line.send(b"HEAD /large HTTP/1.1\r\nHost: a.test\r\n\r\nGET /empty.css HTTP/1.1\r\nHost: a.test\r\n\r\n")
        head = await line.head()
        assert field(head, "Content-Length") == [b"%d" % LARGE]
        head, body = await line.message()  # right behind it, so HEAD had no body
        assert field(head, "Content-Type") == [b"text/css; charset=utf-8"]
        assert (field(head, "Content-Length"), body) == ([b"0"], b"")

        head, body = await line.get("/large", "Range: bytes=0-1,100000-300000")
        kind = field(head, "Content-Type")[0]
        assert kind.startswith(b"multipart/byteranges; boundary=")
        assert body.endswith(PATTERN[100000:300001] + b"\r\n--" + kind.partition(b"=")[2] + b"--\r\n")
        assert (await line.get("/"))[1] == b"this is index.html"
    assert stage.reasons == {}
    assert [entry["status"] for entry in entries(stage)] == [200, 200, 206, 304, 200, 200, 206, 200]
    assert {entry["route"] for entry in entries(stage)} == {"/"}


async def test_refusals_keep_the_connection(tmp_path: Path, folder: Path, pki: Pki, dial: Dial) -> None:
    async with front(files_site(folder, pki), tmp_path) as stage, dial(stage) as line:
        head, body = await line.get("/nothing", "Accept: application/json")
        assert head.startswith(b"HTTP/1.1 404 Not Found\r\n")
        assert str(folder).encode() not in head + body
        head, _ = await line.get("/a.txt", "Range: bytes=99-")
        assert head.startswith(b"HTTP/1.1 416 Range Not Satisfiable\r\n")
        assert field(head, "Content-Range") == [b"bytes */13"]
        head, _ = await line.get("/a.txt", 'If-Match: "x"')
        assert head.startswith(b"HTTP/1.1 412 Precondition Failed\r\n")
        head, _ = await line.ask(b"PUT /a.txt HTTP/1.1\r\nHost: a.test\r\nContent-Length: 4\r\n\r\nevil")
        assert head.startswith(b"HTTP/1.1 405 Method Not Allowed\r\n")
        assert field(head, "Allow") == [b"GET, HEAD"]
        head, _ = await line.ask(b"OPTIONS * HTTP/1.1\r\nHost: a.test\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 405 ")
        head, body = await line.get("/deep?x=1")
        assert head.startswith(b"HTTP/1.1 308 Permanent Redirect\r\n")
        assert field(head, "Location") == [b"/deep/?x=1"]
        assert (await line.get("/a.txt"))[1] == b"this is a.txt"
    assert stage.reasons == {"NotFound": 1, "Range": 1, "Precondition": 1, "MethodNotAllowed": 2}


async def test_a_body_that_nobody_wants(tmp_path: Path, folder: Path, pki: Pki, dial: Dial) -> None:
    async with front(files_site(folder, pki), tmp_path) as stage, dial(stage) as line:
        head, body = await line.ask(b"GET /a.txt HTTP/1.1\r\nHost: a.test\r\nContent-Length: 3\r\n\r\nabc")
        assert (body, b"\r\nConnection:" in head) == (b"this is a.txt", False)
        await line.send(b"GET /large HTTP/1.1\r\nHost: a.test\r\nContent-Length: 9000000\r\n\r\nabc")
        head, body = await line.message()
        assert field(head, "Connection") == [b"close"]
        assert body == PATTERN[:LARGE]


async def test_an_http_1_0_client(tmp_path: Path, folder: Path, pki: Pki, dial: Dial) -> None:
    async with front(files_site(folder, pki), tmp_path) as stage, dial(stage) as line:
        await line.send(b"GET /large HTTP/1.0\r\n\r\n")
        head, _, body = (await line.read_to_end()).partition(b"\r\n\r\n")
        assert field(head, "Content-Length") == [b"%d" % LARGE]
        assert body == PATTERN[:LARGE]


async def test_a_part_beyond_2_gib(tmp_path: Path, folder: Path, pki: Pki, dial: Dial) -> None:
    with (folder / "big").open("wb") as big:
        big.truncate(3 * 2**30)
        big.seek(2**31 - 100)
        big.write(PATTERN[:200_000])
    async with front(files_site(folder, pki), tmp_path) as stage, dial(stage) as line:
        head, body = await line.get("/big", f"Range: bytes={2**31 - 100}-{2**31 + 199_899}")
        assert field(head, "Content-Range") == [b"bytes 2147483548-2147683547/3221225472"]
        assert body == PATTERN[:200_000]
        head, body = await line.get("/big", f"Range: bytes={2**31 - 1}-{2**31}")
        assert body == PATTERN[99:101]


# ---------------------------------------------------------------------------------------------------- paths

OUT = (
    "/../secret", "/%2e%2e/secret", "/deep/../../secret", "/..%2Fsecret", "/%2e%2e%2fsecret", "/.%2e/secret",
    "/deep/%2E%2E/%2E%2E/secret", "/out", "/out/", "/proc/self/fd/0", "/self/fd/0", "//secret", "/./../secret",
    "/a.txt/../../secret", "/fifo", "/null", "/.git/config", "/%2egit/config", "/deep/.hidden", "/a.txt/", "/A.TXT",
    "/large%00", "/..;/secret", "/deep/..%5c..%5csecret", "/%252e%252e/secret", "/\xc0\xae\xc0\xae/secret",
)  # fmt: skip


async def test_no_path_leads_out(tmp_path: Path, folder: Path, pki: Pki, dial: Dial) -> None:
    (folder / "out").symlink_to("../secret")
    (folder / "proc").symlink_to("/proc")
    (folder / "self").symlink_to("/proc/self")
    (folder / "null").symlink_to("/dev/null")
    (folder / "deep" / ".hidden").touch()
    os.mkfifo(folder / "fifo")
    async with front(files_site(folder, pki), tmp_path) as stage:
        for path in OUT:
            async with dial(stage) as line:
                await line.send(f"GET {path} HTTP/1.1\r\nHost: a.test\r\n\r\n".encode("latin-1"))
                head, body = await line.message()
                assert head[9:12] in (b"404", b"400"), path
                assert b"the secret" not in body
                assert b"this is" not in body


async def test_well_known_files_are_served(tmp_path: Path, folder: Path, pki: Pki, dial: Dial) -> None:
    async with front(files_site(folder, pki), tmp_path) as stage, dial(stage) as line:
        assert (await line.get("/.well-known/x"))[1] == b"this is .well-known/x"


GUARDED = """plugins:
      - basic: {users_file: USERS, allow_http: true}
      - authorize:
          - {path: /admin/, allow: [authenticated]}
          - {allow: [anonymous]}"""
GAMES = (
    "/admin/secret.txt", "/ADMIN/secret.txt", "/%61dmin/secret.txt", "/x/../admin/secret.txt", "//admin/secret.txt",
    "/./admin/secret.txt", "/%2e/admin/secret.txt", "/admin;x/secret.txt", "/admin%2Fsecret.txt", "/admin%2fsecret.txt",
    "/deep/%2e%2e/admin/secret.txt", "/admin//secret.txt", "/admin/./secret.txt", "/deep//../admin/secret.txt",
    "/also/secret.txt", "/admin", "/admin/",
)  # fmt: skip


async def test_no_spelling_of_a_path_gets_round_a_rule(tmp_path: Path, folder: Path, pki: Pki) -> None:
    """The rule and the file system agree on what a path is, or there is no such file."""
    users = tmp_path / "users"
    users.write_text("")
    users.chmod(0o600)
    async with front(files_site(folder, pki, site=GUARDED.replace("USERS", str(users))), tmp_path) as stage:
        line = await stage.connect()
        for path in GAMES:
            head, body = await line.get(path)
            assert head[9:12] in (b"401", b"404"), path
            assert b"this is" not in body, path
        assert (await line.get("/a.txt"))[1] == b"this is a.txt"


ROUTES = """
      /api/: app
      /api/static/: {files: FOLDER}
      /docs/: {files: FOLDER, index: [a.txt, index.html]}
"""


async def test_files_beside_an_app(tmp_path: Path, folder: Path, pki: Pki) -> None:
    async with app() as it:
        text = files_site(
            folder, pki, ROUTES.replace("FOLDER", str(folder)), rest=f"pools: {{app: {{targets: ['{it.url}']}}}}"
        )
        async with front(text, tmp_path) as stage:
            line = await stage.connect()
            for path, expected in (
                ("/api/static/a.txt", b"this is a.txt"),
                ("/API/Static/deep/", b"this is deep/index.html"),
                ("/api/a.txt", b"ok"),
                ("/docs/", b"this is a.txt"),
                ("/docs/deep/", b"this is deep/index.html"),
            ):
                assert (await line.get(path))[1] == expected
            for path in ("/docs", "/api/static"):
                assert field((await line.get(path))[0], "Location") == [path.encode() + b"/"]


async def test_a_deploy_is_seen_on_the_next_request(tmp_path: Path, pki: Pki, dial: Dial) -> None:
    for version in ("1", "2"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "index.html").write_text(f"version {version}")
    live = tmp_path / "live"
    live.symlink_to("1")
    async with front(files_site(live, pki), tmp_path) as stage, dial(stage) as line:
        head, body = await line.get("/")
        assert body == b"version 1"
        (tmp_path / "next").symlink_to("2")
        (tmp_path / "next").rename(live)
        head, body = await line.get("/", f"If-None-Match: {field(head, 'ETag')[0].decode()}")
        assert body == b"version 2"
        live.unlink()
        head, _ = await line.get("/")
        assert head.startswith(b"HTTP/1.1 404 ")


async def test_plugins_see_the_head_of_a_file(tmp_path: Path, folder: Path, pki: Pki) -> None:
    site = "plugins: [{headers: {set_response: {X-Content-Type-Options: nosniff}}}]"
    async with front(files_site(folder, pki, site=site), tmp_path) as stage:
        line = await stage.connect()
        for path in ("/a.txt", "/large"):
            head, body = await line.get(path)
            assert field(head, "X-Content-Type-Options") == [b"nosniff"]
            assert body == (PATTERN[:LARGE] if path == "/large" else b"this is a.txt")


# ---------------------------------------------------------------------------------------------------- in the log


async def test_what_a_file_that_may_not_be_opened_leaves_in_the_log(tmp_path: Path, folder: Path, pki: Pki) -> None:
    async with front(files_site(folder, pki), tmp_path) as stage:
        line = await stage.connect()
        await line.get("/a.txt/x")
    logged(stage, "NotFound", status=404)
    assert "Not+a+directory" in stage.log("error")
