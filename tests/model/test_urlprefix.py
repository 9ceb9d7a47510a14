"""UrlPrefixes: their syntax, their four categories, and which one a request belongs to (HTTP.sys's rules)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontd.model.urlprefix import Category, PathTable, PrefixTable, UrlPrefix, canonical_host, is_ip

# ------------------------------------------------------------------------------------------------------- syntax


@pytest.mark.parametrize(
    ("text", "full", "category"),
    [
        ("http://+:80/", "http://+:80/", Category.STRONG),
        ("https://*:8443/a/", "https://*:8443/a/", Category.WEAK),
        ("http://Example.COM:8080/Vroot/", "http://example.com:8080/Vroot/", Category.EXPLICIT),
        ("http://*.Example.com/", "http://*.example.com:80/", Category.EXPLICIT),
        ("http://192.168.0.1/", "http://192.168.0.1:80/", Category.IP_BOUND),
        ("http://[2001:DB8:0::1]:81/x/", "http://[2001:db8::1]:81/x/", Category.IP_BOUND),
        ("http://localhost", "http://localhost:80/", Category.EXPLICIT),
        # kinder than HTTP.sys: a port that is missing, a final slash that is missing
        ("https://a.test", "https://a.test:443/", Category.EXPLICIT),
        ("http://a.test/app", "http://a.test:80/app/", Category.EXPLICIT),
        ("http://a.test:65535/", "http://a.test:65535/", Category.EXPLICIT),
        ("http://a.test:1/", "http://a.test:1/", Category.EXPLICIT),
        # names as people write them
        ("http://b\u00fccher.example/", "http://xn--bcher-kva.example:80/", Category.EXPLICIT),
        ("http://*.b\u00fccher.example/", "http://*.xn--bcher-kva.example:80/", Category.EXPLICIT),
        ("http://a.test./", "http://a.test:80/", Category.EXPLICIT),
        ("http://my_app/", "http://my_app:80/", Category.EXPLICIT),
        ("http://a.test/caf\u00e9/../x y", "http://a.test:80/x%20y/", Category.EXPLICIT),
        ("http://a.test/%7euser", "http://a.test:80/~user/", Category.EXPLICIT),
    ],
)
def test_a_prefix_in_its_full_form(text: str, full: str, category: Category) -> None:
    prefix = UrlPrefix.parse(text)
    assert (str(prefix), prefix.category) == (full, category)
    assert UrlPrefix.parse(full) == prefix


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "scheme://host:port/path/"),
        ("a.test", "scheme://host:port/path/"),
        ("http:/a.test/", "scheme://host:port/path/"),
        ("HTTP://a.test/", "'http' in lower case"),
        ("Https://a.test/", "'https' in lower case"),
        ("ftp://a.test/", "http or https"),
        ("://a.test/", "http or https"),
        ("http:///", "host is missing"),
        ("http://:80/", "host is missing"),
        ("http://a.test:/", "port"),
        ("http://a.test:0/", "port"),
        ("http://a.test:080/", "port"),
        ("http://a.test:65536/", "port"),
        ("http://a.test:*/", "port"),
        ("http://a.test:+/", "port"),
        ("http://a.test:80x/", "port"),
        ("http://a.test:\u0664/", "port"),
        ("http://a.test:-1/", "port"),
        ("http://a.test?b", "not a host name"),
        ("http://a.test/?b", "no query"),
        ("http://a.test/#b", "fragment"),
        ("http://a.test/%00", "%00"),
        ("http://a.test/%5cb", "%5c"),
        ("http://a.test/%", "two hex digits"),
        ("http://a.test/a\\b", "backslash"),
        ("http://me@a.test/", "not a host name"),
        ("http://a b/", "not a host name"),
        ("http://a..test/", "not a host name"),
        ("http://-a.test/", "not a host name"),
        ("http://a.*.test/", "wildcard"),
        ("http://*a.test/", "wildcard"),
        ("http://*.*.test/", "not a host name"),
        ("http://++/", "wildcard"),
        ("http://+.test/", "wildcard"),
        ("http://*./", "not a host name"),
        ("http://*.1.2.3.4/", "before a name"),
        ("http://1.2.3/", "neither a host name nor an IP"),
        ("http://256.1.1.1/", "neither a host name nor an IP"),
        ("http://[1.2.3.4]/", "IPv6"),
        ("http://[a.test]/", "IPv6"),
        ("http://[]/", "IPv6"),
        ("http://[::1/", "scheme://host:port/path/"),
        ("http://::1/", "host is missing"),
        ("http://[::1]x/", "scheme://host:port/path/"),
        ("http://" + "a" * 64 + ".test/", "not a host name"),
        ("http://xn--\u00e4.test/", "not a host name"),
    ],
)
def test_a_syntax_error_is_named(text: str, what: str) -> None:
    with pytest.raises(ValueError, match=r".") as wrong:
        UrlPrefix.parse(text)
    assert what in str(wrong.value)
    assert not isinstance(wrong.value, UnicodeError)


@given(
    st.text(max_size=12), st.sampled_from(["", "http://", "https://", "http://a.test", "http://a.test:", "http://["])
)
def test_no_text_does_more_than_be_explained(text: str, start: str) -> None:
    try:
        prefix = UrlPrefix.parse(start + text)
    except ValueError:
        return
    assert UrlPrefix.parse(str(prefix)) == prefix
    assert prefix.path.startswith("/")
    assert prefix.path.endswith("/")


# ------------------------------------------------------------------------------------------------------- hosts


@pytest.mark.parametrize(
    ("host", "canonical"),
    [
        ("A.Test", "a.test"),
        ("a.test.", "a.test"),
        ("127.0.0.1", "127.0.0.1"),
        ("2001:DB8::0:1", "2001:db8::1"),
        ("B\u00dcCHER.example", "xn--bcher-kva.example"),
        ("\uff41.test", "a.test"),
        ("a" * 63, "a" * 63),
        ("_a.b_", "_a.b_"),
    ],
)
def test_a_canonical_host(host: str, canonical: str) -> None:
    assert canonical_host(host) == canonical
    assert canonical_host(canonical) == canonical


@pytest.mark.parametrize(
    "host",
    ["", ".", "a..b", ".a", "a..", "-a", "a-", "a" * 64, "a b", "a/b", "a:b", "1", "1.2", "1.2.3.4.5", "a.1", "\u2024"],
)
def test_what_is_no_host(host: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        canonical_host(host)


def test_which_hosts_are_addresses() -> None:
    assert is_ip("127.0.0.1")
    assert is_ip("::1")
    assert not is_ip("a.test")
    assert not is_ip("1a")
    assert not is_ip("")


# ------------------------------------------------------------------------------------------------------- matching


def table(*prefixes: str) -> PrefixTable[str]:
    return PrefixTable((UrlPrefix.parse(text), text) for text in prefixes)


def found(
    it: PrefixTable[str], host: str, path: str, *, scheme: str = "http", port: int | None = 80, local: str = "10.0.0.1"
) -> str | bool:
    """What was found, or whether the host was known."""
    match = it.match(scheme, port, host, local, path)
    return match.host_known if match.value is None else match.value


def test_the_worked_example_of_http_sys() -> None:
    it = table("http://+:80/vroot/", "http://adatum.com:80/", "http://*:80/")
    assert found(it, "adatum.com", "/vroot/x") == "http://+:80/vroot/"
    assert found(it, "adatum.com", "/y") == "http://adatum.com:80/"
    assert found(it, "other", "/z") == "http://*:80/"


def test_the_categories_are_asked_in_their_order() -> None:
    names = ["http://+/", "http://a.test/", "http://*.test/", "http://10.0.0.1/", "http://*/"]
    for first, expected in enumerate(names):
        assert found(table(*reversed(names[first:])), "a.test", "/x") == expected


def test_a_longer_path_in_a_later_category_does_not_win() -> None:
    assert found(table("http://+/", "http://a.test/a/b/"), "a.test", "/a/b/c") == "http://+/"
    assert found(table("http://a.test/", "http://*/a/"), "a.test", "/a/b") == "http://a.test/"
    assert found(table("http://a.test/", "http://*.test/a/"), "a.test", "/a/b") == "http://a.test/"


def test_a_category_whose_paths_do_not_match_is_passed_over() -> None:
    it = table("http://+/only/", "http://a.test/a/", "http://*.test/b/", "http://10.0.0.1/c/", "http://*/d/")
    for path, expected in (
        ("/only", "http://+/only/"),
        ("/a", "http://a.test/a/"),
        ("/b", "http://*.test/b/"),
        ("/c", "http://10.0.0.1/c/"),
        ("/d", "http://*/d/"),
    ):
        assert found(it, "a.test", path) == expected
    assert found(it, "a.test", "/e") is True


def test_the_longest_complete_segment_wins() -> None:
    it = table("http://a.test/", "http://a.test/dir/", "http://a.test/dir/sub/", "http://a.test/DIR/Other/")
    assert found(it, "a.test", "/dir/sna") == "http://a.test/dir/"
    assert found(it, "a.test", "/dir/sub/x") == "http://a.test/dir/sub/"
    assert found(it, "a.test", "/dir/sub") == "http://a.test/dir/sub/"
    assert found(it, "a.test", "/dir/subs") == "http://a.test/dir/"
    assert found(it, "a.test", "/dir/other/x") == "http://a.test/DIR/Other/"
    assert found(it, "a.test", "/directory") == "http://a.test/"
    assert found(it, "a.test", "/dir%2Fsub/") == "http://a.test/"


def test_a_wildcard_covers_names_below_and_the_closest_wins() -> None:
    it = table("http://*.test/", "http://*.b.test/", "http://x.b.test/")
    assert found(it, "a.test", "/") == "http://*.test/"
    assert found(it, "c.b.test", "/") == "http://*.b.test/"
    assert found(it, "d.c.b.test", "/") == "http://*.b.test/"
    assert found(it, "x.b.test", "/") == "http://x.b.test/"
    assert found(it, "test", "/") is False
    assert found(it, "atest", "/") is False
    assert found(table("http://*.b.test/"), "b.test", "/") is False


def test_an_address_is_matched_by_where_the_connection_came_in_and_by_what_was_typed() -> None:
    it = table("http://10.0.0.1/", "http://[::1]/")
    assert found(it, "anything.test", "/") == "http://10.0.0.1/"
    assert found(it, "anything.test", "/", local="10.0.0.2") is False
    assert found(it, "10.0.0.1", "/", local="172.17.0.2") == "http://10.0.0.1/"  # a published port
    assert found(it, "::1", "/", local="172.17.0.2") == "http://[::1]/"
    assert found(it, "10.0.0.9", "/", local="10.0.0.1") == "http://10.0.0.1/"


def test_a_wildcard_never_covers_an_address() -> None:
    assert found(table("http://*.0.test/"), "10.0.0.1", "/", local="10.0.0.1") is False


def test_scheme_and_port_are_part_of_the_prefix() -> None:
    it = table("http://a.test/", "https://a.test/", "http://a.test:8080/")
    assert found(it, "a.test", "/") == "http://a.test/"
    assert found(it, "a.test", "/", scheme="https", port=443) == "https://a.test/"
    assert found(it, "a.test", "/", port=8080) == "http://a.test:8080/"
    assert found(it, "a.test", "/", port=81) is False
    assert found(it, "a.test", "/", scheme="https", port=80) is False


def test_a_listener_without_a_public_port_is_matched_by_host_alone() -> None:
    it = table("http://a.test:8080/", "https://a.test:8443/")
    assert found(it, "a.test", "/", port=None) == "http://a.test:8080/"
    assert found(it, "a.test", "/", scheme="https", port=None) == "https://a.test:8443/"
    assert found(it, "b.test", "/", port=None) is False


def test_an_unknown_host_and_an_unknown_path_are_told_apart() -> None:
    it = table("http://a.test/app/")
    assert found(it, "a.test", "/other") is True
    assert found(it, "b.test", "/app/") is False
    assert found(table(), "a.test", "/") is False


def test_a_path_table_prefers_the_longest_whatever_the_order() -> None:
    for entries in ([("/", 1), ("/a/", 2), ("/a/b/", 3)], [("/a/b/", 3), ("/a/", 2), ("/", 1)]):
        paths: PathTable[int] = PathTable(entries)
        assert [paths.match(path) for path in ("/", "/x", "/a", "/A/x", "/a/b", "/a/bc")] == [1, 1, 2, 2, 3, 2]
    assert PathTable([("/a/", 1)]).match("/b") is None


hosts = st.sampled_from(["+", "*", "a.test", "*.test", "b.a.test", "*.a.test", "10.0.0.1"])
prefix_texts = st.builds("http://{}{}".format, hosts, st.sampled_from(["/", "/a/", "/a/b/", "/c/"]))


@given(
    st.lists(prefix_texts, unique=True, max_size=8),
    st.sampled_from(["a.test", "b.a.test", "c.b.a.test", "x.y", "10.0.0.1", "10.0.0.2"]),
    st.sampled_from(["/", "/a", "/a/b", "/a/bc", "/c/d"]),
)
def test_the_table_finds_what_a_plain_search_finds(texts: list[str], host: str, path: str) -> None:
    def covers_host(prefix: UrlPrefix) -> bool:
        if prefix.host in ("+", "*"):
            return True
        if prefix.host.startswith("*."):
            return not is_ip(host) and host.endswith(prefix.host[1:])
        return prefix.host == host or prefix.host == "10.0.0.1"

    def rank(prefix: UrlPrefix) -> tuple[int, bool, int, int]:
        # category; exact names before wildcards, the closest wildcard first; the longest path
        wild = prefix.host.startswith("*.")
        return prefix.category, wild, -len(prefix.host) if wild else prefix.host != host, -len(prefix.path)

    prefixes = [UrlPrefix.parse(text) for text in texts]
    fitting = [it for it in prefixes if covers_host(it) and (path + "/").startswith(it.path)]
    match = PrefixTable((it, it) for it in prefixes).match("http", 80, host, "10.0.0.1", path)
    assert match.value == (min(fitting, key=rank) if fitting else None)
    assert match.host_known == any(map(covers_host, prefixes))
