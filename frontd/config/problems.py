"""What is wrong with a configuration, and how people are told.

A `Problem` knows its place; a `Source` is the file being read: it cuts the excerpt and collects every problem, so
that one run shows them all.  Printed text never contains control characters of the file, never the content of a
secret file, and no value out of the settings of plugins: those may be secrets, and in a typo nothing says so.  What is
hidden becomes asterisks; the length stays, so that carets point right.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

Severity = Literal["error", "warning"]

# libyaml counts these as line breaks (YAML 1.1, 5.4), so marks do as well
_BREAK = re.compile("\r\n|[\n\r\x85\u2028\u2029]")
_WIDTH = 100
HIDDEN = "…"  # in a message or path, what may not be repeated
_PASSWORD = re.compile(r"""(\bpassword["']?\s*:\s*+)(?!["']?\$\{)("(?:[^"\\]|\\.)*"|'(?:[^']|'')*'|.+)""")
_PASSWORD_IN_FLOW = re.compile(r"""(\bpassword["']?\s*:\s*+)(?!["']?\$\{)("(?:[^"\\]|\\.)*"|'(?:[^']|'')*'|[^,}]+)""")


# The key of a list of plugins, also when it is nearly right.
_PLUGINS = re.compile(r"""(?:^|(?<=[\s{,"']))plug(?!ins_dir)\w*["']?\s*:""", re.IGNORECASE)
_KEY = re.compile(r"""\s*(?:-\s+)*["']?[A-Za-z_][\w.-]*["']?\s*:(?!\S)""")


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in the file: line and column counted from 1, length in characters on that line.  Line 0: the whole
    file.  `end` is the line and column behind it when it goes over several lines."""

    line: int = 0
    column: int = 0
    length: int = 1
    end: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Problem:
    """One error or warning.  `line` and `column` count from 1; line 0 means the file as a whole."""

    file: str
    line: int
    column: int
    path: str
    message: str
    hint: str = ""
    excerpt: str = ""
    severity: Severity = "error"

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        path = f"{self.path}: " if self.path else ""
        warning = "warning: " if self.severity == "warning" else ""
        lines = [f"{place}: {warning}{path}{self.message}"]
        lines += [f"  | {line}" for line in self.excerpt.splitlines()]
        if self.hint:
            lines.append(f"  = {self.hint}")
        return "\n".join(lines)


class ConfigProblems(Exception):
    """The configuration cannot be used.  `problems` holds every error of the file, then its warnings."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__(problems)
        self.problems = problems

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)


def printable(text: str) -> str:
    """`text` with everything that would move a terminal's cursor replaced by a blank or ``\\x..``."""
    return "".join(c if c.isprintable() else " " if c == "\t" else f"\\x{ord(c):02x}" for c in text)


def is_plugins(key: str) -> bool:
    """Whether a key is meant to be that of a list of plugins."""
    return _PLUGINS.match(f"{key}:") is not None


def _private_lines(lines: list[str]) -> dict[int, int]:
    """Where, by number of line, what may be settings of plugins begins (counted from 0), by the look of the text: a
    line that cannot be parsed has no nodes to tell."""
    found: dict[int, int] = {}
    outer: int | None = None  # where the line with the key begins that the lines here belong to
    for number, line in enumerate(lines, 1):
        text = line.lstrip(" ")
        if not text or text[0] == "#":
            continue
        depth = len(line) - len(text)
        if outer is not None and depth + (text[0] in "-]}\t") <= outer:
            outer = None
        if outer is not None:
            found[number] = 0
        elif key := _PLUGINS.search(line):
            found[number], outer = key.end(), depth
    return found


def _without_values(line: str, start: int) -> str:
    """A line without what stands behind its first key, from `start` on."""
    key = None if start else _KEY.match(line)
    start = key.end() if key else start
    return line[:start] + re.sub(r"\S", "*", line[start:])


def _without_password(line: str) -> str:
    """A line of the file as it may be shown: errors end up in logs."""
    pattern = _PASSWORD_IN_FLOW if "{" in line.partition("password")[0] else _PASSWORD
    return pattern.sub(lambda match: match.group(1) + "*" * len(match.group(2)), line)


@dataclass(slots=True)
class Source:
    """A configuration file being read: its name, its text, and what was found wrong with it."""

    name: str
    text: str
    problems: list[Problem] = field(default_factory=list)
    _hidden: dict[int, list[tuple[int, int]]] = field(default_factory=dict)  # from, to (counted from 0), by line
    _is_composed: bool = False
    _lines: list[str] | None = None
    _private: dict[int, int] | None = None
    _seen: set[tuple[int, int, str]] = field(default_factory=set)

    def error(self, mark: Mark, path: str, message: str, hint: str = "") -> None:
        """Note an error.  The same words about the same place (a global limit seen by each site) count once."""
        self._add("error", mark, path, message, hint)

    def warning(self, mark: Mark, path: str, message: str, hint: str = "") -> None:
        """Note a warning."""
        self._add("warning", mark, path, message, hint)

    def hide(self, mark: Mark) -> None:
        """Show asterisks from now on in place of what stands there."""
        last, end = mark.end or (mark.line, mark.column + mark.length)
        for line in range(mark.line, last + 1):
            start = mark.column - 1 if line == mark.line else 0
            self._hidden.setdefault(line, []).append((start, end - 1 if line == last else len(self.line(line))))

    def composed(self) -> None:
        """The file could be parsed: from now on what was given to `hide` is hidden, and no longer whole lines."""
        self._is_composed = True

    def hides(self, mark: Mark) -> bool:
        """Whether what stands there is not shown; then messages may not repeat it either."""
        if self._is_composed:
            return any(start < mark.column <= end for start, end in self._hidden.get(mark.line, ()))
        start = self._private_from(mark.line)
        return start is not None and start < mark.column

    @property
    def failed(self) -> bool:
        """Whether there is an error."""
        return any(problem.severity == "error" for problem in self.problems)

    def _add(self, severity: Severity, mark: Mark, path: str, message: str, hint: str) -> None:
        key = (mark.line, mark.column, message)
        if key in self._seen:
            return
        self._seen.add(key)
        self.problems.append(
            Problem(
                printable(self.name), mark.line, mark.column, printable(path), printable(message), printable(hint),
                self._excerpt(mark), severity,
            )
        )  # fmt: skip

    def line(self, number: int) -> str:
        """Line `number`, counted from 1; empty when there is none."""
        if self._lines is None:
            self._lines = _BREAK.split(self.text)
        return self._lines[number - 1] if 0 < number <= len(self._lines) else ""

    def _private_from(self, number: int) -> int | None:
        if self._private is None:
            self.line(0)
            self._private = _private_lines(self._lines or [])
        return self._private.get(number)

    def _shown(self, number: int) -> str:
        """Line `number` as it may be shown."""
        line = self.line(number)
        if not self._is_composed:
            start = self._private_from(number)
            return _without_password(line if start is None else _without_values(line, start))
        hidden = self._hidden.get(number, ())
        for start, end in hidden:
            line = line[:start] + re.sub(r"\S", "*", line[start:end]) + line[end:]
        if hidden:  # a comment behind a value may be a part of it, or another value for it
            last = max(end for _, end in hidden)
            comment = re.compile(r"\s#").search(line, last)
            line = _without_values(line, comment.start()) if comment else line
        return _without_password(line)

    def _excerpt(self, mark: Mark) -> str:
        if not mark.line:
            return ""
        line = self._shown(mark.line)
        start = max(0, mark.column - 1 - _WIDTH // 2) if len(line) > _WIDTH else 0
        before = printable(line[start : mark.column - 1])
        marked = printable(line[mark.column - 1 : min(mark.column - 1 + max(mark.length, 1), start + _WIDTH)])
        after = printable(line[mark.column - 1 + max(mark.length, 1) : start + _WIDTH])
        if not line.strip():
            return ""
        return f"{before}{marked}{after}".rstrip() + "\n" + " " * len(before) + "^" * max(1, len(marked))
