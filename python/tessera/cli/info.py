"""tessera info: version, build, backends and implementations, and why any is unavailable."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os

from rich.console import Console
from rich.table import Table

import tessera
from tessera._library import torch_failure
from tessera.cli.devices import add_device_argument, chosen_device, device_name
from tessera.cli.progress_bars import load_library


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "--explain",
        nargs=3,
        type=_integer,
        metavar=("N", "E", "B"),
        help="show what align_block_size runs for N ids, E experts and blocks of B slots, and how",
    )
    add_device_argument(parser, "the device to explain")
    parser.set_defaults(device=None)  # to detect whether it is given
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected an integer, got '{text}'") from None


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    if args.explain is None and args.device is not None:
        raise ValueError("--device: expected --explain beside it")
    load_library()
    if args.explain is not None:
        return _explain(args)
    backends = tessera.backends()
    available = [backend.name for backend in backends if backend.available]
    # On the CPU the choice does not depend on the shape; on a GPU this is for the smallest shape.
    implementations = [one for name in available for one in tessera.explain(1, 1, 1, device=name)]
    environment = {
        name: value for name, value in sorted(os.environ.items()) if name.startswith("TESSERA_")
    }
    if args.json:
        document = {
            "version": tessera.version(),
            "build": tessera.build(),
            "backends": [dataclasses.asdict(backend) for backend in backends],
            "implementations": [dataclasses.asdict(one) for one in implementations],
            "torch_failure": torch_failure(),
            "environment": environment,
        }
        print(json.dumps(document, indent=2))
        return 0
    table = Table.grid(padding=(0, 2))
    table.add_row("tessera", tessera.version())
    table.add_row("build", tessera.build())
    for backend in backends:
        state = "available" if backend.available else "unavailable"
        table.add_row(f"backend {backend.name}", f"{state}: {backend.detail}")
    for one in implementations:
        table.add_row(one.name, _state(one))
    if torch_failure():
        table.add_row("torch", f"unavailable: {torch_failure()}")
    for name, value in environment.items():
        table.add_row(name, value)
    Console(highlight=False, markup=False).print(table)
    return 0


def _state(one: tessera.Implementation) -> str:
    if one.selected:
        return "first choice" + (f": {one.plan}" if one.plan else "")
    return f"refused: {one.refusal}" if one.refusal else "can run"


def _explain(args: argparse.Namespace) -> int:
    device = device_name(chosen_device(args.device or "auto", arrays=False))
    implementations = tessera.explain(*args.explain, device=device)
    if args.json:
        document = {
            "device": device,
            "shape": dict(zip(("num_ids", "num_experts", "block_size"), args.explain, strict=True)),
            "implementations": [dataclasses.asdict(one) for one in implementations],
        }
        print(json.dumps(document, indent=2))
        return 0
    num_ids, num_experts, block_size = args.explain
    table = Table.grid(padding=(0, 2))
    table.add_row("device", device)
    table.add_row("shape", f"{num_ids} ids, {num_experts} experts, blocks of {block_size}")
    for one in implementations:
        table.add_row(one.name, _state(one))
    Console(highlight=False, markup=False).print(table)
    return 0
