"""Basic: credentials that were right are recognised as they are sent, and that opens nothing by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio
from frontd_plugins import _passwords as passwords
from frontd_plugins import basic
from trio.testing import MockClock

from frontd import Refuse
from tests.plugins.logons import ALICE, BOB, Desk, basic_field, exchange, outcome

OTHER = passwords.make("another", cost=4)


async def logged_on(folder: Path, **settings: Any) -> Desk:
    """Alice has logged on, and her credentials were seen so often that they are recognised as they are sent."""
    desk = Desk(folder, **settings)
    assert await desk.logon("alice", "secret") == "alice"
    for _ in range(3):
        assert desk.remembered("alice", "secret") == "alice"
    assert len(desk.plugin._meanings) == 1
    return desk


@pytest.mark.parametrize("text", [BOB, ALICE.replace("alice", "alicia") + BOB, f"alice:{OTHER}\n", ""])
async def test_credentials_are_recognised_only_for_the_line_they_were_right_for(tmp_path: Path, text: str) -> None:
    desk = await logged_on(tmp_path)
    desk.write(text)
    await desk.plugin._look_again()
    with pytest.raises(AssertionError, match="hashed"):
        desk.remembered("alice", "secret")
    assert await desk.logon("alice", "secret") == "LogonFailed"


async def test_they_are_recognised_for_as_long_as_the_logon_is_remembered(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    desk = await logged_on(tmp_path, cache_ttl=60)
    await trio.sleep(59)
    assert desk.remembered("alice", "secret") == "alice"
    await trio.sleep(2)
    with pytest.raises(AssertionError, match="hashed"):
        desk.remembered("alice", "secret")


async def test_they_are_recognised_on_their_site_and_over_tls_alone(tmp_path: Path) -> None:
    desk = await logged_on(tmp_path)
    sent = basic_field("alice", "secret")
    with pytest.raises(AssertionError, match="hashed"):
        desk.at_once(exchange(sent, site="other"))
    readable = desk.at_once(exchange(sent, scheme="http"))
    assert isinstance(readable, Refuse)
    assert readable.reason == "TlsRequired"
    assert desk.at_once(exchange(sent, sent)) is None  # two fields are none


async def test_what_is_kept_of_credentials_tells_nothing(tmp_path: Path) -> None:
    desk = await logged_on(tmp_path)
    kept = repr(desk.plugin._meanings) + repr(desk.plugin._right)
    for secret in ("secret", basic_field("alice", "secret").decode()[6:]):
        assert secret not in kept


async def test_the_recognised_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = await logged_on(tmp_path)
    monkeypatch.setattr(basic, "REMEMBERED", 4)
    for blanks in range(1, 9):  # another field each time, of one meaning
        field = basic_field("alice", "secret").replace(b" ", b" " * blanks)
        assert outcome(desk.at_once(exchange(field))) == "alice"
    assert len(desk.plugin._meanings) == 4
    assert desk.remembered("alice", "secret") == "alice"


async def test_they_do_not_pass_where_too_many_were_refused(tmp_path: Path, mock_clock: MockClock) -> None:
    desk = await logged_on(tmp_path, failures_per_user=1)
    assert await desk.logon("alice", "wrong") == "LogonFailed"
    for _ in range(10):
        assert desk.remembered("alice", "secret") == "alice"
        assert await desk.logon("alice", "wrong") == "LogonThrottled"
    assert desk.remembered("alice", "secret") == "LogonThrottled"
    assert desk.remembered("alice", "secret", "192.0.2.2") == "alice"
