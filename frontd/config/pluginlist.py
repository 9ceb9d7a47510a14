"""The lists of plugins in the file: a bare word or a one-key map for each, with settings of any pydantic model.

Settings are written by people who are not us, so unlike the parts of our own they are validated as a whole: the tree
becomes plain values (scalars keep their exact text, as everywhere), and what pydantic refuses is told at its place.
"""

from __future__ import annotations

import typing
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, SecretBytes, SecretStr, ValidationError

from frontd.config.fill import Room, complain, translate
from frontd.config.marks import ListNode, MapNode, Node, ScalarNode
from frontd.config.plugins import Catalogue, PluginEntry, PluginKind, Settings
from frontd.config.problems import HIDDEN, Source, is_plugins
from frontd.config.units import clip, nearest


def words_in(node: Node | None) -> frozenset[str]:
    """The words that a list of plugins names, right or wrong."""
    if not isinstance(node, ListNode):
        return frozenset()
    return frozenset(word for item in node.items for word in _words_of(item))


def _words_of(item: Node) -> list[str]:
    if isinstance(item, MapNode):
        return list(item.values)
    return [str(item.scalar)] if isinstance(item, ScalarNode) else []


def hide_settings(source: Source, node: Node) -> None:
    """Hide the settings in all lists of plugins in a tree, wherever they stand: every value, but not the keys."""
    for inner in _below(node):
        hide_settings(source, inner)
    for entry in node.entries if isinstance(node, MapNode) else ():
        if is_plugins(str(entry.key.scalar)):
            items = entry.value.items if isinstance(entry.value, ListNode) else [entry.value]
            for item in items:
                if not isinstance(item, ScalarNode):  # else it is the word of a plugin
                    _hide_values(source, item)


def _hide_values(source: Source, node: Node) -> None:
    if isinstance(node, ScalarNode) and node.scalar:
        source.hide(node.mark)
    for entry in node.entries if isinstance(node, MapNode) else ():
        if not _has_colon(source, entry.key):
            source.hide(entry.key.mark)
    for inner in _below(node):
        _hide_values(source, inner)


def _has_colon(source: Source, key: ScalarNode) -> bool:
    """Whether a key was meant to be one: in flow style, what follows the comma in ``{token: a,b}`` is one as well."""
    return source.line(key.mark.line)[key.mark.column - 1 + key.mark.length :].lstrip().startswith(":")


def _below(node: Node) -> Iterable[Node]:
    """The values in a tree that was not interpolated yet."""
    if isinstance(node, MapNode):
        return [entry.value for entry in node.entries]
    return node.items if isinstance(node, ListNode) else ()


def plugin_list(
    room: Room, catalogue: Catalogue, site: str, node: Node | None
) -> tuple[tuple[PluginEntry, ...], bool]:
    """The plugins of `site` ("": of the whole server), and whether none is missing.  Errors are noted."""
    if node is None or (isinstance(node, ScalarNode) and (node.is_null or node.broken)):
        return (), True
    if not isinstance(node, ListNode):
        hint = "each plugin begins with -" if isinstance(node, MapNode) else f"write it as [{_words_of(node)[0]}]"
        complain(room, node, f"a list is expected, not {node.what}", hint)
        return (), False
    found: list[PluginEntry] = []
    for item in node.items:
        entry = _entry(room, catalogue, item)
        if entry is not None:
            room.plugins[site, len(found)] = item
            found.append(entry)
    return tuple(found), len(found) == len(node.items)


def _entry(room: Room, catalogue: Catalogue, item: Node) -> PluginEntry | None:
    if isinstance(item, ScalarNode) and not item.is_null:
        if item.broken:
            return None
        word, value, place = str(item.scalar), None, item
    elif isinstance(item, MapNode) and len(item.values) == 1:
        word, value = next(iter(item.values.items()))
        place = ScalarNode(item.entries[0].key.mark, item.entries[0].key.scalar, path=value.path)
    else:
        complain(
            room, item, f"a plugin is a word, or one word with its settings, not {item.what}",
            "is a - missing, or are the settings not indented?" if isinstance(item, MapNode) else "",
        )  # fmt: skip
        return None
    kind = catalogue.kinds.get(word)
    if kind is None:
        if not catalogue.faults:  # else it may be one that could not be loaded
            known = sorted({*catalogue.kinds, *catalogue.others})
            guess = nearest(word, known)
            hint = f'did you mean "{guess}"?' if guess else f"there are: {', '.join(known)}" if known else ""
            complain(room, place, f"there is no plugin {clip(word)}", hint)
        return None
    settings = _settings(room, kind, value, item)
    return PluginEntry(kind, word, settings) if settings is not None else None


