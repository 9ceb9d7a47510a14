"""Where plugin classes come from: installed packages, and the files of ``plugins_dir``.

How it works
------------
An installed package names its classes as entry points of the group ``frontd``; the name is the word in the
configuration, and only what the configuration names is loaded.  Every file of ``plugins_dir`` is loaded, but for names
that begin with ``_`` or ``test_`` and ``conftest.py``; files may import each other (``from . import _helper``).  A
class is examined once: what its author got wrong is told with file and line, before the first request.  A class whose
Python name begins with ``_`` and that has no `name` is a base of others.

Invariants
----------
* A file is loaded once in the life of a process; when it, or a helper that it imports, has changed on disk since,
  `changed` names it.  Only a file that could not be used is loaded again at the next look: nothing of it serves.
* A method that may be meant as a hook and is none is an error: pluggy would never ask it, and for an authenticator
  silence is an open door.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.metadata
import importlib.util
import inspect
import os
import re
import stat
import sys
import traceback
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import pluggy

from frontd.config.model import Limits
from frontd.config.plugins import Catalogue, PluginKind, Settings
from frontd.config.units import nearest
from frontd.pipeline.hookspecs import GROUP
from frontd.pipeline.phases import SPECS
from frontd.pipeline.plugin import Plugin, members

BUNDLED = "frontd_plugins"
_PACKAGE = "frontd_dir_"
_WORD = re.compile(r"[a-z][a-z0-9_]*")
_OWN = frozenset(name for name in vars(Plugin) if not name.startswith("_"))
_SUBJECTS = frozenset(("exchange", "client"))


Stamp = tuple[int, int, int] | None  # of a file, cheap to compare: time of change, size, inode


@dataclass(slots=True)
class LoadedFile:
    """A file of ``plugins_dir`` as it was when it was loaded."""

    source: bytes
    stamp: Stamp
    kinds: list[PluginKind] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    @property
    def digest(self) -> bytes:
        """Of the source, as `changed` compares it."""
        return hashlib.sha256(self.source).digest()


class Discovery:
    """What one process has loaded so far.  `before` is what another one had loaded, whose modules are to be used: by
    the name of the module, its file and the source."""

    def __init__(self, before: Mapping[str, tuple[Path, bytes]] = MappingProxyType({})) -> None:
        self._before = dict(before.values())
        self._files: dict[Path, LoadedFile] = {}
        self._helpers: dict[Path, LoadedFile] = {}
        self._installed: dict[str, tuple[PluginKind | None, list[str]]] = {}

    def catalogue(self, plugins_dir: Path | None, words: frozenset[str]) -> Catalogue:
        """The plugins that `words` of a configuration may mean."""
        kinds: dict[str, PluginKind] = {}
        faults: list[str] = []
        known = installed_words()
        for word in sorted(words & known.keys()):
            kind, wrong = self._load_installed(word)
            faults += wrong
            if kind is not None:
                kinds[word] = kind
        for path in _files_of(plugins_dir, faults):
            loaded = self._load_file(path)
            faults += loaded.faults
            for kind in loaded.kinds:
                other = kinds.get(kind.name)
                origin = other.origin if other else f"the package {known[kind.name]}" if kind.name in known else ""
                if origin:
                    faults.append(f"{kind.origin}: the name {kind.name!r} is already taken by {origin}")
                kinds.setdefault(kind.name, kind)
        return Catalogue(kinds, tuple(faults), frozenset(known))

    def everything(self, plugins_dir: Path | None) -> Catalogue:
        """All plugins there are, for listings."""
        return self.catalogue(plugins_dir, frozenset(installed_words()))

    def changed(self) -> list[tuple[Path, bytes]]:
        """Files that are not any more what was loaded, with a digest of what they are: it takes a restart to load
        them."""
        found = []
        for path, loaded in [*self._files.items(), *self._helpers.items()]:
            stamp = _stamp(path)
            if stamp != loaded.stamp and (digest := hashlib.sha256(_content(path)).digest()) != loaded.digest:
                found.append((path, digest))
        return found

    def sources(self) -> dict[str, tuple[Path, bytes]]:
        """What was loaded from files, by the name of the module: the file, and its source as it was then."""
        found = {}
        for name, module in sys.modules.items():
            file = getattr(module, "__file__", None) if name.startswith(_PACKAGE) else None
            loaded = (self._files.get(Path(file)) or self._helpers.get(Path(file))) if file else None
            if loaded is not None and not loaded.faults:
                found[name] = (Path(str(file)), loaded.source)
        return found

    def _noted(self, path: Path) -> LoadedFile:
        before = self._before.get(path)
        return LoadedFile(_content(path), _stamp(path)) if before is None else LoadedFile(before, None)

    def _load_installed(self, word: str) -> tuple[PluginKind | None, list[str]]:
        if word not in self._installed:
            self._installed[word] = _load_entry_point(word)
        return self._installed[word]

    def _load_file(self, path: Path) -> LoadedFile:
        standing = self._files.get(path)
        if standing is not None and not standing.faults:
            return standing
        self._files[path] = loaded = self._noted(path)
        try:
            module = _module_of(path, again=standing is not None)
        except (Exception, SystemExit) as error:
            loaded.faults.append(told(error, path))
        else:
            for found in _classes_of(module):
                kind, wrong = examine(found)
                loaded.faults += wrong
                if kind is not None:
                    loaded.kinds.append(kind)
        for helper in _modules_beside(path) - self._files.keys() - self._helpers.keys():
            self._helpers[helper] = self._noted(helper)
        return loaded


# ---------------------------------------------------------------------------------------------------- packages


def installed_words() -> dict[str, str]:
    """The words that installed packages define, each with name and version of its package."""
    found = {}
    for point in importlib.metadata.entry_points(group=GROUP):
        found[point.name] = f"{point.dist.name} {point.dist.version}" if point.dist else point.value
    return found


def _load_entry_point(word: str) -> tuple[PluginKind | None, list[str]]:
    manager = pluggy.PluginManager(GROUP)
    try:
        manager.load_setuptools_entrypoints(GROUP, name=word)
    except (Exception, SystemExit) as error:
        return None, [f"plugin {word} (entry point of {installed_words().get(word)}): {told(error)}"]
    found = manager.get_plugin(word)
    if not (isinstance(found, type) and issubclass(found, Plugin)):
        package = installed_words().get(word)
        return None, [f"plugin {word}: the entry point of {package} is no subclass of frontd.Plugin"]
    kind, faults = examine(found, installed_words()[word])
    if kind is not None and kind.name != word:
        faults.append(f"{kind.origin}: the class calls itself {kind.name!r}, its entry point {word!r}")
    return (None, faults) if faults else (kind, [])


# ---------------------------------------------------------------------------------------------------- files


def _files_of(plugins_dir: Path | None, faults: list[str]) -> Iterable[Path]:
    if plugins_dir is None:
        return ()
    try:
        paths = sorted(path for path in plugins_dir.iterdir() if path.suffix == ".py")
    except OSError as error:
        faults.append(f"{plugins_dir}: {error.strerror}")
        return ()
    skipped = ("_", "test_", "conftest.")
    return [path for path in paths if not path.name.startswith(skipped)]


def _content(path: Path) -> bytes:
    try:  # without waiting: a path that was a file once may be a FIFO now
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            return file.read() if stat.S_ISREG(os.fstat(file.fileno()).st_mode) else b""
    except OSError:
        return b""


def _stamp(path: Path) -> Stamp:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _package_of(path: Path) -> str:
    """The name of the package that stands for the directory of a file."""
    return f"{_PACKAGE}{hashlib.sha256(bytes(path.parent)).hexdigest()[:12]}"


def _module_of(path: Path, *, again: bool = False) -> types.ModuleType:
    """Load a file as a module of the package that stands for its directory; `again`: also when it is loaded."""
    package = _package_of(path)
    if package not in sys.modules:
        parent = types.ModuleType(package)
        parent.__path__ = [str(path.parent)]
        sys.modules[package] = parent
    name = f"{package}.{path.stem}"
    if name in sys.modules and not again:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _modules_beside(path: Path) -> set[Path]:
    """The files that are loaded of the directory of `path`."""
    inside = f"{_package_of(path)}."
    modules = [module for name, module in sys.modules.items() if name.startswith(inside)]
    return {Path(module.__file__) for module in modules if module.__file__}


def _classes_of(module: types.ModuleType) -> Iterator[type[Plugin]]:
    for value in dict.fromkeys(value for value in vars(module).values() if isinstance(value, type)):
        is_base = value.__name__.startswith("_") and not getattr(value, "name", "")
        if issubclass(value, Plugin) and value.__module__ == module.__name__ and not is_base:
            yield value


def told(error: BaseException, path: Path | None = None) -> str:
    """An exception of a plugin's file in one line, with the place in that file (or the innermost one)."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}: {error.msg}"
    frames = traceback.extract_tb(error.__traceback__)
    inside = [frame for frame in frames if path is not None and frame.filename == str(path)] or frames
    place = f"{inside[-1].filename}:{inside[-1].lineno}: " if inside else ""
    return f"{place}{type(error).__name__}: {error}"


