"""Ctrl-C while the program `tessera` starts: it ends, without a traceback.

Importing this guards the process until `started`. An exception would have to get through whatever
is being imported, and some of that takes it for a failure of its own.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress

INTERRUPTED = 130  # what shells report of a program that SIGINT has ended


def _is_program() -> bool:
    """Whether this process runs `tessera` or `python -m tessera`, and nothing else."""
    if sys.argv[:1] == ["-m"]:  # Python imports the package of the module that it is to run
        return sys.orig_argv[-len(sys.argv)] in ("tessera", "-mtessera")
    return bool(sys.argv) and os.path.basename(sys.argv[0]) == "tessera"  # noqa: PTH119  # quick


def _leave(number: int, frame: object) -> None:
    os._exit(INTERRUPTED)


def started() -> None:
    """From now on, Ctrl-C raises KeyboardInterrupt, as it does in other processes all the time."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


if _is_program() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    with suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGINT, _leave)
