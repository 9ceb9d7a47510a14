"""The servers of the benchmark: their configurations, written to be fair to each, and how they are started.

All write an access log to a file in the same folder, set X-Forwarded-For, speak HTTP/1.1 with kept connections to the
same origin, and use one core: nginx one worker, HAProxy one thread, frontd one front. Where a default would make a
server do work the others do not (nginx: a large body through a file on disk) it is turned off.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from bench.processes import Running, free_ports, start
from bench.tools import find

PLAIN_PROXY = Path(__file__).with_name("plain_proxy.py")
HOST = "localhost"  # of the certificate
KEEP = 1_000_000_000  # requests of one kept connection: no end
FILES = min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 65536)
CONNECTIONS = FILES // 2 - 256
PASSWORD = ("bench", "a password")

NGINX = """
daemon off;
master_process on;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
worker_rlimit_nofile {files};
{user}
events {{ worker_connections {connections}; }}
http {{
  access_log {log};
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  default_type application/octet-stream;
  sendfile on;
  tcp_nopush on;
  keepalive_timeout 600s;
  keepalive_requests {keep};
  client_max_body_size 0;
{servers}
}}
"""

NGINX_PROXY = """
  upstream origin {{ server 127.0.0.1:{origin}; keepalive 128; keepalive_requests {keep}; }}
  proxy_cache_path {folder}/cache keys_zone=answers:8m;
  proxy_http_version 1.1;
  proxy_set_header Connection "";
  proxy_set_header Host $http_host;
  proxy_set_header X-Forwarded-For $remote_addr;
  proxy_request_buffering off;
  proxy_max_temp_file_size 0;
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    listen 127.0.0.1:{tls_port} ssl backlog=4096;
    ssl_certificate {certificate};
    ssl_certificate_key {key};
    ssl_protocols TLSv1.2 TLSv1.3;
    ssl_session_cache shared:sessions:8m;
    location / {{ proxy_pass http://origin; }}
    location /cached/ {{ proxy_pass http://origin; proxy_cache answers; }}
    location /files/ {{ alias {www}/; }}
  }}
"""

NGINX_ORIGIN = """
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    listen unix:{folder}/origin.sock backlog=4096;
    root {folder}/www;
    location = /post {{ return 200 "{small}"; }}
    location /cached/ {{ add_header Cache-Control "public, max-age=36000"; }}
    location = /upload {{
      client_body_buffer_size 128m;
      proxy_pass http://127.0.0.1:{port}/empty;
      proxy_pass_request_body off;
      proxy_set_header Content-Length "";
    }}
    location = /empty {{ return 204; }}
    location /chunked/ {{ alias {folder}/www/; ssi on; ssi_types *; }}
    location = /seen {{ return 200 "$http_x_forwarded_for"; }}
    location = /cached/time {{ add_header Cache-Control "public, max-age=36000"; return 200 "$msec"; }}
  }}
"""

HAPROXY = """
global
  nbthread 1
  maxconn {connections}
  log stdout format raw daemon
  ssl-default-bind-options ssl-min-ver TLSv1.2
defaults
  mode http
  log global
  option httplog
  option forwardfor
  http-reuse always
  timeout connect 5s
  timeout client 600s
  timeout server 60s
  timeout http-keep-alive 600s
frontend front
  bind 127.0.0.1:{port} backlog 4096
  bind 127.0.0.1:{tls_port} ssl crt {pem} backlog 4096
  default_backend origin
backend origin
  server origin 127.0.0.1:{origin} maxconn 512
"""

FRONTD = """
state_dir: {folder}/state
control: {{socket: {folder}/control.sock}}
log: {{access: {{to: {folder}/access.log, format: w3c, max_size: 100GB}}, error: {{to: {folder}/error.log}}}}
listen:
  http: {{port: {port}, address: 127.0.0.1}}
  https: {{port: {tls_port}, address: 127.0.0.1}}
tls:
  certificates: [{{cert: {certificate}, key: {key}}}]
  default: {host}
limits: {{max_body: none}}
timeouts: {{idle_connection: 600s}}
{fronts}
sites:
  proxied:
    urls: ["http://*:{port}/", "https://*:{tls_port}/"]
    routes: {{/: origin, /files/: {{files: {www}}}}}
  cached:
    urls: ["http://*:{port}/cached/", "https://*:{tls_port}/cached/"]
    plugins: [response_cache]
    routes: {{/: origin}}
  locked:
    urls: ["http://*:{port}/cached/locked/"]
    plugins:
      - basic: {{users_file: {folder}/users, allow_http: true, cache_ttl: 1h}}
      - response_cache
    routes: {{/: origin}}
