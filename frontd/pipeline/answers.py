"""The answers frontd gives itself: error pages that name their reason, and redirects.

A page shows the reason's word, its sentence and a hint meant for clients; never an internal address.  It is plain text,
HTML for whoever accepts HTML, JSON for whoever asks for JSON.  ``Proxy-Status`` (RFC 9209) carries the same word.
"""

from __future__ import annotations

import html
import json
import time
from email.utils import formatdate
from http import HTTPStatus

from frontd.model.addresses import bracketed
from frontd.model.errors import FrontdError
from frontd.model.headers import HOP_BY_HOP, Headers
from frontd.model.messages import BODYLESS, Request, Response
from frontd.pipeline.world import Destination

PHRASES = {
    **{status.value: status.phrase.encode() for status in HTTPStatus},
    # the words of RFC 9110, which older versions of Python do not have
    413: b"Content Too Large", 414: b"URI Too Long", 416: b"Range Not Satisfiable", 422: b"Unprocessable Content",
}  # fmt: skip

_TOP = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{status} {title}</title>
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:40em;margin:15vh auto;padding:0
1em;color:#222;background:#fff}} h1{{font-size:1.4em}}code{{background:#f2f2f2;padding:.1em
.3em}}footer{{color:#777;font-size:.85em;margin-top:2em}}
@media(prefers-color-scheme:dark){{body{{color:#ddd;background:#181818}}code{{background:#333}}}}</style></head>
<body><h1>{status} {phrase}</h1>"""
_PAGE = (
    _TOP.replace("{title}", "{word}")
    + """<p>{sentence}</p>{hint} <footer>Reason: <code>{word}</code> &middot; Request {number}
&middot; frontd</footer></body></html>
"""
)
_SILENT_PAGE = _TOP.replace("{title}", "{phrase}") + """<footer>Request {number}</footer></body></html>
"""


def error_response(error: FrontdError, fields: Headers | None, number: int) -> Response:
    """The page for an error; `fields` are the request's, `number` is the exchange's, to be found again in the log."""
    if error.verbosity == "status":
        return _silent_response(error.status, fields, number)
    reason, status = error.reason, error.status
    phrase = PHRASES.get(status, b"Error").decode()
    code = f"{status}.{error.substatus}" if error.substatus else str(status)
    kind = wanted_type(fields)
    if kind == "application/json":
        content = {"status": status, "reason": reason.word, "message": reason.sentence, "request": number}
        if error.substatus:
            content["substatus"] = error.substatus
        if error.hint:
            content["hint"] = error.hint
        body = json.dumps(content).encode() + b"\n"
    elif kind == "text/html" and error.page:
        body = error.page
    elif kind == "text/html":
        hint = f"<p>{html.escape(error.hint)}</p>" if error.hint else ""
        page = _PAGE.format(status=code, phrase=phrase, word=reason.word, sentence=html.escape(reason.sentence),
                            hint=hint, number=number)  # fmt: skip
        body = page.encode()
    else:
        lines = [f"{code} {phrase}", f"Reason: {reason.word}", reason.sentence, error.hint, f"Request: {number}"]
        body = "\n".join(line for line in lines if line).encode() + b"\n"
    headers = _page_fields(kind, body)
    headers.add(b"Proxy-Status", f'frontd; error={reason.proxy_error}; details="{reason.word}"'.encode())
    if error.retry_after is not None:
        headers.add(b"Retry-After", b"%d" % error.retry_after)
    for name, value in error.fields:
        headers.add(name, value)
    return Response(status, headers, body)


def _silent_response(status: int, fields: Headers | None, number: int) -> Response:
    """A page that says nothing but its status; neither does how long to wait, which differs by reason."""
    phrase, kind = PHRASES.get(status, b"Error").decode(), wanted_type(fields)
    if kind == "application/json":
        body = json.dumps({"status": status, "message": phrase, "request": number}).encode() + b"\n"
    elif kind == "text/html":
        body = _SILENT_PAGE.format(status=status, phrase=phrase, number=number).encode()
    else:
        body = f"{status} {phrase}\nRequest: {number}\n".encode()
    return Response(status, _page_fields(kind, body), body)


def _page_fields(kind: str, body: bytes) -> Headers:
    charset = "" if kind == "application/json" else "; charset=utf-8"
    return Headers.of(
        (b"Date", now()),
        (b"Content-Type", (kind + charset).encode()),
        (b"Content-Length", b"%d" % len(body)),
        (b"Cache-Control", b"no-store"),
        (b"X-Content-Type-Options", b"nosniff"),
    )


def wanted_type(fields: Headers | None) -> str:
    """JSON when Accept names it and HTML not before it, HTML when Accept names HTML, plain text otherwise."""
    accept = fields.get(b"accept").lower() if fields is not None else b""
    json_at, html_at = accept.find(b"application/json"), accept.find(b"text/html")
    if json_at >= 0 and (html_at < 0 or json_at < html_at):
        return "application/json"
    return "text/html" if html_at >= 0 else "text/plain"


def now() -> bytes:
    """The value of a Date field (RFC 9110 6.6.1)."""
    global _date
    second = int(time.time())
    if second != _date[0]:
        _date = (second, formatdate(second, usegmt=True).encode())
    return _date[1]


_date = (0, b"")


def redirect_response(destination: Destination, request: Request, local_address: str) -> Response:
    """The redirect of a route.

    ``{path}`` and ``{host}`` in its URL stand for those of the request, the path with its query; a request without a
    host (HTTP/1.0) came to `local_address`.
    """
    host = bracketed(request.host or local_address)
    return redirect_to(destination.redirect.replace("{host}", host).replace("{path}", request.uri), destination.status)


def redirect_to(location: str, status: int) -> Response:
    """A redirect with a body for people whose client does not follow it."""
    body = f"{status} {PHRASES[status].decode()}\n{location}\n".encode()
    headers = Headers.of(
        (b"Date", now()),
        (b"Location", location.encode()),
        (b"Content-Type", b"text/plain; charset=utf-8"),
        (b"Content-Length", b"%d" % len(body)),
    )
    return Response(status, headers, body)


def complete(response: Response) -> None:
    """Give a whole answer its framing (RFC 9110 8.6, 6.4.1) and a Date; no hop-by-hop field stays."""
    headers, body = response.headers, response.body
    headers.items = [item for item in headers.items if item[0] not in HOP_BY_HOP and item[0] != b"content-length"]
    if b"date" not in headers:
        headers.add(b"Date", now())
    if response.status not in BODYLESS:
        headers.add(b"Content-Length", b"%d" % len(body or b""))
