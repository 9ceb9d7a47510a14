"""YAML with the place of every key and value.

How it works
------------
libyaml's *event* stream is composed here, not by PyYAML: its composer recurses without bound, resolves ``no`` to
False and ``22:22`` to 1342, keeps the last of two equal keys, and lets nine lines of aliases become gigabytes.
Composing by hand gives us the subset of YAML a configuration needs:

* maps, lists and scalars; plain scalars by the YAML 1.2 core rules (`units.resolve`);
* anchors, aliases and merge keys (``<<``), where explicit keys win and earlier merged maps win over later ones;
* no tags, no second document, no keys that are maps or lists, no alias inside of its own anchor.

Bounds: text of 1 MiB, depth of 32, 20,000 nodes after aliases are followed.  Nodes are shared by aliases and never
changed.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NoReturn

import yaml

from frontd.config.problems import HIDDEN, Mark, Source
from frontd.config.units import Scalar

MAX_TEXT = 1 << 20
MAX_DEPTH = 32
MAX_NODES = 20_000

_LOADER = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader


@dataclass(slots=True)
class Node(ABC):
    """A value of the file.  `mark` is its place, `key` the place of its key, `path` the way to it from the top;
    `count` the number of nodes in it with aliases followed."""

    mark: Mark
    key: Mark | None = field(default=None, kw_only=True)
    path: str = field(default="", kw_only=True)
    count: int = field(default=1, kw_only=True)

    @property
    def at(self) -> Mark:
        """Where an error about this value points."""
        return self.mark

    @property
    @abstractmethod
    def what(self) -> str:
        """What it is, for people."""


@dataclass(slots=True)
class ScalarNode(Node):
    """A scalar; `plain` when it stood without quotes.  `origin` says where an interpolated text came from, `secret`
    that it must not be printed, `broken` that interpolation failed and the error is already noted."""

    scalar: Scalar
    plain: bool = True
    origin: str = ""
    secret: bool = False
    broken: bool = False

    @property
    def at(self) -> Mark:
        return self.key or self.mark if self.is_null else self.mark

    @property
    def is_null(self) -> bool:
        return self.scalar.value is None

    @property
    def what(self) -> str:
        value = self.scalar.value
        if value is None:
            return "nothing"
        if isinstance(value, bool):
            return "true or false"
        return "a text" if isinstance(value, str) else "a number"


@dataclass(slots=True)
class ListNode(Node):
    """A list."""

    items: list[Node] = field(default_factory=list)

    @property
    def at(self) -> Mark:
        return self.key or self.mark

    @property
    def what(self) -> str:
        return "a list"


@dataclass(frozen=True, slots=True)
class Entry:
    """A key with its value; `merged` when it came in by ``<<``."""

    key: ScalarNode
    value: Node
    merged: bool = False


@dataclass(slots=True)
class MapNode(Node):
    """A map.  `entries` is in the order of the file, merged ones last; `values` (filled by `interpolate`) is by key."""

    entries: list[Entry] = field(default_factory=list)
    values: dict[str, Node] = field(default_factory=dict)

    @property
    def at(self) -> Mark:
        return self.key or self.mark

    @property
    def what(self) -> str:
        return "a map"


def find(root: MapNode, *keys: str | int) -> Node:
    """The value at `keys`, or the deepest one above it: where a shorthand stands for what has no place of its own."""
    node: Node = root
    for key in keys:
        if isinstance(node, MapNode) and key in node.values:
            node = node.values[str(key)]
        elif isinstance(node, ListNode) and isinstance(key, int) and key < len(node.items):
            node = node.items[key]
        else:
            break
    return node


class Stop(Exception):
    """Nothing more can be read; the source knows why."""


def read(source: Source) -> Node | None:
    """Compose the text of `source`.

    Returns None for an empty file.  Errors are noted on `source`; raises `Stop` after one that ends all reading.
    """
    if len(source.text) > MAX_TEXT or len(source.text.encode("utf-8", "surrogatepass")) > MAX_TEXT:
        source.error(Mark(), "", "the file is larger than 1 MiB")
        raise Stop
    try:
        return _Composer(source).document()
    except yaml.MarkedYAMLError as error:
        _note_syntax_error(source, error)
    except yaml.reader.ReaderError as error:
        _note_bad_character(source, error)
    except UnicodeError:
        source.error(Mark(), "", "the file is not valid UTF-8")
    raise Stop


class _Composer:
    """Events in, nodes out; each method consumes the events of what it is named after."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._events: Iterator[yaml.Event] = yaml.parse(source.text, Loader=_LOADER)
        self._anchors: dict[str, Node | None] = {}  # None: still being composed
        self._depth = 0
        self._nodes = 0

    def document(self) -> Node | None:
        root: Node | None = None
        documents = 0
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    self._stop(_mark(event), "a second document begins here; the file is one document")
                root = self._node(next(self._events))
        if isinstance(root, ScalarNode) and root.is_null:
            return None
        return root

    def _stop(self, mark: Mark, message: str, hint: str = "") -> NoReturn:
        self._source.error(mark, "", message, hint)
        raise Stop

    def _count(self, nodes: int, mark: Mark) -> None:
        self._nodes += nodes
        if self._nodes > MAX_NODES:
            self._stop(mark, f"the file has more than {MAX_NODES:,} values, aliases followed")

    def _node(self, event: yaml.Event) -> Node:
        mark = _mark(event)
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event.anchor, mark)
        assert isinstance(event, yaml.ScalarEvent | yaml.SequenceStartEvent | yaml.MappingStartEvent)
        if event.tag is not None:
            tag = HIDDEN if self._source.hides(mark) else event.tag.replace("tag:yaml.org,2002:", "!!")
            self._source.error(mark, "", f"tags ({tag}) are not allowed here")
        if event.anchor is not None:
            self._anchors[event.anchor] = None
        self._count(1, mark)
        node: Node
        if isinstance(event, yaml.ScalarEvent):
            plain = event.style in (None, "")
            node = ScalarNode(mark, Scalar.of(event.value, plain), plain)
        else:
            self._depth += 1
            if self._depth > MAX_DEPTH:
                self._stop(mark, f"maps and lists are nested more than {MAX_DEPTH} deep")
            node = self._list(mark) if isinstance(event, yaml.SequenceStartEvent) else self._map(mark)
            self._depth -= 1
        if event.anchor is not None:
            self._anchors[event.anchor] = node
        return node

    def _alias(self, name: str | None, mark: Mark) -> Node:
        if name is None or name not in self._anchors:
            shown = HIDDEN if self._source.hides(mark) else name
            self._stop(mark, f"the alias *{shown} has no anchor &{shown} before it", _STAR_HINT)
        node = self._anchors[name]
        if node is None:
            self._stop(mark, f"the alias *{name} stands inside of its own anchor")
        self._count(node.count, mark)
        return node

    def _list(self, mark: Mark) -> ListNode:
        items: list[Node] = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            items.append(self._node(event))
        return ListNode(mark, items=items, count=1 + sum(item.count for item in items))

    def _map(self, mark: Mark) -> MapNode:
        entries: list[Entry] = []
        merged: list[Entry] = []
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            key = self._node(event)
            value = self._node(next(self._events))
            if not isinstance(key, ScalarNode):
                hint = "is ${…} meant? In flow style it needs quotes" if isinstance(key, MapNode) else ""
                self._source.error(key.mark, "", f"a key is a word, not {key.what}", hint)
            elif key.plain and key.scalar == "<<":
                merged += self._merged(value)
            else:
                entries.append(Entry(key, value))
        entries += merged
        return MapNode(mark, entries=entries, count=1 + sum(e.key.count + e.value.count for e in entries))

    def _merged(self, value: Node) -> list[Entry]:
        maps = value.items if isinstance(value, ListNode) else [value]
        entries: list[Entry] = []
        for node in maps:
            if not isinstance(node, MapNode):
                self._source.error(node.mark, "", f"<< takes a map or a list of maps, not {node.what}")
                continue
            self._count(len(node.entries), node.mark)
            entries += [Entry(entry.key, entry.value, merged=True) for entry in node.entries]
        return entries


