"""The service state as text, in the shape of `netsh http show servicestate`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from frontd.cli.tables import plain

Data = dict[str, Any]
# netsh's words; frontd's other timers are named as in the configuration
WORDS = {
    "entity_body": "Entity body timeout (secs)",
    "drain_entity_body": "Drain entity body timeout (secs)",
    "idle_connection": "Idle connection timeout (secs)",
    "header_wait": "Header wait timeout (secs)",
    "min_send_rate": "Minimum send rate (bytes/sec)",
}
INDENT = "    "


def timer_word(name: str) -> str:
    """What a timer is called, with its unit."""
    return WORDS.get(name) or f"{name} (secs)"


def servicestate_text(state: Data) -> str:
    """The answer of ``GET /servicestate``."""
    is_session = state["view"] == "session"
    title = f"Snapshot of HTTP service state ({'Server Session' if is_session else 'Request Queue'} View):"
    parts = [[title, "-" * len(title), ""]]
    if is_session:
        groups = [line for group in state["url_groups"] for line in url_group_lines(group)]
        whole = [*session_lines(state["session"]), "URL groups:", *indented(groups)]
        parts.append(["Server session:", *indented(whole)])
    parts.append(["", "Request queues:"])
    parts.extend(indented(queue_lines(queue)) for queue in state["request_queues"])
    if not is_session:
        parts.append(["", "Server session:", *indented(session_lines(state["session"]))])
    lines = [line.rstrip() for part in parts for line in part]
    return "\n".join(line for line, before in zip(lines, ["", *lines], strict=False) if line or before)


def indented(lines: Iterable[str]) -> list[str]:
    """`lines`, one level further in."""
    return [INDENT + line for line in lines]


def session_lines(session: Data) -> list[str]:
    """frontd as a whole."""
    return [
        f"Version: {session['version']}",
        f"State: {session['state']}",
        "Properties:",
        *indented([
            f"Max connections: {session['max_connections'] or 'no limit'}",
            "Timeouts:",
            *indented(timer_lines(session["timeouts"])),
        ]),
    ]  # fmt: skip


def timer_lines(timers: Data) -> list[str]:
    """One line for each timer."""
    return [f"{timer_word(name)}: {value:g}" for name, value in timers.items()]


def url_group_lines(group: Data) -> list[str]:
    """A site."""
    timeouts = group["timeouts"]
    own = ["Timeouts:", *indented(timer_lines(timeouts))] if timeouts else ["Timeout values inherited"]
    schemes = ", ".join(group["authentication"])
    return [
        f"URL group: {plain(group['name'])}",
        *indented([
            f"State: {group['state']}",
            f"Request queue name: {', '.join(map(plain, group['request_queues'])) or '(none)'}",
            "Properties:",
            *indented([f"Max connections: {group['max_connections'] or 'no limit'}", *own]),
            "Authentication Configuration:",
            *indented([f"Authentication schemes enabled: {schemes or '(none)'}"]),
            f"Number of registered URLs: {len(group['urls'])}",
            "Registered URLs:",
            *indented(group["urls"]),
        ]),
        "",
    ]  # fmt: skip


def queue_lines(queue: Data) -> list[str]:
    """The queue of a pool, and with it what leads to it when that is told."""
    targets = [f"{plain(target['address'])} ({target['state']})" for target in queue["targets"]]
    lines = [
        f"State: {queue['state']}",
        f"Request queue 503 verbosity level: {queue['verbosity']}",
        f"Max requests: {queue['max_requests']}",
        f"Request queue timeout (secs): {queue['timeout']:g}",
        f"Requests waiting: {queue['size']}",
    ]
    if queue["processes"] is not None:
        pids = queue["processes"]
        lines += [f"Number of active processes attached: {len(pids)}", "Process IDs:", *indented(map(str, pids))]
    else:
        lines += [f"Number of targets: {len(targets)}", *indented(targets)]
    if "url_groups" in queue:
        lines += ["URL groups:", *indented(line for group in queue["url_groups"] for line in url_group_lines(group))]
    return [f"Request queue name: {plain(queue['name'])}", *indented(lines), ""]
