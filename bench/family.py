"""Times the ops of the family beside align_block_size and the floor; writes a file of results."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import tessera
from tessera.contract import synthetic_topk_ids
from tessera.tools.bench.contender import HOST_LIBRARY, Call, native_library
from tessera.tools.bench.cuda import floor_calls
from tessera.tools.bench.driver import ContractBrokenError
from tessera.tools.bench.machine import description
from tessera.tools.bench.methods import MEANINGS, METHODS, THOROUGH, Effort
from tessera.tools.bench.results import write_results

# Puts a NumPy array where it is to be worked on.
Place = Callable[[Any], Any]

METHOD = {"cpu": "call", "cuda": "graph"}


@dataclass(frozen=True)
class Workload:
    """A call to time.

    run: the call; its outputs.
    violations: what the op's checker says of outputs.
    beside: a call of align_block_size that gives the same tokens to the same groups.
    num_words: words of 32 bits that the op reads.
    """

    op: str
    shape: str
    run: Callable[[], tuple[Any, ...]]
    violations: Callable[[tuple[Any, ...]], list[tessera.Violation]]
    beside: Callable[[], object]
    num_words: int


def batched_workloads(place: Place) -> Iterator[Workload]:
    """Batches x rows of each / block size; every number of tokens equally likely."""
    shapes = [
        (8, 64, 16),
        (32, 128, 16),
        (32, 256, 64),
        (256, 1024, 128),
        (256, 4096, 128),
        (512, 4096, 128),
    ]
    for num_batches, maximum, block_size in shapes:
        random = np.random.default_rng(0)
        counts = random.integers(0, maximum + 1, num_batches, np.int32)
        topk_ids = np.repeat(np.arange(num_batches, dtype=np.int32), counts)
        random.shuffle(topk_ids)
        placed = place(counts)
        options = {"max_tokens_per_batch": maximum, "block_size": block_size}
        yield Workload(
            "batched_align_block_size",
            f"{num_batches}x{maximum}/{block_size}",
            functools.partial(tessera.batched_align_block_size, placed, **options),
            functools.partial(tessera.batched_contract_violations, placed, **options),
            functools.partial(
                tessera.align_block_size,
                place(topk_ids),
                block_size=block_size,
                num_experts=num_batches,
            ),
            num_batches,
        )


def lora_workloads(place: Place) -> Iterator[Workload]:
    """Tokens x experts x top_k / block size, adapters; tokens of a request follow each other."""
    shapes = [
        (16, 64, 8, 16, 4),
        (64, 128, 8, 16, 8),
        (256, 128, 8, 16, 8),
        (2048, 128, 8, 64, 8),
        (8192, 128, 8, 64, 4),
        (8192, 64, 6, 64, 16),
    ]
    for num_tokens, num_experts, top_k, block_size, max_loras in shapes:
        topk_ids = synthetic_topk_ids(num_tokens, num_experts, top_k)
        mapping = np.sort(np.random.default_rng(0).integers(0, max_loras, num_tokens, np.int32))
        inputs = (place(topk_ids), place(mapping))
        options = {"block_size": block_size, "num_experts": num_experts, "max_loras": max_loras}
        yield Workload(
            "lora_align_block_size",
            f"{num_tokens}x{num_experts}x{top_k}/{block_size}, {max_loras} adapters",
            functools.partial(tessera.lora_align_block_size, *inputs, **options),
            functools.partial(tessera.lora_contract_violations, *inputs, **options),
            functools.partial(
                tessera.align_block_size,
                place(topk_ids + num_experts * mapping[:, None]),
                block_size=block_size,
                num_experts=num_experts * max_loras,
            ),
            topk_ids.size + mapping.size,
        )


# One entry per op.
WORKLOADS: tuple[Callable[[Place], Iterable[Workload]], ...] = (batched_workloads, lora_workloads)


def place_on(device: str) -> Place:
    """What puts arrays on the device."""
    if device == "cpu":
        return lambda array: array
    import torch

    return lambda array: torch.from_numpy(array).to(device)


def host_floor(words: Any, outputs: tuple[Any, ...]) -> dict[str, Call]:
    """Reads the words and writes arrays of the outputs' lengths, in C++."""
    function = native_library(HOST_LIBRARY).function("host_seconds")
    written = [np.empty_like(array) for array in outputs]
    seconds = functools.partial(function, "floor", words, None, *written, 1, 1, 1, 1)
    return {"floor": Call(lambda: seconds(1), seconds)}


def measured_row(device: str, workload: Workload, effort: Effort) -> dict[str, Any]:
    """Times of one workload, in microseconds.

    Raises:
        ContractBrokenError: the op's outputs are wrong.
        RuntimeError: a call could not be timed.
    """
    outputs = workload.run()
    name = f"{workload.op} on {workload.shape}"
    if broken := workload.violations(outputs):
        raise ContractBrokenError(f"{name}: {'; '.join(one.message for one in broken)}")
    words = place_on(device)(np.zeros(workload.num_words, np.int32))
    floors = (host_floor if device == "cpu" else floor_calls)(words, outputs)
    calls = {"op": Call.of(workload.run), "align_block_size": Call.of(workload.beside), **floors}
    times = METHODS[METHOD[device]](calls, effort)
    if times.failures:
        raise RuntimeError(f"{name}: {times.failures}")
    fastest = min(floors, key=lambda floor: times.us[floor])
    us = {one: times.us[one] for one in ("op", "align_block_size")} | {"floor": times.us[fastest]}
    return {"op": workload.op, "shape": workload.shape, "us": us, "floor": fastest}


def measure(device: str, commit: str | None = None, effort: Effort = THOROUGH) -> dict[str, Any]:
    """The results as one JSON document; each is printed as soon as it is there."""
    place, method = place_on(device), METHOD[device]
    rows = []
    for workload in (one for make in WORKLOADS for one in make(place)):
        row = measured_row(device, workload, effort)
        times = (f"{name} {us:.2f}" for name, us in row["us"].items())
        print(row["op"], row["shape"], *times, flush=True)
        rows.append(row)
    return {**description(device, commit), "methods": {method: MEANINGS[method]}, "rows": rows}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=tuple(METHOD), required=True)
    parser.add_argument("--json", type=Path, required=True, metavar="FILE")
    parser.add_argument("--commit", metavar="REV", help="what to record where git cannot tell")
    options = parser.parse_args()
    document = measure(options.device, options.commit)
    write_results(options.json, document)


if __name__ == "__main__":
    main()