def _mark(event: yaml.Event) -> Mark:
    start, end = event.start_mark, event.end_mark
    assert start is not None
    assert end is not None
    if end.line == start.line:
        return Mark(start.line + 1, start.column + 1, max(1, end.column - start.column))
    return Mark(start.line + 1, start.column + 1, 1, (end.line + 1, end.column + 1))


# ---------------------------------------------------------------------------------------------------- errors of syntax

_STAR_HINT = 'a value that begins with * needs quotes: "*.example.com", ["*"]'
_TAB = (re.compile(r"^ *\t"), "YAML is indented with spaces; there is a tab in this line")
_HINTS = (
    (re.compile(r"\$\{"), "in flow style, inside { } or [ ], a value with ${…} needs quotes"),
    (re.compile(r"\[[0-9a-fA-F]*:"), 'an IPv6 address needs quotes: "[::]:80"'),
    (re.compile(r"(^|[\s\[,:-])\*"), _STAR_HINT),
    _TAB,
    (re.compile(r"(^|[:\-,\[{]\s*)[@`%]"), "a value that begins with @, ` or % needs quotes"),
)
_COLON_BEFORE = re.compile(r":\s+[^'\"\s]")
_KEY = re.compile(r":(\s|$)")


def _note_syntax_error(source: Source, error: yaml.MarkedYAMLError) -> None:
    where = error.problem_mark or error.context_mark
    mark = Mark(where.line + 1, where.column + 1) if where else Mark()
    opened = error.context_mark  # where the quote or the bracket opened that this is about
    context = f" {error.context}" if error.context else ""
    message = f"this is not valid YAML: {error.problem or 'unreadable'}{context}"
    if "end of stream" in message and "quoted scalar" in message and opened is not None:
        hint = f"the quote opened in line {opened.line + 1} is never closed"
        source.error(Mark(opened.line + 1, opened.column + 1), "", message, hint)
        return
    lines = [source.line(mark.line)]
    if opened is not None:
        lines.append(source.line(opened.line + 1))
    if not lines[0].strip():  # libyaml often notices at the start of the next line
        lines.append(source.line(mark.line - 1))
    hint = _layout_hint(source, mark, message)
    hint = hint or next((hint for pattern, hint in _HINTS for line in lines if pattern.search(line)), "")
    if not hint and opened is not None and "while parsing a flow" in message and opened.line + 1 < mark.line:
        hint = f"is the {source.line(opened.line + 1)[opened.column]} opened in line {opened.line + 1} closed?"
    source.error(mark, "", message, hint)


