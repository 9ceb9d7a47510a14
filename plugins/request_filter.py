"""IIS request filtering: what is refused before anybody looks at it.

How it works
------------
The rules of ``system.webServer/security/requestFiltering``, with their substatus numbers, in this order; every refusal
is a 404 with the reason ``Rejected``, and the log says which rule it was:

* 404.6   verbs: not in `allow_verbs`, or in `deny_verbs`
* 404.11  the path decodes twice (`allow_double_escaping: false`), or could be anything (`frontd.path_readings`)
* 404.12  a character beyond ASCII in the decoded path (`allow_high_bit: false`)
* 404.8   a hidden segment
* 404.7   a file name extension
* 404.5   a sequence in the path; 404.18 a sequence in the query
* 404.19  one of `rules`

How it differs from IIS, always to the safer side:

* A list of what is allowed is IIS's ``allowUnlisted="false"``: where it is given, nothing else passes.
* IIS looks at the extension of the file it found.  Here nobody knows where the file ends and the path info begins
  (``/x.config/y``), so the extension of **every** segment counts.
* The path is looked at under all its readings: as sent, canonical, decoded, without ``;parameters``, without dots and
  blanks at the end of a name; the query as sent and decoded up to three times, with ``+`` as it is and as a blank.
* IIS also refuses ``+`` as double escaping; a ``+`` in a path is an ordinary character (RFC 3986 3.3) and passes.
* Nothing regards case, except that a verb in `allow_verbs` must be written as the client writes it (methods are
  case-sensitive, RFC 9110 9.1): ``get`` is not ``GET``, but `deny_verbs` knows both.

Where this plugin stands, ``limits.max_url`` and ``limits.max_query`` are 4096 and 2048 bytes unless the site says
otherwise (IIS maxUrl, maxQueryString); what is longer is a 414, not IIS's 404.14 and 404.15.

Invariants: filtering never waits and keeps nothing; its work is bounded by the lists and the size of the request head.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field

import frontd

# What IIS 10 ships in applicationHost.config: sources and configuration, of ASP.NET and of its tools.
EXTENSIONS = frozenset(
    (
        ".ad", ".adprototype", ".asa", ".asax", ".ascx", ".browser", ".cd", ".compiled", ".config", ".cs", ".csproj",
        ".dd", ".dsdgm", ".dsprototype", ".exclude", ".java", ".jsl", ".ldb", ".ldd", ".lddprototype", ".ldf", ".licx",
        ".lsad", ".lsaprototype", ".master", ".mdb", ".mdf", ".msgx", ".refresh", ".resources", ".resx", ".rules",
        ".sd", ".sdm", ".sdmdocument", ".sitemap", ".skin", ".ssdgm", ".ssmap", ".vb", ".vbproj", ".vjsproj",
        ".vsdisco", ".webinfo",
    )
)  # fmt: skip
# The same, and what containers carry instead: the directories of version control, and files with secrets.
SEGMENTS = frozenset(
    (
        "web.config", "bin", "app_code", "app_globalresources", "app_localresources", "app_webreferences", "app_data",
        "app_browsers", ".git", ".hg", ".svn", ".env", ".htaccess", ".htpasswd",
    )
)  # fmt: skip
MOST_DECODINGS = 3  # of a query or a field: once by the app, and twice by one that errs

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 5.6.2
_BARE_PERCENT = re.compile(r"%(?![0-9a-f]{2})")
_ORIGIN = re.compile(r"https?://[^/?]*")


# ---------------------------------------------------------------------------------------------------- settings


def _tokens(words: tuple[str, ...]) -> tuple[str, ...]:
    for word in words:
        if not _TOKEN.fullmatch(word):
            raise ValueError(f"{word!r} is not the name of a method or field (RFC 9110 5.6.2)")
    return words


def _extensions(words: tuple[str, ...]) -> tuple[str, ...]:
    for word in words:
        if not word.startswith(".") or "/" in word or "." in word[1:]:
            raise ValueError(f"{word!r} is not an extension; it begins with its only dot, as in .bak ('.' alone: none)")
    return tuple(word.lower() for word in words)


def _segments(words: tuple[str, ...]) -> tuple[str, ...]:
    for word in words:
        if not word.strip("/") or "/" in word.strip("/"):
            raise ValueError(f"{word!r} is not one segment of a path")
    return tuple(word.strip("/").lower() for word in words)


def _sequences(words: tuple[str, ...]) -> tuple[str, ...]:
    if not all(words):
        raise ValueError("an empty text is in everything")
    return tuple(word.lower() for word in words)


def _paths(words: tuple[str, ...]) -> tuple[str, ...]:
    found = []
    for word in words:
        prefix = frontd.canonical_prefix(word)
        found.append((prefix if word.endswith("/") else prefix.rstrip("/") or "/").lower())
    return tuple(found)


Tokens = Annotated[tuple[str, ...], AfterValidator(_tokens)]
Extensions = Annotated[tuple[str, ...], AfterValidator(_extensions)]
Segments = Annotated[tuple[str, ...], AfterValidator(_segments)]
Sequences = Annotated[tuple[str, ...], AfterValidator(_sequences)]
Paths = Annotated[tuple[str, ...], AfterValidator(_paths)]


class FilteringRule(frontd.Settings):
    """One of IIS's filteringRules: texts that must not appear in some part of the request."""

    name: str = Field(min_length=1, description="What the log calls it (IIS name).")
    scan_url: bool = Field(default=False, description="Look into the path (IIS scanUrl: false).")
    scan_query: bool = Field(default=False, description="Look into the query (IIS scanQueryString: false).")
    scan_headers: Tokens = Field(default=(), description="Fields to look into, by name (IIS scanHeaders: none).")
    applies_to: Extensions = Field(
        default=(),
        description="Only paths with one of these extensions; none named: every path (IIS appliesTo: empty is all).",
    )
    deny_strings: Sequences = Field(default=(), description="The texts that are refused (IIS denyStrings).")
    deny_unescaped_percent: bool = Field(
        default=True,
        description="Refuse a scanned query with a `%` that begins no escape; in a path it is always refused, with 400 "
        "(IIS denyUnescapedPercent: true).",
    )


