"""A map of the file becomes a part of the configuration, with every error at its place.

One function, `fill`, does it for every model.  It looks at keys itself (unknown, not in this version, without a
value, a list where a word belongs) and leaves the words to the field types of `model`; what those refuse comes back
with the place of the value.  Parts within parts are filled one by one, so that an error in one hides none in another.
"""

from __future__ import annotations

import json
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import ValidationError

from frontd.config.marks import ListNode, MapNode, Node, ScalarNode
from frontd.config.model import Config, Listen, LogFile, M, Part, Pool, Route, Site, Target, Tls, TlsHost, Workers
from frontd.config.plugins import Discover, no_plugins
from frontd.config.problems import Source
from frontd.config.units import clip, nearest
from frontd.model.urlprefix import UrlPrefix

NOT_IN_THIS_VERSION: Mapping[type[Part], frozenset[str]] = {
    Config: frozenset({
        "include", "metrics", "dashboard", "acme", "discovery",
    }),
    Site: frozenset({"cache"}),
    Route: frozenset({"plugins"}),
    Pool: frozenset({"auth_passthrough", "health", "balance", "plugins"}),
    Tls: frozenset({"acme", "ciphers", "alpn", "min_version", "max_version", "session_tickets", "stapling"}),
    TlsHost: frozenset({"ciphers", "alpn", "max_version"}),
}  # fmt: skip

# A string in place of the map stands for this key of it.
_SHORT: Mapping[type[Part], str] = {LogFile: "to", Pool: "targets", Workers: "app"}

# Words people bring from elsewhere, where the nearest known key by spelling would be wrong.
_MEANT: Mapping[str, str] = {
    "backend": "pool", "upstream": "pool", "servers": "targets", "upstreams": "pools", "backends": "pools",
    "hosts": "urls", "domains": "urls", "url": "urls", "ssl": "tls", "certs": "certificates", "services": "sites",
    "to": "target", "listeners": "listen",
}  # fmt: skip


@dataclass(slots=True)
class Room:
    """What every step of building needs."""

    source: Source
    base: Path
    targets: dict[str, Target] = field(default_factory=dict)  # named by routes, for implicit pools
    urls: dict[tuple[str, UrlPrefix], Node] = field(default_factory=dict)  # where a site's URL is written
    routes: dict[tuple[str, str], Node] = field(default_factory=dict)  # where a site's route is written, by prefix
    plugins: dict[tuple[str, int], Node] = field(default_factory=dict)  # a site's plugins ("": the server's), by place
    discover: Discover = no_plugins


Shape = Literal["word", "words", "part", "parts", "named", "dictionary"]


def shape_of(model: type[Part], name: str) -> tuple[Shape, type[Part] | None]:
    """How a field is written: a word, a list of words, a part, a list of parts, parts by name or words by name; and
    the part's model."""
    annotation: Any = model.model_fields[name].annotation
    if get_origin(annotation) in (Union, types.UnionType):
        annotation = next(a for a in get_args(annotation) if a is not type(None))
    if _is_part(annotation):
        # an Annotated part (a target) keeps its marks in `metadata` and is written as a word
        return ("word", None) if model.model_fields[name].metadata else ("part", annotation)
    origin, inner = get_origin(annotation), get_args(annotation)
    if model.model_fields[name].metadata and origin is tuple and Ellipsis not in inner:
        return "word", None
    if origin is tuple:
        return ("parts", inner[0]) if _is_part(inner[0]) else ("words", None)
    if origin is dict:
        return ("named", inner[1]) if _is_part(inner[1]) else ("dictionary", None)
    return "word", None


def _is_part(annotation: object) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Part)


def keys_of(model: type[Part]) -> list[str]:
    """The keys people may write in a map that becomes `model`."""
    keys = [name for name in model.model_fields if name != "name" or model not in (Listen, Site, Pool)]
    return [*keys[:1], "target", *keys[1:]] if model is Route else keys


def complain(room: Room, node: Node, message: str, hint: str = "") -> None:
    """Note an error about the value `node`; what came from a secret file is not repeated."""
    if isinstance(node, ScalarNode) and node.secret:
        message, hint = "the value is not valid here", ""
    if isinstance(node, ScalarNode) and node.origin:
        message = f"{message} ({node.origin})"
    room.source.error(node.at, node.path, message, hint)


def warn(room: Room, node: Node, message: str, hint: str = "") -> None:
    """Note a warning about the value `node`."""
    room.source.warning(node.at, node.path, message, hint)