pools:
  origin: {{targets: ["{target}"]}}
"""


ASKED = """
fronts: 1
listen: {http: {port: 0}}
sites: {a: {urls: ["http://*/"], routes: {/: "http://127.0.0.1:9"}}}
"""


@dataclass
class Stage:
    """Where the benchmark runs: its folder, the cores, the origin, certificates and the frontd to be measured."""

    folder: Path
    proxy_core: int
    load_core: int
    frontd: tuple[str, ...]
    nginx_log: str = ""  # more parameters of nginx's access_log
    extra: dict[str, str] = field(default_factory=dict)  # commands of further proxies by name
    beside: dict[str, tuple[str, ...]] = field(default_factory=dict)  # further frontds by name
    asked: dict[str, bool] = field(default_factory=dict)
    origin: int = 0
    rate: float = 0.0  # requests per second of the case at a fixed rate

    @cached_property
    def certificate(self) -> tuple[Path, Path]:
        """Files of a self-signed ECDSA P-256 certificate and its key; made on first use."""
        from bench.certificate import write

        return write(self.folder, HOST)

    @property
    def www(self) -> Path:
        """The files of the origin, which the others serve too under ``/files/``."""
        return self.folder / "origin" / "www"

    def command(self, name: str) -> tuple[str, ...]:
        """The frontd behind the name of a server."""
        return self.beside.get(name, self.frontd)

    def check(self, text: str, name: str = "frontd") -> str:
        """What `frontd check` of a server has against a configuration; empty: nothing."""
        file = self.folder / "asked.yaml"
        file.write_text(text)
        done = subprocess.run(
            [*self.command(name), "check", str(file)], capture_output=True, text=True, timeout=60, check=False
        )
        return "" if done.returncode == 0 else (done.stderr + done.stdout).strip()

    def knows_fronts(self, name: str = "frontd") -> bool:
        """Whether this frontd takes the key `fronts`, which only it can tell; asked once."""
        if name not in self.asked:
            self.asked[name] = not self.check(ASKED, name)
        return self.asked[name]


# ---------------------------------------------------------------------------------------------------- configurations


def nginx_config(stage: Stage, folder: Path, port: int, servers: str) -> str:
    """The configuration of an nginx with these server blocks."""
    origin = "proxy_cache_path" not in servers
    return NGINX.format(
        folder=folder,
        files=FILES,
        connections=CONNECTIONS,
        keep=KEEP,
        user="user root;" if os.geteuid() == 0 else "",  # else its workers could not write into our folder
        log="off" if origin else f"{folder}/access.log combined {stage.nginx_log}".rstrip(),
        servers=servers,
    )


def nginx_proxy_config(stage: Stage, folder: Path, port: int, tls_port: int) -> str:
    """nginx as the proxy that is measured."""
    certificate, key = stage.certificate
    servers = NGINX_PROXY.format(
        folder=folder,
        port=port,
        tls_port=tls_port,
        origin=stage.origin,
        keep=KEEP,
        www=stage.www,
        certificate=certificate,
        key=key,
    )
    return nginx_config(stage, folder, port, servers)


def nginx_origin_config(stage: Stage, folder: Path, port: int) -> str:
    """nginx as the origin behind all of them."""
    return nginx_config(stage, folder, port, NGINX_ORIGIN.format(folder=folder, port=port, small="x" * 64))


def haproxy_config(stage: Stage, folder: Path, port: int, tls_port: int) -> str:
    """HAProxy; certificate and key in one file, written here."""
    certificate, key = stage.certificate
    pem = folder / "bench.pem"
    pem.write_bytes(certificate.read_bytes() + key.read_bytes())
    return HAPROXY.format(port=port, tls_port=tls_port, origin=stage.origin, pem=pem, connections=CONNECTIONS)


def frontd_config(
    stage: Stage, folder: Path, port: int, tls_port: int, fronts: int = 1, name: str = "frontd", target: str = ""
) -> str:
    """frontd with this number of fronts; `target` in place of the origin's port."""
    certificate, key = stage.certificate
    return FRONTD.format(
        folder=folder,
        port=port,
        tls_port=tls_port,
        target=target or f"http://127.0.0.1:{stage.origin}",
        certificate=certificate,
        key=key,
        host=HOST,
        fronts=f"fronts: {fronts}" if stage.knows_fronts(name) else "",
        www=stage.www,
    )


