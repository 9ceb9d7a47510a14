"""Which site, which route: every rule of UrlPrefixes through the front, and redirects."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trustme

from tests.wire import App, Line, app, front


def named(name: str) -> bytes:
    """An answer that says who gave it."""
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(name), name.encode())


async def apps(stack: AsyncExitStack, *names: str) -> dict[str, App]:
    return {name: await stack.enter_async_context(app(named(name))) for name in names}


async def said(line: Line, host: str, path: str = "/") -> str:
    """Who answered; for the front itself its status and reason."""
    head, body = await line.get(path, host=host)
    status = head.split(b" ")[1]
    if status == b"200":
        return body.decode()
    reason = body.partition(b"Reason: ")[2].split(b"\n")[0]
    return f"{status.decode()} {reason.decode()}".strip()


SITES = {
    "strong": "http://+/strong/",
    "exact": "http://a.example.com/",
    "wild": "http://*.example.com/",
    "wilder": "http://*.deep.example.com/",
    "bound": "http://127.0.0.1/bound/",
    "weak": "http://*/weak/",
    "ported": "http://ported.test:8081/",
}


@pytest.mark.parametrize(
    ("host", "path", "answer"),
    [
        ("a.example.com", "/", "exact"),
        ("A.EXAMPLE.com.", "/", "exact"),
        ("a.example.com:8080", "/", "exact"),  # the port in Host is not looked at
        ("a.example.com:1", "/", "exact"),
        ("b.example.com", "/", "wild"),
        ("x.b.example.com", "/", "wild"),
        ("x.deep.example.com", "/", "wilder"),  # the longest suffix
        ("deep.example.com", "/", "wild"),
        ("example.com", "/", "404 NotFound"),  # no label before it: only the wildcards know such a host
        ("a.example.com", "/strong/", "strong"),  # "+" before everything
        ("nobody.test", "/strong/x", "strong"),
        ("a.example.com", "/weak/", "exact"),  # "*" after everything
        ("a.example.com", "/bound/", "exact"),
        ("nobody.test", "/bound/x", "bound"),  # came in on that address
        ("127.0.0.1", "/bound/", "bound"),
        ("nobody.test", "/weak/x", "weak"),
        ("nobody.test", "/other", "404 NotFound"),
        ("ported.test", "/", "404 NotFound"),  # its URL names the port of another listener
        ("a.example.com", "/STRONG/x", "strong"),  # case does not count
        ("a.example.com", "/strongly", "exact"),  # whole segments only
        ("a.example.com", "/strong", "strong"),
        ("a.example.com", "/x/../strong/y", "strong"),  # the canonical path is matched
        ("a.example.com", "/%73trong/y", "strong"),
        ("a.example.com", "/strong%2Fx", "exact"),  # an escaped slash divides no segments
    ],
)
async def test_the_site_of_a_request(tmp_path: Path, host: str, path: str, answer: str) -> None:
    async with AsyncExitStack() as stack:
        there = await apps(stack, *SITES)
        sites = "".join(
            f"  {name}: {{urls: ['{url}'], routes: {{/: '{there[name].url}'}}}}\n" for name, url in SITES.items()
        )
        text = f"""
listen:
  http: {{port: 0, public_port: 80}}
  other: {{kind: http, address: 127.0.0.1, port: 0, public_port: 8081}}
sites:
{sites}"""
        stage = await stack.enter_async_context(front(text, tmp_path))
        line = await stage.connect()
        assert await said(line, host, path) == answer
        assert await said(line, host, path) == answer  # and the connection serves on


async def test_the_public_port_of_the_listener_decides(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        there = await apps(stack, "front", "back")
        text = f"""
listen:
  http: {{port: 0, public_port: 80}}
  other: {{kind: http, address: 127.0.0.1, port: 0, public_port: 8081}}
sites:
  one: {{urls: ["http://a.test/"], routes: {{/: "{there["front"].url}"}}}}
  two: {{urls: ["http://a.test:8081/"], routes: {{/: "{there["back"].url}"}}}}