def section(room: Room, node: Node | None) -> MapNode | None:
    """`node` as a map; nothing at all counts as an empty one.  None, and an error noted, when it is something else."""
    if node is None:
        return None
    if isinstance(node, MapNode):
        return node
    if isinstance(node, ScalarNode) and node.is_null:
        return MapNode(node.mark, key=node.key, path=node.path)
    if not (isinstance(node, ScalarNode) and node.broken):
        complain(room, node, f"a map (lines of `key: value`) is expected, not {node.what}")
    return None


def check_keys(room: Room, model: type[Part], node: MapNode, known: Iterable[str] | None = None) -> bool:
    """Refuse keys that `model` does not have.  Returns whether there were none."""
    names = list(known) if known is not None else keys_of(model)
    fine = True
    for entry in node.entries:
        key = str(entry.key.scalar)
        if key in names:
            continue
        fine = False
        path = f"{node.path}.{key}" if node.path else key
        if key in NOT_IN_THIS_VERSION.get(model, ()):
            room.source.error(entry.key.mark, path, "not in this version")
            continue
        if key == "name" and model in (Listen, Site, Pool):
            room.source.error(entry.key.mark, path, "the name is the key itself, one level up")
            continue
        guess = _MEANT.get(key) if _MEANT.get(key) in names else nearest(key, names)
        hint = f'did you mean "{guess}"?' if guess else f"known here: {', '.join(names)}"
        room.source.error(entry.key.mark, path, "unknown key", hint)
    return fine


def fill(room: Room, model: type[M], node: Node, given: Mapping[str, object] | None = None) -> M | None:
    """Make a `model` of the map `node`.

    `given` are values that the caller has made; keys of the same name in the map are the caller's business.  Returns
    None when anything is wrong with it; every error is noted on the source then.
    """
    values = section(room, _expanded(model, node))
    if values is None:
        return None
    fine = check_keys(room, model, values)
    data: dict[str, object] = dict(given or {})
    failed: set[str] = set()
    for name, value in values.values.items():
        if name in data or name not in model.model_fields:
            continue
        ok, made = _field(room, model, name, value)
        if not ok:
            failed.add(name)
        elif made is not None:
            data[name] = made
    try:
        part = model.model_validate(data, context={"base": room.base})
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            # what is missed may be what was refused
            if detail["loc"][0] not in failed if detail["loc"] else fine and not failed:
                translate(room, values, detail)
        return None
    return part if fine and not failed else None


def _expanded(model: type[Part], node: Node) -> Node:
    key = _SHORT.get(model)
    if key is None or not isinstance(node, ScalarNode) or node.is_null or node.broken:
        return node
    inner: Node = node
    if shape_of(model, key)[0] == "words":
        inner = ListNode(node.mark, items=[node], key=node.key, path=node.path)
    return MapNode(node.mark, key=node.key, path=node.path, values={key: inner})


def _field(room: Room, model: type[Part], name: str, node: Node) -> tuple[bool, object]:
    """The value of one field: whether it is fine so far, and what it is (None: left out)."""
    shape, part = shape_of(model, name)
    nothing = isinstance(node, ScalarNode) and node.is_null and not node.broken
    if shape == "word":
        return _words(room, node, name)
    if nothing:
        return True, None
    if shape == "part":
        assert part is not None
        made = fill(room, part, node)
        return made is not None, made
    if shape == "named":
        assert part is not None
        named = section(room, node)
        if named is None:
            return False, None
        parts = {key: fill(room, part, value) for key, value in named.values.items()}
        return None not in parts.values(), parts
    if shape == "dictionary":
        named = section(room, node)
        if named is None:
            return False, None
        found = {key: _words(room, value, key) for key, value in named.values.items()}
        return all(ok for ok, _ in found.values()), {key: word for key, (_, word) in found.items()}
    if not isinstance(node, ListNode):
        if not (isinstance(node, ScalarNode) and node.broken):
            complain(
                room, node, f"a list is expected, not {node.what}", "write it as [value], or as lines that begin with -"
            )
        return False, None
    if shape == "parts":
        assert part is not None
        items: list[object] = [fill(room, part, item) for item in node.items]
        return None not in items, items
    words = [_words(room, item, f"item {index} of {name}") for index, item in enumerate(node.items)]
    return all(ok for ok, _ in words), [word for _, word in words]


