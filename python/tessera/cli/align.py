"""tessera align: align a workload, check the result against the contract, and show it."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from rich.console import Console

import tessera
from tessera._device import HOST
from tessera._framework import on_device, on_host
from tessera._library import torch_or_none
from tessera.cli.devices import add_device_argument, chosen_device, device_name
from tessera.cli.inputs import Input, Workload, read_input, synthetic_input
from tessera.cli.integers import integer, seed
from tessera.cli.paths import nonempty_path
from tessera.cli.picture import load_picture, share_picture
from tessera.cli.progress_bars import load_library, working
from tessera.cli.reading_options import (
    FORMS,
    Once,
    add_reading_options,
    given_options,
    reading_options,
)
from tessera.cli.tables import StandardOutput
from tessera.tools.bench.compositions import numpy_composition, torch_composition
from tessera.tools.output_files import Output, check_outputs, print_written, write_files
from tessera.tools.printable import printable
from tessera.tools.routing_files import layer_name
from tessera.tools.routing_files.reading import NO_EXPERT

# Defaults of synthetic ids.
_DEFAULTS: dict[str, Any] = {"tokens": 4096, "top_k": 2, "distribution": "uniform", "seed": 0}

# Enough calls for a steady median; fewer if they are slow.
_MAX_TIMED_CALLS = 200
_MAX_TIMED_S = 0.5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add = parser.add_argument
    shown = "(default: %(default)s)"
    add(
        "file",
        nargs="?",
        type=nonempty_path,
        metavar="FILE",
        help=f"{FORMS}; aligned layer by layer (default: synthetic ids)",
    )
    synthetic = {name: f"(default: {value})" for name, value in _DEFAULTS.items()}
    add("--tokens", type=integer(1), metavar="N", help=f"synthetic tokens {synthetic['tokens']}")
    add(
        "--experts",
        action=Once,
        type=integer(1),
        metavar="E",
        help="number of experts (default: 64 for synthetic ids; for a file the number in it, else "
        "its largest id + 1)",
    )
    add(
        "--top-k",
        action=Once,
        type=integer(1),
        metavar="K",
        help=f"synthetic ids per token, of different experts {synthetic['top_k']}; or to choose by "
        "a file's router logits",
    )
    add(
        "--distribution",
        choices=("uniform", "zipf"),
        help=f"popularity of experts in synthetic ids {synthetic['distribution']}",
    )
    add("--seed", type=seed, metavar="S", help=f"seed of synthetic ids {synthetic['seed']}")
    add("--block-size", type=integer(1), default=128, metavar="B", help=f"slots in a block {shown}")
    add_device_argument(parser, "device to run on")
    add("--pad-sorted-ids", action="store_true", help="round the capacity up to whole blocks")
    add(
        "--num-threads",
        type=integer(1),
        metavar="N",
        help="maximum number of host threads, on the CPU (default: TESSERA_NUM_THREADS, else the "
        "process's cores)",
    )
    add("--time", action="store_true", help="time it, and the op composed of NumPy or torch calls")
    add("--output", type=nonempty_path, metavar="OUT.npz", help="save ids and result as .npz")
    add("--force", action="store_true", help="overwrite the output file")
    add("--json", action="store_true", help="print one JSON document")
    add_reading_options(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    _refuse_what_does_nothing(args)
    written = [] if args.output is None else [args.output]
    # Commands read files by their suffix.
    outputs = [Output("--output", path, file_suffix=".npz") for path in written]
    check_outputs(outputs, [] if args.file is None else [args.file], force=args.force)
    load_library()
    cuda_index = chosen_device(args.device)
    if args.num_threads is not None and cuda_index != HOST:
        raise ValueError(
            "--num-threads: expected a run on the CPU, whose threads it limits, got one on "
            f"{device_name(cuda_index)}"
        )
    saved: dict[str, Any] = {}
    reports = []
    source = _source(args)
    for workload in source.workloads:
        try:
            report, arrays = _align(workload, cuda_index, args)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{source.title}: {error}") from None
        except MemoryError:
            raise ValueError(
                f"{source.title}: not enough memory for {workload.num_experts} experts and blocks "
                f"of {args.block_size} slots"
            ) from None
        prefix = "" if workload.layer is None else f"{layer_name(workload.layer, '')}."
        saved |= {prefix + name: array for name, array in arrays.items()}
        reports.append(report)
    with working("writing"):
        write_files(
            {path: lambda file: np.savez(file, **saved) for path in written}, force=args.force
        )

    if args.json:
        document = {"input": source.title, "note": source.note, "workloads": reports}
        print(json.dumps(document, indent=2))
    else:
        _print(source, reports)
    print_written(written, beside_json=args.json)
    return 1 if any(report["violations"] for report in reports) else 0


def _refuse_what_does_nothing(args: argparse.Namespace) -> None:
    for name in _DEFAULTS:
        if name != "top_k" and args.file is not None and getattr(args, name) is not None:
            raise ValueError(
                f"--{name.replace('_', '-')}: applies to synthetic ids; expected no FILE beside "
                f"it, got {args.file}"
            )
    if args.file is None and (given := given_options(args)):
        raise ValueError(f"{given[0]}: expected FILE beside it, got synthetic ids")
    if args.force and args.output is None:
        raise ValueError("--force: expected --output beside it")


def _source(args: argparse.Namespace) -> Input:
    if args.file is not None:
        return read_input(args.file, reading_options(args))
    given = {
        name: default if getattr(args, name) is None else getattr(args, name)
        for name, default in _DEFAULTS.items()
    }
    experts = 64 if args.experts is None else args.experts
    with working("making ids"):
        return synthetic_input(**given, experts=experts, block_size=args.block_size)


def _align(
    workload: Workload, cuda_index: int, args: argparse.Namespace
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run, check and, if requested, time one call. Returns the report, and the arrays to save."""
    ids, num_experts = workload.topk_ids, workload.num_experts
    # Refuses sizes outside the op's domain, before there is memory for them.
    implementations = tessera.explain(
        ids.size,
        num_experts,
        args.block_size,
        pad_sorted_ids=args.pad_sorted_ids,
        num_threads=args.num_threads,
        device=device_name(cuda_index),
    )
    options: dict[str, Any] = {
        "block_size": args.block_size,
        "num_experts": num_experts,
        "expert_map": on_device(workload.expert_map, cuda_index),
        "pad_sorted_ids": args.pad_sorted_ids,
    }
    counts = on_device(np.empty(num_experts, np.int32), cuda_index)
    dropped = on_device(np.empty(1, np.int32), cuda_index)
    statistics_of: dict[str, Any] = {"expert_counts": counts, "num_dropped": dropped}
    topk_ids = on_device(ids, cuda_index)
    of_layer = "" if workload.layer is None else f" {layer_name(workload.layer)}"
    with working(f"aligning{of_layer}"):
        found = tessera.align_block_size(
            topk_ids, **options, **statistics_of, num_threads=args.num_threads
        )
    with working(f"checking{of_layer}"):
        violations = tessera.contract_violations(topk_ids, found, **options, **statistics_of)
    result = tessera.AlignedBlocks(*(np.asarray(on_host(array)) for array in found))
    times: dict[str, float] = {}
    if args.time:
        with working(f"timing{of_layer}", is_timed=True):
            times = _times(workload, cuda_index, result, args)
    num_slots = int(result.num_tokens_post_pad[0])
    # Files have -1 where there is no id, which the op drops.
    num_unused = int(np.count_nonzero(ids == NO_EXPERT))
    report = {
        "layer": workload.layer,
        "device": device_name(cuda_index),
        "implementation": next(one.name for one in implementations if one.selected),
        "shape": list(ids.shape),
        "least_top_k": workload.least_top_k,
        "num_ids": ids.size - num_unused,
        "num_unused": num_unused,
        "num_experts": num_experts,
        "block_size": args.block_size,
        "num_dropped": int(dropped[0]) - num_unused,
        "num_blocks": num_slots // args.block_size,
        "num_tokens_post_pad": num_slots,
        "capacity": len(result.sorted_token_ids),
        "expert_counts": counts.tolist(),
        "time_us": times,
        "violations": [violation.message for violation in violations],
    }
    arrays: dict[str, Any] = {
        "topk_ids": ids,
        "num_experts": num_experts,
        "block_size": args.block_size,
    }
    if workload.expert_map is not None:
        arrays["expert_map"] = workload.expert_map
    return report, arrays | result._asdict()


