"""Clients for the plays about NTLM: pyspnego, which does it right, and a forger that does it in any wrong way.

The forger makes messages by the layout of MS-NLMP 2.2.1 with nothing but `hmac` and the NT hash, so that a play can
change one thing and leave the proof right.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

import spnego
from frontd_plugins._ntlm import Acceptor, Response, Verified, nt_proof
from frontd_plugins._ntlm_crypto import nt_hash
from spnego._context import GSSMech
from spnego._negotiate import NegotiateProxy
from spnego.channel_bindings import GssChannelBindings

from frontd.testing import Answer, Client

BINDING = b"tls-server-end-point:" + hashlib.sha256(b"a certificate").digest()
SPN = "HTTP/test.example"

UNICODE, OEM, SIGN, NTLM, ALWAYS_SIGN, ESS, KEY_EXCH = 0x1, 0x2, 0x10, 0x200, 0x8000, 0x80000, 0x40000000
EOL, AV_FLAGS, TARGET_NAME, BINDINGS = 0, 6, 9, 10

Pair = tuple[int, bytes]


def acceptor(
    *, binding: bytes | None = None, protection: str = "allow", spns: Sequence[str] = (), require_mic: bool = False,
    domain: str = "FRONTD", is_member: bool = False,
) -> Acceptor:  # fmt: skip
    return Acceptor(
        computer="FRONTD", domain=domain, is_member=is_member, binding=binding, protection=protection,  # type: ignore[arg-type]
        spns=frozenset(spns), require_mic=require_mic,
    )  # fmt: skip


def complete(it: Acceptor, type3: bytes) -> None:
    """The last two steps, with a verifier that knows the password "secret"."""
    response = it.response(type3)
    it.complete(response, verified(response))


def verified(response: Response, password: str = "secret") -> Verified:
    """What a verifier says that knows one password for everybody; fails the play when the proof is not right."""
    is_right, key = nt_proof(nt_hash(password), response)
    assert is_right
    return Verified(response.user, (), (), key)


def windows(
    user: str = "alice", password: str = "secret", *, bound: bytes | None = None, protocol: str = "ntlm"
) -> spnego.ContextProxy:
    """A client that behaves as Windows does; `bound` is the application data of its channel binding."""
    bindings = None if bound is None else GssChannelBindings(application_data=bound)
    return spnego.client(
        user, password, hostname="test.example", service="HTTP", protocol=protocol, channel_bindings=bindings,
        options=spnego.NegotiateOptions.use_ntlm,
    )  # fmt: skip


def step(client: spnego.ContextProxy, token: bytes | None = None) -> bytes:
    found = client.step(token)
    assert found
    return found


class Ticket:
    """A Kerberos context of pyspnego that has a ticket which we cannot read."""

    complete = False
    _requires_mech_list_mic = False

    def step(self, in_token: bytes | None = None, **_: object) -> bytes:
        assert in_token is None, "the server chose NTLM"
        return b"\x60\x06\x06\x04ab\x01\x02"


def kerberos_first(password: str = "secret") -> NegotiateProxy:
    """A client that offers Kerberos, then NTLM, as Windows does within a domain."""
    inner = windows(password=password)
    inner._is_wrapped = True
    contexts = {GSSMech.kerberos: Ticket(), GSSMech.ntlm: inner}
    options = spnego.NegotiateOptions.use_negotiate
    return NegotiateProxy("alice", password, hostname="test.example", options=options, _negotiate_contexts=contexts)


def ntlm_first() -> NegotiateProxy:
    """A client that offers NTLM alone."""
    inner = windows()
    inner._is_wrapped = True
    options = spnego.NegotiateOptions.use_negotiate
    return NegotiateProxy("alice", "secret", options=options, _negotiate_contexts={GSSMech.ntlm: inner})


# ---------------------------------------------------------------------------------------------------- the forger


def type1(flags: int = UNICODE | NTLM | ALWAYS_SIGN | ESS, size: int = 32) -> bytes:
    return (b"NTLMSSP\0" + struct.pack("<II", 1, flags)).ljust(size, b"\0")


@dataclass(slots=True)
class Forger:
    """Makes an AUTHENTICATE_MESSAGE for a challenge.

    `pairs` replace those of the challenge that have their number, `more` come after them; `header` is the size of the
    fixed part (88 with a MIC, 64 as curl's); `mic` is ``right``, ``wrong`` or ``none``; `claims_mic` sets MsvAvFlags.
    """

    user: str | bytes = "alice"
    password: str = "secret"
    domain: str | bytes = ""
    first: bytes = field(default_factory=type1)
    pairs: dict[int, bytes] = field(default_factory=dict)
    more: Sequence[Pair] = ()
    header: int = 64
    mic: str = "none"
    flags: int | None = None
    nt: bytes | None = None
    lm: bytes = b""
    version: bytes = b"\1\1"
    ends: bool = True
    random_key: bytes = b""

    def type3(self, type2: bytes) -> bytes:
        challenge = type2[24:32]
        (granted,) = struct.unpack_from("<I", type2, 20)
        flags = granted if self.flags is None else self.flags
        user, domain = self._name(self.user, granted), self._name(self.domain, granted)
        nt, key = self._response(type2, challenge)
        parts = (self.lm, nt if self.nt is None else self.nt, domain, user, b"", self.random_key)
        at, places = self.header, b""
        for part in parts:
            places += struct.pack("<HHI", len(part), len(part), at)
            at += len(part)
        head = (b"NTLMSSP\0" + struct.pack("<I", 3) + places + struct.pack("<I", flags)).ljust(self.header, b"\0")
        message = head + b"".join(parts)
        if self.mic == "none":
            return message
        mic = hmac.digest(key, self.first + type2 + message, "md5")
        if self.mic == "wrong":
            mic = mic[:-1] + bytes((mic[-1] ^ 1,))
        return message[:72] + mic + message[88:]

    def _name(self, name: str | bytes, granted: int) -> bytes:
        if isinstance(name, bytes):
            return name
        return name.encode("utf-16-le" if granted & UNICODE else "ascii")

    def _response(self, type2: bytes, challenge: bytes) -> tuple[bytes, bytes]:
        size, _, at = struct.unpack_from("<HHI", type2, 40)
        pairs = {**_pairs(type2[at : at + size]), **self.pairs}
        if self.mic != "none":
            pairs.setdefault(AV_FLAGS, struct.pack("<I", 2))
        listed = [*pairs.items(), *self.more, *([(EOL, b"")] if self.ends else [])]
        blob = self.version + bytes(6) + bytes(8) + b"\xaa" * 8 + bytes(4)
        blob += b"".join(struct.pack("<HH", kind, len(value)) + value for kind, value in listed)
        user = self.user if isinstance(self.user, str) else ""
        domain = self.domain if isinstance(self.domain, str) else ""
        owf = hmac.digest(nt_hash(self.password), (user.upper() + domain).encode("utf-16-le"), "md5")
        proof = hmac.digest(owf, challenge + blob, "md5")
        return proof + blob, hmac.digest(owf, proof, "md5")


def _pairs(data: bytes) -> dict[int, bytes]:
    found, at = dict[int, bytes](), 0
    while True:
        kind, size = struct.unpack_from("<HH", data, at)
        if kind == EOL:
            return found
        found[kind] = data[at + 4 : at + 4 + size]
        at += 4 + size


# ---------------------------------------------------------------------------------------------------- over HTTP


def field_of(message: bytes, scheme: str = "NTLM") -> dict[str, str]:
    """The header with a message in it."""
    return {"Authorization": f"{scheme} {base64.b64encode(message).decode()}"}


def challenge_of(answer: Answer, scheme: str = "NTLM") -> bytes:
    """The challenge in an answer."""
    assert answer.status == 401
    (value,) = answer.headers.get_all("WWW-Authenticate")
    word, _, token = value.partition(" ")
    assert word == scheme
    assert token
    return base64.b64decode(token, validate=True)


def begun(line: Client, first: bytes | None = None) -> bytes:
    """The challenge after the first leg on a connection."""
    return challenge_of(line.get("/", field_of(type1() if first is None else first)))


def logon(
    line: Client, user: str = "alice", password: str = "secret", path: str = "/", *, bound: bytes | None = None
) -> Answer:
    """Both legs of a client like Windows; the last answer."""
    client = windows(user, password, bound=bound)
    type2 = challenge_of(line.get(path, field_of(step(client))))
    return line.get(path, field_of(step(client, type2)))
