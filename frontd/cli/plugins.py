"""`frontd plugins`: which plugins there are, where they come from, and where the configuration arms them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from frontd.cli.common import ConfigFailure, config_option, count, discovery, find_config, read_config
from frontd.cli.tables import table

if TYPE_CHECKING:
    from frontd.config.model import Config
    from frontd.config.plugins import Catalogue, PluginKind

EVERY_SITE = "every site"  # where plugins of the whole server stand


@click.command(short_help="Which plugins there are, and where they are armed.")
@config_option
@click.option("--hooks", is_flag=True, help="Hook by hook instead, in the order of a request's life.")
@click.option("--json", "as_json", is_flag=True, help="The same as JSON.")
def plugins(config: str | None, hooks: bool, as_json: bool) -> None:
    """Which plugins there are, where each comes from, the hooks it defines, and the sites that it is armed on.

    Plugins are found in installed packages and in `plugins_dir` of the configuration.  Without a configuration those of
    packages are listed.  A plugin file with an error is told on stderr, and the exit code is 3.
    """
    loaded = _configuration(config)
    catalogue = discovery().everything(loaded.plugins_dir if loaded else None)
    if hooks:
        click.echo(_json(hook_facts(catalogue, loaded)) if as_json else _hooks_text(catalogue, loaded))
    else:
        click.echo(_json(plugin_facts(catalogue, loaded)) if as_json else _plugins_text(catalogue, loaded))
    for fault in catalogue.faults:
        click.echo(fault, err=True)
    if catalogue.faults:
        raise ConfigFailure(f"the plugins have {count(len(catalogue.faults), 'error')}")


def _configuration(option: str | None) -> Config | None:
    """The configuration; None when none was named and there is none in the default places."""
    if option is None:
        try:
            find_config(None)
        except ConfigFailure:
            return None
    return read_config(option).config


def _json(facts: object) -> str:
    return json.dumps(facts, indent=2)


# ---------------------------------------------------------------------------------------------------- plugins


def plugin_facts(catalogue: Catalogue, config: Config | None) -> list[dict[str, object]]:
    """What the list says of each plugin, in the order of their names; `sites` is None without a configuration."""
    facts: list[dict[str, object]] = []
    for name in sorted(catalogue.kinds):
        kind = catalogue.kinds[name]
        facts.append(
            {
                "plugin": name,
                "from": kind.origin,
                "hooks": _in_order(kind.hooks),
                "sites": armed_on(name, config) if config else None,
            }
        )
    return facts


def armed_on(name: str, config: Config) -> list[str]:
    """The sites where a plugin stands, once for each time it does; `EVERY_SITE` for the whole server."""
    found = [EVERY_SITE for entry in config.plugins if entry.name == name]
    return found + [site.name for site in config.sites.values() for entry in site.plugins if entry.name == name]


def _plugins_text(catalogue: Catalogue, config: Config | None) -> str:
    heads = ["PLUGIN", "FROM", "HOOKS", *(["ON"] if config else [])]
    rows = []
    for name in sorted(catalogue.kinds):
        kind = catalogue.kinds[name]
        row = [name, kind.origin, ", ".join(_in_order(kind.hooks))]
        if config:
            row.append(_counted(armed_on(name, config)))
        rows.append(row)
    return table(heads, rows)


def _counted(names: Iterable[str]) -> str:
    """``shop, api (2)``: a plugin may stand twice on a site."""
    return ", ".join(f"{name} ({times})" if times > 1 else name for name, times in Counter(names).items())


def _in_order(hooks: Iterable[str]) -> list[str]:
    from frontd.pipeline.phases import SPECS

    return [name for name in SPECS if name in hooks]


# ---------------------------------------------------------------------------------------------------- hooks


def hook_facts(catalogue: Catalogue, config: Config | None) -> list[dict[str, object]]:
    """Every hook in the order of a request's life, with the plugins that define it, and with those that are asked on
    each site, in their order; `sites` is None without a configuration."""
    from frontd.pipeline.phases import SPECS

    return [
        {
            "hook": name,
            "signature": str(spec),
            "doc": _first_line(spec.doc),
            "plugins": sorted(kind.name for kind in catalogue.kinds.values() if name in kind.hooks),
            "sites": asked_on(name, config) if config else None,
        }
        for name, spec in SPECS.items()
    ]


def asked_on(hook: str, config: Config) -> dict[str, list[str]]:
    """The plugins that are asked at a hook, by site, in their order; sites where nobody is asked are left out.

    Connections are accepted before the site is known: there the one key is `EVERY_SITE`.
    """
    server = [entry.kind for entry in config.plugins]
    if hook == "accept_client":
        asked = {EVERY_SITE: _with_hook(hook, server)}
    else:
        asked = {
            site.name: _with_hook(hook, [*server, *(entry.kind for entry in site.plugins)])
            for site in config.sites.values()
        }
    return {site: names for site, names in asked.items() if names}


def _with_hook(hook: str, kinds: Iterable[PluginKind]) -> list[str]:
    return [kind.name for kind in kinds if hook in kind.hooks]


def _hooks_text(catalogue: Catalogue, config: Config | None) -> str:
    from frontd.pipeline.phases import SPECS

    parts = []
    for name, spec in SPECS.items():
        lines = [str(spec), f"  {_first_line(spec.doc)}"]
        if config:
            lines += [f"  {site}: {', '.join(names)}" for site, names in asked_on(name, config).items()]
        else:
            names = sorted(kind.name for kind in catalogue.kinds.values() if name in kind.hooks)
            lines += [f"  defined by: {', '.join(names)}"] if names else []
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _first_line(doc: str) -> str:
    return doc.strip().partition("\n")[0]