# ---------------------------------------------------------------------------------------------------- classes


def examine(plugin: type[Plugin], package: str = "") -> tuple[PluginKind | None, list[str]]:
    """A class as the configuration knows it, or what its author must mend: sentences that begin with file and line."""
    place = place_of(plugin)
    faults = [*_class_faults(plugin, place), *_method_faults(plugin)]
    if faults:
        return None, faults
    bundled = plugin.__module__.partition(".")[0] == BUNDLED
    kind = PluginKind(
        name=plugin.name,
        plugin=plugin,
        settings=plugin.Settings,
        hooks=frozenset(name for name in SPECS if hasattr(plugin, name)),
        origin="bundled" if bundled else package or place,
        limits=plugin.limits,
        check=plugin.check,
    )
    return kind, []


def place_of(plugin: type) -> str:
    """``file:line`` of a class."""
    try:
        return f"{inspect.getsourcefile(plugin)}:{inspect.getsourcelines(plugin)[1]}"
    except (OSError, TypeError):
        return plugin.__module__


def _class_faults(plugin: type[Plugin], place: str) -> Iterator[str]:
    if not _WORD.fullmatch(str(plugin.name)):
        yield f"{place}: {plugin.__name__}.name is the word for the configuration: lower-case letters, digits and _"
    for name, value in vars(plugin).items():
        if isinstance(value, type) and name != "Settings" and _alike(name, "settings"):
            yield f"{place}: {plugin.__name__}.{name} is not asked for anything; did you mean Settings?"
    settings: object = plugin.Settings
    if not (isinstance(settings, type) and issubclass(settings, Settings)):
        yield f"{place}: {plugin.__name__}.Settings is a subclass of frontd.Settings"
    elif settings.shorthand and settings.shorthand not in settings.model_fields:
        yield f"{place}: {plugin.__name__}.Settings.shorthand names no field of it"
    unknown = [key for key in plugin.limits if key not in Limits.model_fields]
    if unknown:
        yield f"{place}: {plugin.__name__}.limits: {unknown[0]!r} is no key of `limits`"


