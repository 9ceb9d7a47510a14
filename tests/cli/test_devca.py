"""The development CA: what it may sign, what clients think of it, when it is made anew."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from frontd.cli import devca


def load(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_it_is_made_once_and_used_again(tmp_path: Path) -> None:
    first = devca.ensure(tmp_path)
    before = {path: path.read_bytes() for path in (tmp_path / "dev").iterdir()}
    second = devca.ensure(tmp_path)
    assert (first.made, second.made) == (True, False)
    assert {path: path.read_bytes() for path in (tmp_path / "dev").iterdir()} == before


def test_keys_are_for_the_owner_only(tmp_path: Path) -> None:
    made = devca.ensure(tmp_path)
    assert made.key.stat().st_mode & 0o777 == 0o600
    assert (made.ca.parent / "ca.key").stat().st_mode & 0o777 == 0o600
    assert made.ca.parent.stat().st_mode & 0o777 == 0o700


def test_the_ca_may_sign_for_this_machine_only(tmp_path: Path) -> None:
    extensions = load(devca.ensure(tmp_path).ca).extensions
    constraints = extensions.get_extension_for_class(x509.NameConstraints)
    assert constraints.critical
    assert [name.value for name in constraints.value.permitted_subtrees or []] == [
        "localhost", ip_network("127.0.0.1/32"), ip_network("::1/128"),
    ]  # fmt: skip
    basic = extensions.get_extension_for_class(x509.BasicConstraints)
    assert (basic.critical, basic.value) == (True, x509.BasicConstraints(ca=True, path_length=0))


def test_the_certificate_is_one_that_browsers_accept(tmp_path: Path) -> None:
    made = devca.ensure(tmp_path)
    leaf, ca = load(made.cert), load(made.ca)
    assert leaf.not_valid_after_utc - leaf.not_valid_before_utc <= timedelta(days=398)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(name.value) for name in names] == ["localhost", "*.localhost", "127.0.0.1", "::1"]
    usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH]
    authority = leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    assert authority == ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    basic = leaf.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (basic.critical, basic.value.ca) == (True, False)


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> None:
    """A TLS handshake in memory; raises `ssl.SSLError` as the client would."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    here = client.wrap_bio(to_client, to_server, server_hostname=name)
    there = server.wrap_bio(to_server, to_client, server_side=True)
    waiting = [here, there]
    while waiting:
        for side in list(waiting):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            waiting.remove(side)


@pytest.mark.parametrize("name", ["localhost", "shop.localhost", "api.shop.localhost", "127.0.0.1", "::1"])
def test_a_client_that_trusts_the_ca_accepts_the_certificate(tmp_path: Path, name: str) -> None:
    made = devca.ensure(tmp_path, name)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(made.cert, made.key)
    client = ssl.create_default_context(cafile=str(made.ca))
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    handshake(server, client, name)


def test_names_below_localhost_are_added_and_stay(tmp_path: Path) -> None:
    made = devca.ensure(tmp_path)
    key = made.key.read_bytes()
    for host in ("shop.localhost", "api.localhost", "shop.localhost", "localhost"):
        devca.ensure(tmp_path, host)
    names = load(made.cert).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    dns = names.get_values_for_type(x509.DNSName)
    assert dns == ["localhost", "*.localhost", "api.localhost", "shop.localhost"]
    assert made.key.read_bytes() == key
    with pytest.raises(ValueError, match=r"bank\.example"):
        devca.ensure(tmp_path, "bank.example")


def test_a_certificate_for_another_name_from_this_ca_is_worthless(tmp_path: Path) -> None:
    made = devca.ensure(tmp_path)
    ca = load(made.ca)
    ca_key = serialization.load_pem_private_key((made.ca.parent / "ca.key").read_bytes(), None)
    assert isinstance(ca_key, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    forged = (
        x509.CertificateBuilder(
            subject_name=x509.Name([]), issuer_name=ca.subject, public_key=key.public_key(), serial_number=7
        )
        .not_valid_before(ca.not_valid_before_utc)
        .not_valid_after(ca.not_valid_before_utc + timedelta(days=90))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("bank.example")]), critical=True)
        # Python 3.13 verifies strictly and would stop at its absence
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    cert, key_file = tmp_path / "forged.crt", tmp_path / "forged.key"
    cert.write_bytes(forged.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(cert, key_file)
    with pytest.raises(ssl.SSLCertVerificationError, match="permitted subtree violation"):
        handshake(server, ssl.create_default_context(cafile=str(made.ca)), "bank.example")


def test_a_certificate_that_ends_soon_is_renewed_with_its_key(tmp_path: Path) -> None:
    made = devca.ensure(tmp_path)
    key, ca, cert = made.key.read_bytes(), made.ca.read_bytes(), made.cert.read_bytes()
    soon = datetime.now(UTC) + devca.LEAF_LIFETIME - timedelta(days=29)
    again = devca.ensure(tmp_path, now=soon)
    assert again.made
    assert (made.key.read_bytes(), made.ca.read_bytes()) == (key, ca)
    assert made.cert.read_bytes() != cert
    assert not devca.ensure(tmp_path, now=soon).made


def test_a_ca_that_ends_soon_is_renewed_and_the_certificate_with_it(tmp_path: Path) -> None:
    made = devca.ensure(tmp_path)
    ca = made.ca.read_bytes()
    late = datetime.now(UTC) + devca.CA_LIFETIME - timedelta(days=29)
    devca.ensure(tmp_path, now=late)
    assert made.ca.read_bytes() != ca
    load(made.cert).verify_directly_issued_by(load(made.ca))


@pytest.mark.parametrize("name", ["ca.crt", "ca.key", "localhost.crt", "localhost.key"])
@pytest.mark.parametrize("damage", [b"", b"-----BEGIN nonsense", None])
def test_damaged_and_missing_files_are_made_anew(tmp_path: Path, name: str, damage: bytes | None) -> None:
    path = devca.ensure(tmp_path).ca.parent / name
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage)
    made = devca.ensure(tmp_path)
    assert made.made
    load(made.cert).verify_directly_issued_by(load(made.ca))
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(made.cert, made.key)  # raises when they do not match


def test_many_at_once_agree_on_one(tmp_path: Path) -> None:
    made: list[bool] = []
    threads = [threading.Thread(target=lambda: made.append(devca.ensure(tmp_path).made)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == [False] * 7 + [True]


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_accepts_it(tmp_path: Path) -> None:
    made = devca.ensure(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.cert, made.key)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        curl = subprocess.Popen(
            [
                "curl", "-sS", "--noproxy", "*", "--cacert", str(made.ca),
                f"https://localhost:{listener.getsockname()[1]}/",
            ],
            stdout=subprocess.PIPE,
        )
        accepted, _ = listener.accept()
        with context.wrap_socket(accepted, server_side=True) as tls:
            tls.recv(4096)
            tls.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi")
            assert curl.communicate(timeout=10)[0] == b"hi"
