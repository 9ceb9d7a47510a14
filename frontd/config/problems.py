"""What is wrong with a configuration, and how people are told.

A `Problem` knows its place; a `Source` is the file being read: it cuts the excerpt and collects every problem, so
that one run shows them all.  Printed text never contains control characters of the file, and never the content of a
secret file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

Severity = Literal["error", "warning"]

# libyaml counts these as line breaks (YAML 1.1, 5.4), so marks do as well
_BREAK = re.compile("\r\n|[\n\r\x85\u2028\u2029]")
_WIDTH = 100
_PASSWORD = re.compile(r"""(\bpassword["']?\s*:\s*+)(?!["']?\$\{)("(?:[^"\\]|\\.)*"|'(?:[^']|'')*'|.+)""")
_PASSWORD_IN_FLOW = re.compile(r"""(\bpassword["']?\s*:\s*+)(?!["']?\$\{)("(?:[^"\\]|\\.)*"|'(?:[^']|'')*'|[^,}]+)""")


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in the file: line and column counted from 1, length in characters on that line.  Line 0: the whole
    file."""

    line: int = 0
    column: int = 0
    length: int = 1


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


def _without_password(line: str) -> str:
    """A line of the file as it may be shown: errors end up in logs.  The length stays, so that carets point right."""
    pattern = _PASSWORD_IN_FLOW if "{" in line.partition("password")[0] else _PASSWORD
    return pattern.sub(lambda match: match.group(1) + "*" * len(match.group(2)), line)


@dataclass(slots=True)
class Source:
    """A configuration file being read: its name, its text, and what was found wrong with it."""

    name: str
    text: str
    problems: list[Problem] = field(default_factory=list)
    _hidden: list[Mark] = field(default_factory=list)
    _lines: list[str] | None = None
    _seen: set[tuple[int, int, str]] = field(default_factory=set)

    def error(self, mark: Mark, path: str, message: str, hint: str = "") -> None:
        """Note an error.  The same words about the same place (a global limit seen by each site) count once."""
        self._add("error", mark, path, message, hint)

    def warning(self, mark: Mark, path: str, message: str, hint: str = "") -> None:
        """Note a warning."""
        self._add("warning", mark, path, message, hint)

    def hide(self, mark: Mark) -> None:
        """Show asterisks from now on in place of what stands there."""
        self._hidden.append(mark)

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

    def _excerpt(self, mark: Mark) -> str:
        if not mark.line:
            return ""
        line = self.line(mark.line)
        for hidden in self._hidden:
            if hidden.line == mark.line:
                start, end = hidden.column - 1, hidden.column - 1 + hidden.length
                line = line[:start] + "*" * len(line[start:end]) + line[end:]
        line = _without_password(line)
        start = max(0, mark.column - 1 - _WIDTH // 2) if len(line) > _WIDTH else 0
        before = printable(line[start : mark.column - 1])
        marked = printable(line[mark.column - 1 : min(mark.column - 1 + max(mark.length, 1), start + _WIDTH)])
        after = printable(line[mark.column - 1 + max(mark.length, 1) : start + _WIDTH])
        if not line.strip():
            return ""
        return f"{before}{marked}{after}".rstrip() + "\n" + " " * len(before) + "^" * max(1, len(marked))
