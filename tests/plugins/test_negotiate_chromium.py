"""A real browser whose user has a ticket: it logs on where it was told to, and shows the page without asking."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from tests.live.house import tool
from tests.live.test_chromium import FLAGS, environment
from tests.plugins.test_negotiate import alice
from tests.plugins.test_negotiate_clients import plain
from tests.windows.realm import Realm, house, kdc

__all__ = ["alice", "house", "kdc"]  # fixtures


async def dom(home: Path, cache: Path, realm: Realm, url: str, *flags: str) -> str:
    """The page as it stands after loading.

    On Linux, Chromium's sandbox keeps it from loading the library of Kerberos, until it has once seen a challenge with
    Negotiate; then it remembers that it needs none the next time it is started.  This one has been started before.
    """
    profile = home / "profile"
    profile.mkdir()
    (profile / "Local State").write_text('{"net": {"received_http_auth_negotiate_headers": true}}')
    command = [tool("chromium"), *FLAGS, *flags, f"--user-data-dir={profile}", "--dump-dom", url]
    env = environment(home) | realm.variables | {"KRB5CCNAME": f"FILE:{cache}"}
    done = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False, env=env)
    return done.stdout.decode()


@pytest.mark.parametrize("is_told", [True, False], ids=["told", "not told"])
async def test_chromium(house: Realm, alice: Path, tmp_path: Path, is_told: bool) -> None:
    flags = ("--auth-server-allowlist=localhost",) if is_told else ()
    (tmp_path / "state").mkdir()
    async with plain(house, tmp_path / "state") as (stage, it):
        with trio.fail_after(60):
            page = await dom(tmp_path, alice, house, f"http://localhost:{stage.port()}/", *flags)
        if is_told:
            assert "ok" in page
            assert b"\r\nX-Remote-User: alice@TEST.FRONTD\r\n" in it.heads[0]
        else:
            assert "LogonRequired" in page
            assert not it.heads
