"""NTLM as a server speaks it (MS-NLMP), without I/O: three messages in and out, and what has to be checked about them.

How it works
------------
The client sends a NEGOTIATE_MESSAGE (Type 1), we answer with a CHALLENGE_MESSAGE (Type 2) with eight random bytes,
and the client proves in its AUTHENTICATE_MESSAGE (Type 3) that it knows the user's password: an HMAC over the challenge
and over what it says beside it.  `Acceptor.response` takes that apart and believes nothing of it.  Whoever knows the
password (a users file, a domain controller) then verifies the proof and derives the session key; that is `Verified`,
and comes from outside.  With it `Acceptor.complete` looks at what the proof covers: the integrity code over all three
messages (MIC), the TLS channel that the client thought it was in (channel binding, RFC 5929), and the service that it
meant to talk to (SPN).

Only NTLMv2 (MS-NLMP 3.3.2) is taken.  NTLMv1 and LM responses, which can be broken, and anonymous logons are refused,
whatever flags a message has.  The challenge always carries a Timestamp, which makes clients of Windows send a MIC
(MS-NLMP 3.1.5.1.2); those that never do (curl) pass without, unless `require_mic`.

Names come in UTF-16, or from clients that offer no Unicode (curl) in ASCII.

Invariants
----------
* The order is challenge, response, complete; each once.  After any error, and for whatever comes out of order, nothing
  works any more: another attempt needs another `Acceptor`, which means another challenge.
* A field lies behind the fixed header of its message and within the message, or the message is refused.
* Nothing of a response is used for a decision before the proof was verified, except to refuse it.
* Where the client says that it sent a MIC, it must be right; secrets are compared in constant time.
* Whatever bytes come: `NtlmError` is the only error that is raised.
"""

from __future__ import annotations

import hmac
import os
import re
import struct
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum, IntFlag
from typing import Literal, NamedTuple, Protocol

from frontd_plugins._ntlm_crypto import Rc4, hmac_md5, md5

SIGNATURE = b"NTLMSSP\0"
MESSAGE_MAX = 8192  # bytes; three names of NAME_MAX and a response of RESPONSE_MAX fit in
FIRST_MAX = 1024  # bytes of a Type 1 message, which is kept until the handshake is over; Windows names itself in it
NAME_MAX = 512  # bytes of a name as it is sent: 256 characters of UTF-16, DNS allows 255 for the longest
RESPONSE_MAX = 4096  # bytes of an NTLMv2 response
CHALLENGE_SIZE = 8  # bytes

_HEADER_1 = 16  # bytes: signature, type, flags; what may follow is of no use here (curl sends 32 in all)
_HEADER_3 = 64  # bytes up to NegotiateFlags; Version (8) and MIC (16) follow where the client sends them
_MIC_AT = 72
_MIC_END = 88
_PROOF = 16  # bytes of NTProofStr, at the beginning of an NTLMv2 response (MS-NLMP 2.2.2.8)
_BLOB = 28  # bytes of NTLMv2_CLIENT_CHALLENGE before its AV pairs (MS-NLMP 2.2.2.7)
_NO_BINDING = bytes(16)  # as if the pair were not there (MS-NLMP 2.2.2.1, MsvAvChannelBindings)
_FIRST = SIGNATURE + b"\1\0\0\0"
_EPOCH = 116_444_736_000_000_000  # 1970 as FILETIME: 100 ns since 1601
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_VERSION = struct.pack("<BBHBBBB", 10, 0, 0, 0, 0, 0, 15)  # NTLMSSP_REVISION_W2K3; the rest is for debugging (2.2.2.10)

Protection = Literal["none", "allow", "require"]
Side = Literal["client", "server"]


class Flag(IntFlag):
    """NegotiateFlags (MS-NLMP 2.2.2.5), as far as they mean something here."""

    UNICODE = 0x1
    OEM = 0x2
    REQUEST_TARGET = 0x4
    SIGN = 0x10
    SEAL = 0x20
    NTLM = 0x200
    ANONYMOUS = 0x800
    ALWAYS_SIGN = 0x8000
    TARGET_TYPE_DOMAIN = 0x10000
    TARGET_TYPE_SERVER = 0x20000
    EXTENDED_SESSIONSECURITY = 0x80000
    TARGET_INFO = 0x800000
    VERSION = 0x2000000
    KEY_128 = 0x20000000
    KEY_EXCH = 0x40000000
    KEY_56 = 0x80000000


