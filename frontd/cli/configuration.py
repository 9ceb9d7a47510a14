"""Verbs about the configuration: `check` and `show config`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from frontd.cli.common import ConfigFailure, config_option, count, discovery, file_argument, print_problems, read_config
from frontd.cli.controlclient import Where, fetch, read_options

if TYPE_CHECKING:
    from frontd.config.model import Config


@click.command(short_help="Find every problem of a configuration.")
@file_argument
@click.option("--schema", is_flag=True, help="Print the JSON Schema of the file instead, for editors.")
def check(config: str | None, schema: bool) -> None:
    """Find every problem of a configuration.

    FILE is the same as -c FILE.  Errors end with exit code 3; warnings do not.
    """
    if schema:
        from frontd.config.load import schema as json_schema

        click.echo(json.dumps(json_schema(discovery().everything(None)), indent=2))
        return
    loaded = read_config(config)
    print_problems(loaded.warnings)
    if obstacles := workers_obstacles(loaded.config):
        for why in obstacles:
            click.echo(f"{loaded.name}: error: {why}\n", err=True)
        raise ConfigFailure(f"the configuration has {count(len(obstacles), 'error')}")
    warned = f", {count(len(loaded.warnings), 'warning')}" if loaded.warnings else ""
    click.echo(f"ok: {count(len(loaded.config.sites), 'site')}, {count(len(loaded.config.pools), 'pool')}{warned}")


def workers_obstacles(config: Config) -> list[str]:
    """What keeps workers from being started here, as `frontd serve` would say it."""
    from frontd.processes.presets import obstacle

    found = [(name, obstacle(pool.workers)) for name, pool in config.pools.items() if pool.workers is not None]
    return [f"pools.{name}.workers{why}" for name, why in found if why]


@click.command("config", short_help="The configuration in full.")
@click.argument("live", required=False, type=click.Choice(["live"]))
@config_option
@read_options
@click.pass_context
def show_config(ctx: click.Context, live: str | None, config: str | None, where: Where) -> None:
    """The configuration in full: defaults filled in, shorthands written out, secrets hidden.

    Reads the file as 'frontd serve' would; with the word 'live' it asks the running frontd for the one that it serves.
    """
    given = click.core.ParameterSource.COMMANDLINE
    if live:
        if ctx.get_parameter_source("config") == given:
            raise click.UsageError("'live' asks the running frontd; it does not go with -c")
        click.echo(str(fetch(where, "/config")["yaml"]).rstrip("\n"))
        return
    for option, name in (("--socket", "socket_path"), ("--control", "control")):
        if ctx.get_parameter_source(name) == given:
            raise click.UsageError(f"{option} goes with the word 'live': frontd show config live {option} …")
    import yaml

    from frontd.config.load import effective

    click.echo(yaml.safe_dump(effective(read_config(config).config), sort_keys=False, allow_unicode=True).rstrip("\n"))
