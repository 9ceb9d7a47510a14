"""A configuration on its way from control to the fronts: parsed once, with every file it needs beside it.

How it works
------------
Control parses the file and reads certificates, keys and CAs; what came of it is pickled into a sealed file in memory,
whose descriptor goes over a channel.  The fronts, and a control that was started anew, take it from there and read
neither the file nor a secret again: all of them serve the same, whatever has changed on the disk in the meantime.  That
holds for plugins from files as well: their modules are made from the source that control has loaded.

Unpickling runs code that the bytes name, so it is for bytes of our own making: these come from a process of the same
family and user through a descriptor that has no name in any file system, and the seals keep them as they were written.

Invariants
----------
* What leaves control is complete: `unpack` opens no file of the configuration.
* Secrets are in memory only, in processes that need them.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import pickle
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from frontd.config.certificates import Unusable, keep_files, read_all
from frontd.config.load import Config, Loaded
from frontd.net.tickets import token
from frontd.processes.channel import content, sealed
from frontd.processes.runtime import BuildProblem

Sources = Mapping[str, tuple[Path, bytes]]  # of plugins: by the name of the module, the file and its source


@dataclass(frozen=True, slots=True)
class Handover:
    """A configuration with the files it names (by path), the plugins' sources, and when it was read (s, epoch)."""

    config: Config
    name: str
    files: dict[Path, bytes] = field(repr=False)
    sources: dict[str, tuple[Path, bytes]] = field(repr=False)
    read_at: float
    base: Config | None = None  # the file's, where `config` has an overlay
    tickets: str = ""  # whether TLS sessions resume across fronts (`frontd.net.tickets.token`), if that was tried

    @property
    def loaded(self) -> Loaded:
        """As those know it who have read the file, without its text and its warnings."""
        return Loaded(self.config, [], self.name, "", self.base)


def read_whole(read: Callable[[], Loaded]) -> tuple[Loaded, dict[Path, bytes]]:
    """What `read` reads, with the files it names.  Raises what `read` raises, and `BuildProblem`."""
    with keep_files() as files:
        loaded = read()
        try:
            read_all(loaded.config)
        except Unusable as error:
            raise BuildProblem(str(error)) from None
    return loaded, files


def tried_tickets(config: Config) -> str:
    """What the trial of `frontd.net.tickets` has shown, so that no front needs one of its own; empty without TLS."""
    return token() if config.tls.certificates else ""


def pack(handover: Handover) -> int:
    """A sealed file in memory that holds `handover`; the caller closes it.  Raises `BuildProblem`."""
    try:
        parts = (handover.config, handover.name, handover.files, handover.read_at, handover.base, handover.tickets)
        inner = pickle.dumps(parts)
    except Exception as error:  # settings of a plugin may be anything
        raise BuildProblem(f"settings of a plugin cannot be handed to another process: {error}") from error
    return sealed("frontd configuration", pickle.dumps((handover.sources, inner)))


def unpack(fd: int) -> Handover:
    """What `pack` has packed; the plugins it names are imported from the sources that came along.

    Raises what a plugin's module raises.
    """
    sources, inner = pickle.loads(content(fd))
    _Finder.install(sources)
    config, name, files, read_at, base, tickets = pickle.loads(inner)
    return Handover(config, name, files, sources, read_at, base, tickets)


def import_all(sources: Sources) -> None:
    """Load every one of `sources`, as the process has that they came from."""
    for name in sources:
        importlib.import_module(name)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds modules of plugins in what was handed over, and their parents, which have no file."""

    def __init__(self) -> None:
        self.sources: dict[str, tuple[Path, bytes]] = {}

    @classmethod
    def install(cls, sources: Sources) -> None:
        """Find `sources` too; what was found before stays as it is."""
        finder = next((one for one in sys.meta_path if isinstance(one, cls)), None)
        if finder is None:
            finder = cls()
            sys.meta_path.insert(0, finder)
        for name, source in sources.items():
            finder.sources.setdefault(name, source)
            folder = name.partition(".")[0]
            if folder not in sys.modules:
                parent = types.ModuleType(folder)
                parent.__path__ = [str(source[0].parent)]
                sys.modules[folder] = parent

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The module of that name, if it was handed over."""
        found = self.sources.get(fullname)
        if found is None:
            return None
        loader = _Loader(fullname, *found)
        is_package = found[0].name == "__init__.py"
        places = [str(found[0].parent)] if is_package else None
        return importlib.util.spec_from_file_location(
            fullname, found[0], loader=loader, submodule_search_locations=places
        )


class _Loader(importlib.machinery.SourceFileLoader):
    """A source file that is in memory; no bytecode of the file on the disk is used for it."""

    def __init__(self, fullname: str, path: Path, source: bytes) -> None:
        super().__init__(fullname, str(path))
        self._source = source

    def get_data(self, path: str) -> bytes:
        """The source."""
        return self._source

    def path_stats(self, path: str) -> Mapping[str, float]:
        """Nothing is known of the file, so nothing is looked up in the cache of bytecode, and nothing put there."""
        raise OSError
