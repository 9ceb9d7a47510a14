"""``X-Frontd-Identity``: what an app reads out of it, checked by other code than ours."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat

from frontd import Exchange, Identity
from frontd.config.problems import ConfigProblems
from frontd.config.signing import SigningKey
from frontd.pipeline import assertion
from frontd.pipeline.assertion import Signer
from tests.scenarios.plugged import fields, made, of, plugged, status, text
from tests.wire import Stage, app, configuration

KEY = ec.generate_private_key(ec.SECP256R1())
SECRET = b"0123456789abcdef0123456789abcdef"
ANN = Identity("LAB\\ann", ("LAB\\staff", "Größe"), ("S-1-5-21-1-2-3-500", "S-1-5-32-544"), "NTLM")


def by_name(self: object, exchange: Exchange) -> Identity | None:
    """Whoever a field names."""
    name = exchange.request.headers.text("x-i-am")
    return ANN if name == "ann" else Identity(name) if name else None


WHO = made("who", authenticate=by_name)


def pem(key: Any, password: bytes = b"") -> bytes:
    hidden = BestAvailableEncryption(password) if password else NoEncryption()
    return bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, hidden))


def decoded(part: bytes) -> bytes:
    assert b"=" not in part
    return base64.urlsafe_b64decode(part + b"=" * (-len(part) % 4))


def claims(token: str, key: ec.EllipticCurvePublicKey | bytes) -> dict[str, Any]:
    """The claims of a token whose signature holds.  Raises `InvalidSignature`."""
    start, content, signature = token.encode().split(b".")
    header, data, signed = json.loads(decoded(start)), start + b"." + content, decoded(signature)
    if isinstance(key, bytes):
        assert header == {"alg": "HS256", "typ": "JWT"}
        if not hmac.compare_digest(hmac.new(key, data, hashlib.sha256).digest(), signed):
            raise InvalidSignature
    else:
        assert header == {"alg": "ES256", "typ": "JWT"}
        assert len(signed) == 64
        r, s = int.from_bytes(signed[:32], "big"), int.from_bytes(signed[32:], "big")
        key.verify(encode_dss_signature(r, s), data, ec.ECDSA(hashes.SHA256()))
    found: dict[str, Any] = json.loads(decoded(content))
    return found


async def told(stage: Stage, *lines: str, host: str = "a.test") -> None:
    line = await stage.connect()
    assert status((await line.get("/", *lines, host=host))[0]) == 200


# ---------------------------------------------------------------------------------------------------- what apps get


@pytest.mark.parametrize(
    ("data", "key"),
    [(pem(KEY), KEY.public_key()), (SECRET + b"\n", SECRET), (bytes(range(128, 192)), bytes(range(128, 192)))],
    ids=["ES256", "HS256", "HS256 of bytes"],
)
async def test_an_app_can_verify_who_it_is(tmp_path: Path, data: bytes, key: ec.EllipticCurvePublicKey | bytes) -> None:
    (tmp_path / "jwt.key").write_bytes(data)
    async with app() as it, plugged(tmp_path, it.url, WHO, extra="identity: {jwt_key: jwt.key}") as stage:
        before = int(time.time())
        await told(stage, "X-I-Am: ann", "X-Frontd-Identity: forged", "X_Frontd_Identity: forged")
        (token,) = fields(it.heads[0], "x-frontd-identity")
        found = claims(token, key)
        assert before <= found["iat"] <= time.time()
        assert found == {
            "iss": "frontd", "sub": "LAB\\ann", "aud": "a.test", "iat": found["iat"], "exp": found["iat"] + 60,
            "groups": ["LAB\\staff", "Größe"], "sids": ["S-1-5-21-1-2-3-500", "S-1-5-32-544"], "amr": ["NTLM"],
        }  # fmt: skip
        assert b"forged" not in it.heads[0]
        with pytest.raises(InvalidSignature):
            claims(token, SECRET[::-1] if isinstance(key, bytes) else ec.generate_private_key(key.curve).public_key())


async def test_a_token_is_given_again_while_it_is_fresh(tmp_path: Path) -> None:
    (tmp_path / "jwt.key").write_bytes(pem(KEY))
    async with app() as it, plugged(tmp_path, it.url, WHO, extra="identity: {jwt_key: jwt.key}") as stage:
        for name, host in (("ann", "a.test"), ("ann", "a.test"), ("bob", "a.test"), ("ann", "b.test")):
            await told(stage, f"X-I-Am: {name}", host=host)
        ann, again, bob, elsewhere = (fields(head, "x-frontd-identity")[0] for head in it.heads)
        assert ann == again
        assert len({ann, bob, elsewhere}) == 3
        assert claims(bob, KEY.public_key())["sub"] == "bob"
        assert "amr" not in claims(bob, KEY.public_key())
        assert claims(elsewhere, KEY.public_key())["aud"] == "b.test"


async def test_a_site_has_its_own(tmp_path: Path) -> None:
    (tmp_path / "jwt.key").write_bytes(pem(KEY))
    (tmp_path / "site.key").write_bytes(SECRET)
    own = "identity: {jwt_key: site.key, issuer: https://front.test, audience: shop, lifetime: 5m}"
    top = "identity: {jwt_key: jwt.key}"
    async with app() as it, plugged(tmp_path, it.url, WHO, site=own, extra=top) as stage:
        await told(stage, "X-I-Am: ann")
        found = claims(fields(it.heads[0], "x-frontd-identity")[0], SECRET)
        assert (found["iss"], found["aud"], found["exp"] - found["iat"]) == ("https://front.test", "shop", 300)
        (tmp_path / "site.key").write_bytes(SECRET[::-1])
        written = text(it.url, [WHO], site=own, extra=top)
        assert (await stage.front.reload(lambda: configuration(written, tmp_path, of(WHO)))).ok
        await told(stage, "X-I-Am: ann")
        assert claims(fields(it.heads[1], "x-frontd-identity")[0], SECRET[::-1])["sub"] == "LAB\\ann"


async def test_nobody_has_none_and_a_site_without_a_key_neither(tmp_path: Path) -> None:
    (tmp_path / "jwt.key").write_bytes(SECRET)
    anybody = made("anybody", authenticate=by_name, rewrite_request=lambda self, exchange: None)
    async with app() as it, plugged(tmp_path, it.url, anybody) as stage:
        await told(stage, "X-I-Am: ann", "X-Frontd-Identity: forged")
        assert fields(it.heads[0], "x-remote-user") == ["LAB\\ann"]
        open_site = text(it.url, [], extra="identity: {jwt_key: jwt.key}")
        assert (await stage.front.reload(lambda: configuration(open_site, tmp_path))).ok
        await told(stage, "X-Frontd-Identity: forged")
        assert [fields(head, "x-frontd-identity") for head in it.heads] == [[], []]


# ---------------------------------------------------------------------------------------------------- its time


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock to be set: ``now.at``, in seconds since the epoch."""
    clock = SimpleNamespace(at=1000.25)
    monkeypatch.setattr(assertion, "time", SimpleNamespace(time=lambda: clock.at))
    return clock


