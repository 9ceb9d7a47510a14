"""The configuration as the rest of the program reads it: frozen, complete, in plain units.

After `load` everything here is normalised: paths are absolute, sizes are bytes, durations are seconds, shorthands are
expanded, a site's limits and timeouts are merged over the global ones, derived listeners and implicit pools exist.
What people type is a little freer; `build` turns it into this, `schema` describes it, `docs` makes the reference from
the descriptions below.  Every default states its precedent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from pydantic import Field, PrivateAttr, model_validator

from frontd.config import places
from frontd.config.admin import Control, Health
from frontd.config.identity import IdentityToken
from frontd.config.leaves import (
    Address,
    ConnectionScheme,
    Count,
    CountOrNone,
    Demand,
    File,
    Flag,
    FrontCount,
    ListenerKind,
    LogFormat,
    LogTo,
    Name,
    Network,
    Part,
    Port,
    Redirect,
    Refusal,
    Seconds,
    Secret,
    Size,
    Status,
    Text,
    TlsVersion,
    Url,
)
from frontd.config.limits import Limits, Timeouts
from frontd.config.plugins import Entries
from frontd.config.target import Target, TargetText
from frontd.config.urlacl import Attach, UrlAcl
from frontd.config.workers import Workers
from frontd.model.reservations import Claim
from frontd.model.urlprefix import canonical_host

__all__ = [
    "Attach",
    "Cache",
    "Certificate",
    "Config",
    "Control",
    "Health",
    "IdentityToken",
    "Limits",
    "Listen",
    "Log",
    "LogFile",
    "M",
    "Part",
    "Pool",
    "PoolTls",
    "Queue",
    "Route",
    "Site",
    "Target",
    "Timeouts",
    "Tls",
    "TlsHost",
    "UrlAcl",
    "Workers",
    "tls_host_name",
]

M = TypeVar("M", bound=Part)


# ---------------------------------------------------------------------------------------------------- listen, tls


class Listen(Part):
    """One listener: an address it is bound to, and the port clients type to reach it."""

    name: Name
    kind: ListenerKind = Field(description="`http` or `https`; listeners named `http` and `https` imply theirs.")
    address: Address | None = Field(
        default=None, description="IP address to bind; left out: every IPv4 and IPv6 address (as Caddy and Traefik do)."
    )
    port: Port = Field(description="Port to bind; 0: any free one, printed at start.")
    public_port: Port | None = Field(
        default=None, ge=1,
        description="Port clients type when it is another one, as behind `ports: [\"443:8443\"]` in compose; "
            "default: `port`. "
        "A listener on port 0 without it matches sites by host alone.",
    )  # fmt: skip
    proxy_protocol: Flag = Field(
        default=False,
        description="Demand a PROXY protocol header, v1 or v2, on every connection (off, as in HAProxy and nginx).",
    )

    @model_validator(mode="after")
    def _public_port_defaults_to_port(self) -> Listen:
        if self.public_port is None and self.port != 0:
            # object.__setattr__: the model is frozen for everybody else
            object.__setattr__(self, "public_port", self.port)
        return self


class Certificate(Part):
    """A certificate with its key: a PEM pair, or a PKCS#12 file.  Its hosts are the names in the certificate."""

    cert: File | None = Field(default=None, description="PEM file: the certificate, then its chain.")
    key: File | None = Field(
        default=None, description="PEM file of the private key; left out: it stands in `cert` (as in HAProxy)."
    )
    pfx: File | None = Field(
        default=None, description="PKCS#12 file with certificate, key and chain, instead of `cert` and `key`."
    )
    password: Secret | None = Field(
        default=None, description="Password of `pfx`, best as `${file:/run/secrets/…}`; left out: it has none."
    )
    name: Text = Field(
        default="", description="Name for `tls.default` and the logs; left out: its position in the list, from 0."
    )

    @model_validator(mode="after")
    def _pair_or_pfx(self) -> Certificate:
        if self.pfx is not None and (self.cert is not None or self.key is not None):
            raise ValueError("`pfx` holds certificate and key; `cert` and `key` do not stand beside it")
        if self.pfx is None and self.cert is None:
            raise ValueError("a certificate is `cert` and `key`, or `pfx`")
        if self.pfx is None and self.password is not None:
            raise ValueError("`password` belongs to `pfx`; a PEM key must not be encrypted")
        return self