class RequestFilter(frontd.Plugin):
    """IIS request filtering (see the module's text)."""

    name = "request_filter"
    limits: ClassVar[Mapping[str, int]] = {"max_url": 4096, "max_query": 2048}

    class Settings(frontd.Settings):
        """The rules of IIS's requestFiltering; every list is empty unless something else is said."""

        allow_verbs: Tokens = Field(
            default=(), description="The only methods that pass, spelt as here (IIS verbs, allowUnlisted false)."
        )
        deny_verbs: Tokens = Field(default=(), description="Methods that are refused, in any case (IIS verbs).")
        allow_extensions: Extensions = Field(
            default=(),
            description="The only extensions that pass; `.` stands for none (IIS fileExtensions, allowUnlisted false).",
        )
        deny_extensions: Extensions = Field(
            default=(), description="Extensions that are refused, beside the default ones (IIS fileExtensions)."
        )
        hidden_segments: Segments = Field(
            default=(), description="Whole segments that are refused, beside the default ones (IIS hiddenSegments)."
        )
        default_lists: bool = Field(
            default=True,
            description="Refuse the extensions and segments of IIS's own lists (`.config`, `.cs`, `bin`, …), and "
            "`.git`, `.hg`, `.svn`, `.env`, `.htaccess`, `.htpasswd`; `false` is IIS's `<clear/>`.",
        )
        deny_url_sequences: Sequences = Field(
            default=(), description="Texts that must not appear in the path (IIS denyUrlSequences)."
        )
        deny_query_sequences: Sequences = Field(
            default=(), description="Texts that must not appear in the query (IIS denyQueryStringSequences)."
        )
        always_allowed_urls: Paths = Field(
            default=(),
            description="Canonical paths that `deny_url_sequences` does not refuse (IIS alwaysAllowedUrls).",
        )
        always_allowed_queries: Sequences = Field(
            default=(),
            description="Whole queries that `deny_query_sequences` does not refuse (IIS alwaysAllowedQueryStrings).",
        )
        allow_double_escaping: bool = Field(
            default=False,
            description="Let paths pass that change when they are decoded twice (IIS allowDoubleEscaping: false).",
        )
        allow_high_bit: bool = Field(
            default=True,
            description="Let paths pass that hold more than ASCII when decoded (IIS allowHighBitCharacters: true).",
        )
        rules: tuple[FilteringRule, ...] = Field(default=(), description="Further rules (IIS filteringRules).")

    settings: Settings

    @classmethod
    def check(cls, settings: Settings, site: frontd.SiteFacts) -> Iterator[str]:
        """Rules that can refuse nothing, and words that contradict each other."""
        for rule in settings.rules:
            scans = rule.scan_url or rule.scan_query or rule.scan_headers
            if not scans:
                yield f"rule {rule.name!r} looks at nothing; set scan_url, scan_query or scan_headers"
            elif not rule.deny_strings and not (rule.scan_query and rule.deny_unescaped_percent):
                yield f"rule {rule.name!r} refuses nothing; name deny_strings"
        denied = EXTENSIONS.union(settings.deny_extensions) if settings.default_lists else {*settings.deny_extensions}
        for word in sorted(denied & {*settings.allow_extensions}):
            own = word in settings.deny_extensions
            where = "deny_extensions" if own else "the default list (default_lists: false removes it)"
            yield f"the extension {word} is in allow_extensions and in {where}"
        for word in settings.allow_verbs:
            if word.upper() in (verb.upper() for verb in settings.deny_verbs):
                yield f"the verb {word} is in allow_verbs and in deny_verbs"

    def prepare(self) -> None:
        """Make the lists ready to be asked."""
        given = self.settings
        self._allowed_verbs = frozenset(given.allow_verbs)
        self._denied_verbs = frozenset(verb.upper() for verb in given.deny_verbs)
        self._allowed_extensions = frozenset(given.allow_extensions)
        self._denied_extensions = frozenset(given.deny_extensions)
        self._hidden = frozenset(given.hidden_segments)
        if given.default_lists:
            self._denied_extensions |= EXTENSIONS
            self._hidden |= SEGMENTS

    def filter_request(self, exchange: frontd.Exchange) -> frontd.Refuse | None:
        """The first rule that refuses."""
        request = exchange.request
        if request.method.upper() in self._denied_verbs:
            return _refuse(6, f"verb {request.method}")
        if self._allowed_verbs and request.method not in self._allowed_verbs:
            return _refuse(6, f"verb {request.method} is not allowed")
        readings = frontd.path_readings(request.path)
        if readings is None:
            return _refuse(11, "the path can be read in too many ways")
        extensions = _extensions_in(readings)
        return (
            self._escapes(request.path)
            or self._names(readings, extensions)
            or self._sequences(request, readings)
            or self._rules(request, readings, extensions)
        )

    def _escapes(self, path: str) -> frontd.Refuse | None:
        if "%" not in path:
            return None
        once = frontd.unescaped(path)
        twice = frontd.unescaped(once)
        if once != twice and not self.settings.allow_double_escaping:
            return _refuse(11, "double escaping")
        if not (once.isascii() and twice.isascii()) and not self.settings.allow_high_bit:
            return _refuse(12, "a character beyond ASCII in the path")
        return None

    def _names(self, readings: Iterable[str], extensions: frozenset[str]) -> frontd.Refuse | None:
        hidden = {name for reading in readings for name in _names_in(reading)} & self._hidden
        if hidden:
            return _refuse(8, f"hidden segment {min(hidden)}")
        if denied := extensions & self._denied_extensions:
            return _refuse(7, f"extension {min(denied)}")
        if self._allowed_extensions and (unlisted := extensions - self._allowed_extensions):
            return _refuse(7, f"extension {min(unlisted)} is not allowed")
        return None

    def _sequences(self, request: frontd.Request, readings: frozenset[str]) -> frontd.Refuse | None:
        given = self.settings
        if given.deny_url_sequences and request.path.lower() not in given.always_allowed_urls:
            found = _found(given.deny_url_sequences, readings | _sent_paths(request.target))
            if found:
                return _refuse(5, f"sequence {found!r} in the path")
        if given.deny_query_sequences and request.query.lower() not in given.always_allowed_queries:
            found = _found(given.deny_query_sequences, _decodings(request.query, form=True))
            if found:
                return _refuse(18, f"sequence {found!r} in the query")
        return None

    def _rules(
        self, request: frontd.Request, readings: frozenset[str], extensions: frozenset[str]
    ) -> frontd.Refuse | None:
        for rule in self.settings.rules:
            if rule.applies_to and not extensions.intersection(rule.applies_to):
                continue
            texts: set[str] = set()
            if rule.scan_url:
                texts |= readings | _sent_paths(request.target)
            if rule.scan_query:
                texts |= _decodings(request.query, form=True)
                if rule.deny_unescaped_percent and _BARE_PERCENT.search(request.query.lower()):
                    return _refuse(19, f"rule {rule.name!r}: an unescaped % in the query")
            for name in rule.scan_headers:
                texts |= _field_texts(request.headers.get_all(name))
            found = _found(rule.deny_strings, texts)
            if found:
                return _refuse(19, f"rule {rule.name!r}: {found!r}")
        return None


