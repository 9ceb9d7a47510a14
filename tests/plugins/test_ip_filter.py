"""Rules and limits by address: who is let in, what is counted, and what is written instead of refusing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from frontd_plugins import ip_filter
from frontd_plugins.ip_filter import IpFilter
from hypothesis import given
from hypothesis import strategies as st

import frontd
from frontd.testing import ConfigurationError, site
from tests.plugins.exchanges import asked, placed
from tests.wire import Line, app, front, one_pool, settled

CLOCK = trio.testing.MockClock


def refusal(rules: IpFilter, address: str = "192.0.2.1") -> str:
    """Status and substatus of the refusal; empty: let in."""
    answer = rules.filter_request(asked(address=address))
    return f"{answer.status}.{answer.substatus}" if answer else ""


def settings(**given: Any) -> dict[str, Any]:
    return given


# ---------------------------------------------------------------------------------------------------- networks


@pytest.mark.parametrize(
    ("rules", "address", "is_refused"),
    [
        (settings(allow=["10.0.0.0/8"]), "10.1.2.3", False),
        (settings(allow=["10.0.0.0/8"]), "192.0.2.1", True),
        (settings(allow=["10.0.0.0/8"]), "2001:db8::1", True),
        (settings(allow=["10.0.0.0/8"]), "::ffff:10.1.2.3", False),
        (settings(allow=["::ffff:10.0.0.0/104"]), "10.1.2.3", False),
        (settings(allow=["::/0"]), "10.1.2.3", True),  # that is every IPv6 address
        (settings(allow=["2001:db8::/32"]), "2001:db8::1", False),
        (settings(allow=["2001:db8::/32"]), "2001:db9::1", True),
        (settings(allow=["fe80::/10"]), "fe80::1%eth0", False),
        (settings(deny=["192.0.2.0/24"]), "192.0.2.1", True),
        (settings(deny=["192.0.2.0/24"]), "::ffff:192.0.2.1", True),
        (settings(deny=["192.0.2.0/24"]), "192.0.3.1", False),
        (settings(deny=["192.0.2.7"]), "192.0.2.7", True),
        (settings(allow=["192.0.2.0/24"], deny=["192.0.2.7"]), "192.0.2.7", True),
        (settings(allow=["192.0.2.0/24"], deny=["192.0.2.7"]), "192.0.2.8", False),
        (settings(allow=["192.0.2.0/24"]), "what is this", True),
        (settings(deny=["192.0.2.0/24"]), "", True),
        (settings(requests=1), "", False),
    ],
)
async def test_who_is_let_in(rules: dict[str, Any], address: str, is_refused: bool) -> None:
    assert refusal(placed(IpFilter, **rules), address) == ("403.503" if is_refused else "")


def test_an_action_may_hide_that_there_is_a_rule() -> None:
    rules = placed(IpFilter, allow=["10.0.0.0/8"], action="not_found")
    answer = rules.filter_request(asked())
    assert answer == frontd.Refuse(404, "Rejected", substatus=503, log="the address is outside of the rules")


@given(st.ip_addresses(v=4), st.lists(st.ip_addresses(v=4).map(str), min_size=1, max_size=3), st.booleans())
def test_either_an_address_is_in_the_list_or_it_is_refused(address: object, others: list[str], is_listed: bool) -> None:
    listed = [*others, str(address)] if is_listed else others
    for spelt in (f"{address}", f"::ffff:{address}"):
        allowed = refusal(placed(IpFilter, allow=listed), spelt) == ""
        denied = refusal(placed(IpFilter, deny=listed), spelt) != ""
        assert allowed is denied is (str(address) in listed)


# ---------------------------------------------------------------------------------------------------- rate


async def test_a_burst_may_come_at_once_and_then_one_at_a_time(mock_clock: CLOCK) -> None:
    rules = placed(IpFilter, requests=20, interval=0.2)
    assert [refusal(rules) for _ in range(22)] == [""] * 20 + ["429.502"] * 2
    assert refusal(rules, "192.0.2.2") == ""  # others are counted by themselves
    for _ in range(50):
        mock_clock.jump(0.01)
        assert [refusal(rules), refusal(rules)] == ["", "429.502"]
    mock_clock.jump(3600)
    assert [refusal(rules) for _ in range(21)] == [""] * 20 + ["429.502"]


async def test_a_refusal_says_when_to_come_again(mock_clock: CLOCK) -> None:
    rules = placed(IpFilter, requests=2, interval=60)
    answers = [rules.filter_request(asked()) for _ in range(3)]
    assert answers[:2] == [None, None]
    assert answers[2] == frontd.Refuse(429, "RateLimit", substatus=502, log="requests of 192.0.2.1", retry_after=30)
    mock_clock.jump(29.5)
    assert (rules.filter_request(asked()) or answers[2]).retry_after == 1
    mock_clock.jump(0.5)
    assert rules.filter_request(asked()) is None


@pytest.mark.parametrize(
    ("action", "status", "word"), [("forbidden", 403, "RateLimit"), ("not_found", 404, "Rejected")]
)
async def test_limits_have_an_action_of_their_own(action: str, status: int, word: str, mock_clock: CLOCK) -> None:
    rules = placed(IpFilter, requests=1, limit_action=action, action="not_found")
    rules.filter_request(asked())
    answer = rules.filter_request(asked())
    assert answer == frontd.Refuse(status, word, substatus=502, log="requests of 192.0.2.1")


async def test_ipv6_clients_are_counted_by_network_and_ipv4_in_ipv6_clothes_by_address(mock_clock: CLOCK) -> None:
    rules = placed(IpFilter, requests=1)
    assert [refusal(rules, f"2001:db8:0:1::{n}") for n in (1, 2)] == ["", "429.502"]
    assert refusal(rules, "2001:db8:0:2::1") == ""
    assert [refusal(rules, address) for address in ("192.0.2.1", "::ffff:192.0.2.1")] == ["", "429.502"]
    assert refusal(rules, "::ffff:192.0.2.2") == ""
    by_address = placed(IpFilter, requests=1, ipv6_prefix=128)
    assert [refusal(by_address, f"2001:db8:0:1::{n}") for n in (1, 2, 1)] == ["", "", "429.502"]


@given(st.lists(st.floats(0, 0.3), max_size=60))
def test_no_interval_holds_more_than_a_burst_and_its_refill(pauses: list[float]) -> None:
    async def play() -> None:
        rules, passed = placed(IpFilter, requests=5, interval=0.2), []
        for pause in pauses:
            clock.jump(pause)
            if not refusal(rules):
                passed.append(trio.current_time())
        for at in passed:
            assert sum(at <= one < at + 0.2 for one in passed) <= 10

    clock = trio.testing.MockClock()
    trio.run(play, clock=clock)


# ---------------------------------------------------------------------------------------------------- concurrency


async def test_what_is_under_way_counts_until_its_log_line_is_written(mock_clock: CLOCK) -> None:
    rules = placed(IpFilter, concurrent_requests=2)
    first, second, third = asked(), asked(), asked()
    assert rules.filter_request(first) is None
    assert rules.filter_request(second) is None
    log = "concurrent_requests of 192.0.2.1"
    assert rules.filter_request(third) == frontd.Refuse(429, "RateLimit", substatus=501, log=log, retry_after=1)
    rules.log(third)  # was never counted
    assert refusal(rules) == "429.501"
    assert (len(rules._busy), len(rules._idle)) == (1, 0)
    rules.log(first)
    rules.log(first)  # counted down once, whoever asks twice
    assert refusal(rules) == ""
    assert refusal(rules) == "429.501"
    assert refusal(rules, "192.0.2.2") == ""


async def test_an_exchange_that_never_came_here_is_not_counted_down(mock_clock: CLOCK) -> None:
    rules = placed(IpFilter, concurrent_requests=1)
    under_way = asked()
    assert rules.filter_request(under_way) is None
    rules.log(asked())  # an earlier plugin refused it
    assert refusal(rules) == "429.501"


async def test_a_refused_request_takes_no_token_and_a_refused_token_no_place(mock_clock: CLOCK) -> None:
    rules = placed(IpFilter, concurrent_requests=1, requests=2, interval=10)
    first = asked()
    assert rules.filter_request(first) is None
    assert [refusal(rules) for _ in range(5)] == ["429.501"] * 5
    rules.log(first)
    second = asked()
    assert rules.filter_request(second) is None  # its token is still there
    rules.log(second)
    assert refusal(rules) == "429.502"
    mock_clock.jump(5)
    assert refusal(rules) == ""  # and the place is free


# ---------------------------------------------------------------------------------------------------- bounds


async def test_the_table_forgets_the_least_recent_but_nobody_who_is_under_way(
    mock_clock: CLOCK, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ip_filter, "TABLE", 100)
    rules = placed(IpFilter, concurrent_requests=1, requests=1, interval=1000)
    held = [asked(address=f"198.51.100.{n}") for n in range(50)]
    assert [rules.filter_request(one) for one in held] == [None] * 50
    for n in range(5000):
        one = asked(address=f"10.0.{n // 250}.{n % 250}")
        assert rules.filter_request(one) is None
        rules.log(one)
    assert (len(rules._idle), len(rules._busy)) == (100, 50)
    assert [refusal(rules, one.client.address) for one in held] == ["429.501"] * 50
    assert refusal(rules, "10.0.19.249") == "429.502"  # seen just now
    assert refusal(rules, "10.0.0.0") == ""  # forgotten long ago
    for one in held:
        rules.log(one)
    assert (len(rules._idle), len(rules._busy)) == (100, 1)


# ---------------------------------------------------------------------------------------------------- log_only


async def test_log_only_refuses_nothing_and_remarks_once_a_minute(mock_clock: CLOCK) -> None:
    remarks: list[str] = []
    rules = placed(IpFilter, remarks=remarks, deny=["192.0.2.1"], concurrent_requests=1, requests=3, log_only=True)
    assert [refusal(rules) for _ in range(10)] == [""] * 10
    assert remarks == ["192.0.2.1 would be refused (log_only): the address is outside of the rules"]
    assert [refusal(rules, "192.0.2.2") for _ in range(3)] == [""] * 3
    assert remarks[1:] == ["192.0.2.2 would be refused (log_only): more than concurrent_requests allows"]
    mock_clock.jump(60)
    assert refusal(rules) == ""
    assert len(remarks) == 3


async def test_log_only_counts_down_what_it_counted(mock_clock: CLOCK) -> None:
    remarks: list[str] = []
    rules = placed(IpFilter, remarks=remarks, concurrent_requests=1, log_only=True)
    for _ in range(3):
        one, two = asked(), asked()
        rules.filter_request(one)
        rules.filter_request(two)
        rules.log(one)
        rules.log(two)
        mock_clock.jump(60)
    assert len(remarks) == 3
    rules.filter_request(asked())
    assert len(remarks) == 3


# ---------------------------------------------------------------------------------------------------- the file


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (None, "nothing is filtered"),
        ({"log_only": True}, "nothing is filtered"),
        ({"allow": ["10.0.0.1/8"]}, "write 10.0.0.0/8"),
        ({"allow": ["intranet"]}, "an address or a network such as 10.0.0.0/8 is expected"),
        ({"allow": ["10.1.0.0/16"], "deny": ["10.0.0.0/8"]}, "deny has 10.0.0.0/8, and deny wins"),
        ({"allow": ["::ffff:10.1.0.0/112"], "deny": ["10.0.0.0/8"]}, "deny has 10.0.0.0/8, and deny wins"),
        ({"deny": ["10.0.0.0/8"], "interval": "1s"}, "an interval without `requests` limits nothing"),
        ({"requests": 0}, "at least 1"),
        ({"requests": 1, "interval": 0}, "more than 0"),
        ({"concurrent_requests": 0}, "at least 1"),
        ({"requests": 1, "action": "abort"}, "'forbidden' or 'not_found'"),
        ({"requests": 1, "ipv6_prefix": 129}, "at most 128"),
    ],
)
def test_wrong_settings_are_told_in_a_sentence(given: dict[str, Any] | None, sentence: str) -> None:
    with pytest.raises(ConfigurationError) as told, site([{"ip_filter": given}]):
        pass
    assert sentence in str(told.value)


# ---------------------------------------------------------------------------------------------------- on a site


def test_at_the_top_one_instance_counts_for_all_sites_and_by_the_address_that_is_believed() -> None:
    rules = {"ip_filter": {"requests": 2, "interval": "10s", "deny": ["198.51.100.0/24"]}}
    trust = {"trusted_proxies": ["192.0.2.1"]}
    with site([], server_plugins=[rules], config=trust) as it:
        for last, expected in ((1, 200), (1, 200), (1, 429), (2, 200)):
            assert it.get("/", {"X-Forwarded-For": f"203.0.113.{last}"}).status == expected
        assert (it.log[2].reason, it.log[2].substatus, it.log[2].client) == ("RateLimit", 502, "203.0.113.1")
        assert it.get("/", {"X-Forwarded-For": "198.51.100.7"}).status == 403
        assert (it.log[-1].reason, it.log[-1].substatus) == ("AddressDenied", 503)
        it.clock.advance(5)
        assert it.get("/", {"X-Forwarded-For": "203.0.113.1"}).status == 200
        it.reload([], server_plugins=[rules])
        assert it.get("/", {"X-Forwarded-For": "203.0.113.1"}).status == 429  # equal settings: the count goes on


async def test_requests_under_way_on_real_sockets(tmp_path: Path, autojump_clock: object) -> None:
    release = trio.Event()

    async def slow(line: Line) -> None:
        while await line.head():
            await release.wait()
            await line.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async with app(slow) as it:
        plugins = "plugins: [{ip_filter: {concurrent_requests: 2}}]"
        async with front(one_pool(it.url, site=plugins), tmp_path) as stage:
            first, second, gone, third = [await stage.connect() for _ in range(4)]
            await first.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            await gone.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            await settled()
            head, body = await third.get()
            assert head.startswith(b"HTTP/1.1 429 ")
            assert b"\r\nRetry-After: 1\r\n" in head
            assert b"Reason: RateLimit" in body
            await gone.close()  # a client that leaves frees its place
            await settled()
            await second.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            await settled()
            assert (await third.get())[0].startswith(b"HTTP/1.1 429 ")
            release.set()
            for line in (first, second):
                assert (await line.message())[1] == b"ok"
            for _ in range(5):
                assert (await third.get())[0].startswith(b"HTTP/1.1 200 ")
