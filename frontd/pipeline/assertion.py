"""What an app is told of who has logged on, signed: ``X-Frontd-Identity``, a JSON Web Token (RFC 7519) as a compact JWS
(RFC 7515 7.1).

How it works
------------
A `Signer` stands on a site.  It makes a token when an identity is first told to an app, and gives the same one again
while at least half of its lifetime is left: so a request costs a look into a table, and an app always gets a token that
is good for a while.  Whoever has logged on is compared by value, so all connections of one user share a token.

Invariants
----------
* A token is never valid for longer than the identity that it speaks of.
* What is remembered is bounded; what was used longest ago is forgotten.
"""

from __future__ import annotations

import base64
import json
import time
from collections import OrderedDict
from typing import Any

from frontd.config.signing import SigningKey
from frontd.model.verdicts import Identity

REMEMBERED = 1000  # tokens; one with 200 security identifiers has 13 kB


class Signer:
    """Signs identities for the apps of one site."""

    def __init__(self, key: SigningKey, issuer: str, audience: str | None, lifetime: float) -> None:
        self._key = key
        self._issuer = issuer
        self._audience = audience
        self._lifetime = lifetime
        self._start = _part({"alg": key.algorithm, "typ": "JWT"})
        self._tokens: OrderedDict[tuple[Identity, str], tuple[float, bytes]] = OrderedDict()  # renewed when (s), what

    def token(self, identity: Identity, host: str) -> bytes:
        """A token for an app that is asked for `host`."""
        now = time.time()
        audience = self._audience or host
        kept = self._tokens.get((identity, audience))
        if kept is not None and now < kept[0]:
            self._tokens.move_to_end((identity, audience))
            return kept[1]
        issued = int(now)
        expires = issued + max(int(self._lifetime), 1)
        if identity.expires is not None:
            expires = min(expires, int(identity.expires))
        token = self._made(identity, audience, issued, expires)
        if len(self._tokens) >= REMEMBERED:
            self._tokens.popitem(last=False)
        self._tokens[identity, audience] = (now + (expires - now) / 2, token)
        return token

    def _made(self, identity: Identity, audience: str, issued: int, expires: int) -> bytes:
        claims: dict[str, Any] = {
            "iss": self._issuer, "sub": identity.name, "aud": audience, "iat": issued, "exp": expires,
            "groups": identity.groups, "sids": identity.sids,
        }  # fmt: skip
        if identity.scheme:
            claims["amr"] = [identity.scheme]  # RFC 8176: how they have logged on
        data = self._start + b"." + _part(claims)
        return data + b"." + _encoded(self._key.sign(data))


def _part(content: dict[str, Any]) -> bytes:
    return _encoded(json.dumps(content, separators=(",", ":")).encode())


def _encoded(data: bytes) -> bytes:
    """base64url without padding (RFC 7515 2)."""
    return base64.urlsafe_b64encode(data).rstrip(b"=")
