"""Plugin files: what is found in them, and what their authors are told before the first request."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import frontd
from frontd.config.plugins import Catalogue
from frontd.pipeline.discovery import Discovery, examine, installed_words
from frontd.pipeline.phases import SPECS
from tests.scenarios.plugged import made

NOTHING: frozenset[str] = frozenset()


@pytest.fixture(autouse=True)
def modules() -> Iterator[None]:
    """What the plays load is forgotten again."""
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(textwrap.dedent(text).lstrip("\n"))
    return path


def found(folder: Path, **files: str) -> Catalogue:
    for name, text in files.items():
        write(folder, f"{name}.py", text)
    return Discovery().catalogue(folder, NOTHING)


def faults(folder: Path, **files: str) -> list[str]:
    """What is wrong with files, without the folder's name."""
    catalogue = found(folder, **files)
    assert not catalogue.kinds
    return [fault.replace(f"{folder}/", "") for fault in catalogue.faults]


ONE = """
    import frontd

    class One(frontd.Plugin):
        name = "one"
        def log(self, exchange):
            pass
"""


# ---------------------------------------------------------------------------------------------------- found


def test_a_file_with_a_plugin(tmp_path: Path) -> None:
    catalogue = found(tmp_path, a=ONE)
    assert catalogue.faults == ()
    kind = catalogue.kinds["one"]
    assert (kind.name, kind.hooks, kind.origin) == ("one", frozenset({"log"}), f"{tmp_path}/a.py:3")


def test_several_in_one_file_with_their_base_and_other_things(tmp_path: Path) -> None:
    """A base that cannot stand alone begins with ``_``; a class under two names is one class; what is imported is found
    where it comes from."""
    catalogue = found(tmp_path, a=ONE, b="""
        import frontd
        from frontd import Plugin
        from .a import One
        from ._words import WORD

        class _Base(Plugin):
            def log(self, exchange): ...
            def _helper(self, exchange): ...
            def anything_else(self, request): ...

        class Two(_Base):
            name = WORD

        class Three(_Base):
            name = "three"
            async def filter_request(self, exchange): ...

        Alias = Three
        NUMBER = 3
    """, _words="WORD = 'two'", test_a="raise RuntimeError", conftest="raise RuntimeError")  # fmt: skip
    assert catalogue.faults == ()
    assert {word: kind.hooks for word, kind in catalogue.kinds.items()} == {
        "one": {"log"}, "two": {"log"}, "three": {"log", "filter_request"},
    }  # fmt: skip


def test_what_is_no_python_file_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("raise RuntimeError")
    (tmp_path / "__init__.py").write_text("raise RuntimeError")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.py").write_text("raise RuntimeError")
    assert found(tmp_path) == Catalogue(others=frozenset(installed_words()))


def test_no_directory(tmp_path: Path) -> None:
    assert Discovery().catalogue(None, NOTHING).faults == ()
    assert found(tmp_path / "none").faults == (f"{tmp_path}/none: No such file or directory",)
    (tmp_path / "file").write_text("")
    assert found(tmp_path / "file").faults == (f"{tmp_path}/file: Not a directory",)


def test_installed_plugins_are_loaded_when_they_are_named() -> None:
    assert {"basic", "authorize", "headers"} <= installed_words().keys()
    sys.modules.pop("frontd_plugins.headers", None)
    assert not Discovery().catalogue(None, frozenset({"nonsense"})).kinds
    assert "frontd_plugins.headers" not in sys.modules
    catalogue = Discovery().catalogue(None, frozenset({"headers", "nonsense"}))
    assert set(catalogue.kinds) == {"headers"}
    assert catalogue.kinds["headers"].origin == "bundled"


# ---------------------------------------------------------------------------------------------------- wrong