# ---------------------------------------------------------------------------------------------------- starting


def start_origin(stage: Stage) -> Running:
    """The origin on the load's core, with its bodies; sets `stage.origin`."""
    folder = stage.folder / "origin"
    www = stage.www
    for name in ("1k", "cached/1k", "cached/locked/1k"):
        (www / name).parent.mkdir(parents=True, exist_ok=True)
        (www / name).write_bytes(b"x" * 1024)
    with (www / "100m").open("wb") as big:
        big.truncate(100_000_000)  # a sparse file: read from memory, without a disk
    (port,) = free_ports(1)
    config = folder / "nginx.conf"
    config.write_text(nginx_origin_config(stage, folder, port))
    running = start("origin", [tool("nginx"), "-c", str(config)], folder, port, [stage.load_core])
    stage.origin = port
    return running


def tool(name: str) -> str:
    """The path of a tool that is known to be here."""
    found = find(name)
    assert found is not None, name
    return found


def start_nginx(stage: Stage, name: str, cores: Iterable[int]) -> Running:
    """nginx as a proxy."""
    folder, port, tls_port = place(stage, name)
    config = folder / "nginx.conf"
    config.write_text(nginx_proxy_config(stage, folder, port, tls_port))
    return start(name, [tool("nginx"), "-c", str(config)], folder, port, cores, tls_port)


def start_haproxy(stage: Stage, name: str, cores: Iterable[int]) -> Running:
    """HAProxy."""
    folder, port, tls_port = place(stage, name)
    config = folder / "haproxy.cfg"
    config.write_text(haproxy_config(stage, folder, port, tls_port))
    return start(name, [tool("haproxy"), "-db", "-f", str(config)], folder, port, cores, tls_port)


def start_frontd(stage: Stage, name: str, cores: Iterable[int], fronts: int = 1, target: str = "") -> Running:
    """The frontd that is to be measured."""
    folder, port, tls_port = place(stage, name)
    config = folder / "frontd.yaml"
    config.write_text(frontd_config(stage, folder, port, tls_port, fronts, name, target))
    write_users(folder / "users")
    return start(name, [*stage.command(name), "serve", str(config)], folder, port, cores, tls_port)


def start_two_fronts(stage: Stage, name: str, cores: Iterable[int]) -> Running:
    """frontd with two fronts."""
    return start_frontd(stage, name, cores, 2)


def start_over_unix(stage: Stage, name: str, cores: Iterable[int]) -> Running:
    """frontd with the origin as it has its workers: behind a Unix socket."""
    return start_frontd(stage, name, cores, target=f"unix:{stage.folder}/origin/origin.sock")


def start_plain(stage: Stage, name: str, cores: Iterable[int]) -> Running:
    """The plain trio + h11 proxy."""
    folder, port, _ = place(stage, name)
    command = [sys.executable, str(PLAIN_PROXY), str(port), str(stage.origin), str(folder / "access.log")]
    return start(name, command, folder, port, cores)


def start_extra(stage: Stage, name: str, cores: Iterable[int]) -> Running:
    """A proxy named on the command line; `{port}` and `{origin}` in its command are replaced."""
    folder, port, _ = place(stage, name)
    command = [part.format(port=port, origin=stage.origin) for part in stage.extra[name].split()]
    return start(name, command, folder, port, cores)


def place(stage: Stage, name: str) -> tuple[Path, int, int]:
    """A new folder for a server, with nothing of an earlier one in it, and two free ports."""
    folder = stage.folder / name.replace(" ", "-")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    port, tls_port = free_ports(2)
    return folder, port, tls_port


def write_users(file: Path) -> None:
    """The users file with the one user of the benchmark; bcrypt of the lowest cost, since verdicts come from memory."""
    import bcrypt

    user, password = PASSWORD
    file.write_bytes(user.encode() + b":" + bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)) + b"\n")
    file.chmod(0o600)


Start = Callable[[Stage, str, Iterable[int]], Running]
STARTS: dict[str, tuple[Start, str]] = {  # how it is started, and the tool it needs
    "frontd": (start_frontd, ""),
    "nginx": (start_nginx, "nginx"),
    "haproxy": (start_haproxy, "haproxy"),
    "plain": (start_plain, ""),
    "two fronts": (start_two_fronts, ""),
    "one front": (start_frontd, ""),
    "over unix": (start_over_unix, ""),
}
