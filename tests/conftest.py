from __future__ import annotations

import pytest

from tests.net.pki import Pki
from tests.windows.ad import domain as domain  # a session has one


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    """Certificate files for servers and clients."""
    return Pki(tmp_path_factory.mktemp("pki"))