HEAD = "import frontd; from typing import ClassVar\nclass A(frontd.Plugin):\n    name = 'a'\n"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("def authentcate(self, exchange): ...", "4: A.authentcate is not a hook; did you mean authenticate?"),
        ("def Authenticate(self, exchange): ...", "4: A.Authenticate is not a hook; did you mean authenticate?"),
        ("def filter_requests(self, exchange): ...",
         "4: A.filter_requests is not a hook; did you mean filter_request?"),
        ("def authorise(self, x): ...", "4: A.authorise is not a hook; did you mean authorize?"),
        ("def clientclosed(self): ...", "4: A.clientclosed is not a hook; did you mean client_closed?"),
        ("async def log_(self, e): ...", "4: A.log_ is not a hook; did you mean log?"),
        ("def auth(self, exchange): ...", "4: A.auth is not a hook; did you mean authenticate or authorize?"),
        ("async def runn(self, *, task_status): ...", "4: A.runn is not a hook; did you mean run?"),
        ("def prepair(self): ...", "4: A.prepair is not a hook; did you mean prepare?"),
        ("def run(self, *, task_status): ...", "4: A.run is an async def"),
        ("async def run(self): ...", "4: A.run takes (self, *, task_status), not (self)"),
        ("async def prepare(self): ...", "4: A.prepare is a plain def"),
        ("def check(self, settings, site): ...", "4: A.check is a classmethod"),
        ("@classmethod\n    def check(cls, settings): ...",
         "4: A.check takes (cls, settings, site), not (cls, settings)"),
        ("class Setting(frontd.Settings): ...", "2: A.Setting is not asked for anything; did you mean Settings?"),
        ("def on_request(self, exchange): ...", "4: A.on_request is not a hook; did you mean filter_request?"),
        ("def greet(self, client): ...", "4: A.greet is not a hook"),
        ("@staticmethod\n    def authentcate(exchange): ...",
         "4: A.authentcate is not a hook; did you mean authenticate?"),
        ("def authenticate(self): ...", "4: A.authenticate takes (self, exchange), not (self)"),
        ("def authenticate(self, request): ...", "4: A.authenticate takes (self, exchange), not (self, request)"),
        ("def log(self, exchange, more=1): ...", "4: A.log takes (self, exchange), not (self, exchange, more)"),
        ("def log(*exchange): ...", "4: A.log takes (self, exchange), not (exchange)"),
        ("def log(self, exchange, **more): ...", "4: A.log takes (self, exchange), not (self, exchange, more)"),
        ("def accept_client(self, exchange): ...", "4: A.accept_client takes (self, client), not (self, exchange)"),
        ("def forward_failed(self, exchange): ...",
         "4: A.forward_failed takes (self, exchange, error), not (self, exchange)"),
        ("@classmethod\n    def authorize(cls, exchange): ...", "4: A.authorize is a plain method, not a classmethod"),
        ("@staticmethod\n    def authorize(exchange): ...", "4: A.authorize is a plain method, not a staticmethod"),
        ("async def log(self, exchange): ...", "4: A.log is a plain def: it is asked where nothing can wait"),
        ("async def challenge(self, exchange): ...",
         "4: A.challenge is a plain def: it is asked where nothing can wait"),
        ("async def client_closed(self, client): ...",
         "4: A.client_closed is a plain def: it is asked where nothing can wait"),
        ("@frontd.blocking\n    def log(self, exchange): ...",
         "4: A.log is a plain def: it is asked where nothing can wait"),
        ("def authorize(self, exchange): yield", "4: A.authorize yields; a hook returns its answer"),
        ("async def authorize(self, exchange): yield", "4: A.authorize yields; a hook returns its answer"),
        ("@frontd.blocking\n    def authorize(self, exchange): yield",
         "4: A.authorize yields; a hook returns its answer"),
        ("challenge = 'Basic realm=x'", "2: A.challenge is a method, not str"),
        ("authenticate = None", "2: A.authenticate is a method, not NoneType"),
        ("route = property(lambda self: 1)", "2: A.route is a method, not property"),
        ("name = 'No Word'", "2: A.name is the word for the configuration: lower-case letters, digits and _"),
        ("name = ''", "2: A.name is the word for the configuration: lower-case letters, digits and _"),
        ("name = None", "2: A.name is the word for the configuration: lower-case letters, digits and _"),
        ("class Settings: ...", "2: A.Settings is a subclass of frontd.Settings"),
        ("Settings = None", "2: A.Settings is a subclass of frontd.Settings"),
        ("class Settings(frontd.Settings):\n        shorthand: ClassVar[str] = 'rules'",
         "2: A.Settings.shorthand names no field of it"),
        ("limits = {'max_querry': 1}", "2: A.limits: 'max_querry' is no key of `limits`"),
    ],
)  # fmt: skip
def test_what_an_author_is_told(tmp_path: Path, body: str, said: str) -> None:
    """With the file and the line.  What could be meant as a hook and is none would be an open door."""
    (fault,) = faults(tmp_path, a=f"{HEAD}    {body}\n")
    helper = " (the name of a helper begins with _)" if "is not a hook" in said else ""
    assert fault == f"a.py:{said}{helper}"


def test_everything_at_once(tmp_path: Path) -> None:
    said = faults(tmp_path, a=HEAD + "    def logg(self, x): ...\n    def route(self): ...\n", b="import frontd\n1 +\n")
    assert len(said) == 3
    assert said[2] == "b.py:2: invalid syntax"


def test_what_is_inherited_is_looked_at_too(tmp_path: Path) -> None:
    (fault,) = faults(tmp_path, a="""
        import frontd
        class Mixin:
            def authentcate(self, exchange): ...
        class A(frontd.Plugin, Mixin):
            name = "a"
    """)  # fmt: skip
    assert fault.startswith("a.py:3: Mixin.authentcate is not a hook; did you mean authenticate?")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1\n\ndef f(:\n", "a.py:3: invalid syntax"),
        ("import frontd\nimport no_such_module\n", "a.py:2: ModuleNotFoundError: No module named 'no_such_module'"),
        ("from frontd import Pluggin\n", "a.py:1: ImportError: cannot import name 'Pluggin' from 'frontd'"),
        ("def f():\n    return {}['x']\nf()\n", "a.py:2: KeyError: 'x'"),
        ("import sys\nsys.exit(3)\n", "a.py:2: SystemExit: 3"),
        ("\x00", "a.py: "),
    ],
)
def test_a_file_that_cannot_be_loaded(tmp_path: Path, text: str, said: str) -> None:
    (fault,) = faults(tmp_path, a=text)
    assert fault.startswith(said.removesuffix(": ") if "\x00" not in text else "")
    assert not any(name.endswith(".a") and name.startswith("frontd_dir_") for name in sys.modules)


