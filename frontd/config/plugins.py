"""What the configuration has to know of plugins: which words there are, and what settings each takes.

The classes themselves live higher up; they are handed in as a `Catalogue`, so that one typo in a setting is reported
at its place, beside all other errors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Protocol

from pydantic import PlainValidator, WithJsonSchema

from frontd.config.leaves import Part
from frontd.config.units import Kind
from frontd.model.urlprefix import UrlPrefix


class Settings(Part):
    """The settings of a plugin: a pydantic model, frozen, unknown keys refused.

    `shorthand` names the field that a value which is no map stands for, as the list of rules under ``authorize:``.
    """

    shorthand: ClassVar[str] = ""


@dataclass(frozen=True, slots=True)
class SiteFacts:
    """What a plugin may look at when it checks its settings.

    `name` of the site (empty: the plugin stands at the top, for every site), `urls`, the words of all plugins that are
    asked here in their order, whether one of them authenticates, whether clients may come through trusted proxies, the
    names of all pools, and of those that leave logons to their apps (``pass_through``), and what each authenticator
    does not tell of its users (`Plugin.untold`).
    """

    name: str
    urls: tuple[UrlPrefix, ...]
    plugins: tuple[str, ...]
    has_authenticator: bool
    behind_proxies: bool = False
    pools: frozenset[str] = frozenset()
    passing: frozenset[str] = frozenset()
    untold: Mapping[str, frozenset[str]] = field(default_factory=dict)


class Check(Protocol):
    """Finds what is wrong with `settings` on a site."""

    def __call__(self, settings: Any, site: SiteFacts, /) -> Iterable[str]: ...


@dataclass(frozen=True, slots=True)
class PluginKind:
    """A plugin that exists: its word, class, settings, the hooks it defines, where it comes from (for people)."""

    name: str
    plugin: type[Any]
    settings: type[Settings]
    hooks: frozenset[str]
    origin: str
    limits: Mapping[str, int]
    check: Check


@dataclass(frozen=True, slots=True)
class PluginEntry:
    """A plugin as the configuration names it."""

    kind: PluginKind = field(compare=False, repr=False)
    name: str
    settings: Settings


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The plugins there are, by word, what is wrong with files and packages that hold some, and the words of installed
    plugins that were not loaded since nobody named them."""

    kinds: Mapping[str, PluginKind] = field(default_factory=dict)
    faults: tuple[str, ...] = ()
    others: frozenset[str] = frozenset()


NO_PLUGINS = Catalogue()

# Asked with `plugins_dir` (None: not set) and the words that the configuration names.
Discover = Callable[[Path | None, frozenset[str]], Catalogue]


def no_plugins(plugins_dir: Path | None, words: frozenset[str]) -> Catalogue:
    """Discovery where nobody looked for any."""
    return NO_PLUGINS

Entries = Annotated[
    tuple[PluginEntry, ...],
    PlainValidator(tuple),
    WithJsonSchema({"type": ["array", "null"], "items": {}}),
    Kind("plugin"),
]
