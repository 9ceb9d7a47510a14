"""A process that serves one TLS profile: ``python -m tests.net.ticketfront CERT KEY CA < SECRET``.

It prints its port, answers each client with a byte, and ends with its standard input.  With a CA it demands
certificates.
"""

from __future__ import annotations

import os
import socket
import ssl
import sys
import threading
from pathlib import Path

from frontd.config.certificates import read_key_pair
from frontd.config.model import Certificate, TlsHost
from frontd.net.tickets import SECRET_SIZE, FamilySecret
from frontd.net.tls import build_profile


def main(cert: str, key: str, ca: str) -> None:
    secret = FamilySecret(os.read(0, SECRET_SIZE))
    demands = TlsHost(client_certificate="required", ca=Path(ca)) if ca else TlsHost()
    profile = build_profile(read_key_pair(Certificate(cert=Path(cert), key=Path(key))), demands, [], secret)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        threading.Thread(target=serve, args=(listener, profile.context), daemon=True).start()
        os.read(0, 1)


def serve(listener: socket.socket, context: ssl.SSLContext) -> None:
    while True:
        sock, _ = listener.accept()
        with sock, context.wrap_socket(sock, server_side=True) as secure:
            secure.sendall(b".")


if __name__ == "__main__":
    main(*sys.argv[1:])