def _times(
    workload: Workload, cuda_index: int, result: tuple[Any, ...], args: argparse.Namespace
) -> dict[str, float]:
    """Median times in microseconds, Tessera's first; on a GPU they include the wait for the call.

    The compositions support neither maps nor bad ids.
    """
    ids, num_experts = workload.topk_ids, workload.num_experts
    topk_ids = on_device(ids, cuda_index)
    options: dict[str, Any] = {
        "block_size": args.block_size,
        "num_experts": num_experts,
        "expert_map": on_device(workload.expert_map, cuda_index),
        "pad_sorted_ids": args.pad_sorted_ids,
        "num_threads": args.num_threads,
    }
    candidates: dict[str, Callable[[], Any]] = {
        "tessera": lambda: tessera.align_block_size(topk_ids, **options)
    }
    plain = workload.expert_map is None and ids.size > 0
    if plain and ids.min() >= 0 and ids.max() < num_experts:
        # bincount takes no unsigned 64-bit integers, torch hardly any unsigned ones.
        signed = ids.astype(np.int64) if ids.dtype.kind == "u" else ids
        rest = (args.block_size, num_experts, len(result[0]))
        if cuda_index == HOST:
            candidates["NumPy composition"] = lambda: numpy_composition(signed, *rest)
        torch = torch_or_none()
        if torch is not None:
            tensor = torch.from_numpy(signed).to(device_name(cuda_index))
            candidates["torch composition"] = lambda: torch_composition(tensor, *rest)
    for name, call in candidates.items():
        if not all(map(np.array_equal, map(on_host, call()), result)):
            raise RuntimeError(f"the {name} differs from align_block_size")

    # One after the other: torch's threads keep spinning for a while after a call, and would take
    # the cores from the next candidate.
    wait = _waiting_for(cuda_index)
    return {name: _median_us(call, wait) for name, call in candidates.items()}


