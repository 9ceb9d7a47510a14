"""A certificate authority for this machine's own use, and one certificate for localhost.

`<state_dir>/dev/` holds ``ca.crt``, ``ca.key``, ``localhost.crt``, ``localhost.key``.  They are made once and used
again; a certificate with less than 30 days left is made anew **with its old key**, so that key and certificate on disk
always belong together, whatever moment a reader picks.  An exclusive `flock` keeps two starting processes from making
two.

What keeps a stolen ``ca.key`` harmless elsewhere: a critical NameConstraints extension (RFC 5280 4.2.1.10) permits
nothing but ``localhost``, names under it, ``127.0.0.1`` and ``::1``; the path length is 0; the keys have mode 0600 in a
directory of mode 0700.  Nothing here ever adds the CA to a trust store: that is for the user to do, or ``--cacert``.

The certificate is one that Chromium and curl accept: at most 398 days (CA/Browser Forum Baseline Requirements 6.3.2 as
Chromium enforces it), subjectAltName, extendedKeyUsage serverAuth, key identifiers, critical basicConstraints, P-256.
"""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from frontd.cli.common import is_local_host

CA_LIFETIME = timedelta(days=3650)  # mkcert's ten years
LEAF_LIFETIME = timedelta(days=397)  # the 398 days that browsers accept, less the hour of `_BACKDATE` and some
RENEW_BEFORE = timedelta(days=30)  # as certbot
_BACKDATE = timedelta(hours=1)  # clocks of virtual machines and containers disagree a little

# OpenSSL and Chromium want two labels behind a wildcard, so "*.localhost" serves other clients only; `ensure` adds each
# name below localhost that is asked for.
LEAF_NAMES = (
    x509.DNSName("localhost"),
    x509.DNSName("*.localhost"),
    x509.IPAddress(IPv4Address("127.0.0.1")),
    x509.IPAddress(IPv6Address("::1")),
)


@dataclass(frozen=True, slots=True)
class DevCertificate:
    """Paths of PEM files: the CA to name with ``--cacert``, the certificate and its key; `made` when they are new."""

    ca: Path
    cert: Path
    key: Path
    made: bool


def ensure(state_dir: Path, host: str = "localhost", now: datetime | None = None) -> DevCertificate:
    """The development certificate below `state_dir` that is good for `host`, made or renewed when it has to be.

    `now` (aware) is for tests.  Raises `OSError` when the directory cannot be written, `ValueError` for a host that
    the CA may not sign for.
    """
    if not is_local_host(host):
        raise ValueError(f"the development CA signs for localhost and names under it only, not for {host}")
    now = now or datetime.now(UTC)
    folder = state_dir / "dev"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ca_key, new_ca_key = _key(folder / "ca.key")
        ca = None if new_ca_key else _usable(folder / "ca.crt", ca_key, None, now)
        made = ca is None
        if ca is None:
            ca = _make_ca(ca_key, now)
            _write(folder / "ca.crt", ca.public_bytes(serialization.Encoding.PEM), 0o644)
        leaf_key, new_leaf_key = _key(folder / "localhost.key")
        old = None if made or new_leaf_key else _usable(folder / "localhost.crt", leaf_key, ca, now)
        names = _extra_names(folder / "localhost.crt")
        if old is None or (host not in names and host.endswith(".localhost")):
            names |= {host} if host.endswith(".localhost") else set()
            leaf = _make_leaf(leaf_key, ca, ca_key, sorted(names), now)
            _write(folder / "localhost.crt", leaf.public_bytes(serialization.Encoding.PEM), 0o644)
            made = True
    finally:
        os.close(lock)
    return DevCertificate(folder / "ca.crt", folder / "localhost.crt", folder / "localhost.key", made)


def _key(path: Path) -> tuple[ec.EllipticCurvePrivateKey, bool]:
    """The key in `path` and whether it is new; one that is missing, damaged or of another kind is replaced."""
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
        if isinstance(key, ec.EllipticCurvePrivateKey):
            path.chmod(0o600)
            return key, False
    except (FileNotFoundError, ValueError, TypeError):
        pass
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    _write(path, pem, 0o600)
    return key, True


def _usable(
    path: Path, key: ec.EllipticCurvePrivateKey, issuer: x509.Certificate | None, now: datetime
) -> x509.Certificate | None:
    """The certificate in `path` when it is whole, belongs to `key`, comes from `issuer` (None: itself) and lasts."""
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
        certificate.verify_directly_issued_by(issuer or certificate)
    except Exception:  # missing, damaged or foreign: each means "make a new one", and cryptography raises many kinds
        return None
    lasts = certificate.not_valid_before_utc <= now and certificate.not_valid_after_utc - now >= RENEW_BEFORE
    return certificate if lasts and certificate.public_key() == key.public_key() else None


def _extra_names(path: Path) -> set[str]:
    """The names below localhost that the certificate in `path` has; they stay when it is made anew."""
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, x509.ExtensionNotFound):
        return set()
    return {name for name in names.get_values_for_type(x509.DNSName) if name.endswith(".localhost") and name[0] != "*"}


def _name(common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "frontd development"),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _make_ca(key: ec.EllipticCurvePrivateKey, now: datetime) -> x509.Certificate:
    serial = x509.random_serial_number()
    # Part of the serial number in the name: two of them in one trust store can be told apart.
    name = _name(f"frontd dev CA {serial & 0xFFFFFFFF:08x}")
    permitted = [
        x509.DNSName("localhost"),  # covers every name below it as well
        x509.IPAddress(IPv4Network("127.0.0.1/32")),
        x509.IPAddress(IPv6Network("::1/128")),
    ]
    return (
        x509.CertificateBuilder(subject_name=name, issuer_name=name, public_key=key.public_key(), serial_number=serial)
        .not_valid_before(now - _BACKDATE)
        .not_valid_after(now + CA_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.NameConstraints(permitted_subtrees=permitted, excluded_subtrees=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def _make_leaf(
    key: ec.EllipticCurvePrivateKey,
    ca: x509.Certificate,
    ca_key: ec.EllipticCurvePrivateKey,
    extra_names: list[str],
    now: datetime,
) -> x509.Certificate:
    names = [*LEAF_NAMES, *(x509.DNSName(name) for name in extra_names)]
    ca_identifier = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return (
        x509.CertificateBuilder(
            subject_name=_name("localhost"),
            issuer_name=ca.subject,
            public_key=key.public_key(),
            serial_number=x509.random_serial_number(),
        )
        .not_valid_before(now - _BACKDATE)
        .not_valid_after(now + LEAF_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ca_identifier), critical=False)
        .sign(ca_key, hashes.SHA256())
    )


def _write(path: Path, data: bytes, mode: int) -> None:
    """Write beside the file and rename over it: a reader sees the old bytes or the new ones."""
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)  # of a process that was killed here; the lock is ours
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
