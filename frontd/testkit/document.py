"""The configuration of a site under test: Python values become the text of a frontd.yaml, and that is loaded.

So settings are read, checked and complained about exactly as those of a file.  What https URLs need on paper, a
certificate, is made here; no TLS is spoken in memory.
"""

from __future__ import annotations

import functools
import ipaddress
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from frontd.config.load import ConfigProblems, Loaded, loads
from frontd.config.plugins import Catalogue, PluginKind
from frontd.model.urlprefix import UrlPrefix
from frontd.pipeline.discovery import Discovery, examine
from frontd.pipeline.plugin import Plugin

SITE = "test"  # the site's name
POOL = "app"  # the name of the echo app's pool

Word = str | type[Plugin]
Plugins = Mapping[Any, Any] | Iterable[Any]  # word or class → settings; or a list as in frontd.yaml


class ConfigurationError(Exception):
    """The configuration cannot be used.  The text is what ``frontd check`` prints, or why it cannot be served."""


@dataclass(slots=True)
class Document:
    """What a site under test is made of; everything but the plugins stays over a reload.

    `base` is the directory that relative paths start at, `work` the test's own.
    """

    base: Path
    work: Path
    urls: tuple[str, ...]
    routes: Mapping[str, Any]
    plugins_dir: Path | str | None
    extra: Mapping[str, Any]
    _discovery: Discovery = field(default_factory=Discovery)

    @property
    def socket(self) -> Path:
        """Where the echo app listens."""
        return self.work / "app.sock"

    def load(self, plugins: Plugins, server_plugins: Plugins) -> Loaded:
        """The configuration with these plugins.  Raises `ConfigurationError`."""
        classes: dict[str, type[Plugin]] = {}
        whole: dict[str, Any] = {
            "state_dir": str(self.work),
            "log": {"access": {"to": "off"}, "error": {"to": "off"}},
            "plugins": _listed(server_plugins, classes),
            "sites": {
                SITE: {"urls": self.urls, "plugins": _listed(plugins, classes), "routes": dict(self.routes)},
            },
            "pools": {POOL: {"targets": [f"unix:{self.socket}"]}},
        }
        if self.plugins_dir is not None:
            whole["plugins_dir"] = str(self.plugins_dir)
        _merge(whole, self.extra)
        _add_certificate(whole, self.work)
        text = yaml.safe_dump(_plain(whole), sort_keys=False, allow_unicode=True, default_flow_style=False)

        def discover(plugins_dir: Path | None, words: frozenset[str]) -> Catalogue:
            return _with_classes(self._discovery.catalogue(plugins_dir, words - classes.keys()), classes)

        try:
            return loads(text, "frontd.yaml", self.base, os.environ, discover=discover, container=False)
        except ConfigProblems as error:
            raise ConfigurationError(str(error)) from None


# ---------------------------------------------------------------------------------------------------- plugins


def _listed(plugins: Plugins, classes: dict[str, type[Plugin]]) -> list[Any]:
    """`plugins` as the list of a frontd.yaml; classes among them are noted under their words."""
    if isinstance(plugins, str):
        raise TypeError(f"plugins are a list or a map: [{plugins!r}]")
    items = [{word: value} for word, value in plugins.items()] if isinstance(plugins, Mapping) else list(plugins)
    return [
        {_word(word, classes): value for word, value in item.items()}
        if isinstance(item, Mapping)
        else _word(item, classes)
        for item in items
    ]


def _word(word: Word, classes: dict[str, type[Plugin]]) -> str:
    if isinstance(word, str):
        return word
    if not (isinstance(word, type) and issubclass(word, Plugin)):
        raise TypeError(f"a plugin is named by its word or its class, not by {word!r}")
    name = word.name or word.__name__
    if classes.setdefault(name, word) is not word:
        raise ValueError(f"two classes are named {name!r}")
    return name


def _with_classes(found: Catalogue, classes: Mapping[str, type[Plugin]]) -> Catalogue:
    kinds: dict[str, PluginKind] = dict(found.kinds)
    faults = list(found.faults)
    for name, plugin in classes.items():
        kind, wrong = examine(plugin)
        faults += wrong
        if kind is not None:
            kinds[name] = kind
    return Catalogue(kinds, tuple(faults), found.others)


# ---------------------------------------------------------------------------------------------------- values


def _plain(value: object) -> Any:
    """What YAML knows; anything else, as a path or a network, is written as its text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(inner) for inner in value]
    return value if value is None or isinstance(value, bool | int | float) else str(value)


def _merge(into: dict[str, Any], more: Mapping[str, Any]) -> None:
    for key, value in more.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = dict(value) if isinstance(value, Mapping) else value


# ---------------------------------------------------------------------------------------------------- certificate


def _add_certificate(whole: dict[str, Any], work: Path) -> None:
    """A certificate for the hosts of all https URLs, unless the test brings its own."""
    if "tls" in whole:
        return
    hosts = []
    for site in whole["sites"].values():
        for url in site.get("urls", ()) if isinstance(site, Mapping) else ():
            try:
                prefix = UrlPrefix.parse(str(url))
            except ValueError:
                continue  # which `loads` tells better
            if prefix.scheme == "https":
                hosts.append(prefix.host if prefix.host not in ("+", "*") else "test.example")
    if hosts:
        path = work / "tls.pem"
        path.write_bytes(_certificate(tuple(dict.fromkeys(hosts))))
        whole["tls"] = {"certificates": [{"cert": str(path), "key": str(path)}]}


@functools.cache
def _certificate(hosts: tuple[str, ...]) -> bytes:
    """Certificate and key in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a site under test")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=90))
        .add_extension(x509.SubjectAlternativeName([_alternative_name(host) for host in hosts]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return made.public_bytes(serialization.Encoding.PEM) + private


def _alternative_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
