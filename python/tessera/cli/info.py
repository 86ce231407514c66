"""tessera info: version, build, backends and implementations, and why any is unavailable."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from typing import Any

from rich.table import Table

import tessera
from tessera._library import torch_failure
from tessera._op import Op, op_names
from tessera.cli.devices import add_device_argument, chosen_device, device_name
from tessera.cli.progress_bars import load_library
from tessera.cli.tables import print_grid
from tessera.info import argument_name, known_names, required_names

# Every length and number, and the data type, of the calls that the implementations are listed for.
_SIZE = 64
_DTYPE = "bfloat16"

# The numbers of the short form of --explain.
_SHORT_FORM = ("num_ids", "num_experts", "block_size")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "--explain",
        nargs="+",
        metavar=("OP", "NAME=VALUE"),
        help="show what the op runs for a shape, and how, for example: align_block_size N=8192 "
        "num_experts=64 block_size=128; select_experts T=64 E=128 k=8 dtype=bfloat16; "
        "select_and_align T=64 E=128 k=8 block_size=16 dtype=bfloat16; "
        "moe_permute T=16 H=7168 k=8 num_experts=64 block_size=1 dtype=bfloat16; moe_unpermute "
        "M=128 H=7168 T=16 k=8 dtype=bfloat16; moe_sum T=16 k=8 H=7168 dtype=bfloat16; "
        "quantize_fp8 T=64 H=7168 group=1x128 dtype=bfloat16; "
        "fused_experts T=64 H=2048 E=128 F=768 k=8 dtype=bfloat16, and fused_moe likewise. Three "
        "integers without an op's name, such as 8192 64 128, are num_ids, num_experts and "
        "block_size of align_block_size",
    )
    add_device_argument(parser, "the device to explain")
    parser.set_defaults(device=None)  # to detect whether it is given
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    if args.explain is None and args.device is not None:
        raise ValueError("--device: expected --explain beside it")
    load_library()
    if args.explain is not None:
        return _explain(args)
    backends = tessera.backends()
    available = [backend.name for backend in backends if backend.available]
    lists = [
        (op, tessera.explain(op, **_usual_shape(op), device=device))
        for op in op_names()
        for device in available
    ]
    environment = {
        name: value for name, value in sorted(os.environ.items()) if name.startswith("TESSERA_")
    }
    if args.json:
        document = {
            "version": tessera.version(),
            "build": tessera.build(),
            "backends": [dataclasses.asdict(backend) for backend in backends],
            "implementations": [
                {"op": op} | _document(one) for op, found in lists for one in found
            ],
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
    table.add_row("implementations", f"for sizes of {_SIZE} in {_DTYPE}; --explain takes others")
    for op, found in lists:
        table.add_row(op, _states(found))
    if torch_failure():
        table.add_row("torch", f"unavailable: {torch_failure()}")
    for name, value in environment.items():
        table.add_row(name, value)
    print_grid(table)
    return 0


def _usual_shape(op: str) -> dict[str, Any]:
    shape: dict[str, Any] = dict.fromkeys(required_names(Op(op)), _SIZE)
    return shape | {"dtype": _DTYPE} if "dtype" in shape else shape


def _states(found: list[tessera.Implementation]) -> str:
    """Implementations by what they have to say, those that run first, each time fastest first."""
    names: dict[str, list[str]] = {}
    for one in sorted(found, key=lambda one: bool(one.refusal)):
        names.setdefault(_state(one), []).append(one.name)
    return "; ".join(f"{', '.join(names[state])} {state}" for state in names)


def _state(one: tessera.Implementation) -> str:
    if one.selected:
        return "first choice" + (f": {one.plan}" if one.plan else "")
    return f"refused: {one.refusal}" if one.refusal else "can run"


def _document(one: tessera.Implementation) -> dict[str, Any]:
    """An implementation for JSON; one without a launch plan, as on the CPU, has no such line."""
    return {
        name: value for name, value in dataclasses.asdict(one).items() if name != "plan" or value
    }


def _explain(args: argparse.Namespace) -> int:
    op, shape, words = _asked(args.explain)
    device = device_name(chosen_device(args.device or "auto", arrays=False))
    # With the op's name it would call the first of the three integers N.
    named = () if words else (op,)
    implementations = tessera.explain(*named, **shape, device=device)
    if args.json:
        document = {
            "device": device,
            "op": op,
            "shape": shape,
            "implementations": [_document(one) for one in implementations],
        }
        print(json.dumps(document, indent=2))
        return 0
    table = Table.grid(padding=(0, 2))
    table.add_row("device", device)
    if not words:
        table.add_row("op", op)
    table.add_row("shape", words or ", ".join(f"{name} {value}" for name, value in shape.items()))
    for one in implementations:
        table.add_row(one.name, _state(one))
    print_grid(table)
    return 0


def _asked(values: list[str]) -> tuple[str, dict[str, Any], str]:
    """Op and shape of --explain, and the shape in words if it is in the short form."""
    first, *others = values
    if _is_integer(first):
        num_ids, num_experts, block_size = _three_integers(values)
        return (
            "align_block_size",
            {"num_ids": num_ids, "num_experts": num_experts, "block_size": block_size},
            f"{num_ids} ids, {num_experts} experts, blocks of {block_size}",
        )
    if first not in op_names():
        raise ValueError(
            f"--explain: OP: expected one of {', '.join(op_names())}, or three integers, "
            f"{', '.join(_SHORT_FORM)}, got '{first}'"
        )
    op = Op(first)
    known = (*known_names(op), "num_threads")
    shape: dict[str, Any] = {}
    for each in others:
        name, equals, text = each.partition("=")
        if not name or not equals:
            raise ValueError(f"--explain: expected NAME=VALUE, got {each!r}")
        name = argument_name(op, name)
        if name not in known:
            names = ", ".join(known)
            raise ValueError(f"--explain: expected values of {names}, got one of {name}")
        if name in shape:
            raise ValueError(f"--explain: {name}: expected one value, got two")
        shape[name] = _value(name, text, first)
    return first, shape, ""


def _three_integers(values: list[str]) -> list[int]:
    """The values of the short form."""
    three_integers = f"three integers, {', '.join(_SHORT_FORM)}"
    for text in values:
        if "=" in text:
            raise ValueError(
                f"--explain: expected no NAME=VALUE beside {three_integers}, got '{text}'"
            )
        if not _is_integer(text):
            raise ValueError(f"--explain: expected {three_integers}, got '{text}'")
    if len(values) != len(_SHORT_FORM):
        missing = ", ".join(_SHORT_FORM[len(values) :])
        raise ValueError(
            f"--explain: expected {three_integers}, got {len(values)}"
            + (f", without {missing}" if missing else "")
        )
    return [int(text) for text in values]


def _value(name: str, text: str, op: str) -> Any:
    """A value as the op's table wants it."""
    row = next((row for row in Op(op).arguments if row.name == name), None)
    if name == "dtype" or (row is not None and row.choices):
        return text
    if row is not None and row.kind == "flag":
        if text.lower() not in ("true", "false"):
            raise ValueError(f"--explain: {name}: expected true or false, got '{text}'")
        return text.lower() == "true"
    if row is not None and row.kind == "float32":
        try:
            return float(text)
        except ValueError:
            raise ValueError(f"--explain: {name}: expected a number, got '{text}'") from None
    return _integer(f"--explain: {name}", text)


def _is_integer(text: str) -> bool:
    try:
        int(text)
    except ValueError:
        return False
    return True


def _integer(what: str, text: str) -> int:
    if not _is_integer(text):
        raise ValueError(f"{what}: expected an integer, got '{text}'")
    return int(text)
