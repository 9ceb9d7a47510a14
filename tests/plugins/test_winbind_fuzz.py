"""Responses with something changed in them: winbind and we survive them, and nobody else is let in."""

from __future__ import annotations

from tests.plugins.winbindfuzz import fuzz
from tests.windows.ad import Domain


def test_for_a_second(domain: Domain) -> None:
    counts = domain.play(fuzz, seconds=1, seed=1)
    assert counts["refused"] > 10, counts
