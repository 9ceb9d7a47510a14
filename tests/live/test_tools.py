"""A missing program is a skip that names it, and a failure where nothing may be missing."""

from __future__ import annotations

import pytest

from tests.live.house import tool


def test_a_missing_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match=r"certutil is not installed \(apt-get install libnss3-tools\)"):
        tool("certutil")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="certutil is not installed"):
        tool("certutil")
