"""Types of single values: how each is read, what people may type for it, and what the documentation calls it.

Each carries its reader (from `units`), the JSON Schema of its input, and a `Kind`.  Every scalar may be written with
``${…}``, so every schema admits that.
"""

from __future__ import annotations

import ipaddress
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    SecretStr,
    ValidationInfo,
    WithJsonSchema,
)
from pydantic.json_schema import SkipJsonSchema

from frontd.config import units
from frontd.model.urlprefix import UrlPrefix
from frontd.model.verdicts import REDIRECTS

INTERPOLATED = r"\$\{"


def json_scalar(*kinds: str, pattern: str | None = None, **more: Any) -> WithJsonSchema:
    """The schema of a scalar of JSON types `kinds`; `pattern` restricts what its string form may be besides
    ``${…}``."""
    shape: dict[str, Any] = {"type": list(kinds) if len(kinds) > 1 else kinds[0], **more}
    if pattern is not None:
        shape["pattern"] = f"{pattern}|{INTERPOLATED}"
    return WithJsonSchema(shape)


def _path(value: object, info: ValidationInfo) -> Path:
    """A path; a relative one is relative to the directory of the configuration file (``base`` of the context)."""
    word = os.fspath(value) if isinstance(value, Path) else units.text(value)
    if not word or "\0" in word:
        raise ValueError("a path is expected")
    base = info.context.get("base") if isinstance(info.context, dict) else None
    return Path(os.path.abspath(os.path.join(base, word))) if base is not None else Path(word)


def _log_target(value: object, info: ValidationInfo) -> str | Path:
    if isinstance(value, str) and value in ("stdout", "stderr", "off"):
        return str(value)
    return _path(value, info)


def _one_of(*words: str) -> BeforeValidator:
    def check(value: object) -> str:
        if isinstance(value, str) and value in words:
            return str(value)
        guess = units.nearest(str(value), (word for word in words if word.isalpha()))
        hint = f'did you mean "{guess}"?' if guess else ""
        raise units.Refused(f"{' or '.join(words)} is expected, not {units.clip(value)}", hint)

    return BeforeValidator(check, json_schema_input_type=str)


def _status(value: object) -> int:
    status = units.number(value)
    if status not in REDIRECTS:
        raise ValueError(f"a redirect has status 301, 302, 303, 307 or 308, not {status}")
    return status


def _redirect(value: object) -> str:
    word = units.text(value)
    rest = word.replace("{path}", "")
    if found := re.search(r"\{[^}]*\}?|\}", rest):
        raise ValueError(f"{units.clip(found.group())} is not a placeholder; {{path}} is the only one")
    if not rest.isascii() or any(c <= " " or c in '"<>\\^`|\x7f' for c in rest):
        raise ValueError("a redirect is a URL: no spaces, controls or characters that a URL must escape")
    if word.startswith("/") and not word.startswith("//"):
        return word
    absolute = re.fullmatch(r"(https?)://([^/?#{}]+)(?:[/?#].*|\{path\}.*)?", word)
    if absolute is None:
        raise ValueError("a redirect leads to http://…, https://… or an absolute path")
    if "@" in absolute.group(2):
        raise ValueError("a redirect has no user name in it")
    UrlPrefix.parse(f"{absolute.group(1)}://{absolute.group(2)}/")
    return word


def _url(value: object) -> UrlPrefix:
    return value if isinstance(value, UrlPrefix) else UrlPrefix.parse(units.text(value))


def _health_address(value: object) -> tuple[str, int]:
    if isinstance(value, tuple | list) and len(value) == 2:
        return str(value[0]), int(value[1])
    address, port = units.address_and_port(value)
    if address is None:
        raise ValueError(f"the address is missing; write 127.0.0.1:{port}, or 0.0.0.0:{port} for every IPv4 address")
    return address, port


_SIZE_PATTERN = r"^[0-9]+(\.[0-9]+)? ?[kKMGT]?i?B$|^[0-9]+$"

