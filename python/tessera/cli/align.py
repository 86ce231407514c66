"""tessera align: align a workload, judge the result by the contract, and show it."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

import tessera
from tessera._device import HOST
from tessera._frameworks import on_device, on_host
from tessera._library import torch_or_none
from tessera.bench.compositions import numpy_composition, torch_composition
from tessera.cli.devices import add_device_argument, chosen_device, device_name
from tessera.cli.inputs import Input, Workload, read_input, synthetic_input
from tessera.cli.picture import load_picture, share_picture

_MAX_INT = 2**31 - 1

# Enough calls for a steady median; fewer where they are slow.
_MAX_TIMED_CALLS = 200
_MAX_TIMED_S = 0.5


def _count(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if not 1 <= value <= _MAX_INT:
        raise argparse.ArgumentTypeError(f"expected an integer in [1, {_MAX_INT}], got '{text}'")
    return value


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add = parser.add_argument
    shown = "(default: %(default)s)"
    add(
        "file",
        nargs="?",
        type=Path,
        metavar="FILE",
        help="ids [tokens, top_k] as .npy; .npz of topk_ids and, where known, num_experts and "
        "expert_map; or a routing log, .jsonl, aligned layer by layer (default: synthetic ids)",
    )
    add("--tokens", type=_count, default=4096, metavar="N", help=f"synthetic tokens {shown}")
    add(
        "--experts",
        type=_count,
        metavar="E",
        help="number of experts (default: 64 for synthetic ids; for a file what it says, else its "
        "largest id + 1)",
    )
    add(
        "--top-k",
        type=_count,
        default=2,
        metavar="K",
        help=f"synthetic ids a token, of different experts {shown}",
    )
    add(
        "--distribution",
        choices=("uniform", "zipf"),
        default="uniform",
        help=f"popularity of experts in synthetic ids {shown}",
    )
    add("--seed", type=int, default=0, metavar="S", help=f"seed of synthetic ids {shown}")
    add("--block-size", type=_count, default=128, metavar="B", help=f"slots in a block {shown}")
    add_device_argument(parser, "where to run")
    add("--pad-sorted-ids", action="store_true", help="round the capacity up to whole blocks")
    add(
        "--num-threads",
        type=_count,
        metavar="N",
        help="host threads at most (default: TESSERA_NUM_THREADS, else the process's cores)",
    )
    add("--time", action="store_true", help="time it beside the usual composition of the op")
    add("--output", type=Path, metavar="OUT.npz", help="save ids and result")
    add("--force", action="store_true", help="overwrite the output file")
    add("--json", action="store_true", help="print one JSON document")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    cuda_index = chosen_device(args.device)
    if args.output is not None and args.output.exists() and not args.force:
        raise ValueError(f"{args.output}: exists already; --force overwrites it")
    if args.file is None:
        experts = 64 if args.experts is None else args.experts
        source = synthetic_input(args.tokens, experts, args.top_k, args.distribution, args.seed)
    else:
        source = read_input(args.file, args.experts)

    saved: dict[str, Any] = {}
    reports = []
    for workload in source.workloads:
        try:
            report, arrays = _align(workload, cuda_index, args)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{source.title}: {error}") from None
        prefix = "" if workload.layer is None else f"layer{workload.layer}."
        saved |= {prefix + name: array for name, array in arrays.items()}
        reports.append(report)
    if args.output is not None:
        _save(args.output, saved)

    if args.json:
        document = {"input": source.title, "note": source.note, "workloads": reports}
        print(json.dumps(document, indent=2))
    else:
        _print(source, reports)
    return 1 if any(report["violations"] for report in reports) else 0


def _align(
    workload: Workload, cuda_index: int, args: argparse.Namespace
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run, judge and, if asked, time one call. Returns the report, and the arrays to save."""
    ids, num_experts = workload.topk_ids, workload.num_experts
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
    found = tessera.align_block_size(
        topk_ids, **options, **statistics_of, num_threads=args.num_threads
    )
    violations = tessera.contract_violations(topk_ids, found, **options, **statistics_of)
    result = tessera.AlignedBlocks(*(np.asarray(on_host(array)) for array in found))
    implementations = tessera.explain(
        ids.size,
        num_experts,
        args.block_size,
        pad_sorted_ids=args.pad_sorted_ids,
        num_threads=args.num_threads,
        device=device_name(cuda_index),
    )
    num_slots = int(result.num_tokens_post_pad[0])
    report = {
        "layer": workload.layer,
        "device": device_name(cuda_index),
        "implementation": next(one.name for one in implementations if one.selected),
        "shape": list(ids.shape),
        "num_ids": ids.size,
        "num_experts": num_experts,
        "block_size": args.block_size,
        "num_dropped": int(dropped[0]),
        "num_blocks": num_slots // args.block_size,
        "num_tokens_post_pad": num_slots,
        "capacity": len(result.sorted_token_ids),
        "expert_counts": counts.tolist(),
        "time_us": _times(workload, cuda_index, result, args) if args.time else {},
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
    """Median times in microseconds, ours first, on a GPU until it has finished.

    The compositions know no map and no bad ids.
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


def _save(path: Path, arrays: dict[str, Any]) -> None:
    """Write the arrays in one step: a reader finds the old file, or the whole new one."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with draft.open("xb") as file:
            np.savez(file, **arrays)
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise ValueError(f"{path}: {error.strerror or error}") from None


def _print(source: Input, reports: list[dict[str, Any]]) -> None:
    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(f"input     {source.title}")
    if source.note:
        console.print(f"note      {source.note}")
    for report in reports:
        console.print()
        if report["layer"] is not None:
            console.print(f"layer     {report['layer']}")
        _print_report(console, report)


def _print_report(console: Console, report: dict[str, Any]) -> None:
    ids, slots = report["num_ids"], report["num_tokens_post_pad"]
    counts = np.array(report["expert_counts"])
    padding = slots - int(counts.sum())
    dropped = report["num_dropped"]
    console.print(f"device    {report['device']}, {report['implementation']}")
    console.print(
        f"sizes     {ids} ids ({' x '.join(map(str, report['shape']))}), {len(counts)} experts -> "
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
        f"load      {counts.mean():.1f} ids an expert; most: {counts[hottest]}, expert {hottest}"
    )
    for row in load_picture(counts, width):
        console.print(" " * 10 + row, style="cyan")
    share = 100 * padding / slots if slots else 0.0
    console.print(f"padding   {padding} of {slots} slots, {share:.1f} %")
    console.print(" " * 10 + share_picture(padding, slots, min(width, 64)), style="yellow")
