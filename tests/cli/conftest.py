from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner


@pytest.fixture
def runner() -> CliRunner:
    return CliRunner()


@pytest.fixture
def state_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state directory of the test's own, also for the processes it starts."""
    monkeypatch.setenv("FRONTD_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.delenv("FRONTD_CONTROL", raising=False)
    monkeypatch.delenv("FRONTD_CONFIG", raising=False)
    return tmp_path / "state"
