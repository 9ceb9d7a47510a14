"""A small app that is run as a worker: ``python worker_app.py WHERE``, with a file descriptor, a port or a path.

It answers with its pid and how many requests it has at this moment; ``/slow`` takes until the file that
``$SLOW_UNTIL`` names is there, ``/die`` ends the process, ``/failing`` is answered with 500.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingMixIn, UnixStreamServer
from typing import Any

RUNNING = 0
LOCK = threading.Lock()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer leaves in one piece: one whose head is with the client cannot be asked for again

    def do_GET(self) -> None:
        global RUNNING
        with LOCK:
            RUNNING += 1
            now = RUNNING
        if self.path == "/die":
            os._exit(7)
        while self.path.startswith("/slow") and not os.path.exists(os.environ["SLOW_UNTIL"]):
            time.sleep(0.01)
        body = f"{os.getpid()} {now} {os.environ.get('COLOUR', '')}".encode()
        self.send_response(500 if self.path == "/failing" else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with LOCK:
            RUNNING -= 1  # before the answer is complete: the next request may come at once
        self.wfile.write(body)

    do_POST = do_OPTIONS = do_GET

    def address_string(self) -> str:
        return "-"

    def log_message(self, *_: Any) -> None: ...


class Server(ThreadingMixIn, UnixStreamServer):
    daemon_threads = True

    def __init__(self, sock: socket.socket) -> None:
        super().__init__("", Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = sock


def listening(where: str) -> socket.socket:
    if where.startswith("fd:"):
        return socket.socket(fileno=int(where[3:]))
    if where.startswith("port:"):
        return socket.create_server(("127.0.0.1", int(where[5:])))
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(where)
    sock.listen(64)
    return sock


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    if os.path.exists(os.environ.get("BROKEN_WHILE", "/nowhere/at/all")):
        sys.exit("it is broken")
    print("worker_app: ready", flush=True)
    Server(listening(sys.argv[1])).serve_forever()
