"""What people type becomes what the program reads."""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path

import pytest
import yaml

from frontd.config.load import ConfigProblems, effective, load, loads
from frontd.config.model import Listen, Pool, Queue, Route, Target, Timeouts
from frontd.model.urlprefix import UrlPrefix

from .helpers import NO_MOUNTS, TLS, load_text

TINY = TLS + "sites:\n  shop.example.com: http://app:8000\n"
HTTP = "sites: {a: {urls: [http://a/], routes: {/: http://app:8000}}}\n"


def test_the_tiny_example_is_complete(folder: Path) -> None:
    config = load_text(TINY, folder).config
    assert config.sites["shop.example.com"].urls == (UrlPrefix.parse("https://shop.example.com/"),)
    assert config.sites["shop.example.com"].routes == {"/": Route(pool="http://app:8000")}
    assert config.pools["http://app:8000"].targets == (Target(scheme="http", host="app", port=8000),)
    assert list(config.listen.values()) == [
        Listen(name="http", kind="http", port=80),
        Listen(name="https", kind="https", port=443),
    ]
    assert config.tls.certificates[0].cert == folder / "shop.crt"
    assert config.tls.certificates[0].name == "0"


def test_every_form_of_a_listener() -> None:
    text = (
        HTTP
        + """\
listen:
  http: 80
  plain: {kind: http, port: 8080, public_port: 81}
  near: {kind: http, address: "::1", port: "8081"}
  free: {kind: http, port: 0}
  proxied: {kind: http, address: 127.0.0.1, port: 8082, proxy_protocol: true}
"""
    )
    listen = load_text(text).config.listen
    assert listen["http"] == Listen(name="http", kind="http", address=None, port=80, public_port=80)
    assert listen["plain"].public_port == 81
    assert (listen["near"].address, listen["near"].port) == ("::1", 8081)
    assert listen["free"].public_port is None
    assert listen["proxied"].proxy_protocol


@pytest.mark.parametrize(
    ("written", "address", "port"),
    [
        ("80", None, 80),
        ('"[::]:80"', "::", 80),
        ("127.0.0.1:80", "127.0.0.1", 80),
        ('":80"', None, 80),
        ('"*:80"', None, 80),
        ('"80"', None, 80),
    ],
)
def test_a_listener_in_one_word(written: str, address: str | None, port: int) -> None:
    listener = load_text(HTTP + f"listen: {{http: {written}}}").config.listen["http"]
    assert (listener.address, listener.port) == (address, port)


def test_listeners_are_derived_from_urls() -> None:
    text = """\
    sites:
      a: {urls: [http://a/, http://a:8080/, http://b:8081/], routes: {/: http://app}}
    """
    assert {name: one.port for name, one in load_text(text).config.listen.items()} == {
        "http": 80,
        "http-8080": 8080,
        "http-8081": 8081,
    }


def test_no_listener_for_redirects_that_nobody_wants(folder: Path) -> None:
    text = TLS + "sites: {shop.example.com: {redirect_http: false, routes: {/: http://app}}}"
    assert list(load_text(text, folder).config.listen) == ["https"]


def test_a_site_keyed_by_its_host_is_served_by_a_listener_on_a_free_port(folder: Path) -> None:
    assert load_text(TINY + "listen: {https: 0}", folder).config.listen["https"].public_port is None


def test_routes_in_every_form() -> None:
    text = """\
    sites:
      a:
        urls: [http://a/]
        routes:
          /: shop
          /One: http://one:8000
          /two/: {target: "unix:run/two.sock", strip_prefix: true}
          /three/: {pool: shop}
          /old/: {redirect: "https://new.example.com{path}", status: 301}
          /near/: {redirect: /elsewhere/}
    pools: {shop: {targets: [http://shop:8000]}}
    """
    config = load_text(text).config
    assert config.sites["a"].routes == {
        "/": Route(pool="shop"),
        "/One/": Route(pool="http://one:8000"),
        "/two/": Route(pool="unix:/base/run/two.sock", strip_prefix=True),
        "/three/": Route(pool="shop"),
        "/old/": Route(redirect="https://new.example.com{path}", status=301),
        "/near/": Route(redirect="/elsewhere/"),
    }
    assert set(config.pools) == {"shop", "http://one:8000", "unix:/base/run/two.sock"}


