"""Warnings: what loads and is probably not meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from frontd.config.load import load

from .helpers import NO_MOUNTS, TLS, errors_of, flat, load_text, warnings_of

PLAIN = "sites: {a: {urls: [http://a/], routes: {/: http://app:8000}}}\n"


def test_nothing_to_say_about_a_plain_file() -> None:
    assert warnings_of(PLAIN) == ""


def test_each_site_that_a_strong_wildcard_shadows_is_named() -> None:
    text = """\
    sites:
      all: {urls: ["http://+/"], routes: {/: http://app}}
      a: {urls: [http://a/], routes: {/: http://app}}
      b: {urls: ["http://*.b.example/x/", http://b:8080/], routes: {/: http://app}}
      c: {urls: ["http://*/"], routes: {/: http://app}}
      d: {urls: [http://d:8080/], routes: {/: http://app}}
    """
    assert warnings_of(text) == flat("""
        frontd.yaml:3:14: warning: sites.a.urls[0]: the site a can never be reached: http://+:80/ of the site all comes first
          |   a: {urls: [http://a/], routes: {/: http://app}}
          |              ^^^^^^^^^
          = + wins over every name; * is asked last
        frontd.yaml:4:14: warning: sites.b.urls[0]: http://*.b.example:80/x/ can never be reached: http://+:80/ of the site all comes first
          |   b: {urls: ["http://*.b.example/x/", http://b:8080/], routes: {/: http://app}}
          |              ^^^^^^^^^^^^^^^^^^^^^^^
          = + wins over every name; * is asked last
        frontd.yaml:5:14: warning: sites.c.urls[0]: the site c can never be reached: http://+:80/ of the site all comes first
          |   c: {urls: ["http://*/"], routes: {/: http://app}}
          |              ^^^^^^^^^^^
          = + wins over every name; * is asked last
    """)  # noqa: E501


def test_a_strong_wildcard_below_the_root_shadows_only_what_lies_under_it() -> None:
    text = """\
    sites:
      all: {urls: ["http://+/App/"], routes: {/: http://app}}
      a: {urls: [http://a/], routes: {/: http://app}}
      b: {urls: [http://b/app/x], routes: {/: http://app}}
    """
    assert [problem.path for problem in load_text(text).warnings] == ["sites.b.urls[0]"]


@pytest.mark.parametrize("target", ["http://localhost:1", "http://127.0.0.2", "http://[::1]:80", "http://x.localhost"])
def test_loopback_targets_inside_a_container(target: str) -> None:
    text = f"""\
    sites: {{a: {{urls: [http://a/], routes: {{/: p, /t: "{target}"}}}}}}
    pools: {{p: {{targets: ["{target}", "unix:/x"]}}}}
    """
    [warning] = load_text(text, container=True).warnings
    assert warning.path == "sites.a.routes./t"
    assert warning.message.count(target.removesuffix(":80")) == 1
    assert warning.message.endswith(": this is the container itself, not the host and not another container")
    assert load_text(text).warnings == []


def test_loopback_targets_share_one_warning_at_the_first() -> None:
    text = """\
    pools: {p: {targets: [http://app:1, http://localhost:1, http://127.0.0.1:2]}}
    sites: {a: {urls: [http://a/], routes: {/: http://127.0.0.1:3, /p: p, /x: http://127.0.0.1:2}}}
    """
    [warning] = load_text(text, container=True).warnings
    assert (warning.line, warning.path) == (1, "pools.p.targets[1]")
    assert warning.message.startswith("http://localhost:1, http://127.0.0.1:2, http://127.0.0.1:3: these are the")


def test_a_pool_without_a_route() -> None:
    assert "pools.lonely: no route leads to this pool" in warnings_of(PLAIN + "pools: {lonely: http://x}")


def test_tls_of_a_pool_without_https_targets() -> None:
    text = "sites: {a: {urls: [http://a/], routes: {/: p}}}\npools: {p: {targets: [http://x], tls: {server_name: x}}}"
    assert "pools.p.tls: no target of this pool is https" in warnings_of(text)


def test_trusting_everybody() -> None:
    assert "0.0.0.0/0 is everybody" in warnings_of(PLAIN + "trusted_proxies: [0.0.0.0/0]")


def test_a_redirect_to_itself() -> None:
    text = """\
    sites:
      www: {urls: [http://www.a/, http://a/], routes: {/: {redirect: "http://a{path}"}}}
    """
    assert "http://a:80/ is redirected to itself, for ever" in warnings_of(text)
    assert warnings_of(text.replace(", http://a/", "")) == ""


DEMANDS = """
tls:
  certificates: [{cert: shop.crt, key: shop.key}]
  hosts: {HOST: {min_version: 1.3}}
sites:
  x.wild.example: http://app
"""


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_a_tls_host_without_a_site(host: str, folder: Path) -> None:
    text = DEMANDS.replace("HOST", host)
    assert f"no site has an https URL for {host}; this has no effect" in warnings_of(text, folder)


@pytest.mark.parametrize("host", ["x.wild.example", '"*.wild.example"', "X.Wild.Example."])
def test_a_tls_host_with_a_site(host: str, folder: Path) -> None:
    assert warnings_of(DEMANDS.replace("HOST", host), folder) == ""


def test_a_tls_host_without_a_certificate(folder: Path) -> None:
    printed = errors_of(DEMANDS.replace("HOST", "y.example"), folder)
    assert "tls.hosts.y.example: no certificate covers y.example" in printed


def test_a_demand_of_a_wildcard_does_not_reach_a_name_of_its_own(folder: Path) -> None:
    text = """
    tls:
      certificates: [{cert: shop.crt, key: shop.key}, {cert: named.crt, key: named.key}]
      hosts: {"*.wild.example": {client_certificate: required, ca: ca.pem}}
    sites: {x.wild.example: http://app}
    """
    assert "a certificate names a.wild.example itself" in errors_of(text, folder)
    assert warnings_of(text.replace("ca.pem}", "ca.pem}, a.wild.example: {}"), folder) != ""


def test_a_default_certificate_covers_nobody_but_is_a_choice(folder: Path) -> None:
    text = TLS + "  default: localhost\nsites: {other.example.com: http://app}"
    assert "no certificate covers other.example.com" in warnings_of(text, folder)


def test_the_file_is_a_bind_mount(tmp_path: Path) -> None:
    place = tmp_path / "my dir"
    place.mkdir()
    path = place / "frontd.yaml"
    path.write_text(PLAIN)
    mountinfo = tmp_path / "mountinfo"
    line = "36 35 98:0 /x {} rw,noatime master:1 - ext4 /dev/root rw\n"
    mountinfo.write_text(line.format("/") + line.format(str(path).replace(" ", "\\040")))
    found = load(path, environ={}, container=False, mountinfo=mountinfo).warnings
    assert [problem.hint for problem in found] == ["mount its directory instead: ./frontd:/etc/frontd:ro"]
    mountinfo.write_text(line.format("/") + line.format(str(place).replace(" ", "\\040")))
    assert load(path, environ={}, container=False, mountinfo=mountinfo).warnings == []


def test_the_state_directory_is_not_on_a_volume(tmp_path: Path) -> None:
    path = tmp_path / "frontd.yaml"
    path.write_text(PLAIN)
    mountinfo = tmp_path / "mountinfo"
    line = "36 35 98:0 /x {} rw,noatime master:1 - overlay overlay rw\n"
    mountinfo.write_text(line.format("/"))
    environ = {"FRONTD_STATE_DIR": "/var/lib/frontd"}
    found = load(path, environ=environ, container=True, mountinfo=mountinfo).warnings
    assert [problem.message for problem in found] == [
        "/var/lib/frontd is not on a volume: what frontd keeps there is lost with the container"
    ]
    mountinfo.write_text(line.format("/") + line.format("/var/lib/frontd"))
    assert load(path, environ=environ, container=True, mountinfo=mountinfo).warnings == []
    assert load(path, environ=environ, container=True, mountinfo=NO_MOUNTS).warnings == []