Text = Annotated[str, BeforeValidator(units.text), json_scalar("string", "number"), units.Kind("text")]
Count = Annotated[
    int, BeforeValidator(units.number), json_scalar("integer", "string", pattern="^[0-9]+$"), units.Kind("number")
]
CountOrNone = Annotated[
    int | None,
    BeforeValidator(units.number_or_none),
    json_scalar("integer", "string", pattern="^[0-9]+$|^none$"),
    units.Kind("number or `none`"),
]
FrontCount = Annotated[
    int | None,
    BeforeValidator(units.number_or_auto),
    json_scalar("integer", "string", pattern="^[0-9]+$|^auto$"),
    units.Kind("number or `auto`"),
]
Flag = Annotated[
    bool,
    BeforeValidator(units.boolean),
    json_scalar("boolean", "string", pattern="^(true|false)$"),
    units.Kind("true or false"),
]
Seconds = Annotated[
    float,
    BeforeValidator(units.seconds),
    json_scalar("number", "string", pattern=r"^([0-9]+(\.[0-9]+)?(ms|s|m|h|d))+$|^[0-9]+(\.[0-9]+)?$"),
    units.Kind("duration"),
]
Size = Annotated[
    int, BeforeValidator(units.size), json_scalar("integer", "string", pattern=_SIZE_PATTERN), units.Kind("size")
]
SizeOrNone = Annotated[
    int | None,
    BeforeValidator(units.size_or_none),
    json_scalar("integer", "string", pattern=_SIZE_PATTERN + "|^none$"),
    units.Kind("size or `none`"),
]
File = Annotated[Path, PlainValidator(_path), json_scalar("string"), units.Kind("path")]
Secret = Annotated[
    SecretStr,
    BeforeValidator(lambda value: value if isinstance(value, SecretStr) else units.text(value)),
    json_scalar("string", "number"),
    units.Kind("text"),
]
Address = Annotated[str, BeforeValidator(units.bind_address), json_scalar("string"), units.Kind("IP address")]
Port = Annotated[
    int,
    BeforeValidator(units.number),
    Field(ge=0, le=65535),
    json_scalar("integer", "string", pattern="^[0-9]+$", minimum=0, maximum=65535),
    units.Kind("port"),
]
Network = Annotated[
    ipaddress.IPv4Network | ipaddress.IPv6Network,
    PlainValidator(units.network),
    PlainSerializer(str),
    json_scalar("string"),
    units.Kind("network"),
]
Url = Annotated[UrlPrefix, PlainValidator(_url), PlainSerializer(str), json_scalar("string"), units.Kind("UrlPrefix")]
Name = SkipJsonSchema[Annotated[str, units.Kind("text")]]
LogTo = Annotated[
    Literal["stdout", "stderr", "off"] | Path,
    PlainValidator(_log_target),
    json_scalar("string"),
    units.Kind("`stdout`, `stderr`, `off` or path"),
]


def choice(*words: str) -> tuple[BeforeValidator, WithJsonSchema, units.Kind]:
    """What makes a field one of `words`: its reader, its schema, and what the documentation calls it."""
    shape = WithJsonSchema({"anyOf": [{"enum": list(words)}, {"type": "string", "pattern": INTERPOLATED}]})
    return _one_of(*words), shape, units.Kind(" or ".join(f"`{word}`" for word in words))


_DEMANDS, _DEMANDS_SCHEMA, _DEMANDS_KIND = choice("none", "optional", "required")
Demand = Annotated[Literal["none", "optional", "required"], _DEMANDS, _DEMANDS_SCHEMA, _DEMANDS_KIND]
_VERSION, _, _VERSION_KIND = choice("1.2", "1.3")
TlsVersion = Annotated[
    Literal["1.2", "1.3"],
    _VERSION,
    WithJsonSchema({"anyOf": [{"enum": ["1.2", "1.3", 1.2, 1.3]}, {"type": "string", "pattern": INTERPOLATED}]}),
    _VERSION_KIND,
]
_KIND, _KIND_SCHEMA, _KIND_KIND = choice("http", "https")
ListenerKind = Annotated[Literal["http", "https"], _KIND, _KIND_SCHEMA, _KIND_KIND]
_FORMAT, _FORMAT_SCHEMA, _FORMAT_KIND = choice("json", "w3c")
LogFormat = Annotated[Literal["json", "w3c"], _FORMAT, _FORMAT_SCHEMA, _FORMAT_KIND]
Redirect = Annotated[str, BeforeValidator(_redirect), json_scalar("string"), units.Kind("URL")]
Status = Annotated[
    int,
    BeforeValidator(_status),
    WithJsonSchema({"anyOf": [{"enum": sorted(REDIRECTS)}, {"type": "string", "pattern": r"^30[12378]$|\$\{"}]}),
    units.Kind("301, 302, 303, 307 or 308"),
]
_LOGON, _LOGON_SCHEMA, _LOGON_KIND = choice("ntlm", "negotiate")
ConnectionScheme = Annotated[Literal["ntlm", "negotiate"], _LOGON, _LOGON_SCHEMA, _LOGON_KIND]
_REFUSAL, _REFUSAL_SCHEMA, _REFUSAL_KIND = choice("reset", "status", "reason")
Refusal = Annotated[Literal["reset", "status", "reason"], _REFUSAL, _REFUSAL_SCHEMA, _REFUSAL_KIND]
HostAndPort = Annotated[
    tuple[str, int], PlainValidator(_health_address), json_scalar("string"), units.Kind("address:port")
]


class Part(BaseModel):
    """What every part of the configuration has in common."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)
