"""tessera bench: time align_block_size beside its peers and the floor."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import tessera
from tessera.bench.driver import ContractBrokenError, Request, measure
from tessera.bench.plot import plot, require_matplotlib
from tessera.bench.report import print_report
from tessera.bench.requests import report_requests
from tessera.bench.shapes import (
    DTYPES,
    MAPS,
    PRESETS,
    SIXTEEN_TOKENS,
    SKEWS,
    Shape,
    product,
    varied,
)
from tessera.routing_log import read_routing_log

_METHODS = ("graph", "l2", "eager", "cold", "call")
_TRACE_BLOCK_SIZE = 128
_MAX_INT = 2**31 - 1


def _integers(least: int) -> Callable[[str], list[int]]:
    def parse(text: str) -> list[int]:
        try:
            values = [int(part) for part in text.split(",")]
        except ValueError:
            values = []
        if not values or not all(least <= value <= _MAX_INT for value in values):
            raise argparse.ArgumentTypeError(
                f"expected integers in [{least}, {_MAX_INT}], comma-separated, got '{text}'"
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
    lists = parser.add_argument_group("shapes", "Lists are comma-separated; all combinations run.")
    lists.add_argument("--tokens", type=_integers(1), metavar="N,..", help="tokens (default: 4096)")
    lists.add_argument("--experts", type=_integers(1), metavar="E,..", help="(default: 64)")
    lists.add_argument(
        "--top-k", type=_integers(1), metavar="K,..", help="ids a token (default: 2)"
    )
    lists.add_argument(
        "--block-size",
        type=_integers(1),
        metavar="B,..",
        help="slots in a block (default: 16 to 64 tokens, 64 to 1024, 128 above and for logs)",
    )
    lists.add_argument(
        "--preset",
        choices=(*PRESETS, "report"),
        help="shapes instead of those lists: quick (the default); headline, the performance page's "
        "first table; grid, 90 shapes from 2 to 2 million ids; or report: all that the page is "
        "made of, one file each in the folder --json",
    )
    lists.add_argument(
        "--trace",
        type=Path,
        nargs="+",
        default=[],
        metavar="LOG",
        help="routing logs (.jsonl), layer by layer, each beside uniform ids of the same sizes",
    )
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
        help="start all arrays so far past an allocation's begin, and allocate nothing in a call",
    )
    add(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help=f"auto takes CUDA where it is available {shown}",
    )
    add(
        "--method",
        type=_words(_METHODS),
        metavar="M,..",
        help="on CUDA some of graph, l2, eager, cold (default: graph); on the CPU call, eager "
        "(default: call)",
    )
    add("--peers", type=_words(()), metavar="P,..", help="only these peers, or none (default: all)")
    add("--seed", type=int, default=0, help=f"seed of synthetic ids {shown}")
    add("--commit", metavar="REV", help="what to record where git cannot tell")
    add("--json", type=Path, metavar="FILE", help="write the results; a folder with report")
    add("--plot", type=Path, metavar="FILE", help="draw time over ids, as .png or .svg")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    device = _device(args.device)
    if args.plot is not None:
        require_matplotlib(args.plot)
    traces, trace_shapes = _read_traces(args)
    if args.preset == "report":
        _require_report_options(args)
        requests = report_requests(device, trace_shapes, traces, args.seed, args.commit)
    else:
        requests = {"": _request(args, device, trace_shapes, traces)}
    # Wider than any table: a terminal that is narrower wraps the lines, and nothing is cut.
    console = Console(highlight=False, markup=False, soft_wrap=True, width=1000)
    try:
        for name, request in requests.items():
            document = _measure(request, name)
            document["command"] = " ".join(["tessera", *sys.argv[1:]])
            print_report(console, document)
            if args.json is not None:
                _write(args.json / name if name else args.json, document)
            if args.plot is not None:
                plot(document, args.plot)
    except ContractBrokenError as error:
        print(f"tessera bench: {error}", file=sys.stderr)
        return 1
    return 0


def _device(name: str) -> str:
    available = {backend.name: backend for backend in tessera.backends()}
    if name == "auto":
        return "cuda" if available["cuda"].available else "cpu"
    if not available[name].available:
        raise ValueError(f"--device {name}: unavailable: {available[name].detail}")
    return name


def _require_report_options(args: argparse.Namespace) -> None:
    if args.json is None:
        raise ValueError("--preset report: expected --json FOLDER")
    for name in (
        "tokens",
        "experts",
        "top_k",
        "block_size",
        "skew",
        "dtype",
        "map",
        "shift",
        "method",
        "peers",
        "plot",
    ):
        if getattr(args, name) is not None:
            raise ValueError(f"--preset report: expected no --{name.replace('_', '-')} beside it")


def _read_traces(
    args: argparse.Namespace,
) -> tuple[dict[str, npt.NDArray[np.int32]], list[Shape]]:
    """Ids by the name of log and layer, and their shapes, each after its uniform twin."""
    traces, shapes = {}, []
    for path in args.trace:
        log = read_routing_log(path)
        for layer, ids in log.layers.items():
            name = path.stem if len(log.layers) == 1 else f"{path.stem} layer {layer}"
            traces[name] = ids
            sizes = (len(ids), log.num_experts or int(ids.max()) + 1, ids.shape[1])
            for block_size in args.block_size or [_TRACE_BLOCK_SIZE]:
                uniform = Shape(*sizes, block_size)
                shapes += [uniform, replace(uniform, skew="log", trace=name)]
    return traces, shapes


def _shapes(args: argparse.Namespace, methods: Sequence[str], has_traces: bool) -> list[Shape]:
    """The shapes of the lists or of the preset."""
    lists = (args.tokens, args.experts, args.top_k)
    if args.preset is not None:
        if any(lists):
            raise ValueError("--preset: expected no --tokens, --experts or --top-k beside it")
        return PRESETS[args.preset]
    if any(lists) or (args.block_size and not has_traces):
        tokens, experts, top_k = (a or b for a, b in zip(lists, ([4096], [64], [2]), strict=True))
        shapes = product(tokens, experts, top_k, args.block_size or [None])
        if not shapes:
            raise ValueError("--top-k: expected at most as many as --experts")
        return shapes
    if has_traces:
        return []
    return SIXTEEN_TOKENS if set(methods) <= {"eager", "cold"} else PRESETS["quick"]


def _request(
    args: argparse.Namespace,
    device: str,
    trace_shapes: list[Shape],
    traces: dict[str, npt.NDArray[np.int32]],
) -> Request:
    methods = args.method or (["graph"] if device == "cuda" else ["call"])
    shapes = [*_shapes(args, methods, bool(trace_shapes)), *trace_shapes]
    return Request(
        device,
        varied(
            shapes,
            args.skew or SKEWS[:1],
            args.dtype or DTYPES[:1],
            args.map or MAPS[:1],
            args.shift or (None,),
        ),
        methods,
        [] if args.peers == ["none"] else args.peers,
        traces,
        args.seed,
        commit=args.commit,
    )


def _measure(request: Request, name: str) -> dict[str, Any]:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(
        *columns,
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        task = progress.add_task("measuring", total=len(request.shapes))
        begun = -1

        def on_shape(shape: str) -> None:
            nonlocal begun
            begun += 1
            progress.update(task, completed=begun, description=f"{name} {shape}".strip())

        document: dict[str, Any] = measure(request, on_shape)
    return document


def _write(path: Path, document: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")
    print(f"wrote {path}")
