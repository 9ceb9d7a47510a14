"""The key that signs what apps are told of who has logged on, as a JSON Web Algorithm (RFC 7518 3).

Its kind decides: a P-256 private key in PEM signs with ES256, so that apps need its public half alone; anything else is
a secret that apps share, and signs with HS256.  A secret is at least as long as its hash (RFC 7518 3.2); where it is
text, blanks and line ends around it do not belong to it, since editors and shells add them.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from frontd.config.certificates import Unusable, file_bytes

SHORTEST = 32  # bytes of a secret


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A key and what it signs with."""

    algorithm: Literal["ES256", "HS256"]
    key: ec.EllipticCurvePrivateKey | bytes = field(repr=False)

    def sign(self, data: bytes) -> bytes:
        """The signature of `data`, as a JWS carries it: for ES256 the two numbers of 32 bytes (RFC 7518 3.4)."""
        if isinstance(self.key, bytes):
            return hmac.digest(self.key, data, hashlib.sha256)
        r, s = decode_dss_signature(self.key.sign(data, ec.ECDSA(hashes.SHA256())))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def read_signing_key(path: Path, blamed: str = "jwt_key") -> SigningKey:
    """The key in `path`.  Raises `Unusable` that blames the key `blamed` of the configuration."""
    data = file_bytes(path, blamed)
    if b"-----BEGIN " in data:
        return _from_pem(path, data, blamed)
    secret = data.strip() if data.isascii() else data
    if len(secret) < SHORTEST:
        hint = f"make one with   openssl rand -hex {SHORTEST} > {path}"
        raise Unusable(blamed, f"{path} holds {len(secret)} bytes; a secret has at least {SHORTEST}", hint)
    return SigningKey("HS256", secret)


def _from_pem(path: Path, data: bytes, blamed: str) -> SigningKey:
    hint = f"make one with   openssl ecparam -name prime256v1 -genkey -noout -out {path}"
    try:
        key = load_pem_private_key(data, None)
    except TypeError:
        raise Unusable(blamed, f"the key in {path} is encrypted", "decrypt it") from None
    except (ValueError, UnsupportedAlgorithm):
        raise Unusable(blamed, f"{path} holds no private key that can be read", hint) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise Unusable(blamed, f"the key in {path} is none of the curve P-256", hint)
    return SigningKey("ES256", key)
