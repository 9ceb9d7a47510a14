"""`urlacl`, `reserved_status` and `pools.NAME.attach`: what may be written, and what is said about the rest."""

from __future__ import annotations

import pwd
from pathlib import Path

import pytest
import yaml

from frontd.config.effective import effective
from frontd.config.load import ConfigProblems, Loaded, loads
from frontd.config.urlacl import fixed_reservations
from frontd.model.reservations import Account

TEXT = """
state_dir: /s
listen: {http: 80}
sites: {a: {urls: ["http://a.test/"], routes: {/: app}}}
pools:
  app: {targets: [http://app:8000]}
  shop: {attach: {socket: /run/shop/s, mode: 0666, owner: root}}
urlacl:
  - {url: "http://+/shop", pool: shop}
  - {url: "http://a.test/x/", user: root, delegate: true}
  - {url: "http://a.test/y/", uid: 4000000}
  - {url: "http://a.test/z/", group: root}
reserved_status: 400
"""


def load(text: str) -> Loaded:
    return loads(text, environ={"HOME": "/home/u"}, container=False, mountinfo=Path("/dev/null"))


def problems(old: str, new: str) -> list[str]:
    """The messages about `TEXT` with a change, each with its path."""
    assert old in TEXT
    with pytest.raises(ConfigProblems) as caught:
        load(TEXT.replace(old, new))
    return [f"{one.path}: {one.message}" for one in caught.value.problems]


def test_what_is_written() -> None:
    loaded = load(TEXT)
    assert loaded.warnings == []
    config = loaded.config
    assert config.reserved_status == 400
    attach = config.pools["shop"].attach
    assert attach is not None
    assert (str(attach.socket), attach.mode, attach.owner) == ("/run/shop/s", "0666", "root")
    found = fixed_reservations(config.urlacl)
    assert [(str(one.url), one.account, one.delegate) for one in found] == [
        ("http://+:80/shop/", Account("pool", -1, "shop"), False),
        ("http://a.test:80/x/", Account("user", 0, "root"), True),
        ("http://a.test:80/y/", Account("user", 4000000, "uid 4000000"), False),
        ("http://a.test:80/z/", Account("group", 0, "root"), False),
    ]
    again = load(yaml.safe_dump(effective(config, reveal=True)))
    assert again.config == config


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("user: root, d", "user: nobody-here, d", "urlacl[1].user: there is no user 'nobody-here' here"),
        ("group: root", "group: nobody-here", "urlacl[3].group: there is no group 'nobody-here' here"),
        ("uid: 4000000", "uid: 4294967295", "urlacl[2].uid: must be at most 4294967294"),
        ("uid: 4000000", "uid: root", "urlacl[2].uid: a whole number is expected"),
        ("uid: 4000000", "uid: 1, pool: shop", "urlacl[2]: a reservation is for exactly one of"),
        ("pool: shop}\n  - {url: \"http://a.test/x/\"", "delegate: true}\n  - {url: \"http://a.test/x/\"",
         "urlacl[0]: a reservation is for exactly one of"),
        ("pool: shop}", "pool: shp}", "urlacl[0].pool: there is no pool 'shp'"),
        ("pool: shop}", "pool: app}", "urlacl[0].pool: nobody can register anything for the pool 'app'"),
        ("http://a.test/y/", "http://a.test/X/", "urlacl[2]: http://a.test:80/X/ is already reserved for user root"),
        ("http://a.test/y/", "https://a.test/", "urlacl[2].url: no listener serves https://a.test:443/"),
        ("http://a.test/y/", "a.test/y", "urlacl[2].url: a URL has the form"),
        ("mode: 0666", "mode: rw", "pools.shop.attach.mode: an octal mode such as 0660 is expected"),
        ("socket: /run/shop/s, mode: 0666", "mode: 0666", "pools.shop.attach: `owner`, `group` and `mode` belong to"),
        ("owner: root", "owner: nobody-here", "pools.shop.attach.owner: there is no user 'nobody-here' here"),
        ("/run/shop/s", "/s/control.sock", "pools.shop.attach.socket: /s/control.sock is already control.socket"),
        ("/run/shop/s", "/" + "x" * 107, "pools.shop.attach: the path of a Unix socket has at most 107 bytes"),
        ("shop: {attach", "shop: {targets: [http://x], attach", "pools.shop: a pool has one of `targets`,"),
        ("shop: {attach", "a b: {attach: {}}\n  shop: {attach", "pools.a b: the name of a queue has letters"),
        ("reserved_status: 400", "reserved_status: 200", "reserved_status: must be at least 400, not 200"),
    ],
)  # fmt: skip
def test_what_is_wrong(old: str, new: str, says: str) -> None:
    found = problems(old, new)
    assert [one for one in found if one.startswith(says)], found
    assert len(found) == 1, found


def test_ports_of_the_other_scheme() -> None:
    text = TEXT.replace("listen: {http: 80}", "listen: {http: 80, b: {kind: http, port: 8443}}")
    with pytest.raises(ConfigProblems) as caught:
        load(text.replace("http://a.test/y/", "https://a.test:8443/"))
    assert [one.message for one in caught.value.problems] == ["no listener serves https://a.test:8443/"]


def test_a_name_that_ceases_to_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = load(TEXT).config.urlacl

    def gone(name: str) -> None:
        raise KeyError(name)

    monkeypatch.setattr(pwd, "getpwnam", gone)
    with pytest.raises(ValueError, match="there is no user 'root' here"):
        fixed_reservations(entries)
