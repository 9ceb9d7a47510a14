"""Where things lie when the configuration does not say: state directory, control socket, configuration file.

Light on purpose: the command line asks these questions before it needs pydantic or YAML, so only the standard library
is imported.  Everything that looks at the machine takes the place to look at as a parameter.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

CONTAINER_STATE_DIR = Path("/var/lib/frontd")
RUN_DIR = Path("/run/frontd")
SYSTEM_CONFIG = Path("/etc/frontd/frontd.yaml")
MOUNTINFO = Path("/proc/self/mountinfo")


def in_container(root: Path = Path("/"), environ: Mapping[str, str] = os.environ) -> bool:
    """Whether this process runs in a container.

    Docker leaves ``/.dockerenv``, Podman ``/run/.containerenv``, systemd-nspawn and Podman set ``container`` in the
    environment, Kubernetes sets ``KUBERNETES_SERVICE_HOST``.
    """
    if environ.get("container") or environ.get("KUBERNETES_SERVICE_HOST"):
        return True
    return (root / ".dockerenv").exists() or (root / "run/.containerenv").exists()


def default_state_dir(
    environ: Mapping[str, str] = os.environ, container: bool | None = None, shared: Path = CONTAINER_STATE_DIR
) -> Path:
    """The state directory: ``$FRONTD_STATE_DIR``, else ``/var/lib/frontd`` (`shared`) in a container where this user
    can write or create it, else the user's own state folder (XDG Base Directory: ``$XDG_STATE_HOME/frontd`` or
    ``~/.local/state/frontd``)."""
    if chosen := environ.get("FRONTD_STATE_DIR"):
        return Path(os.path.abspath(chosen))
    if (in_container(environ=environ) if container is None else container) and _can_be_written(shared):
        return shared
    state_home = environ.get("XDG_STATE_HOME", "")
    if os.path.isabs(state_home):  # the XDG specification: a relative path is ignored
        return Path(state_home) / "frontd"
    return _home(environ) / ".local/state/frontd"


def _can_be_written(folder: Path) -> bool:
    """Whether this user can write in `folder`, or create it."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)


def _home(environ: Mapping[str, str]) -> Path:
    if home := environ.get("HOME"):
        return Path(os.path.abspath(home))
    try:
        return Path.home()
    except RuntimeError:  # a uid without a passwd entry, as `docker run --user` makes it
        return Path("/tmp")


def default_control_socket(state_dir: Path, run_dir: Path = RUN_DIR) -> Path:
    """``/run/frontd/control.sock`` when that directory is there and writable, else ``control.sock`` in `state_dir`."""
    if run_dir.is_dir() and os.access(run_dir, os.W_OK | os.X_OK):
        return run_dir / "control.sock"
    return state_dir / "control.sock"


def default_config(environ: Mapping[str, str] = os.environ, directory: Path = Path()) -> Path:
    """The configuration file when none is named: ``$FRONTD_CONFIG``, else ``frontd.yaml`` in `directory`, else
    ``/etc/frontd/frontd.yaml``.  The file need not exist."""
    if chosen := environ.get("FRONTD_CONFIG"):
        return Path(chosen)
    here = directory / "frontd.yaml"
    return here if here.exists() or not SYSTEM_CONFIG.exists() else SYSTEM_CONFIG


_OCTAL = re.compile(r"\\([0-7]{3})")


def mount_points(mountinfo: Path = MOUNTINFO) -> frozenset[str]:
    """The mount points of this process: field 5 of ``/proc/self/mountinfo`` (proc(5)), unescaped.  Empty when the file
    cannot be read."""
    try:
        text = mountinfo.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return frozenset()
    fields = (line.split(" ") for line in text.splitlines())
    return frozenset(_OCTAL.sub(lambda m: chr(int(m.group(1), 8)), f[4]) for f in fields if len(f) > 4)


def mounted_on(path: Path, points: frozenset[str]) -> str:
    """The mount point that holds the absolute `path`: the longest one above it, ``/`` when there is none."""
    absolute = Path(os.path.abspath(path))
    for candidate in (absolute, *absolute.parents):
        if str(candidate) in points:
            return str(candidate)
    return "/"
