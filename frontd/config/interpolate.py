"""``${…}`` in scalars, after YAML was parsed and never before.

So a secret that contains ``: `` or a line break stays one scalar and cannot become structure.  Forms, as in compose:

* ``${VAR}``: must be set; ``${VAR:-default}``: when unset or empty; ``${VAR:?message}``: an error with that message
  when unset or empty; ``$$``: one dollar sign;
* ``${file:/run/secrets/x}``: the content of a file, without one final line break; the text is a secret from then on.

A default may itself contain ``${…}``.  The result is a scalar again: by the rules for plain ones when the scalar was
plain, and a field that takes a number takes it from quoted text too.  Keys are interpolated as values are.  Bounds:
64 KiB for one file or one scalar, 4 MiB in all.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from frontd.config.marks import Entry, ListNode, MapNode, Node, ScalarNode, Stop
from frontd.config.problems import HIDDEN, Mark, Source
from frontd.config.units import Scalar, clip

MAX_TEXT = 65536
MAX_TOTAL = 4 << 20
_MAX_NESTED = 4

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OPERATOR = re.compile(r":-|:\?")


class Refused(Exception):
    """A scalar cannot be interpolated: sentence and hint; `quotes` when they repeat some of it."""

    def __init__(self, message: str, hint: str = "", *, quotes: bool = False) -> None:
        super().__init__(message)
        self.hint = hint
        self.quotes = quotes


@dataclass(slots=True)
class Expansion:
    """Where texts come from, and what one expansion has used."""

    environ: Mapping[str, str]
    base: Path
    origins: list[str] = field(default_factory=list)
    secret: bool = False


def expand(text: str, expansion: Expansion, depth: int = 0) -> str:
    """`text` with every ``${…}`` and ``$$`` replaced.  Raises `Refused`."""
    if depth > _MAX_NESTED:
        raise Refused(f"${{…}} is nested more than {_MAX_NESTED} deep")
    parts: list[str] = []
    position = 0
    while (dollar := text.find("$", position)) >= 0:
        parts.append(text[position:dollar])
        following = text[dollar + 1 : dollar + 2]
        if following == "$":
            parts.append("$")
            position = dollar + 2
        elif following == "{":
            end = _closing_brace(text, dollar + 2)
            parts.append(_value(text[dollar + 2 : end], expansion, depth))
            position = end + 1
        else:
            name = _NAME.match(text, dollar + 1)
            raise Refused(
                "a single $ stands here",
                f"write ${{{name.group()}}}, or $$ for a dollar sign" if name else "write $$ for a dollar sign",
                quotes=True,
            )
    parts.append(text[position:])
    if sum(map(len, parts)) > MAX_TEXT:
        raise Refused("the text is longer than 64 KiB after ${…} is replaced")
    return "".join(parts)


def _closing_brace(text: str, position: int) -> int:
    depth = 1
    for index in range(position, len(text)):
        if text.startswith("${", index):
            depth += 1
        elif text[index] == "}":
            depth -= 1
            if not depth:
                return index
    raise Refused("${ has no closing }")


def _value(inner: str, expansion: Expansion, depth: int) -> str:
    if inner.startswith("file:"):
        return _file(inner.removeprefix("file:"), expansion)
    name = _NAME.match(inner)
    if name is None:
        raise Refused(
            f"${{{inner}}} does not name a variable" if len(inner) < 80 else "${…} does not name a variable", _FORMS,
            quotes=True,
        )  # fmt: skip
    rest = inner[name.end() :]
    operator = _OPERATOR.match(rest)
    if rest and operator is None:
        raise Refused(f"{clip(rest)} after the variable name is not understood", _FORMS, quotes=True)
    value = expansion.environ.get(name.group())
    if value or (value is not None and operator is None):
        expansion.origins.append(f"${name.group()}")
        return value
    word = rest[2:]
    if operator is None:
        raise Refused(f"the variable {name.group()} is not set", f"set it, or write ${{{name.group()}:-default}}")
    if operator.group() == ":?":
        raise Refused(
            f"the variable {name.group()} is not set: {expand(word, expansion, depth + 1) or 'it is required'}"
        )
    return expand(word, expansion, depth + 1)


_FORMS = "the forms are ${VAR}, ${VAR:-default}, ${VAR:?message}, ${file:/path} and $$"


def _file(name: str, expansion: Expansion) -> str:
    if not name or "\0" in name:
        raise Refused("${file:…} names no file")
    path = os.path.join(expansion.base, name)
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_TEXT + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise Refused(f"{path} cannot be read: {reason}", _secret_hint(path)) from None
    if len(data) > MAX_TEXT:
        raise Refused(f"{path} is larger than 64 KiB")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise Refused(f"{path} is not valid UTF-8") from None
    expansion.origins.append(path)
    expansion.secret = True
    return text.removesuffix("\n").removesuffix("\r")


def _secret_hint(path: str) -> str:
    if path.startswith("/run/secrets/"):
        return "in compose, the service needs this name under `secrets:`"
    return ""


# ---------------------------------------------------------------------------------------------------- the tree


def interpolate(root: Node, source: Source, environ: Mapping[str, str], base: Path) -> Node:
    """A copy of the tree with every scalar interpolated, paths set, merged keys settled and equal keys refused.

    Errors are noted on `source`; a scalar that cannot be interpolated is marked `broken`, and nobody complains about
    it again.
    """
    return _Pass(source, environ, base).node(root, "", None)


class _Pass:
    def __init__(self, source: Source, environ: Mapping[str, str], base: Path) -> None:
        self._source, self._environ, self._base = source, environ, base
        self._total = 0

    def node(self, node: Node, path: str, key: ScalarNode | None) -> Node:
        mark = key.mark if key else None
        if isinstance(node, ScalarNode):
            scalar = self._scalar(node, path)
            scalar.key, scalar.path = mark, path
            return scalar
        if isinstance(node, ListNode):
            items = [self.node(item, f"{path}[{index}]", None) for index, item in enumerate(node.items)]
            return ListNode(node.mark, items=items, key=mark, path=path)
        assert isinstance(node, MapNode)
        return self._map(node, path, mark)

    def _map(self, node: MapNode, path: str, mark: Mark | None) -> MapNode:
        result = MapNode(node.mark, key=mark, path=path)
        places: dict[str, ScalarNode] = {}
        for entry in node.entries:
            key = self._scalar(entry.key, path)
            if key.broken:
                continue
            name = str(key.scalar)
            shown = HIDDEN if self._source.hides(entry.key.mark) else name
            here = f"{path}.{shown}" if path else shown
            if name in result.values:
                if not entry.merged:
                    first = places[name].mark
                    self._source.error(entry.key.mark, here, f"the key is already there, in line {first.line}")
                continue
            places[name] = entry.key
            value = self.node(entry.value, here, entry.key)
            result.values[name] = value
            result.entries.append(Entry(key, value, entry.merged))
        return result

    def _scalar(self, node: ScalarNode, path: str) -> ScalarNode:
        if "$" not in node.scalar:
            return ScalarNode(node.mark, node.scalar, node.plain)
        expansion = Expansion(self._environ, self._base)
        try:
            text = expand(str(node.scalar), expansion)
        except Refused as refused:
            message, hint = str(refused), refused.hint
            if refused.quotes and self._source.hides(node.mark):
                message, hint = "a $ that stands here is not understood", _FORMS
            self._source.error(node.mark, path, message, hint)
            return ScalarNode(node.mark, Scalar.of("", plain=False), False, broken=True)
        self._total += len(text)
        if self._total > MAX_TOTAL:
            self._source.error(node.mark, path, "the file is larger than 4 MiB after ${…} is replaced")
            raise Stop
        origin = f"from {', '.join(dict.fromkeys(expansion.origins))}" if expansion.origins else ""
        return ScalarNode(node.mark, Scalar.of(text, node.plain), node.plain, origin, expansion.secret)
