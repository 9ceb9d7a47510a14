"""What an app may take a path for: the readings that a rule about paths has to look at.

The canonical path (`urlprefix`) is the one form that is matched and forwarded.  Yet an app may read it further: decode
what had to stay escaped (WSGI decodes everything), take ``//`` for ``/``, drop ``;parameters`` (servlets), drop the dot
at the end of a name (Windows), fold letters that look alike.  Then ``/x%2F..%2Fadmin`` or ``/;a/admin`` is its
``/admin``, and a rule that looked at the canonical path alone has been walked around.

How it works
------------
`path_readings` does to a path whatever any of those apps does, one step at a time and in every order, until nothing new
is found.  Whoever refuses looks at all readings and refuses when one of them is refused.

Invariants: a path without odd characters has one reading, found by one search; the canonical path in compared form
(lower case) is always among the readings; work is bounded by `MOST` readings of `LONGEST` characters, and `WORK`
characters in all, so that the worst path takes 2 ms.  What needs more, and what holds a control character or an
overlong UTF-8 escape, has no readings that could be told: None.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

MOST = 64  # readings; seven games at once, each played or not, are 128
LONGEST = 4096  # characters (IIS maxUrl)
WORK = 12288  # characters of all readings together; the longest path, with escapes and no other game, needs half of it

# In canonical, lower-case paths: nothing else begins a game.
_ODD = re.compile(r"//|[;%]|\.(?:/|\Z)")
# No name holds these, yet some apps cut or skip them; and "/" or "." in more bytes than it needs (RFC 3629 3).
_UNTELLABLE = re.compile(r"[\x00-\x1f\x7f]|%c[01]%[89ab]|%e0%[89]|%f0%8")
_ESCAPE = re.compile(r"%([0-9A-Fa-f]{2})")
_OCTETS = tuple(bytes((octet,)) for octet in range(256))
_PARAMETERS = re.compile(r";[^/]*")
_REST = re.compile(r"[?#].*", re.DOTALL)
_SLASHES = re.compile(r"//+")


def path_readings(path: str) -> frozenset[str] | None:
    """Everything that an app may take the canonical `path` for, in lower case; None: more than can be told."""
    first = path.lower()
    if not _ODD.search(first):
        return frozenset((first,))
    found: set[str] = set()
    todo, size = [first], 0
    while todo:
        text = todo.pop()
        if text in found:
            continue
        size += len(text)
        if len(found) == MOST or len(text) > LONGEST or size > WORK or _UNTELLABLE.search(text):
            return None
        found.add(text)
        todo.extend(step(text) for step in _STEPS)
    return frozenset(found)


def unescaped(text: str) -> str:
    """`text` with its escapes decoded once: as UTF-8, or as Latin-1 when they are not UTF-8 (IIS and old apps)."""
    parts = _ESCAPE.split(text)
    if len(parts) == 1:
        return text
    octets = bytes.fromhex("".join(parts[1::2]))
    if octets.isascii():
        parts[1::2] = octets.decode()
        return "".join(parts)
    try:
        raw = [part.encode() for part in parts]
        raw[1::2] = map(_OCTETS.__getitem__, octets)
        return b"".join(raw).decode()
    except UnicodeDecodeError:
        parts[1::2] = octets.decode("latin-1")
        return "".join(parts)


def _folded(text: str) -> str:
    """Letters as they compare in apps that ignore more than ASCII case (the Kelvin sign is a ``k``, ``／`` a ``/``)."""
    return text if text.isascii() else unicodedata.normalize("NFKC", text).casefold()


def _without_parameters(text: str) -> str:
    return _PARAMETERS.sub("", text) if ";" in text else text


def _without_rest(text: str) -> str:
    """Without what a second parser would take for a query or fragment."""
    return _REST.sub("", text)


def _with_slashes(text: str) -> str:
    return text.replace("\\", "/")


def _collapsed(text: str) -> str:
    return _SLASHES.sub("/", text)


def _resolved(text: str) -> str:
    """Without dot segments (RFC 3986 5.2.4)."""
    if "/." not in text:
        return text
    parts = text.split("/")[1:]
    kept: list[str] = []
    for part in parts:
        if part == "..":
            del kept[-1:]
        elif part != ".":
            kept.append(part)
    if parts[-1] in (".", ".."):
        kept.append("")
    return "/" + "/".join(kept)


def _trimmed(text: str) -> str:
    """Segments as Windows opens them: without blanks and dots at their end; blanks before them go as well."""
    if " " not in text and "./" not in text and not text.endswith("."):
        return text
    names = (part.strip(" ") for part in text.split("/"))
    return "/".join(name if name in (".", "..") else name.rstrip(". ") for name in names)


_STEPS: tuple[Callable[[str], str], ...] = (
    unescaped, _folded, _without_parameters, _without_rest, _with_slashes, _collapsed, _resolved, _trimmed,
)  # fmt: skip
