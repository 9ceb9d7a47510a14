"""Limits and timers: what every site has, and may have otherwise than the others."""

from __future__ import annotations

from pydantic import Field

from frontd.config.leaves import Count, CountOrNone, Part, Seconds, Size, SizeOrNone

# Where tokens of Kerberos pass, bytes: those of Windows reach 48 KiB, before Base64.
FOR_TOKENS = {"max_head": 65536, "max_field": 65536}


class Limits(Part):
    """Sizes and counts that one client may use.  Global, and per site over the global ones."""

    max_head: Size = Field(
        default=16384, ge=64, le=16777216,
        description="Request line and all header fields together, in bytes (HTTP.sys MaxRequestBytes: 16384).",
    )  # fmt: skip
    max_field: Size = Field(
        default=16384, ge=64, le=16777216,
        description="One header field, name and value, in bytes (HTTP.sys MaxFieldLength: 16384).",
    )  # fmt: skip
    max_fields: Count = Field(
        default=200,
        ge=1,
        le=10000,
        description="Header fields of one message (twice the 100 of HAProxy and Apache; HTTP.sys counts bytes only).",
    )
    max_segment: Count = Field(
        default=260, ge=1, le=65535, description="Characters of one path segment (HTTP.sys UrlSegmentMaxLength: 260)."
    )
    max_segments: Count = Field(
        default=255, ge=1, le=65535, description="Segments of one path (HTTP.sys UrlSegmentMaxCount: 255)."
    )
    max_url: SizeOrNone = Field(
        default=None, ge=1, description="Path and query, in bytes; `none`: whatever `max_head` allows (IIS maxUrl)."
    )
    max_query: SizeOrNone = Field(
        default=None, ge=1, description="Query, in bytes; `none`: whatever `max_head` allows (IIS maxQueryString)."
    )
    max_body: SizeOrNone = Field(
        default=30000000,
        ge=0,
        description="Request body, in bytes; `none`: unlimited (HTTP.sys MaxRequestBodySize: 30000000).",
    )
    max_connections: CountOrNone = Field(
        default=None, ge=1,
        description="Connections open at once: in all, or of one site; `none`: unlimited (IIS MaxConnections: "
            "unlimited).",
    )  # fmt: skip


class Timeouts(Part):
    """Timers, named as HTTP.sys names them.  Global, and per site over the global ones."""

    header_wait: Seconds = Field(
        default=120.0, gt=0, description="For the whole request head, counted from accept (HTTP.sys HeaderWait: 120 s)."
    )
    entity_body: Seconds = Field(
        default=120.0, gt=0, description="For each next part of a request body (HTTP.sys EntityBody: 120 s)."
    )
    drain_entity_body: Seconds = Field(
        default=120.0, gt=0,
        description="For the rest of a request body nobody wants any more (HTTP.sys DrainEntityBody: 120 s).",
    )  # fmt: skip
    idle_connection: Seconds = Field(
        default=120.0, gt=0, description="Between two requests of a client connection (HTTP.sys IdleConnection: 120 s)."
    )
    min_send_rate: Count = Field(
        default=150, ge=1, le=1000000000,
        description="Bytes per second a client must read, counted only while bytes wait (HTTP.sys "
            "MinSendBytesPerSecond: 150).",
    )  # fmt: skip
    connect: Seconds = Field(
        default=5.0, gt=0, description="To connect to a target, TLS included (HAProxy's documented example: 5 s)."
    )
    response_head: Seconds = Field(
        default=60.0, gt=0, description="From the sent request to the response head (nginx proxy_read_timeout: 60 s)."
    )
    response_body: Seconds = Field(
        default=60.0, gt=0, description="For each next part of a response body (nginx proxy_read_timeout: 60 s)."
    )
    tunnel_idle: Seconds = Field(
        default=3600.0,
        gt=0,
        description="Silence both ways in a WebSocket or other tunnel (HAProxy's example of timeout tunnel: 1 h).",
    )
    keep_alive: Seconds = Field(
        default=60.0,
        gt=0,
        description="An idle connection to a target is kept for this long (nginx upstream keepalive_timeout: 60 s).",
    )
    drain: Seconds = Field(
        default=30.0,
        ge=0,
        description="At shutdown, for what is still running (IIS shutdownTimeLimit: 90 s, which is longer than "
        "container "
        "engines wait).",
    )
