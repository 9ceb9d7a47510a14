"""Listening sockets: TCP for clients and health checks, a Unix socket for the control socket.

It stands by itself and needs the standard library only: the master binds every socket of the family, and the master
loads as little as it can.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path

BACKLOG = 1024  # nginx 511; the kernel caps it at net.core.somaxconn
CONTROL_BACKLOG = 64

_HINTS = {
    errno.EADDRINUSE: " (another program has it)",
    errno.EADDRNOTAVAIL: " (no interface of this machine has it)",
    errno.EACCES: " (a port below 1024 needs root, CAP_NET_BIND_SERVICE or net.ipv4.ip_unprivileged_port_start)",
}


def bind_tcp(name: str, address: str | None, port: int) -> socket.socket:
    """A listening, non-blocking TCP socket for the listener `name`; without an address: on every IPv6 and IPv4 address
    at once, and where the kernel has no IPv6, on every IPv4 address.

    Raises `OSError` whose text names the listener and the address.
    """
    try:
        return _bound(address, port)
    except OSError as error:
        hint = _HINTS.get(error.errno or 0, "")
        text = f"listener {name}: {address or '*'}:{port}: {error.strerror}{hint}"
        raise OSError(error.errno or errno.EINVAL, text) from None


def _bound(address: str | None, port: int) -> socket.socket:
    if address is None:
        try:
            return _listen(socket.AF_INET6, "::", port, both=True)
        except OSError as error:
            if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                raise
            return _listen(socket.AF_INET, "0.0.0.0", port)
    return _listen(socket.AF_INET6 if ":" in address else socket.AF_INET, address, port)


def _listen(family: socket.AddressFamily, address: str, port: int, *, both: bool = False) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if both else 1)
        sock.bind((address, port))
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


# ---------------------------------------------------------------------------------------------------- control socket


def bind_control(
    path: Path, what: str = "control", mode: int = 0o660, owner: int = -1, group: int = -1
) -> socket.socket:
    """A listening Unix socket with `mode` at `path`; one left by a frontd that died is replaced.

    `owner` and `group` are numbers, -1: as it comes.  Raises `OSError` when the path is taken by something else or by a
    frontd that lives.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(path)
        sock = bind_unix(path, mode, owner, group, backlog=CONTROL_BACKLOG)
    except OSError as error:
        raise OSError(error.errno or errno.EINVAL, f"{what} socket {path}: {error.strerror or error}") from None
    sock.setblocking(False)
    return sock


def bind_unix(
    path: Path, mode: int = 0o600, owner: int = -1, group: int = -1, *, backlog: int = BACKLOG
) -> socket.socket:
    """A listening, blocking Unix socket with `mode` at `path`, where nothing is yet.

    `owner` and `group` are numbers, -1: as it comes.  Raises `OSError`.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        previous = os.umask(0o777 & ~mode)  # the mode is right from the first moment
        try:
            sock.bind(str(path))
        finally:
            os.umask(previous)
        if (owner, group) != (-1, -1):
            os.chown(path, owner, group, follow_symlinks=False)
        sock.listen(backlog)
    except BaseException:
        sock.close()
        raise
    return sock


def _remove_stale(path: Path) -> None:
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise FileExistsError(errno.EEXIST, "the path is taken by something else")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:  # the only answer that proves that nobody listens
            path.unlink(missing_ok=True)
            return
        except BlockingIOError:  # somebody listens, and has a full backlog
            pass
    raise FileExistsError(errno.EADDRINUSE, "another frontd answers there (set control.socket)")
