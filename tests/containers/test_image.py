"""The image by itself: who it runs as, what it may do, and that an image can be built on it."""

from __future__ import annotations

import zipfile
from pathlib import Path

from .project import run


def test_it_runs_as_its_own_user_on_a_read_only_root(image: str) -> None:
    source = (
        "import os, pathlib;"
        "state = pathlib.Path('/var/lib/frontd/x'); state.write_text('kept');"
        "control = pathlib.Path('/run/frontd/x'); control.write_text('kept');"
        "print(os.getuid(), os.getgid(), state.read_text(), control.read_text())"
    )
    options = ("--rm", "--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--network", "none")
    said = run("docker", "run", *options, "--entrypoint", "python", image, "-c", source).stdout
    assert said.split() == ["10001", "10001", "kept", "kept"]
    assert run("docker", "run", *options, image, "--version").stdout.startswith("frontd")


def test_a_plugin_is_installed_by_two_more_lines(image: str, tmp_path: Path) -> None:
    wheel = tmp_path / "greeting-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("greeting.py", "WORD = 'hello'\n")
        info = "greeting-1.0.dist-info"
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: greeting\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    (tmp_path / "Dockerfile").write_text(f"FROM {image}\nCOPY *.whl /tmp/\nRUN pip install --no-index /tmp/*.whl\n")
    derived = f"{image}-derived"
    run("docker", "build", "-q", "-t", derived, str(tmp_path))
    try:
        source = "import os, greeting, frontd; print(os.getuid(), greeting.WORD)"
        said = run("docker", "run", "--rm", "--read-only", "--entrypoint", "python", derived, "-c", source).stdout
        assert said.split() == ["10001", "hello"]
    finally:
        run("docker", "image", "rm", derived, check=False)