@pytest.mark.parametrize(
    ("written", "printed"),
    [
        ("http://app", "http://app"),
        ("http://APP:8000/", "http://app:8000"),
        ("https://app:443", "https://app"),
        ("http://[::1]:80", "http://[::1]"),
        ("unix:/run/x", "unix:/run/x"),
    ],
)
def test_a_target_prints_as_it_is_written(written: str, printed: str) -> None:
    assert str(Target.parse(written)) == printed
    assert Target.parse(printed) == Target.parse(written)


def test_a_pool_named_like_its_target_sets_up_the_implicit_one() -> None:
    text = """\
    sites: {a: {urls: [http://a/], routes: {/: http://app:8000}}}
    pools: {"http://app:8000": {targets: [http://app:8000], concurrency: 7}}
    """
    assert load_text(text).config.pools["http://app:8000"].concurrency == 7


def test_limits_and_timeouts_of_a_site_lie_over_the_global_ones() -> None:
    text = """\
    limits: {max_head: 32KiB, max_body: none}
    timeouts: {drain: 1m}
    sites:
      a: {urls: [http://a/], routes: {/: http://app}, limits: {max_body: 2GB}, timeouts: {tunnel_idle: 1h30m}}
      b: {urls: [http://b/], routes: {/: http://app}}
    """
    config = load_text(text).config
    assert (config.limits.max_head, config.limits.max_body) == (32768, None)
    a, b = config.sites["a"], config.sites["b"]
    assert (a.limits.max_head, a.limits.max_body) == (32768, 2 * 10**9)
    assert (a.timeouts.drain, a.timeouts.tunnel_idle) == (60.0, 5400.0)
    assert (b.limits, b.timeouts) == (config.limits, Timeouts(drain=60.0))


def test_a_site_in_one_word_has_the_global_limits(folder: Path) -> None:
    config = load_text("limits: {max_body: 5}\ntimeouts: {drain: 1m}\n" + TINY, folder).config
    site = config.sites["shop.example.com"]
    assert (site.limits, site.timeouts) == (config.limits, config.timeouts)
    assert (site.limits.max_body, site.timeouts.drain) == (5, 60.0)


def test_anchors_and_merge_keys() -> None:
    text = """\
    x-common: &defaults
      queue: {limit: 7, wait: 500ms}
      concurrency: 3
    sites: {a: {urls: [http://a/], routes: {/: one, /two: two}}}
    pools:
      one: {<<: *defaults, targets: [http://one]}
      two: {<<: [{resolve: 1s}, *defaults], targets: [http://two], concurrency: 9}
    """
    pools = load_text(text).config.pools
    assert pools["one"].queue == Queue(limit=7, wait=0.5)
    assert pools["one"].concurrency == 3
    assert (pools["two"].concurrency, pools["two"].resolve, pools["two"].queue.limit) == (9, 1.0, 7)


def test_the_rest_of_the_file() -> None:
    text = (
        HTTP
        + """\
trusted_proxies: [10.0.0.0/8, "::1", 192.0.2.7]
health: {listen: "[::1]:9000"}
control: {socket: run/control.sock}
log:
  access: {to: log/access.log, max_size: 1MiB, keep: 2}
  error: off
state_dir: state
"""
    )
    config = load_text(text).config
    assert config.trusted_proxies == (ip_network("10.0.0.0/8"), ip_network("::1"), ip_network("192.0.2.7"))
    assert config.health is not None
    assert config.health.listen == ("::1", 9000)
    assert config.control.socket == Path("/base/run/control.sock")
    assert (config.log.access.to, config.log.access.format) == (Path("/base/log/access.log"), "w3c")
    assert config.log.error.to == "off"
    assert config.state_dir == Path("/base/state")


