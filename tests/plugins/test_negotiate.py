"""Negotiate with tickets of a real KDC: who is let in, what proves it to the client, and what is left of it."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from frontd.testing import Answer, ConfigurationError, SiteUnderTest, site
from tests.windows.realm import DCE, INTEGRITY, KRB5, MUTUAL, SPNEGO, Realm, house, initiator, kdc, negotiate, token

__all__ = ["house", "kdc"]  # fixtures

HOST = "test.example"
PROXY = "192.0.2.7"


@pytest.fixture
def alice(house: Realm) -> Path:
    return house.ticket("alice")


def armed(house: Realm, **settings: Any) -> dict[str, Any]:
    return {"negotiate": {"keytab": str(house.folder / "http.keytab"), **settings}}


def logon(cache: Path, **more: Any) -> dict[str, str]:
    return {"Authorization": negotiate(token(cache, HOST, **more))}


def proof(answer: Answer) -> bytes:
    """The token in the answer."""
    (value,) = answer.headers.get_all("WWW-Authenticate")
    scheme, _, text = value.partition(" ")
    assert scheme == "Negotiate"
    return base64.b64decode(text)


def refusal(s: SiteUnderTest) -> str:
    """Why the last request was refused, after a look at what everybody can see of it."""
    entry = s.log[-1]
    assert (entry.status, entry.substatus, entry.reason, entry.user) == (401, 1, "LogonFailed", None)
    return entry.detail


# ---------------------------------------------------------------------------------------------------- a logon


def test_a_ticket_is_a_logon(house: Realm, alice: Path) -> None:
    with site(armed(house)) as s:
        asked = s.get("/")
        assert (asked.status, asked.headers.get_all("WWW-Authenticate")) == (401, ["Negotiate"])
        assert s.log[-1].reason == "LogonRequired"
        answer = s.get("/", logon(alice))
        assert answer.status == 200
        assert answer.upstream is not None
        assert answer.upstream.headers["X-Remote-User"] == "alice@TEST.FRONTD"
        assert answer.upstream.headers["X-Auth-Scheme"] == "Negotiate"
        assert "Authorization" not in answer.upstream.headers
        assert s.log[-1].user == "alice@TEST.FRONTD"


@pytest.mark.parametrize("mechanism", [SPNEGO, KRB5], ids=["SPNEGO", "bare"])
def test_the_answer_proves_who_we_are(house: Realm, alice: Path, mechanism: str) -> None:
    client = initiator(alice, HOST, mechanism=mechanism)
    with site(armed(house)) as s:
        answer = s.get("/", {"Authorization": negotiate(client.step())})
        assert not client.complete
        client.step(proof(answer))
        assert client.complete


def test_a_client_that_wants_no_proof(house: Realm, alice: Path) -> None:
    with site(armed(house)) as s:
        answer = s.get("/", logon(alice, mechanism=KRB5, flags=INTEGRITY))
        assert (answer.status, answer.headers.get_all("WWW-Authenticate")) == (200, [])


def test_a_logon_is_of_one_request(house: Realm, alice: Path) -> None:
    with site(armed(house)) as s, s.connect() as c:
        assert c.get("/", logon(alice)).status == 200
        assert c.get("/").status == 401
        assert c.get("/", logon(house.ticket("bob"))).upstream.headers["X-Remote-User"] == "bob@TEST.FRONTD"  # type: ignore[union-attr]


def test_names_in_other_letters_and_names_that_are_configured(house: Realm, alice: Path) -> None:
    with site(armed(house, spns=["http/TEST.example"])) as s:
        assert s.get("/", logon(alice)).status == 200
    with site(armed(house, spns=["HTTP/other.example", f"HTTP/{HOST}@TEST.FRONTD"])) as s:
        assert s.get("/", logon(alice)).status == 200
    with site(armed(house, spns=["HTTP/other.example"])) as s:
        assert s.get("/", logon(alice)).status == 401
        assert refusal(s) == (
            "wrong SPN: the ticket is for HTTP/test.example@TEST.FRONTD, not for HTTP/other.example@TEST.FRONTD"
        )


def test_names_that_share_a_key(house: Realm, alice: Path) -> None:
    """As those of one account in Active Directory do: whichever stands first in the keytab, both work."""
    path = house.service("HTTP/second.example", keytab="second.keytab")
    both = house.folder / "both.keytab"
    records = path.read_bytes()[2:].replace(b"\0\x0esecond.example", b"\0\x0efirsts.example")
    both.write_bytes(path.read_bytes()[:2] + records + path.read_bytes()[2:])
    with site(armed(house, keytab=str(both)), urls=["https://second.example/", "https://firsts.example/"]) as s:
        field = {"Authorization": negotiate(token(alice, "second.example"))}
        assert s.get("/", field, host="second.example").status == 200
        assert s.get("/", field, host="firsts.example").status == 401
        assert refusal(s).startswith("replay: ")


def test_a_handshake_of_several_legs(house: Realm, alice: Path) -> None:
    client = initiator(alice, HOST, flags=DCE | MUTUAL)
    with site(armed(house)) as s, s.connect() as c:
        leg = c.get("/", {"Authorization": negotiate(client.step())})
        assert (leg.status, leg.upstream) == (401, None)
        answer = c.get("/", {"Authorization": negotiate(client.step(proof(leg)))})
        assert answer.status == 200
        assert answer.upstream is not None
        assert answer.upstream.headers["X-Remote-User"] == "alice@TEST.FRONTD"


# ---------------------------------------------------------------------------------------------------- the proof


@pytest.mark.parametrize("status", [200, 204, 304, 403, 404, 500])
def test_whatever_the_app_answers_the_proof_goes_with_it(house: Realm, alice: Path, status: int) -> None:
    client = initiator(alice, HOST)
    with site(armed(house)) as s:
        s.app.respond(status)
        answer = s.get("/", {"Authorization": negotiate(client.step())})
        assert answer.status == status
        client.step(proof(answer))
        assert client.complete


def test_a_rule_of_ours_forbids_and_the_proof_goes_with_it(house: Realm, alice: Path) -> None:
    with site(armed(house) | {"authorize": [{"allow": ["bob@TEST.FRONTD"]}]}) as s:
        answer = s.get("/", logon(alice))
        assert (answer.status, s.log[-1].reason) == (403, "Forbidden")
        assert proof(answer)


def test_a_401_of_the_app_carries_no_proof(house: Realm, alice: Path) -> None:
    """There it would be a leg of a handshake."""
    with site(armed(house)) as s:
        s.app.respond(401, {"WWW-Authenticate": "Bearer"})
        answer = s.get("/", logon(alice))
        assert (answer.status, answer.headers.get_all("WWW-Authenticate")) == (401, ["Bearer"])


def test_what_is_kept_has_nobodys_proof(house: Realm, alice: Path) -> None:
    plugins = armed(house) | {"response_cache": None, "authorize": [{"allow": ["anonymous"]}]}
    with site(plugins, config={"cache": {"memory": "1MiB"}}) as s:
        s.app.respond(200, {"Cache-Control": "public, max-age=60"}, "a page")
        first = initiator(alice, HOST)
        first.step(proof(s.get("/", {"Authorization": negotiate(first.step())})))
        second = initiator(house.ticket("bob"), HOST)
        answer = s.get("/", {"Authorization": negotiate(second.step())})
        second.step(proof(answer))
        assert second.complete
        third = s.get("/")
        assert (third.status, third.upstream, third.body) == (200, None, b"a page")
        assert third.headers.get_all("WWW-Authenticate") == []
        assert len(s.app.requests) == 1


def test_a_token_of_the_apps_is_dropped(house: Realm, alice: Path) -> None:
    with site(armed(house)) as s:
        s.app.respond(200, [("WWW-Authenticate", "Negotiate YQ=="), ("WWW-Authenticate", "Basic realm=x")])
        values = s.get("/", logon(alice)).headers.get_all("WWW-Authenticate")
        assert values[0] == "Basic realm=x"
        assert len(values) == 2
        assert len(values[1]) > 100


@pytest.mark.parametrize(
    "value", ["Basic realm=x, Negotiate YQ==", "Negotiate, negotiate YQ==", "Negotiate\tYQ==", ", Negotiate  YQ=="]
)
def test_a_token_in_a_list_is_dropped(house: Realm, alice: Path, value: str) -> None:
    with site(armed(house)) as s:
        s.app.respond(401, [("WWW-Authenticate", value), ("WWW-Authenticate", "Negotiate, Basic realm=y")])
        assert s.get("/", logon(alice)).headers.get_all("WWW-Authenticate") == ["Negotiate, Basic realm=y"]


# ---------------------------------------------------------------------------------------------------- a connection


def test_a_connection_that_is_remembered(house: Realm, alice: Path) -> None:
    with site(armed(house, persist="connection")) as s, s.connect() as c:
        assert proof(c.get("/", logon(alice)))
        again = c.get("/")
        assert again.upstream is not None
        assert again.upstream.headers["X-Remote-User"] == "alice@TEST.FRONTD"
        assert again.headers.get_all("WWW-Authenticate") == []
        assert s.get("/").status == 401  # another connection


@pytest.mark.parametrize("field", ["Negotiate", "Negotiate YQ==", "Negotiate %%%", "Basic YTpi", "Bearer x", ""])
def test_another_logon_ends_the_old_one_first(house: Realm, alice: Path, field: str) -> None:
    with site(armed(house, persist="connection")) as s, s.connect() as c:
        assert c.get("/", logon(alice)).status == 200
        assert c.get("/", {"Authorization": field}).status == 401
        assert c.get("/").status == 401
        assert c.get("/", logon(house.ticket("bob"))).status == 200
        assert c.get("/").upstream.headers["X-Remote-User"] == "bob@TEST.FRONTD"  # type: ignore[union-attr]


def test_a_connection_is_remembered_no_longer_than_the_ticket(house: Realm) -> None:
    short = house.ticket("alice", "secret", "-l", "600s")
    config = {"timeouts": {"idle_connection": "2h"}}
    with site(armed(house, persist="connection"), config=config) as s, s.connect() as c:
        assert c.get("/", logon(short)).status == 200
        s.clock.advance(590)
        assert c.get("/").status == 200
        s.clock.advance(311)  # clients may be 300 s behind, so that is what the library adds to the end
        assert c.get("/").status == 401


def test_a_connection_of_a_trusted_proxy_is_not_remembered(house: Realm, alice: Path) -> None:
    config = {"trusted_proxies": [PROXY]}
    with site(armed(house, persist="connection"), config=config, client_address=PROXY) as s, s.connect() as c:
        assert c.get("/", logon(alice)).status == 200
        assert c.get("/").status == 401
        leg = initiator(alice, HOST, flags=DCE | MUTUAL).step()
        assert c.get("/", {"Authorization": negotiate(leg)}).headers.get_all("WWW-Authenticate") == ["Negotiate"]
        assert refusal(s) == ("a handshake of several legs over a trusted proxy, whose connections carry many users")


def test_a_connection_of_any_proxy_is_nobodys(house: Realm, alice: Path) -> None:
    with site(armed(house, persist="connection")) as s, s.connect() as c:
        assert c.get("/", logon(alice) | {"Via": "1.1 somewhere"}).status == 200
        assert c.get("/").status == 401
        assert c.get("/", logon(alice)).status == 200
        assert c.get("/", {"Via": "1.1 somewhere"}).status == 401
        assert c.get("/").status == 200


def test_other_settings_make_a_connection_forget(house: Realm, alice: Path) -> None:
    client = initiator(alice, HOST, flags=DCE | MUTUAL)
    with site(armed(house, persist="connection")) as s, s.connect() as c, s.connect() as d:
        assert c.get("/", logon(alice)).status == 200
        leg = d.get("/", {"Authorization": negotiate(client.step())})
        s.reload(armed(house, persist="connection"))
        assert c.get("/").status == 200
        s.reload(armed(house, persist="connection", extended_protection="none"))
        assert c.get("/").status == 401
        assert d.get("/", {"Authorization": negotiate(client.step(proof(leg)))}).status == 401
        assert refusal(s) == "it is no first token, and no handshake is under way on this connection"


# ---------------------------------------------------------------------------------------------------- configuration


def complaint(house: Realm, **settings: Any) -> str:
    with pytest.raises(ConfigurationError) as caught, site(armed(house, **settings), scheme="http"):
        pass
    return str(caught.value)


def test_what_check_says_of_keytabs(house: Realm, tmp_path: Path) -> None:
    assert "there is no such keytab" in complaint(house, keytab=str(tmp_path / "none"))
    assert "it is not a regular file" in complaint(house, keytab=str(tmp_path))
    (tmp_path / "empty").write_bytes(b"\5\2")
    assert "has no keys" in complaint(house, keytab=str(tmp_path / "empty"))
    (tmp_path / "text").write_text("secret")
    assert "is no keytab" in complaint(house, keytab=str(tmp_path / "text"))
    keytab = house.service("HTTP/elsewhere.example", "host/elsewhere.example", keytab="elsewhere.keytab")
    said = " ".join(complaint(house, keytab=str(keytab)).split())
    assert "has no key for HTTP/test.example, for which clients of this site will have tickets (or say spns)" in said
    assert (
        "HTTP/elsewhere.example@TEST.FRONTD version 1 (aes256-cts-hmac-sha1-96, aes128-cts-hmac-sha1-96); "
        "host/elsewhere.example@TEST.FRONTD version 1" in said
    )
    with site(armed(house, keytab=str(keytab), spns=["HTTP/elsewhere.example"])):
        pass


def test_what_check_says_of_other_settings(house: Realm) -> None:
    assert "extended_protection: require needs TLS that ends here" in complaint(house, extended_protection="require")
    assert "is no service principal name; one is written HTTP/www.example.com" in complaint(
        house, spns=["test.example"]
    )
    assert "kerberos" in complaint(house, mechanisms=["digest"])


def test_the_log_says_which_keys_there_are(house: Realm) -> None:
    with site(armed(house)) as s:
        (remark,) = s.remarks
        assert "HTTP/test.example@TEST.FRONTD version 1 (aes256-cts-hmac-sha1-96, aes128-cts-hmac-sha1-96)" in remark
