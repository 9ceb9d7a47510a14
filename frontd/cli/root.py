"""`frontd` itself: which verb lives in which module.

A verb's module is imported when its name is asked for.  Those modules are cheap by the rule of the package, so the list
of `frontd --help` may import all of them.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from typing import Any

import click

from frontd import __version__


class LazyGroup(click.Group):
    """A group whose verbs are named as ``module:attribute`` and shown in the order of that table."""

    def __init__(self, *args: Any, lazy: Mapping[str, str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lazy = lazy

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._lazy:
            return None
        module, _, attribute = self._lazy[cmd_name].partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in self._lazy and not name.startswith("-"):
            close = difflib.get_close_matches(name, self._lazy, n=1)
            hint = f"Did you mean '{close[0]}'?" if close else f"There are: {', '.join(self._lazy)}."
            ctx.fail(f"No such command '{name}'. {hint}")
        return super().resolve_command(ctx, args)


@click.group(
    cls=LazyGroup,
    lazy={
        "demo": "frontd.cli.demo:demo",
        "proxy": "frontd.cli.proxy:proxy",
        "serve": "frontd.cli.serve:serve",
        "check": "frontd.cli.configuration:check",
        "explain": "frontd.cli.explain:explain",
        "status": "frontd.cli.live:status",
        "reload": "frontd.cli.live:reload",
        "upgrade": "frontd.cli.upgrade:upgrade",
        "healthcheck": "frontd.cli.live:healthcheck",
        "show": "frontd.cli.root:show",
        "pool": "frontd.cli.pool:pool",
        "top": "frontd.cli.top:top",
        "attach": "frontd.cli.attach:attach",
        "urlacl": "frontd.cli.urlacl:urlacl",
        "queue": "frontd.cli.urlacl:queue",
        "plugins": "frontd.cli.plugins:plugins",
        "plugin": "frontd.cli.plugin_new:plugin",
        "passwd": "frontd.cli.passwd:passwd",
    },
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, "--version", message="%(prog)s %(version)s")
def cli() -> None:
    """The front door of container deployments.

    New here?  'frontd demo' shows everything; 'frontd proxy --to 9000' puts https://localhost:8443 in front of an app
    that listens on port 9000.

    Exit codes: 0 ok, 1 it failed while running, 2 wrong usage, 3 the configuration has errors, 4 no contact with a
    running frontd.
    """


@click.group(
    cls=LazyGroup,
    lazy={
        "config": "frontd.cli.configuration:show_config",
        "urlacl": "frontd.cli.urlacl:show_urlacl",
        "servicestate": "frontd.cli.views:servicestate",
        "requestq": "frontd.cli.views:requestq",
        "requests": "frontd.cli.views:requests",
        "workers": "frontd.cli.pool:workers",
        "events": "frontd.cli.pool:events",
        "counters": "frontd.cli.views:counters",
        "sslcert": "frontd.cli.views:sslcert",
        "iplisten": "frontd.cli.views:iplisten",
        "timeout": "frontd.cli.views:timeout",
    },
)
def show() -> None:
    """Show what frontd knows."""