"""
        stage = await stack.enter_async_context(front(text, tmp_path))
        assert await said(await stage.connect("http"), "a.test:8081") == "front"
        assert await said(await stage.connect("other"), "a.test:80") == "back"


async def test_an_unknown_host_is_told_so(tmp_path: Path) -> None:
    async with app() as it:
        text = f"""
listen: {{http: {{port: 0}}}}
sites: {{one: {{urls: ["http://a.test/app/"], routes: {{/app/: "{it.url}"}}}}}}
"""
        async with front(text, tmp_path) as stage:
            line = await stage.connect()
            assert await said(line, "b.test", "/app/") == "400 Hostname"
            assert await said(line, "a.test", "/") == "404 NotFound"
            assert await said(line, "a.test", "/app/") == "ok"
            assert it.heads[0].count(b"\r\nHost: a.test\r\n") == 1
            assert stage.reasons == {"Hostname": 1, "NotFound": 1}


@pytest.mark.parametrize(
    ("path", "answer", "forwarded"),
    [
        ("/", "root", "/"),
        ("/x", "root", "/x"),
        ("/api", "api", "/api"),
        ("/api/", "api", "/api/"),
        ("/API/V1/Users", "v1", "/API/V1/Users"),
        ("/api/v1", "v1", "/api/v1"),
        ("/api/v10", "api", "/api/v10"),
        ("/apix", "root", "/apix"),
        ("/api//v1/", "api", "/api//v1/"),
        ("/a%20b/x", "spaced", "/a%20b/x"),
        ("/a%2520b/x", "root", "/a%2520b/x"),
    ],
)
async def test_the_longest_route_of_whole_segments(tmp_path: Path, path: str, answer: str, forwarded: str) -> None:
    async with AsyncExitStack() as stack:
        there = await apps(stack, "root", "api", "v1", "spaced")
        text = f"""
listen: {{http: {{port: 0}}}}
sites:
  one:
    urls: ["http://*/"]
    routes:
      /: {there["root"].url}
      /api: {there["api"].url}
      /api/V1/: {there["v1"].url}
      "/a b/": {there["spaced"].url}
"""
        stage = await stack.enter_async_context(front(text, tmp_path))
        assert await said(await stage.connect(), "a.test", path) == answer
        assert there[answer].heads[0].split(b" ")[1] == forwarded.encode()


async def test_a_site_without_a_route_for_the_path(tmp_path: Path) -> None:
    async with app() as it:
        text = f"""
listen: {{http: {{port: 0}}}}
sites: {{one: {{urls: ["http://*/"], routes: {{/app/: "{it.url}"}}}}}}
"""
        async with front(text, tmp_path) as stage:
            assert await said(await stage.connect(), "a.test", "/other") == "404 NotFound"
            assert it.connections == 0


# ---------------------------------------------------------------------------------------------------- redirects


def location(head: bytes) -> str:
    (value,) = [line.partition(b": ")[2] for line in head.split(b"\r\n") if line.startswith(b"Location: ")]
    return value.decode()


REDIRECTS = """
listen: {http: {port: 0}}
sites:
  one:
    urls: ["http://*/"]
    routes:
      /: {redirect: "https://www.example.com{path}"}
      /other/: {redirect: "https://other.test/base{path}#part", status: 307}
      /moved/: {redirect: "/new", status: 301}
