from __future__ import annotations

import pytest

from tests.net.pki import Pki


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    """Certificate files for servers and clients."""
    return Pki(tmp_path_factory.mktemp("pki"))
