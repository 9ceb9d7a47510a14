"""One process that is front, control and master at once: signals, control socket, health listener, drain.

It serves what needs no file and is meant for the moment (`frontd proxy`); `frontd serve` is a family of processes.

SIGHUP reload · SIGUSR1 reopen logs · SIGTERM, SIGINT drain and exit 0 · a second one: exit at once
"""

from __future__ import annotations

import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack

import trio

from frontd.config.load import Loaded
from frontd.config.model import Health, Listen
from frontd.lanes.listener import bind
from frontd.net.binding import bind_control
from frontd.pipeline.discovery import Discovery
from frontd.processes.calls import serve_calls
from frontd.processes.children import raise_file_limit
from frontd.processes.collector import freeze
from frontd.processes.control import HEALTH_CALLERS, HEALTH_PATIENCE, Control
from frontd.processes.front import Front
from frontd.processes.runtime import only_problem
from frontd.processes.watch import Watchdog, watch_files

SIGNALS = (signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)


def run_front(
    loaded: Loaded,
    reload_from: Callable[[], Loaded] | None,
    ready: Callable[[str], None] | None = None,
    version: str = "",
    discovery: Discovery | None = None,
) -> int:
    """Serve `loaded` until a signal says otherwise; returns the exit code.

    `reload_from` reads the configuration again; `ready` is told in one line when connections are accepted; files that
    `discovery` has loaded are watched.  Raises
    `OSError` when a socket cannot be bound and `BuildProblem` when the configuration cannot be served.

    It takes the signals of the process over for good: the process is meant to end with it, and a signal that comes
    while it cleans up must not take the exit code, the last log lines or the socket file with it.
    """
    ignore_signals(signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)  # whose default is to kill; nothing serves yet
    raise_file_limit()
    front = Front.open(loaded)
    with ExitStack() as left:  # undone in reverse, however this ends
        left.callback(lambda: front.service.log.close())  # a reload may have put another one in its place
        for listener in front.listeners:
            left.callback(listener.close)
        health = bind_health(loaded.config.health)
        if health is not None:
            left.enter_context(health)
        control_socket = left.enter_context(bind_control(loaded.config.control.socket))
        left.callback(loaded.config.control.socket.unlink, missing_ok=True)
        try:
            return trio.run(_main, front, control_socket, health, reload_from, ready, version, discovery)
        except BaseExceptionGroup as group:
            raise only_problem(group) or group from None


async def _main(
    front: Front,
    control_socket: socket.socket,
    health: socket.socket | None,
    reload_from: Callable[[], Loaded] | None,
    ready: Callable[[str], None] | None,
    version: str,
    discovery: Discovery | None,
) -> int:
    control = Control(front, version, reload_from)
    ignore_signals(*SIGNALS)  # what holds again when the receiver below has closed
    with trio.open_signal_receiver(*SIGNALS) as signals:
        async with trio.open_nursery() as nursery:
            log = front.service.log
            nursery.start_soon(obey, signals, front, reload_from, nursery)
            # first of all: a plugin may block the loop before anything is served
            await nursery.start(Watchdog(lambda: front.service.world.plugins, log.remark).run)
            await nursery.start(front.run)
            nursery.start_soon(serve_calls, control_socket, control.answer, front.service.log_fault)
            nursery.start_soon(control.views.run)
            if health is not None:
                fault = front.service.log_fault
                nursery.start_soon(serve_calls, health, control.health, fault, HEALTH_PATIENCE, HEALTH_CALLERS)
            if discovery is not None:
                front.stale_files = lambda: [path for path, _ in discovery.changed()]
                nursery.start_soon(watch_files, discovery, log.remark, "restart frontd to load it")
            front.settled = freeze
            freeze()
            if ready is not None:
                sites = len(front.config.sites)
                ready(f"frontd ready: {', '.join(front.addresses())} ({sites} site{'s' if sites != 1 else ''})")
    return 0


async def obey(
    signals: AsyncIterator[int], front: Front, reload_from: Callable[[], Loaded] | None, nursery: trio.Nursery
) -> None:
    """Do what signals say, from the first moment on; the one that ends frontd ends `nursery`."""
    ending = False
    async for number in signals:
        if number == signal.SIGUSR1:
            front.service.log.reopen()
        elif number == signal.SIGHUP:
            nursery.start_soon(reload_by_signal, front, reload_from)
        elif front.is_ready and not ending:
            ending = True
            nursery.start_soon(drain_and_stop, front, nursery)
        else:  # a second one, or nothing serves yet
            nursery.cancel_scope.cancel()


def ignore_signals(*numbers: signal.Signals) -> None:
    """Let `numbers` pass without effect until somebody listens for them."""
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)


async def drain_and_stop(front: Front, nursery: trio.Nursery) -> None:
    """Drain, then end everything that runs in `nursery`."""
    await front.drain()
    nursery.cancel_scope.cancel()


async def reload_by_signal(front: Front, reload_from: Callable[[], Loaded] | None) -> None:
    """Reload and remark in the log how it went: a signal has nobody to answer to."""
    if front.state == "starting":
        front.service.log.remark("SIGHUP: frontd has only just read its configuration")
        return
    if reload_from is None:
        front.service.log.remark("SIGHUP: this frontd was started without a file to read again")
        return
    try:
        await front.reload(reload_from)
    except Exception as error:  # a fault of ours in reading or building: what serves goes on
        front.service.log_fault("reload", error)


def bind_health(health: Health | None) -> socket.socket | None:
    """The listening socket of ``health.listen``.  Raises `OSError`."""
    if health is None:
        return None
    address, port = health.listen
    return bind(Listen(name="health", kind="http", address=address, port=port)).sock
