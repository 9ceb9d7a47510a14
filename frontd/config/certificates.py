"""The one reader of certificate, key, CA and CRL files: whether they can be used, and which hosts they cover.

`check` reads them for their facts, the TLS profiles for their PEM; both see the same file in the same way.  Hosts are
the subject alternative names (RFC 9525 6.3: the common name does not count).  A wildcard covers exactly one label.

Invariants: a file is read once, so what was checked is what is used, and every process of a family uses the same bytes
(`keep_files`, `only_files`); what is handed on holds the blocks it is meant to hold and nothing else (a CA certificate
inside a CRL file is not trusted by the way).
"""

from __future__ import annotations

import datetime
import itertools
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    pkcs12,
)

from frontd.config.model import Certificate, Config
from frontd.model.urlprefix import canonical_host, is_ip

_MAX_FILE = 4 << 20
_CRL = re.compile(rb"-----BEGIN X509 CRL-----.*?-----END X509 CRL-----", re.DOTALL)


# Files by path, and whether others may be read and added.
_held: ContextVar[tuple[dict[Path, bytes], bool] | None] = ContextVar("held files", default=None)


@contextmanager
def keep_files() -> Iterator[dict[Path, bytes]]:
    """Inside, every file is read once; gives what was read, by path."""
    found: dict[Path, bytes] = {}
    token = _held.set((found, True))
    try:
        yield found
    finally:
        _held.reset(token)


@contextmanager
def only_files(held: Mapping[Path, bytes]) -> Iterator[None]:
    """Inside, the files are those of `held`, whatever is on the disk now; others cannot be read."""
    token = _held.set((dict(held), False))
    try:
        yield
    finally:
        _held.reset(token)


