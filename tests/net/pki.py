"""Certificates for the plays: an authority for servers, one for clients, and one that nobody trusts."""

from __future__ import annotations

import datetime
from pathlib import Path

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    load_pem_private_key,
    pkcs12,
)

from frontd.config.certificates import KeyPair, read_key_pair
from frontd.config.model import Certificate


class Pki:
    """Files under `where`: ``NAME.crt``, ``NAME.key``; ``ca.pem`` made the servers', ``clients.pem`` the clients'."""

    def __init__(self, where: Path) -> None:
        self.where = where
        self.servers, self.clients, self.strangers = trustme.CA(), trustme.CA(), trustme.CA()
        self.ca, self.client_ca, self.crl = where / "ca.pem", where / "clients.pem", where / "clients.crl"
        self.servers.cert_pem.write_to_path(self.ca)
        self.clients.cert_pem.write_to_path(self.client_ca)
        self.issue("a", self.servers, "a.test", "*.wild.test", "127.0.0.1", "::1")
        self.issue("b", self.servers, "b.test", "x.wild.test")
        self.issue("locked", self.servers, "locked.test", "locked2.test", "modern.test", "optional.test", "open.test")
        self.issue("good", self.clients, "good@client.test")
        self.issue("revoked", self.clients, "revoked@client.test")
        self.issue("stranger", self.strangers, "good@client.test")
        self.both = where / "both.pem"
        self.both.write_bytes(self.cert("b").read_bytes() + self.key("b").read_bytes())
        self.pfx = where / "a.pfx"
        self.pfx.write_bytes(self._pfx(b"geheim"))
        self.crl.write_bytes(self.revoke("revoked"))

    def cert(self, name: str) -> Path:
        return self.where / f"{name}.crt"

    def key(self, name: str) -> Path:
        return self.where / f"{name}.key"

    def issue(self, name: str, authority: trustme.CA, *names: str) -> None:
        leaf = authority.issue_cert(*names)
        leaf.private_key_pem.write_to_path(self.key(name))
        self.cert(name).write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))

    def entry(self, name: str) -> str:
        """An entry of ``tls.certificates``."""
        return f"{{cert: {self.cert(name)}, key: {self.key(name)}}}"

    def pair(self, name: str) -> KeyPair:
        return read_key_pair(Certificate(cert=self.cert(name), key=self.key(name)))

    def revoke(self, *names: str, by: trustme.CA | None = None) -> bytes:
        """A CRL, of the clients' authority or of another one."""
        authority = by or self.clients
        issuer = x509.load_pem_x509_certificate(authority.cert_pem.bytes())
        key = load_pem_private_key(authority.private_key_pem.bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        now = datetime.datetime.now(datetime.UTC)
        crl = x509.CertificateRevocationListBuilder(issuer.subject, now, now + datetime.timedelta(days=1))
        for name in names:
            serial = x509.load_pem_x509_certificate(self.cert(name).read_bytes()).serial_number
            crl = crl.add_revoked_certificate(x509.RevokedCertificateBuilder(serial, now).build())
        return crl.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)

    def _pfx(self, password: bytes) -> bytes:
        key = load_pem_private_key(self.key("a").read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        chain = x509.load_pem_x509_certificates(self.cert("a").read_bytes())
        return pkcs12.serialize_key_and_certificates(b"a", key, chain[0], chain[1:], BestAvailableEncryption(password))
