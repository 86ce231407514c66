"""Ctrl-C while the program `tessera` loads what it needs: it ends, without a traceback.

An exception would have to get through whatever is being imported. Some of that takes it for a
failure of its own, and some aborts. Importing this guards the program until `started`.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

INTERRUPTED = 130  # what shells report of a program that SIGINT has ended


def _is_program() -> bool:
    """Whether this process runs `tessera` or `python -m tessera`, and nothing else."""
    if sys.argv[:1] == ["-m"]:  # Python imports the package of the module that it is to run
        return sys.orig_argv[-len(sys.argv)] in ("tessera", "-mtessera")
    return bool(sys.argv) and os.path.basename(sys.argv[0]) == "tessera"  # noqa: PTH119  # quick


def _leave(number: int, frame: object) -> None:
    os._exit(INTERRUPTED)


def _terminate(number: int, frame: object) -> None:
    sys.exit(128 + number)


# What a signal does while something is being loaded, and while a command works, which tidies up.
_HANDLERS: dict[signal.Signals, tuple[signal._HANDLER, signal._HANDLER]] = {
    signal.SIGINT: (_leave, signal.default_int_handler),
    signal.SIGTERM: (signal.SIG_DFL, _terminate),
}


def _replace_handler(number: signal.Signals, old: object, new: signal._HANDLER) -> None:
    if _GUARDS and signal.getsignal(number) is old:
        with suppress(ValueError):  # another thread than the main one imports this
            signal.signal(number, new)


def guard() -> None:
    """From now on, Ctrl-C and SIGTERM end the program at once."""
    for number, (at_once, tidily) in _HANDLERS.items():
        _replace_handler(number, tidily, at_once)


def started() -> None:
    """From now on, Ctrl-C raises KeyboardInterrupt, and SIGTERM SystemExit: commands tidy up."""
    for number, (at_once, tidily) in _HANDLERS.items():
        _replace_handler(number, at_once, tidily)


@contextmanager
def loading() -> Iterator[None]:
    """For an import that KeyboardInterrupt must not come out of; in other programs it may."""
    was_started = signal.getsignal(signal.SIGINT) is not _leave
    guard()
    try:
        yield
    finally:
        if was_started:
            started()


_GUARDS = _is_program()
guard()
