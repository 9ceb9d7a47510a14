"""Authenticators for the plays: one that takes two legs on one connection, as NTLM does, and one that takes one."""

from __future__ import annotations

import base64
import struct

import frontd

# MS-NLMP 2.2.1.2: no target name, flags for Unicode and NTLM, a challenge, and no target information
FLAGS = 0x00000201
TYPE_2 = b"NTLMSSP\0" + struct.pack("<IHHIIQQHHI", 2, 0, 0, 56, FLAGS, 0x0123456789ABCDEF, 0, 0, 0, 56) + bytes(8)
TYPE_1, TYPE_3 = (b"NTLMSSP\0" + struct.pack("<I", kind) for kind in (1, 3))


def leg(message: bytes) -> str:
    """The field of a request that carries a message of the handshake."""
    return f"Authorization: NTLM {base64.b64encode(message).decode()}"


LEG_1, LEG_2 = leg(TYPE_1), leg(TYPE_3)


class Legs(frontd.Plugin):
    """Lets in whoever sends message 3 behind message 1 on one connection, whatever is in them."""

    name = "legs"
    scheme = "NTLM"

    class Settings(frontd.Settings):
        """What tells two instances apart."""

        who: str = "LAB\\ann"

    settings: Settings

    def challenge(self, exchange: frontd.Exchange) -> str:
        return "NTLM"

    def authenticate(self, exchange: frontd.Exchange) -> frontd.Identity | frontd.Continue | frontd.Refuse | None:
        state = exchange.client.state(self)
        scheme, token = exchange.request.credentials
        if scheme != "ntlm" or token is None:
            return state.get("who")
        state.pop("who", None)
        kind = base64.b64decode(token)[8]
        asked = state.pop("asked", False)
        if kind == 1:
            state["asked"] = True
            return frontd.Continue(base64.b64encode(TYPE_2).decode(), "NTLM")
        if not asked:
            return frontd.Refuse(401, "LogonFailed", log="message 3 without message 1 on this connection")
        identity = state["who"] = frontd.Identity(self.settings.who, scheme="NTLM", connection_bound=True)
        return identity


class Word(frontd.Plugin):
    """Lets in whoever says ``sesame``."""

    name = "word"
    scheme = "Basic"

    def challenge(self, exchange: frontd.Exchange) -> str:
        return 'Basic realm="lab"'

    def authenticate(self, exchange: frontd.Exchange) -> frontd.Identity | frontd.Refuse | None:
        scheme, token = exchange.request.credentials
        if scheme != "basic":
            return None
        if token != "sesame":
            return frontd.Refuse(401, "LogonFailed", log="another word")
        return frontd.Identity("bob", scheme="Basic")
