"""`frontd attach`: run a command, or stand beside one, whose requests come through a queue of frontd.

How it works
------------
    {fd}               frontd ── connects ──▶ the command, which has inherited the listening socket
    {socket}, --to     frontd ── connects ──▶ this process ── connects ──▶ the command, or the address

With {fd} this process only keeps the connection on which the command is attached.  Otherwise it relays
(`frontd.cli.sidecar`): frontd never connects to an address that somebody else has named.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from frontd.cli.common import ContactFailure, Failure
from frontd.net.attaching import Attachment, AttachRefused

if TYPE_CHECKING:
    from frontd.cli.sidecar import Target

MARKS = ("{fd}", "{socket}")
PR_SET_PDEATHSIG = 1
PAUSE = 0.2  # s between two tries to reach frontd at the start


@click.command(
    short_help="Register URLs and serve them with a command.", context_settings={"ignore_unknown_options": False}
)
@click.option(
    "--control", metavar="SOCKET", envvar="FRONTD_ATTACH",
    help="Attach socket of a pool, or the control socket.  [default: $FRONTD_ATTACH, the control socket]",
)  # fmt: skip
@click.option("--url", "urls", multiple=True, metavar="URL", help="Prefix to register; several are possible.")
@click.option("--queue", metavar="NAME", help="The queue.  [default: the pool of the socket, or one made of the URL]")
@click.option("--concurrency", type=click.IntRange(1, 100000), metavar="N", help="Requests at once.  [default: any]")
@click.option(
    "--mode", type=click.Choice(["create", "attach", "create-or-attach"]), default="create-or-attach",
    show_default=True, help="Whether the queue must be new, must be there, or either.",
)  # fmt: skip
@click.option("--to", metavar="URL", help="Relay to this http:// or unix: address instead of running a command.")
@click.option(
    "--patience", type=click.FloatRange(0), default=60.0, show_default=True, metavar="SECONDS",
    help="How long to wait for frontd at the start.",
)  # fmt: skip
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[-- COMMAND...]")
def attach(
    control: str | None, urls: tuple[str, ...], queue: str | None, concurrency: int | None, mode: str, to: str | None,
    patience: float, command: tuple[str, ...],
) -> None:  # fmt: skip
    """Register URL prefixes with a running frontd and serve them with COMMAND, or with what listens at --to.

    In COMMAND, {fd} becomes the number of the listening socket that it inherits, {socket} the path of a Unix socket to
    listen on.  Requests wait in the queue while COMMAND is down.  What frontd refuses ends this with exit code 1.
    """
    if bool(command) == (to is not None):
        raise click.UsageError("either a command after --, or --to")
    marks = [mark for mark in MARKS if any(mark in word for word in command)]
    if command and len(marks) != 1:
        raise click.UsageError("the command has to say where it listens: put {fd} or {socket} into one of its words")
    if control is None:
        from frontd.cli.controlclient import find_socket

        control = str(find_socket(None))

    def attachment() -> Attachment:
        one = Attachment(control, urls, queue, concurrency, mode)
        one.said = lambda text: click.echo(f"frontd attach: {text}", err=True)
        return one

    if marks == ["{fd}"]:
        raise SystemExit(_with_fd(attachment(), command, patience))
    from frontd.cli.sidecar import Target, run

    if to is not None:
        try:
            target = Target.parse(to)
        except ValueError as error:
            raise click.UsageError(str(error)) from None
        raise SystemExit(run(attachment, target, None, patience))
    raise SystemExit(_with_socket(attachment, command, patience, Target, run))


def _with_fd(attachment: Attachment, command: tuple[str, ...], patience: float) -> int:
    """Run a command that inherits the listening socket; its exit code."""
    begin(attachment, patience)
    assert attachment.sock is not None
    fd = attachment.sock.fileno()
    child = start([word.replace("{fd}", str(fd)) for word in command], (fd,))
    attachment.sock.close()  # when the command dies, nobody listens
    ended = threading.Event()

    def stop(*_: Any) -> None:
        if not ended.is_set():
            ended.set()
            attachment.end()
            child.terminate()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)

    def keep() -> None:
        attachment.keep()
        if attachment.refused is not None:
            child.terminate()

    threading.Thread(target=keep, daemon=True).start()
    code = child.wait()
    attachment.end()
    if attachment.refused is not None:
        raise Failure(f"not attached any more: {attachment.refused}")
    return code if code >= 0 else 128 - code


def _with_socket(attachment: Any, command: tuple[str, ...], patience: float, target: type[Target], run: Any) -> int:
    """Run a command that listens on a Unix socket of its own, and relay to it; its exit code."""
    with tempfile.TemporaryDirectory(prefix="frontd-attach-") as folder:
        path = Path(folder) / "app.sock"
        child = start([word.replace("{socket}", str(path)) for word in command], ())
        try:
            return int(run(attachment, target(f"unix:{path}", "", 0, str(path)), child, patience))
        finally:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            child.wait()


def begin(attachment: Attachment, patience: float) -> None:
    """Attach; wait for frontd for `patience` seconds.  Raises `Failure`."""
    deadline, told = time.monotonic() + patience, False
    while True:
        try:
            attachment.begin()
        except AttachRefused as refused:
            raise Failure(f"not attached: {refused}") from None
        except OSError as error:
            if time.monotonic() >= deadline:
                raise ContactFailure(f"no contact with frontd on {attachment.control}: {error}") from None
            if not told:
                told = True
                attachment.said(f"waiting for frontd on {attachment.control}: {error}")
            time.sleep(PAUSE)
        else:
            attachment.said(f"attached to the queue {attachment.queue}")
            return


def start(command: list[str], files: tuple[int, ...]) -> subprocess.Popen[bytes]:
    """Start a command that ends when this process does.  Raises `Failure`."""
    parent, prctl = os.getpid(), ctypes.CDLL(None).prctl

    def follow() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    sys.stdout.flush()
    try:
        return subprocess.Popen(command, pass_fds=files, preexec_fn=follow)
    except OSError as error:
        raise Failure(f"{command[0]} cannot be started: {error.strerror or error}") from None