class TlsHost(Part):
    """TLS demands of one host."""

    client_certificate: Demand = Field(
        default="none",
        description="Ask the client for a certificate: not at all, if it has one, or always (nginx "
        "ssl_verify_client: off).",
    )
    ca: File | None = Field(
        default=None, description="PEM file of the authorities that client certificates must come from."
    )
    crl: File | None = Field(
        default=None, description="PEM file of revocation lists that client certificates are checked against."
    )
    min_version: TlsVersion = Field(default="1.2", description="Oldest TLS version (RFC 9325: 1.2).")

    @model_validator(mode="after")
    def _demand_needs_ca(self) -> TlsHost:
        if self.client_certificate != "none" and self.ca is None:
            raise ValueError(
                f"client_certificate: {self.client_certificate} needs `ca`, the file of authorities to trust"
            )
        if self.client_certificate == "none" and (self.ca or self.crl):
            unused = "ca" if self.ca else "crl"
            raise ValueError(f"`{unused}` has no use while client_certificate is none; set it to optional or required")
        return self


class Tls(Part):
    """Certificates and the TLS demands of hosts."""

    certificates: tuple[Certificate, ...] = Field(
        default=(), description="The certificates; chosen by the name in the TLS hello."
    )
    # after load: a certificate's name or a canonical host
    default: Text | None = Field(
        default=None,
        description="Certificate served when no certificate covers the name in the hello: a host it covers, its "
        "`name`, or its position "
        "from 0; left out: such a handshake is refused (Caddy, HAProxy strict-sni).",
    )
    hosts: dict[str, TlsHost] = Field(default_factory=dict, description="Demands by host.")


# ---------------------------------------------------------------------------------------------------- pools


class Queue(Part):
    """The bounded request queue of a pool."""

    limit: Count = Field(default=1000, ge=1, le=1000000, description="Requests that may wait (IIS queueLength: 1000).")
    wait: Seconds = Field(
        default=30.0,
        ge=0,
        description="How long one may wait (HTTP.sys RequestQueue is 120 s; that is too long behind a browser).",
    )


class PoolTls(Part):
    """How `https` targets are verified."""

    ca: File | None = Field(default=None, description="PEM file of the authorities to trust; left out: the system's.")
    server_name: Text | None = Field(
        default=None, description="Name to send and to verify; left out: the target's host."
    )


class Pool(Part):
    """A named set of targets with one request queue."""

    name: Name
    targets: tuple[TargetText, ...] = Field(
        default=(),
        description="`http://host:port`, `https://host:port` or `unix:/path`; names are looked up again and again.",
    )
    workers: Workers | None = Field(default=None, description="App processes that frontd runs, in place of `targets`.")
    attach: Attach | None = Field(
        default=None, description="Processes register themselves here, in place of `targets` (`frontd attach`)."
    )
    concurrency: CountOrNone = Field(
        default=None,
        ge=1,
        description="Requests at once per address of a target; more wait in the queue (HAProxy maxconn: unlimited).",
    )
    queue: Queue = Field(
        default_factory=Queue, description="Where requests wait while no target is free or connectable."
    )
    refuse_with: Refusal = Field(
        default="reason",
        description="What a client sees whose request finds the queue full, the app offline, or waits too long: the "
        "error page with its word, `status` for a 503 that says no more, `reset` for a TCP reset (HTTP.sys's 503 "
        "verbosity Full, Limited and Basic, which is its default; IIS and a person who looks need the page).",
    )
    tls: PoolTls = Field(default_factory=PoolTls, description="Verification of `https` targets.")
    resolve: Seconds = Field(
        default=5.0,
        ge=0.1,
        description="Between two look-ups of a name (HAProxy: timeout resolve 1 s, hold valid 10 s).",
    )
    replay_body: Size = Field(
        default=65536, ge=0, le=1073741824,
        description="Bytes of a request body kept so that the request can be repeated on another connection "
            "(between HAProxy's one "
        "buffer of 16 KiB and Envoy's 1 MiB).",
    )  # fmt: skip
    replay_memory: Size = Field(
        default=16777216, ge=0,
        description="Bytes of all such bodies together, in each front; what finds no room is sent once (gRPC's "
            "retryBufferSize: 16 MiB).",
    )  # fmt: skip
    lenient_responses: Flag = Field(
        default=False,
        description="Accept bare LF and folded fields in response heads of old backends (strict, as RFC 9112 asks).",
    )
    sendfile_from: File | None = Field(
        default=None,
        description="Directory whose files the apps may have sent in place of their answer, by naming one in "
        "`X-Sendfile` (as lighttpd and Apache's mod_xsendfile); left out: the field means nothing.",
    )
    pass_through: tuple[ConnectionScheme, ...] = Field(
        default=(),
        description="Schemes by which the apps log on the connection itself: a client that uses one has a connection "
        "of its own to its app, which ends with its own (nginx's `ntlm`, Angie's `bind_conn`). Answers of such a pool "
        "are not cached; its sites' `limits.max_head` and `max_field` are 65536 bytes unless written (a Kerberos "
        "ticket with many groups).",
    )

    @model_validator(mode="after")
    def _one_source(self) -> Pool:
        sources = sum((bool(self.targets), self.workers is not None, self.attach is not None))
        if sources != 1:
            raise ValueError(f"a pool has one of `targets`, `workers` and `attach`{', and not two' if sources else ''}")
        if self.workers is not None and self.concurrency is not None:
            raise ValueError("how many requests a worker gets at once is `workers.concurrency`")
        return self


