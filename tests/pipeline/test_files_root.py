"""Which file a path stands for, and every way out of the directory that there is not."""

from __future__ import annotations

import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from frontd.model.errors import FrontdError, Reason
from frontd.model.urlprefix import canonical_path
from frontd.model.verdicts import Redirect
from frontd.pipeline import fileroot
from frontd.pipeline.fileroot import Beneath, FileRoot, open_by_kernel, open_by_walk
from frontd.pipeline.files import file_path, requested_file
from tests.pipeline.asking import asking

WAYS = {"kernel": open_by_kernel, "walk": open_by_walk}
SECRET = b"the secret"


@pytest.fixture(params=list(WAYS))
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to open, whatever this kernel would choose."""
    if request.param == "kernel" and fileroot.open_beneath is not open_by_kernel:
        pytest.skip("this kernel has no openat2")
    monkeypatch.setattr(fileroot, "open_beneath", WAYS[request.param])
    return str(request.param)


@pytest.fixture
def root(tmp_path: Path) -> FileRoot:
    """A directory with a secret beside it."""
    (tmp_path / "secret").write_bytes(SECRET)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "secret").write_bytes(SECRET)
    site = tmp_path / "site"
    for folder in ("deep/er", ".well-known/acme", ".git", "deep/.well-known", "empty"):
        (site / folder).mkdir(parents=True)
    for name in (
        "a.txt", "A b.txt", "ü.txt", "plus+.txt", "100%.txt", "index.html", "deep/index.html", "deep/er/x.js",
        ".well-known/acme/token", ".git/config", ".env", "deep/.env", "deep/.well-known/x", "..x", "a;b.txt",
    ):  # fmt: skip
        (site / name).write_text(name)
    return FileRoot.open(site)


def found(root: FileRoot, target: str, prefix: str = "/") -> str:
    """The text of the file; the target of a redirect as ``→ target``; the word of a refusal as ``! word``."""
    try:
        file = requested_file(root, asking(target), prefix)
    except FrontdError as error:
        return f"! {error.reason.word}"
    if isinstance(file, Redirect):
        assert file.status == 308
        return f"→ {file.url}"
    with file:
        return file.read(0, file.size).decode()


# ---------------------------------------------------------------------------------------------------- what there is


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/a.txt", "a.txt"),
        ("/a.txt?q=1", "a.txt"),
        ("/%61.txt", "a.txt"),
        ("/A%20b.txt", "A b.txt"),
        ("/%C3%BC.txt", "ü.txt"),
        ("/100%25.txt", "100%.txt"),
        ("/plus+.txt", "plus+.txt"),
        ("/a;b.txt", "a;b.txt"),
        ("/deep/er/x.js", "deep/er/x.js"),
        ("/deep/./er/../er/x.js", "deep/er/x.js"),
        ("/.well-known/acme/token", ".well-known/acme/token"),
        ("/", "index.html"),
        ("/deep/", "deep/index.html"),
        ("/deep/er/..", "deep/index.html"),
        # one URL for each file and directory
        ("/deep", "→ /deep/"),
        ("/deep?a=b&c", "→ /deep/?a=b&c"),
        ("/deep?", "→ /deep/?"),
        ("/plus%2B.txt", "→ /plus+.txt"),
        ("/%70lus%2b.txt?%2B", "→ /plus+.txt?%2B"),
        # what there is not
        ("/b.txt", "! NotFound"),
        ("/A.txt", "! NotFound"),  # case counts
        ("/DEEP/", "! NotFound"),
        ("/a.txt/", "! NotFound"),
        ("/a.txt/x", "! NotFound"),
        ("/empty/", "! NotFound"),  # no listing
        ("/deep/er/", "! NotFound"),
        ("/" + "x" * 255, "! NotFound"),
        ("/" + "x" * 256, "! NotFound"),
        ("/" + "deep/" * 900, "! NotFound"),
        # one way to write a path
        ("//a.txt", "! NotFound"),
        ("//deep", "! NotFound"),
        ("/deep//er/x.js", "! NotFound"),
        ("/deep//", "! NotFound"),
        ("/deep%2Fer/x.js", "! NotFound"),
        ("/deep%2fer%2fx.js", "! NotFound"),
        ("/%2Fetc%2Fpasswd", "! NotFound"),
        # hidden
        ("/.env", "! NotFound"),
        ("/%2Eenv", "! NotFound"),
        ("/.git/config", "! NotFound"),
        ("/.git", "! NotFound"),
        ("/deep/.env", "! NotFound"),
        ("/deep/.well-known/x", "! NotFound"),
        ("/.well-known/", "! NotFound"),
        ("/.well-known/acme/.hidden", "! NotFound"),
        ("/.WELL-KNOWN/acme/token", "! NotFound"),
        ("/..x", "! NotFound"),
        ("/...", "! NotFound"),
    ],
)
def test_what_a_path_stands_for(root: FileRoot, way: str, target: str, expected: str) -> None:
    assert found(root, target) == expected


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/media/a.txt", "a.txt"),
        ("/MeDia/a.txt", "a.txt"),  # routes ignore case, files do not
        ("/media/", "index.html"),
        ("/media", "→ /media/"),
        ("/media?x", "→ /media/?x"),
        ("/Media/deep", "→ /Media/deep/"),
        ("/media//a.txt", "! NotFound"),
        ("/media//", "! NotFound"),
        ("/media/.env", "! NotFound"),
    ],
)
def test_the_prefix_of_the_route_is_left_off(root: FileRoot, target: str, expected: str) -> None:
    assert found(root, target, "/media/") == expected


@pytest.mark.parametrize("target", ["//evil.test", "//evil.test/", "//evil.test/deep", "/%2F/deep", "/x/..//deep"])
def test_no_redirect_leads_to_another_host(root: FileRoot, target: str) -> None:
    (root.path / "evil.test" / "deep").mkdir(parents=True)
    assert found(root, target) == "! NotFound"
    if target.startswith("//evil.test"):  # a route that somebody has written like that
        assert found(root, target, "//evil.test/") == "! NotFound"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "get"])
def test_files_are_read_and_nothing_else(root: FileRoot, method: str) -> None:
    for target in ("/a.txt", "/nothing", "/deep"):
        with pytest.raises(FrontdError) as refused:
            requested_file(root, asking(target, method=method), "/")
        assert refused.value.reason is Reason.MethodNotAllowed
        assert refused.value.status == 405
        assert refused.value.fields == ((b"Allow", b"GET, HEAD"),)


def test_the_index_is_the_first_that_is_there(root: FileRoot, way: str) -> None:
    two = FileRoot.open(root.path, ("home.html", "er", "er/x.js", "index.html"))
    assert found(two, "/deep/") == "deep/er/x.js"
    assert found(two, "/") == "index.html"
    assert found(FileRoot.open(root.path, ()), "/") == "! NotFound"


def test_what_may_not_be_read_is_forbidden(way: str) -> None:
    with tempfile.TemporaryDirectory() as folder, as_nobody(Path(folder)):
        root = FileRoot.open(Path(folder))
        for name in ("folder", "open"):
            (root.path / name).mkdir()
            (root.path / name / "x").touch()
        (root.path / "open" / "x").chmod(0)
        (root.path / "folder").chmod(0)
        try:
            for target in ("/open/x", "/folder/x", "/folder/"):
                assert found(root, target) == "! Forbidden"
        finally:
            (root.path / "folder").chmod(0o700)


@contextmanager
def as_nobody(folder: Path) -> Iterator[None]:
    """As somebody whom modes mean something to; `folder` is theirs."""
    if os.geteuid():
        yield
        return
    os.chown(folder, 65534, 65534)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


# ---------------------------------------------------------------------------------------------------- ways out


def test_symbolic_links(root: FileRoot, way: str) -> None:
    site = root.path
    links = {
        "out": "../secret",
        "out-folder": "../other",
        "absolute": str(site.parent / "secret"),
        "absolute-within": str(site / "a.txt"),
        "far": "../" * 50 + "etc/passwd",
        "in-and-out": "deep/../../secret",
        "within": "deep/er/x.js",
        "within-folder": "deep/er",
        "up-within": "deep/../a.txt",
        "circle": "circle",
        "nowhere": "not-there",
        "self": "/proc/self/fd/0",
        "proc": "/proc",
    }
    for name, target in links.items():
        (site / name).symlink_to(target)
    refused = ["out", "out-folder/secret", "absolute", "absolute-within", "far", "in-and-out", "circle", "nowhere",
               "self", "proc/self/environ", "proc/self/root/etc/passwd"]  # fmt: skip
    assert {name: found(root, f"/{name}") for name in refused} == dict.fromkeys(refused, "! NotFound")
    within = {"within": "deep/er/x.js", "within-folder/x.js": "deep/er/x.js", "up-within": "a.txt"}
    for name, text in within.items():
        assert found(root, f"/{name}") == (text if way == "kernel" else "! NotFound")


def test_the_links_of_proc_lead_nowhere(tmp_path: Path, way: str) -> None:
    """A root in /proc is a mistake; that of its links which lead anywhere is refused all the same."""
    (tmp_path / "secret").write_bytes(SECRET)
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for path in (f"/fd/{fd}/secret", "/cwd/", "/root/etc/passwd", "/exe"):
            assert found(FileRoot.open(Path(f"/proc/{os.getpid()}")), path) == "! NotFound", path
    finally:
        os.close(fd)


@pytest.mark.parametrize("path", [b"..", b"../secret", b"deep/../../secret", b"/etc/passwd", b"/", b"", b".", b"./.."])
def test_a_careless_caller_gets_no_further(root: FileRoot, way: str, path: bytes) -> None:
    with pytest.raises(OSError):  # noqa: PT011  # each way has its own number
        root.open_file(path).close()


def test_what_is_no_file(root: FileRoot, way: str) -> None:
    os.mkfifo(root.path / "fifo")
    with socket.socket(socket.AF_UNIX) as sock:
        here = Path.cwd()
        os.chdir(root.path)  # the path of a socket is short
        try:
            sock.bind("socket")
        finally:
            os.chdir(here)
        assert found(root, "/fifo") == found(root, "/socket") == "! NotFound"
    devices = FileRoot.open(Path("/dev"))
    before = descriptors()
    assert {found(devices, f"/{name}") for name in ("null", "zero", "tty", "ptmx")} == {"! NotFound"}
    assert descriptors() == before


def test_a_folder_that_turns_into_a_link_while_it_is_asked_for(root: FileRoot, way: str) -> None:
    """Somebody who may write beneath the root races the check; the kernel decides at the moment of opening."""
    site, stop = root.path, threading.Event()
    (site / "link").symlink_to("../other")
    (site / "folder").mkdir()
    (site / "folder" / "secret").write_text("harmless")

    def exchange() -> None:
        while not stop.is_set():
            for names in (("folder", "kept"), ("link", "folder"), ("folder", "link"), ("kept", "folder")):
                (site / names[0]).rename(site / names[1])

    racer = threading.Thread(target=exchange)
    racer.start()
    try:
        seen = {found(root, "/folder/secret") for _ in range(3000)}
    finally:
        stop.set()
        racer.join()
    assert seen <= {"harmless", "! NotFound"}
    assert "harmless" in seen


PARTS = st.sampled_from(
    ["..", ".", "", "%2e%2E", "%2F", "%2f..", "secret", "site", "deep", "er", "a.txt", "out", "out-folder", "%5c",
     "..;", "%252e%252e", "%C0%AE", "\xff", "~", "x.js"]
)  # fmt: skip


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(PARTS, max_size=8))
def test_no_path_leads_to_the_secret(root: FileRoot, parts: list[str]) -> None:
    for name, target in (("out", "../secret"), ("out-folder", "../other")):
        if not (root.path / name).is_symlink():
            (root.path / name).symlink_to(target)
    try:
        path = canonical_path("/" + "/".join(parts))
    except FrontdError:
        return  # no path at all
    for beneath in WAYS.values():
        assert found_by(beneath, root, path) != SECRET.decode()


def found_by(beneath: Beneath, root: FileRoot, path: str) -> str:
    before, fileroot.open_beneath = fileroot.open_beneath, beneath
    try:
        return found(root, path)
    finally:
        fileroot.open_beneath = before


@settings(deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=12), min_size=1, max_size=4))
def test_a_path_for_the_file_system_has_only_names_in_it(names: list[bytes]) -> None:
    path = "/".join("".join(f"%{byte:02X}" for byte in name) for name in names)
    decoded = file_path(path)
    hidden = [name for name in names if b"/" in name or b"\0" in name or name.startswith(b".")]
    assert decoded == (None if hidden else b"/".join(names))


# ---------------------------------------------------------------------------------------------------- the root itself


def test_a_deploy_that_exchanges_the_root_is_seen(tmp_path: Path, way: str) -> None:
    for version in ("1", "2"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "x").write_text(f"version {version}")
    (tmp_path / "live").symlink_to("1")
    root = FileRoot.open(tmp_path / "live")
    old = requested_file(root, asking("/x"), "/")
    assert not isinstance(old, Redirect)
    with old:
        (tmp_path / "next").symlink_to("2")
        (tmp_path / "next").rename(tmp_path / "live")
        assert found(root, "/x") == "version 2"
        assert old.read(0, old.size) == b"version 1"  # what is being sent stays what it is
    (tmp_path / "live").unlink()
    assert found(root, "/x") == "! NotFound"


def test_a_root_is_a_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        FileRoot.open(tmp_path / "file")
    with pytest.raises(FileNotFoundError):
        FileRoot.open(tmp_path / "nothing")
    assert FileRoot.open(tmp_path) == FileRoot.open(tmp_path, ("index.html",)) != FileRoot.open(tmp_path, ("x",))


# ---------------------------------------------------------------------------------------------------- descriptors


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture(autouse=True)
def _nothing_stays_open() -> Iterator[None]:
    before = descriptors()
    yield
    assert descriptors() == before
