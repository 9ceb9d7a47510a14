"""Who may do what: rules by path, method, user, group and Windows security identifier.

How it works
------------
The rules are asked in their order.  A rule *covers* a request when its path and its methods do, and **the first rule
that covers the request decides, whoever is asking**: who is named in its `deny`, or is not named in its `allow`, is
refused, and no later rule is asked.  A request that no rule covers is refused.  (IIS URL Authorization goes on to the
next rule when the user is not named, and ships with one that allows everybody; here a rule for ``/admin/`` is the
whole truth about ``/admin/``.)

* A path covers complete segments, as routes do: ``/admin/`` covers ``/admin`` and ``/admin/x``, never ``/administer``;
  ASCII case does not count.  Paths are those of the site, as clients ask for them, before a route strips its prefix.
* An app may take a path for another one: ``//admin/``, ``/x;y/admin``, ``/x%2F..%2Fadmin`` (`frontd.path_readings` has
  the list).  Each such reading is put to the rules, and one refusal refuses the request.  A path that could be anything
  must be let in by every rule.  Names that only begin alike (``/admin.json``) are other names: an app that serves the
  same page there needs rules that end in one for ``/``.
* Methods are compared without regard to case, and GET covers HEAD (as Apache's ``<Limit GET>`` does).  The method is
  that of the request line; whether an app obeys ``X-HTTP-Method-Override`` is its own affair.
* Names of users and groups are compared without regard to case, as Windows accounts are.  Letters that merely look
  alike are equal in `deny` and different in `allow`, so that either error refuses.
* A group of a domain is ``DOMAIN\\NAME``.  In `allow` it has to be named like that, since another domain may have a
  group of the same name; in `deny`, ``group:NAME`` refuses the groups of every domain.
* Security identifiers (``sid:S-1-5-…``, MS-DTYP 2.4.2) are compared as they are: they belong to one account for ever,
  whatever it is called.
* ``anonymous`` in `allow` lets everybody in, in `deny` it refuses whoever has not logged on; ``authenticated`` is
  whoever has.

Refused are anonymous clients with 401.2 (``LogonRequired``; the site's authenticators add their challenges), others
with 403 (``Forbidden``; IIS has no substatus for it).  A CORS preflight never has credentials: let it in by a rule of
its own (``{methods: [OPTIONS], allow: [anonymous]}``).

Invariants: nothing is let in but by a rule that names it, and `Allow` is answered only then; work is bounded by the
rules and by the readings of one path.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

from pydantic import Field, field_validator

import frontd

ANONYMOUS, AUTHENTICATED = "anonymous", "authenticated"
_KINDS = ("group", "sid", "user")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 5.6.2
_OF_IIS = ("*", "?")  # everybody, and whoever has not logged on
# MS-DTYP 2.4.2.1, with at least one subauthority: an authority of 48 bits, then 1 to 15 numbers of 32
_SID = re.compile(r"[Ss]-1-(?:[0-9]{1,10}|0[xX][0-9A-Fa-f]{12})((?:-[0-9]{1,10}){1,15})")


class Rule(frontd.Settings):
    """One rule: what it covers, and who may."""

    path: str = Field(
        default="/",
        description="The path and everything below it, by complete segments (as routes; IIS: the location's path).",
    )
    methods: tuple[str, ...] = Field(
        default=(),
        description="Methods that the rule covers; GET covers HEAD. None named: every method (IIS: the rule's verbs).",
    )
    allow: tuple[str, ...] = Field(
        description="Who is let in: `anonymous` (everybody), `authenticated`, `group:NAME`, `sid:S-1-5-…`, a user's "
        "name or `user:NAME`. An empty list lets nobody in (IIS: the rule's users and roles).",
    )
    deny: tuple[str, ...] = Field(
        default=(),
        description="Who is refused although `allow` names them; the same words (IIS: deny rules come first).",
    )

    @field_validator("path")
    @classmethod
    def _canonical(cls, path: str) -> str:
        prefix = frontd.canonical_prefix(path)
        readings = frontd.path_readings(prefix)
        if readings is None or {_alike(frontd.unescaped(reading)) for reading in readings} != {_plain(prefix)}:
            raise ValueError(
                f"{path!r} can be read in more than one way: a rule's path has no ; and no %25, no empty segments, and "
                "no segments that end in a dot or a blank"
            )
        return prefix

    @field_validator("methods")
    @classmethod
    def _tokens(cls, methods: tuple[str, ...]) -> tuple[str, ...]:
        for method in methods:
            if not _TOKEN.fullmatch(method):
                raise ValueError(f"{method!r} is not a method (leave `methods` out for all)")
        return tuple(method.upper() for method in methods)

    @field_validator("allow", "deny")
    @classmethod
    def _words(cls, words: tuple[str, ...]) -> tuple[str, ...]:
        for word in words:
            if problem := _wrong_word(word):
                raise ValueError(problem)
        return words


def _wrong_word(word: str) -> str:
    """What is wrong with a word for users, as a sentence; empty: nothing."""
    kind, colon, name = word.partition(":")
    if word in _OF_IIS:
        return f"{word!r} is not a name here; the words are `anonymous` (everybody) and `authenticated`"
    if colon and kind == "sid":
        found = _SID.fullmatch(name)
        if found is None or any(int(part) >> 32 for part in found[1].split("-")[1:]):
            return f"{word!r}: after `sid` stands a security identifier such as S-1-5-32-544"
        return ""
    if colon and kind in _KINDS:
        return "" if name.strip() == name != "" else f"{word!r}: a name is expected right after the colon"
    if colon:
        return f"{word!r}: before a colon stands `group`, `sid` or `user`; a user whose name has one is user:{word}"
    if word.strip() != word or not word:
        return f"{word!r}: a name is expected, without blanks around it"
    near = difflib.get_close_matches(word.lower(), (ANONYMOUS, AUTHENTICATED), n=1, cutoff=0.8)
    if near and word not in near:
        return f"did you mean `{near[0]}` by {word!r}? A user of that name is user:{word}"
    return ""


# ---------------------------------------------------------------------------------------------------- names


def _plain(prefix: str) -> str:
    """A canonical path as readings are compared with it: decoded, letters that look alike being equal."""
    return _alike(frontd.unescaped(prefix.lower()))


def _same(name: str) -> tuple[str, str]:
    """A name such that equal ones differ in case alone: lower case makes a ``k`` of the Kelvin sign too, and upper case
    an ``S`` of the long s, but not both."""
    return name.lower(), name.upper()


def _alike(text: str) -> str:
    """A text such that those that look alike are equal."""
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


@dataclass(frozen=True, slots=True)
class _Names:
    """The words of one list, ready to be compared by `key`."""

    words: frozenset[str]
    users: frozenset[object]
    groups: frozenset[object]
    sids: frozenset[str]
    is_wide: bool

    @classmethod
    def of(cls, words: Iterable[str], *, wide: bool) -> _Names:
        key = _alike if wide else _same
        special = frozenset(word for word in words if word in (ANONYMOUS, AUTHENTICATED))
        pairs = [word.split(":", 1) if ":" in word else ["user", word] for word in words if word not in special]
        users, groups = (frozenset(key(name) for kind, name in pairs if kind == wanted) for wanted in ("user", "group"))
        sids = frozenset(name.upper() for kind, name in pairs if kind == "sid")
        return cls(special, users, groups, sids, wide)

    def name(self, identity: frontd.Identity) -> bool:
        """Whether somebody who has logged on is named by name, group or security identifier."""
        key = _alike if self.is_wide else _same
        if self.users and key(identity.name) in self.users:
            return True
        if self.sids and any(sid.upper() in self.sids for sid in identity.sids):
            return True
        if not self.groups:
            return False
        if self.is_wide and any(_alike(group.rpartition("\\")[2]) in self.groups for group in identity.groups):
            return True
        return any(key(group) in self.groups for group in identity.groups)


@dataclass(frozen=True, slots=True)
class _Gate:
    """A rule ready to be asked.  `key` is its path as routing compares paths, `plain` as readings are compared."""

    key: str
    plain: str
    methods: frozenset[str]
    allow: _Names
    deny: _Names

    def covers(self, reading: str, method: str, *, literally: bool) -> bool:
        """Whether the rule decides a request with the path `reading` and `method` (upper case)."""
        if self.methods and method not in self.methods:
            return False
        return _is_under(reading, self.key) or (not literally and _is_under(reading, self.plain))

    def lets_in(self, identity: frontd.Identity | None) -> bool:
        """Whether `identity` (None: nobody has logged on) may."""
        if identity is None:
            return ANONYMOUS in self.allow.words and ANONYMOUS not in self.deny.words
        if AUTHENTICATED in self.deny.words or self.deny.name(identity):
            return False
        return bool(self.allow.words) or self.allow.name(identity)


def _is_under(reading: str, prefix: str) -> bool:
    """By complete segments, as `frontd.PathTable`; `prefix` ends in ``/``."""
    return reading.startswith(prefix) or reading == prefix[:-1]


def _void(gate: _Gate, untold: Iterable[str]) -> str:
    """What a rule denies by, for people: all of it `untold` of somebody whom it may let in; empty: it holds."""

    def kinds(names: _Names) -> set[str]:
        return {kind for kind, some in (("groups", names.groups), ("sids", names.sids)) if some}

    denied, allowed = kinds(gate.deny), kinds(gate.allow)
    is_open = bool(gate.allow.words or gate.allow.users or allowed.difference(untold))
    if not denied or not denied.issubset(untold) or not is_open:
        return ""
    return " and no ".join({"groups": "groups", "sids": "SIDs"}[kind] for kind in sorted(denied))


def _gate(rule: Rule) -> _Gate:
    methods = frozenset(rule.methods) | ({"HEAD"} if "GET" in rule.methods else frozenset())
    allow, deny = _Names.of(rule.allow, wide=False), _Names.of(rule.deny, wide=True)
    return _Gate(rule.path.lower(), _plain(rule.path), methods, allow, deny)


# ---------------------------------------------------------------------------------------------------- the plugin


class Authorize(frontd.Plugin):
    """Rules by path, method, user, group and SID; the first that covers a request decides (see the module's text)."""

    name = "authorize"

    class Settings(frontd.Settings):
        """Rules by path, method, user, group and SID; the first that covers a request decides, and none refuses."""

        shorthand: ClassVar[str] = "rules"

        rules: tuple[Rule, ...] = Field(
            min_length=1,
            description="The rules, in their order; a list may stand for the map (IIS: system.webServer/security/"
            "authorization, which goes on to the next rule when the user is not named).",
        )

    settings: Settings

    @classmethod
    def check(cls, settings: Settings, site: frontd.SiteFacts) -> Iterator[str]:
        """Rules where nobody can log on, and rules that an earlier one hides."""
        if not site.has_authenticator:
            where = "this site" if site.name else "some site"
            yield (
                f"nobody can log on to {where}, so its rules would refuse or mean nothing; name an authenticator "
                "such as `basic` among the plugins, or remove `authorize`"
            )
        gates = [_gate(rule) for rule in settings.rules]
        for number, gate in enumerate(gates):
            for word, untold in site.untold.items():
                if void := _void(gate, untold):
                    yield (
                        f"rule {number + 1} ({settings.rules[number].path}) denies in vain whoever logs on by "
                        f"`{word}`, which tells no {void}; deny them by another word as well (`sid:` for users of a "
                        "domain, `group:` for those of a file), or name in `allow` who may"
                    )
        for later, gate in enumerate(gates):
            for earlier, first in enumerate(gates[:later]):
                every = not first.methods or (bool(gate.methods) and gate.methods <= first.methods)
                if every and _is_under(gate.key, first.key):
                    yield (
                        f"rule {later + 1} ({settings.rules[later].path}) is never asked: rule {earlier + 1} "
                        f"({settings.rules[earlier].path}) covers the same requests and comes first"
                    )
                    break

    def prepare(self) -> None:
        """Make the rules ready to be asked."""
        self._gates = tuple(_gate(rule) for rule in self.settings.rules)
        self._has_paths = any(gate.key != "/" for gate in self._gates)

    def authorize(self, exchange: frontd.Exchange) -> frontd.Allow | frontd.Refuse:
        """`Allow` when the deciding rule of every reading of the path lets the client in."""
        request, identity = exchange.request, exchange.identity
        for number in self._deciding(request.path, request.method.upper()):
            gate = self._gates[number] if number < len(self._gates) else None
            if gate is None or not gate.lets_in(identity):
                told = f"rule {number + 1} ({self.settings.rules[number].path})" if gate else "no rule covers it"
                if identity is None:
                    return frontd.Refuse(401, "LogonRequired", substatus=2, log=told)
                return frontd.Refuse(403, "Forbidden", log=told)
        return frontd.Allow()

    def _deciding(self, path: str, method: str) -> Iterable[int]:
        """The rules that decide, counted from 0; the number of rules stands for "no rule"."""
        literal = path.lower()
        found = {self._first(literal, method, literally=True)}
        readings = frontd.path_readings(path) if self._has_paths else frozenset((literal,))
        if readings is None:  # it could be anything, so whatever a rule protects
            found.update(at for at, gate in enumerate(self._gates) if not gate.methods or method in gate.methods)
        elif len(readings) > 1:
            others = {_alike(reading) for reading in readings} - {literal}
            found.update(self._first(reading, method, literally=False) for reading in others)
        return sorted(found) if len(found) > 1 else found

    def _first(self, reading: str, method: str, *, literally: bool) -> int:
        for at, gate in enumerate(self._gates):
            if gate.covers(reading, method, literally=literally):
                return at
        return len(self._gates)
