"""tessera info: version, build, backends and implementations, and why any is unavailable."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os

from rich.console import Console
from rich.table import Table

import tessera


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    backends = tessera.backends()
    # Which implementations may run does not depend on the shape.
    implementations = tessera.explain(1, 1, 1)
    environment = {
        name: value for name, value in sorted(os.environ.items()) if name.startswith("TESSERA_")
    }
    if args.json:
        document = {
            "version": tessera.version(),
            "build": tessera.build(),
            "backends": [dataclasses.asdict(backend) for backend in backends],
            "implementations": [dataclasses.asdict(one) for one in implementations],
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
        state = f"refused: {one.refusal}" if one.refusal else "can run"
        table.add_row(one.name, "first choice" if one.selected else state)
    for name, value in environment.items():
        table.add_row(name, value)
    Console(highlight=False, markup=False).print(table)
    return 0
