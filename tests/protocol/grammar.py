"""Hypothesis strategies: valid messages, and messages that somebody damaged on purpose."""

from __future__ import annotations

from hypothesis import strategies as st

TOKEN_BYTES = b"!#$%&'*+-.^_`|~0123456789ABCXYZabcxyz"

tokens = st.text(TOKEN_BYTES.decode(), min_size=1, max_size=8).map(str.encode)
spaces = st.sampled_from([b"", b" ", b"\t", b"  \t"])
values = st.lists(
    st.sampled_from([*(bytes([b]) for b in (0x21, 0x22, 0x2C, 0x3A, 0x5C, 0x7E, 0x80, 0xFF)), b"a", b"b c", b"\t"]),
    max_size=6,
).map(lambda parts: b"".join(parts).strip(b" \t"))

plain_fields = st.tuples(tokens.map(lambda name: b"X-" + name), spaces, values, spaces).map(
    lambda field: field[0] + b":" + field[1] + field[2] + field[3] + b"\r\n"
)
known_fields = st.sampled_from(
    [
        b"Connection: close\r\n",
        b"Connection: keep-alive, X-a\r\n",
        b"Connection: content-length, transfer-encoding, host\r\n",
        b"Expect: 100-continue\r\n",
        b"Connection: Upgrade\r\nUpgrade: websocket\r\n",
        b"Accept:*/*\r\n",
        b"Trailer: X-sum\r\n",
        b"TE: trailers\r\n",
        b"X_Forwarded_For: 6.6.6.6\r\n",
        b"Cookie: a=b; c=d\r\n",
    ]
)
field_lines = st.lists(st.one_of(plain_fields, known_fields), max_size=4).map(b"".join)

paths = st.lists(
    st.sampled_from(b"/ a B . .. %2e %2F %41 %25 %ff { ~ ; [x] = %5B".split()),
    max_size=8,
).map(lambda parts: b"/" + b"".join(parts))
queries = st.sampled_from([b"", b"?", b"?a=b&c", b"?/../%00", b"?%", b"?x\\y"])
targets = st.one_of(
    st.tuples(paths, queries).map(b"".join),
    st.tuples(st.just(b"http://a.test"), paths, queries).map(b"".join),
    st.sampled_from([b"*", b"/", b"//b.test/x", b"http://a.test?x"]),
)
methods = st.sampled_from([b"GET", b"POST", b"HEAD", b"OPTIONS", b"DELETE", b"PUT", b"M-SEARCH"])
bodies = st.binary(max_size=20) | st.sampled_from(
    [b"0\r\n\r\n", b"\r\n\r\n", b"GET / HTTP/1.1\r\nHost: b.test\r\n\r\n"]
)


def in_chunks(body: bytes, sizes: list[int], extension: bytes, trailers: bytes) -> bytes:
    """`body` in chunks of these sizes and one for the rest, each with `extension`."""
    out = b""
    for size in [*sizes, len(body)]:
        part, body = body[:size], body[size:]
        if part:
            out += b"%x%s\r\n%s\r\n" % (len(part), extension, part)
    return out + b"0\r\n" + trailers + b"\r\n"


chunked_bodies = st.builds(
    in_chunks,
    bodies,
    st.lists(st.integers(1, 9), max_size=3),
    st.sampled_from([b"", b";a", b';a="b c"']),
    st.sampled_from([b"", b"X-sum: 1\r\n", b"X-sum: 1\r\nX-Other:\r\n", b"Content-Length: 3\r\nX_sum: 2\r\n"]),
)
framed = st.one_of(
    st.just((b"", b"")),
    bodies.map(lambda body: (b"Content-Length: %d\r\n" % len(body), body)),
    chunked_bodies.map(lambda body: (b"Transfer-Encoding: chunked\r\n", body)),
)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """One request that is very probably fine."""
    version = draw(st.sampled_from([b"1.1", b"1.1", b"1.1", b"1.0"]))
    framing, body = draw(framed)
    if version == b"1.0" and framing.startswith(b"T"):
        framing, body = b"", b""
    host = draw(st.sampled_from([b"Host: a.test\r\n", b"Host:a.test\r\n", b"hOST:  a.test \r\n"]))
    before, behind = draw(field_lines), draw(field_lines)
    line = draw(methods) + b" " + draw(targets) + b" HTTP/" + version + b"\r\n"
    return line + before + host + framing + behind + b"\r\n" + body


@st.composite
def answers(draw: st.DrawFn) -> bytes:
    """One answer that is very probably fine, with or without 1xx heads before it."""
    status = draw(st.sampled_from([b"200 OK", b"200", b"404 N\xf6", b"204 No Content", b"304 x", b"206 "]))
    framing, body = draw(framed)
    early = draw(st.sampled_from([b"", b"", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 E\r\nLink: </a>\r\n\r\n"]))
    if status[:3] in (b"204", b"304"):
        body = b""
    head = b"HTTP/1.1 " + status + b"\r\n" + draw(field_lines) + framing + draw(field_lines) + b"\r\n"
    return early + head + body


PIECES = [
    b"\r", b"\n", b"\r\n", b"\r\n\r\n", b"\n\n", b" ", b"\t", b"\0", b"\x0b", b"\x7f", b"\x80", b":", b",", b";", b"0",
    b"3", b"F", b"-", b"+", b"_", b"0x", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"/", b"%", b"#", b"\\", b"?",
    b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding:\r\n chunked\r\n", b"Transfer-Encoding : chunked\r\n",
    b"Content-Length: 3\r\n", b"Content-Length: 0\r\n", b"content-length:+3\r\n", b"Host: b.test\r\n",
    b"\r\n continued", b"Connection: close\r\n", b"Expect: 100-continue\r\n", b"0\r\n\r\n", b"3\r\nabc\r\n",
    b"GET / HTTP/1.1\r\nHost: c.test\r\n\r\n",
]  # fmt: skip


@st.composite
def damaged(draw: st.DrawFn, whole: st.SearchStrategy[bytes]) -> bytes:
    """A message with a few bytes taken out, put in or overwritten."""
    data = draw(whole)
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data)))
        gone = draw(st.sampled_from([0, 0, 0, 1, 1, 2, 5]))
        data = data[:at] + draw(st.sampled_from([b"", *PIECES])) + data[at + gone :]
    return data


cuts = st.lists(st.integers(1, 400), max_size=12)
pipelines = st.lists(requests(), min_size=1, max_size=3).map(b"".join)
damaged_pipelines = damaged(pipelines)
damaged_answers = damaged(answers())