def test_where_logs_go_when_nobody_says() -> None:
    inside = load_text(HTTP, container=True).config.log
    assert (inside.access.to, inside.access.format) == ("stdout", "json")
    assert (inside.error.to, inside.error.format) == ("stderr", "w3c")
    outside = load_text(HTTP).config.log
    assert (outside.access.to, outside.access.format) == (Path("/home/u/.local/state/frontd/log/access.log"), "w3c")


def test_empty_sections_count_as_left_out() -> None:
    assert load_text(HTTP + "limits:\npools:\nlisten:\ntls:\nlog:\ntrusted_proxies:\nhealth:\n").config.health is None


def test_words_that_yaml_1_1_would_spoil() -> None:
    text = """\
    sites:
      no: {urls: [http://no/], routes: {/: 010, /22:22/: on}}
    pools: {010: http://app, on: http://other}
    """
    config = load_text(text).config
    assert config.sites["no"].routes["/"].pool == "010"
    assert config.sites["no"].routes["/22:22/"].pool == "on"


def test_effective_loads_as_the_same_world(folder: Path) -> None:
    text = (
        TINY
        + """\
  two:
    urls: ["http://*.two.example/a$$b"]
    routes: {/: pool, /r: {redirect: "https://x{path}"}}
    limits: {max_url: 99}
pools: {pool: {targets: [http://a, unix:s], tls: {server_name: x}}}
health: {listen: 127.0.0.1:9000}
trusted_proxies: [10.0.0.0/8]
"""
    )
    config = load_text(text, folder).config
    again = loads(yaml.safe_dump(effective(config)), base=Path("/elsewhere"), environ={}, mountinfo=NO_MOUNTS)
    assert again.config == config


def test_secrets_are_redacted(folder: Path) -> None:
    text = TLS.replace("}", ", password: s3cret}") + "sites: {shop.example.com: http://app}"
    with pytest.raises(ConfigProblems, match="belongs to") as caught:
        load_text(text, folder)
    assert "password: ******}" in str(caught.value)
    assert "s3cret" not in str(caught.value)
    certificate = load_text(TINY, folder).config.tls.certificates[0]
    made = certificate.model_validate({"pfx": "x", "password": "s3cret"})
    config = load_text(HTTP).config
    config = config.model_copy(update={"tls": config.tls.model_copy(update={"certificates": (made,)})})
    assert effective(config)["tls"]["certificates"][0]["password"] == "**********"
    assert effective(config, reveal=True)["tls"]["certificates"][0]["password"] == "s3cret"
    assert "s3cret" not in repr(config)


def test_the_models_can_be_made_by_hand() -> None:
    pool = Pool(name="p", targets=(Target(scheme="http", host="a", port=1),), queue=Queue(limit=2, wait=0.25))
    assert pool.queue.wait == 0.25
    with pytest.raises(ValueError, match="frozen"):
        pool.resolve = 3.0


def test_a_file_that_cannot_be_read() -> None:
    with pytest.raises(ConfigProblems) as caught:
        load(Path("/nowhere/frontd.yaml"))
    assert str(caught.value) == "/nowhere/frontd.yaml: the file cannot be read: No such file or directory"


def test_a_file_is_read_with_paths_relative_to_it(folder: Path) -> None:
    path = folder / "tiny.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + TINY.encode())
    loaded = load(path, environ={}, container=False, mountinfo=NO_MOUNTS)
    assert (loaded.name, loaded.text) == (str(path), TINY)
    assert loaded.config.tls.certificates[0].key == folder / "shop.key"


def test_a_file_that_is_not_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(b"sites:\n  a: \xff\n")
    with pytest.raises(ConfigProblems, match=r"x.yaml:2:6: the file is not valid UTF-8"):
        load(path)