# What is granted when the client asks for it.
_GRANTED = (
    Flag.SIGN | Flag.SEAL | Flag.ALWAYS_SIGN | Flag.EXTENDED_SESSIONSECURITY | Flag.VERSION
    | Flag.KEY_128 | Flag.KEY_EXCH | Flag.KEY_56
)  # fmt: skip


class Av:
    """AvId of AV_PAIR (MS-NLMP 2.2.2.1)."""

    EOL = 0
    COMPUTER = 1
    DOMAIN = 2
    FLAGS = 6
    TIMESTAMP = 7
    TARGET_NAME = 9
    CHANNEL_BINDINGS = 10


_MIC_IS_SENT = 0x2  # in MsvAvFlags


class NtlmError(Exception):
    """A logon that cannot go on.  The text is for the log alone, and holds no secrets."""


class Verified(NamedTuple):
    """What a verifier found out: who it is, and the session key.

    `name` as rules and apps shall see it, `groups` by name, `sids` of user and groups; `session_key` is the
    SessionBaseKey of MS-NLMP 3.3.2, 16 bytes.
    """

    name: str
    groups: tuple[str, ...]
    sids: tuple[str, ...]
    session_key: bytes


@dataclass(frozen=True, slots=True)
class Response:
    """An AUTHENTICATE_MESSAGE taken apart (MS-NLMP 2.2.1.3); nothing of it is verified.

    `user`, `domain` and `workstation` as the client wrote them; `challenge` is the one that we sent, 8 bytes; `nt` is
    the NTLMv2 response, `lm` the LMv2 response, of no use but to a domain controller.
    """

    user: str
    domain: str
    workstation: str
    challenge: bytes
    nt: bytes
    lm: bytes
    pairs: Mapping[int, bytes] = field(repr=False)
    flags: int = field(repr=False)
    random_key: bytes = field(repr=False)
    message: bytes = field(repr=False)


class Verifier(Protocol):
    """Who knows passwords, or asks somebody who does."""

    async def verify(self, response: Response) -> Verified:
        """Whose proof `response.nt` is.  Raises `NtlmError` when it is nobody's."""

    def standing(self, name: str) -> object:
        """What a logon under this name stands on: as long as it is equal, what was verified before still holds."""

    def account(self, response: Response) -> str:
        """Under which name guesses at this user are counted, the same for all spellings of one user."""


class _State(Enum):
    NEW = "no message has come"
    CHALLENGED = "the challenge is out"
    ANSWERED = "the response is being verified"
    COMPLETE = "the client is authenticated"
    DEAD = "an error ended it"


