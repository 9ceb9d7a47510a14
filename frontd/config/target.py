"""Targets: the destinations of pools."""

from __future__ import annotations

import ipaddress
import os
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PlainSerializer, PlainValidator, ValidationInfo

from frontd.config import units
from frontd.config.leaves import Part, json_scalar
from frontd.model.addresses import bracketed
from frontd.model.urlprefix import UrlPrefix, is_ip


class Target(Part):
    """One destination: ``http://host:port``, ``https://host:port`` or ``unix:/path/of/socket``."""

    scheme: Literal["http", "https", "unix"] = Field(description="http, https or unix.")
    host: str = Field(default="", description="Name or IP address (IPv6 without brackets); empty for unix.")
    port: int = Field(default=0, description="Port; 0 for unix.")
    path: str = Field(default="", description="Absolute path of the socket; empty for http and https.")

    @classmethod
    def parse(cls, word: str, base: Path | None = None) -> Target:
        """Read a target; a relative socket path is relative to `base`.  Raises `ValueError` with a sentence."""
        if word.startswith("unix:"):
            return cls(scheme="unix", path=_socket_path(word.removeprefix("unix:"), base))
        scheme, _, rest = word.partition("://")
        if scheme not in ("http", "https"):
            if scheme == "h2c":
                raise ValueError("h2c:// is not in this version; write http:// (HTTP/1.1)")
            raise ValueError(f"a target is http://host:port, https://host:port or unix:/path, not {units.clip(word)}")
        if "@" in rest:
            raise ValueError("a target has no user name or password in it")
        host_and_port = rest.removesuffix("/")
        if re.search(r"[/?#]", host_and_port):
            raise ValueError("a target has no path; the path of the request is forwarded (see strip_prefix)")
        prefix = UrlPrefix.parse(f"{scheme}://{host_and_port}/")
        if "*" in prefix.host or "+" in prefix.host:
            raise ValueError("a target is one host, without wildcards")
        return cls(scheme="http" if scheme == "http" else "https", host=prefix.host, port=prefix.port)

    def __str__(self) -> str:
        if self.scheme == "unix":
            return f"unix:{self.path}"
        host = bracketed(self.host)
        usual = self.port == (80 if self.scheme == "http" else 443)
        return f"{self.scheme}://{host}" if usual else f"{self.scheme}://{host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether it is this machine (or this container) itself."""
        if self.host == "localhost" or self.host.endswith(".localhost"):
            return True
        return bool(self.host) and is_ip(self.host) and ipaddress.ip_address(self.host).is_loopback


def _socket_path(word: str, base: Path | None) -> str:
    if not word or "\0" in word:
        raise ValueError("the path of the socket is missing")
    path = os.path.abspath(os.path.join(base or "", word))
    if path.startswith("//"):
        path = path[1:]
    if len(os.fsencode(path)) > 107:  # sockaddr_un, unix(7)
        raise ValueError("the path of a Unix socket has at most 107 bytes")
    return path


def _target(value: object, info: ValidationInfo) -> Target:
    if isinstance(value, Target):
        return value
    return Target.parse(units.text(value), info.context.get("base") if isinstance(info.context, dict) else None)


TargetText = Annotated[
    Target, PlainValidator(_target), PlainSerializer(str), json_scalar("string"), units.Kind("target")
]