class Unusable(Exception):
    """A certificate cannot be used: the key of the configuration to blame, a sentence, a hint."""

    def __init__(self, key: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.key = key
        self.hint = hint


@dataclass(frozen=True, slots=True)
class CertificateFacts:
    """`hosts` in canonical form, wildcards as ``*.name``; `not_after` is in UTC; `warnings` are sentences."""

    hosts: tuple[str, ...]
    not_before: datetime.datetime
    not_after: datetime.datetime
    warnings: tuple[str, ...] = ()

    def covers(self, host: str) -> bool:
        """Whether a client that asked for the canonical `host` (or ``*.name``) accepts this certificate."""
        if host in self.hosts:
            return True
        parent = host.partition(".")[2]
        return bool(parent) and not is_ip(host) and not host.startswith("*") and "*." + parent in self.hosts


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A certificate with its chain, leaf first, and its key, both as PEM; `source` is the file it came from,
    `channel_binding` is `end_point` of the leaf.

    Equal when the bytes are: a file that was only touched is the same key pair.
    """

    chain: bytes = field(repr=False)
    key: bytes = field(repr=False)
    source: str
    facts: CertificateFacts = field(compare=False)
    channel_binding: bytes = field(compare=False)

    @property
    def hosts(self) -> tuple[str, ...]:
        return self.facts.hosts

    @property
    def not_after(self) -> datetime.datetime:
        return self.facts.not_after


def read_all(config: Config) -> None:
    """Read every file with certificates, keys and revocation lists that `config` names, for `keep_files`.

    Raises `Unusable`.
    """
    for certificate in config.tls.certificates:
        read_key_pair(certificate)
    for demands in config.tls.hosts.values():
        if demands.ca is not None:
            read_authorities(demands.ca, "ca")
        if demands.crl is not None:
            read_revocations(demands.crl, "crl")
    for pool in config.pools.values():
        if pool.tls.ca is not None:
            read_authorities(pool.tls.ca, "ca")
        if pool.workers is not None and pool.workers.splash is not None:
            file_bytes(pool.workers.splash, "splash")
    for token in (config.identity, *(site.identity for site in config.sites.values())):
        if token is not None:
            file_bytes(token.jwt_key, "jwt_key")


def read_certificate(certificate: Certificate) -> CertificateFacts:
    """The facts of `read_key_pair`.  Raises `Unusable`."""
    return read_key_pair(certificate).facts


def read_key_pair(certificate: Certificate) -> KeyPair:
    """Read a PEM pair or a PKCS#12 file (RFC 7292); see that key and certificate fit.  Raises `Unusable`."""
    chain, key = _from_pfx(certificate) if certificate.pfx is not None else _from_pem(certificate)
    try:
        facts = _facts(chain)
    except (ValueError, x509.InvalidVersion) as error:  # cryptography reads fields when they are asked for
        raise Unusable("cert" if certificate.pfx is None else "pfx", f"the certificate is damaged: {error}") from None
    return KeyPair(_pem(chain), key, str(certificate.pfx or certificate.cert), facts, end_point(chain[0]))


def end_point(leaf: x509.Certificate) -> bytes:
    """The channel binding ``tls-server-end-point`` of a server's certificate (RFC 5929 4.1): the name, a colon, and
    the hash of the certificate (DER) by the hash function of its signature, where MD5 and SHA-1 are replaced by
    SHA-256.

    RFC 5929 leaves it undefined for signatures without a hash function of their own (Ed25519, Ed448) and for those
    that `cryptography` does not know: here they have SHA-256.  A client that has none for such a certificate sends
    none, one with another is refused.
    """
    try:
        algorithm = leaf.signature_hash_algorithm
    except UnsupportedAlgorithm:
        algorithm = None
    if algorithm is None or isinstance(algorithm, hashes.MD5 | hashes.SHA1):
        algorithm = hashes.SHA256()
    return b"tls-server-end-point:" + leaf.fingerprint(algorithm)


def _pem(certificates: list[x509.Certificate]) -> bytes:
    return b"".join(one.public_bytes(Encoding.PEM) for one in certificates)


def _facts(chain: list[x509.Certificate]) -> CertificateFacts:
    leaf = chain[0]
    warnings: list[str] = []
    hosts = _names(leaf)
    if not hosts:
        warnings.append("the certificate has no subject alternative name; clients ignore its common name")
    now = datetime.datetime.now(datetime.UTC)
    if leaf.not_valid_after_utc < now:
        warnings.append(f"the certificate expired on {leaf.not_valid_after_utc:%Y-%m-%d}")
    elif leaf.not_valid_before_utc > now:
        warnings.append(f"the certificate is not valid before {leaf.not_valid_before_utc:%Y-%m-%d}")
    if any(one.issuer != following.subject for one, following in itertools.pairwise(chain)):
        warnings.append("the chain is not in order: each certificate is followed by the one of its issuer")
    return CertificateFacts(hosts, leaf.not_valid_before_utc, leaf.not_valid_after_utc, tuple(warnings))


def read_authorities(path: Path, key: str) -> bytes:
    """The certificates in `path`, as PEM and nothing else.  Raises `Unusable` that blames `key`."""
    try:
        return _pem(x509.load_pem_x509_certificates(file_bytes(path, key)))
    except (ValueError, x509.InvalidVersion):
        raise Unusable(key, f"{path} holds no PEM certificate") from None


def read_revocations(path: Path, key: str) -> bytes:
    """The revocation lists in `path`, as PEM and nothing else.  Raises `Unusable` that blames `key`."""
    blocks: list[bytes] = _CRL.findall(file_bytes(path, key))
    try:
        lists = [x509.load_pem_x509_crl(block) for block in blocks]
    except ValueError as error:
        raise Unusable(key, f"a revocation list in {path} is damaged: {error}") from None
    if not lists:
        raise Unusable(key, f"{path} holds no PEM revocation list")
    return b"".join(one.public_bytes(Encoding.PEM) for one in lists)


def file_bytes(path: Path, key: str) -> bytes:
    """What is in a file of the configuration.  Raises `Unusable` that blames `key`."""
    held, may_read = _held.get() or ({}, True)
    if path not in held:
        if not may_read:
            raise Unusable(key, f"{path} was not read when the configuration was")
        held[path] = _read(path, key)
    return held[path]


def _read(path: Path, key: str) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        hint = (
            "in compose, the service needs this name under `secrets:`" if str(path).startswith("/run/secrets/") else ""
        )
        raise Unusable(key, f"{path} cannot be read: {reason}", hint) from None
    if len(data) > _MAX_FILE:
        raise Unusable(key, f"{path} is larger than 4 MiB")
    return data


def _from_pem(certificate: Certificate) -> tuple[list[x509.Certificate], bytes]:
    assert certificate.cert is not None
    data = file_bytes(certificate.cert, "cert")
    try:
        chain = x509.load_pem_x509_certificates(data)
    except (ValueError, x509.InvalidVersion):
        hint = "this looks like a private key" if b"PRIVATE KEY" in data and b"BEGIN CERTIFICATE" not in data else ""
        raise Unusable("cert", f"{certificate.cert} holds no PEM certificate", hint) from None
    where, key_file = ("key", certificate.key) if certificate.key is not None else ("cert", certificate.cert)
    key_data = file_bytes(key_file, where)
    if b"PRIVATE KEY-----" not in key_data:
        hint = (
            "name the key's file with `key`"
            if where == "cert"
            else "this looks like a certificate" * (b"CERTIFICATE" in key_data)
        )
        raise Unusable(where, f"{key_file} holds no PEM private key", hint)
    try:
        key = load_pem_private_key(key_data, None)
    except TypeError:
        hint = "decrypt it, or use a PKCS#12 file: `pfx` and `password`"
        raise Unusable(where, f"the key in {key_file} is encrypted", hint) from None
    except (ValueError, UnsupportedAlgorithm):
        raise Unusable(where, f"the key in {key_file} is damaged or of an unknown kind") from None
    mine = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    matching = [index for index, one in enumerate(chain) if _public(one) == mine]
    if not matching:
        raise Unusable(where, f"the key in {key_file} does not belong to the certificate in {certificate.cert}")
    if matching[0] != 0:
        raise Unusable(
            "cert",
            f"the certificate of the key is number {matching[0] + 1} in {certificate.cert}",
            "it comes first, then its chain",
        )
    return chain, key_data


def _public(certificate: x509.Certificate) -> bytes:
    try:
        return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except (ValueError, UnsupportedAlgorithm):
        return b""


def _from_pfx(certificate: Certificate) -> tuple[list[x509.Certificate], bytes]:
    assert certificate.pfx is not None
    data = file_bytes(certificate.pfx, "pfx")
    password = certificate.password.get_secret_value().encode() if certificate.password is not None else None
    try:
        key, leaf, others = pkcs12.load_key_and_certificates(data, password)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        if not data.startswith(b"\x30"):  # every PKCS#12 file is a DER sequence
            raise Unusable("pfx", f"{certificate.pfx} is not a PKCS#12 file") from None
        if password is None:
            raise Unusable(
                "pfx", f"{certificate.pfx} cannot be read without a password", "give its `password`"
            ) from None
        raise Unusable("password", f"{certificate.pfx} is damaged, or this is not its password") from None
    if key is None or leaf is None:
        missing = "private key" if key is None else "certificate"
        raise Unusable("pfx", f"{certificate.pfx} holds no {missing}")
    return _in_order(leaf, others), key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _in_order(leaf: x509.Certificate, others: list[x509.Certificate]) -> list[x509.Certificate]:
    """Each certificate before the one of its issuer, as TLS 1.2 demands it (RFC 5246 7.4.2); PKCS#12 keeps no order."""
    chain, rest = [leaf], list(others)
    while following := [one for one in rest if one.subject == chain[-1].issuer]:
        chain.append(following[0])
        rest.remove(following[0])
    return chain + rest


def _names(leaf: x509.Certificate) -> tuple[str, ...]:
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return ()
    found = [str(address) for address in names.get_values_for_type(x509.IPAddress)]
    for name in names.get_values_for_type(x509.DNSName):
        try:
            found.append("*." + canonical_host(name[2:]) if name.startswith("*.") else canonical_host(name))
        except ValueError:  # a name no client can ask for
            continue
    return tuple(found)
