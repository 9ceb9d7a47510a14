"""Field lines: from ``Name: value`` as received to an `Item`, and the few facts that decide how a message is framed.

How it works
------------
`read_fields` takes the field lines of one head, split at CR LF, and gives back their items in order, the first value of
every field in `FACTS`, and which of those came more than once.  A line is cut at its first colon; what stands before it
has to be a token, and no control byte but the tab may be anywhere in the line.  CR and LF are control bytes, so a bare
one of either is refused with the line it stands in.  All lines of a head that are new are looked through at once.

Clients and apps send the same few lines again and again.  Lines of the names in `REMEMBERED` are kept with their items,
so that the next equal line, byte by byte the same, costs one look-up; so are all names, with their lower case.

Invariants
----------
* What is remembered was checked; equal bytes have equal items, so a hit skips no check.
* No secrets are remembered: only lines of names that carry none are kept, never ``Authorization``, ``Cookie``,
  ``Set-Cookie``, or a name that anybody may fill with anything (``X-...``).
* The tables are bounded: at most `MOST_LINES` entries each, of lines of at most `LONGEST_LINE` bytes and names of at
  most `LONGEST_NAME`.  A full table is emptied: to keep an order of age would cost every hit more than reading a few
  lines anew costs now and then, and whoever floods a table gains nothing but that.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from frontd.model.headers import LONGEST_NAME, Block, Headers, Item

TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"  # RFC 9110 5.6.2
VALUE = rb"[\t\x20-\x7e\x80-\xff]*"  # RFC 9110 5.5: visible characters, blanks and obs-text; no other control byte
_match_token = re.compile(TOKEN).fullmatch
match_field = re.compile(rb"(" + TOKEN + rb"):(" + VALUE + rb")").fullmatch

MOST_LINES = 1024  # entries in each table
LONGEST_LINE = 256  # bytes, without CR LF

MOST_BLOCKS = 256  # blocks of requests, and as many of answers
LONGEST_BLOCK = 1024  # bytes

Facts = dict[bytes, bytes]  # lower-case name -> first value

# Fields that decide where a message ends, whom it is for, or what becomes of its connection.
FACTS = frozenset((b"host", b"connection", b"content-length", b"transfer-encoding", b"expect", b"upgrade"))

# Names whose lines are remembered; a name stands for itself, so that all items share one object with one cached hash.
REMEMBERED = {
    name: name
    for name in (
        b"host", b"connection", b"content-length", b"transfer-encoding", b"upgrade-insecure-requests", b"user-agent",
        b"accept", b"accept-encoding", b"accept-language", b"accept-charset", b"accept-ranges", b"allow",
        b"cache-control", b"content-encoding", b"content-language", b"content-type", b"date", b"dnt", b"etag",
        b"expires", b"keep-alive", b"last-modified", b"origin-agent-cluster", b"permissions-policy", b"pragma",
        b"priority", b"referrer-policy", b"save-data", b"sec-ch-ua", b"sec-ch-ua-mobile", b"sec-ch-ua-platform",
        b"sec-fetch-dest", b"sec-fetch-mode", b"sec-fetch-site", b"sec-fetch-user", b"sec-gpc", b"server",
        b"strict-transport-security", b"te", b"vary",
    )
}  # fmt: skip

_ordinary: dict[bytes, Item] = {}  # remembered lines of names that are not in FACTS
_facts: dict[bytes, Item] = {}  # remembered lines of names in FACTS
_names: dict[bytes, bytes] = {}  # name as received -> lower-case name
# Every control byte but the tab, CR and LF included (RFC 9110 5.5), becomes another one; all other bytes stay.
_CHANGES_CONTROLS = bytes(byte ^ 1 if byte == 127 or (byte < 32 and byte != 9) else byte for byte in range(256))
_NONE_TWICE: tuple[bytes, ...] = ()


def read_fields(lines: Iterable[bytes]) -> tuple[list[Item], Facts, tuple[bytes, ...], bool] | None:
    """Items of the lines in order, the facts, names in `FACTS` that came more than once, and whether every line was
    known before; None: a line is bad."""
    items: list[Item] = []
    facts: Facts = {}
    repeated = _NONE_TWICE
    unchecked: list[bytes] = []
    for line in lines:
        item = _ordinary.get(line)
        if item is not None:
            items.append(item)
            continue
        item = _facts.get(line)
        if item is None:
            raw, colon, value = line.partition(b":")
            name = _names.get(raw) or _read_name(raw)
            if not name or not colon:
                return None
            item = (name, raw, value.strip(b" \t"))
            unchecked.append(line)
            if name in REMEMBERED:
                _remember(line, item)
            if name not in FACTS:
                items.append(item)
                continue
        name = item[0]
        if name in facts:
            repeated += (name,)
        else:
            facts[name] = item[2]
        items.append(item)
    if unchecked and _has_controls(b"".join(unchecked)):
        return None
    return items, facts, repeated, not unchecked


def remember_block(
    blocks: dict[bytes, Block], text: bytes, items: list[Item], length: int | None, *, chunked: bool = False, keep: bool
) -> None:
    """Keep the field lines `text` of a plain head, all of which are remembered."""
    if len(text) <= LONGEST_BLOCK:
        if len(blocks) >= MOST_BLOCKS:
            blocks.clear()
        blocks[text] = Block(items.copy(), length, chunked=chunked, keep_alive=keep)


def _has_controls(text: bytes) -> bool:
    return text.translate(_CHANGES_CONTROLS) != text  # quicker than any search, and than deleting them


def _read_name(name: bytes) -> bytes:
    """The lower-case name, empty when `name` is not a token (RFC 9110 5.1)."""
    if not _match_token(name):
        return b""
    lower = name.lower()
    lower = REMEMBERED.get(lower, lower)
    if len(name) <= LONGEST_NAME:
        if len(_names) >= MOST_LINES:
            _names.clear()
        _names[name] = lower
    return lower


def _remember(line: bytes, item: Item) -> None:
    """Keep a line that is short and holds nothing that is not allowed; it was not looked through before."""
    if len(line) > LONGEST_LINE or _has_controls(line):
        return
    table = _facts if item[0] in FACTS else _ordinary
    if len(table) >= MOST_LINES:
        table.clear()
    table[line] = item


def read_field(line: bytes) -> Item | None:
    """One field line without its CR LF as an item; None when it is not ``name: value`` (RFC 9112 5)."""
    match = match_field(line)
    if match is None:
        return None
    name, value = match.groups()
    return name.lower(), name, value.strip(b" \t")


def adopt(items: list[Item], block: Block | None = None) -> Headers:
    """`Headers` on the list itself: the constructor would copy it."""
    headers = Headers.__new__(Headers)
    headers.items = items
    headers.block = block
    return headers
