"""tessera bench: time align_block_size, or another op, its peers and the floor."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import tessera
from tessera.cli.bench_models import model_shapes, whole_layers
from tessera.cli.inputs import refuse_repeated, require_memory
from tessera.cli.integers import MAX_INT, seed
from tessera.cli.paths import nonempty_path
from tessera.cli.progress_bars import counting_bar, load_library, reading_bar
from tessera.cli.reading_options import (
    FORMS,
    Once,
    add_reading_options,
    given_options,
    reading_options,
)
from tessera.cli.tables import StandardOutput
from tessera.tools.bench.driver import ContractBrokenError, Request, joined, measure
from tessera.tools.bench.op import AnyShape, Op
from tessera.tools.bench.ops import OPS
from tessera.tools.bench.ops.align_block_size import OP, REPORTING
from tessera.tools.bench.ops.fused_experts_fp8 import QUANTIZATIONS
from tessera.tools.bench.plot import plot, require_drawable
from tessera.tools.bench.report import print_report
from tessera.tools.bench.requests import report_requests
from tessera.tools.bench.results import command_text, results_text
from tessera.tools.bench.shapes import (
    DTYPES,
    MAPS,
    PRESETS,
    SIXTEEN_TOKENS,
    SKEWS,
    Shape,
    product,
    varied,
)
from tessera.tools.bench.tuning import Tuning, tuning
from tessera.tools.bench.tuning_report import print_tuning
from tessera.tools.output_files import Output, check_outputs, print_written, write_files

_METHODS = ("graph", "chain", "l2", "eager", "cold", "burst", "sustained", "call")
_VARIANT_OPTIONS = ("skew", "dtype", "map", "shift")
_SHAPE_OPTIONS = ("tokens", "experts", "top_k", "block_size", *_VARIANT_OPTIONS)
_OF_MODELS = ("tokens", "skew")
_OF_READING = ("experts", "top_k")  # with --log they say how to read it
_NOT_OF_LOGS = ("preset", *_VARIANT_OPTIONS, "method", "plot")
_MODEL_PRESETS = tuple(
    name
    for op in OPS.values()
    for of_device in (op, op.cuda)
    if of_device is not None and of_device.num_sets is not None
    for name in of_device.presets
    if name not in PRESETS
)


def _integers(least: int) -> Callable[[str], list[int]]:
    def parse(text: str) -> list[int]:
        try:
            values = [int(part) for part in text.split(",")]
        except ValueError:
            values = []
        if not values or not all(least <= value <= MAX_INT for value in values):
            raise argparse.ArgumentTypeError(
                f"expected integers in [{least}, {MAX_INT}], comma-separated, got '{text}'"
            )
        return values

    return parse


def _words(known: Sequence[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        for word in text.split(","):
            if known and word not in known:
                raise argparse.ArgumentTypeError(
                    f"expected some of {', '.join(known)}, comma-separated, got '{word}'"
                )
        return text.split(",")

    return parse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add = parser.add_argument
    shown = "(default: %(default)s)"
    add(
        "--op",
        choices=tuple(OPS),
        help=f"what to time (default: {OP.name}); the others have a list of shapes of their own",
    )
    add(
        "--model",
        type=_words(()),
        metavar="M,..",
        help="only these models' shapes of --op fused_experts (default: all); --tokens, --skew and "
        "--log then vary them",
    )
    add(
        "--quantization",
        choices=QUANTIZATIONS,
        help="what shares a scale in weights of --op fused_experts in fp8: blocks of 128 x 128, "
        "rows, or the tensor of an expert (default: none, not in fp8)",
    )
    lists = parser.add_argument_group("shapes", "Lists are comma-separated; all combinations run.")
    lists.add_argument("--tokens", type=_integers(1), metavar="N,..", help="tokens (default: 4096)")
    lists.add_argument(
        "--experts", action=Once, type=_integers(1), metavar="E,..", help="(default: 64)"
    )
    lists.add_argument(
        "--top-k",
        action=Once,
        type=_integers(1),
        metavar="K,..",
        help="ids per token, of different experts (default: 2)",
    )
    lists.add_argument(
        "--block-size",
        type=_integers(1),
        metavar="B,..",
        help="slots in a block (default: 16 to 64 tokens, 64 to 1024, 128 above)",
    )
    lists.add_argument(
        "--preset",
        choices=(*PRESETS, *REPORTING.presets, *_MODEL_PRESETS, "report"),
        help="shapes instead of those lists: quick (the default); headline, the performance page's "
        "first table; grid, 90 shapes from 2 to 2 million ids, or a larger choice of another "
        "op's; "
        "outputs, what expert_counts=, statistics= and validate=True add to a call; for --op "
        "fused_experts on CUDA table, five models at 1 to 16384 tokens, or anchors, eight cells of "
        "that table; or report: all results of the page, for all ops, one file each in the folder "
        "--json",
    )
    lists.add_argument(
        "--log",
        type=nonempty_path,
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE",
        help="instead: a sample of windows of 1, 2, 4 ... 4096 tokens (or --tokens) of a routing "
        "log, without its warm-up, at the block size that tessera inspect recommends for each and "
        "its neighbours (or --block-size), with padding and cost; --experts and --top-k then say "
        "how to read it. With --preset report: whole layers, each compared with uniform ids of the "
        f"same sizes. With --op fused_experts: its tokens and its numbers. {FORMS}",
    )
    add_reading_options(parser, several=True)
    variants = parser.add_argument_group("variants of every shape")
    some = "some of %s (default: %s)"
    for name, known in (("--skew", SKEWS), ("--dtype", DTYPES), ("--map", MAPS)):
        variants.add_argument(
            name,
            type=_words(known),
            metavar="X,..",
            help=some % (", ".join(known), known[0]),
        )
    variants.add_argument(
        "--shift",
        type=_integers(0),
        metavar="BYTES,..",
        help="offsets of every array within its allocation; calls then allocate nothing",
    )
    add(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help=f"auto uses CUDA if it is available {shown}",
    )
    add(
        "--method",
        type=_words(_METHODS),
        metavar="M,..",
        help="on CUDA some of graph, chain, l2, eager, cold (default: graph,chain; with --log "
        "graph), of fused_experts burst, sustained (default: both), chain; on the CPU call "
        "(default), and of align_block_size eager",
    )
    add("--peers", type=_words(()), metavar="P,..", help="only these peers, or none (default: all)")
    add("--seed", type=seed, default=0, help=f"seed of synthetic ids and of samples {shown}")
    add("--commit", metavar="REV", help="commit to record if there is no git checkout")
    add(
        "--json", type=nonempty_path, metavar="FILE", help="write the results; a folder with report"
    )
    add("--plot", type=nonempty_path, metavar="FILE", help="draw time over ids, as .png or .svg")
    add("--force", action="store_true", help="overwrite the files of --json and --plot")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    _check_files(args)
    # Or the idle threads of one contender occupy the cores of the next one.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    load_library()
    device = _device(args.device, OPS[args.op or OP.name])
    op = _op(args, device)
    found = None
    if args.preset == "report":
        others = [name for name in _SHAPE_OPTIONS if not (args.log and name in _OF_READING)]
        _require_alone("--preset report", args, (*others, "op", "model", "method", "peers", "plot"))
        if args.json is None:
            raise ValueError("--preset report: expected --json FOLDER")
        requests = report_requests(
            device,
            *whole_layers(args.log, reading_options(args), args.files),
            args.seed,
            args.commit,
        )
    elif op.num_sets is not None:
        known = _OF_MODELS + (_OF_READING if args.log else ())
        others = [name for name in _SHAPE_OPTIONS if name not in known]
        _require_alone(f"--op {op.name}", args, (*others, "plot"))
        requests = {"": [_request(args, device, op, *model_shapes(args, op))]}
    elif args.log:
        _require_alone("--log", args, _NOT_OF_LOGS)
        found = _inspected(args)
        requests = {"": [_request(args, device, op, found.shapes, found.windows)]}
    elif op is not OPS[OP.name]:
        special = f"--preset {args.preset}" if op is REPORTING else f"--op {op.name}"
        _require_alone(special, args, (*_SHAPE_OPTIONS, "plot"))
        requests = {"": [_request(args, device, op, op.shapes(args.preset), {})]}
    else:
        methods = _methods(args, device, op)
        shapes = _shapes(args, methods)
        for shape in shapes:
            require_memory(shape.num_tokens, shape.top_k, shape.num_experts, shape.block_size)
        if args.plot is not None:
            require_drawable(args.plot, shapes, methods)
        requests = {"": [_request(args, device, op, shapes, {})]}
    # Wider than any table: a narrower terminal wraps the lines, and nothing is cut off.
    console = StandardOutput(highlight=False, markup=False, soft_wrap=True, width=1000)
    try:
        for name, parts in requests.items():
            documents = [_measure(request, name) for request in parts]
            document = joined(documents)
            document["command"] = command_text(sys.argv[1:])
            if found is not None:
                found.join(document)
            # Before anything is printed, since the reader of stdout may be gone.
            written = _written(args, name, document)
            for part in documents:
                if found is None:
                    print_report(console, part)
                else:
                    print_tuning(console, document)
            print_written(written, beside_json=False)
    except ContractBrokenError as error:
        print(f"tessera bench: {error}", file=sys.stderr)
        return 1
    return 0


def _op(args: argparse.Namespace, device: str) -> Op:
    """What is timed: an op, or calls of one that only a preset has."""
    op = OPS[args.op or OP.name].on(device, args.quantization)
    for name in ("model", "quantization"):
        if getattr(args, name) is not None and op.num_sets is None:
            raise ValueError(f"--{name}: expected --op fused_experts beside it, got --op {op.name}")
    if args.log and op.name != OP.name and op.num_sets is None:
        raise ValueError(f"--log: expected --op {OP.name}, got {op.name}")
    if op.name == OP.name and args.preset in REPORTING.presets:
        return REPORTING
    if args.preset not in (None, "report", *op.presets):
        known = ", ".join(op.presets)
        raise ValueError(
            f"--preset: expected some of {known} with --op {op.name}, got {args.preset}"
        )
    return op


def _check_files(args: argparse.Namespace) -> None:
    """Before any measurement, refuse files that must not be written, or are given twice."""
    refuse_repeated("--log", args.log)
    outputs = []
    if args.json is not None:
        is_folder = args.preset == "report"
        outputs.append(Output("--json", args.json, suffix=".json" if is_folder else ""))
    if args.plot is not None:
        outputs.append(Output("--plot", args.plot))
    if args.force and not outputs:
        raise ValueError("--force: expected --json or --plot beside it")
    if not args.log and (given := given_options(args)):
        raise ValueError(f"{given[0]}: expected --log beside it")
    check_outputs(outputs, args.log, force=args.force)


def _device(name: str, op: Op) -> str:
    available = {backend.name: backend for backend in tessera.backends()}
    if name == "auto":
        return "cuda" if available["cuda"].available and "cuda" in op.devices else "cpu"
    if name not in op.devices:
        raise ValueError(f"--device: expected {op.devices[0]} with --op {op.name}, got {name}")
    if not available[name].available:
        raise ValueError(f"--device {name}: unavailable: {available[name].detail}")
    return name


def _require_alone(option: str, args: argparse.Namespace, others: Sequence[str]) -> None:
    for name in others:
        if getattr(args, name) is not None:
            raise ValueError(f"{option}: expected no --{name.replace('_', '-')} beside it")


def _inspected(args: argparse.Namespace) -> Tuning:
    with reading_bar(2 * args.log) as progress:  # in two passes
        return tuning(
            args.log,
            args.tokens,
            args.block_size,
            args.seed,
            reading_options(args),
            args.files,
            progress,
        )


def _methods(args: argparse.Namespace, device: str, op: Op = OP) -> list[str]:
    usual = ["call"] if device == "cpu" else ["graph"] if args.log else ["graph", "chain"]
    methods: list[str] = args.method or list(op.methods) or usual
    return methods


def _shapes(args: argparse.Namespace, methods: Sequence[str]) -> list[Shape]:
    """The shapes of the lists or of the preset, in all variants."""
    lists = (args.tokens, args.experts, args.top_k)
    if args.preset is not None:
        _require_alone("--preset", args, ("tokens", "experts", "top_k", "block_size"))
        shapes = PRESETS[args.preset]
    elif any(lists) or args.block_size:
        tokens, experts, top_k = (a or b for a, b in zip(lists, ([4096], [64], [2]), strict=True))
        shapes = product(tokens, experts, top_k, args.block_size or [None])
        if not shapes:
            raise ValueError("--top-k: expected at most as many as --experts")
    else:
        shapes = SIXTEEN_TOKENS if set(methods) <= {"eager", "cold"} else PRESETS["quick"]
    return varied(
        shapes,
        args.skew or SKEWS[:1],
        args.dtype or DTYPES[:1],
        args.map or MAPS[:1],
        args.shift or (None,),
    )


def _request(
    args: argparse.Namespace,
    device: str,
    op: Op,
    shapes: Sequence[AnyShape],
    windows: Mapping[tuple[str, int], npt.NDArray[np.int32]],
) -> Request:
    return Request(
        device,
        shapes,
        _methods(args, device, op),
        [] if args.peers == ["none"] else args.peers,
        windows,
        args.seed,
        commit=args.commit,
        op=op,
    )


def _measure(request: Request, name: str) -> dict[str, Any]:
    with counting_bar() as progress:
        task = progress.add_task("measuring", total=len(request.shapes))
        begun = -1

        def on_shape(shape: str) -> None:
            nonlocal begun
            begun += 1
            progress.update(task, completed=begun, description=f"{name} {shape}".strip())

        document: dict[str, Any] = measure(request, on_shape)
    return document


def _written(args: argparse.Namespace, name: str, document: dict[str, Any]) -> list[Path]:
    """Write results; returns the files. `name`: the file's name in the folder of a report."""
    written = []
    if args.json is not None:
        path = args.json / name if name else args.json
        write_files({path: results_text(document).encode()}, force=args.force)
        written.append(path)
    if args.plot is not None:
        plot(document, args.plot, force=args.force)
        written.append(args.plot)
    return written
