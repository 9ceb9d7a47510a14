from __future__ import annotations

from pathlib import Path

import pytest
import trustme


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a certificate for shop.example.com, localhost, 127.0.0.1 and *.wild.example."""
    where = tmp_path_factory.mktemp("files")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(where / "ca.pem")
    leaf = authority.issue_cert("shop.example.com", "localhost", "127.0.0.1", "*.wild.example")
    leaf.private_key_pem.write_to_path(where / "shop.key")
    (where / "shop.crt").write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
    leaf.private_key_and_cert_chain_pem.write_to_path(where / "both.pem")
    other = authority.issue_cert("other.example.com")
    other.private_key_pem.write_to_path(where / "other.key")
    (where / "other.crt").write_bytes(b"".join(blob.bytes() for blob in other.cert_chain_pems))
    named = authority.issue_cert("a.wild.example", "*.wild.example")
    named.private_key_pem.write_to_path(where / "named.key")
    (where / "named.crt").write_bytes(b"".join(blob.bytes() for blob in named.cert_chain_pems))
    (where / "not.pem").write_text("this is not PEM\n")
    return where
