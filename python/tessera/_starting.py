"""Lets Ctrl-C end the program `tessera` without a traceback while it loads modules.

An exception would pass through the module that is being imported. Some modules treat it as their
own failure, and some abort. Importing this module guards the program until `started`.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

INTERRUPTED = 130  # the exit code that shells report for a program ended by SIGINT


def _is_program() -> bool:
    """Whether this process runs `tessera` or `python -m tessera`, and nothing else."""
    if sys.argv[:1] == ["-m"]:  # Python is importing the package of the module that it will run
        return sys.orig_argv[-len(sys.argv)] in ("tessera", "-mtessera")
    return bool(sys.argv) and os.path.basename(sys.argv[0]) == "tessera"  # noqa: PTH119  # quick


def _leave(number: int, frame: object) -> None:
    os._exit(INTERRUPTED)


def _terminate(number: int, frame: object) -> None:
    sys.exit(128 + number)


# The handlers of a signal while modules load, and while a command runs, which cleans up.
_HANDLERS: dict[signal.Signals, tuple[signal._HANDLER, signal._HANDLER]] = {
    signal.SIGINT: (_leave, signal.default_int_handler),
    signal.SIGTERM: (signal.SIG_DFL, _terminate),
}


def _replace_handler(number: signal.Signals, old: object, new: signal._HANDLER) -> None:
    if _GUARDS and signal.getsignal(number) is old:
        with suppress(ValueError):  # a thread other than the main one imports this module
            signal.signal(number, new)


def guard() -> None:
    """Make Ctrl-C and SIGTERM end the program at once."""
    for number, (at_once, tidily) in _HANDLERS.items():
        _replace_handler(number, tidily, at_once)


def started() -> None:
    """Make Ctrl-C raise KeyboardInterrupt, and SIGTERM SystemExit, so that commands clean up."""
    for number, (at_once, tidily) in _HANDLERS.items():
        _replace_handler(number, at_once, tidily)


@contextmanager
def loading() -> Iterator[None]:
    """Guards an import from KeyboardInterrupt; has no effect in other programs."""
    was_started = signal.getsignal(signal.SIGINT) is not _leave
    guard()
    try:
        yield
    finally:
        if was_started:
            started()


_GUARDS = _is_program()
guard()
