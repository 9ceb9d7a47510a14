"""Tickets with something changed in them, in a process of its own: it does not crash, and lets nobody else in."""

from __future__ import annotations

import base64
import json
import subprocess
import sys

from tests.plugins.krbfuzz import HOST
from tests.windows.realm import DCE, KRB5, MUTUAL, SPNEGO, Realm, house, kdc, token

__all__ = ["house", "kdc"]  # fixtures

SECONDS = 2


def fuzzed(house: Realm, seconds: float) -> list[str]:
    """What the process prints."""
    alice = house.ticket("alice")
    tokens = {
        "SPNEGO": token(alice, HOST),
        "bare": token(alice, HOST, mechanism=KRB5),
        "bound": token(alice, HOST, mechanism=SPNEGO, binding=b"tls-server-end-point:" + bytes(32)),
        "three legs": token(alice, HOST, flags=DCE | MUTUAL),
    }
    path = house.folder / "tokens.json"
    path.write_text(json.dumps({name: base64.b64encode(one).decode() for name, one in tokens.items()}))
    words = [str(seconds), str(house.folder / "http.keytab"), str(path)]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.plugins.krbfuzz", *words],
        capture_output=True, text=True, timeout=seconds + 60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_for_two_seconds_in_a_process_of_its_own(house: Realm) -> None:
    told = fuzzed(house, SECONDS)
    assert int(told[-1].split()[0]) > 100, told
