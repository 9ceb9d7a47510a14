"""One reader of certificate files: what it hands on is what OpenSSL then serves and trusts."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
    pkcs12,
)

from frontd.config.certificates import Unusable, read_authorities, read_key_pair, read_revocations
from frontd.config.model import Certificate, TlsHost
from frontd.net.tls import CertificateProblem, build_profile, client_context
from tests.net.pki import Pki


def subjects(pem: bytes) -> list[x509.Name]:
    return [one.subject for one in x509.load_pem_x509_certificates(pem)]


@pytest.mark.parametrize("key_type", [trustme.KeyType.ECDSA, trustme.KeyType.RSA])
def test_the_chain_of_a_pkcs12_file_is_put_in_order(tmp_path: Path, key_type: trustme.KeyType) -> None:
    root = trustme.CA(key_type=key_type)
    middle = root.create_child_ca(key_type=key_type)
    last = middle.create_child_ca(key_type=key_type)
    leaf = last.issue_cert("a.test", key_type=key_type)
    key = load_pem_private_key(leaf.private_key_pem.bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey)
    first, *_ = x509.load_pem_x509_certificates(leaf.cert_chain_pems[0].bytes())
    above = [x509.load_pem_x509_certificate(ca.cert_pem.bytes()) for ca in (last, middle)]
    orders = []
    for others in (above, above[::-1]):
        path = tmp_path / "a.pfx"
        path.write_bytes(pkcs12.serialize_key_and_certificates(b"a", key, first, others, NoEncryption()))
        pair = read_key_pair(Certificate(pfx=path))
        assert pair.facts.warnings == ()
        orders.append(subjects(pair.chain))
        build_profile(pair, TlsHost(), [])  # OpenSSL takes chain and key
    assert orders == [[one.subject for one in (first, *above)]] * 2


def test_equal_bytes_are_an_equal_pair(pki: Pki, tmp_path: Path) -> None:
    one, same, other = pki.pair("a"), pki.pair("a"), pki.pair("b")
    assert one == same
    assert one != other
    assert "PRIVATE" not in repr(one)
    profile = build_profile(one, TlsHost(), [])
    assert build_profile(same, TlsHost(), [profile]) is profile
    assert build_profile(same, TlsHost(min_version="1.3"), [profile]) is not profile
    assert build_profile(other, TlsHost(), [profile]) is not profile


def test_a_policy_is_made_of_what_the_files_hold(pki: Pki, tmp_path: Path) -> None:
    ca, crl = tmp_path / "ca.pem", tmp_path / "crl.pem"
    ca.write_bytes(b"# Unsere eigene Beh\xc3\xb6rde\n" + pki.client_ca.read_bytes())
    crl.write_bytes(pki.revoke())
    demands = TlsHost(client_certificate="required", ca=ca, crl=crl)
    before = build_profile(pki.pair("a"), demands, [])
    ca.write_bytes(b"# another remark\n" + pki.client_ca.read_bytes())
    assert build_profile(pki.pair("a"), demands, [before]) is before
    crl.write_bytes(pki.revoke("good"))
    assert build_profile(pki.pair("a"), demands, [before]) is not before
    before = build_profile(pki.pair("a"), demands, [])
    ca.write_bytes(pki.client_ca.read_bytes() + pki.strangers.cert_pem.bytes())
    assert build_profile(pki.pair("a"), demands, [before]) is not before


def test_only_what_a_file_is_for_is_handed_on(pki: Pki, tmp_path: Path) -> None:
    mixed = tmp_path / "mixed.pem"
    first, second = pki.revoke("good"), pki.revoke("revoked")
    mixed.write_bytes(pki.key("a").read_bytes() + first + pki.ca.read_bytes() + b"text\n" + second)
    assert read_revocations(mixed, "crl") == first + second
    assert read_authorities(mixed, "ca") == pki.ca.read_bytes()


def test_what_cannot_be_used_is_said(pki: Pki, tmp_path: Path) -> None:
    path = tmp_path / "file.pem"
    with pytest.raises(Unusable, match=r"file\.pem cannot be read: No such file") as caught:
        read_revocations(path, "crl")
    assert caught.value.key == "crl"
    path.write_bytes(pki.ca.read_bytes())
    with pytest.raises(Unusable, match="holds no PEM revocation list"):
        read_revocations(path, "crl")
    path.write_bytes(b"-----BEGIN X509 CRL-----\nMIIB\n-----END X509 CRL-----\n")
    with pytest.raises(Unusable, match=r"a revocation list in .* is damaged"):
        read_revocations(path, "crl")
    path.write_bytes(pki.key("a").read_bytes())
    with pytest.raises(Unusable, match="holds no PEM certificate"):
        read_authorities(path, "ca")


def test_what_openssl_refuses_is_said(tmp_path: Path) -> None:
    """A key that can be read but is too weak for the security level of the library."""
    authority = trustme.CA()
    leaf = authority.issue_cert("a.test")
    weak = rsa.generate_private_key(65537, 1024)
    issuer = x509.load_pem_x509_certificate(authority.cert_pem.bytes())
    key = load_pem_private_key(authority.private_key_pem.bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    old = x509.load_pem_x509_certificate(leaf.cert_chain_pems[0].bytes())
    builder = x509.CertificateBuilder(
        issuer.subject, old.subject, weak.public_key(), 5, old.not_valid_before_utc, old.not_valid_after_utc
    )
    made = builder.sign(key, old.signature_hash_algorithm)  # type: ignore[arg-type]
    path = tmp_path / "weak.pem"
    pem = weak.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(made.public_bytes(Encoding.PEM) + pem)
    pair = read_key_pair(Certificate(cert=path))
    if ssl.create_default_context().security_level < 2:
        pytest.skip("this OpenSSL takes keys of 1024 bits")
    with pytest.raises(CertificateProblem, match=r"weak\.pem: OpenSSL refuses it \(EE_KEY_TOO_SMALL\)"):
        build_profile(pair, TlsHost(), [])


def test_apps_are_verified_by_one_authority_or_by_the_systems(pki: Pki) -> None:
    own = client_context(read_authorities(pki.ca, "ca"))
    assert own.cert_store_stats()["x509_ca"] == 1
    assert own.check_hostname
    assert own.verify_mode is ssl.CERT_REQUIRED
    assert client_context(b"").verify_mode is ssl.CERT_REQUIRED
