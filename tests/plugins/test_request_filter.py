"""IIS request filtering: each rule with its number, and the ways around it that are closed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from frontd_plugins.request_filter import EXTENSIONS, SEGMENTS, RequestFilter
from hypothesis import given
from hypothesis import strategies as st

import frontd
from frontd.testing import ConfigurationError, site
from tests.plugins.exchanges import asked, complaints, placed
from tests.wire import app, front, one_pool


def number(target: str, *fields: str, method: str = "GET", **settings: Any) -> int:
    """The substatus that the filter refuses with; 0: it does not."""
    answer = placed(RequestFilter, **settings).filter_request(asked(target, *fields, method=method))
    if answer is None:
        return 0
    assert (answer.status, answer.word) == (404, frontd.Reason.Rejected)
    assert answer.log
    return answer.substatus


@pytest.mark.parametrize(
    "target",
    [
        "/", "/index.html", "/a/b.c/d", "/caf%C3%A9", "/a+b", "/a%20b.pdf", "/50%25off", "/config", "/bindings/",
        "/.well-known/acme-challenge/x", "/gitignore", "/x?file=web.config", "/x?a=%2527",
    ],
)  # fmt: skip
def test_without_settings_ordinary_requests_pass(target: str) -> None:
    assert number(target) == 0


# ---------------------------------------------------------------------------------------------------- verbs


@pytest.mark.parametrize(
    ("method", "settings", "expected"),
    [
        ("TRACK", {"deny_verbs": ["track"]}, 6),
        ("track", {"deny_verbs": ["TRACK"]}, 6),
        ("GET", {"deny_verbs": ["TRACK"]}, 0),
        ("GET", {"allow_verbs": ["GET", "HEAD"]}, 0),
        ("POST", {"allow_verbs": ["GET", "HEAD"]}, 6),
        ("get", {"allow_verbs": ["GET", "HEAD"]}, 6),  # methods are case-sensitive, so this is another one
        ("GETX", {"allow_verbs": ["GET"]}, 6),
    ],
)
def test_verbs(method: str, settings: dict[str, Any], expected: int) -> None:
    assert number("/", method=method, **settings) == expected


# ---------------------------------------------------------------------------------------------------- the path


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/a%252eb", 11),
        ("/%2561", 11),
        ("/%25%36%31", 11),
        ("/x%250a", 11),
        ("/x%0a", 11),
        ("/%c0%af", 11),
        ("/100%25", 0),
    ],
)
def test_double_escaping(target: str, expected: int) -> None:
    assert number(target) == expected


def test_double_escaping_may_be_allowed_and_then_hides_nothing() -> None:
    assert number("/%2561", allow_double_escaping=True) == 0
    assert number("/web%252econfig", allow_double_escaping=True) == 8
    assert number("/x%0a", allow_double_escaping=True) == 11  # that is no escape of an escape but no name at all


def test_high_bit_characters() -> None:
    assert number("/caf%C3%A9", allow_high_bit=False) == 12
    assert number("/caf%E9", allow_high_bit=False) == 12
    assert number("/caf%25C3%25A9", allow_high_bit=False, allow_double_escaping=True) == 12
    assert number("/caf%7E?%C3%A9", allow_high_bit=False) == 0


@pytest.mark.parametrize("segment", sorted(SEGMENTS))
def test_every_default_segment_is_hidden_and_only_as_a_whole(segment: str) -> None:
    assert number(f"/x/{segment.upper()}/y") == 8
    assert number(f"/x/y{segment.strip('.')}x/y") == 0


@pytest.mark.parametrize("extension", sorted(EXTENSIONS))
def test_every_default_extension_is_refused_and_only_at_the_end(extension: str) -> None:
    assert number(f"/x/y{extension.upper()}") == 7
    assert number(f"/x/y{extension}0") == 0
    assert number(f"/x/y{extension}", default_lists=False) == 0


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/.git/config", 8),
        ("/x/.env", 8),
        ("/web%2econfig", 8),
        ("/WEB.CONFIG", 8),
        ("/bin;x=y/app.dll", 8),
        ("/bin/", 8),
        ("/x%2fbin%2fapp", 8),
        ("/x/..%2fbin/app", 8),
        ("/bin./app", 8),
        ("/bin%20/app", 8),
        ("/web.config::$DATA", 8),
        ("/bin:$i30:$index_allocation/app", 8),
        ("/x.config", 7),
        ("/x.CoNfIg", 7),
        ("/x%2Econfig", 7),
        ("/x.config/y", 7),  # path info, perhaps
        ("/x.config/y/z.html", 7),
        ("/x.config;y.html", 7),
        ("/x.html;y.config", 7),
        ("/x.config.", 7),
        ("/x.config%20", 7),
        ("/x.config%2fy", 7),
        ("/x.config%3fy.html", 7),
        ("/x.config%23", 7),
        ("/x.config::$data", 7),
        ("/x.%ef%bd%83onfig", 7),  # a full-width c
        ("//x.config", 7),
    ],
)
def test_ways_around_segments_and_extensions_are_closed(target: str, expected: int) -> None:
    assert number(target) == expected


def test_lists_of_the_site_add_to_the_default_ones() -> None:
    more: dict[str, Any] = {"deny_extensions": [".BAK"], "hidden_segments": ["/private/", "Geheimnis ü"]}
    assert number("/x.bak", **more) == 7
    assert number("/x.config", **more) == 7
    assert number("/private/x", **more) == 8
    assert number("/geheimnis%20%C3%9C", **more) == 8
    assert number("/x.config", default_lists=False, **more) == 0
    assert number("/x.bak", default_lists=False, **more) == 7


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/x.html", 0),
        ("/x.HTML", 0),
        ("/", 0),
        ("/dir/", 0),
        ("/x", 0),
        ("/x.php", 7),
        ("/x.php/y.html", 7),
        ("/x.html/y.php", 7),
        ("/x.html;y", 7),
        ("/x.html%2ephp", 7),
    ],
)
def test_where_extensions_are_allowed_nothing_else_passes(target: str, expected: int) -> None:
    assert number(target, allow_extensions=[".html", "."]) == expected


def test_no_extension_is_one_too() -> None:
    assert number("/x", allow_extensions=[".html"]) == 7
    assert number("/", allow_extensions=[".html"]) == 7
    assert number("/x.html.", allow_extensions=[".html"]) == 7
    assert number("/x", deny_extensions=["."]) == 7
    assert number("/x.html", deny_extensions=["."]) == 0


# ---------------------------------------------------------------------------------------------------- sequences


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/a/CMD.exe/b", 5),
        ("/a/cm%64.exe", 5),
        ("/a/cmd%2eexe", 5),
        ("/a/cmd%252eexe", 5),
        ("/a/../b", 5),  # as sent
        ("/a/%2e%2e/b", 5),
        ("http://a.test/a/../b", 5),
        ("/a..b", 5),
        ("/a:b", 5),
        ("/a%3ab", 5),
        ("http://a.test/b", 0),  # the colon of a URL is not in the path
        ("/b?x=cmd.exe", 0),
    ],
)
def test_sequences_in_the_path(target: str, expected: int) -> None:
    given = ["..", ":", "cmd.exe"]
    assert number(target, deny_url_sequences=given, allow_double_escaping=True) == expected


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("q=DROP TABLE".replace(" ", "+"), 18),
        ("q=drop%20table", 18),
        ("q=drop%2520table", 18),
        ("q=drop%25252520table", 0),  # four times: whoever decodes that often decodes for ever
        ("q=%64rop+table", 18),
        ("q=a%3Cscript", 18),
        ("q=%253Cscript", 18),
        ("q=%C3%9C", 18),
        ("q=%DC", 18),
        ("q=droptable", 0),
        ("", 0),
    ],
)
def test_sequences_in_the_query_raw_and_decoded(query: str, expected: int) -> None:
    assert number(f"/?{query}", deny_query_sequences=["drop table", "<script", "ü"]) == expected


def test_a_plus_is_looked_for_as_it_is_too() -> None:
    assert number("/?q=a+b", deny_query_sequences=["a+b"]) == 18
    assert number("/?q=a%2Bb", deny_query_sequences=["a+b"]) == 18


def test_always_allowed_is_exempt_from_sequences_alone() -> None:
    exempt: dict[str, Any] = {
        "deny_url_sequences": ["special"], "always_allowed_urls": ["/My special/page", "/special.config"],
        "deny_query_sequences": ["secret"], "always_allowed_queries": ["secret=none"],
    }  # fmt: skip
    assert number("/my%20Special/page", **exempt) == 0
    assert number("/my%20special/page/x", **exempt) == 5
    assert number("/x/../my%20special/page", **exempt) == 0
    assert number("/special.config", **exempt) == 7
    assert number("/?secret=NONE", **exempt) == 0
    assert number("/?secret=none&secret=1", **exempt) == 18


# ---------------------------------------------------------------------------------------------------- rules


LEECH = {
    "name": "leech", "applies_to": [".gif", ".jpg"], "scan_headers": ["User-Agent"],
    "deny_strings": ["leech-bot", "two, lines", "übel"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("target", "fields", "expected"),
    [
        ("/x.gif", ["User-Agent: Leech-Bot/1"], 19),
        ("/x.gif;y", ["User-Agent: leech-bot"], 19),
        ("/x.gif", ["User-Agent: a", "User-Agent: leech-bot"], 19),
        ("/x.gif", ["User-Agent: leech%2Dbot"], 19),
        ("/x.gif", ["User-Agent: two", "User-Agent: lines"], 19),  # one value to many apps (RFC 9110 5.3)
        ("/x.gif", ["User-Agent: \xc3\x9cbel"], 19),  # UTF-8
        ("/x.gif", ["User-Agent: \xdcbel"], 19),  # Latin-1
        ("/x.gif", ["User-Agent: browser"], 0),
        ("/x.gif", [], 0),
        ("/x.html", ["User-Agent: leech-bot"], 0),
        ("/x.gif", ["Referer: leech-bot"], 0),
    ],
)
def test_a_rule_that_looks_at_a_field(target: str, fields: list[str], expected: int) -> None:
    assert number(target, *fields, rules=[LEECH]) == expected


@pytest.mark.parametrize(
    ("target", "rule", "expected"),
    [
        ("/a/--/b", {"scan_url": True}, 19),
        ("/a/%252d-/b", {"scan_url": True}, 19),
        ("/a?x=--", {"scan_url": True}, 0),
        ("/a?x=--", {"scan_query": True}, 19),
        ("/a?x=%2D-", {"scan_query": True}, 19),
        ("/a/--?x=1", {"scan_query": True}, 0),
        ("/a?x=100%", {"scan_query": True}, 19),
        ("/a?x=100%zz", {"scan_query": True}, 19),
        ("/a?x=100%", {"scan_query": True, "deny_unescaped_percent": False}, 0),
        ("/a?x=100%", {"scan_url": True}, 0),
        ("/a?x=100%25", {"scan_query": True}, 0),
    ],
)
def test_a_rule_that_looks_at_path_or_query(target: str, rule: dict[str, Any], expected: int) -> None:
    settings = {"name": "sql", "deny_strings": ["--"], **rule}
    assert number(target, rules=[settings], allow_double_escaping=True) == expected


def test_the_log_names_the_rule_and_never_the_request() -> None:
    answer = placed(RequestFilter, rules=[LEECH]).filter_request(asked("/x.gif", "User-Agent: leech-bot, hunter2"))
    assert answer is not None
    assert answer.log == "rule 'leech': 'leech-bot'"


# ---------------------------------------------------------------------------------------------------- laws


@given(st.sampled_from(["/x.config", "/bin/x", "/.git/HEAD", "/a/web.config"]), st.data())
def test_no_spelling_of_a_hidden_file_passes(path: str, data: st.DataObject) -> None:
    spellings = {c: [c, c.upper(), f"%{ord(c):02x}", f"%25{ord(c):02X}"] for c in path} | {"/": ["/", "//", "/./"]}
    spelt = "".join(data.draw(st.sampled_from(spellings[c])) for c in path)
    tail = data.draw(st.sampled_from(["", "/", "/x", ";a=b", ".", "%20", "%2f", "?x", "%3fx"]))
    assert number(spelt + tail) in (7, 8, 11)
    assert number(spelt + tail, allow_double_escaping=True) in (7, 8)


# ---------------------------------------------------------------------------------------------------- the file


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"deny_extensions": ["bak"]}, "'bak' is not an extension"),
        ({"deny_extensions": [".tar.gz"]}, "'.tar.gz' is not an extension"),
        ({"hidden_segments": ["a/b"]}, "'a/b' is not one segment"),
        ({"hidden_segments": ["/"]}, "'/' is not one segment"),
        ({"deny_verbs": ["GET POST"]}, "'GET POST' is not the name of a method"),
        ({"deny_url_sequences": [""]}, "an empty text is in everything"),
        ({"always_allowed_urls": ["x"]}, "a path prefix begins with /"),
        ({"rules": [{"name": "r", "deny_strings": ["x"]}]}, "rule 'r' looks at nothing"),
        ({"rules": [{"name": "r", "scan_url": True}]}, "rule 'r' refuses nothing"),
        ({"rules": [{"scan_url": True}]}, "the key `name` is missing"),
        ({"allow_extensions": [".config"]}, "the default list (default_lists: false removes it)"),
        ({"allow_extensions": [".x"], "deny_extensions": [".X"]}, "in allow_extensions and in deny_extensions"),
        ({"allow_verbs": ["GET"], "deny_verbs": ["get"]}, "the verb GET is in allow_verbs and in deny_verbs"),
        ({"deny_extension": [".x"]}, 'did you mean "deny_extensions"?'),
    ],
)
def test_wrong_settings_are_told_in_a_sentence(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigurationError) as told, site({"request_filter": settings}):
        pass
    assert sentence in str(told.value)


def test_a_rule_about_bare_percent_signs_needs_no_texts() -> None:
    assert complaints(RequestFilter, rules=[{"name": "r", "scan_query": True}]) == []


# ---------------------------------------------------------------------------------------------------- on a site


def test_on_a_site_it_lowers_the_limits_of_iis_unless_the_site_says_otherwise() -> None:
    with site(["request_filter"]) as it:
        assert it.get("/x.config").status == 404
        entry = it.log[-1]
        assert (entry.reason, entry.substatus, entry.detail) == ("Rejected", 7, "extension .config")
        assert it.get("/?" + "x" * 2048).status == 200
        assert it.get("/?" + "x" * 2049).status == 414
        assert it.get("/" + "a/" * 250 + "b" * 200).status == 200
    with site(["request_filter"], config={"sites": {"test": {"limits": {"max_query": 3000}}}}) as it:
        assert it.get("/?" + "x" * 3000).status == 200
    with site([]) as it:
        assert it.get("/?" + "x" * 3000).status == 200


async def test_on_real_sockets_nothing_that_is_refused_reaches_the_app(tmp_path: Path, autojump_clock: object) -> None:
    async with app() as it:
        plugins = "plugins: [{request_filter: {deny_extensions: [.bak]}}]"
        async with front(one_pool(it.url, site=plugins), tmp_path) as stage:
            line = await stage.connect()
            for path in ("/x.bak", "/x.config/y", "/%2e%67it/HEAD", "/a%252e"):
                head, body = await line.get(path)
                assert head.startswith(b"HTTP/1.1 404 "), path
                assert b"Reason: Rejected" in body
            assert it.heads == []
            head, _ = await line.get("/x.back")
            assert head.startswith(b"HTTP/1.1 200 ")
            assert stage.reasons == {"Rejected": 4}
