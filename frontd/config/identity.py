"""How apps are told who has logged on, as people configure it."""

from __future__ import annotations

from pydantic import Field

from frontd.config.leaves import File, Part, Seconds, Text


class IdentityToken(Part):
    """A signed field that tells apps who has logged on: `X-Frontd-Identity`, a JWT (RFC 7519)."""

    jwt_key: File = Field(
        description="File with the key: a P-256 private key in PEM signs with ES256, 32 bytes or more of anything else "
        "with HS256 (RFC 7518 3.2, 3.4)."
    )
    issuer: Text = Field(default="frontd", description="Claim `iss`: who says so.")
    audience: Text | None = Field(
        default=None, description="Claim `aud`: for whom; left out: the host that the client asked for."
    )
    lifetime: Seconds = Field(
        default=60.0, ge=1, le=86400,
        description="How long one is valid (claim `exp`); apps get a new one when half of it is over (Google's IAP: "
            "10 minutes; shorter here, since it costs one signature).",
    )  # fmt: skip