def _settings(room: Room, kind: PluginKind, node: Node | None, item: Node) -> Settings | None:
    model = kind.settings
    if isinstance(node, ScalarNode) and node.broken:
        return None
    if node is None or (isinstance(node, ScalarNode) and node.is_null):
        node = MapNode(item.mark, key=item.key, path=item.path)
    if not isinstance(node, MapNode):
        if not model.shorthand:
            complain(room, node, f"the settings of {kind.name} are a map, not {node.what}")
            return None
        node = MapNode(node.mark, key=node.key, path=node.path, values={model.shorthand: node})
    if any(one.broken for one in _scalars(node)):
        return None
    _hide_secrets(room, model, node)
    secrets = {one.mark for one in _scalars(node) if one.secret}
    for one in _scalars(node):  # an alias of a secret, where none belongs
        one.secret = one.secret or one.mark in secrets
    try:
        return model.model_validate(plain(node), context={"base": room.base})
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            if detail["type"] == "extra_forbidden":
                _unknown_key(room, model, node, detail["loc"])
            else:
                translate(room, node, _in_our_words(detail))
    except Exception as error:  # of a validator that its author wrote: pydantic passes on what is no ValueError
        complain(room, item, f"{kind.name}: its settings cannot be checked: {type(error).__name__} ({kind.origin})")
    return None


_EXPECTED = {
    "int_parsing": "a whole number", "int_type": "a whole number", "int_from_float": "a whole number",
    "int_parsing_size": "a whole number of fewer digits", "float_parsing": "a number", "float_type": "a number",
    "bool_parsing": "true or false", "bool_type": "true or false", "string_type": "a text",
    "tuple_type": "a list", "list_type": "a list", "set_type": "a list", "frozen_set_type": "a list",
    "dict_type": "a map", "model_type": "a map", "model_attributes_type": "a map",
}  # fmt: skip


def _in_our_words(detail: Any) -> Any:
    """pydantic's finding about one value, said as the rest of the configuration says it."""
    expected, given = _EXPECTED.get(detail["type"]), detail.get("input")
    if expected is None:
        return detail
    what = "nothing" if given is None else "a map" if isinstance(given, dict) else "a list"
    shown = clip(given) if isinstance(given, str) else what
    return {**detail, "msg": f"{expected} is expected, not {shown}"}


def plain(node: Node) -> Any:
    """A tree as plain values; scalars as `Scalar`, which is a text, so that the field's type decides what they are."""
    if isinstance(node, MapNode):
        return {str(key): plain(value) for key, value in node.values.items()}
    if isinstance(node, ListNode):
        return [plain(item) for item in node.items]
    assert isinstance(node, ScalarNode)
    return None if node.is_null else node.scalar


def _hide_secrets(room: Room, annotation: Any, node: Node) -> None:
    """Mark the values that `annotation` calls secret, wherever in it: errors about them, or beside them, show none."""
    if isinstance(annotation, type) and issubclass(annotation, SecretStr | SecretBytes):
        for scalar in _scalars(node):
            scalar.secret = True
            room.source.hide(scalar.mark)
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        for name, field in annotation.model_fields.items():
            if not isinstance(node, MapNode):  # what stands for all of it stands for its secret too
                _hide_secrets(room, field.annotation, node)
            elif name in node.values:
                _hide_secrets(room, field.annotation, node.values[name])
    else:
        origin = typing.get_origin(annotation)
        inside: Iterable[Node] = (node,)
        if isinstance(origin, type) and issubclass(origin, Mapping):
            inside = node.values.values() if isinstance(node, MapNode) else inside
        elif isinstance(origin, type) and issubclass(origin, Collection):
            inside = node.items if isinstance(node, ListNode) else inside
        for inner in typing.get_args(annotation):
            for one in inside:
                _hide_secrets(room, inner, one)


def _scalars(node: Node) -> Iterator[ScalarNode]:
    if isinstance(node, ScalarNode):
        yield node
    for inner in node.values.values() if isinstance(node, MapNode) else getattr(node, "items", ()):
        yield from _scalars(inner)


def _unknown_key(room: Room, model: type[BaseModel], node: MapNode, where: Sequence[str | int]) -> None:
    parent: Node = node
    fields: list[str] = list(model.model_fields)
    annotation: Any = model
    for step in where[:-1]:
        if isinstance(parent, MapNode) and step in parent.values:
            parent = parent.values[str(step)]
        elif isinstance(parent, ListNode) and isinstance(step, int) and step < len(parent.items):
            parent = parent.items[step]
        inner = _models_in(annotation, str(step))
        if inner is not None:
            annotation, fields = inner, list(inner.model_fields)
    key = str(where[-1])
    at = node.at
    if isinstance(parent, MapNode):
        at = next((entry.key.mark for entry in parent.entries if str(entry.key.scalar) == key), parent.at)
    is_hidden = room.source.hides(at)
    guess = None if is_hidden else nearest(key, fields)
    known = f"known here: {', '.join(fields)}" if fields else "it takes no settings"
    hint = f'did you mean "{guess}"?' if guess else known
    shown = HIDDEN if is_hidden else key
    path = f"{parent.path}.{shown}" if parent.path else shown
    room.source.error(at, path, "unknown key", hint)


def _models_in(annotation: Any, step: str) -> type[BaseModel] | None:
    """The model that stands at the field `step` of a model, however it is wrapped (list, map, optional)."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel) and step in annotation.model_fields:
        return _models_in(annotation.model_fields[step].annotation, "")
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_models_in(inner, "") for inner in typing.get_args(annotation))
    return next((one for one in found if one is not None), None)
