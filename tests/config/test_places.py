"""Where things lie when nobody says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from frontd.config import places


def test_a_container_is_recognised(tmp_path: Path) -> None:
    assert not places.in_container(tmp_path, {})
    assert places.in_container(tmp_path, {"container": "podman"})
    assert places.in_container(tmp_path, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"})
    (tmp_path / ".dockerenv").touch()
    assert places.in_container(tmp_path, {})


def test_state_directory() -> None:
    def state(environ: dict[str, str], container: bool) -> str:
        return str(places.default_state_dir(environ, container))

    assert state({"HOME": "/home/u"}, False) == "/home/u/.local/state/frontd"
    assert state({"HOME": "/home/u", "XDG_STATE_HOME": "/s"}, False) == "/s/frontd"
    assert state({"HOME": "/home/u", "XDG_STATE_HOME": "relative"}, False) == "/home/u/.local/state/frontd"
    assert state({"FRONTD_STATE_DIR": "/x"}, True) == "/x"


def test_state_directory_in_a_container_whose_user_cannot_write_there(tmp_path: Path) -> None:
    def state(shared: Path) -> Path:
        return places.default_state_dir({"HOME": "/home/u"}, True, shared)

    (tmp_path / "file").touch()
    assert state(tmp_path) == tmp_path
    assert state(tmp_path / "new" / "folder") == tmp_path / "new" / "folder"
    assert state(tmp_path / "file" / "x") == Path("/home/u/.local/state/frontd")
    assert state(tmp_path / "file") == Path("/home/u/.local/state/frontd")


def test_control_socket(tmp_path: Path) -> None:
    assert places.default_control_socket(Path("/s"), tmp_path) == tmp_path / "control.sock"
    assert places.default_control_socket(Path("/s"), tmp_path / "nothing") == Path("/s/control.sock")


def test_configuration_file(tmp_path: Path) -> None:
    assert places.default_config({"FRONTD_CONFIG": "/x.yaml"}, tmp_path) == Path("/x.yaml")
    (tmp_path / "frontd.yaml").touch()
    assert places.default_config({}, tmp_path) == tmp_path / "frontd.yaml"


def test_mount_points() -> None:
    points = frozenset({"/", "/var", "/var/lib/frontd"})
    assert places.mounted_on(Path("/var/lib/frontd/x"), points) == "/var/lib/frontd"
    assert places.mounted_on(Path("/var/libx"), points) == "/var"
    assert places.mounted_on(Path("/etc"), frozenset()) == "/"
    assert places.mount_points(Path("/nowhere")) == frozenset()


def test_asking_for_a_place_costs_nothing() -> None:
    code = (
        "import sys, frontd.config.places; print([m for m in ('pydantic', 'yaml', 'cryptography') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"[]\n"