def _layout_hint(source: Source, mark: Mark, message: str) -> str:
    """What was probably meant where indentation, a comma, a colon or a quote stands wrong; empty when in doubt."""
    line = source.line(mark.line)
    before = line[: mark.column - 1]
    comma = line[mark.column - 1 : mark.column] == ","
    if _TAB[0].search(line):
        return _TAB[1]
    if "mapping values are not allowed" in message:
        if _COLON_BEFORE.search(before):
            return "a value that contains a colon followed by a blank needs quotes"
        return _neighbour_hint(source, mark)
    if "did not find expected key" in message:
        if comma:
            return "only inside { } and [ ] a comma separates; take it away"
        if not before.strip():
            return _neighbour_hint(source, mark)
        if before[-1] in "'\"" and before.count(before[-1]) % 2:
            return "the quote before this place closes one that was opened in an earlier line"
    return "there is a comma too many" if comma and "expected node content" in message else ""


def _neighbour_hint(source: Source, mark: Mark) -> str:
    """What is wrong between a key and the line above it."""
    above = (source.line(number).strip() for number in range(mark.line - 1, 0, -1))
    neighbour = next((text for text in above if text and not text.startswith("#")), "")
    if neighbour and not _KEY.search(neighbour) and neighbour[-1] not in "]}'\"":
        return "the line above is no key: does it lack its colon?"
    return _INDENT if neighbour else ""


_INDENT = "keys that belong together begin in the same column; look at the indentation of this line and those above"


def _note_bad_character(source: Source, error: yaml.reader.ReaderError) -> None:
    """libyaml gives a byte offset or a character offset and no line; find the character ourselves."""
    for number, line in enumerate(source.text.split("\n"), 1):
        for column, character in enumerate(line, 1):
            if _NOT_PRINTABLE.match(character):
                code = ord(character)
                source.error(Mark(number, column), "", f"the character U+{code:04X} is not allowed in YAML")
                return
    source.error(Mark(), "", f"this is not valid YAML: {error.reason}")


_NOT_PRINTABLE = re.compile("[^\x09\x0a\x0d\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
