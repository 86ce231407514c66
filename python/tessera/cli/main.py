"""Entry point of `tessera` and `python -m tessera`.

Exit codes: 0, all is well; 1, a check failed; 2, bad usage or input; 3, `verify --impl` reached no
verdict in its time; as shells report signals: 130, Ctrl-C; 141, the reader of stdout has left; 143,
SIGTERM.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Any, NoReturn

from tessera import _starting
from tessera.tools.printable import printable

_ENDED = "130 and 143: Ctrl-C and SIGTERM; 141: the reader of the output left, as head does."
_READER_LEFT = 141
_COMMANDS = ("info", "align", "inspect", "verify", "bench")


class _Parser(argparse.ArgumentParser):
    """Prints usage errors in one line, like all other errors."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {printable(message)}\n")

    def print_help(self, file: Any = None) -> None:
        """Print the help; argparse would ignore that its reader has left."""
        print(self.format_help(), end="", file=file, flush=True)


class _Version(argparse.Action):
    """Shows the version of the package without loading the library."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        print(f"tessera {metadata.version('tessera')}", flush=True)
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="tessera",
        description="The Mixture-of-Experts layer in inference: router, alignment, experts, "
        "combination.",
        epilog="Exit codes: 0, all is well; 1, a check failed; 2, bad usage or input; 3, verify "
        f"--impl reached no verdict in its time. {_ENDED}",
    )
    parser.add_argument("-V", "--version", action=_Version, nargs=0, help="show the version")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in _COMMANDS:
        module = importlib.import_module(f"tessera.cli.{name}")
        summary = (module.__doc__ or "").partition("\n")[0].partition(": ")[2]
        command = commands.add_parser(
            name,
            help=summary,
            description=summary,
        )
        module.add_arguments(command)
        if command.epilog:
            command.epilog += f" {_ENDED}"
        command.set_defaults(run=module.run)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    program = "tessera"
    try:
        parser = _parser()
        _starting.started()
        args = parser.parse_args(arguments)
        program = f"tessera {args.command}"
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="replace")  # for pictures that it cannot encode
        code: int = args.run(args)
        print(end="", flush=True)
        _starting.guard()  # for exit handlers of other modules
        return code
    except BrokenPipeError:
        # The interpreter must not flush to the closed pipe at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _READER_LEFT
    except KeyboardInterrupt:
        return _starting.INTERRUPTED
    except MemoryError:
        message = "not enough memory"
    except OSError as error:
        named = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
        message = f"{named}{error.strerror}" if error.strerror else str(error)
    except (RuntimeError, TypeError, ValueError) as error:
        message = str(error)
    print(f"{program}: {printable(message)}", file=sys.stderr)
    return 2
