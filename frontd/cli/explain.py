"""`frontd explain URL`: which way a URL goes through the configuration, and why not another."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import click

from frontd.cli.common import read_config
from frontd.cli.controlclient import Where, fetch, read_options
from frontd.cli.tables import styled, use_colour


@click.command(short_help="Say where a URL leads, and why not elsewhere.")
@click.argument("url")
@click.option("-c", "--config", "config", metavar="FILE", help="Ask this file instead of the running frontd.")
@read_options
@click.option("--json", "as_json", is_flag=True, help="The answer as JSON.")
def explain(url: str, config: str | None, where: Where, as_json: bool) -> None:
    """Say where a URL leads: listener, certificate, site, route, then pool and target, or a file.

    Each step says why it was chosen and why every alternative lost.  The plugins of the site are named in their order,
    by what they are asked; they are not asked now.
    """
    if "://" not in url:
        url = "https://" + url
    if config is None:
        answer = fetch(where, "/explain?url=" + quote(url, safe=""))
    else:
        from frontd.model.reservations import Namespace
        from frontd.processes.claims import overlay
        from frontd.processes.explain import explain as explain_config

        loaded = read_config(config)
        try:
            answer = explain_config(overlay(loaded.config, Namespace()), url)
        except ValueError as error:
            raise click.UsageError(str(error)) from None
    click.echo(json.dumps(answer, indent=2) if as_json else explain_text(answer, use_colour()))


def explain_text(answer: dict[str, Any], colour: bool = False) -> str:
    """The answer of ``GET /explain`` as text, one paragraph per step."""
    lines = [styled(answer["url"], "bold", colour), ""]
    width = max(len(step["step"]) for step in answer["steps"])
    for step in answer["steps"]:
        chosen = styled(step["chosen"], "green", colour) if step["chosen"] else styled("none", "yellow", colour)
        lines.append(f"{step['step']:<{width}}   {chosen}")
        lines += [" " * (width + 3) + line for line in step["why"].splitlines()]
        lines += [
            " " * (width + 3) + styled(f"not {alternative['what']}: {alternative['why']}", "dim", colour)
            for alternative in step["lost"]
        ]
    return "\n".join([*lines, "", f"→ {answer['answer']}"])