def test_a_fault_in_what_a_file_imports_names_the_line_that_imports_it(tmp_path: Path) -> None:
    (fault,) = faults(tmp_path, a="import frontd\nfrom ._b import X\n", _b="X = 1 / 0\n")
    assert fault == "a.py:2: ZeroDivisionError: division by zero"


def test_two_of_one_name(tmp_path: Path) -> None:
    catalogue = found(tmp_path, a=ONE, b=ONE.replace("import frontd", "import frontd\n\n    import os"))
    assert catalogue.faults == (f"{tmp_path}/b.py:5: the name 'one' is already taken by {tmp_path}/a.py:3",)
    (inside := tmp_path / "inside").mkdir()
    (fault,) = found(inside, a=ONE.replace('"one"', '"basic"')).faults  # whether or not anybody names it
    assert fault.startswith(f"{inside}/a.py:3: the name 'basic' is already taken by the package frontd ")


def test_a_file_that_was_mended_is_loaded_again(tmp_path: Path) -> None:
    """Nothing of it serves yet, so a reload is enough; one that could be used takes a restart."""
    discovery = Discovery()
    for text, is_fine in (("1 +", False), (HEAD + "    def logg(self, x): ...\n", False), (ONE, True)):
        write(tmp_path, "a.py", text)
        assert bool(discovery.catalogue(tmp_path, NOTHING).faults) == (not is_fine)
        assert discovery.changed() == []
    before = discovery.catalogue(tmp_path, NOTHING).kinds["one"]
    write(tmp_path, "a.py", ONE.replace('"one"', '"other"'))
    assert discovery.catalogue(tmp_path, NOTHING).kinds["one"] is before
    write(tmp_path, "b.py", ONE.replace('"one"', '"two"'))
    assert set(discovery.catalogue(tmp_path, NOTHING).kinds) == {"one", "two"}
    (tmp_path / "a.py").unlink()
    assert set(discovery.catalogue(tmp_path, NOTHING).kinds) == {"two"}


# ---------------------------------------------------------------------------------------------------- changed


def test_files_that_have_changed_on_disk(tmp_path: Path) -> None:
    """By content: a file that was only touched, or saved as it was, has not."""
    text = "from ._b import X\n" + textwrap.dedent(ONE)
    path, helper = write(tmp_path, "a.py", text), write(tmp_path, "_b.py", "X = 1\n")
    discovery = Discovery()
    discovery.catalogue(tmp_path, NOTHING)
    assert discovery.changed() == []
    os.utime(path, (1, 1))
    assert discovery.changed() == []
    helper.write_text("X = 2\n")
    assert [name for name, _ in discovery.changed()] == [helper]
    path.write_text("# new\n")
    first = dict(discovery.changed())
    assert set(first) == {path, helper}
    path.write_text("# newer\n")
    assert dict(discovery.changed())[path] != first[path]
    path.unlink()
    assert path in dict(discovery.changed())
    path.write_text(text)
    assert set(dict(discovery.changed())) == {helper}


# ---------------------------------------------------------------------------------------------------- mutated


@settings(max_examples=50)
@given(st.sampled_from(list(SPECS)), st.data())
def test_every_slip_of_one_letter_is_told(hook: str, data: st.DataObject) -> None:
    """A letter too many, one too few, one wrong, two that changed places; in a name of more than three letters."""
    at = data.draw(st.integers(1, len(hook) - 2))
    other = data.draw(st.sampled_from("abcdefghijklmnopqrstuvwxyz_"))
    slips = {hook[:at] + hook[at + 1 :], hook[:at] + other + hook[at:], hook[:at] + other + hook[at + 1 :],
             hook[:at] + hook[at + 1] + hook[at] + hook[at + 2 :], hook.upper(), hook.replace("_", "")}  # fmt: skip
    for slip in slips - SPECS.keys() if len(hook) > 3 else ():
        kind, said = examine(made("a", **{slip: lambda self, anything: None}))
        assert kind is None, slip
        assert "is not a hook; did you mean" in said[0]


def test_what_a_helper_may_be_called() -> None:
    words = ["verify", "fetch_keys", "report", "normal", "checked", "login", "user", "refresh", "is_allowed"]
    kind, said = examine(made("a", **{word: lambda self, anything: None for word in words}))
    assert said == []
    assert kind is not None
    assert kind.hooks == NOTHING
    assert issubclass(kind.plugin, frontd.Plugin)
