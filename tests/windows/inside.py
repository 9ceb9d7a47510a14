"""The process that plays inside of the domain's namespaces: ``python -m tests.windows.inside``, by `ad_member.sh`.

One line of JSON on stdin is one play, ``{"play": "module:function", "arguments": {…}}``; one line on stdout is what
came of it: ``{"result": …}`` or ``{"failure": traceback}``.  At the end of stdin it ends, and being the first of
its namespace it takes everybody along: so also when the process that asks was killed.
"""

from __future__ import annotations

import gc
import importlib
import inspect
import json
import os
import sys
import traceback
from functools import partial
from typing import Any

import trio

PATIENCE = 30.0  # s for one play
FORGOTTEN: list[str] = []  # what was not closed, or failed where nobody could be told


def _forgotten(unraisable: Any) -> None:
    FORGOTTEN.append("".join(traceback.format_exception(unraisable.exc_value)))


def play(name: str, arguments: dict[str, Any]) -> Any:
    """Run ``module:function``, which may be async.  Raises what it raises, and `AssertionError` for what it forgot."""
    module, _, function = name.partition(":")
    it = getattr(importlib.import_module(module), function)
    result = trio.run(partial(_within, it, arguments)) if inspect.iscoroutinefunction(it) else it(**arguments)
    gc.collect()
    if FORGOTTEN:
        found = "\n".join(FORGOTTEN)
        FORGOTTEN.clear()
        raise AssertionError(found)
    return result


async def _within(function: Any, arguments: dict[str, Any]) -> Any:
    with trio.fail_after(PATIENCE):
        return await function(**arguments)


def main() -> None:
    """Play what is asked for until nobody asks any more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a play prints is no answer
    sys.unraisablehook = _forgotten
    with answers:
        print("ready", file=answers, flush=True)
        for line in sys.stdin:
            asked = json.loads(line)
            try:
                answer = {"result": play(asked["play"], asked["arguments"])}
            except BaseException:
                answer = {"failure": traceback.format_exc()}
            print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
