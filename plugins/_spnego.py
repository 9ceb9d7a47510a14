"""SPNEGO (RFC 4178) as a server speaks it, as far as it carries NTLM.

How it works
------------
The first token of a client is a NegTokenInit: the mechanisms it knows, best first, and a token for the first of them.
`offer` says what is in it, also when it is no SPNEGO at all but a bare token of one mechanism, which clients may send.
Kerberos is left to GSSAPI, which reads SPNEGO itself; `NtlmInSpnego` is for everything that ends with NTLM:

* NTLM comes first: its Type 1 message is in the first token, and the answer has Type 2.
* NTLM comes later, since the client would rather have had Kerberos: the first token is of no use.  The answer chooses
  NTLM and asks for a MIC (``request-mic``), and Type 1 comes with the next token.
* A bare NTLM message: no SPNEGO around any of the legs.

The mechListMIC is a signature over the list of mechanisms, with the keys of the mechanism that was chosen from it.  So
a list that somebody changed on its way, to get NTLM instead of Kerberos, is found out.

Invariants
----------
* DER (X.690): one way to write each length, no bytes left over, every element at most once and in its order.
* A mechListMIC that was sent must be right.  Where another mechanism was preferred (RFC 4178 5), or the client
  protected NTLM with a MIC (MS-SPNG), one must be sent; that it did so is told where nobody can change it.
* After any error nothing works any more.
* Whatever bytes come: `NtlmError` is the only error that is raised.
"""

from __future__ import annotations

import hmac
from enum import Enum, IntEnum
from typing import NamedTuple

from frontd_plugins._ntlm import SIGNATURE, Acceptor, NtlmError, Response, Verified

KERBEROS = "1.2.840.113554.1.2.2"  # RFC 4121
MS_KERBEROS = "1.2.840.48018.1.2.2"  # the same with a slip of Windows 2000 (MS-SPNG 1.9)
NTLM = "1.3.6.1.4.1.311.2.2.10"  # MS-SPNG 1.9
SPNEGO = "1.3.6.1.5.5.2"

TOKEN_MAX = 65536  # bytes; a Kerberos ticket with many groups has 48 KiB (MaxTokenSize)
MECHANISMS_MAX = 16
OID_MAX = 32  # bytes

_SEQUENCE, _OID, _OCTETS, _ENUMERATED, _APPLICATION = 0x30, 0x06, 0x04, 0x0A, 0x60
_NTLM_DER = bytes.fromhex("060a2b06010401823702020a")


class NegState(IntEnum):
    """negState of a NegTokenResp (RFC 4178 4.2.2)."""

    ACCEPT_COMPLETED = 0
    ACCEPT_INCOMPLETE = 1
    REJECT = 2
    REQUEST_MIC = 3


class Offer(NamedTuple):
    """What a client's first token offers.

    `mechanisms` as dotted numbers, the preferred one first, whose token is `token` (None: none was sent).  `mech_types`
    is the MechTypeList in DER, as the mechListMIC signs it; empty: the token is a bare one, without SPNEGO.
    """

    mechanisms: tuple[str, ...]
    mech_types: bytes
    token: bytes | None


def offer(token: bytes) -> Offer:
    """Read the first token of a client.  Raises `NtlmError` for what is neither SPNEGO nor a bare token."""
    if token.startswith(SIGNATURE):
        return Offer((NTLM,), b"", token)
    inner = _whole(token, _APPLICATION)  # RFC 2743 3.1
    oid, at = _element(inner, 0, _OID)
    mechanism = _dotted(oid)
    if mechanism != SPNEGO:
        return Offer((mechanism,), b"", token)
    parts = _parts(_whole(inner[at:], 0xA0))
    if 0xA0 not in parts:
        raise NtlmError("SPNEGO: a NegTokenInit without mechanisms")
    listed = _whole(parts[0xA0], _SEQUENCE)
    mechanisms, at = list[str](), 0
    while at < len(listed) and len(mechanisms) < MECHANISMS_MAX:
        oid, at = _element(listed, at, _OID)
        mechanisms.append(_dotted(oid))
    if not mechanisms or at < len(listed):
        raise NtlmError(f"SPNEGO: {'more than ' if mechanisms else ''}{len(mechanisms)} mechanisms")
    return Offer(tuple(mechanisms), parts[0xA0], _octets(parts, 0xA2))


