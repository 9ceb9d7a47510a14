"""Tickets with something changed in them: mutated tokens for a real acceptor, with the keytab of a real KDC.

Whatever is changed, three things may not happen: an error of another kind than `GssError`, an accept of somebody else
than whose ticket it is, and an end of the process.  ``python -m tests.plugins.krbfuzz SECONDS KEYTAB TOKENS [SEED]``
does so for as long as it is told; the file TOKENS has JSON, name and base64 of each token.  The environment says where
the replay cache is (`tests.windows.realm`).
"""

from __future__ import annotations

import base64
import json
import random
import sys
import time
from collections import Counter
from pathlib import Path

from frontd_plugins import _gss as gss

from tests.plugins.ntlmfuzz import mutated

HOST, USER = "test.example", "alice@TEST.FRONTD"


def outcome(keytab: Path, tokens: list[bytes], binding: bytes | None) -> str:
    """What became of changed legs.  Raises `AssertionError` when somebody else was let in."""
    handshake = gss.Handshake(keytab, frozenset({f"http/{HOST}"}), binding)
    for token in tokens:
        try:
            found = handshake._step(token)
        except gss.GssError as error:
            said = str(error)
            assert said.isprintable(), said
            assert len(said) < 500, said
            return "refused"
        if isinstance(found, gss.Logon):
            assert found.name == USER, found.name
            return "the same"
    return "unfinished"


def main(seconds: float, keytab: Path, tokens: dict[str, bytes], seed: int) -> Counter[str]:
    """Change tokens for so long; counts what became of them."""
    chance, counts = random.Random(seed), Counter[str]()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for _ in range(50):
            name, whole = chance.choice(list(tokens.items()))
            legs = [mutated(whole, chance) for _ in range(chance.choice((1, 1, 1, 2)))]
            binding = chance.choice((None, b"tls-server-end-point:" + bytes(32)))
            counts[f"{name}: {outcome(keytab, legs, binding)}"] += 1
    return counts


if __name__ == "__main__":
    texts = json.loads(Path(sys.argv[3]).read_text())
    read = {name: base64.b64decode(text) for name, text in texts.items()}
    found = main(float(sys.argv[1]), Path(sys.argv[2]), read, int(sys.argv[4]) if len(sys.argv) > 4 else 1)
    print(*(f"{count:9} {name}" for name, count in sorted(found.items())), sep="\n")
    print(f"{found.total():9} in all")
