"""X-Sendfile: the app names a file beneath one directory, keeps its own fields, and gets nothing else sent."""

from __future__ import annotations

from pathlib import Path

import pytest

from frontd.model.conditions import http_date
from frontd.model.errors import FrontdError, Reason
from frontd.model.headers import Headers
from frontd.pipeline.files import named_file, select
from tests.pipeline.asking import asking, body_of


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A directory of the app's, with a secret beside it."""
    store = tmp_path / "store"
    (store / "of bob").mkdir(parents=True)
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "store2").mkdir()
    (tmp_path / "store2" / "x").write_text("secret")
    for name in ("a.pdf", ".hidden", "of bob/100%.txt", "of bob/%41.txt", "ü.txt"):
        (store / name).write_text(name)
    (store / "link").symlink_to("../secret")
    return store


def named(store: Path, *values: str, status: int = 200) -> str | None:
    """The text of the file that an answer names; the word of a refusal."""
    headers = Headers.of(*((b"X-Sendfile", value.encode()) for value in values))
    try:
        file = named_file(status, headers, store)
    except FrontdError as error:
        return f"! {error.status} {error.reason.word}"
    finally:
        assert b"x-sendfile" not in headers  # a path is nobody else's business
    if file is None:
        return None
    with file:
        return file.read(0, file.size).decode()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("STORE/a.pdf", "a.pdf"),
        ("STORE//./a.pdf", "a.pdf"),
        ("STORE/.hidden", ".hidden"),  # the app knows what it does
        ("STORE/of bob/100%.txt", "of bob/100%.txt"),
        ("STORE/of bob/%41.txt", "of bob/%41.txt"),  # as the file system has it
        ("STORE/ü.txt", "ü.txt"),
        ("STORE/nothing", "! 502 BadSendfile"),
        ("STORE/of bob", "! 502 BadSendfile"),
        ("STORE/a.pdf/", "! 502 BadSendfile"),
        ("STORE", "! 502 BadSendfile"),
        ("STORE/", "! 502 BadSendfile"),
        ("STORE/.", "! 502 BadSendfile"),
        ("STORE/../secret", "! 502 BadSendfile"),
        ("STORE/of bob/../a.pdf", "! 502 BadSendfile"),
        ("STORE/link", "! 502 BadSendfile"),
        ("STORE2/x", "! 502 BadSendfile"),
        ("a.pdf", "! 502 BadSendfile"),
        ("/etc/passwd", "! 502 BadSendfile"),
        ("", "! 502 BadSendfile"),
        ("/", "! 502 BadSendfile"),
        ("STORE/" + "x" * 5000, "! 502 BadSendfile"),
    ],
)
def test_which_file_it_names(store: Path, value: str, expected: str) -> None:
    assert named(store, value.replace("STORE", str(store))) == expected


def test_two_names_are_none(store: Path) -> None:
    assert named(store, f"{store}/a.pdf", f"{store}/a.pdf") == "! 502 BadSendfile"


def test_no_name_no_file(store: Path) -> None:
    assert named(store) is None


@pytest.mark.parametrize("status", [204, 301, 304, 403, 404, 416, 500])
def test_an_answer_that_sends_no_file(store: Path, status: int) -> None:
    assert named(store, f"{store}/a.pdf", status=status) is None


def test_what_is_refused_is_said_to_the_log_alone(store: Path) -> None:
    with pytest.raises(FrontdError) as refused:
        named_file(200, Headers.of((b"X-Sendfile", b"/etc/shadow\xff")), store)
    assert refused.value.reason is Reason.BadSendfile
    assert "/etc/shadow" in refused.value.detail
    assert refused.value.hint == ""


# ---------------------------------------------------------------------------------------------------- fields

