"""Files as answers: of a ``files:`` route, and those that an app names in ``X-Sendfile``.

How it works
------------
    request → `requested_file` → `select` → head → `send_pieces`

`requested_file` finds the file that a path stands for, `select` decides what is sent of it (all, parts, or nothing but
"you have it already"), `send_pieces` sends that.  A small piece is read and goes out in one write with the head; a
large one goes from the page cache to the socket without passing through this process (``sendfile``), over TLS in parts
of 64 KiB.  What is not in the page cache is read from the disk while everybody waits, in steps of at most
`net.streams.FILE_SLICE` bytes (nginx without ``aio`` does the same).

For X-Sendfile, `named_file` opens what the app has named, and `select` keeps the app's own fields.  The value is the
absolute path as the file system has it, not percent-encoded, which is what Rack, Werkzeug and django-sendfile write.
nginx's ``X-Accel-Redirect`` names a URL and not a file; it means nothing here.

Path rules
----------
* A file has one URL.  Empty segments, and ``%2F`` inside one, name no file; an escape that stands for a character that
  needs none (``%2B``) is answered with a redirect to the plain spelling: a rule for a path cannot be got round by
  writing it in another way.
* Segments that begin with a dot name no file, but for ``.well-known`` at the front (RFC 8615).  This holds for what the
  client writes; a symbolic link beneath the root may lead to one.
* Letter case counts below the route's prefix, as it does for the file system.
* A directory is answered with its index file, and without its final ``/`` with a redirect; there are no listings.

Invariants
----------
* A file that becomes shorter while it is sent cuts the connection (``Internal``): a short answer never ends cleanly.
* At most 64 KiB of a file are in memory for one client.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import time
from pathlib import Path
from urllib.parse import unquote_to_bytes

from frontd.model.conditions import Span, http_date, is_tag, read_date, still_good, wanted_ranges
from frontd.model.errors import FrontdError, Reason
from frontd.model.headers import Headers
from frontd.model.mediatypes import media_type
from frontd.model.messages import Request, Response
from frontd.model.verdicts import Redirect
from frontd.net.traps import task_lane
from frontd.pipeline.answers import now
from frontd.pipeline.fileroot import FileRoot, OpenFile
from frontd.pipeline.forward import Downstream

Piece = bytes | Span

AT_ONCE = 65536  # bytes that are read and written; beyond, two more system calls cost less than the copy
METHODS = frozenset(("GET", "HEAD"))
ALLOW = ((b"Allow", b"GET, HEAD"),)
WELL_KNOWN = b".well-known"
# An escaped sub-delim, ":" or "@" (RFC 3986 3.3): the canonical path keeps both spellings apart, a file system cannot.
_NEEDLESS = re.compile("%(?:2[146789ABC]|3[ABD]|40)")

# ---------------------------------------------------------------------------------------------------- finding it


def requested_file(root: FileRoot, request: Request, prefix: str) -> OpenFile | Redirect:
    """The file beneath `root` that `request` asks for; `prefix` is its route's, ending in ``/``, and is left off.

    A redirect (308) leads to the one URL of a file or directory.  Raises `FrontdError`: ``MethodNotAllowed`` (405) for
    what is neither GET nor HEAD, ``NotFound``, ``Forbidden`` when this process may not read it.
    """
    if request.method not in METHODS:
        raise FrontdError(Reason.MethodNotAllowed, fields=ALLOW)
    rest = request.path[len(prefix) :]
    path = file_path(rest)
    if path is None or request.path.startswith("//"):  # "//host" in a redirect would lead to another host
        raise FrontdError(Reason.NotFound, detail="no file can have this path")
    if _NEEDLESS.search(rest):
        plain = _NEEDLESS.sub(lambda found: chr(int(found.group()[1:], 16)), rest)
        return _redirect(request, request.path[: len(prefix)] + plain)
    try:
        if len(request.path) < len(prefix):
            return _redirect(request, request.path + "/")
        if not path or path.endswith(b"/"):
            return _index(root, path)
        return root.open_file(path)
    except IsADirectoryError:
        return _redirect(request, request.path + "/")
    except OSError as error:
        raise _refusal(error) from None


def file_path(relative: str) -> bytes | None:
    """The path below a root that the rest of a canonical path means, decoded; None when no file can have it."""
    segments = relative.split("/")
    if "" in segments[:-1]:
        return None
    names = [unquote_to_bytes(segment) for segment in segments]
    for at, name in enumerate(names):
        if b"/" in name or b"\0" in name or (name.startswith(b".") and (at or name != WELL_KNOWN)):
            return None
    return b"/".join(names)


def _index(root: FileRoot, folder: bytes) -> OpenFile:
    for name in root.index:
        try:
            return root.open_file(folder + os.fsencode(name))
        except (FileNotFoundError, IsADirectoryError):
            continue
    raise FileNotFoundError(errno.ENOENT, "no index file")


def _redirect(request: Request, path: str) -> Redirect:
    return Redirect(f"{path}?{request.query}" if request.has_query else path, 308)


# ELOOP: a symbolic link in the walk, or a circle of them; EXDEV: a way out; ENXIO: a socket
_NOT_THERE = (
    errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV, errno.ENXIO, errno.ENODEV, errno.ENAMETOOLONG, errno.EINVAL,
)  # fmt: skip


def _refusal(error: OSError) -> FrontdError:
    """What the client is told of a file that cannot be opened."""
    detail = error.strerror or type(error).__name__
    if error.errno in _NOT_THERE:
        return FrontdError(Reason.NotFound, detail=detail)
    if error.errno in (errno.EACCES, errno.EPERM):
        return FrontdError(Reason.Forbidden, detail=detail)
    # out of descriptors or memory, a rename that does not end, a disk that fails
    return FrontdError(Reason.Internal, status=503, detail=detail, retry_after=1)


# ---------------------------------------------------------------------------------------------------- X-Sendfile

# 206: a framework that knows the length has answered the Range itself; what it left to us is the same file
SENDFILE_STATUS = frozenset((200, 206))


def named_file(status: int, headers: Headers, root: Path) -> OpenFile | None:
    """The file that an app's answer names in ``X-Sendfile``, which is taken out of `headers`; None when it names none,
    or its status says that none is sent.  `root` is the directory that the app may name files of.

    Raises `FrontdError` with ``BadSendfile`` (502) when it names anything else.
    """
    values = headers.get_all(b"x-sendfile")
    headers.remove(b"x-sendfile")
    if not values or status not in SENDFILE_STATUS:
        return None
    path = sendfile_path(values, root)
    try:
        return FileRoot(root).open_file(path)
    except OSError as error:
        raise _bad_sendfile(path, error.strerror or type(error).__name__) from None


def sendfile_path(values: list[bytes], root: Path) -> bytes:
    """The path below `root` that the values of ``X-Sendfile`` name.  Raises `FrontdError` with ``BadSendfile``."""
    value = values[0]
    start = os.fsencode(root).rstrip(b"/") + b"/"
    segments = [segment for segment in value.removeprefix(start).split(b"/") if segment not in (b"", b".")]
    if len(values) > 1 or not value.startswith(start) or not segments or b".." in segments or value.endswith(b"/"):
        raise _bad_sendfile(value, f"not one path of a file beneath {root}")
    return b"/".join(segments)


def _bad_sendfile(path: bytes, why: str) -> FrontdError:
    return FrontdError(Reason.BadSendfile, detail=f"X-Sendfile {path.decode('utf-8', 'replace')!r}: {why}")


# ---------------------------------------------------------------------------------------------------- what is sent

# What describes the app's own body, which is not sent.
_OF_ITS_BODY = frozenset((b"content-length", b"content-range", b"accept-ranges", b"transfer-encoding", b"trailer"))
# RFC 9110 15.4.5: a 304 says nothing of a body that is not there.
_NOT_IN_304 = frozenset((b"content-type", b"content-encoding", b"content-language", b"content-disposition"))


def select(request: Request, file: OpenFile, app: Headers | None = None) -> tuple[Response, list[Piece]]:
    """The head of the answer to `request`, and the pieces of its body: bytes of our own and spans of `file`.

    `app` are the fields of the app that named the file: they stay, also its ETag and Last-Modified, which the client's
    conditions are then compared with.  Raises `FrontdError`: ``Precondition`` (412), ``Range`` (416).
    """
    headers = Headers(item for item in app if item[0] not in _OF_ITS_BODY) if app is not None else Headers()
    if b"date" not in headers:
        headers.add(b"Date", now())
    tag, modified = _validators(headers, file)
    spans: list[Span] | None = None
    if request.method in METHODS:
        if still_good(request.headers, tag, modified):
            headers.items = [item for item in headers.items if item[0] not in _NOT_IN_304]
            return Response(304, headers, None), []
        headers.add(b"Accept-Ranges", b"bytes")
        if request.method == "GET":
            spans = wanted_ranges(request.headers, file.size, tag, modified)
    if b"content-type" not in headers:
        headers.add(b"Content-Type", media_type(file.name))
    status = 200
    pieces: list[Piece] = [Span(0, file.size)] if file.size else []
    if spans is not None:
        status, pieces = 206, _parts(headers, spans, file.size)
    headers.add(b"Content-Length", b"%d" % sum(_length(piece) for piece in pieces))
    return Response(status, headers, None), [] if request.method == "HEAD" else pieces


def _validators(headers: Headers, file: OpenFile) -> tuple[bytes, int]:
    """The entity tag and the second of the last change: the app's where it says them, else the file's, which are then
    added to `headers`."""
    tag = headers.get(b"etag")
    if not is_tag(tag):
        tag = file.tag
        headers.set(b"ETag", tag)
    value = headers.get(b"last-modified")
    said = read_date(value) if value else None
    if said is not None:
        return tag, said
    modified = max(0, min(file.modified, int(time.time())))  # never later than Date (RFC 9110 8.8.2.1)
    headers.set(b"Last-Modified", http_date(modified))
    return tag, modified


def _parts(headers: Headers, spans: list[Span], size: int) -> list[Piece]:
    """The body of a 206 (RFC 9110 15.3.7); completes `headers`."""
    if len(spans) == 1:
        headers.add(b"Content-Range", _content_range(spans[0], size))
        return [*spans]
    boundary, kind = secrets.token_hex(16).encode(), headers.get(b"content-type")
    headers.set(b"Content-Type", b"multipart/byteranges; boundary=" + boundary)
    pieces: list[Piece] = []
    for span in spans:
        fields = b"\r\nContent-Type: %s\r\nContent-Range: %s\r\n\r\n" % (kind, _content_range(span, size))
        pieces += [(b"\r\n--" if pieces else b"--") + boundary + fields, span]
    return [*pieces, b"\r\n--" + boundary + b"--\r\n"]


def _content_range(span: Span, size: int) -> bytes:
    return b"bytes %d-%d/%d" % (span.offset, span.offset + span.size - 1, size)


def _length(piece: Piece) -> int:
    return piece.size if isinstance(piece, Span) else len(piece)


# ---------------------------------------------------------------------------------------------------- sending it


async def send_pieces(down: Downstream, file: OpenFile, pieces: list[Piece]) -> None:
    """Send the body; its end is left to the caller.

    Raises `FrontdError`: ``Internal`` when the file is shorter by now or cannot be read, or what broke on the client's
    side.  After either, the connection can only be cut.
    """
    for piece in pieces:
        if isinstance(piece, Span) and piece.size > AT_ONCE:
            await task_lane()
            await down.send_file(file.fd, *piece)
        elif not down.send(file.read(*piece) if isinstance(piece, Span) else piece):
            await task_lane()
            await down.flush()
