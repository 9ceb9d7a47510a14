"""The referee: h11, which is asked about every head that is not plain.

It sees only complete heads that passed the wire check; its verdict on what they mean stands.  Nothing of it is kept.
"""

from __future__ import annotations

import h11

from frontd.model.errors import FrontdError, Reason

# Heads come complete and within our limits, so h11's own limit must only never be the smaller one.
LIMIT = 1 << 24


def judge_request(head: bytes) -> None:
    """Let h11 say what it thinks of a request head that passed the wire check.  Raises `FrontdError`."""
    referee = h11.Connection(h11.SERVER, max_incomplete_event_size=LIMIT)
    referee.receive_data(head)
    try:
        event = referee.next_event()
    except h11.RemoteProtocolError as error:
        raise FrontdError(Reason.BadRequest, detail=str(error)) from None
    assert isinstance(event, h11.Request), event


def judge_response(head: bytes, method: str, *, upgrades: bool) -> None:
    """Let h11 say what it thinks of a response head to a request of `method`.  Raises `FrontdError`."""
    referee = h11.Connection(h11.CLIENT, max_incomplete_event_size=LIMIT)
    asked = [(b"Host", b"app")]
    if upgrades:
        asked += [(b"Connection", b"Upgrade"), (b"Upgrade", b"websocket")]
    referee.send(h11.Request(method=method, target=b"/", headers=asked))
    referee.send(h11.EndOfMessage())
    referee.receive_data(head)
    try:
        event = referee.next_event()
    except h11.RemoteProtocolError as error:
        raise FrontdError(Reason.BadUpstreamHead, detail=str(error)) from None
    assert isinstance(event, h11.Response | h11.InformationalResponse), event