def _words(room: Room, node: Node, name: str) -> tuple[bool, object]:
    if not isinstance(node, ScalarNode):
        hint = (
            "in flow style, a value with ${…}, [ or { needs quotes" if "${" in room.source.line(node.mark.line) else ""
        )
        complain(room, node, f"one value is expected, not {node.what}", hint)
        return False, None
    if node.broken:
        return False, None
    if node.is_null:
        complain(room, node, "the key has no value", "write one, or leave the key out")
        return False, None
    return True, node.scalar


def translate(room: Room, node: MapNode, detail: Any) -> None:
    """Note what pydantic found, in our words, at the place of the value."""
    where: Node = node
    for step in detail["loc"]:
        if isinstance(where, MapNode) and step in where.values:
            where = where.values[str(step)]
        elif isinstance(where, ListNode) and isinstance(step, int) and step < len(where.items):
            where = where.items[step]
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "too_short" and isinstance(where, ListNode) and len(where.items) >= context["min_length"]:
        return  # pydantic counts what is right; what is wrong has its own error
    if kind == "missing":
        name = detail["loc"][-1]
        what = f"the item [{name}]" if isinstance(name, int) else f"the key `{name}`"
        complain(room, where, f"{what} is missing")
    elif kind == "too_short":
        least = context["min_length"]
        complain(room, where, "at least one is needed" if least == 1 else f"at least {least} are needed")
    elif kind == "too_long":
        complain(room, where, f"at most {context['max_length']} are allowed")
    elif kind in _BOUNDS:
        complain(room, where, f"must be {_BOUNDS[kind][0]} {_number(context[_BOUNDS[kind][1]])}, not {_shown(where)}")
    elif kind in _TEXTS:
        complain(room, where, f"{_TEXTS[kind](context)} is expected, not {_given(where)}")
    elif kind == "value_error":
        complain(room, where, _about_a_value(str(context["error"]), where), getattr(context["error"], "hint", ""))
    else:
        complain(room, where, str(detail["msg"]), _instead(kind, where))


_BOUNDS = {
    "greater_than": ("more than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}
_TEXTS: Mapping[str, Callable[[Any], str]] = {
    "literal_error": lambda context: str(context["expected"]),
    "enum": lambda context: str(context["expected"]),
    "string_too_short": lambda context: f"a text of at least {_characters(context['min_length'])}",
    "string_too_long": lambda context: f"a text of at most {_characters(context['max_length'])}",
    "string_pattern_mismatch": lambda context: f"a text that matches {context['pattern']}",
}
_LISTS = frozenset({"tuple_type", "list_type", "set_type", "frozen_set_type"})
MAX_HINT = 80  # characters of a value that a hint repeats
_MAPS = frozenset({"dict_type", "model_type", "model_attributes_type"})


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else str(value)


def _characters(count: int) -> str:
    return f"{count} character{'' if count == 1 else 's'}"


def _shown(node: Node) -> str:
    return str(node.scalar) if isinstance(node, ScalarNode) else node.what


def _given(node: Node) -> str:
    return clip(str(node.scalar)) if isinstance(node, ScalarNode) and not node.is_null else node.what


def _about_a_value(sentence: str, node: Node) -> str:
    """What a field type says of its value; a type that reads words has nothing sensible to show of a list or a map."""
    expected, found, rest = sentence.partition(" is expected")
    is_word = isinstance(node, ScalarNode) and not node.is_null
    is_ours = found and (not rest or rest.startswith(", not "))
    return f"{expected}{found}, not {node.what}" if is_ours and not is_word else sentence


def _instead(kind: str, node: Node) -> str:
    """What was probably meant, where YAML makes it easy to write something else; empty: there is no telling."""
    if isinstance(node, ScalarNode) and not node.is_null:
        word, key = str(node.scalar), node.path.rpartition(".")[2]
        if kind in _LISTS and len(word) <= MAX_HINT:
            return f"write [{json.dumps(word, ensure_ascii=False)}]"
        if kind in _MAPS and word.lower() in ("true", "yes", "on") and not key.endswith("]"):
            return f"write {key}: {{}}"
        if kind in _MAPS and word.lower() in ("false", "no", "off") and not key.endswith("]"):
            return f"leave {key} out"
    if kind == "string_type" and isinstance(node, MapNode) and len(node.values) == 1:
        ((key, value),) = node.values.items()
        text = f"{key}: {value.scalar}" if isinstance(value, ScalarNode) and not value.is_null else ""
        if text and len(text) <= MAX_HINT and not getattr(value, "secret", False):
            return f"quote it: {json.dumps(text, ensure_ascii=False)}"
    return ""