APP = (
    (b"Date", b"Sun, 06 Nov 1994 08:49:37 GMT"),
    (b"Content-Length", b"0"),
    (b"Content-Type", b"application/x-mine"),
    (b"Content-Disposition", b'attachment; filename="bill.pdf"'),
    (b"Set-Cookie", b"a=1"),
    (b"Set-Cookie", b"b=2"),
    (b"Cache-Control", b"private"),
    (b"Trailer", b"X"),
    (b"Content-Range", b"bytes 0-0/1"),
    (b"Accept-Ranges", b"none"),
)


def answer(store: Path, app: Headers, *fields: str, method: str = "GET") -> tuple[int, Headers, bytes]:
    """What the client gets for an answer of the app with these fields that names ``a.pdf``."""
    app.add(b"X-Sendfile", f"{store}/a.pdf")
    file = named_file(200, app, store)
    assert file is not None
    with file:
        response, pieces = select(asking("/bill", *fields, method=method), file, app)
        return response.status, response.headers, body_of(pieces, file)


def test_the_fields_of_the_app_stay(store: Path) -> None:
    status, headers, body = answer(store, Headers.of(*APP))
    assert (status, body) == (200, b"a.pdf")
    added = {b"etag", b"last-modified", b"accept-ranges", b"content-length"}
    assert [pair for pair in headers.pairs() if pair[0].lower() not in added] == [
        pair for pair in APP if pair[0] not in (b"Content-Length", b"Trailer", b"Content-Range", b"Accept-Ranges")
    ]
    assert {name: headers.get_all(name) for name in (b"content-length", b"accept-ranges")} == {
        b"content-length": [b"5"], b"accept-ranges": [b"bytes"],
    }  # fmt: skip


def test_without_a_type_it_is_that_of_the_file(store: Path) -> None:
    assert answer(store, Headers())[1].get(b"content-type") == b"application/pdf"


def test_a_part_of_it(store: Path) -> None:
    status, headers, body = answer(store, Headers.of(*APP), "Range: bytes=0-0")
    assert (status, body, headers.get_all(b"content-range")) == (206, b"a", [b"bytes 0-0/5"])


def test_the_conditions_are_on_what_the_app_says(store: Path) -> None:
    app = Headers.of((b"ETag", b'"mine"'), (b"Last-Modified", http_date(1000)), (b"Set-Cookie", b"a=1"))
    status, headers, body = answer(store, app.copy(), 'If-None-Match: "mine"')
    assert (status, body) == (304, b"")
    assert headers.get(b"set-cookie") == b"a=1"
    assert headers.get_all(b"etag") == [b'"mine"']
    assert answer(store, app.copy(), f"If-Modified-Since: {http_date(1000).decode()}")[0] == 304
    assert answer(store, app.copy(), "Range: bytes=0-0", 'If-Range: "mine"')[0] == 206
    weak = Headers.of((b"ETag", b'W/"mine"'))
    assert answer(store, weak, "Range: bytes=0-0", 'If-Range: W/"mine"')[0] == 200


def test_validators_that_are_none_are_replaced(store: Path) -> None:
    _, headers, _ = answer(store, Headers.of((b"ETag", b"mine"), (b"Last-Modified", b"today")))
    assert headers.get(b"etag").startswith(b'"')
    assert len(headers.get_all(b"etag")) == len(headers.get_all(b"last-modified")) == 1
    assert headers.get(b"last-modified") != b"today"


def test_an_answer_to_a_post_is_all_of_it(store: Path) -> None:
    """What it asked for has been done: no condition can take that back."""
    for field in ("If-None-Match: *", 'If-Match: "x"', "Range: bytes=0-0", "Range: bytes=99-"):
        status, headers, body = answer(store, Headers(), field, method="POST")
        assert (status, body) == (200, b"a.pdf")
        assert b"accept-ranges" not in headers


def test_an_answer_to_head(store: Path) -> None:
    status, headers, body = answer(store, Headers.of(*APP), method="HEAD")
    assert (status, headers.get_all(b"content-length"), body) == (200, [b"5"], b"")
