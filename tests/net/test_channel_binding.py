"""The channel binding ``tls-server-end-point`` (RFC 5929 4.1): its value, and whose certificate it is made of."""

from __future__ import annotations

import datetime
import hashlib
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding

import frontd
from frontd.config.certificates import end_point
from frontd.config.model import TlsHost
from frontd.net.tls import build_profile
from tests.net.pki import Pki
from tests.net.tlsclient import Tls, client_context, secure_site, tls_line
from tests.scenarios.plugged import made, of
from tests.wire import configuration, front, one_pool

NAME = b"tls-server-end-point:"
Signer = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey
RSA = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())


def certificate(
    key: Signer, algorithm: hashes.SHA256 | hashes.SHA384 | hashes.SHA512 | None, pss: padding.PSS | None = None
) -> x509.Certificate:
    """A certificate of its own making, signed by `algorithm`."""
    name, now = x509.Name([]), datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 7, now, now + datetime.timedelta(days=1))
    return builder.sign(key, algorithm, rsa_padding=pss)


def pss(algorithm: hashes.HashAlgorithm) -> padding.PSS:
    return padding.PSS(padding.MGF1(algorithm), padding.PSS.DIGEST_LENGTH)


@pytest.mark.parametrize(
    ("made_by", "digest"),
    [
        (certificate(EC, hashes.SHA256()), "sha256"),
        (certificate(EC, hashes.SHA384()), "sha384"),
        (certificate(RSA, hashes.SHA256()), "sha256"),
        (certificate(RSA, hashes.SHA512()), "sha512"),
        (certificate(RSA, hashes.SHA384(), pss(hashes.SHA384())), "sha384"),
        (certificate(ed25519.Ed25519PrivateKey.generate(), None), "sha256"),
        (certificate(ed448.Ed448PrivateKey.generate(), None), "sha256"),
    ],
    ids=["ecdsa-sha256", "ecdsa-sha384", "rsa-sha256", "rsa-sha512", "rsa-pss-sha384", "ed25519", "ed448"],
)
def test_the_hash_is_that_of_the_signature(made_by: x509.Certificate, digest: str) -> None:
    assert end_point(made_by) == NAME + hashlib.new(digest, made_by.public_bytes(Encoding.DER)).digest()


MD5, SHA1, SHA256 = (bytes.fromhex(f"2a864886f70d0101{last}") for last in ("04", "05", "0b"))  # …WithRSAEncryption


@pytest.mark.parametrize("algorithm", [MD5, SHA1, bytes.fromhex("2a864886f70d01017f")], ids=["md5", "sha1", "unknown"])
def test_old_and_unknown_hashes_are_replaced_by_sha_256(algorithm: bytes) -> None:
    """No library signs like that any more: the algorithm is put in afterwards, so the signature is none."""
    der = certificate(RSA, hashes.SHA256()).public_bytes(Encoding.DER).replace(SHA256, algorithm)
    assert end_point(x509.load_der_x509_certificate(der)) == NAME + hashlib.sha256(der).digest()


def test_of_a_chain_it_is_the_leaf(pki: Pki) -> None:
    pair = pki.pair("a")
    leaf = x509.load_pem_x509_certificates(pair.chain)[0]
    assert pair.channel_binding == NAME + hashlib.sha256(leaf.public_bytes(Encoding.DER)).digest()


def test_a_context_holds_one_certificate(pki: Pki) -> None:
    """What the binding rests upon: two certificates are two contexts, also under one policy."""
    one, two = build_profile(pki.pair("a"), TlsHost(), []), build_profile(pki.pair("b"), TlsHost(), [])
    assert one.context is not two.context
    assert one.certificate.channel_binding != two.certificate.channel_binding


# ---------------------------------------------------------------------------------------------------- over TLS


def told(self: frontd.Plugin, exchange: frontd.Exchange) -> frontd.Response:
    """What a plugin is told of the channel."""
    tls = exchange.client.tls
    return frontd.Response(200, body=b"plain" if tls is None else tls.channel_binding or b"unknown")


SAYS = made("says", filter_request=told)


def site(certificates: str) -> str:
    return secure_site("http://127.0.0.1:1", certificates).replace("main: {", "main: {plugins: [says], ")


def presented(line: Tls) -> bytes:
    """The binding by what the client was shown in its handshake."""
    shown = line.tls.getpeercert(binary_form=True)
    assert shown is not None
    return NAME + hashlib.sha256(shown).digest()


@pytest.mark.parametrize("version", ["1.2", "1.3"])
async def test_it_is_of_the_certificate_that_was_presented(pki: Pki, tmp_path: Path, version: str) -> None:
    async with front(site(f"{pki.entry('a')}, {pki.entry('b')}"), tmp_path, of(SAYS)) as stage:
        context, found = client_context(pki, version=version), set()
        for name in ("a.test", "b.test", "y.wild.test", "x.wild.test"):
            line = await tls_line(stage, context, name)
            # the host that is asked for is another one than the name that chose the certificate
            _, body = await line.get(host="a.test")
            assert body == presented(line), name
            found.add(body)
            again = await tls_line(stage, context, name, session=line.tls.session)
            assert again.tls.session_reused, name
            assert (await again.get(host="a.test"))[1] == body, name
        assert found == {pki.pair("a").channel_binding, pki.pair("b").channel_binding}


async def test_a_reload_changes_it_for_new_connections_only(pki: Pki, tmp_path: Path) -> None:
    cert, key = tmp_path / "own.crt", tmp_path / "own.key"
    cert.write_bytes(pki.cert("a").read_bytes())
    key.write_bytes(pki.key("a").read_bytes())
    text, context = site(f"{{cert: {cert}, key: {key}}}"), client_context(pki)
    async with front(text, tmp_path, of(SAYS)) as stage:
        before = await tls_line(stage, context, "a.test")
        assert (await before.get())[1] == presented(before)
        pki.issue("renewed", pki.servers, "a.test")
        cert.write_bytes(pki.cert("renewed").read_bytes())
        key.write_bytes(pki.key("renewed").read_bytes())
        assert (await stage.front.reload(lambda: configuration(text, tmp_path, of(SAYS)))).ok
        after = await tls_line(stage, context, "a.test")
        assert (await after.get())[1] == presented(after) == pki.pair("renewed").channel_binding
        assert (await before.get())[1] == presented(before) == pki.pair("a").channel_binding
        resumed = await tls_line(stage, context, "a.test", session=before.tls.session)
        assert not resumed.tls.session_reused  # it would have been bound to the old certificate


async def test_plain_connections_have_no_tls(tmp_path: Path) -> None:
    async with front(one_pool("http://127.0.0.1:1", site="plugins: [says]"), tmp_path, of(SAYS)) as stage:
        assert (await (await stage.connect()).get())[1] == b"plain"
