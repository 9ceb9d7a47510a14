"""The house is as drawn: a folder is a floor, a module uses only what stands below it or before it.

The imports are read with `ast`, wherever they stand in a file, also those for type checkers only; a string of the shape
``frontd.module:name``, as the command line's table of verbs has them, counts as an import too.  Since `ORDER` is one
line from the ground up, an arrow that never points up cannot be part of a cycle.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# From the ground up: the modules of each folder in the order in which they may use each other.
FLOORS: dict[int, dict[str, tuple[str, ...]]] = {
    0: {
        "model": (
            "addresses", "errors", "headers", "verdicts", "messages", "urlprefix", "readings", "conditions",
            "mediatypes", "reservations",
        ),
    },
    1: {
        "config": (
            "places", "units", "problems", "marks", "interpolate", "leaves", "identity", "limits", "plugins", "target",
            "workers", "urlacl", "admin", "model", "effective", "fill", "certificates", "signing", "tokens",
            "sitelimits", "listening", "reserving", "pluginlist", "build", "pluginchecks", "aclchecks", "checks",
            "schema", "load", "docs",
        ),
        "protocol": ("fieldlines", "chunks", "scan", "framing", "referee", "h1base", "h1", "hello"),
    },
    2: {"net": ("binding", "attaching", "sockets", "traps", "streams", "shared", "permits", "peek", "tickets", "tls")},
    3: {"upstream": ("client", "balance", "queue", "replay", "targets", "lease", "pool", "report", "ondemand")},
    4: {
        "pipeline": (
            "accesslog", "logsink", "logwriter", "store", "fileroot", "hookspecs", "plugin", "phases", "discovery",
            "assertion", "world", "answers", "fields", "forward", "admission", "reply", "files", "tunnel", "pinned",
            "relay", "serve",
        ),
    },
    5: {
        "lanes": (
            "driven", "wheel", "others", "registration", "reactor", "service", "requests", "downstream", "connection",
            "turn", "opening", "running", "listener",
        ),
    },
    6: {
        "processes": (
            "channel", "children", "statefiles", "launch", "guard", "frontd_app", "gunicorn_conf", "workers", "fronts",
            "line", "master", "cores", "collector", "plugins", "claims", "runtime", "handover", "reload", "status",
            "frontviews", "front", "explain", "calls", "served", "rates", "servicestate", "views", "control", "admin",
            "watch", "solo", "family", "events", "presets", "usage", "worker", "probe", "crew", "supervisor",
            "pooldesk", "registry", "attached", "doors", "tenants", "upgrade", "front_process", "control_process",
            "reading_process",
        ),
    },
    7: {
        "cli": (
            "common", "tables", "children", "devca", "unixhttp", "controlclient", "configuration", "explain", "live",
            "servicestate", "views", "pool", "screen", "frames", "top", "upgrade", "urlacl", "sidecar", "attach",
            "sample_websocket", "sample_app", "websocket", "serve", "proxy", "demo_files", "demo_world", "demo_lines",
            "demo_show", "demo", "passwd", "plugins", "plugin_new", "root",
        ),
        "testkit": ("loop", "messages", "app", "client", "record", "document", "stage"),
    },
}  # fmt: skip

# Files that are longer than 500 lines, each with the reason why it is one room all the same.
LONG: dict[str, str] = {}
LONGEST = 500

ENTRIES = ("frontd.testing", "frontd.__main__")  # above everything
LAZY = re.compile(r"(frontd(?:\.\w+)+):\w+")

Place = tuple[int, str, int]  # floor, folder, position in the folder


def places() -> dict[str, Place]:
    """Where every module stands; a folder itself is its own first room."""
    found: dict[str, Place] = {name: (8, "", at) for at, name in enumerate(ENTRIES)}
    for floor, folders in FLOORS.items():
        for folder, modules in folders.items():
            found[f"frontd.{folder}"] = (floor, folder, -1)
            found |= {f"frontd.{folder}.{name}": (floor, folder, at) for at, name in enumerate(modules)}
    return found


def sources() -> dict[str, str]:
    """The text of every module of the package, by its dotted name."""
    found = {}
    for path in sorted((ROOT / "frontd").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text()
    return found


def imports(name: str, text: str, modules: dict[str, str]) -> Iterator[tuple[int, str]]:
    """(line, module) for everything of frontd that a module imports; ``frontd:name`` is a name of the package root."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names if alias.name.split(".")[0] == "frontd")
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = name.split(".") if f"{name}.__init__" in modules else name.split(".")[: -node.level]
                base = ".".join([*package, base]).rstrip(".")
            if base.split(".")[0] != "frontd":
                continue
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                if whole in modules:
                    yield node.lineno, whole
                else:
                    yield node.lineno, f"frontd:{alias.name}" if base == "frontd" else base
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            lazy = LAZY.fullmatch(node.value)
            if lazy is not None and lazy[1] != name:  # a group may name its own members
                yield node.lineno, lazy[1]


def faults(modules: dict[str, str]) -> list[str]:
    """Every arrow that may not be, as a sentence."""
    found, known = [], places()
    for name, text in modules.items():
        if name == "frontd":
            continue
        if name not in known:
            found.append(f"{name} is new: give it its place in FLOORS in tests/test_floors.py")
            continue
        here = known[name]
        for line, used in imports(name, text, modules):
            if used.startswith("frontd:") or used == "frontd":
                may = here[1] == "cli" or name == "frontd.processes.control_process"
                if not may or used != "frontd:__version__":
                    found.append(
                        f"{name}:{line} imports {used.partition(':')[2] or 'frontd'} from the package root, which is "
                        "there for people who write plugins (only cli and control may take __version__)"
                    )
                continue
            if used not in known:
                continue  # reported as new, or not there at all, which mypy says better
            there = known[used]
            if there[0] > here[0]:
                found.append(f"{name}:{line} (floor {here[0]}) imports {used} from the higher floor {there[0]}")
            elif there[0] == here[0] and there[1] != here[1]:
                found.append(f"{name}:{line} imports {used}: {here[1]} and {there[1]} stand beside each other")
            elif there[:2] == here[:2] and there[2] >= here[2]:
                found.append(f"{name}:{line} imports {used}, which does not stand before it in the list of {here[1]}")
    return found


