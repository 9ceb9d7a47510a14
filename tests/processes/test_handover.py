"""What control hands to the fronts: complete, sealed, and the same for whoever takes it later."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from frontd.config.certificates import Unusable, only_files, read_key_pair
from frontd.config.load import Loaded, load
from frontd.pipeline.discovery import Discovery
from frontd.processes.channel import content
from frontd.processes.handover import Handover, pack, read_whole, unpack
from frontd.processes.runtime import BuildProblem, build
from tests.net.pki import Pki

CONFIG = """
state_dir: state
control: {socket: control.sock}
plugins_dir: plugins
listen: {https: {port: 0}}
tls:
  certificates: [ENTRY]
  hosts: {a.test: {client_certificate: required, ca: CLIENTS, crl: CRL}}
plugins: [request_filter, {it: {pattern: "[a-z]+", secret: "hush", net: 10.0.0.0/8, wait: 5s}}]
sites: {main: {urls: ["https://*/"], routes: {/: app, /static/: {files: .}}}}
pools: {app: {targets: ["https://app:8443"], tls: {ca: CA}}}
"""
PLUGIN = """
import re
import frontd
from pydantic import BaseModel
from .helper import WORD

class Inner(BaseModel):
    number: int = 1

class It(frontd.Plugin):
    name = "it"

    class Settings(frontd.Settings):
        pattern: re.Pattern[str]
        secret: frontd.Secret
        net: frontd.Network
        wait: frontd.Duration
        inner: Inner = Inner(number=7)

    def __init__(self, settings, context):
        super().__init__(settings, context)
        self.word = WORD
"""


def files(where: Path, pki: Pki) -> Path:
    (where / "plugins").mkdir()
    (where / "plugins" / "it.py").write_text(PLUGIN)
    (where / "plugins" / "helper.py").write_text("WORD = 'as it was'\n")
    text = CONFIG.replace("ENTRY", pki.entry("a")).replace("CLIENTS", str(pki.client_ca)).replace("CRL", str(pki.crl))
    (where / "frontd.yaml").write_text(text.replace("CA}", f"{pki.ca}}}"))
    return where / "frontd.yaml"


def handover(path: Path, discovery: Discovery) -> Handover:
    def read() -> Loaded:
        return load(path, environ={}, discover=discovery.catalogue, container=False)

    loaded, found = read_whole(read)
    return Handover(loaded.config, loaded.name, found, discovery.sources(), 1.5)


def test_it_comes_out_as_it_went_in(pki: Pki, tmp_path: Path) -> None:
    went = handover(files(tmp_path, pki), Discovery())
    fd = pack(went)
    try:
        came = unpack(fd)
    finally:
        os.close(fd)
    assert came == went
    assert came.loaded.name == str(tmp_path / "frontd.yaml")
    assert came.config.plugins[1].settings.secret.get_secret_value() == "hush"  # type: ignore[attr-defined]
    assert {path.name for path in came.files} >= {"clients.pem", "clients.crl", "ca.pem"}
    assert "hush" not in repr(came)
    assert "PRIVATE KEY" not in repr(came)
    assert {path.name for path, _ in came.sources.values()} == {"it.py", "helper.py"}


TAKE = """
import sys
from frontd.processes.handover import import_all, unpack
from frontd.processes.runtime import build
from frontd.config.certificates import only_files
from frontd.pipeline.discovery import Discovery
came = unpack(int(sys.argv[1]))
with only_files(came.files):
    world = build(came.config, 3, None, print)
print(world.generation, world.plugins[1].word, world.plugins[1].settings.inner.number, len(world.profiles.profiles))
print(type(world.plugins[1]).__module__.startswith("frontd_dir_"))
import_all(came.sources)
discovery = Discovery(came.sources)
discovery.catalogue(came.config.plugins_dir, frozenset(["it"]))
print(sorted(path.name for path, _ in discovery.changed()))
print(sorted(path.name for path, _ in discovery.sources().values()))
"""


def test_another_process_needs_no_file_of_it(pki: Pki, tmp_path: Path) -> None:
    path = files(tmp_path, pki)
    fd = pack(handover(path, Discovery()))
    try:
        path.unlink()
        (tmp_path / "plugins" / "helper.py").write_text("WORD = 'another one'\n")
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", TAKE, str(fd)],
            pass_fds=[fd], capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
    finally:
        os.close(fd)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "3 as it was 7 2", "True", "['helper.py']", "['helper.py', 'it.py']",
    ]  # fmt: skip


def test_no_other_file_is_read(pki: Pki, tmp_path: Path) -> None:
    """What was not read with the configuration does not exist for a front: it fails, and closed."""
    it = handover(files(tmp_path, pki), Discovery())
    without = {path: data for path, data in it.files.items() if path.name != "clients.crl"}
    with only_files(without), pytest.raises(BuildProblem, match=r"clients.crl was not read when the configuration was"):
        build(it.config, 1, None, print)
    with only_files({}), pytest.raises(Unusable):
        read_key_pair(it.config.tls.certificates[0])


def test_a_file_is_read_once(pki: Pki, tmp_path: Path) -> None:
    """The bytes that were checked are those that are handed over, also when the file changes in between."""
    path, discovery = files(tmp_path, pki), Discovery()
    text = (tmp_path / "plugins" / "it.py").read_text()
    ca = tmp_path / "own-ca.pem"
    ca.write_bytes(pki.ca.read_bytes())
    path.write_text(path.read_text().replace(f"{{ca: {pki.ca}}}", f"{{ca: {ca}}}"))

    def read() -> Loaded:
        loaded = load(path, environ={}, discover=discovery.catalogue, container=False)
        (tmp_path / "plugins" / "it.py").write_text("changed")
        return loaded

    loaded, found = read_whole(read)
    assert found[ca] == pki.ca.read_bytes()
    it = Handover(loaded.config, loaded.name, found, discovery.sources(), 0)
    assert text.encode() in [source for _, source in it.sources.values()]


def test_what_cannot_travel_is_said(pki: Pki, tmp_path: Path) -> None:
    path = files(tmp_path, pki)
    source = PLUGIN.replace("inner: Inner = Inner(number=7)", "inner: object = (lambda: 1)")
    (tmp_path / "plugins" / "it.py").write_text(source)
    with pytest.raises(BuildProblem, match="settings of a plugin cannot be handed to another process"):
        pack(handover(path, Discovery()))


def test_it_is_whole(pki: Pki, tmp_path: Path) -> None:
    fd = pack(handover(files(tmp_path, pki), Discovery()))
    try:
        assert b"hush" in content(fd)  # in memory, and nowhere else
    finally:
        os.close(fd)
