"""Authorization rules: who decides, whom they name, and what is refused when the file is checked."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from frontd_plugins.authorize import Authorize
from frontd_plugins.basic import Basic
from frontd_plugins.negotiate import Negotiate
from frontd_plugins.ntlm import Ntlm
from hypothesis import given
from hypothesis import strategies as st

import frontd
from frontd.testing import ConfigurationError, site
from tests.plugins.exchanges import asked, complaints, placed
from tests.wire import app, front, one_pool

INTRANET: list[dict[str, Any]] = [
    {"path": "/public/", "allow": ["anonymous"]},
    {"path": "/admin/", "allow": ["group:CORP\\Web Admins"]},
    {"allow": ["authenticated"]},
]
ADMINS = ("CORP\\Web Admins",)
ALLOWED = frontd.Allow()
LOGON = 401
FORBIDDEN = 403


def status(rules: list[dict[str, Any]], target: str = "/", *, method: str = "GET", **who: Any) -> int:
    """What the rules say: 200 for "let in", else the status of the refusal."""
    answer = placed(Authorize, rules=rules).authorize(asked(target, method=method, **who))
    return 200 if answer == ALLOWED else answer.status if isinstance(answer, frontd.Refuse) else 0


class ByHeader(frontd.Plugin):
    """Believes what a field says: good enough for a test."""

    name = "by_header"

    def authenticate(self, exchange: frontd.Exchange) -> frontd.Identity | None:
        user = exchange.request.headers.text("x-test-user")
        groups = exchange.request.headers.text("x-test-groups")
        return frontd.Identity(user, tuple(groups.split(",")) if groups else ()) if user else None

    def challenge(self, exchange: frontd.Exchange) -> str:
        return "Test"


# ---------------------------------------------------------------------------------------------------- who decides


@pytest.mark.parametrize(
    ("target", "user", "groups", "expected"),
    [
        ("/public/page", "", (), 200),
        ("/public", "bob", (), 200),
        ("/publicity", "", (), LOGON),
        ("/", "", (), LOGON),
        ("/", "bob", (), 200),
        ("/admin/", "", (), LOGON),
        ("/admin", "bob", (), FORBIDDEN),  # he does not fall through to the rule for everything
        ("/ADMIN/x", "bob", (), FORBIDDEN),
        ("/admin/x", "alice", ADMINS, 200),
        ("/administer", "bob", (), 200),
    ],
)
def test_the_first_rule_that_covers_a_request_decides(
    target: str, user: str, groups: Iterable[str], expected: int
) -> None:
    assert status(INTRANET, target, user=user, groups=groups) == expected


def test_refusals_are_those_of_iis_and_the_log_says_which_rule() -> None:
    rules = placed(Authorize, rules=INTRANET)
    nobody = rules.authorize(asked("/admin/"))
    assert nobody == frontd.Refuse(401, "LogonRequired", substatus=2, log="rule 2 (/admin/)")
    assert rules.authorize(asked("/admin/", user="bob")) == frontd.Refuse(403, "Forbidden", log="rule 2 (/admin/)")


def test_a_request_that_no_rule_covers_is_refused() -> None:
    rules = [{"path": "/a/", "allow": ["anonymous"]}]
    assert status(rules, "/b", user="bob", groups=ADMINS) == FORBIDDEN
    assert status(rules, "/b") == LOGON
    assert status(rules, "/", user="bob") == FORBIDDEN


def test_deny_goes_before_allow() -> None:
    rules: list[dict[str, Any]] = [{"allow": ["authenticated"], "deny": ["bob", "group:guests"]}]
    assert status(rules, user="alice") == 200
    assert status(rules, user="BOB") == FORBIDDEN
    assert status(rules, user="carol", groups=["Guests"]) == FORBIDDEN
    everybody_else: list[dict[str, Any]] = [{"allow": ["anonymous"], "deny": ["bob"]}]
    assert status(everybody_else) == 200
    assert status(everybody_else, user="bob") == FORBIDDEN
    no_strangers: list[dict[str, Any]] = [{"allow": ["anonymous"], "deny": ["anonymous"]}]
    assert status(no_strangers) == LOGON
    assert status(no_strangers, user="bob") == 200
    assert status([{"allow": ["alice"], "deny": ["authenticated"]}], user="alice") == FORBIDDEN


def test_an_empty_allow_lets_nobody_in() -> None:
    assert status([{"path": "/", "allow": []}], user="alice", groups=ADMINS) == FORBIDDEN


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/page", 200),
        ("HEAD", "/page", 200),
        ("get", "/page", 200),
        ("POST", "/page", LOGON),
        ("PATCH", "/page", LOGON),
        ("OPTIONS", "/page", 200),
    ],
)
def test_methods_are_part_of_what_a_rule_covers(method: str, path: str, expected: int) -> None:
    rules = [{"methods": ["get", "OPTIONS"], "allow": ["anonymous"]}, {"allow": ["group:editors"]}]
    assert status(rules, path, method=method) == expected
    assert status(rules, path, method=method, user="e", groups=["editors"]) == 200


def test_a_rule_for_get_guards_head_and_odd_spellings_too() -> None:
    rules: list[dict[str, Any]] = [{"path": "/admin/", "methods": ["GET"], "allow": ["root"]}, {"allow": ["anonymous"]}]
    for method in ("GET", "HEAD", "get", "Head"):
        assert status(rules, "/admin/", method=method) == LOGON


# ---------------------------------------------------------------------------------------------------- names


def test_names_are_compared_as_windows_compares_accounts() -> None:
    rules = [{"allow": ["CORP\\Ärger", "group:Web Admins", "user:anonymous"]}]
    assert status(rules, user="corp\\äRGER") == 200
    assert status(rules, user="x", groups=["users", "WEB ADMINS"]) == 200
    assert status(rules, user="Anonymous") == 200
    assert status(rules, user="group:Web Admins") == FORBIDDEN
    assert status(rules, user="Web Admins") == FORBIDDEN
    assert status(rules, user="x", groups=["CORP\\Ärger"]) == FORBIDDEN
    assert status(rules) == LOGON


@pytest.mark.parametrize(
    ("name", "other"), [("mike", "mi\u212ae"), ("susi", "su\u017fi"), ("strasse", "straße"), ("bob", "ｂｏｂ")]
)
def test_letters_that_look_alike_open_nothing_and_hide_nobody(name: str, other: str) -> None:
    assert status([{"allow": [name]}], user=other) == FORBIDDEN
    assert status([{"allow": ["authenticated"], "deny": [name]}], user=other) == FORBIDDEN


def test_groups_of_a_domain_are_let_in_by_their_whole_name_and_refused_by_any() -> None:
    """Another domain may have a group of the same name."""
    assert status([{"allow": ["group:CORP\\staff"]}], user="x", groups=["corp\\Staff"]) == 200
    assert status([{"allow": ["group:CORP\\staff"]}], user="x", groups=["staff", "LAB\\staff"]) == FORBIDDEN
    assert status([{"allow": ["group:staff"]}], user="x", groups=["CORP\\staff"]) == FORBIDDEN
    denied = [{"allow": ["authenticated"], "deny": ["group:staff"]}]
    assert status(denied, user="x", groups=["CORP\\Staff"]) == FORBIDDEN
    assert status(denied, user="CORP\\staff", groups=["CORP\\others"]) == 200
    whole = [{"allow": ["authenticated"], "deny": ["group:CORP\\staff"]}]
    assert status(whole, user="x", groups=["LAB\\staff"]) == 200


SID = "S-1-5-21-1004336348-1177238915-682003330"


@pytest.mark.parametrize(
    ("sids", "expected"),
    [
        ((f"{SID}-1106",), 200),
        ((f"{SID}-512", f"{SID.lower()}-1106"), 200),
        ((f"{SID}-110",), FORBIDDEN),
        ((f"{SID}-11060", SID, ""), FORBIDDEN),
        ((f"{SID}-1106 ",), FORBIDDEN),
        ((), FORBIDDEN),
    ],
)
def test_security_identifiers_are_compared_whole(sids: tuple[str, ...], expected: int) -> None:
    assert status([{"allow": [f"sid:{SID}-1106"]}], user="x", sids=sids) == expected
    denied = [{"allow": ["authenticated"], "deny": [f"sid:s-{SID[2:]}-1106"]}]
    assert status(denied, user="x", sids=sids) == (FORBIDDEN if expected == 200 else 200)
    # a name is none, whatever it looks like
    assert status([{"allow": [f"sid:{SID}-1106"]}], user=f"{SID}-1106", groups=[f"{SID}-1106"]) == FORBIDDEN


# ---------------------------------------------------------------------------------------------------- the file


@pytest.mark.parametrize(
    ("rule", "sentence"),
    [
        ({"allow": ["grup:staff"]}, "before a colon stands `group`, `sid` or `user`"),
        ({"allow": ["group:"]}, "a name is expected right after the colon"),
        ({"allow": ["group: staff"]}, "a name is expected right after the colon"),
        ({"allow": ["sid:S-1-5"]}, "after `sid` stands a security identifier"),
        ({"allow": ["sid:S-1-5-32-"]}, "after `sid` stands a security identifier"),
        ({"allow": ["sid:S-2-5-32-544"]}, "after `sid` stands a security identifier"),
        ({"allow": ["sid:S-1-5-32-4294967296"]}, "after `sid` stands a security identifier"),
        ({"allow": ["sid:S-1-5-32-5\u0664\u0664"]}, "after `sid` stands a security identifier"),
        ({"allow": ["sid:staff"]}, "after `sid` stands a security identifier"),
        ({"allow": ["x"], "deny": ["sid:S-1-5" + "-1" * 16]}, "after `sid` stands a security identifier"),
        ({"allow": ["*"]}, "the words are `anonymous` (everybody) and `authenticated`"),
        ({"allow": ["?"]}, "the words are `anonymous` (everybody) and `authenticated`"),
        ({"allow": ["Anonymous"]}, "did you mean `anonymous`"),
        ({"allow": ["autenticated"]}, "A user of that name is user:autenticated"),
        ({"allow": [""]}, "without blanks around it"),
        ({"allow": ["x"], "deny": ["group:"]}, "a name is expected right after the colon"),
        ({"deny": ["x"]}, "the key `allow` is missing"),
        ({"allow": ["x"], "methods": ["GET POST"]}, "is not a method"),
        ({"allow": ["x"], "methods": [""]}, "is not a method"),
        ({"allow": ["x"], "path": "admin"}, "a path prefix begins with /"),
        ({"allow": ["x"], "path": "/a?b"}, "no query"),
        ({"allow": ["x"], "path": "/a;b/"}, "can be read in more than one way"),
        ({"allow": ["x"], "path": "/a//b/"}, "can be read in more than one way"),
        ({"allow": ["x"], "path": "/a./b/"}, "can be read in more than one way"),
        ({"allow": ["x"], "path": "/%2561/"}, "can be read in more than one way"),
        ({"allow": ["x"], "verbs": ["GET"]}, "unknown key"),
    ],
)
def test_a_wrong_rule_is_told_in_a_sentence(rule: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigurationError) as told, site([{ByHeader: {}}, {"authorize": [rule]}]):
        pass
    assert sentence in str(told.value)


def test_rules_where_nobody_can_log_on_are_an_error_with_its_remedy() -> None:
    with pytest.raises(ConfigurationError) as told, site({"authorize": [{"allow": ["authenticated"]}]}):
        pass
    assert "nobody can log on to this site" in str(told.value)
    assert "`basic`" in str(told.value)


@pytest.mark.parametrize(
    ("rules", "sentence"),
    [
        ([{"allow": ["x"]}, {"path": "/a/", "allow": ["y"]}], "rule 2 (/a/) is never asked: rule 1 (/) covers"),
        (
            [{"path": "/A", "methods": ["GET"], "allow": []}, {"path": "/a/b", "methods": ["HEAD"], "allow": []}],
            "rule 2 (/a/b/) is never asked: rule 1 (/A/) covers",
        ),
    ],
)
def test_a_rule_that_an_earlier_one_hides_is_an_error(rules: list[dict[str, Any]], sentence: str) -> None:
    (told,) = complaints(Authorize, rules=rules)
    assert told.startswith(sentence)


def test_rules_that_only_overlap_are_none() -> None:
    rules = [
        {"path": "/a/b/", "allow": ["x"]},
        {"path": "/a/", "methods": ["GET"], "allow": ["x"]},
        {"path": "/a/", "methods": ["GET", "POST"], "allow": ["y"]},
        {"path": "/a/", "allow": ["z"]},
        {"allow": ["anonymous"]},
    ]
    assert complaints(Authorize, rules=rules) == []


@given(st.text(st.sampled_from("/abA."), max_size=12), st.sampled_from(["/", "/a/", "/a/b/", "/B/a.b/"]))
def test_paths_are_covered_as_routes_cover_them(text: str, prefix: str) -> None:
    request = asked("/" + text.lstrip("/")).request
    readings = frontd.path_readings(request.path)
    if readings is None or len(readings) > 1:
        return
    expected = frontd.PathTable([(prefix, True)]).match(request.path)
    assert status([{"path": prefix, "allow": ["anonymous"]}], request.target.decode()) == (200 if expected else LOGON)


# ---------------------------------------------------------------------------------------------------- on a site


def test_a_whole_site_in_memory() -> None:
    with site([{ByHeader: {}}, {"authorize": INTRANET}]) as it:
        answer = it.get("/")
        assert (answer.status, answer.headers["www-authenticate"]) == (401, "Test")
        assert (it.log[-1].reason, it.log[-1].substatus, it.log[-1].detail) == ("LogonRequired", 2, "rule 3 (/)")
        assert it.get("/public/").status == 200
        assert it.get("/admin/", {"X-Test-User": "bob"}).status == 403
        assert (it.log[-1].reason, it.log[-1].user) == ("Forbidden", "bob")
        answer = it.get("/admin/", {"X-Test-User": "alice", "X-Test-Groups": "corp\\web admins"})
        assert answer.upstream is not None
        assert answer.upstream.headers["x-remote-user"] == "alice"


async def test_the_same_on_real_sockets_kept_alive(tmp_path: Path, autojump_clock: object) -> None:
    (tmp_path / "by_header.py").write_text(
        "import frontd\n"
        "class ByHeader(frontd.Plugin):\n"
        "    name = 'by_header'\n"
        "    def authenticate(self, exchange):\n"
        "        user = exchange.request.headers.text('x-test-user')\n"
        "        return frontd.Identity(user) if user else None\n"
        "    def challenge(self, exchange):\n"
        "        return 'Test'\n"
    )
    plugins = "plugins: [by_header, {authorize: [{path: /admin/, allow: [root]}, {allow: [anonymous]}]}]"
    async with app() as it:
        text = one_pool(it.url, site=plugins, extra=f"plugins_dir: {tmp_path}")
        async with front(text, tmp_path) as stage:
            line = await stage.connect()
            for path in ("/admin", "//admin/x", "/%61dmin", "/x/..%2fadmin", "/a;b/../admin;c", "/ADMIN%2f.."):
                head, _ = await line.get(path)
                assert head.startswith(b"HTTP/1.1 401 "), path
                assert b"\r\nWWW-Authenticate: Test\r\n" in head
                head, _ = await line.get(path, "X-Test-User: bob")
                assert head.startswith(b"HTTP/1.1 403 "), path
            assert it.heads == []
            head, _ = await line.get("/admin", "X-Test-User: root")
            assert head.startswith(b"HTTP/1.1 200 ")
            head, _ = await line.get("/")
            assert head.startswith(b"HTTP/1.1 200 ")
            assert [b"X-Remote-User: root\r\n" in head for head in it.heads] == [True, False]


# ---------------------------------------------------------------------------------------------------- denied in vain

GROUPS, SIDS = frozenset({"groups"}), frozenset({"sids"})


@pytest.mark.parametrize(
    ("untold", "allow", "deny", "void"),
    [
        (GROUPS, ["authenticated"], ["group:trainees"], "groups"),
        (GROUPS, ["alice"], ["group:trainees", "bob"], "groups"),
        (GROUPS, [f"sid:{SID}-1"], ["group:trainees"], "groups"),
        (SIDS, ["authenticated"], [f"sid:{SID}-2"], "SIDs"),
        (GROUPS | SIDS, ["authenticated"], ["group:trainees", f"sid:{SID}-2"], "groups and no SIDs"),
        (GROUPS, ["authenticated"], ["group:trainees", f"sid:{SID}-2"], ""),  # each way has its word
        (GROUPS, ["group:staff"], ["group:trainees"], ""),  # nobody without groups gets in
        (GROUPS, ["authenticated"], ["bob"], ""),
        (frozenset(), ["authenticated"], ["group:trainees"], ""),
    ],
)
def test_a_deny_that_an_authenticator_makes_void(
    untold: frozenset[str], allow: list[str], deny: list[str], void: str
) -> None:
    rules = [{"path": "/admin/", "allow": allow, "deny": deny}]
    found = complaints(Authorize, untold={"negotiate": untold}, rules=rules)
    assert len(found) == bool(void)
    if void:
        assert f"rule 1 (/admin/) denies in vain whoever logs on by `negotiate`, which tells no {void}" in found[0]


def test_what_authenticators_do_not_tell() -> None:
    users: dict[str, Any] = {"users_file": Path("users")}
    winbind: dict[str, Any] = {"winbind": {}}
    kerberos = {"kerberos": {"realm": "A.TEST", "keytab": "k", "spn": "HTTP/a.test"}}
    told: list[tuple[type[frontd.Plugin], dict[str, Any], frozenset[str]]] = [
        (Basic, users, SIDS), (Basic, winbind, frozenset()), (Basic, kerberos, GROUPS),
        (Ntlm, users, SIDS), (Ntlm, {"verifier": "winbind"}, frozenset()),
        (Negotiate, {"keytab": "k"}, GROUPS),
        (Negotiate, {"keytab": "k", "mechanisms": ["kerberos", "ntlm"], "ntlm": users}, GROUPS | SIDS),
        (Negotiate, {"keytab": "k", "mechanisms": ["kerberos", "ntlm"], "ntlm": {"verifier": "winbind"}}, GROUPS),
    ]  # fmt: skip
    for plugin, settings, lacking in told:
        assert plugin.untold(plugin.Settings.model_validate(settings)) == lacking


class ByTicket(ByHeader):
    """Knows no names of groups."""

    name = "by_ticket"

    @classmethod
    def untold(cls, settings: Any) -> frozenset[str]:
        return GROUPS


class Faulty(ByHeader):
    """Does not know what it knows."""

    name = "faulty"

    @classmethod
    def untold(cls, settings: Any) -> frozenset[str]:
        raise RuntimeError


def test_check_knows_the_authenticators_of_the_site() -> None:
    rules = {"authorize": [{"allow": ["authenticated"], "deny": ["group:trainees"]}]}
    for plugin in (ByTicket, Faulty):
        with (
            pytest.raises(ConfigurationError, match=f"in vain whoever logs on by `{plugin.name}`"),
            site([{plugin: {}}, rules]),
        ):
            pass
    with site([{ByHeader: {}}, rules]):
        pass