# ---------------------------------------------------------------------------------------------------- the house


def test_no_arrow_points_up() -> None:
    assert not (found := faults(sources())), "\n" + "\n".join(found)


def test_the_list_names_modules_that_exist() -> None:
    assert places().keys() | {"frontd"} <= sources().keys(), places().keys() - sources().keys()


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("frontd.model.errors", "from frontd.config.model import Config", "from the higher floor 1"),
        ("frontd.net.tls", "def f() -> None:\n    import frontd.pipeline.serve", ":2 (floor 2) imports"),
        ("frontd.net.tls", "from frontd.pipeline import serve", "imports frontd.pipeline.serve from the higher"),
        ("frontd.net.tls", "if TYPE_CHECKING:\n    from ..lanes import listener", "from the higher floor 5"),
        ("frontd.config.load", "from frontd.protocol.scan import scan", "beside each other"),
        ("frontd.protocol.scan", "from frontd.config import places", "beside each other"),
        ("frontd.net.traps", "from frontd.net.streams import Stream", "does not stand before it in the list of net"),
        ("frontd.net.traps", "from frontd.net.traps import readable", "does not stand before it"),
        ("frontd.lanes.listener", "from frontd import __version__", "from the package root"),
        ("frontd.cli.serve", "from frontd import Site", "from the package root"),
        ("frontd.cli.serve", "import frontd", "from the package root"),
        ("frontd.net.tls", 'VERB = "frontd.cli.serve:serve"', "(floor 2) imports frontd.cli.serve"),
        ("frontd.net.basement", "", "frontd.net.basement is new: give it its place"),
    ],
)
def test_a_wrong_arrow_is_found(name: str, text: str, says: str) -> None:
    (fault,) = faults(dict.fromkeys(sources(), "") | {name: text})
    assert says in fault


def test_right_arrows_are_left_alone() -> None:
    good = {
        "frontd.cli.serve": "from frontd import __version__\nimport trio",
        "frontd.net.tls": "from frontd.net import streams\nfrom frontd.net.traps import readable\nimport frontendish",
        "frontd.__main__": "from frontd.cli.root import cli",
    }
    assert faults(dict.fromkeys(sources(), "") | good) == []


# ---------------------------------------------------------------------------------------------------- its rooms


def test_no_file_is_long_without_a_reason() -> None:
    """The reasons stand in `LONG`; a reason for a file that is short (again) is one too many."""
    paths = [path for folder in ("frontd", "tests", "scripts") for path in (ROOT / folder).rglob("*")]
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines())
        for path in paths
        if path.is_file() and (path.suffix == ".py" or path.parent.name == "scripts")
    }
    assert {name for name, lines in lengths.items() if lines > LONGEST} == LONG.keys()


def undocumented(name: str, text: str) -> list[str]:
    """Public modules, classes and functions of a module that have no docstring.  An empty ``__init__`` says nothing."""
    tree = ast.parse(text)
    found = [] if ast.get_docstring(tree) or not tree.body else [f"{name} (the module)"]
    public = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    nodes = (node for node in tree.body if isinstance(node, public) and not node.name.startswith("_"))
    return found + [f"{name}:{node.lineno} {node.name}" for node in nodes if not ast.get_docstring(node)]


def test_everything_public_is_documented() -> None:
    found = [fault for name, text in sources().items() for fault in undocumented(name, text)]
    assert not found, "without a docstring:\n" + "\n".join(found)


def test_a_missing_docstring_is_found() -> None:
    text = "async def a(): ...\nclass B:\n    x = 1\ndef _c(): ...\ndef d():\n    '''What it is for.'''\n"
    assert undocumented("m", text) == ["m (the module)", "m:1 a", "m:2 B"]


# ---------------------------------------------------------------------------------------------------- plugins


def inside_imports(text: str) -> list[str]:
    """What a plugin imports of frontd beside its root; the plugins of the repository may share code of their own."""
    found = []
    for node in ast.walk(ast.parse(text)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = ["."] if node.level else [node.module or ""]
        found += [name for name in names if name.startswith((".", "frontd."))]
    return found


def test_bundled_plugins_use_the_public_door_only() -> None:
    paths = sorted((ROOT / "plugins").glob("*.py"))
    assert len(paths) > 6
    assert {path.name: found for path in paths if (found := inside_imports(path.read_text()))} == {}


def test_another_door_is_found() -> None:
    text = "import frontd, frontd_plugins.y\nimport frontd.model.errors\nfrom frontd.net import tls\nfrom . import x"
    assert inside_imports(text) == ["frontd.model.errors", "frontd.net", "."]


def test_plugins_are_those_of_this_folder() -> None:
    """An editable install sees an edit of plugins/ at once."""
    import frontd_plugins

    assert Path(str(frontd_plugins.__file__)).parent == ROOT / "plugins"


def test_every_plugin_is_documented_and_has_no_long_file() -> None:
    texts = {path.stem: path.read_text() for path in (ROOT / "plugins").glob("*.py")}
    assert not [fault for name, text in texts.items() for fault in undocumented(name, text)]
    assert not [name for name, text in texts.items() if len(text.splitlines()) > LONGEST]