class Acceptor:
    """One handshake.  See the module for its order."""

    def __init__(
        self,
        *,
        computer: str,
        domain: str,
        is_member: bool,
        binding: bytes | None,
        protection: Protection,
        spns: frozenset[str],
        require_mic: bool = False,
        random: Callable[[int], bytes] = os.urandom,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Our NetBIOS names, and whether the computer is a member of the domain or stands alone.

        `binding` is the application data of RFC 5929 (None: not known), `protection` what is made of it, `spns` the
        services that clients may mean (empty: any), `now` in seconds since the epoch.
        """
        self._computer, self._domain, self._is_member = computer, domain, is_member
        self._binding, self._protection = binding, protection
        self._spns = frozenset(spn.casefold() for spn in spns)
        self._require_mic = require_mic
        self._random, self._now = random, now
        self._state = _State.NEW
        self._flags = 0
        self._nonce = self._stamp = b""
        self._sent: tuple[bytes, bytes] = (b"", b"")  # Type 1 and Type 2, as the MIC covers them
        self._response: Response | None = None
        self._key = b""  # ExportedSessionKey
        self._session: _Session | None = None
        self._has_mic = False

    @property
    def is_complete(self) -> bool:
        """Whether the client is authenticated: the only thing that says so."""
        return self._state is _State.COMPLETE

    @property
    def has_mic(self) -> bool:
        """Whether the client protected the three messages with a MIC."""
        return self._has_mic

    # ---------------------------------------------------------------------------------------------- the three steps

    def challenge(self, type1: bytes) -> bytes:
        """The CHALLENGE_MESSAGE for a NEGOTIATE_MESSAGE (MS-NLMP 3.2.5.1.1).  Raises `NtlmError`."""
        self._turn(_State.NEW)
        _check_type(type1, 1, _HEADER_1, FIRST_MAX)
        (asked,) = struct.unpack_from("<I", type1, 12)
        if not asked & Flag.NTLM or not asked & (Flag.UNICODE | Flag.OEM):
            raise NtlmError(f"the flags 0x{asked:08x} offer no NTLM, or no character set")
        charset = Flag.UNICODE if asked & Flag.UNICODE else Flag.OEM
        role = Flag.TARGET_TYPE_DOMAIN if self._is_member else Flag.TARGET_TYPE_SERVER
        self._flags = asked & _GRANTED | Flag.NTLM | Flag.REQUEST_TARGET | Flag.TARGET_INFO | charset | role
        self._nonce = self._random(CHALLENGE_SIZE)
        self._stamp = struct.pack("<Q", int(self._now() * 10_000_000) + _EPOCH)
        type2 = self._type2()
        self._sent = type1, type2
        self._state = _State.CHALLENGED
        return type2

    def response(self, type3: bytes) -> Response:
        """Take an AUTHENTICATE_MESSAGE apart; nothing is verified.  Raises `NtlmError` for what cannot be right."""
        self._turn(_State.CHALLENGED)
        _check_type(type3, 3, _HEADER_3, MESSAGE_MAX)
        (flags,) = struct.unpack_from("<I", type3, 60)
        lm, nt, domain, user, workstation, random_key = (_field(type3, at) for at in range(12, 60, 8))
        if flags & Flag.ANONYMOUS or not (user or nt):
            raise NtlmError("an anonymous logon")
        if len(nt) < _PROOF + _BLOB + 4:
            raise NtlmError("no NTLMv2 response, but NTLMv1 or LM" if nt or lm else "no response at all")
        if nt[_PROOF : _PROOF + 2] != b"\1\1":  # RespType and HiRespType, MS-NLMP 2.2.2.7
            raise NtlmError("the response is of another version than NTLMv2")
        if not user:
            raise NtlmError("a logon without a user name")
        self._response = Response(
            user=self._text(user),
            domain=self._text(domain),
            workstation=self._text(workstation),
            challenge=self._nonce,
            nt=nt,
            lm=lm,
            pairs=_av_pairs(nt[_PROOF + _BLOB :]),
            flags=flags & self._flags,  # what was not granted is not in force, whatever the client says
            random_key=random_key,
            message=type3,
        )
        self._state = _State.ANSWERED
        return self._response

    def complete(self, response: Response, verified: Verified) -> None:
        """Check what the proof covers (MS-NLMP 3.2.5.1.2), now that it was found to be right.

        Raises `NtlmError`; the client is authenticated when it does not.
        """
        self._turn(_State.ANSWERED)
        if response is not self._response:
            raise NtlmError("the response is not the one of this handshake")
        key = _exported_key(response, verified.session_key)
        self._check_echo(response.pairs)
        self._check_mic(response, key)
        self._check_binding(response.pairs)
        self._check_target(response.pairs)
        self._key = key
        self._state = _State.COMPLETE

    def sign(self, side: Side, data: bytes) -> bytes:
        """The next NTLMSSP_MESSAGE_SIGNATURE of a side over `data` (MS-NLMP 3.4.4.2), for the mechListMIC of SPNEGO.

        Raises `NtlmError` when the client is not authenticated or negotiated no signatures of this kind.
        """
        if self._response is None or not self.is_complete:
            raise NtlmError("there is no session to sign with")
        if self._session is None:
            self._session = _Session(self._key, self._response.flags)
        return self._session.sign(side, data)

    # ---------------------------------------------------------------------------------------------- parts of them

    def _turn(self, wanted: _State) -> None:
        """Go on only from `wanted`; whoever leaves by an error leaves a handshake that is dead."""
        state, self._state = self._state, _State.DEAD
        if state is not wanted:
            raise NtlmError(f"a message out of order: {state.value}")

    def _type2(self) -> bytes:
        """MS-NLMP 2.2.1.2."""
        target = self._domain if self._is_member else self._computer
        name = _utf16(target) if self._flags & Flag.UNICODE else target.encode("ascii")
        pairs = (
            (Av.DOMAIN, _utf16(self._domain)),
            (Av.COMPUTER, _utf16(self._computer)),
            (Av.TIMESTAMP, self._stamp),
            (Av.EOL, b""),
        )
        info = b"".join(struct.pack("<HH", kind, len(value)) + value for kind, value in pairs)
        return b"".join(
            (
                SIGNATURE,
                struct.pack("<IHHII", 2, len(name), len(name), 56, self._flags),
                self._nonce,
                bytes(8),
                struct.pack("<HHI", len(info), len(info), 56 + len(name)),
                _VERSION if self._flags & Flag.VERSION else bytes(8),
                name,
                info,
            )
        )

    def _text(self, name: bytes) -> str:
        try:
            text = name.decode("utf-16-le" if self._flags & Flag.UNICODE else "ascii")
        except UnicodeDecodeError:
            raise NtlmError("a name is not in the character set that was agreed on") from None
        if len(name) > NAME_MAX or _CONTROL.search(text):
            raise NtlmError("a name is too long or has control characters")
        return text

    def _check_echo(self, pairs: Mapping[int, bytes]) -> None:
        """Whoever sends our names back sends our Timestamp, too (MS-NLMP 3.1.5.1.2), unless somebody took it away, so
        that no MIC would be sent."""
        if pairs.keys() & {Av.DOMAIN, Av.COMPUTER, Av.TIMESTAMP} and pairs.get(Av.TIMESTAMP) != self._stamp:
            raise NtlmError("the challenge was changed on its way: its Timestamp has not come back")

    def _check_mic(self, response: Response, key: bytes) -> None:
        """MS-NLMP 3.2.5.1.2: over the three messages, with its own 16 bytes as zeros."""
        flags = response.pairs.get(Av.FLAGS, bytes(4))
        if len(flags) != 4:
            raise NtlmError("MsvAvFlags is damaged")
        if not int.from_bytes(flags, "little") & _MIC_IS_SENT:
            if self._require_mic:
                raise NtlmError("the client sent no MIC, and require_mic wants one")
            return
        message = response.message
        if _payload_at(message) < _MIC_END:
            raise NtlmError("the client says that it sent a MIC, and there is none")
        blank = message[:_MIC_AT] + bytes(16) + message[_MIC_END:]
        if not hmac.compare_digest(hmac_md5(key, *self._sent, blank), message[_MIC_AT:_MIC_END]):
            raise NtlmError("the MIC is wrong: a message was changed on its way, or it is of another handshake")
        self._has_mic = True

    def _check_binding(self, pairs: Mapping[int, bytes]) -> None:
        """RFC 5929 4 in MsvAvChannelBindings: MD5 of the gss_channel_bindings_struct (RFC 2744 3.11), without
        addresses."""
        if self._protection == "none":
            return
        sent = pairs.get(Av.CHANNEL_BINDINGS, _NO_BINDING)
        if len(sent) != 16:
            raise NtlmError("MsvAvChannelBindings is damaged")
        if self._binding is None and self._protection == "require":
            raise NtlmError("there is no TLS of ours that the logon could be bound to")
        if hmac.compare_digest(sent, _NO_BINDING):
            if self._protection == "require":
                raise NtlmError("the client did not bind the logon to its TLS connection")
            return
        # Over plain http, too: whoever tells of a TLS connection had one, and not with us
        if self._binding is None or not hmac.compare_digest(sent, _bound_to(self._binding)):
            raise NtlmError("the logon is bound to another TLS connection: somebody stands between us and the client")

    def _check_target(self, pairs: Mapping[int, bytes]) -> None:
        """MsvAvTargetName: the SPN that the client meant, where it says so."""
        sent = pairs.get(Av.TARGET_NAME, b"")
        if not self._spns or not sent:
            return
        try:
            spn = sent.decode("utf-16-le")
        except UnicodeDecodeError:
            raise NtlmError("MsvAvTargetName is damaged") from None
        if spn.casefold() not in self._spns:
            raise NtlmError(f"the client meant another service: {spn!a}")


class _Session:
    """Signatures of both sides (MS-NLMP 3.4), with extended session security alone."""

    def __init__(self, key: bytes, flags: int) -> None:
        self._can_sign = bool(flags & Flag.EXTENDED_SESSIONSECURITY)
        self._encrypts = bool(flags & Flag.KEY_EXCH)
        strength = 16 if flags & Flag.KEY_128 else 7 if flags & Flag.KEY_56 else 5
        self._numbers = {"client": 0, "server": 0}
        self._keys = {side: md5(key + _magic(side, b"signing")) for side in _WAYS}
        self._streams = {side: Rc4(md5(key[:strength] + _magic(side, b"sealing"))) for side in _WAYS}

    def sign(self, side: Side, data: bytes) -> bytes:
        if not self._can_sign:
            raise NtlmError("extended session security was not negotiated, so nothing can be signed")
        number = struct.pack("<I", self._numbers[side])
        self._numbers[side] += 1
        checksum = hmac_md5(self._keys[side], number, data)[:8]
        return b"\1\0\0\0" + (self._streams[side](checksum) if self._encrypts else checksum) + number


_WAYS = {"client": b"client-to-server", "server": b"server-to-client"}


def _magic(side: str, use: bytes) -> bytes:
    """The constants of SIGNKEY and SEALKEY (MS-NLMP 3.4.5.2, 3.4.5.3)."""
    return b"session key to " + _WAYS[side] + b" " + use + b" key magic constant\0"


def is_first(message: bytes) -> bool:
    """Whether this is a NEGOTIATE_MESSAGE, with which a client begins anew."""
    return message.startswith(_FIRST)


def nt_proof(nt_hash: bytes, response: Response) -> tuple[bool, bytes]:
    """Whether the proof of a response belongs to a password (its NT hash), and the SessionBaseKey (MS-NLMP 3.3.2).

    It takes the same time either way.
    """
    owf = hmac_md5(nt_hash, _utf16(upper(response.user) + response.domain))  # NTOWFv2
    proof = hmac_md5(owf, response.challenge, response.nt[_PROOF:])
    return hmac.compare_digest(proof, response.nt[:_PROOF]), hmac_md5(owf, proof)


def upper(name: str) -> str:
    """In capitals as Windows makes them, letter by letter: what would become two letters stays."""
    if name.isascii():
        return name.upper()
    return "".join(big if len(big := letter.upper()) == 1 else letter for letter in name)


def _exported_key(response: Response, base: bytes) -> bytes:
    """ExportedSessionKey (MS-NLMP 3.2.5.1.2): with NTLMv2 KeyExchangeKey is SessionBaseKey."""
    if len(base) != 16:
        raise NtlmError("the verifier gave no session key")
    if response.flags & Flag.KEY_EXCH and response.flags & (Flag.SIGN | Flag.SEAL):
        if len(response.random_key) != 16:
            raise NtlmError("the client sent no session key, and said that it would")
        return Rc4(base)(response.random_key)
    return base


def _utf16(text: str) -> bytes:
    return text.encode("utf-16-le")


def _bound_to(binding: bytes) -> bytes:
    """What a client sends that is bound to this channel."""
    return md5(bytes(16) + struct.pack("<I", len(binding)) + binding)


def _check_type(message: bytes, kind: int, least: int, most: int) -> None:
    if len(message) > most:
        raise NtlmError(f"a message of {len(message)} bytes, and {most} are enough")
    if len(message) < least or not message.startswith(SIGNATURE):
        raise NtlmError("no NTLM message, or not all of one")
    (sent,) = struct.unpack_from("<I", message, 8)
    if sent != kind:
        raise NtlmError(f"a message of type {sent} where type {kind} is due")


def _field(message: bytes, at: int) -> bytes:
    """What the eight bytes at `at` describe: length, room, offset (MS-NLMP 2.2.1.3)."""
    size, _, offset = struct.unpack_from("<HHI", message, at)
    if size == 0:
        return b""
    if size > RESPONSE_MAX or offset < _HEADER_3 or offset + size > len(message):
        raise NtlmError("a field reaches beyond its message")
    return message[offset : offset + size]


def _payload_at(message: bytes) -> int:
    """Where the first field of an AUTHENTICATE_MESSAGE lies, which is where its header ends."""
    fields = (struct.unpack_from("<HHI", message, at) for at in range(12, 60, 8))
    return min((offset for size, _, offset in fields if size), default=len(message))


def _av_pairs(data: bytes) -> dict[int, bytes]:
    """AV_PAIRs up to MsvAvEOL, each kind at most once (MS-NLMP 2.2.2.1)."""
    found: dict[int, bytes] = {}
    at = 0
    while at + 4 <= len(data):
        kind, size = struct.unpack_from("<HH", data, at)
        if kind == Av.EOL:
            return found
        if kind in found:
            raise NtlmError("an AV pair stands twice")
        at += 4
        if at + size > len(data):
            break
        found[kind] = data[at : at + size]
        at += size
    raise NtlmError("the AV pairs have no end")