"""


@pytest.mark.parametrize(
    ("host", "path", "status", "to"),
    [
        ("a.test", "/x/y?q=1&r", 308, "https://www.example.com/x/y?q=1&r"),
        ("a.test", "/?", 308, "https://www.example.com/?"),
        ("A.test:8080", "/other/x", 307, "https://other.test/base/other/x#part"),
        ("a.test", "/moved/x?y", 301, "/new"),
        ("a.test", "/x/../other/%7e?{path}{host}", 307, "https://other.test/base/other/~?{path}{host}#part"),
        ("a.test", "//evil.test/%0d%0aSet-Cookie:x", 308, "https://www.example.com//evil.test/%0D%0ASet-Cookie:x"),
    ],
)
async def test_redirects(tmp_path: Path, host: str, path: str, status: int, to: str) -> None:
    async with front(REDIRECTS, tmp_path) as stage:
        line = await stage.connect()
        for _ in range(2):
            head, body = await line.get(path, host=host)
            assert head.startswith(b"HTTP/1.1 %d " % status)
            assert location(head) == to
            assert to.encode() in body
        assert stage.reasons == {}


async def test_a_redirected_upload_is_not_waited_for(tmp_path: Path) -> None:
    async with front(REDIRECTS, tmp_path) as stage:
        line = await stage.connect()
        head, _ = await line.ask(b"POST /x HTTP/1.1\r\nHost: a.test\r\nContent-Length: 6\r\n\r\nabc")
        assert head.startswith(b"HTTP/1.1 308 Permanent Redirect\r\n")
        assert b"\r\nConnection: close\r\n" in head
        assert await line.read_to_end() == b""


def https(tmp_path: Path, site: str, listen: str = "", more: str = "") -> str:
    """A configuration with a certificate for a.test and *.b.test."""
    ca = trustme.CA()
    certificate = ca.issue_cert("a.test", "*.b.test")
    certificate.cert_chain_pems[0].write_to_path(str(tmp_path / "c.pem"))
    certificate.private_key_pem.write_to_path(str(tmp_path / "k.pem"))
    return f"""
listen:
  http: {{port: 0, public_port: 80}}
  https: {{address: 127.0.0.1, port: 0, public_port: 443}}
  {listen}
tls: {{certificates: [{{cert: {tmp_path}/c.pem, key: {tmp_path}/k.pem}}]}}
sites:
  one:
    urls: {site}
    {more}
    routes: {{/: {{redirect: "https://elsewhere.test/"}}}}
"""


@pytest.mark.parametrize(
    ("urls", "host", "to"),
    [
        ('["https://a.test/"]', "a.test", "https://a.test/p?q"),
        ('["https://a.test/"]', "a.test:8080", "https://a.test/p?q"),
        ('["https://*.b.test/"]', "x.b.test", "https://x.b.test/p?q"),
        ('["https://a.test/deep/"]', "a.test", "https://a.test/p?q"),
    ],
)
async def test_http_leads_to_https(tmp_path: Path, urls: str, host: str, to: str) -> None:
    async with front(https(tmp_path, urls), tmp_path) as stage:
        line = await stage.connect("http")
        head, _ = await line.get("/p?q", host=host)
        assert head.startswith(b"HTTP/1.1 308 Permanent Redirect\r\n")
        assert location(head) == to
        assert await said(line, "c.test") == "400 Hostname"


async def test_https_on_another_public_port(tmp_path: Path) -> None:
    text = https(tmp_path, '["https://a.test:8443/"]').replace("public_port: 443", "public_port: 8443")
    async with front(text, tmp_path) as stage:
        head, _ = await (await stage.connect("http")).get("/p", host="a.test")
        assert location(head) == "https://a.test:8443/p"


async def test_no_redirect_when_it_is_switched_off(tmp_path: Path) -> None:
    async with front(https(tmp_path, '["https://a.test/"]', more="redirect_http: false"), tmp_path) as stage:
        assert await said(await stage.connect("http"), "a.test") == "400 Hostname"


async def test_no_redirect_for_a_host_that_is_served_by_http_too(tmp_path: Path) -> None:
    async with front(https(tmp_path, '["https://a.test/", "http://a.test/plain/"]'), tmp_path) as stage:
        line = await stage.connect("http")
        head, _ = await line.get("/plain/", host="a.test")
        assert location(head) == "https://elsewhere.test/"
        assert await said(line, "a.test", "/other") == "404 NotFound"


async def test_redirected_requests_count_for_their_site(tmp_path: Path) -> None:
    async with front(https(tmp_path, '["https://a.test/"]'), tmp_path) as stage:
        await (await stage.connect("http")).get("/", host="a.test")
        (site,) = stage.front.service.world.all_sites
        assert site.state.requests == 1
