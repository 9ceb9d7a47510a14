"""The app of a preset, as the server in the worker loads it: with the client's address and scheme in their places.

It runs inside of the worker, in the Python that runs the server there, which may be another one than frontd's: it
imports nothing of frontd.  ``$FRONTD_APP`` names the app, ``$FRONTD_TRUSTED`` the networks of `trusted_proxies`.
Servers differ in what they make of ``X-Forwarded-*`` (uvicorn: the client's address, gunicorn: the scheme alone,
hypercorn: nothing), and what uvicorn does with ``*`` believes the leftmost address, which a client may have invented
where a trusted proxy appends to what it gets; here it is one rule for all, frontd's own.

Invariants
----------
* The client is the rightmost address of ``X-Forwarded-For`` that is not a trusted proxy's, as in frontd's own log; what
  ``Forwarded`` may say to the contrary is looked at by frontd alone.
* Only frontd reaches the socket, and frontd writes these fields anew: they are believed.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import ipaddress
import os
import signal
import sys
import traceback
from typing import Any

PR_SET_PDEATHSIG = 1
HERE = os.path.dirname(os.path.abspath(__file__))
SCHEMES = ("http", "https")
NO_BOOT = 3  # exit code by which gunicorn knows that another try is of no use; after any other it tries again at once


def be_found() -> None:
    """The app's folder is on the path, and frontd's, which holds modules with everyday names, is not."""
    sys.path[:] = [path for path in sys.path if os.path.abspath(path or ".") not in (HERE, os.getcwd())]
    sys.path.insert(0, os.getcwd())


def loaded(module: str, attribute: str) -> Any:
    """The app: ``name``, ``name.of.part`` or ``factory()``.  Raises `SystemExit`, after a sentence."""
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        raise failure(f"there is no module {module.partition('.')[0]} in {os.getcwd()} or on the path of Python")
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.removesuffix("()").split("."):
            if not hasattr(found, part):
                where = getattr(found, "__file__", module)
                raise failure(f"{module} has no {attribute}: {part} is missing in {where}")
            found = getattr(found, part)
        app = found() if attribute.endswith("()") else found
    except Failure:
        raise
    except (Exception, SystemExit) as error:
        tell(error)
        raise failure(f"{module}:{attribute} cannot be loaded") from None
    if not callable(app):
        raise failure(f"{module}:{attribute} is no app but of type {type(app).__name__}")
    return app


class Failure(SystemExit):
    """The end of the worker; the sentence is on stderr."""


def failure(text: str) -> Failure:
    """The end of the worker, with a sentence on stderr."""
    sys.stderr.write(text + "\n")
    return Failure(NO_BOOT)


def tell(error: BaseException) -> None:
    """Say what went wrong and where, from the app's first line on: what led there is the server's and not of use."""
    trace = error.__traceback__
    while trace is not None and is_machinery(trace.tb_frame.f_code.co_filename):
        trace = trace.tb_next
    traceback.print_exception(type(error), error, trace)


def is_machinery(file: str) -> bool:
    """Whether code of this file is of this module or of the import system."""
    return file.startswith("<frozen importlib") or file in (__file__, importlib.__file__)


def client_of(hops: str, trusted: list[Any]) -> str:
    """The rightmost of several addresses that is not trusted; the leftmost, when all are.

    ``unknown`` (RFC 7239 6.2) when a hop on the way to it is no address; empty, when there is nothing.
    """
    found = ""
    for hop in reversed(hops.split(",")):
        word = hop.strip()
        if not word:
            continue
        if word.startswith("["):
            word = word[1:].partition("]")[0]
        elif word.count(":") == 1:
            word = word.partition(":")[0]
        try:
            address = ipaddress.ip_address(word)
        except ValueError:
            return "unknown"
        address = getattr(address, "ipv4_mapped", None) or address
        found = str(address)
        if not any(address in network for network in trusted):
            break
    return found


def asgi(app: Any, trusted: list[Any]) -> Any:
    """An ASGI app behind frontd."""

    async def behind_frontd(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] in ("http", "websocket"):
            said = {name: value.decode("latin-1") for name, value in scope["headers"] if name.startswith(b"x-forw")}
            scope = dict(scope)
            scheme = said.get(b"x-forwarded-proto", "")
            if scheme in SCHEMES:
                scope["scheme"] = scheme if scope["type"] == "http" else scheme.replace("http", "ws")
            if client := client_of(said.get(b"x-forwarded-for", ""), trusted):
                scope["client"] = (client, 0)
        await app(scope, receive, send)

    return behind_frontd


def wsgi(app: Any, trusted: list[Any]) -> Any:
    """A WSGI app behind frontd."""

    def behind_frontd(environ: dict[str, Any], start_response: Any) -> Any:
        scheme = environ.get("HTTP_X_FORWARDED_PROTO", "")
        if scheme in SCHEMES:
            environ["wsgi.url_scheme"] = scheme
        if client := client_of(environ.get("HTTP_X_FORWARDED_FOR", ""), trusted):
            environ["REMOTE_ADDR"] = client
        return app(environ, start_response)

    return behind_frontd


def made() -> Any:
    """What the server runs."""
    be_found()
    kind, module, attribute = os.environ.pop("FRONTD_APP").split(":")
    trusted = [ipaddress.ip_network(word) for word in os.environ.pop("FRONTD_TRUSTED", "").split()]
    if kind == "asgi":
        return asgi(loaded(module, attribute), trusted)
    # gunicorn runs apps in a process of its own, which is to end with the one that frontd knows, however that ends
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    return wsgi(loaded(module, attribute), trusted)


app = made() if "FRONTD_APP" in os.environ else None