def _method_faults(plugin: type[Plugin]) -> Iterator[str]:
    """Methods that are named like a hook and do not fit it, and those that may be meant as one."""
    seen: set[str] = set()
    for owner, name, value in members(plugin):
        if name in seen or name.startswith("_"):
            continue
        seen.add(name)
        function = inspect.unwrap(value.__func__ if isinstance(value, classmethod | staticmethod) else value)
        if not inspect.isfunction(function):
            if name in SPECS:
                yield f"{place_of(owner)}: {owner.__name__}.{name} is a method, not {type(value).__name__}"
            continue
        code = function.__code__
        where = f"{code.co_filename}:{code.co_firstlineno}: {owner.__name__}.{name}"
        names = list(inspect.signature(function).parameters)
        if name in SPECS:
            yield from _hook_faults(name, value, names, where)
        elif name in _SHAPES:
            yield from _own_faults(name, value, names, where)
        elif name not in _OWN:
            known = [*SPECS, *_SHAPES]
            alike = [one for one in known if _alike(name, one)]
            if alike or _SUBJECTS & set(names[1:2]):
                begun = [one for one in SPECS if one.startswith(name)]
                close = alike[:1] or begun or [guess for guess in [nearest(name, SPECS)] if guess]
                meant = f"; did you mean {' or '.join(close)}?" if close else ""
                yield f"{where} is not a hook{meant} (the name of a helper begins with _)"


def _alike(name: str, hook: str) -> bool:
    """Whether `name` may be a slip of the pen and does not merely resemble."""
    least = 0.8 if hook in SPECS else 0.85  # "checked" is another word than "check"
    return difflib.SequenceMatcher(None, name.lower(), hook).ratio() >= least


# What else frontd calls: its parameters, and how it is defined
_SHAPES = {
    "prepare": (["self"], "a plain def"),
    "run": (["self", "task_status"], "an async def"),
    "check": (["cls", "settings", "site"], "a classmethod"),
}


def _own_faults(name: str, value: object, names: list[str], where: str) -> Iterator[str]:
    wanted, kind = _SHAPES[name]
    is_async = inspect.iscoroutinefunction(inspect.unwrap(value) if callable(value) else value)
    fine = {
        "a plain def": not is_async and not isinstance(value, classmethod | staticmethod),
        "an async def": is_async,
        "a classmethod": isinstance(value, classmethod),
    }
    if not fine[kind]:
        yield f"{where} is {kind}"
    elif len(names) != len(wanted) or (name == "run" and names != wanted):
        shown = ", ".join(wanted).replace("self, task_status", "self, *, task_status")
        yield f"{where} takes ({shown}), not ({', '.join(names)})"


def _hook_faults(name: str, value: object, names: list[str], where: str) -> Iterator[str]:
    spec = SPECS[name]
    function = inspect.unwrap(value) if callable(value) else value
    if isinstance(value, classmethod | staticmethod):
        yield f"{where} is a plain method, not a {type(value).__name__}"
    elif names != ["self", *spec.arguments]:
        yield f"{where} takes ({', '.join(['self', *spec.arguments])}), not ({', '.join(names)})"
    elif spec.is_plain and inspect.iscoroutinefunction(value):
        yield f"{where} is a plain def: it is asked where nothing can wait"
    elif inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        yield f"{where} yields; a hook returns its answer"