def wants_ntlm(offered: Offer) -> bool:
    """Whether NTLM is what the client prefers of the two that a server may have, Kerberos and NTLM."""
    mine = (name for name in offered.mechanisms if name in (KERBEROS, MS_KERBEROS, NTLM))
    return next(mine, "") == NTLM


class _Stage(Enum):
    FIRST = "no token has come"
    HELLO = "NTLM was chosen"
    CHALLENGED = "the challenge is out"
    ANSWERED = "the response is being verified"
    COMPLETE = "the client is authenticated"
    DEAD = "an error ended it"


class NtlmInSpnego:
    """The legs of one handshake around an `Acceptor`: receive, answer, until there is a response to verify."""

    def __init__(self, acceptor: Acceptor) -> None:
        self._acceptor = acceptor
        self._stage = _Stage.FIRST
        self._mech_types = b""  # empty: bare NTLM
        self._is_chosen_late = False
        self._mic: bytes | None = None

    @property
    def is_complete(self) -> bool:
        """Whether the client is authenticated: the only thing that says so."""
        return self._stage is _Stage.COMPLETE

    def receive(self, token: bytes) -> bytes | Response:
        """The answer to a token, or what is to be verified before `complete`.  Raises `NtlmError`."""
        stage, self._stage = self._stage, _Stage.DEAD
        if len(token) > TOKEN_MAX:
            raise NtlmError(f"SPNEGO: a token of {len(token)} bytes, and {TOKEN_MAX} are enough")
        if stage is _Stage.FIRST:
            return self._first(token)
        if stage is _Stage.HELLO:
            message = self._continued(token)
            answer = _response(NegState.ACCEPT_INCOMPLETE, token=self._acceptor.challenge(message))
            self._stage = _Stage.CHALLENGED
            return answer
        if stage is _Stage.CHALLENGED:
            response = self._acceptor.response(self._continued(token) if self._mech_types else token)
            self._stage = _Stage.ANSWERED
            return response
        raise NtlmError(f"SPNEGO: a token out of order: {stage.value}")

    def complete(self, response: Response, verified: Verified) -> bytes:
        """Check what the proof covers, and the list of mechanisms; the last token for the client, empty for bare NTLM.

        Raises `NtlmError`; the client is authenticated when it does not.
        """
        stage, self._stage = self._stage, _Stage.DEAD
        if stage is not _Stage.ANSWERED:
            raise NtlmError(f"SPNEGO: out of order: {stage.value}")
        self._acceptor.complete(response, verified)
        answer = self._last() if self._mech_types else b""
        self._stage = _Stage.COMPLETE
        return answer

    def _first(self, token: bytes) -> bytes:
        offered = offer(token)
        if NTLM not in offered.mechanisms:
            raise NtlmError(f"SPNEGO: the client does not offer NTLM, but {', '.join(offered.mechanisms)}")
        self._mech_types = offered.mech_types
        if not offered.mech_types:
            answer = self._acceptor.challenge(token)
        elif offered.mechanisms[0] != NTLM:
            self._is_chosen_late = True
            self._stage = _Stage.HELLO
            return _response(NegState.REQUEST_MIC, chosen=True)
        elif offered.token is None:
            self._stage = _Stage.HELLO
            return _response(NegState.ACCEPT_INCOMPLETE, chosen=True)
        else:
            type2 = self._acceptor.challenge(offered.token)
            answer = _response(NegState.ACCEPT_INCOMPLETE, chosen=True, token=type2)
        self._stage = _Stage.CHALLENGED
        return answer

    def _continued(self, token: bytes) -> bytes:
        """The NTLM message in a NegTokenResp of the client; its mechListMIC is kept."""
        parts = _parts(_whole(token, 0xA1))
        if 0xA0 in parts and _whole(parts[0xA0], _ENUMERATED) == bytes((NegState.REJECT,)):
            raise NtlmError("SPNEGO: the client rejects NTLM")
        if 0xA1 in parts and parts[0xA1] != _NTLM_DER:
            raise NtlmError("SPNEGO: the client goes on with another mechanism")
        message = _octets(parts, 0xA2)
        if message is None:
            raise NtlmError("SPNEGO: a NegTokenResp without a token")
        self._mic = _octets(parts, 0xA3)
        return message

    def _last(self) -> bytes:
        if self._mic is None:
            if self._is_chosen_late or self._acceptor.has_mic:
                raise NtlmError("SPNEGO: the client did not sign the list of mechanisms (mechListMIC)")
            return _response(NegState.ACCEPT_COMPLETED)
        if not hmac.compare_digest(self._acceptor.sign("client", self._mech_types), self._mic):
            raise NtlmError("SPNEGO: the list of mechanisms was changed on its way (mechListMIC)")
        return _response(NegState.ACCEPT_COMPLETED, mic=self._acceptor.sign("server", self._mech_types))


