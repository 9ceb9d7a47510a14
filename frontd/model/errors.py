"""The one vocabulary for everything that goes wrong.

A `Reason` says in one word why frontd itself answered a request or dropped a connection.  HTTP.sys's HTTPERR words come
first; words of our own are added where HTTP.sys has none (it has no upstreams).  The word appears in the error page, in
``Proxy-Status`` (RFC 9209), in the error log, in the counters and in docs/errors.md; a test holds the five together.

`FrontdError` carries a reason from where it is noticed to the one place that answers it.  `detail` is for the log and
may name internal addresses; `hint` is for the client and never does.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum


class Source(Enum):
    """Which side failed: decides who is told and how loudly."""

    DOWNSTREAM = "downstream"
    UPSTREAM = "upstream"
    INTERNAL = "internal"


class Reason(Enum):
    """Word, status of the answer (0: no answer is possible), source, RFC 9209 error type, sentence for people."""

    def __init__(self, word: str, status: int, source: Source, proxy_error: str, sentence: str) -> None:
        self.word = word
        self.status = status
        self.source = source
        self.proxy_error = proxy_error
        self.sentence = sentence

    # --- the request itself (HTTPERR words)
    BadRequest = (
        "BadRequest",
        400,
        Source.DOWNSTREAM,
        "http_request_error",
        "The request is not valid HTTP.",
    )
    Verb = (
        "Verb",
        400,
        Source.DOWNSTREAM,
        "http_request_error",
        "The request method is not a valid token.",
    )
    URL = (
        "URL",
        400,
        Source.DOWNSTREAM,
        "http_request_error",
        "The URL is not valid.",
    )
    URL_Length = (
        "URL_Length",
        414,
        Source.DOWNSTREAM,
        "http_request_denied",
        "The URL, one of its segments or its query is too long.",
    )
    Version_NS = (
        "Version_N/S",
        505,
        Source.DOWNSTREAM,
        "http_request_error",
        "This HTTP version is not supported here.",
    )
    Hostname = (
        "Hostname",
        400,
        Source.DOWNSTREAM,
        "http_request_denied",
        "No site is served under this host name, or the Host field is missing or not valid.",
    )
    Header = (
        "Header",
        400,
        Source.DOWNSTREAM,
        "http_request_error",
        "A header field is not valid.",
    )
    Number = (
        "Number",
        400,
        Source.DOWNSTREAM,
        "http_request_error",
        "A number in the request, such as Content-Length or a chunk size, is not valid.",
    )
    Invalid_CRLF = (
        "Invalid_CR/LF",
        400,
        Source.DOWNSTREAM,
        "http_request_error",
        "A line does not end in CR LF, or a CR or LF stands where none may.",
    )
    FieldLength = (
        "FieldLength",
        431,
        Source.DOWNSTREAM,
        "http_request_denied",
        "A header field is too long, or there are too many.",
    )
    RequestLength = (
        "RequestLength",
        431,
        Source.DOWNSTREAM,
        "http_request_denied",
        "The request line and header fields are too long together.",
    )
    EntityTooLarge = (
        "EntityTooLarge",
        413,
        Source.DOWNSTREAM,
        "http_request_denied",
        "The request body is larger than this site accepts.",
    )
    NotImplemented_NI = (
        "N/I",
        501,
        Source.DOWNSTREAM,
        "http_request_denied",
        "The method or the transfer coding is not implemented here.",
    )
    Expectation = (
        "Expectation",
        417,
        Source.DOWNSTREAM,
        "http_request_denied",
        "The Expect field asks for something other than 100-continue.",
    )
    NotFound = (
        "NotFound",
        404,
        Source.DOWNSTREAM,
        "destination_not_found",
        "Nothing is served under this path.",
    )
    Misdirected = (
        "Misdirected",
        421,
        Source.DOWNSTREAM,
        "http_request_denied",
        "This host has other TLS rules than the connection was made under; open a new connection for it.",
    )
    Loop = (
        "Loop",
        508,
        Source.DOWNSTREAM,
        "proxy_loop_detected",
        "The request came through this server again and again; a target leads back to it.",
    )
    PlainHttp = (
        "PlainHttp",
        400,
        Source.DOWNSTREAM,
        "http_request_error",
        "Plain HTTP was spoken on an HTTPS port; use https:// in the URL.",
    )
    ProxyHeader = (
        "ProxyHeader",
        0,
        Source.DOWNSTREAM,
        "http_request_error",
        "The PROXY protocol header that this listener demands is missing or not valid.",
    )
    TlsHandshake = (
        "TlsHandshake",
        0,
        Source.DOWNSTREAM,
        "tls_alert_sent",
        "The TLS handshake failed.",
    )
    TlsHostname = (
        "TlsHostname",
        0,
        Source.DOWNSTREAM,
        "tls_alert_sent",
        "No certificate covers the name in the TLS hello, and there is no default.",
    )
    # --- who may come in
    LogonRequired = (
        "LogonRequired",
        401,
        Source.DOWNSTREAM,
        "http_request_denied",
        "This needs a logon.",
    )
    LogonFailed = (
        "LogonFailed",
        401,
        Source.DOWNSTREAM,
        "http_request_denied",
        "The user name or password, the token or the ticket is not valid.",
    )
    LogonThrottled = (
        "LogonThrottled",
        429,
        Source.DOWNSTREAM,
        "http_request_denied",
        "Too many logons have failed; try again later.",
    )
    LogonBusy = (
        "LogonBusy",
        503,
        Source.INTERNAL,
        "proxy_internal_response",
        "Too many logons are being checked at once; try again in a moment.",
    )
    Forbidden = (
        "Forbidden",
        403,
        Source.DOWNSTREAM,
        "http_request_denied",
        "The rules of this site do not let you in here.",
    )
    TlsRequired = (
        "TlsRequired",
        403,
        Source.DOWNSTREAM,
        "http_request_denied",
        "This is served over https only.",
    )
    AddressDenied = (
        "AddressDenied",
        403,
        Source.DOWNSTREAM,
        "http_request_denied",
        "The rules of this site do not let your address in.",
    )
    RateLimit = (
        "RateLimit",
        429,
        Source.DOWNSTREAM,
        "http_request_denied",
        "Too many requests came from your address.",
    )
    Rejected = (
        "Rejected",
        404,
        Source.DOWNSTREAM,
        "http_request_denied",
        "A filter of this site refused the request.",
    )
    # --- files
    MethodNotAllowed = (
        "MethodNotAllowed",
        405,
        Source.DOWNSTREAM,
        "http_request_denied",
        "This method is not allowed here.",
    )
    Precondition = (
        "Precondition",
        412,
        Source.DOWNSTREAM,
        "http_request_denied",
        "The condition that the request names does not hold.",
    )
    Range = (
        "Range",
        416,
        Source.DOWNSTREAM,
        "http_request_denied",
        "The range asked for lies outside of what is there.",
    )
    # --- limits
    ConnLimit = (
        "ConnLimit",
        503,
        Source.DOWNSTREAM,
        "connection_limit_reached",
        "Too many connections are open.",
    )
    QueueFull = (
        "QueueFull",
        503,
        Source.UPSTREAM,
        "connection_limit_reached",
        "The request queue of the application is full.",
    )
    AppOffline = (
        "AppOffline",
        503,
        Source.UPSTREAM,
        "destination_unavailable",
        "The application could not be reached while the request waited in its queue.",
    )
    AppShutdown = (
        "AppShutdown",
        503,
        Source.INTERNAL,
        "destination_unavailable",
        "The server is shutting down.",
    )
    # --- timers (HTTP.sys names)
    Timer_HeaderWait = (
        "Timer_HeaderWait",
        408,
        Source.DOWNSTREAM,
        "http_request_error",
        "The request head did not arrive in time.",
    )
    Timer_EntityBody = (
        "Timer_EntityBody",
        408,
        Source.DOWNSTREAM,
        "http_request_error",
        "The request body did not arrive in time.",
    )
    Timer_DrainEntityBody = (
        "Timer_DrainEntityBody",
        0,
        Source.DOWNSTREAM,
        "http_request_error",
        "The rest of an unwanted request body did not arrive in time.",
    )
    Timer_ConnectionIdle = (
        "Timer_ConnectionIdle",
        0,
        Source.DOWNSTREAM,
        "connection_timeout",
        "The connection was idle for too long.",
    )
    Timer_MinBytesPerSecond = (
        "Timer_MinBytesPerSecond",
        0,
        Source.DOWNSTREAM,
        "connection_write_timeout",
        "The client read its answer too slowly.",
    )
    Timer_ReqQueue = (
        "Timer_ReqQueue",
        503,
        Source.UPSTREAM,
        "connection_limit_reached",
        "The application was busy for as long as the request may wait in its queue.",
    )
    Timer_Response = (
        "Timer_Response",
        504,
        Source.UPSTREAM,
        "http_response_timeout",
        "The application did not answer in time.",
    )
    Timer_ResponseBody = (
        "Timer_ResponseBody",
        504,
        Source.UPSTREAM,
        "http_response_timeout",
        "The application stopped in the middle of its answer.",
    )
    Timer_TunnelIdle = (
        "Timer_TunnelIdle",
        0,
        Source.DOWNSTREAM,
        "connection_timeout",
        "Nothing passed through the tunnel for too long.",
    )
    # --- connections
    Client_Reset = (
        "Client_Reset",
        0,
        Source.DOWNSTREAM,
        "connection_terminated",
        "The client closed the connection before its answer began.",
    )
    Connection_Dropped = (
        "Connection_Dropped",
        0,
        Source.DOWNSTREAM,
        "connection_terminated",
        "The connection ended in the middle of a request or an answer.",
    )
    Connection_Abandoned_By_ReqQueue = (
        "Connection_Abandoned_By_ReqQueue",
        502,
        Source.UPSTREAM,
        "connection_terminated",
        "The application ended the connection without an answer, and the request may not be repeated.",
    )
    # --- the answer of the application
    BadUpstreamHead = (
        "BadUpstreamHead",
        502,
        Source.UPSTREAM,
        "http_protocol_error",
        "The application answered with something that is not valid HTTP.",
    )
    BadUpstreamBody = (
        "BadUpstreamBody",
        502,
        Source.UPSTREAM,
        "http_response_incomplete",
        "The application's answer broke off or is not framed correctly.",
    )
    BadSendfile = (
        "BadSendfile",
        502,
        Source.UPSTREAM,
        "http_protocol_error",
        "The application named a file that cannot be sent.",
    )
    UpstreamTls = (
        "UpstreamTls",
        502,
        Source.UPSTREAM,
        "tls_certificate_error",
        "No trusted TLS connection to the application could be made.",
    )
    DelegationFailed = (
        "DelegationFailed",
        502,
        Source.UPSTREAM,
        "proxy_configuration_error",
        "No logon at the application could be had for this request.",
    )
    # --- ourselves
    PluginFault = (
        "PluginFault",
        500,
        Source.INTERNAL,
        "proxy_internal_error",
        "A plugin of this site failed.",
    )
    Internal = (
        "Internal",
        500,
        Source.INTERNAL,
        "proxy_internal_error",
        "Something failed inside the server.",
    )

    def __str__(self) -> str:
        return self.word


class FrontdError(Exception):
    """Something went wrong with one exchange or one connection.

    `reason` decides status and wording; `status` overrides the reason's status; `detail` goes to the log only; `hint`
    is shown to the client; `retry_after` is in seconds (``Retry-After``, RFC 9110 10.2.3); `substatus` is IIS's second
    number; `fields` are added to the answer.  `verbosity` is how much the client is told: ``reason``, ``status``
    without the word, or ``reset`` (HTTP.sys's HTTP_503_RESPONSE_VERBOSITY: Full, Limited, Basic).  `page` is HTML that
    stands in place of ours.
    """

    def __init__(
        self,
        reason: Reason,
        *,
        detail: str = "",
        hint: str = "",
        status: int | None = None,
        retry_after: int | None = None,
        substatus: int = 0,
        fields: Iterable[tuple[bytes, bytes]] = (),
    ) -> None:
        super().__init__(f"{reason.word}: {detail or hint or reason.sentence}")
        self.reason = reason
        self.detail = detail
        self.hint = hint
        self.status = reason.status if status is None else status
        self.retry_after = retry_after
        self.substatus = substatus
        self.fields = tuple(fields)
        self.verbosity = "reason"
        self.page = b""


class UpstreamGone(Exception):
    """An upstream connection ended before the first byte of a response: the exchange may be repeatable.

    Not a `FrontdError`, because whether it becomes one is decided by the pipeline (RFC 9110 9.2.2).  `is_end`: the app
    has closed it after it had read all it got; it was not reset.
    """

    def __init__(self, text: str, *, is_end: bool = False) -> None:
        super().__init__(text)
        self.is_end = is_end