def signer(lifetime: float = 60) -> Signer:
    return Signer(SigningKey("HS256", SECRET), "frontd", None, lifetime)


def test_it_is_made_anew_when_half_of_its_life_is_over(now: SimpleNamespace) -> None:
    it = signer()
    first = it.token(ANN, "a.test")
    now.at = 1029
    assert it.token(ANN, "a.test") == first
    now.at = 1031
    second = claims(it.token(ANN, "a.test").decode(), SECRET)
    assert (second["iat"], second["exp"]) == (1031, 1091)


def test_it_does_not_outlive_the_logon(now: SimpleNamespace) -> None:
    it = signer()
    short = Identity("ann", expires=1020.5)
    first = it.token(short, "a.test")
    assert claims(first.decode(), SECRET)["exp"] == 1020
    now.at = 1009
    assert it.token(short, "a.test") == first
    now.at = 1011
    assert it.token(short, "a.test") != first
    now.at = 1021
    assert claims(it.token(short, "a.test").decode(), SECRET)["exp"] == 1020


def test_what_is_remembered_is_bounded(now: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assertion, "REMEMBERED", 2)
    it = signer()
    first = it.token(ANN, "a.test")
    it.token(ANN, "b.test")
    now.at = 1001
    assert it.token(ANN, "a.test") == first  # used last
    it.token(ANN, "c.test")
    assert it.token(ANN, "a.test") == first
    assert len(it._tokens) == 2


# ---------------------------------------------------------------------------------------------------- keys


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"short\n", "holds 5 bytes; a secret has at least 32"),
        (pem(ec.generate_private_key(ec.SECP384R1())), "is none of the curve P-256"),
        (pem(rsa.generate_private_key(65537, 2048)), "is none of the curve P-256"),
        (pem(ed25519.Ed25519PrivateKey.generate()), "is none of the curve P-256"),
        (pem(KEY, b"geheim"), "is encrypted"),
        (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "holds no private key that can be read"),
        (None, "cannot be read: No such file or directory"),
    ],
)
@pytest.mark.parametrize("where", ["extra", "site"])
def test_a_key_that_cannot_sign_is_an_error_at_its_place(
    tmp_path: Path, data: bytes | None, sentence: str, where: str
) -> None:
    if data is not None:
        (tmp_path / "jwt.key").write_bytes(data)
    key = {where: "identity: {jwt_key: jwt.key}"}
    written = text("http://127.0.0.1:1", [WHO], **key)
    with pytest.raises(ConfigProblems) as caught:
        configuration(written, tmp_path, of(WHO))
    (problem,) = [one for one in caught.value.problems if one.severity == "error"]
    assert problem.path == ("identity.jwt_key" if where == "extra" else "sites.main.identity.jwt_key")
    assert sentence in problem.message


def test_a_key_is_not_shown() -> None:
    assert "0123" not in repr(SigningKey("HS256", SECRET))
