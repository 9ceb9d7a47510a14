"""NTLM inside of Negotiate, where it is listed: chosen by the client, or by us after Kerberos did not work."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import spnego
from frontd_plugins._ntlm_crypto import nt_hash
from spnego._spnego import NegState, NegTokenResp, unpack_token

from frontd.testing import Answer, Client, ConfigurationError, SiteUnderTest, site
from tests.plugins.ntlmclients import challenge_of, field_of, kerberos_first, ntlm_first, step, windows
from tests.plugins.test_negotiate import HOST, alice, armed, logon, refusal
from tests.plugins.test_negotiate_refused import NTLM, REAL_KRB5, negotiation
from tests.windows.realm import KRB5, Realm, house, kdc, skewed, token

__all__ = ["alice", "house", "kdc"]  # fixtures


@pytest.fixture
def there(house: Realm, tmp_path: Path) -> Iterator[SiteUnderTest]:
    with site(both(house, tmp_path)) as s:
        yield s


def both(house: Realm, folder: Path, **ntlm: Any) -> dict[str, Any]:
    (folder / "users").write_text(f"alice:{nt_hash('secret').hex()}:staff\n")
    return armed(house, mechanisms=["kerberos", "ntlm"], ntlm={"users_file": str(folder / "users"), **ntlm})


def legs(line: Client, client: spnego.ContextProxy) -> tuple[Answer, int]:
    """The answer after all legs, and how many there were."""
    token, count = step(client), 1
    while True:
        answer = line.get("/", field_of(token, "Negotiate"))
        if answer.status != 401 or answer.headers.get_all("WWW-Authenticate") == ["Negotiate"]:
            return answer, count
        token, count = step(client, challenge_of(answer, "Negotiate")), count + 1


@pytest.mark.parametrize(
    ("client", "count"), [(windows, 2), (ntlm_first, 2), (kerberos_first, 3)], ids=["bare", "first", "after Kerberos"]
)
def test_three_ways_in(there: SiteUnderTest, client: Any, count: int) -> None:
    with there.connect() as c:
        answer, needed = legs(c, client())
        assert (answer.status, needed) == (200, count)
        assert answer.upstream is not None
        assert answer.upstream.headers["X-Remote-User"] == "alice"
        assert answer.upstream.headers["X-Auth-Scheme"] == "NTLM"
        again = c.get("/")  # the connection is hers
        assert again.upstream is not None
        assert again.upstream.headers["X-Remote-Groups"] == "staff"
        assert again.headers.get_all("WWW-Authenticate") == []
        assert c.get("/", {"Authorization": "Negotiate YQ=="}).status == 401
        assert c.get("/").status == 401
    assert there.get("/").status == 401


def test_the_last_token_is_verified_by_the_client(there: SiteUnderTest) -> None:
    """With the signature of the list of mechanisms, since NTLM was not the first of them."""
    client = kerberos_first()
    with there.connect() as c:
        answer, _ = legs(c, client)
        (value,) = answer.headers.get_all("WWW-Authenticate")
        last = spnego_token(value)
        assert unpacked(last).neg_state == NegState.accept_complete
        client.step(last)
        assert client.complete


def test_kerberos_still_works_beside_it(there: SiteUnderTest, house: Realm, alice: Path) -> None:
    with there.connect() as c:
        answer = c.get("/", logon(alice))
        assert answer.upstream is not None
        assert answer.upstream.headers["X-Remote-User"] == "alice@TEST.FRONTD"
        assert c.get("/").status == 401  # of the request
        assert legs(c, windows())[0].status == 200
        assert c.get("/", logon(alice)).status == 200
        assert c.get("/").status == 401  # what NTLM had left of the connection is gone


def test_wrong_passwords(there: SiteUnderTest) -> None:
    with there.connect() as c:
        for client in (windows(password="Secret"), windows("mallory"), kerberos_first("Secret")):
            answer, _ = legs(c, client)
            assert (answer.status, answer.upstream) == (401, None)
            assert refusal(there).startswith("NTLM: ")
            assert c.get("/").status == 401
    assert "(before it, Kerberos: " in there.log[-2].detail


def test_guesses_are_slowed_down(house: Realm, tmp_path: Path) -> None:
    with site(both(house, tmp_path, failures_per_user=2)) as s, s.connect() as c:
        for status in (401, 401, 429):
            assert legs(c, windows(password="wrong"))[0].status == status
        assert s.log[-1].reason == "LogonThrottled"


def test_a_trusted_proxy_gets_no_ntlm(house: Realm, tmp_path: Path, alice: Path) -> None:
    proxy = "192.0.2.7"
    with site(both(house, tmp_path), config={"trusted_proxies": [proxy]}, client_address=proxy) as s, s.connect() as c:
        for client in (windows(), ntlm_first(), kerberos_first()):
            assert c.get("/", field_of(step(client), "Negotiate")).headers.get_all("WWW-Authenticate") == ["Negotiate"]
            refusal(s)
        assert c.get("/", logon(alice)).status == 200


def test_legs_on_two_connections_and_out_of_order(there: SiteUnderTest) -> None:
    client = ntlm_first()
    with there.connect() as c, there.connect() as d:
        last = field_of(
            step(client, challenge_of(c.get("/", field_of(step(client), "Negotiate")), "Negotiate")), "Negotiate"
        )
        assert d.get("/", last).status == 401
        assert refusal(there) == "it is no first token, and no handshake is under way on this connection"
        assert c.get("/", last).status == 200
        assert c.get("/", last).status == 401
        assert c.get("/").status == 401


def test_where_it_is_not_listed(house: Realm) -> None:
    with site(armed(house)) as s, s.connect() as c:
        for client in (windows(), ntlm_first(), kerberos_first()):
            assert legs(c, client)[0].status == 401
            refusal(s)


def test_what_check_says(house: Realm, tmp_path: Path) -> None:
    for settings, says in (
        (armed(house, mechanisms=["kerberos", "ntlm"]), "ntlm: has then to say who may log on"),
        (armed(house, ntlm={"users_file": "users"}), "ntlm: has then to say who may log on"),
        (armed(house, mechanisms=["ntlm"], ntlm={"users_file": "users"}), "use the plugin ntlm"),
        (both(house, tmp_path, users_file=str(tmp_path / "none")), "there is no such users file"),
    ):
        with pytest.raises(ConfigurationError, match=says), site(settings):
            pass


def spnego_token(value: str) -> bytes:
    return base64.b64decode(value.partition(" ")[2])


def unpacked(token: bytes) -> NegTokenResp:
    found = unpack_token(token)
    assert isinstance(found, NegTokenResp)
    return found


# ---------------------------------------------------------------------------------------------------- after Kerberos


def after_kerberos(s: SiteUnderTest, mech_token: bytes) -> list[str]:
    """What a client is told that offers Kerberos with this token, and then NTLM."""
    answer = s.get("/", field_of(negotiation(REAL_KRB5, NTLM, mech_token=mech_token), "Negotiate"))
    assert (answer.status, answer.upstream) == (401, None)
    return answer.headers.get_all("WWW-Authenticate")


def test_a_ticket_that_we_have_no_key_for_becomes_ntlm(there: SiteUnderTest, house: Realm, alice: Path) -> None:
    house.service("HTTP/unknown.example", keytab="unknown.keytab")
    for host in ("other.example", "unknown.example"):
        (chosen,) = after_kerberos(there, token(alice, host, mechanism=KRB5))
        assert unpacked(spnego_token(chosen)).neg_state == NegState.request_mic


def test_what_kerberos_refuses_does_not_become_ntlm(there: SiteUnderTest, house: Realm, alice: Path) -> None:
    """Whoever repeats, relays or changes a token is not asked for another proof."""
    house.fetch(alice, f"HTTP/{HOST}")
    used = token(alice, HOST, mechanism=KRB5)
    assert there.get("/", field_of(used, "Negotiate")).status == 200
    changed = bytearray(token(alice, HOST, mechanism=KRB5))
    changed[-40] ^= 1
    in_the_ticket = bytearray(token(alice, HOST, mechanism=KRB5))
    in_the_ticket[300] ^= 1
    late = token(skewed(alice, 600), HOST, mechanism=KRB5)
    for sent, why in (
        (used, "replay: "),
        (bytes(changed), "the token was changed on its way"),
        (bytes(in_the_ticket), "wrong key: "),
        (late, "clock skew: "),
    ):
        assert after_kerberos(there, sent) == ["Negotiate"]
        assert refusal(there).startswith(why)


def test_another_channel_does_not_become_ntlm(house: Realm, alice: Path, tmp_path: Path) -> None:
    bound = token(alice, HOST, mechanism=KRB5, binding=b"tls-server-end-point:" + bytes(32))
    with site(both(house, tmp_path), scheme="http") as s:
        assert after_kerberos(s, bound) == ["Negotiate"]
        assert refusal(s).startswith("binding mismatch: ")
