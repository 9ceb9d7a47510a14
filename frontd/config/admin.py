"""Where a running frontd can be asked: the control socket, the admin listener, the health listener."""

from __future__ import annotations

import ipaddress

from pydantic import Field, model_validator

from frontd.config import places
from frontd.config.leaves import File, Flag, HostAndPort, Part


class Control(Part):
    """The control socket, and the admin listener on TCP, which answers the same to whoever has its token."""

    socket: File = Field(
        default_factory=lambda: places.default_control_socket(places.default_state_dir()),
        description="Unix socket for `frontd status`, `reload` and the rest; left out: "
        "`/run/frontd/control.sock` where that can be written, else "
        "`control.sock` in the state directory (as HAProxy's and Docker's sockets lie in /run).",
    )
    listen: HostAndPort | None = Field(
        default=None,
        description="Address and port of the admin listener, for example `127.0.0.1:9901`, in plain HTTP; left out: "
        "there is none (as with Caddy's `admin off`).",
    )
    token_file: File | None = Field(
        default=None,
        description="File with the bearer token that the admin listener answers to, 16 characters or more; nobody but "
        "its owner and group may read it. It is read at each call, so a new token holds at once.",
    )
    plain_http: Flag = Field(
        default=False,
        description="Let `listen` be an address that other machines reach, although whoever is on the way can read "
        "the token and every answer (off: loopback only, as Envoy's and Caddy's examples have it).",
    )

    @model_validator(mode="after")
    def _listener_has_a_token(self) -> Control:
        if (self.listen is None) != (self.token_file is None):
            missing = "token_file" if self.token_file is None else "listen"
            raise ValueError(f"`listen` and `token_file` go together; `{missing}` is missing")
        if self.listen is not None and not self.plain_http and not ipaddress.ip_address(self.listen[0]).is_loopback:
            raise ValueError(
                f"{self.listen[0]} can be reached from other machines, and the token would pass in plain HTTP; listen "
                "on 127.0.0.1, or write `plain_http: true`"
            )
        return self


class Health(Part):
    """`/livez` and `/readyz` on TCP (they are always on the control socket)."""

    listen: HostAndPort = Field(description="Address and port, for example `127.0.0.1:9000`.")
