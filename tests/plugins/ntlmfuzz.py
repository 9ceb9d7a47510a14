"""Logons that were recorded and are played again with something changed in them.

The server's randomness and clock stand still here, so a logon that was recorded once is right every time.  Whatever is
changed, two things may not happen: an error of another kind than `NtlmError`, and an accept of something else than what
was recorded.  ``python -m tests.plugins.ntlmfuzz SECONDS [SEED]`` does so for as long as it is told.
"""

from __future__ import annotations

import random
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from frontd_plugins._ntlm import Acceptor, NtlmError, Response, Verified, nt_proof, upper
from frontd_plugins._ntlm_crypto import nt_hash
from frontd_plugins._spnego import NtlmInSpnego, offer

from tests.plugins.ntlmclients import BINDING, NTLM, OEM, SPN, Forger, kerberos_first, ntlm_first, step, type1, windows

HASH = nt_hash("secret")


def handshake() -> NtlmInSpnego:
    """The server's end, always with the same challenge."""
    return NtlmInSpnego(
        Acceptor(
            computer="FRONTD", domain="FRONTD", is_member=False, binding=BINDING, protection="allow",
            spns=frozenset((SPN,)), random=lambda size: bytes(range(size)), now=lambda: 1_700_000_000.0,
        )
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Recorded:
    """A logon that is right: the client's tokens, and what the server read in the last one."""

    name: str
    tokens: tuple[bytes, ...]
    response: Response
    is_sealed: bool  # by a MIC: nothing of it can be changed

    def fits(self, tokens: tuple[bytes, ...], response: Response) -> bool:
        """Whether a logon that was accepted is this one, as far as it is protected."""
        if self.is_sealed:
            same_list = offer(tokens[0]).mech_types == offer(self.tokens[0]).mech_types
            return same_list and response.message == self.response.message
        mine, theirs = (upper(one.user) + one.domain for one in (self.response, response))
        return mine == theirs and response.nt == self.response.nt


def play(tokens: tuple[bytes, ...]) -> Response | None:
    """Send tokens to a new server; what was accepted.  Raises `NtlmError`."""
    it = handshake()
    for token in tokens:
        answer = it.receive(token)
        if isinstance(answer, Response):
            is_right, key = nt_proof(HASH, answer)
            if not is_right:
                raise NtlmError("the password is wrong")
            it.complete(answer, Verified(answer.user, (), (), key))
            assert it.is_complete
            return answer
    return None


def record(name: str, say: Callable[[bytes | None], bytes], *, is_sealed: bool) -> Recorded:
    """A logon of a client that answers by `say`."""
    it, tokens, answer = handshake(), list[bytes](), None
    while not isinstance(answer, Response):
        tokens.append(say(answer))
        answer = it.receive(tokens[-1])
    accepted = play(tuple(tokens))
    assert accepted is not None
    return Recorded(name, tuple(tokens), accepted, is_sealed)


def recorded() -> list[Recorded]:
    """One logon of each kind of client."""
    first = type1(OEM | NTLM)
    forger = Forger(first=first)
    clients = {"bare": windows(), "bound": windows(bound=BINDING), "ntlm first": ntlm_first()}
    clients["kerberos first"] = kerberos_first()
    found = [record(name, lambda token, it=it: step(it, token), is_sealed=True) for name, it in clients.items()]  # type: ignore[misc]
    curl = record("curl", lambda type2: first if type2 is None else forger.type3(type2), is_sealed=False)
    return [*found, curl]


# ---------------------------------------------------------------------------------------------------- changes

NUMBERS = (0, 1, 2, 3, 7, 8, 12, 16, 63, 64, 65, 72, 88, 127, 128, 255, 256, 4096, 8191, 32767, 65535)


def mutated(token: bytes, chance: random.Random) -> bytes:
    """The token with one to four changes."""
    data = bytearray(token)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(data) + 1)
        kind = chance.randrange(8)
        if kind == 0:
            del data[at:]
        elif kind == 1:
            data[at:at] = chance.randbytes(chance.randint(1, 9))
        elif kind == 2:
            del data[at : at + chance.randint(1, 9)]
        elif kind == 3:
            data[at : at + 2] = struct.pack("<H", chance.choice(NUMBERS))
        elif kind == 4:
            data[at : at + 4] = struct.pack("<I", chance.choice((*NUMBERS, 2**31, 2**32 - 1, chance.getrandbits(32))))
        elif kind == 5:
            size = chance.randint(1, 60)
            data[at : at + size] = data[chance.randrange(len(data) + 1) :][:size]
        elif at < len(data):
            data[at] ^= 1 << chance.randrange(8)
    return bytes(data)


def outcome(logon: Recorded, tokens: tuple[bytes, ...]) -> str:
    """What became of a changed logon.  Raises `AssertionError` when the wrong thing was accepted."""
    try:
        response = play(tokens)
    except NtlmError:
        return "refused"
    if response is None:
        return "unfinished"
    assert logon.fits(tokens, response), (logon.name, tokens)
    return "the same"


def main(seconds: float, seed: int) -> Counter[str]:
    """Change logons for so long; counts what became of them."""
    chance, logons, counts = random.Random(seed), recorded(), Counter[str]()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for _ in range(100):
            logon = chance.choice(logons)
            tokens = list(logon.tokens)
            at = chance.randrange(len(tokens))
            tokens[at] = mutated(tokens[at], chance)
            if chance.random() < 0.05:
                chance.shuffle(tokens)
            counts[f"{logon.name}: {outcome(logon, tuple(tokens))}"] += 1
    return counts


if __name__ == "__main__":
    found = main(float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1)
    print(*(f"{count:9} {name}" for name, count in sorted(found.items())), sep="\n")
    print(f"{found.total():9} in all")
