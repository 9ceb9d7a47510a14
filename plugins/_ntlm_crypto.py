"""The old algorithms that NTLM is made of (MS-NLMP 6): MD4, HMAC-MD5, RC4.

None of them is good for anything new.  Here they protect what they have to: a proof over a fresh challenge, sixteen
bytes of a session key, and the signature of a list.  MD4 and RC4 are written out, since OpenSSL 3 no longer has them;
MD5 is hashlib's, which a machine in FIPS mode refuses with `ValueError` (`available` tells beforehand).
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Callable

_MASK = 0xFFFFFFFF


def available() -> bool:
    """Whether this machine lets MD5 be used."""
    try:
        hmac_md5(b"key", b"data")
        md5(b"data")
    except ValueError:
        return False
    return True


def md5(data: bytes) -> bytes:
    """RFC 1321, 16 bytes."""
    return hashlib.md5(data).digest()


def hmac_md5(key: bytes, *parts: bytes) -> bytes:
    """RFC 2104 with MD5 over the parts one after the other, 16 bytes."""
    return hmac.digest(key, b"".join(parts), "md5")


class Rc4:
    """A stream of RC4 (in MS-NLMP: RC4Init and the handle it gives); what is encrypted twice is as it was."""

    __slots__ = ("_box", "_i", "_j")

    def __init__(self, key: bytes) -> None:
        """`key` is 1 to 256 bytes long."""
        box, j = list(range(256)), 0
        for i in range(256):
            j = (j + box[i] + key[i % len(key)]) & 255
            box[i], box[j] = box[j], box[i]
        self._box, self._i, self._j = box, 0, 0

    def __call__(self, data: bytes) -> bytes:
        """The next bytes of the stream over `data`."""
        box, i, j = self._box, self._i, self._j
        out = bytearray()
        for byte in data:
            i = (i + 1) & 255
            j = (j + box[i]) & 255
            box[i], box[j] = box[j], box[i]
            out.append(byte ^ box[(box[i] + box[j]) & 255])
        self._i, self._j = i, j
        return bytes(out)


def nt_hash(password: str) -> bytes:
    """NTOWFv1 (MS-NLMP 3.3.1): MD4 of the password in UTF-16, 16 bytes.  As good as the password itself."""
    return md4(password.encode("utf-16-le"))


def _choose(x: int, y: int, z: int) -> int:
    return (x & y) | (~x & z)


def _majority(x: int, y: int, z: int) -> int:
    return (x & y) | (x & z) | (y & z)


def _parity(x: int, y: int, z: int) -> int:
    return x ^ y ^ z


_Round = tuple[Callable[[int, int, int], int], int, tuple[int, ...], tuple[int, ...]]
_ROUNDS: tuple[_Round, ...] = (  # function, constant, order of the words, shifts (RFC 1320 3.4)
    (_choose, 0, tuple(range(16)), (3, 7, 11, 19)),
    (_majority, 0x5A827999, (0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), (3, 5, 9, 13)),
    (_parity, 0x6ED9EBA1, (0, 8, 4, 12, 2, 10, 6, 14, 1, 9, 5, 13, 3, 11, 7, 15), (3, 9, 11, 15)),
)


def md4(data: bytes) -> bytes:
    """RFC 1320, 16 bytes."""
    state = (0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476)
    padded = data + b"\x80" + bytes((55 - len(data)) % 64) + struct.pack("<Q", len(data) * 8)
    for at in range(0, len(padded), 64):
        words = struct.unpack_from("<16I", padded, at)
        a, b, c, d = state
        for function, constant, order, shifts in _ROUNDS:
            for step, word in enumerate(order):
                mixed = (a + function(b, c, d) + words[word] + constant) & _MASK
                shift = shifts[step % 4]
                a, b, c, d = d, ((mixed << shift) | (mixed >> (32 - shift))) & _MASK, b, c
        state = tuple((old + new) & _MASK for old, new in zip(state, (a, b, c, d), strict=True))  # type: ignore[assignment]
    return struct.pack("<4I", *state)
