"""h11 as the referee for plain heads: everything a plain head says must be what h11 makes of the same bytes.

Only what h11 shows of itself is asked: its events, what it left over, and how it frames and ends its own messages.
"""

from __future__ import annotations

import h11

from frontd.protocol.scan import RequestHead, ResponseHead

FEW = 3000  # bytes of body that are really sent; a longer one must keep h11 waiting
BEHIND = b"\r\nGET / HTTP/1.1\r\n"  # what follows a body and is not part of it


def asker(method: str) -> h11.Connection:
    """The client side of a connection that has asked."""
    http = h11.Connection(h11.CLIENT)
    http.send(h11.Request(method=method, target="/", headers=[("Host", "a")]))
    http.send(h11.EndOfMessage())
    return http


def body_length(http: h11.Connection) -> tuple[int, bool]:
    """How many bytes of body h11 has read, and whether it saw the end of the message."""
    read = 0
    while isinstance(event := http.next_event(), h11.Data):
        read += len(event.data)
    return read, isinstance(event, h11.EndOfMessage)


def check_fields(head: RequestHead | ResponseHead, event: h11.Request | h11.Response) -> None:
    """Names, values, raw names and their order are the same."""
    assert [(name, value) for name, _, value in head.headers] == list(event.headers)
    assert head.headers.pairs() == event.headers.raw_items()


def check_length(http: h11.Connection, length: int) -> None:
    """The message that begins behind the head just read is `length` bytes long for h11."""
    http.receive_data(b"x" * min(length, FEW) + BEHIND)
    ended = length <= FEW
    read, end = body_length(http)
    assert (read, end) == (length if ended else FEW + len(BEHIND), ended)
    if ended:
        assert http.trailing_data[0] == BEHIND


def check_chunked(http: h11.Connection) -> None:
    """The message that begins behind the head just read is chunked for h11."""
    http.receive_data(b"3;x=y\r\nabc\r\n0\r\nA: b\r\n\r\n" + BEHIND)
    assert body_length(http) == (3, True)
    assert http.trailing_data[0] == BEHIND


def check_plain_request(head: RequestHead, data: bytes) -> None:
    """What a plain `head` says of the front of `data` is what h11 says."""
    http = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    http.receive_data(data)
    event = http.next_event()
    assert isinstance(event, h11.Request)
    assert (event.method, event.target, event.http_version) == (head.method, head.target, head.version)
    check_fields(head, event)
    assert http.trailing_data[0] == data[head.size :]
    assert not head.chunked
    assert not http.they_are_waiting_for_100_continue
    # the framing and the end, with bytes of our own behind the head
    http = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    http.receive_data(data[: head.size])
    http.next_event()
    check_length(http, head.content_length or 0)
    if (head.content_length or 0) <= FEW:
        assert http.their_state is (h11.DONE if head.keep_alive else h11.MUST_CLOSE)


def check_plain_response(head: ResponseHead, data: bytes) -> None:
    """What a plain `head` says of the front of `data` is what h11 says, as an answer to GET and to HEAD."""
    for method in ("GET", "HEAD"):
        http = asker(method)
        http.receive_data(data[: head.size])
        event = http.next_event()
        assert isinstance(event, h11.Response)
        assert (event.status_code, event.reason, event.http_version) == (head.status, head.reason, head.version)
        check_fields(head, event)
        assert http.trailing_data[0] == b""
        length = 0
        if method == "HEAD" or head.status in (204, 304):
            check_length(http, 0)
        elif head.chunked:
            assert head.content_length is None
            check_chunked(http)
        else:
            assert head.content_length is not None
            length = head.content_length
            check_length(http, length)
        if length <= FEW:
            assert http.their_state is (h11.DONE if head.keep_alive else h11.MUST_CLOSE)


def keeps_alive(data: bytes) -> bool:
    """Whether h11 keeps the connection of the request at the front of `data`: its answer does not say close."""
    http = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    http.receive_data(data)
    http.next_event()
    out = http.send(h11.Response(status_code=404, headers=[("Content-Length", "0")]))
    assert out is not None
    return b"close" not in out.lower()
