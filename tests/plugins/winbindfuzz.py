"""Responses with something changed in them, for a real winbind and its domain controller.

Whatever is changed, three things may not happen: an error of another kind than `Denied` or `Unavailable`, an accept of
another proof or another account, and that the right response is refused afterwards.  After every few changed ones comes
the right one, so that the domain does not lock the account.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from frontd_plugins import _winbind as winbind
from frontd_plugins._ntlm import Response
from frontd_plugins._throttle import counted

from tests.plugins.ntlmfuzz import mutated
from tests.plugins.test_winbind import ntlmv2
from tests.windows.ad import NETBIOS, PASSWORDS

USER = "bob"


def changed(sent: Response, chance: random.Random) -> Response:
    """The response with one to three changes."""
    for _ in range(chance.randint(1, 3)):
        what = chance.choice(("nt", "nt", "nt", "challenge", "user", "domain", "workstation"))
        if what == "nt":
            sent = replace(sent, nt=mutated(sent.nt, chance))
        elif what == "challenge":
            sent = replace(sent, challenge=chance.choice((bytes(8), chance.randbytes(8), sent.challenge)))
        else:
            text = mutated(str(getattr(sent, what)).encode("utf-16-le"), chance).decode("utf-16-le", "replace")
            names: dict[str, Any] = {what: text * chance.choice((1, 1, 1, 1, 60))}
            sent = replace(sent, **names)
    return sent


async def outcome(sent: Response, right: Response) -> str:
    """What became of a response.  Raises `AssertionError` when the wrong thing was accepted."""
    try:
        found = await winbind.Winbind().verify(sent)
    except winbind.Unavailable as error:
        return f"unavailable: {error}"
    except winbind.Denied:
        return "refused"
    same = (sent.nt, sent.challenge, counted(sent.user)) == (right.nt, right.challenge, USER)
    assert same, sent
    assert found.name == f"{NETBIOS}\\{USER}", found
    return "the same"


async def fuzz(seconds: float, seed: int) -> dict[str, int]:
    """Change responses for so long; counts what became of them.  A play, see `tests.windows.ad`."""
    chance, counts = random.Random(seed), Counter[str]()
    right, _ = ntlmv2(USER, NETBIOS, PASSWORDS[USER])
    end = time.monotonic() + seconds
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(winbind, "FLOOR", 0.0)  # no pauses here
        while time.monotonic() < end:
            for _ in range(4):
                counts[await outcome(changed(right, chance), right)] += 1
            assert await outcome(right, right) == "the same"
    return dict(counts)
