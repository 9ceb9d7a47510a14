"""Basic against an Active Directory by LDAP: a front on a member of it, asked by a client over http.

Plays (the functions without ``test_``) happen on the member, see `tests.windows.ad`.
"""

from __future__ import annotations

import pytest

from tests.plugins.test_basic_domain import logons
from tests.windows.ad import NETBIOS, PASSWORDS, REALM, Domain

BASE = "dc=ad,dc=frontd,dc=test"
PRINCIPAL = f"{{user}}@{REALM.lower()}"


def verifier(domain: Domain, template: str = PRINCIPAL, more: str = f", groups: '{BASE}'") -> str:
    """The settings; Samba has made the certificate, and the authority that it is from, by itself."""
    ca = domain.folder / "dc/private/tls/ca.pem"
    return f"ldap: {{url: 'ldaps://dc1.ad.frontd.test', bind_dn: '{template}', ca: {ca}{more}}}"


@pytest.mark.parametrize("template", [PRINCIPAL, f"{NETBIOS}\\{{user}}", f"cn={{user}},cn=Users,{BASE}"])
def test_active_directory_says_who_it_is_and_in_which_groups(domain: Domain, template: str) -> None:
    told = domain.play(
        logons, verifier=verifier(domain, template), users=[(name, PASSWORDS["bob"]) for name in ("bob", "BOB")]
    )
    who = {"X-Remote-User": "bob", "X-Remote-Groups": "readers,webusers", "X-Auth-Scheme": "Basic"}
    assert told["answers"] == [[200, who]] * 2


def test_rules_see_sids_and_groups(domain: Domain) -> None:
    sid = domain.facts["groups"]["webusers"]
    for rule in (f"sid:{sid}", "group:webusers", "user:bob"):
        rules = f", {{authorize: [{{allow: ['{rule}']}}]}}"
        users = [(name, PASSWORDS[name]) for name in ("bob", "carol")]
        told = domain.play(logons, verifier=verifier(domain), users=users, more=rules)
        assert [status for status, _ in told["answers"]] == [200, 403]


def test_who_comes_under_the_name_of_another_is_himself(domain: Domain) -> None:
    """Evil has a userPrincipalName that would be the account name of a boss."""
    told = domain.play(logons, verifier=verifier(domain, more=""), users=[("boss", PASSWORDS["evil"])])
    assert told["answers"] == [[200, {"X-Remote-User": "evil", "X-Auth-Scheme": "Basic"}]]


def test_active_directory_refuses(domain: Domain) -> None:
    expected = [
        ("bob", "Bob-pass2", "the user name or password is wrong"),
        ("mallory", "Bob-pass1", "the user name or password is wrong"),
        ("dora", PASSWORDS["dora"], "dora: the account is disabled"),
        ("eve", PASSWORDS["eve"], "eve: the account has expired"),
        ("fred", PASSWORDS["fred"], "fred: the password has to be changed first"),
        ("bob@OTHER.TEST", PASSWORDS["bob"], "the user name is none of a person in Active Directory"),
    ]
    told = domain.play(logons, verifier=verifier(domain), users=[(user, password) for user, password, _ in expected])
    assert told["answers"] == [[401, {}]] * len(expected)
    lines = [line for line in told["log"].splitlines() if "LogonFailed" in line]
    assert [why in line for (_, _, why), line in zip(expected, lines, strict=True)] == [True] * len(expected)
    assert not any(password in told["log"] for _, password, _ in expected)
    assert "mallory" not in told["log"]
