"""``fronts: auto``: cores, CPU quotas and memory limits, as cgroups of either version tell them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from frontd.processes.cores import cpu_quota, memory_limit, usable_cores


def tree(where: Path, membership: str, **files: str) -> tuple[Path, Path]:
    """A cgroup file system; in the names of files, ``__`` is a slash and ``cpu_`` is ``cpu.``."""
    for name, text in files.items():
        path = where / "cgroup" / name.replace("__", "/").replace("cpu_", "cpu.", 1).replace("memory_", "memory.", 1)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (where / "membership").write_text(membership)
    return where / "cgroup", where / "membership"


@pytest.mark.parametrize(
    ("membership", "files", "quota"),
    [
        ("0::/\n", {"cpu_max": "150000 100000\n"}, 1.5),
        ("0::/\n", {"cpu_max": "max 100000\n"}, None),
        ("0::/a/b\n", {"a__cpu_max": "50000 100000\n", "a__b__cpu_max": "max 100000\n"}, 0.5),
        ("0::/a/b\n", {"cpu_max": "400000 100000\n", "a__cpu_max": "300000 100000\n"}, 3.0),
        ("0::/outside/of/the/container\n", {"cpu_max": "200000 100000\n"}, 2.0),
        ("0::/../x\n", {}, None),
        ("4:cpu,cpuacct:/d\n1:name=systemd:/d\n",
         {"cpu,cpuacct__d__cpu_cfs_quota_us": "250000\n", "cpu,cpuacct__d__cpu_cfs_period_us": "100000\n"}, 2.5),
        ("4:cpu,cpuacct:/\n",
         {"cpu,cpuacct__cpu_cfs_quota_us": "-1\n", "cpu,cpuacct__cpu_cfs_period_us": "100000\n"}, None),
        ("0::/\n", {"cpu_max": "what\n"}, None),
    ],
)  # fmt: skip
def test_quotas(tmp_path: Path, membership: str, files: dict[str, str], quota: float | None) -> None:
    assert cpu_quota(*tree(tmp_path, membership, **files)) == quota


def test_a_machine_without_cgroups(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path, tmp_path / "nothing") is None
    assert usable_cores(tmp_path, tmp_path / "nothing") == len(os.sched_getaffinity(0))


def test_memory_is_a_limit_too(tmp_path: Path) -> None:
    it = tree(tmp_path, "0::/a\n", a__memory_max=f"{100 * 2**20}\n", cpu_max="max 100000")
    assert (memory_limit(*it), usable_cores(*it)) == (100 * 2**20, 1)
    (tmp_path / "cgroup" / "memory.max").write_text("64")
    assert memory_limit(*it) == 64
    for path in tmp_path.rglob("memory.max"):
        path.write_text("max\n")
    assert memory_limit(*it) is None
    old = tree(tmp_path / "old", "9:memory:/x\n", memory__x__memory_limit_in_bytes="9223372036854771712\n")
    assert (memory_limit(*old), usable_cores(*old)) == (9223372036854771712, len(os.sched_getaffinity(0)))


def test_a_quota_is_rounded_up_and_is_no_promise_of_cores(tmp_path: Path) -> None:
    assert usable_cores(*tree(tmp_path, "0::/\n", cpu_max="1000 100000")) == 1
    assert usable_cores(*tree(tmp_path, "0::/\n", cpu_max="100001 100000")) == min(2, len(os.sched_getaffinity(0)))
    assert usable_cores(*tree(tmp_path, "0::/\n", cpu_max="9900000 100000")) == len(os.sched_getaffinity(0))