# ---------------------------------------------------------------------------------------------------- sites


class Route(Part):
    """Where the requests under a path prefix go: a pool, the files of a directory, or a redirect."""

    pool: Text | None = Field(default=None, description="Name of a pool.")
    files: File | None = Field(default=None, description="Directory whose files are served; nothing outside of it is.")
    index: tuple[Text, ...] = Field(
        default=("index.html",), description="Files that stand for their directory, the first one that exists (nginx)."
    )
    redirect: Redirect | None = Field(
        default=None, description="URL to redirect to; `{path}` in it is replaced by path and query of the request."
    )
    status: Status = Field(
        default=308, description="Status of the redirect (Caddy and RFC 9110: 308 keeps method and body)."
    )
    strip_prefix: Flag = Field(
        default=False, description="Forward the path without the route's prefix (off, as in nginx and Traefik)."
    )

    urgency: Count = Field(
        default=3, ge=0, le=7,
        description="Who goes first where requests of the pool wait, from 0, the most urgent, to 7 (RFC 9218's scale "
            "and default; HAProxy: set-priority-class).",
    )  # fmt: skip

    @model_validator(mode="after")
    def _one_destination(self) -> Route:
        if sum(one is not None for one in (self.pool, self.files, self.redirect)) != 1:
            raise ValueError("a route has exactly one of `pool`, `target`, `files` and `redirect`")
        if self.files is None and "index" in self.model_fields_set:
            raise ValueError("`index` belongs to `files`")
        if any("/" in name or name.startswith(".") for name in self.index):
            raise ValueError("`index` names files of the directory itself, such as index.html")
        if self.files is not None and self.strip_prefix:
            raise ValueError("`strip_prefix` needs `pool` or `target`; `files` always leaves the route's prefix off")
        if self.redirect is not None and self.strip_prefix:
            raise ValueError("`strip_prefix` needs `pool` or `target`; a redirect forwards nothing")
        if self.pool is None and "urgency" in self.model_fields_set:
            raise ValueError("`urgency` needs `pool` or `target`; only their requests wait")
        if self.redirect is None and "status" in self.model_fields_set:
            raise ValueError("`status` belongs to `redirect`")
        return self


class Site(Part):
    """What a set of URLs leads to."""

    name: Name
    urls: tuple[Url, ...] = Field(
        min_length=1,
        description="UrlPrefixes with the ports clients type: `scheme://host[:port][/path/]`, host `+` "
        "(everything), a name, `*.name`, an IP "
        "address or `*` (everything else); left out: `https://KEY/`, the site's key being its host.",
    )
    routes: dict[str, Route] = Field(
        min_length=1,
        description="Absolute path prefixes; the longest one of complete segments wins, letter case does not "
        "count (HTTP.sys).",
    )
    plugins: Entries = Field(
        default=(), description="Plugins of this site, asked in this order after those of the whole server."
    )
    limits: Limits = Field(default_factory=Limits, description="Limits of this site, over the global ones.")
    timeouts: Timeouts = Field(default_factory=Timeouts, description="Timers of this site, over the global ones.")
    redirect_http: Flag = Field(
        default=True, description="Answer http with a redirect for hosts that have only https URLs (Caddy: on)."
    )
    underscores_in_headers: Flag = Field(
        default=False,
        description="Forward fields with `_` in their name; off: they are dropped and counted (nginx: off).",
    )
    challenges: tuple[Text, ...] = Field(
        default=(),
        description="Authenticators in the order in which a 401 names them, by their words; those left out follow, "
        "the strongest scheme first: Negotiate, NTLM, others, Basic (IIS: the list of providers).",
    )
    identity: IdentityToken | None = Field(
        default=None, description="The signed field of this site; left out: as under `identity` at the top."
    )


# ---------------------------------------------------------------------------------------------------- log, the whole


class LogFile(Part):
    """One log: where it goes and how its lines look."""

    to: LogTo = Field(default_factory=lambda: "stdout", description="Where lines go; left out: see `log`.")
    format: LogFormat = Field(
        default_factory=lambda: "json",
        description="`json`, or the W3C extended format of IIS; left out: `json` for an access log on stdout or "
        "stderr, else `w3c`.",
    )
    max_size: Size = Field(
        default=20971520, ge=65536, description="A file larger than this is rotated (IIS truncateSize: 20971520 bytes)."
    )
    keep: Count = Field(
        default=5,
        ge=1,
        le=1000,
        description="Rotated files kept beside the current one (Docker's local log driver: 5).",
    )


