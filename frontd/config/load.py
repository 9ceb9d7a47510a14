"""The way in: a file becomes a `Config`, or every reason why it does not.

Steps: `marks` (YAML with places) → `interpolate` (``${…}``) → `build` (shorthands, defaults, parts) → `checks` (what
only the whole can tell).  A step that fails stops nothing it does not have to, so that one run shows all errors.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from frontd.config import places
from frontd.config.build import Draft, build
from frontd.config.checks import check
from frontd.config.effective import effective
from frontd.config.fill import Room
from frontd.config.interpolate import interpolate
from frontd.config.marks import MAX_TEXT, Stop, read
from frontd.config.model import Config
from frontd.config.pluginlist import hide_settings
from frontd.config.plugins import Discover, no_plugins
from frontd.config.problems import ConfigProblems, Mark, Problem, Source
from frontd.config.schema import schema

__all__ = ["Config", "ConfigProblems", "Loaded", "Problem", "effective", "load", "loads", "schema"]


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration that can be used.  `name` is the file's name as errors show it, `text` its content."""

    config: Config
    warnings: list[Problem]
    name: str
    text: str
    base: Config | None = None  # as it stands in the file, where `config` has an overlay (`frontd.processes.claims`)


def load(
    path: Path | str,
    environ: Mapping[str, str] = os.environ,
    *,
    discover: Discover = no_plugins,
    container: bool | None = None,
    mountinfo: Path = places.MOUNTINFO,
) -> Loaded:
    """Read the file `path`; ``-`` is standard input.

    Raises `ConfigProblems`, also when the file cannot be read.  `discover` finds the plugins; `container` and
    `mountinfo` are found out when left out.
    """
    standard_input = str(path) == "-"
    name = "<stdin>" if standard_input else str(path)
    source = Source(name, "")
    try:
        if standard_input:
            data = sys.stdin.buffer.read(MAX_TEXT + 1)
        else:
            with open(path, "rb") as file:
                data = file.read(MAX_TEXT + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        source.error(Mark(), "", f"the file cannot be read: {reason}")
        raise ConfigProblems(source.problems) from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8-sig", "replace")
        source.text = data.decode("utf-8", "replace")
        mark = Mark(before.count("\n") + 1, len(before) - before.rfind("\n"))
        source.error(mark, "", "the file is not valid UTF-8")
        raise ConfigProblems(source.problems) from None
    base = Path.cwd() if standard_input else Path(os.path.abspath(path)).parent
    file_path = None if standard_input else Path(os.path.abspath(path))
    return _loads(text, name, base, environ, container, mountinfo, file_path, discover)


def loads(
    text: str,
    name: str = "frontd.yaml",
    base: Path = Path(),
    environ: Mapping[str, str] = os.environ,
    *,
    discover: Discover = no_plugins,
    container: bool | None = None,
    mountinfo: Path = places.MOUNTINFO,
) -> Loaded:
    """Read a configuration from `text`.  `name` is for errors, relative paths are relative to `base`.

    Raises `ConfigProblems`.
    """
    return _loads(text, name, base, environ, container, mountinfo, None, discover)


def _loads(
    text: str,
    name: str,
    base: Path,
    environ: Mapping[str, str],
    container: bool | None,
    mountinfo: Path,
    file_path: Path | None,
    discover: Discover,
) -> Loaded:
    source = Source(name, text)
    room = Room(source, Path(os.path.abspath(base)), discover=discover)
    inside = places.in_container(environ=environ) if container is None else container
    draft = _draft(room, environ, inside)
    if draft is not None:
        check(room, draft, file_path, places.mount_points(mountinfo))
    by_place = sorted(source.problems, key=lambda p: (p.severity != "error", p.line, p.column))
    if source.failed or draft is None:
        raise ConfigProblems(by_place)
    return Loaded(draft.config(), by_place, name, text)


def _draft(room: Room, environ: Mapping[str, str], container: bool) -> Draft | None:
    try:
        root = read(room.source)
        if root is not None:
            hide_settings(room.source, root)
            room.source.composed()
            root = interpolate(root, room.source, environ, room.base)
        return build(room, root, environ, container)
    except Stop:
        return None
