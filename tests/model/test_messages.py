"""What requests and exchanges know about themselves; the vocabulary of reasons."""

from __future__ import annotations

import pytest

from frontd.model.errors import FrontdError, Reason, Source
from frontd.model.headers import Headers
from frontd.model.messages import Client, Exchange, Request


def request(method: str = "GET", length: int | None = None, *, chunked: bool = False) -> Request:
    return Request(method, b"/", "/", "", "a", b"a", "1.1", Headers(), length, chunked)


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "PUT", "DELETE", "POST", "PATCH", "get", "M-SEARCH"])
def test_which_methods_may_be_repeated(method: str) -> None:
    assert request(method).is_idempotent is (method in ("GET", "HEAD", "OPTIONS", "PUT", "DELETE"))


def test_which_requests_have_a_body() -> None:
    assert not request().has_body
    assert not request(length=0).has_body
    assert request(length=1).has_body
    assert request(chunked=True).has_body


def test_exchanges_are_numbered() -> None:
    client = Client("1.2.3.4", 1, "1.2.3.4", "127.0.0.1", 80, "http", "http", 80)
    one, two = (Exchange(client, None, 0.0, 0.0) for _ in range(2))
    assert two.number == one.number + 1


def test_reasons_are_words_for_logs_and_pages() -> None:
    words = [reason.word for reason in Reason]
    assert len(set(words)) == len(words) == len(Reason.__members__)
    for reason in Reason:
        assert str(reason) == reason.word
        assert not set(reason.word) & set(' \t\r\n";,=')  # it stands in log lines and in Proxy-Status
        assert reason.sentence.endswith(".")
        assert reason.status == 0 or 400 <= reason.status <= 599
        assert (reason.status >= 500) or reason.source is Source.DOWNSTREAM


def test_an_error_carries_its_reason() -> None:
    error = FrontdError(Reason.QueueFull, detail="pool app", retry_after=3)
    assert (error.reason, error.status, error.retry_after, error.hint) == (Reason.QueueFull, 503, 3, "")
    assert str(error) == "QueueFull: pool app"
    assert FrontdError(Reason.Timer_EntityBody, status=400).status == 400
    assert str(FrontdError(Reason.NotFound)).startswith("NotFound: ")
