"""The configuration, read by the code that is on the disk now, in a process of its own that ends with it.

How it works
------------
Control has code of its own and that of plugins loaded already, and Python does not load a module twice.  So for an
upgrade control starts this: a control that only reads.  It takes the configuration and every file that it names, and
the plugins, packs all of it as the fronts will get it (`frontd.processes.handover`), says what the control that runs
needs to know of it in plain words, and ends.  That control never looks into the world itself: another version of frontd
may have made it.

Invariants
----------
* It changes nothing and binds nothing; whatever is wrong with the configuration or a plugin ends here, as text.
* It ends with control, and control ends it when it takes too long.
"""

from __future__ import annotations

import json
import socket
import sys
import traceback
from typing import Any

from frontd.config.problems import ConfigProblems
from frontd.processes.channel import PROTOCOL, send
from frontd.processes.children import be_child
from frontd.processes.control_process import Seat
from frontd.processes.family import farewell_of, key_of
from frontd.processes.handover import pack
from frontd.processes.reload import fixed_of
from frontd.processes.runtime import BuildProblem
from frontd.processes.statefiles import StateProblem
from frontd.processes.supervisor import check_workers


def main() -> None:
    """Read; the command line names the channel, control, and what `frontd serve` was asked for."""
    number, parent = (int(word) for word in sys.argv[1:3])
    be_child(parent, "frontd-reading")
    wanted = json.loads(sys.argv[3])
    with socket.socket(fileno=number) as sock:
        sock.set_inheritable(False)
        try:
            said, files = read(Seat(sock, parent, **wanted))
        except ConfigProblems as error:
            said, files = {"errors": [str(one) for one in error.problems if one.severity == "error"]}, []
        except (BuildProblem, StateProblem, OSError) as error:
            said, files = {"errors": [str(error)]}, []
        except Exception as error:  # a fault of ours, or of a plugin's settings; control has to be told something
            traceback.print_exc()
            said, files = {"errors": [f"{type(error).__name__}: {error}"]}, []
        send(sock, {**said, "protocol": PROTOCOL}, files)


def read(seat: Seat) -> tuple[dict[str, Any], list[int]]:
    """What there is to say of the configuration, and the file that holds its world.

    Raises `ConfigProblems`, `BuildProblem`, `StateProblem` and `OSError`.
    """
    handover, warnings = seat.whole()
    config = handover.config
    check_workers(config)
    said = {
        "warnings": [str(one) for one in warnings],
        "listen": [[key_of(one), one.name, one.address, one.port] for one in config.listen.values()],
        "drain": config.timeouts.drain,
        "farewell": farewell_of(config),
        "fixed": fixed_of(config),
    }
    return said, [pack(handover)]


if __name__ == "__main__":
    main()
