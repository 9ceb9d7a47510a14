"""Games with paths never get past a rule: whatever an app takes for /admin/ is refused to those whom /admin/ refuses.

The apps here are models of real habits, written independently of the code they judge.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from urllib.parse import unquote, urlsplit

import pytest
from frontd_plugins.authorize import Authorize
from hypothesis import example, given
from hypothesis import strategies as st

import frontd
from frontd.model.urlprefix import canonical_path
from tests.plugins.exchanges import asked, placed

RULES = placed(
    Authorize,
    rules=[
        {"path": "/public/", "allow": ["anonymous"]},
        {"path": "/admin/", "allow": ["group:admins"]},
        {"allow": ["anonymous"]},
    ],
)


def normal(path: str) -> str:
    """Without dots and empty segments, as `realpath` without links."""
    return "/" + posixpath.normpath(path).lstrip("/")


def decodes(path: str) -> str:  # WSGI: PATH_INFO is decoded, routes are strings
    return unquote(path)


def decodes_and_normalises(path: str) -> str:  # nginx's $uri, Go's path.Clean
    return normal(unquote(path))


def normalises_first(path: str) -> str:
    return unquote(normal(path))


def servlet(path: str) -> str:  # Tomcat: parameters go before escapes are decoded
    return normal(unquote(re.sub(r";[^/]*", "", path)))


def decodes_then_drops_parameters(path: str) -> str:
    return normal(re.sub(r";[^/]*", "", unquote(path)))


def windows(path: str) -> str:
    names = unquote(path).replace("\\", "/").split("/")
    return normal("/".join(name if name in (".", "..") else name.rstrip(". ") for name in names))


def decodes_twice(path: str) -> str:
    return normal(unquote(unquote(path)).replace("\\", "/"))


def parses_again(path: str) -> str:
    return normal(urlsplit("http://a" + unquote(path)).path)


APPS: list[Callable[[str], str]] = [
    decodes, decodes_and_normalises, normalises_first, servlet, decodes_then_drops_parameters, windows, decodes_twice,
    parses_again,
]  # fmt: skip


def is_admin(path: str) -> bool:
    return path.lower() == "/admin" or path.lower().startswith("/admin/")


def taken_in(target: str) -> list[str]:
    """The apps that take a target for something below /admin/, given what is forwarded to them."""
    found = []
    for application in APPS:
        try:
            if is_admin(application(canonical_path(target))):
                found.append(application.__name__)
        except ValueError:  # urlsplit; and a path that is refused with 400 reaches no app
            continue
    return found


@pytest.mark.parametrize(
    ("target", "application"),
    [
        ("/%61dmin/", "decodes"),
        ("/x/../admin/", "decodes"),
        ("/x/%2e%2e/admin/", "decodes"),
        ("//admin/", "normalises_first"),
        ("/x%2f..%2fadmin", "decodes_and_normalises"),
        ("/admin%2f..", "decodes"),
        ("/public%2f..%2fadmin/x", "decodes_and_normalises"),
        ("/public/..%2fadmin/x", "decodes_and_normalises"),
        ("/admin;x/", "servlet"),
        ("/;/..;/admin/", "servlet"),
        ("/public/..;x=1/admin/", "servlet"),
        ("/admin%3bx/", "decodes_then_drops_parameters"),
        ("/admin./", "windows"),
        ("/admin%20/", "windows"),
        ("/public%255c..%255cadmin", "decodes_twice"),
        ("/%2561dmin", "decodes_twice"),
        ("/admin%3fx", "parses_again"),
        ("/admin%23x", "parses_again"),
    ],
)
def test_a_game_that_an_app_falls_for_is_refused(target: str, application: str) -> None:
    assert application in taken_in(target)
    for user, status in (("", 401), ("bob", 403)):
        answer = RULES.authorize(asked(target, user=user))
        assert isinstance(answer, frontd.Refuse)
        assert answer.status == status
    assert RULES.authorize(asked(target, user="alice", groups=["admins"])) == frontd.Allow()


@pytest.mark.parametrize(
    "target",
    [
        "/", "//", "/public//x", "/public;a=b/x", "/public/a%2Fb", "/caf%C3%A9/%20x", "/administer;/", "/x;admin/",
        "/public/admin/", "/x%2Fadmin", "/a.b./c", "/100%25", "/search/a%3Fb%23c", "/x/admin%2F",
    ],
)  # fmt: skip
def test_a_path_that_leads_elsewhere_passes_whatever_it_looks_like(target: str) -> None:
    assert taken_in(target) == []
    assert RULES.authorize(asked(target)) == frontd.Allow()


@pytest.mark.parametrize("target", ["/x%0aadmin", "/%c0%afadmin", "/%252525252561dmin" + "%2525" * 2000])
def test_a_path_that_could_be_anything_is_for_those_whom_every_rule_lets_in(target: str) -> None:
    answer = RULES.authorize(asked(target))
    assert isinstance(answer, frontd.Refuse)
    assert RULES.authorize(asked(target, user="alice", groups=["admins"])) == frontd.Allow()
    assert placed(Authorize, rules=[{"allow": ["anonymous"]}]).authorize(asked(target)) == frontd.Allow()


PARTS = [
    "/", "//", "/x", "/public", "/a%20b", ".", "..", "/.", "/..", "/admin", "admin", "ADMIN", ";", ";p=1", "%2f", "%2F",
    "%252f", "%5c", "%255c", "%2e", "%2e%2e", "%252e", "%3b", "%3f", "%23", "%20", "%25", "?q", "%61dmin", "%2561dmin",
    "x", "%0a", "%c3%a9",
]  # fmt: skip
BEFORE = ["/", "//", "/./", "/x/../", "/;/", "/x;/..;/", "/%2f", "/x%2f..%2f", "/%252f/"]
AFTER = ["", "/", "/x", ";a", ";/x", "%2f", "%2fx;y", "%3f", "%2523", ".", "%20/", "//"]


@given(st.lists(st.sampled_from(PARTS), max_size=8).map(lambda parts: "/" + "".join(parts)))
@example("/public/..;/..%2f;x/%61dmin%2f..")
def test_no_mixture_of_games_gets_anybody_in(target: str) -> None:
    try:
        exchange = asked(target)
    except frontd.FrontdError:
        return
    fooled = taken_in(exchange.request.target.decode().partition("?")[0])
    if fooled:
        assert isinstance(RULES.authorize(exchange), frontd.Refuse), fooled


@given(st.data())
def test_no_spelling_of_admin_gets_anybody_in(data: st.DataObject) -> None:
    """Every letter in any case and escaped up to three times, games between the segments."""
    spelt = "".join(
        data.draw(st.sampled_from([c, c.upper(), f"%{ord(c):02x}", f"%25{ord(c):02X}", f"%2525{ord(c):02X}"]))
        for c in "admin"
    )
    before, after = data.draw(st.sampled_from(BEFORE)), data.draw(st.sampled_from(AFTER))
    answer = RULES.authorize(asked(before + spelt + after, user="bob"))
    assert isinstance(answer, frontd.Refuse)
