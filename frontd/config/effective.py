"""The configuration in force, as plain data that loads again."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from frontd.config.model import Config, Control, Health, Limits, Listen, Part, Pool, Route, Site, Target, Workers
from frontd.config.plugins import PluginEntry
from frontd.config.workers import NEVER
from frontd.model.addresses import bracketed
from frontd.model.urlprefix import UrlPrefix

REDACTED = "**********"


def effective(config: Config, *, reveal: bool = False) -> dict[str, Any]:
    """Every setting of `config` with defaults, derived listeners and implicit pools, as plain data.

    Dumped as YAML it loads as the same configuration, once its secrets are put back; they read ``**********`` unless
    `reveal`.  A ``$`` is doubled, since it would be interpolated on the way in.
    """
    data = _plain(config, reveal)
    assert isinstance(data, dict)
    return data


def _plain(value: object, reveal: bool) -> Any:
    if isinstance(value, Target | UrlPrefix | Path | ipaddress.IPv4Network | ipaddress.IPv6Network):
        return _text(str(value))
    if isinstance(value, SecretStr):
        return _text(value.get_secret_value()) if reveal else REDACTED
    if isinstance(value, PluginEntry):
        settings = _part(value.settings, reveal)
        return {value.name: settings} if settings else value.name
    if isinstance(value, Part):
        return _part(value, reveal)
    if value == NEVER:
        return "never"
    if isinstance(value, dict):
        return {_text(str(key)): _plain(item, reveal) for key, item in value.items()}
    if isinstance(value, tuple | list | frozenset | set):
        return [_plain(item, reveal) for item in value]
    return _text(value) if isinstance(value, str) else value


def _part(part: Part, reveal: bool) -> Any:
    data: dict[str, Any] = {}
    for name in type(part).model_fields:
        value = getattr(part, name)
        if name == "name" and isinstance(part, Listen | Site | Pool):
            continue
        if value is None:
            if isinstance(part, Limits):
                data[name] = "none"
            elif isinstance(part, Config) and name == "fronts":
                data[name] = "auto"
            continue
        if name == "listen" and isinstance(part, Health | Control):
            value = f"{bracketed(value[0])}:{value[1]}"
        data[name] = _plain(value, reveal)
    if isinstance(part, Workers) and not reveal:  # where apps expect their secrets
        data["environment"] = dict.fromkeys(data["environment"], REDACTED)
    if isinstance(part, Route):
        used = {"pool": ("strip_prefix", "urgency"), "files": ("index",), "redirect": ("status",)}
        kind = next(key for key in used if getattr(part, key) is not None)
        for unused in {"strip_prefix", "urgency", "index", "status"} - set(used[kind]):
            data.pop(unused)
    return data


def _text(word: str) -> str:
    return word.replace("$", "$$")
