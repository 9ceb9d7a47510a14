"""URL reservations and the queues that processes have made: `frontd urlacl`, `frontd queue`, `frontd show urlacl`."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import click

from frontd.cli.common import Failure
from frontd.cli.controlclient import RELOAD_TIMEOUT, Answer, call, fetch, find_socket, said, socket_option

_WORDS = ("url", "user", "uid", "group", "pool", "delegate")


@click.group()
def urlacl() -> None:
    """Reserve URL prefixes for users, groups and pools."""


@urlacl.command(short_help="Reserve a prefix.")
@click.argument("words", nargs=-1, required=True, metavar="url=URL (user=|uid=|group=|pool=)NAME [delegate=yes]")
@socket_option
def add(words: tuple[str, ...], socket_path: str | None) -> None:
    """Reserve a URL prefix, and everything below it, for a user, a group or a pool.

    From then on nobody else can register it, and requests for it go nowhere else, also while nobody has registered it.
    delegate=yes: they may reserve parts of it for others.
    """
    data = words_of(words, _WORDS)
    answer = call(find_socket(socket_path), "POST", "/urlacl", RELOAD_TIMEOUT, data)
    expect_done(answer, "not reserved")
    click.echo("URL reservation successfully added")


@urlacl.command(short_help="Take a reservation back.")
@click.argument("words", nargs=-1, required=True, metavar="url=URL")
@socket_option
def delete(words: tuple[str, ...], socket_path: str | None) -> None:
    """Take a reservation back.  What was registered because of it ends; what an administrator has registered stays."""
    url = words_of(words, ("url",)).get("url", "")
    answer = call(find_socket(socket_path), "DELETE", "/urlacl?url=" + quote(url, safe=""), RELOAD_TIMEOUT)
    expect_done(answer, "not deleted")
    click.echo("URL reservation successfully deleted")


@click.group()
def queue() -> None:
    """Request queues that processes have made with 'frontd attach'."""


@queue.command("delete", short_help="Take a queue away.")
@click.argument("name")
@socket_option
def delete_queue(name: str, socket_path: str | None) -> None:
    """Take a queue and the prefixes that are registered for it away.  No process may be attached to it any more."""
    answer = call(find_socket(socket_path), "DELETE", "/queues?name=" + quote(name, safe=""), RELOAD_TIMEOUT)
    expect_done(answer, "not deleted")
    click.echo(f"queue {name} deleted")


@click.command("urlacl", short_help="URL reservations.")
@socket_option
@click.option("--json", "as_json", is_flag=True, help="The whole answer as JSON.")
def show_urlacl(socket_path: str | None, as_json: bool) -> None:
    """All URL reservations, those of the configuration and those of 'frontd urlacl add', with netsh's names."""
    answer = fetch(find_socket(socket_path), "/urlacl")
    click.echo(json.dumps(answer, indent=2) if as_json else urlacl_text(answer))


def urlacl_text(answer: dict[str, Any]) -> str:
    """The answer of ``GET /urlacl`` as `netsh http show urlacl` has it."""
    title = "URL Reservations:"
    lines = [title, "-" * len(title)]
    for one in answer["reservations"]:
        lines += [
            "", f"    Reserved URL : {one['url']}", f"        User: {one['user']}",
            f"            Listen: {yes(one['listen'])}", f"            Delegate: {yes(one['delegate'])}",
        ]  # fmt: skip
        lines += [f"        Queue: {one['queue']}"] if one["queue"] else []
        lines += ["        (stands in the configuration)"] if one["configured"] else []
    return "\n".join(lines)


def yes(flag: bool) -> str:
    """As netsh says it."""
    return "Yes" if flag else "No"


def words_of(words: tuple[str, ...], known: tuple[str, ...]) -> dict[str, str]:
    """``key=value`` arguments, each once.  Raises `click.UsageError`."""
    found: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key not in known:
            raise click.UsageError(f"{word!r} is none of {', '.join(f'{one}=' for one in known)}")
        if key in found:
            raise click.UsageError(f"{key}= is there twice")
        found[key] = value
    if "url" not in found:
        raise click.UsageError("url= is missing")
    return found


def expect_done(answer: Answer, what: str) -> None:
    """Raises `Failure` with frontd's own words unless it is done."""
    if answer.status != 200:
        raise Failure(f"{what}: {said(answer.data)}")