def _waiting_for(cuda_index: int) -> Callable[[], None]:
    if cuda_index == HOST:
        return lambda: None
    import torch

    return lambda: torch.cuda.synchronize(cuda_index)


def _median_us(call: Callable[[], Any], wait: Callable[[], None]) -> float:
    samples: list[float] = []
    deadline = time.perf_counter() + _MAX_TIMED_S
    while len(samples) < _MAX_TIMED_CALLS and (not samples or time.perf_counter() < deadline):
        start = time.perf_counter()
        call()
        wait()
        samples.append(time.perf_counter() - start)
    return 1e6 * statistics.median(samples)


def _print(source: Input, reports: list[dict[str, Any]]) -> None:
    console = StandardOutput(highlight=False, markup=False, soft_wrap=True)
    console.print(f"input     {printable(source.title)}")
    if source.note:
        console.print(f"note      {printable(source.note)}")
    for report in reports:
        console.print()
        if report["layer"] is not None:
            console.print(f"layer     {printable(str(report['layer']))}")
        _print_report(console, report)


def _shape_words(report: dict[str, Any]) -> str:
    """The rows and their lengths: `100 x 8`, `100 tokens, top 4 to 7`."""
    if report["least_top_k"] not in (None, report["shape"][-1]):
        return f"{report['shape'][0]} tokens, top {report['least_top_k']} to {report['shape'][1]}"
    shape = " x ".join(map(str, report["shape"]))
    return shape + (f" slots, {report['num_unused']} without one" if report["num_unused"] else "")


def _print_report(console: Console, report: dict[str, Any]) -> None:
    ids, slots = report["num_ids"], report["num_tokens_post_pad"]
    counts = np.array(report["expert_counts"])
    padding = slots - int(counts.sum())
    dropped = report["num_dropped"]
    console.print(f"device    {report['device']}, {report['implementation']}")
    console.print(
        f"sizes     {ids} ids ({_shape_words(report)}), {len(counts)} experts -> "
        f"{report['num_blocks']} blocks of {report['block_size']} = {slots} slots "
        f"(capacity {report['capacity']})" + (f", {dropped} ids dropped" if dropped else "")
    )
    times = report["time_us"]
    for name, time_us in times.items():
        ratio = "" if name == "tessera" else f"  ({time_us / times['tessera']:.1f} x)"
        console.print(f"time      {time_us:10.1f} us  {name}{ratio}")
    for message in report["violations"]:
        console.print(f"contract  broken: {message}", style="bold red")
    if not report["violations"]:
        console.print("contract: holds", style="green")

    width = max(16, min(console.width, 100) - 10)
    hottest = int(counts.argmax())
    console.print(
        f"load      {counts.mean():.1f} ids per expert; most: {counts[hottest]}, expert {hottest}"
    )
    for row in load_picture(counts, width):
        console.print(" " * 10 + row, style="cyan")
    share = 100 * padding / slots if slots else 0.0
    console.print(f"padding   {padding} of {slots} slots, {share:.1f} %")
    console.print(" " * 10 + share_picture(padding, slots, min(width, 64)), style="yellow")
