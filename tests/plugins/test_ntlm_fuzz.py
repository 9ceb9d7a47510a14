"""Recorded logons with something changed in them: nothing crashes, and nothing else than the recorded is let in."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.plugins.ntlmfuzz import Recorded, outcome, recorded

LOGONS = recorded()

EDITS = st.lists(
    st.tuples(st.integers(0, 600), st.integers(0, 20), st.binary(max_size=20)), min_size=1, max_size=3
)  # from where, how many bytes go, what comes instead


@pytest.mark.parametrize("logon", LOGONS, ids=lambda logon: logon.name)
@settings(max_examples=150, deadline=None)
@given(which=st.integers(0, 2), edits=EDITS)
def test_any_edit(logon: Recorded, which: int, edits: list[tuple[int, int, bytes]]) -> None:
    tokens = list(logon.tokens)
    token = bytearray(tokens[which % len(tokens)])
    for at, size, new in edits:
        token[at : at + size] = new
    tokens[which % len(tokens)] = bytes(token)
    outcome(logon, tuple(tokens))


@pytest.mark.parametrize("logon", LOGONS, ids=lambda logon: logon.name)
def test_every_bit(logon: Recorded) -> None:
    """Each byte of each token with one bit flipped."""
    seen = set()
    for number, token in enumerate(logon.tokens):
        for at in range(len(token)):
            flipped = bytearray(token)
            flipped[at] ^= 1 << at % 8
            tokens = (*logon.tokens[:number], bytes(flipped), *logon.tokens[number + 1 :])
            seen.add(outcome(logon, tokens))
    assert "refused" in seen


def test_for_two_seconds_in_a_process_of_its_own() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.plugins.ntlmfuzz", "2"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-3]) > 100