def _response(
    state: NegState, *, chosen: bool = False, token: bytes | None = None, mic: bytes | None = None
) -> bytes:
    """A NegTokenResp; only the first one says what was `chosen`."""
    body = _der(0xA0, _der(_ENUMERATED, bytes((state,))))
    if chosen:
        body += _der(0xA1, _NTLM_DER)
    if token is not None:
        body += _der(0xA2, _der(_OCTETS, token))
    if mic is not None:
        body += _der(0xA3, _der(_OCTETS, mic))
    return _der(0xA1, _der(_SEQUENCE, body))


def initial(mechanism: str, token: bytes) -> bytes:
    """A client's first token (RFC 4178 4.2.1): one mechanism on offer, and its token."""
    types = _der(0xA0, _der(_SEQUENCE, _encoded(mechanism)))
    body = _der(_SEQUENCE, types + _der(0xA2, _der(_OCTETS, token)))
    return _der(_APPLICATION, _encoded(SPNEGO) + _der(0xA0, body))


# ---------------------------------------------------------------------------------------------------- DER


def _der(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 128:
        return bytes((tag, size)) + content
    digits = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(digits))) + digits + content


def _element(data: bytes, at: int, tag: int | None = None) -> tuple[bytes, int]:
    """The content of the element at `at`, and where it ends.  Raises `NtlmError`, also for another tag than `tag`."""
    if at + 2 > len(data) or (tag is not None and data[at] != tag):
        raise NtlmError("SPNEGO: the token is damaged, or no SPNEGO")
    size, at = data[at + 1], at + 2
    if size >= 0x80:
        digits = data[at : at + (size & 0x7F)]
        if not 1 <= len(digits) <= 3 or len(digits) != size & 0x7F:
            raise NtlmError("SPNEGO: a length is damaged")
        at, size = at + len(digits), int.from_bytes(digits, "big")
        if size < 128 or digits[0] == 0:
            raise NtlmError("SPNEGO: a length is not written in DER")
    if at + size > len(data):
        raise NtlmError("SPNEGO: the token is cut off")
    return data[at : at + size], at + size


def _whole(data: bytes, tag: int) -> bytes:
    """The content of `data`, which is one element and nothing else."""
    content, end = _element(data, 0, tag)
    if end != len(data):
        raise NtlmError("SPNEGO: there are bytes behind the token")
    return content


def _parts(data: bytes) -> dict[int, bytes]:
    """The elements of a sequence with context tags, by tag."""
    body, found, at = _whole(data, _SEQUENCE), dict[int, bytes](), 0
    while at < len(body):
        tag = body[at]
        if not 0xA0 <= tag <= 0xA3 or (found and tag <= max(found)):
            raise NtlmError("SPNEGO: elements that do not belong here")
        found[tag], at = _element(body, at)
    return found


def _octets(parts: dict[int, bytes], tag: int) -> bytes | None:
    return _whole(parts[tag], _OCTETS) if tag in parts else None


def _encoded(oid: str) -> bytes:
    """An OBJECT IDENTIFIER (X.690 8.19)."""
    first, second, *rest = (int(part) for part in oid.split("."))
    content = bytearray((40 * first + second,))
    for part in rest:
        septets = [part & 0x7F]
        while part := part >> 7:
            septets.append(0x80 | part & 0x7F)
        content += bytes(reversed(septets))
    return _der(_OID, bytes(content))


def _dotted(oid: bytes) -> str:
    """An object identifier as dotted numbers (X.690 8.19)."""
    if not 1 <= len(oid) <= OID_MAX or oid[-1] & 0x80:
        raise NtlmError("SPNEGO: an object identifier is damaged")
    numbers, value = list[int](), 0
    for byte in oid:
        value = value << 7 | byte & 0x7F
        if not byte & 0x80:
            numbers.append(value)
            value = 0
    first = min(numbers[0] // 40, 2)
    return ".".join(map(str, (first, numbers[0] - 40 * first, *numbers[1:])))
