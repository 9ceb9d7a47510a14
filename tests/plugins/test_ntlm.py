"""The plugin ntlm on a site: whose a connection is, and for how long; whatever ends a handshake; what nobody learns."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from frontd_plugins._ntlm_crypto import nt_hash

from frontd.testing import Answer, Client, ConfigurationError, SiteUnderTest, site
from tests.plugins.logons import basic_field
from tests.plugins.ntlmclients import (
    NTLM,
    OEM,
    Forger,
    acceptor,
    begun,
    challenge_of,
    field_of,
    logon,
    step,
    type1,
    windows,
)

ALICE = f"alice:{nt_hash('secret').hex()}:staff,admins\n"
BOB = f"CORP\\bob:{nt_hash('hunter2').hex().upper()}\n"
BASIC = "carol:$2b$04$D.UrDdBPSizbCV0OfHGL1e4gvfPkFM9TrrURVFwFgSmgjxLXm4JMq\n"


@pytest.fixture
def users(tmp_path: Path) -> Path:
    (tmp_path / "users").write_text(ALICE + BOB)
    return tmp_path / "users"


@pytest.fixture
def there(users: Path) -> Iterator[SiteUnderTest]:
    with site({"ntlm": {"users_file": str(users)}}) as s:
        yield s


def who(answer: Answer) -> str | None:
    """The user that the app was told of; None: it was not asked."""
    assert (answer.status == 200) is (answer.upstream is not None)
    return answer.upstream.headers["X-Remote-User"] if answer.upstream else None


def why(there: SiteUnderTest) -> str:
    """What the log says of the last request, which was refused."""
    assert (there.log[-1].status, there.log[-1].reason, there.log[-1].user) == (401, "LogonFailed", None)
    return there.log[-1].detail


# ---------------------------------------------------------------------------------------------------- whose it is


def test_a_logon_is_of_the_connection(there: SiteUnderTest) -> None:
    with there.connect() as line, there.connect() as other:
        first = line.get("/")
        assert (first.status, first.headers.get_all("WWW-Authenticate")) == (401, ["NTLM"])
        assert there.log[-1].reason == "LogonRequired"
        answer = logon(line)
        assert who(answer) == "alice"
        assert answer.upstream is not None
        assert answer.upstream.headers["X-Remote-Groups"] == "staff,admins"
        assert answer.upstream.headers["X-Auth-Scheme"] == "NTLM"
        assert "Authorization" not in answer.upstream.headers
        assert who(line.get("/again")) == "alice"
        assert who(line.post("/again", b"body")) == "alice"
        assert other.get("/").status == 401
        assert who(logon(other, "CORP\\bob", "hunter2")) == "CORP\\bob"
        assert who(line.get("/")) == "alice"
        assert there.log[-1].user == "alice"


def test_a_logon_of_one_request(users: Path) -> None:
    with site({"ntlm": {"users_file": str(users), "persist": "request"}}) as s, s.connect() as line:
        assert who(logon(line)) == "alice"
        assert line.get("/").status == 401
        assert who(logon(line)) == "alice"


@pytest.mark.parametrize("name", ["alice", "ALICE", ".\\Alice", "FRONTD\\alice", "frontd\\aLice"])
def test_names_of_this_server(there: SiteUnderTest, name: str) -> None:
    with there.connect() as line:
        assert who(logon(line, name)) == "alice"


@pytest.mark.parametrize(
    ("name", "password"),
    [
        ("OTHER\\alice", "secret"), ("CORP\\alice", "secret"), ("bob", "hunter2"), ("FRONTD\\bob", "hunter2"),
        ("alice", "Secret"), ("alice", ""), ("CORP\\bob", "secret"), ("mallory", "secret"), ("alice@CORP", "secret"),
    ],
)  # fmt: skip
def test_who_is_not_let_in(there: SiteUnderTest, name: str, password: str) -> None:
    with there.connect() as line:
        client = windows(name, password)
        answer = line.get("/", field_of(step(client, challenge_of(line.get("/", field_of(step(client)))))))
        assert (answer.status, answer.headers.get_all("WWW-Authenticate")) == (401, ["NTLM"])
        assert why(there).startswith("NTLM, leg 2: ")
        assert line.get("/").status == 401


def test_a_domain_of_our_own(users: Path) -> None:
    with site({"ntlm": {"users_file": str(users), "domain": "office", "computer": "web1"}}) as s, s.connect() as line:
        assert "OFFICE".encode("utf-16-le") in begun(line)
        for name in ("OFFICE\\alice", "web1\\alice", "alice"):
            assert who(logon(line, name)) == "alice"


def test_rules_see_names_and_groups(users: Path) -> None:
    rules = [{"path": "/public/", "allow": ["anonymous"]}, {"allow": ["group:staff"]}]
    with site({"ntlm": {"users_file": str(users)}, "authorize": rules}) as s, s.connect() as line:
        assert line.get("/public/x").status == 200
        assert line.get("/private").status == 401
        assert logon(line, path="/private").status == 200
        assert logon(line, "CORP\\bob", "hunter2", path="/private").status == 403


def test_a_client_like_curl(there: SiteUnderTest) -> None:
    with there.connect() as line:
        type2 = begun(line, type1(OEM | NTLM))
        assert who(line.get("/", field_of(Forger().type3(type2)))) == "alice"


def test_a_post_sends_its_body_once_it_may(there: SiteUnderTest) -> None:
    """Browsers send the first leg of a POST without its body."""
    with there.connect() as line:
        client = windows()
        type2 = challenge_of(line.post("/form", b"", field_of(step(client))))
        answer = line.post("/form", b"x" * 1000, field_of(step(client, type2)))
        assert who(answer) == "alice"
        assert answer.upstream is not None
        assert answer.upstream.body == b"x" * 1000


def test_the_app_is_away_during_the_handshake(there: SiteUnderTest) -> None:
    with there.connect() as line:
        there.app.stop()
        type2 = begun(line)
        there.app.start()
        assert who(line.get("/", field_of(Forger().type3(type2)))) == "alice"
        there.app.stop()
        there.app.start()
        assert who(line.get("/")) == "alice"


# ---------------------------------------------------------------------------------------------------- what ends it

ODD = {
    "nothing": "NTLM",
    "a blank": "NTLM ",
    "no base64": "NTLM ****",
    "urlsafe": "NTLM _-_-",
    "half a letter": "NTLM A",
    "no message": f"NTLM {base64.b64encode(b'hello').decode()}",
    "a second message": f"NTLM {base64.b64encode(b'NTLMSSP' + bytes(1) + bytes((2,)) + bytes(60)).decode()}",
    "nobody": field_of(Forger(user="", nt=b"").type3(acceptor().challenge(type1())))["Authorization"],
    "9 KiB": "NTLM " + "A" * 12000,
    "bytes": "NTLM \xe9\xff",
}


@pytest.mark.parametrize("before", ["nobody", "a handshake", "a user"])
def test_whatever_is_wrong_leaves_nobody_logged_on(there: SiteUnderTest, before: str) -> None:
    for odd in ODD.values():
        _wrong(there, odd, before)


def _wrong(there: SiteUnderTest, odd: str, before: str) -> None:
    with there.connect() as line:
        type2 = begun(line) if before == "a handshake" else b""
        if before == "a user":
            assert who(logon(line)) == "alice"
        line.send(f"GET / HTTP/1.1\r\nHost: test.example\r\nAuthorization: {odd}\r\n\r\n".encode("latin-1"))
        answer = line.receive()
        assert (answer.status, answer.headers.get_all("WWW-Authenticate")) == (401, ["NTLM"])
        assert why(there).startswith(f"NTLM, leg {2 if before == 'a handshake' else 1}: ")
        assert line.get("/").status == 401
        if type2:
            assert line.get("/", field_of(Forger().type3(type2))).status == 401
            assert "of type 3 where type 1 is due" in why(there)
        assert who(logon(line)) == "alice"  # and the connection is as good as new


@pytest.mark.parametrize(
    "fields",
    [
        [("Authorization", "Basic YWxpY2U6c2VjcmV0")],
        [("Authorization", "Negotiate YII=")],
        [("Authorization", "")],
        [("Authorization", "NTLMv2 AAAA")],
        [("Authorization", "NTLM AAAA"), ("Authorization", "NTLM AAAA")],
    ],
)
def test_another_authorization_ends_the_logon(there: SiteUnderTest, fields: list[tuple[str, str]]) -> None:
    with there.connect() as line:
        logon(line)
        assert line.get("/", fields).status == 401
        assert line.get("/").status == 401


def test_a_logon_that_fails_ends_the_one_before(there: SiteUnderTest) -> None:
    with there.connect() as line:
        logon(line)
        begun(line)
        assert line.get("/").status == 401  # from the first leg on
        logon(line)
        logon(line, password="wrong")
        assert why(there) == "NTLM, leg 2: the password for alice is wrong"
        assert line.get("/").status == 401


def test_a_request_without_credentials_in_the_middle_is_nobodys(there: SiteUnderTest) -> None:
    with there.connect() as line:
        type2 = begun(line)
        assert line.get("/").status == 401
        assert who(line.get("/", field_of(Forger().type3(type2)))) == "alice"


def test_the_messages_of_one_connection_on_another(there: SiteUnderTest) -> None:
    with there.connect() as line, there.connect() as other, there.connect() as third:
        type3 = Forger().type3(begun(line))
        assert other.get("/", field_of(type3)).status == 401  # the third message first
        assert "of type 3 where type 1 is due" in why(there)
        begun(third)
        assert third.get("/", field_of(type3)).status == 401  # to another challenge
        assert why(there) == "NTLM, leg 2: the password for alice is wrong"
        assert who(line.get("/", field_of(type3))) == "alice"
        assert line.get("/", field_of(type3)).status == 401  # a second time
        assert line.get("/").status == 401


def test_the_first_message_twice(there: SiteUnderTest) -> None:
    with there.connect() as line:
        type2 = begun(line)
        another = begun(line)  # the client begins anew, with another challenge
        assert line.get("/", field_of(Forger().type3(type2))).status == 401
        assert why(there) == "NTLM, leg 2: the password for alice is wrong"
        assert line.get("/", field_of(Forger().type3(another))).status == 401
        assert "of type 3 where type 1 is due" in why(there)


def test_a_challenge_gets_old(there: SiteUnderTest) -> None:
    with there.connect() as line:
        type2 = begun(line)
        there.clock.advance(29)
        assert who(line.get("/", field_of(Forger().type3(type2)))) == "alice"
        type2 = begun(line)
        there.clock.advance(31)
        assert line.get("/", field_of(Forger().type3(type2))).status == 401
        assert "was out for more than 30 s" in why(there)
        begun(line)
        there.clock.advance(31)
        assert who(logon(line)) == "alice"  # another attempt is none of that


def test_legs_that_do_not_wait_for_each_other(there: SiteUnderTest) -> None:
    """A pipeline can only guess at the challenge."""
    with there.connect() as line:
        type3 = Forger().type3(begun(line))
        assert line.get("/", field_of(b"")).status == 401
        parts = [
            f"GET /{number} HTTP/1.1\r\nHost: test.example\r\n{extra}\r\n"
            for number, extra in enumerate(
                (f"Authorization: {field_of(message)['Authorization']}\r\n" if message else "")
                for message in (type1(), type3, b"")
            )
        ]
        line.send("".join(parts).encode())
        assert [line.receive().status for _ in range(3)] == [401, 401, 401]
        assert there.app.requests == []


def test_old_protocols(there: SiteUnderTest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LM_COMPAT_LEVEL", "2")
    with there.connect() as line:
        assert logon(line).status == 401
        assert why(there) == "NTLM, leg 2: no NTLMv2 response, but NTLMv1 or LM"


def test_nothing_is_remembered_of_an_address(there: SiteUnderTest) -> None:
    with there.connect() as line:
        begun(line)
    with there.connect() as line:
        assert line.get("/").status == 401


# ---------------------------------------------------------------------------------------------------- proxies


def test_a_request_through_a_proxy_is_of_nobody_else(there: SiteUnderTest) -> None:
    via = {"Via": "1.1 squid"}
    with there.connect() as line:
        logon(line)
        assert line.get("/", via).status == 401
        assert who(line.get("/")) == "alice"
        type2 = challenge_of(line.get("/", {**field_of(type1()), **via}))
        assert who(line.get("/", {**field_of(Forger().type3(type2)), **via})) == "alice"
        assert line.get("/", via).status == 401
        assert line.get("/").status == 401


def test_a_trusted_proxy_gets_no_ntlm(users: Path) -> None:
    config = {"trusted_proxies": ["192.0.2.1"]}
    with site({"ntlm": {"users_file": str(users)}}, config=config) as s, s.connect() as line:
        answer = line.get("/")
        assert (answer.status, answer.headers.get_all("WWW-Authenticate")) == (401, [])
        assert line.get("/", field_of(type1())).status == 401
        assert "a connection from a trusted proxy carries many users" in why(s)
        assert len([remark for remark in s.remarks if "not offered NTLM" in remark]) == 1
        with s.connect(client_address="192.0.2.2") as own:
            assert who(logon(own)) == "alice"


# ---------------------------------------------------------------------------------------------------- guesses


def test_guesses_are_slowed_down(users: Path) -> None:
    with site({"ntlm": {"users_file": str(users), "failures_per_user": 3}}) as s, s.connect() as line:
        for name in ("alice", "ALICE", "FRONTD\\alice"):  # however it is spelt
            assert logon(line, name, "wrong").status == 401
        answer = logon(line)
        assert (answer.status, answer.headers["Retry-After"], s.log[-1].reason) == (429, "20", "LogonThrottled")
        assert line.get("/").status == 401
        with s.connect(client_address="192.0.2.2") as elsewhere:
            assert who(logon(elsewhere)) == "alice"
        assert who(logon(line, "CORP\\bob", "hunter2")) == "CORP\\bob"
        for _ in range(3):
            assert logon(line, "mallory", "wrong").status == 401
        assert logon(line, "mallory", "wrong").status == 429  # strangers are counted alike
        s.clock.advance(20)
        for _ in range(5):  # right ones are not counted
            assert who(logon(line)) == "alice"


def test_a_client_cannot_tell_a_stranger_from_a_wrong_password(there: SiteUnderTest) -> None:
    pages = []
    for name in ("alice", "the-password-in-the-wrong-field"):
        with there.connect() as line:
            answer = logon(line, name, "wrong")
            pages.append((answer.status, answer.text.split("Request:")[0], answer.headers["WWW-Authenticate"]))
    assert pages[0] == pages[1]
    assert there.log[-1].detail == "NTLM, leg 2: there is no such user"
    assert "the-password" not in str(there.log)


# ---------------------------------------------------------------------------------------------------- changes


def replaced(path: Path, text: str) -> None:
    beside = path.with_name("beside")
    beside.write_text(text)
    beside.replace(path)


def noted(there: SiteUnderTest, what: str, count: int = 1) -> None:
    """Let the clock go on until the file was read again; it is read in a thread."""
    for _ in range(500):
        if sum(what in remark for remark in there.remarks) >= count:
            return
        there.clock.advance(1)
    raise AssertionError(there.remarks)


def test_whoever_is_taken_from_the_file_is_out(there: SiteUnderTest, users: Path) -> None:
    with there.connect() as line, there.connect() as other:
        logon(line)
        logon(other, "CORP\\bob", "hunter2")
        replaced(users, BOB)
        noted(there, "read again, users: 1")
        assert line.get("/").status == 401
        assert who(other.get("/")) == "CORP\\bob"  # and nobody else
        replaced(users, ALICE.replace("staff", "guests") + BOB)
        noted(there, "read again, users: 2")
        assert line.get("/").status == 401
        answer = logon(line)
        assert answer.upstream is not None
        assert answer.upstream.headers["X-Remote-Groups"] == "guests,admins"


def test_a_broken_file_changes_nothing(there: SiteUnderTest, users: Path) -> None:
    with there.connect() as line:
        logon(line)
        replaced(users, "alice:secret\n")
        noted(there, "the users that were read before stay")
        assert who(line.get("/")) == "alice"
        assert who(logon(line)) == "alice"
        assert "secret" not in str(there.remarks)


def test_a_reload(there: SiteUnderTest, users: Path) -> None:
    equal = {"ntlm": {"users_file": str(users)}}
    with there.connect() as line, there.connect() as other:
        logon(line)
        type2 = begun(other)
        there.reload({**equal, "headers": {"set_response": {"X-New": "1"}}})
        assert who(line.get("/")) == "alice"
        assert who(other.get("/", field_of(Forger().type3(type2)))) == "alice"
        type2 = begun(other)
        there.reload({"ntlm": {"users_file": str(users), "persist": "request"}})
        assert line.get("/").status == 401
        assert other.get("/", field_of(Forger().type3(type2))).status == 401


# ---------------------------------------------------------------------------------------------------- beside others


def test_beside_basic(users: Path, tmp_path: Path) -> None:
    from frontd_plugins import _passwords as passwords

    (tmp_path / "basic").write_text(f"carol:{passwords.make('pass', cost=4)}\n")
    plugins = {"ntlm": {"users_file": str(users)}, "basic": {"users_file": str(tmp_path / "basic")}}
    with site(plugins) as s, s.connect() as line:
        offered = line.get("/").headers.get_all("WWW-Authenticate")
        assert [value.split(" ")[0] for value in offered] == ["NTLM", "Basic"]
        assert who(line.get("/", {"Authorization": basic_field("carol", "pass").decode()})) == "carol"
        client = windows()
        type2 = base64.b64decode(line.get("/", field_of(step(client))).headers["WWW-Authenticate"].split(" ")[1])
        assert who(line.get("/", field_of(step(client, type2)))) == "alice"
        assert who(line.get("/", {"Authorization": basic_field("carol", "pass").decode()})) == "carol"
        assert line.get("/").status == 401  # alice left when carol came


# ---------------------------------------------------------------------------------------------------- the configuration


def complaint(settings: dict[str, Any], **more: Any) -> str:
    with pytest.raises(ConfigurationError) as caught, site({"ntlm": settings}, **more):
        pass
    return str(caught.value)


def test_what_a_configuration_may_not_say(users: Path) -> None:
    good = {"users_file": str(users)}
    told = complaint({**good, "extended_protection": "require"}, scheme="http")
    assert "binds a logon to a TLS connection that ends here, and http://test.example" in told
    urls = ["https://test.example/", "http://test.example/"]
    assert "http://test.example" in complaint({**good, "extended_protection": "require"}, urls=urls)
    assert "there is no such users file; make it with: frontd passwd --ntlm" in complaint({"users_file": "none"})
    for wrong in ({"computer": ""}, {"computer": "a b"}, {"domain": "much-too-long-for-it"}, {"spns": ["www"]}):
        assert "ntlm" in complaint({**good, **wrong})
    for line in (BASIC, "alice:secret\n", f"a\\b\\c:{'0' * 32}\n", f"\\alice:{'0' * 32}\n", ALICE + ALICE):
        users.write_text(line)
        told = complaint(good)
        assert str(users) in told
        assert "secret" not in told
        assert "$2b$" not in told
    users.write_text(ALICE + ALICE.replace("alice", "FRONTD\\Alice"))
    assert "alice and FRONTD\\Alice are one user" in complaint(good)


def test_without_md5(users: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import hashlib

    def forbidden(*_: object) -> None:
        raise ValueError("[digital envelope routines] unsupported")

    monkeypatch.setattr(hashlib, "md5", forbidden)
    assert "forbids MD5 (FIPS mode)" in complaint({"users_file": str(users)})


def test_requirements_that_a_client_does_not_meet(users: Path) -> None:
    with site({"ntlm": {"users_file": str(users), "require_mic": True}}) as s, s.connect() as line:
        assert line.get("/", field_of(Forger().type3(begun(line)))).status == 401
        assert "require_mic" in why(s)
        assert who(logon(line)) == "alice"
    with site({"ntlm": {"users_file": str(users), "spns": ["HTTP/other.example"]}}) as s, s.connect() as line:
        assert logon(line).status == 401
        assert "the client meant another service: 'HTTP/test.example'" in why(s)


def test_an_empty_file_lets_nobody_in(users: Path) -> None:
    users.write_text("# nobody yet\n\n")
    with site({"ntlm": {"users_file": str(users)}}) as s, s.connect() as line:
        assert logon(line).status == 401


def test_bytes_one_by_one(there: SiteUnderTest) -> None:
    with there.connect() as line:
        type2 = challenge_of(line.get("/", field_of(type1()), split=1))
        assert who(line.get("/", field_of(Forger().type3(type2)), split=7)) == "alice"


def test_a_client_that_leaves_before_the_answer(there: SiteUnderTest) -> None:
    line = there.connect()
    token = field_of(Forger().type3(begun(line)))["Authorization"]
    line.send(f"GET / HTTP/1.1\r\nHost: test.example\r\nAuthorization: {token}\r\n\r\n".encode())
    line.abandon()
    assert isinstance(line, Client)
    with there.connect() as other:
        assert other.get("/").status == 401
