"""Certificate files: usable or not, and which hosts they cover."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
    pkcs12,
)

from frontd.config.certificates import Unusable, read_certificate
from frontd.config.model import Certificate

from .helpers import errors_of, load_text


def test_names_and_what_they_cover(folder: Path) -> None:
    facts = read_certificate(Certificate(cert=folder / "shop.crt", key=folder / "shop.key"))
    assert set(facts.hosts) == {"shop.example.com", "localhost", "127.0.0.1", "*.wild.example"}
    assert [
        host for host in ("localhost", "127.0.0.1", "a.wild.example", "*.wild.example") if not facts.covers(host)
    ] == []
    refused = ("wild.example", "a.b.wild.example", "example.com", "*.a.wild.example", "127.0.0.2", "*.example.com")
    assert [host for host in refused if facts.covers(host)] == []


def test_key_and_chain_in_one_file(folder: Path) -> None:
    assert read_certificate(Certificate(cert=folder / "both.pem")).warnings == ()


def pfx(folder: Path, where: Path, password: bytes | None) -> Path:
    key = load_pem_private_key((folder / "shop.key").read_bytes(), None)
    chain = x509.load_pem_x509_certificates((folder / "shop.crt").read_bytes())
    encryption = BestAvailableEncryption(password) if password else NoEncryption()
    path = where / "shop.pfx"
    path.write_bytes(pkcs12.serialize_key_and_certificates(b"shop", key, chain[0], chain[1:], encryption))  # type: ignore[arg-type]
    return path


def test_pkcs12(folder: Path, tmp_path: Path) -> None:
    pfx(folder, tmp_path, b"geheim")
    (tmp_path / "password").write_text("geheim\n")
    text = """\
    tls: {{certificates: [{{pfx: shop.pfx{}}}]}}
    sites: {{shop.example.com: http://app}}
    """
    good = load_text(text.format(", password: '${file:password}'"), tmp_path)
    assert good.config.tls.certificates[0].password is not None
    assert good.config.tls.certificates[0].password.get_secret_value() == "geheim"
    wrong = errors_of(text.format(", password: wrong"), tmp_path)
    assert f"tls.certificates[0].password: {tmp_path}/shop.pfx is damaged, or this is not its password" in wrong
    none = errors_of(text.format(""), tmp_path)
    assert f"tls.certificates[0].pfx: {tmp_path}/shop.pfx cannot be read without a password" in none
    pfx(folder, tmp_path, None)
    assert load_text(text.format(""), tmp_path).warnings == []


def test_an_encrypted_key(folder: Path, tmp_path: Path) -> None:
    key = load_pem_private_key((folder / "shop.key").read_bytes(), None)
    path = tmp_path / "shop.key"
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"geheim")))
    with pytest.raises(Unusable, match="is encrypted") as caught:
        read_certificate(Certificate(cert=folder / "shop.crt", key=path))
    assert (caught.value.key, caught.value.hint) == ("key", "decrypt it, or use a PKCS#12 file: `pfx` and `password`")
    with pytest.raises(ValueError, match="`password` belongs to `pfx`"):
        Certificate.model_validate({"cert": folder / "shop.crt", "key": path, "password": "geheim"})


def self_signed(where: Path, days: int, *, names: list[str]) -> Certificate:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a.example")])
    now = datetime.datetime.now(datetime.UTC)
    first, last = sorted([now, now + datetime.timedelta(days=days)])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), first, last)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), False)
    (where / "c.pem").write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))
    (where / "k.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return Certificate(cert=where / "c.pem", key=where / "k.pem")


def test_an_expired_certificate_is_a_warning(tmp_path: Path) -> None:
    assert read_certificate(self_signed(tmp_path, 10, names=["a.example"])).warnings == ()
    certificate = self_signed(tmp_path, -10, names=["A.example"])
    facts = read_certificate(certificate)
    assert facts.hosts == ("a.example",)
    assert facts.warnings == (f"the certificate expired on {facts.not_after:%Y-%m-%d}",)
    text = "tls: {certificates: [{cert: c.pem, key: k.pem}]}\nsites: {a.example: http://app}"
    assert [problem.path for problem in load_text(text, tmp_path).warnings] == ["tls.certificates[0].cert"]


def test_the_common_name_does_not_count(tmp_path: Path) -> None:
    facts = read_certificate(self_signed(tmp_path, 10, names=[]))
    assert facts.hosts == ()
    assert "common name" in facts.warnings[0]


def test_the_leaf_comes_first(folder: Path, tmp_path: Path) -> None:
    ca, leaf = (folder / "ca.pem").read_bytes(), (folder / "shop.crt").read_bytes()
    (tmp_path / "upside-down.pem").write_bytes(ca + leaf)
    with pytest.raises(Unusable, match="the certificate of the key is number 2"):
        read_certificate(Certificate(cert=tmp_path / "upside-down.pem", key=folder / "shop.key"))


def test_a_chain_of_somebody_else_is_a_warning(folder: Path, tmp_path: Path) -> None:
    stranger = trustme.CA().cert_pem.bytes()
    (tmp_path / "chain.pem").write_bytes((folder / "shop.crt").read_bytes() + stranger)
    facts = read_certificate(Certificate(cert=tmp_path / "chain.pem", key=folder / "shop.key"))
    assert "the chain is not in order" in facts.warnings[0]


def test_several_certificates_and_their_names(folder: Path) -> None:
    text = """\
    tls:
      default: second
      certificates: [{cert: shop.crt, key: shop.key}, {cert: other.crt, key: other.key, name: second}]
    sites: {shop.example.com: http://app, other.example.com: http://app}
    """
    tls = load_text(text, folder).config.tls
    assert [certificate.name for certificate in tls.certificates] == ["0", "second"]
    for written in ("1", "OTHER.example.com"):
        tls = load_text(text.replace("default: second", f"default: {written}"), folder).config.tls
        assert tls.default == {"1": "second"}.get(written, "other.example.com")
    assert "the name '0' is already taken" in errors_of(text.replace("name: second", "name: 0"), folder)


def test_authorities_and_revocations(folder: Path) -> None:
    text = """\
    tls:
      certificates: [{cert: shop.crt, key: shop.key}]
      hosts: {shop.example.com: {client_certificate: required, ca: ca.pem}}
    sites: {shop.example.com: p}
    pools: {p: {targets: [https://app], tls: {ca: CA}}}
    """
    good = load_text(text.replace("CA}", "ca.pem}"), folder).config
    assert good.tls.hosts["shop.example.com"].ca == folder / "ca.pem"
    assert good.pools["p"].tls.ca == folder / "ca.pem"
    assert "pools.p.tls.ca: " in errors_of(text.replace("CA}", "not.pem}"), folder)