# ---------------------------------------------------------------------------------------------------- texts


def _refuse(substatus: int, log: str) -> frontd.Refuse:
    return frontd.Refuse(404, "Rejected", substatus=substatus, log=log)


def _names_in(reading: str) -> list[str]:
    """The segments of a path, also without the stream of a file (``web.config::$DATA`` on NTFS)."""
    names = reading.split("/")[1:]
    return [*names, *(name.partition(":")[0] for name in names)] if ":" in reading else names


def _extensions_in(readings: Iterable[str]) -> frozenset[str]:
    """The extensions of all segments of all readings, with their dot; ``.`` when the last segment has none."""
    found: set[str] = set()
    for reading in readings:
        if "." in reading:
            found.update(name[name.rindex(".") :] for name in _names_in(reading) if "." in name)
        if "." not in reading.rpartition("/")[2]:
            found.add(".")
    return frozenset(found)


def _found(sequences: Iterable[str], texts: Iterable[str]) -> str:
    """The first of `sequences` that is in one of `texts`; empty: none."""
    kept = tuple(texts)
    return next((sequence for sequence in sequences if any(sequence in text for text in kept)), "")


def _sent_paths(target: bytes) -> set[str]:
    """The path as the client sent it, and decoded."""
    return _decodings(_ORIGIN.sub("", target.decode("latin-1").partition("?")[0].lower(), count=1))


def _decodings(text: str, *, form: bool = False) -> set[str]:
    """`text` in lower case as it is and decoded, up to `MOST_DECODINGS` times; `form`: also with ``+`` for a blank."""
    found: set[str] = set()
    todo = {text.lower()}
    for _ in range(MOST_DECODINGS + 1):
        found |= todo
        todo = {frontd.unescaped(one).lower() for one in todo}
        if form:
            todo |= {frontd.unescaped(one.replace("+", " ")).lower() for one in found}
        todo -= found
    return found


def _field_texts(values: list[bytes]) -> set[str]:
    """What a field says, line by line and as the one list that an app may see (RFC 9110 5.3)."""
    lines = {*values, b", ".join(values)}
    texts = {line.decode("latin-1") for line in lines} | {line.decode("utf-8", "replace") for line in lines}
    return set().union(*(_decodings(text) for text in texts))


