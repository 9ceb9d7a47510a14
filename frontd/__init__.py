"""frontd: the front door of container deployments.

What is importable from here is what plugins are made of, and all they need: ``import frontd``.  Nothing inside of
frontd imports it, and nothing is loaded before it is asked for, so that the command line starts fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from frontd.config.leaves import CountOrNone as CountOrNone
    from frontd.config.leaves import File as File
    from frontd.config.leaves import Flag as Flag
    from frontd.config.leaves import Network as Network
    from frontd.config.leaves import Seconds as _Seconds
    from frontd.config.leaves import Secret as Secret
    from frontd.config.leaves import Size as Size
    from frontd.config.plugins import Settings as Settings
    from frontd.config.plugins import SiteFacts as SiteFacts
    from frontd.model.conditions import read_date as read_date
    from frontd.model.conditions import still_good as still_good
    from frontd.model.errors import FrontdError as FrontdError
    from frontd.model.errors import Reason as Reason
    from frontd.model.headers import Headers as Headers
    from frontd.model.headers import normal_name as normal_name
    from frontd.model.messages import Client as Client
    from frontd.model.messages import Exchange as Exchange
    from frontd.model.messages import Request as Request
    from frontd.model.messages import Response as Response
    from frontd.model.readings import path_readings as path_readings
    from frontd.model.readings import unescaped as unescaped
    from frontd.model.urlprefix import PathTable as PathTable
    from frontd.model.urlprefix import canonical_prefix as canonical_prefix
    from frontd.model.verdicts import Allow as Allow
    from frontd.model.verdicts import Continue as Continue
    from frontd.model.verdicts import Identity as Identity
    from frontd.model.verdicts import Redirect as Redirect
    from frontd.model.verdicts import Refuse as Refuse
    from frontd.model.verdicts import UseHttp11 as UseHttp11
    from frontd.net.attaching import AttachRefused as AttachRefused
    from frontd.net.attaching import attach as attach
    from frontd.pipeline.plugin import Context as Context
    from frontd.pipeline.plugin import Plugin as Plugin
    from frontd.pipeline.plugin import blocking as blocking
    from frontd.pipeline.store import MemoryStore as MemoryStore

    Duration = _Seconds  # under another name an import is no export to type checkers

__version__ = "0.1.0"

_HOME = {
    "CountOrNone": "config.leaves", "File": "config.leaves", "Flag": "config.leaves", "Network": "config.leaves",
    "Duration": "config.leaves", "Secret": "config.leaves", "Size": "config.leaves", "Settings": "config.plugins",
    "SiteFacts": "config.plugins", "FrontdError": "model.errors", "Reason": "model.errors",
    "Headers": "model.headers", "normal_name": "model.headers", "Client": "model.messages",
    "Exchange": "model.messages", "Request": "model.messages", "Response": "model.messages",
    "path_readings": "model.readings", "PathTable": "model.urlprefix", "canonical_prefix": "model.urlprefix",
    "unescaped": "model.readings", "Allow": "model.verdicts", "Continue": "model.verdicts",
    "Identity": "model.verdicts", "Redirect": "model.verdicts", "Refuse": "model.verdicts",
    "UseHttp11": "model.verdicts", "Context": "pipeline.plugin", "Plugin": "pipeline.plugin",
    "blocking": "pipeline.plugin", "MemoryStore": "pipeline.store", "read_date": "model.conditions",
    "still_good": "model.conditions", "attach": "net.attaching", "AttachRefused": "net.attaching",
}  # fmt: skip
_ELSEWHERE = {"Duration": "Seconds"}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'frontd' has no attribute {name!r}")
    found = getattr(importlib.import_module(f"frontd.{home}"), _ELSEWHERE.get(name, name))
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
