"""What sockets are asked and told beside reading and writing."""

from __future__ import annotations

import fcntl
import socket
import struct
import termios

_INT = struct.Struct("i")


def waiting_bytes(fd: int) -> int:
    """How many bytes the kernel holds of what has arrived on a socket."""
    (waiting,) = _INT.unpack(fcntl.ioctl(fd, termios.FIONREAD, bytes(_INT.size)))
    return int(waiting)


def tcp_options(sock: socket.socket) -> None:
    """What every TCP connection gets: no Nagle delay (messages are written whole)."""
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