class Log(Part):
    """The logs."""

    access: LogFile = Field(
        default_factory=lambda: LogFile(to="stdout", format="json"),
        description="One line per request; left out: JSON on stdout in a container (as Docker expects), else W3C in "
        "`log/access.log` of the state directory (as IIS does).",
    )
    error: LogFile = Field(
        default_factory=lambda: LogFile(to="stderr", format="w3c"),
        description="One line per failure, as HTTPERR has them; left out: on stderr.",
    )
    events: File | None = Field(
        default=None,
        description="File for what happens to supervised pools, one JSON object per line, with the numbers of WAS in "
        "Windows' system log; left out: they stand in the error log alone.",
    )


class Cache(Part):
    """The memory that plugins of one front share, which is where `response_cache` keeps answers."""

    memory: Size = Field(
        default=67108864, ge=1048576,
        description="Bytes of it in each front; the least recently used entries leave first (between Squid's "
            "cache_mem of 256 MB and the caches of a small container).",
    )  # fmt: skip


class Config(Part):
    """The whole configuration."""

    listen: dict[str, Listen] = Field(
        default_factory=dict,
        description="Listeners by name; left out: derived from the ports in the sites' URLs (as HTTP.sys "
        "binds), plus http on 80 for redirects.",
    )
    tls: Tls = Field(default_factory=Tls, description="Certificates and TLS demands.")
    trusted_proxies: tuple[Network, ...] = Field(
        default=(),
        description="Networks whose `X-Forwarded-*` and `Forwarded` are believed; none (as Caddy and Traefik).",
    )
    plugins: Entries = Field(
        default=(), description="Plugins of every site, asked in this order before the site's own."
    )
    plugins_dir: File | None = Field(
        default=None, description="Directory with plugins of your own, one or more in each `*.py` file; left out: none."
    )
    sites: dict[str, Site] = Field(min_length=1, description="Sites by name.")
    pools: dict[str, Pool] = Field(
        default_factory=dict, description="Pools by name; a route that names a target makes its own."
    )
    urlacl: tuple[UrlAcl, ...] = Field(
        default=(),
        description="URL reservations, beside those of `frontd urlacl add`: who may register which prefix at run time.",
    )
    reserved_status: Count = Field(
        default=503, ge=400, le=599,
        description="Status for what is reserved and was never registered (HTTP.sys: 400; here 503, since the owner is "
        "expected to come).",
    )  # fmt: skip
    fronts: FrontCount = Field(
        default=None, ge=1, le=128,
        description="Processes that serve requests; `auto`: one for each core that may be used, a CPU quota "
            "rounded up (nginx: worker_processes auto), and 128 MiB of a memory limit for each.",
    )  # fmt: skip
    cache: Cache = Field(default_factory=Cache, description="Memory for cached answers.")
    limits: Limits = Field(default_factory=Limits, description="Limits of every site, and of the server as a whole.")
    timeouts: Timeouts = Field(
        default_factory=Timeouts, description="Timers of every site, and of the server as a whole."
    )
    identity: IdentityToken | None = Field(
        default=None, description="A signed field that tells apps who has logged on; left out: none."
    )
    log: Log = Field(default_factory=Log, description="Access log and error log.")
    control: Control = Field(default_factory=Control, description="The control socket, and the admin listener.")
    health: Health | None = Field(default=None, description="Health endpoints on TCP; left out: none.")
    state_dir: File = Field(
        default_factory=places.default_state_dir,
        description="Where frontd keeps what must survive a restart; left out: `$FRONTD_STATE_DIR`, "
        "`/var/lib/frontd` in a container whose user can write there, else "
        "`$XDG_STATE_HOME/frontd` or `~/.local/state/frontd`.",
    )

    # Not a key: what is reserved and registered at run time, laid over what people have written.
    _claims: tuple[Claim, ...] = PrivateAttr(default=())

    @property
    def claims(self) -> tuple[Claim, ...]:
        """Prefixes that are reserved or registered (`frontd.processes.claims`)."""
        return self._claims

    def claimed(self, claims: tuple[Claim, ...], pools: Mapping[str, Pool]) -> Config:
        """This configuration with `claims` and the pools of their queues laid over it."""
        made = self.model_copy(update={"pools": {**self.pools, **pools}})
        made._claims = claims
        return made


def tls_host_name(key: str) -> str:
    """A key of ``tls.hosts`` in canonical form: a name, an IP address or ``*.name``.  Raises `ValueError`."""
    return "*." + canonical_host(key[2:]) if key.startswith("*.") else canonical_host(key)
