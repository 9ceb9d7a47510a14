"""Scalars: what a word in the file means once it is known what is expected there.

A scalar of the file reaches the models as `Scalar`: its exact text, with the value that the YAML 1.2 core rules give
it.  The *field* decides which of the two counts.  So ``password: 12345`` keeps its text, ``port: "${PORT}"`` becomes a
number although the quotes make it a string, and nothing is ever guessed: ``no``, ``22:22`` and ``010`` are strings.

The parsers here also take plain Python values, so that the models can be made by hand.  Each raises `ValueError` with a
sentence for people.  Durations are seconds (float), sizes are bytes (int).
"""

from __future__ import annotations

import difflib
import ipaddress
import itertools
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

_INT = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,17})")
_OTHER_INT = re.compile(r"0o[0-7]{1,20}|0x[0-9a-fA-F]{1,15}")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_WORDS: dict[str, bool | None] = {
    "true": True, "True": True, "TRUE": True,
    "false": False, "False": False, "FALSE": False,
    "null": None, "Null": None, "NULL": None, "~": None, "": None,
}  # fmt: skip


def resolve(text: str) -> str | int | float | bool | None:
    """The value of a plain scalar by the YAML 1.2 core schema (YAML 1.2.2, 10.3.2), but stricter.

    A number with a leading zero stays a string, so do infinities, NaN, and whole numbers of more than 18 digits.
    """
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text)
    if _OTHER_INT.fullmatch(text):
        return int(text, 0)
    if len(text) <= 32 and _FLOAT.fullmatch(text):
        number = float(text)
        return number if math.isfinite(number) and not text.lstrip("-+").isdigit() else text
    return text


class Scalar(str):
    """The exact text of a scalar; `value` is what the YAML rules make of it (the text itself when it was quoted)."""

    value: str | int | float | bool | None

    @classmethod
    def of(cls, text: str, plain: bool = True) -> Scalar:
        scalar = cls(text)
        scalar.value = resolve(text) if plain else text
        return scalar


@dataclass(frozen=True, slots=True)
class Kind:
    """Marks a field's type with the word the documentation uses for it."""

    name: str


def clip(value: object, length: int = 80) -> str:
    """A value as errors show it: quoted, control characters escaped, never longer than about `length`."""
    text = str(value)
    return repr(text if len(text) <= length else text[: length - 1] + "…")


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that was probably meant, or None."""
    if len(word) > 100:
        return None
    by_lower = {name.lower(): name for name in known}
    found = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[found[0]] if found else None


class Refused(ValueError):
    """A value that cannot be used: a sentence, and a hint at what was probably meant."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


# ---------------------------------------------------------------------------------------------------- leaf types


def text(value: object) -> str:
    """A string.  A number keeps its text; a boolean is refused, since it is nearly always a misunderstanding."""
    if isinstance(value, Scalar):
        if isinstance(value.value, bool):
            raise ValueError(f'a text is expected, not true or false (write "{value}" in quotes if it is one)')
        return str(value)
    if isinstance(value, str):
        return value
    raise ValueError("a text is expected")


def number(value: object) -> int:
    """A whole number; as text (after interpolation, or in quotes) only in decimal without leading zeros."""
    plain = value.value if isinstance(value, Scalar) else value
    if isinstance(plain, int) and not isinstance(plain, bool):
        return plain
    if isinstance(plain, str) and _INT.fullmatch(plain):
        return int(plain)
    if isinstance(plain, str) and plain[:1] == "0" and plain.isdigit():
        raise ValueError(f"{clip(plain)} has a leading zero; write {plain.lstrip('0') or '0'}")
    raise ValueError(f"a whole number is expected, not {clip(value)}")


def boolean(value: object) -> bool:
    """``true`` or ``false``."""
    plain = value.value if isinstance(value, Scalar) else value
    if isinstance(plain, bool):
        return plain
    word = str(plain).lower()
    if word in ("true", "false"):
        return word == "true"
    if word in ("yes", "on", "no", "off"):
        meant = "true" if word in ("yes", "on") else "false"
        raise ValueError(f"true or false is expected; {clip(plain)} is a text in YAML 1.2 (write {meant})")
    raise ValueError(f"true or false is expected, not {clip(value)}")


_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_MAX_SECONDS = 366 * 86400.0


