"""The options on how to read files of routing, which several commands have."""

from __future__ import annotations

import argparse
from typing import Any

from tessera.cli.integers import integer
from tessera.routing_log import MAX_EXPERTS, MAX_LAYERS
from tessera.tools.routing_files import AXES, PHASES, Options
from tessera.tools.routing_files.several import TOGETHER

FORMS = (
    "a routing log (.jsonl), ids as .npy or .npz, or another of the forms that engines write; "
    "- for standard input"
)
# By the names of the arguments; those that a command has for more than files are not among them.
_OF_FILES = (
    "skip_bad_lines",
    "layer",
    "axes",
    "packed",
    "zero_experts",
    "phase",
    "num_layers",
    "files",
)


class Once(argparse.Action):
    """Stores the value of an option that is given once; argparse would take the last of several."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Store the value."""
        if getattr(namespace, self.dest) is not None:
            raise argparse.ArgumentError(self, "expected it once")
        setattr(namespace, self.dest, values)


def add_reading_options(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    """Declare the options, but for --experts and --top-k; `several`: of commands on many files."""
    group = parser.add_argument_group("reading files", "For what the content leaves open.")
    add = group.add_argument
    add("--skip-bad-lines", action="store_true", help="skip and count bad lines of logs")
    add(
        "--layer",
        action="append",
        metavar="L",
        help="only the layer of this number or name; may be given several times",
    )
    add(
        "--axes",
        action=Once,
        choices=AXES,
        metavar="AXES",
        help=f"the axes of an array of three: {' or '.join(AXES)}",
    )
    add("--packed", action="store_true", help="ids are (id << 16) | bfloat16 weight")
    add(
        "--zero-experts",
        action="store_true",
        help="ids from the number of experts on stand for no expert",
    )
    add(
        "--phase",
        action=Once,
        choices=PHASES,
        help="only the tokens of this phase (default: both)",
    )
    add(
        "--num-layers",
        action=Once,
        type=integer(1, MAX_LAYERS),
        metavar="N",
        help="layers in base64 of int32 without a shape; with --top-k",
    )
    if several:
        add(
            "--files",
            action=Once,
            choices=TOGETHER,
            help="several files are ranks, or layers, of one model (default: models of their own, "
            "unless they name the same one)",
        )


def given_options(args: argparse.Namespace) -> list[str]:
    """The options on files that are given, as they are written."""
    return [
        f"--{name.replace('_', '-')}"
        for name in _OF_FILES
        if getattr(args, name, None) not in (None, False)
    ]


def reading_options(args: argparse.Namespace) -> Options:
    """The options from the command line.

    Raises:
        ValueError: a number is out of range.
    """
    experts = _one("--experts", args.experts)
    if experts is not None and experts > MAX_EXPERTS:
        raise ValueError(
            f"--experts: expected an integer in [1, {MAX_EXPERTS}] for a file, got {experts}"
        )
    return Options(
        num_experts=experts,
        skip_bad_lines=args.skip_bad_lines,
        layers=tuple(args.layer or ()),
        top_k=_one("--top-k", args.top_k),
        axes=args.axes,
        packed=args.packed,
        loads=getattr(args, "loads", False),  # of tessera inspect alone
        zero_experts=args.zero_experts,
        phase=args.phase,
        num_layers=args.num_layers,
    )


def _one(option: str, value: Any) -> int | None:
    """The number of an option, which tessera bench takes as a list."""
    if isinstance(value, list):
        if len(value) != 1:
            raise ValueError(f"{option}: expected one number for files, got {len(value)}")
        value = value[0]
    number: int | None = value
    return number
