from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.live.house import House, front, sample_app


@pytest.fixture(scope="session")
def app_url() -> Iterator[str]:
    with sample_app("live") as url:
        yield url


@pytest.fixture(scope="session")
def house(app_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """One front for all tests that only talk to it."""
    with front(tmp_path_factory.mktemp("live") / "state", app_url) as it:
        yield it
