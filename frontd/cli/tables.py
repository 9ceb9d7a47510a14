"""Aligned columns for people, as `docker ps` prints them; no boxes, so that `awk` and `grep` stay useful."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Sequence

STYLES = {"bold": "1", "red": "31", "green": "32", "yellow": "33", "dim": "2"}
_NUMBER = re.compile(r"[0-9]+(\.[0-9]+)?|-")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def use_colour() -> bool:
    """Colour only on a terminal, and never when NO_COLOR is set to anything (no-color.org) or TERM is dumb."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def styled(text: str, style: str, colour: bool) -> str:
    """`text` in a style of `STYLES`, or as it is without colour."""
    return f"\x1b[{STYLES[style]}m{text}\x1b[0m" if colour and text else text


def table(
    heads: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    colour: bool = False,
    styles: dict[str, str] | None = None,
) -> str:
    """Lines with columns as wide as their widest cell.

    A column whose cells are all numbers is right-aligned; None and the empty string become ``-``; control characters
    become ``?``, since a cell may hold what a server said.  `styles` maps the text of a whole cell to a style.
    """
    cells = [[_cell(value) for value in row] for row in rows]
    numeric = [bool(cells) and all(_NUMBER.fullmatch(row[i]) for row in cells) for i in range(len(heads))]
    widths = [max([len(head), *(len(row[i]) for row in cells)]) for i, head in enumerate(heads)]

    def line(row: Sequence[str], is_head: bool) -> str:
        parts = []
        for i, text in enumerate(row):
            padded = text.rjust(widths[i]) if numeric[i] else text.ljust(widths[i])
            style = "bold" if is_head else (styles or {}).get(text)
            # Padding stands outside the escape codes, so that the last column leaves no coloured blanks.
            parts.append(padded.replace(text, styled(text, style, colour), 1) if style else padded)
        return "   ".join(parts).rstrip()

    return "\n".join([line(list(heads), True), *(line(row, False) for row in cells)])


def plain(value: object) -> str:
    """A text that a terminal cannot be steered with: control characters become ``?``."""
    return _CONTROL.sub("?", str(value))


def _cell(value: object) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return plain(value)


def duration(seconds: float) -> str:
    """``0.4 s``, ``12 s``, ``3m 12s``, ``2h 5m``, ``4d 3h``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60}s"
    if whole < 86400:
        return f"{whole // 3600}h {whole % 3600 // 60}m"
    return f"{whole // 86400}d {whole % 86400 // 3600}h"