def seconds(value: object) -> float:
    """A duration in seconds: ``20m``, ``1h30m``, ``500ms``, or a bare number of seconds; at most a year."""
    plain = value.value if isinstance(value, Scalar) else value
    if isinstance(plain, str) and len(plain) <= 32:
        plain = _seconds_of_text(plain)
    if isinstance(plain, bool) or not isinstance(plain, int | float) or not math.isfinite(plain):
        raise ValueError(f"a duration such as 30s, 1h30m or 500ms is expected, not {clip(value)}")
    if not 0 <= plain <= _MAX_SECONDS:
        raise ValueError(f"a duration from 0 to one year is expected, not {clip(value)}")
    return float(plain)


def _seconds_of_text(word: str) -> float | None:
    bare = resolve(word)
    if isinstance(bare, int | float) and not isinstance(bare, bool):
        return bare
    position, total = 0, 0.0
    sizes: list[float] = []
    while match := _DURATION.match(word, position):
        sizes.append(_SECONDS[match.group(2)])
        total += float(match.group(1)) * sizes[-1]
        position = match.end()
    in_order = all(larger > smaller for larger, smaller in itertools.pairwise(sizes))
    return round(total, 6) if sizes and in_order and position == len(word) else None


_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,6})?) ?([A-Za-z]+)")
_BYTES = {"B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_BYTES |= {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def size(value: object) -> int:
    """A size in bytes: ``30MB`` is 10⁶, ``32MiB`` is 2²⁰, a bare number is bytes."""
    plain = value.value if isinstance(value, Scalar) else value
    if isinstance(plain, str):
        match = _SIZE.fullmatch(plain)
        if match and match.group(2) in _BYTES:
            plain = round(float(match.group(1)) * _BYTES[match.group(2)])
        elif match:
            unit = nearest(match.group(2) + "B", _BYTES) or "MiB"
            raise ValueError(f"{clip(match.group(2))} is not a unit of size; write {match.group(1)}{unit}")
        elif _INT.fullmatch(plain):
            plain = int(plain)
    if isinstance(plain, bool) or not isinstance(plain, int) or not 0 <= plain < 2**62:
        raise ValueError(f"a size such as 30MB, 32MiB or a number of bytes is expected, not {clip(value)}")
    return plain


def size_or_none(value: object) -> int | None:
    """A size, or the word ``none``: no limit."""
    return None if value is None or value == "none" else size(value)


def number_or_none(value: object) -> int | None:
    """A whole number, or the word ``none``: no limit."""
    return None if value is None or value == "none" else number(value)


def number_or_auto(value: object) -> int | None:
    """A whole number, or the word ``auto``: as the machine is."""
    return None if value is None or value == "auto" else number(value)


def network(value: object) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    """An address or a network in CIDR form."""
    if isinstance(value, ipaddress.IPv4Network | ipaddress.IPv6Network):
        return value
    word = text(value)
    try:
        return ipaddress.ip_network(word, strict=True)
    except ValueError:
        pass
    try:
        loose = ipaddress.ip_network(word, strict=False)
    except ValueError:
        raise ValueError(f"an address or a network such as 10.0.0.0/8 is expected, not {clip(word)}") from None
    raise ValueError(f"{clip(word)} has bits set outside its mask; write {loose}")


def address_and_port(value: object) -> tuple[str | None, int]:
    """Read ``address:port``, ``[v6]:port``, ``:port``, ``*:port`` or a bare port (0 to 65535) of a socket to listen on.

    The address is None when there is none: every IPv4 and IPv6 address.
    """
    plain = value.value if isinstance(value, Scalar) else value
    if isinstance(plain, int) and not isinstance(plain, bool):
        return None, _port(plain)
    word = text(value)
    host, colon, port = word.rpartition(":")
    if not colon:
        return None, _port(number(word))
    if not port.isascii() or not _INT.fullmatch(port):
        raise ValueError(f"a port or address:port is expected, not {clip(word)}")
    if host in ("", "*"):
        return None, _port(int(port))
    bare = bind_address(host[1:-1] if host.startswith("[") and host.endswith("]") else host)
    if ":" in bare and not host.startswith("["):
        raise ValueError(f"an IPv6 address stands in brackets: [{bare}]:{port}, in quotes")
    return bare, _port(int(port))


def _port(value: int) -> int:
    if not 0 <= value <= 65535:
        raise ValueError(f"a port is a number from 0 to 65535, not {value}")
    return value


def bind_address(value: object) -> str:
    """An IP address of this machine, in canonical form (RFC 5952); zones (``%eth0``) are refused."""
    word = text(value)
    try:
        parsed = ipaddress.ip_address(word)
    except ValueError:
        raise ValueError(f"an IP address is expected, not {clip(word)} (names are not looked up here)") from None
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.scope_id:
        raise ValueError(f"{clip(word)}: an address with a zone cannot be used here")
    return str(parsed)
