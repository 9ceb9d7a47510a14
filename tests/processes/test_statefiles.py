"""State files: the old document or the new one, whatever happens while one is written; and plain words when not."""

from __future__ import annotations

import ctypes
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frontd.processes.statefiles import StateFile, StateProblem

WRITER = """
import sys
from pathlib import Path
from frontd.processes.statefiles import StateFile
it = StateFile(Path(sys.argv[1]), "numbers")
number = it.read()["number"]
print("reading", flush=True)
while True:
    number += 1
    it.write({"number": number, "padding": [number] * (number % 7 * 1000)})
    print(number, flush=True)
"""
KILLS = 40


@pytest.fixture
def state(tmp_path: Path) -> StateFile:
    return StateFile(tmp_path / "numbers.json", "numbers")


def test_what_is_written_is_read(state: StateFile) -> None:
    assert state.read() is None
    documents: list[object] = [{"a": [1, "\u00e4\U0001f600"]}, [], "x", None]
    for document in documents:
        state.write(document)
        assert StateFile(state.path, "numbers").read() == document
    assert os.stat(state.path).st_mode & 0o777 == 0o600
    assert os.listdir(state.path.parent) == ["numbers.json"]


def test_a_writer_that_is_killed_at_any_moment_leaves_the_old_or_the_new(state: StateFile) -> None:
    chance = random.Random(6)
    state.write({"number": 0, "padding": []})
    last = 0
    for _ in range(KILLS):
        child = subprocess.Popen([sys.executable, "-c", WRITER, str(state.path)], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        with child.stdout:
            assert child.stdout.readline() == "reading\n"
            time.sleep(chance.random() * 0.02)  # the moment is what is random here
            child.kill()
            told = [int(line) for line in child.stdout.read().splitlines()]
        assert child.wait() == -signal.SIGKILL
        document = state.read()
        last = max([last, *told])
        assert document["number"] in (last, last + 1), "what was reported as written is there"
        assert document["padding"] == [document["number"]] * (document["number"] % 7 * 1000)
        last = document["number"]
    assert last > 5, "it did write"  # hundreds, where nothing else runs
    state.write({"number": 0, "padding": []})
    assert os.listdir(state.path.parent) == ["numbers.json"], "nothing is left over"


@given(st.data())
@settings(max_examples=60)
def test_damage_is_noticed(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    state = StateFile(tmp_path_factory.mktemp("state") / "s", "numbers")
    state.write({"one": 1, "two": [2, "zwei"]})
    good = state.path.read_bytes()
    at = data.draw(st.integers(0, len(good) - 1))
    state.path.write_bytes(
        data.draw(
            st.sampled_from([good[:at], good[:at] + data.draw(st.binary(min_size=1, max_size=3)) + good[at + 1 :]])
        )
    )
    said = ""
    try:
        assert state.read() == {"one": 1, "two": [2, "zwei"]}  # white space, or the same byte
    except StateProblem as problem:
        said = str(problem)
    begin, end = f"{state.path} is damaged: ", "; put a copy back, or remove the file to begin without any numbers"
    assert not said or (said.startswith(begin) and said.endswith(end))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "it is not JSON"),
        (b"[" * 100_000, "it is not JSON"),
        (b"\xff", "it is not JSON"),
        (b"[]", "it does not hold numbers"),
        (b'{"frontd": "words"}', "it does not hold numbers"),
        (b'{"frontd": "numbers", "version": 2}', "its version is 2, and this frontd knows 1"),
        (b'{"frontd": "numbers", "version": 1, "sha256": "", "document": 1}', "its checksum is wrong"),
    ],
)
def test_what_is_no_state_is_refused(state: StateFile, content: bytes, says: str) -> None:
    state.path.write_bytes(content)
    with pytest.raises(StateProblem, match=says):
        state.read()


def test_a_file_that_cannot_be_read_is_not_taken_for_none(state: StateFile) -> None:
    state.path.mkdir()
    with pytest.raises(StateProblem, match="cannot be read: Is a directory; frontd must be able to read it"):
        state.read()


def test_a_directory_that_cannot_be_written_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateProblem, match=r"cannot be written: .*; nothing was changed"):
        StateFile(tmp_path / "file" / "s", "numbers").write(1)


def test_a_limit_of_file_sizes_changes_nothing(state: StateFile) -> None:
    state.write({"number": 1})
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, hard))
    try:
        with pytest.raises(StateProblem, match="cannot be written: the file would exceed the limit of file sizes"):
            state.write({"number": list(range(1000))})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert state.read() == {"number": 1}
    assert os.listdir(state.path.parent) == ["numbers.json"]


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    libc = ctypes.CDLL(None, use_errno=True)
    path = tmp_path / "disk"
    path.mkdir()
    if libc.mount(b"none", bytes(path), b"tmpfs", 0, b"size=64k") != 0:
        reason = f"a tmpfs cannot be mounted: {os.strerror(ctypes.get_errno())}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    try:
        yield path
    finally:
        assert libc.umount2(bytes(path), 0) == 0


def test_a_full_disk_changes_nothing(tiny_disk: Path) -> None:
    state = StateFile(tiny_disk / "s.json", "numbers")
    state.write({"number": 1})
    with pytest.raises(StateProblem, match="cannot be written: no space is left on the disk; nothing was changed"):
        state.write({"number": "x" * 100_000})
    assert state.read() == {"number": 1}
    assert os.listdir(tiny_disk) == ["s.json"]
    state.write({"number": 2})
    assert json.loads(state.path.read_text())["document"] == {"number": 2}
