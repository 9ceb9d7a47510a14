"""The tables of keys in the documentation, made from the models' descriptions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from frontd.config import model, units, urlacl, workers
from frontd.config.fill import keys_of, shape_of
from frontd.config.model import Part

# Heading, model, what else people should know: shorthands and what the key of a map means.
_PLACES: tuple[tuple[str, type[Part], str], ...] = (
    ("Top level", model.Config, "Everything may be left out except `sites`. Keys that begin with `x-` are "
        "ignored; they hold YAML anchors."),
    (
        "`listen.NAME`", model.Listen,
        "A port (`https: 443`) or an `address:port` (`http: 127.0.0.1:8080`, `https: \"[::1]:443\"`) stands for "
            "the map.",
    ),
    ("`tls`", model.Tls, ""),
    ("`tls.certificates[]`", model.Certificate, "One of `cert` (with `key`) and `pfx`."),
    ("`tls.hosts.HOST`", model.TlsHost, ""),
    (
        "`sites.NAME`", model.Site,
        "A target or the name of a pool stands for a site with this one route and the key as its host: "
            "`shop.example.com: http://app:8000`.",
    ),
    (
        "`sites.NAME.routes.PATH`", model.Route,
        "Exactly one of `pool`, `target`, `files` and `redirect`. A target (it contains `://` or begins with `unix:`) "
            "or the name of a pool stands for the map.",
    ),
    ("`pools.NAME`", model.Pool, "A target stands for a pool that has only this one."),
    ("`pools.NAME.queue`", model.Queue, ""),
    (
        "`pools.NAME.workers`", workers.Workers,
        "`asgi:module:attribute` or `wsgi:module:attribute` stands for a map with this `app`. Exactly one of `app` and "
            "`command`.",
    ),
    ("`pools.NAME.workers.recycle`", workers.Recycle, ""),
    ("`pools.NAME.workers.ping`", workers.Ping, ""),
    ("`pools.NAME.workers.rapid_fail`", workers.RapidFail, ""),
    ("`pools.NAME.workers.cpu`", workers.Cpu, ""),
    ("`pools.NAME.attach`", urlacl.Attach, ""),
    ("`pools.NAME.tls`", model.PoolTls, ""),
    ("`urlacl[]`", urlacl.UrlAcl, "Exactly one of `user`, `uid`, `group` and `pool`."),
    ("`cache`", model.Cache, ""),
    ("`identity`, `sites.NAME.identity`", model.IdentityToken, "A site's own stands instead of the global one."),
    ("`limits`, `sites.NAME.limits`", model.Limits, "A site's limits are laid over the global ones, key by key."),
    ("`timeouts`, `sites.NAME.timeouts`", model.Timeouts, "A site's timers are laid over the global ones, key by key."),
    ("`log`", model.Log, ""),
    ("`log.access`, `log.error`", model.LogFile, "A word or path stands for `to`."),
    ("`control`", model.Control, ""),
    ("`health`", model.Health, ""),
)  # fmt: skip

_TARGET = (
    "| `target` | target | – | `http://host:port`, `https://host:port` or `unix:/path`: "
    "a pool of its own with this one target. |"
)


def reference() -> str:
    """Markdown with one table per place of the file: key, type, default, meaning."""
    parts = [_UNITS]
    for heading, part, remark in _PLACES:
        lines = [f"## {heading}", ""]
        lines += [part.__doc__.replace("``", "`"), ""] if part.__doc__ else []
        lines += [remark, ""] if remark else []
        parts.append("\n".join([*lines, *_table(part)]) + "\n")
    return "\n".join(parts)


def settings_table(settings: type[Part]) -> str:
    """Markdown with the keys of a plugin's settings; models inside of them have tables of their own below."""
    if not settings.model_fields:
        return "It takes no settings."
    parts = ["\n".join(_table(settings))]
    for name, part in _parts_in(settings, ""):
        about = f" {part.__doc__.replace('``', '`')}" if part.__doc__ else ""
        parts.append("\n".join([f"`{name}`:{about}", "", *_table(part)]))
    return "\n\n".join(parts)


def _parts_in(settings: type[Part], above: str) -> Iterator[tuple[str, type[Part]]]:
    for key in settings.model_fields:
        shape, part = shape_of(settings, key)
        if part is not None and shape in ("part", "parts"):
            name = f"{above}{key}{'[]' if shape == 'parts' else ''}"
            yield name, part
            yield from _parts_in(part, f"{name}.")


def _table(part: type[Part]) -> list[str]:
    return ["| key | type | default | meaning |", "|---|---|---|---|", *_rows(part)]


def _rows(part: type[Part]) -> Iterable[str]:
    for key in keys_of(part):
        if key not in part.model_fields:
            yield _TARGET
            continue
        field = part.model_fields[key]
        meaning = (field.description or "").replace("|", "\\|")
        yield f"| `{key}` | {_type(part, key, field)} | {_default(field)} | {meaning} |"


def _kind(field: FieldInfo) -> units.Kind | None:
    found = [mark for mark in field.metadata if isinstance(mark, units.Kind)]
    for option in getattr(field.annotation, "__args__", ()):
        found += [mark for mark in getattr(option, "__metadata__", ()) if isinstance(mark, units.Kind)]
    return found[0] if found else None


def _type(part: type[Part], key: str, field: FieldInfo) -> str:
    shape, _ = shape_of(part, key)
    kind = _kind(field)
    if shape == "words":
        return f"list of {kind.name}{'es' if kind.name.endswith('x') else 's'}" if kind else "list of texts"
    if shape == "dictionary":
        return kind.name if kind else "map"
    if shape == "word":
        return kind.name if kind else _plain_type(field.annotation)
    return {"part": "map", "parts": "list of maps", "named": "map by name"}[shape]


def _plain_type(annotation: Any) -> str:
    """What a type of Python's own is called, as plugins use them."""
    if get_origin(annotation) is Literal:
        return " or ".join(f"`{word}`" for word in get_args(annotation))
    return {bool: "true or false", int: "number", float: "number"}.get(annotation, "text")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value: Any = field.default
    kind = _kind(field)
    if value is PydanticUndefined or value is None or value in ((), "", {}):
        words = ("`none`", "`auto`") if value is None and kind is not None else ()
        return next((word for word in words if kind is not None and kind.name.endswith(word)), "–")
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if kind is not None and kind.name.startswith("size"):
        return f"`{_size(value)}`"
    return f"`{_duration(value)}`" if isinstance(value, float) else f"`{value}`"


def _duration(value: float) -> str:
    if value == workers.NEVER:
        return "never"
    return f"{value / 86400:g}d" if value and value % 86400 == 0 else f"{value:g}s"


def _size(value: int) -> str:
    for unit, factor in (("MiB", 2**20), ("KiB", 2**10), ("MB", 10**6)):
        if value and value % factor == 0:
            return f"{value // factor}{unit}"
    return str(value)


_UNITS = """\
Durations: `20m`, `1h30m`, `500ms`; a bare number is seconds. Sizes: `30MB` is 30 · 10⁶ bytes, `32MiB` is 32 · 2²⁰; a
bare number is bytes. Relative paths are relative to the directory of the configuration file.

Every value and every key may contain `${VAR}`, `${VAR:-default}`, `${VAR:?message}` and `${file:/run/secrets/x}`; a
dollar sign is written `$$`. They are replaced after the YAML is read, so what they contain never becomes structure.

YAML is read by the rules of YAML 1.2: `no` and `22:22` are texts, and so is a number with a leading zero. Tags and
equal keys are refused; anchors, aliases and `<<` work.
"""
