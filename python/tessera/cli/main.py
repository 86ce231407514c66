"""Entry point of `tessera` and `python -m tessera`.

Exit codes: 0, all is well; 1, a check failed; 2, bad usage or input; 3, `verify --impl` came to no
verdict in its time.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from tessera.cli import align, bench, info, inspect, verify

_COMMANDS = {"info": info, "align": align, "inspect": inspect, "verify": verify, "bench": bench}


class _Parser(argparse.ArgumentParser):
    """Tells usage errors in one line, as all other errors are told."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="tessera",
        description="Expert-aligned token blocks for Mixture-of-Experts inference.",
        epilog="Exit codes: 0, all is well; 1, a check failed; 2, bad usage or input; 3, verify "
        "--impl came to no verdict in its time.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, module in _COMMANDS.items():
        summary = (module.__doc__ or "").partition("\n")[0].partition(": ")[2]
        command = commands.add_parser(
            name,
            help=summary,
            description=summary,
        )
        module.add_arguments(command)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    args = _parser().parse_args(arguments)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # the pictures, where they cannot be shown
    try:
        code: int = _COMMANDS[args.command].run(args)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # The reader has gone, as `head` does; the interpreter must not flush to it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    except MemoryError:
        message = "not enough memory"
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        message = str(error)
    print(f"tessera {args.command}: {message}", file=sys.stderr)
    return 2
