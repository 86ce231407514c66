"""Times the last step of `fused_experts` on a GPU, beside a copy of as many bytes.

The combination reads the weighted row of every pair of a token and an expert, and writes one row
for each token. It starts before the down product has ended, so its time is taken from the end of
that product to its own end, in a trace of torch's profiler; the copy's is its duration in the same
trace. Both take turns in one process. There is no pass that permutes rows: the gate-up product
gathers them.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import tessera
from tessera.tools.bench.machine import description
from tessera.tools.bench.ops.fused_experts import Shape
from tessera.tools.bench.ops.fused_experts_cuda import MODELS, make_problem
from tessera.tools.bench.results import write_results

TOKENS = (1024, 4096, 16384)
METHOD = (
    "torch's profiler; median of 20 calls, each followed by a copy; combination: from the end of "
    "the down product to its own end, copy: its duration"
)
_WARMUP, _CALLS = 3, 20


class Event(NamedTuple):
    """Something that the GPU did, in microseconds of one clock."""

    name: str
    begin: float
    end: float


def num_bytes(shape: Shape) -> int:
    """What the combination reads and writes, in 16-bit elements."""
    return 2 * shape.num_tokens * (shape.top_k + 1) * shape.hidden_size


def times(events: Iterable[Event]) -> dict[str, float]:
    """The medians of the combinations' and the copy's microseconds per call.

    Raises:
        ValueError: the trace does not have as many copies as there were calls.
    """
    combine, copy, product_end = [0.0], [], 0.0
    for event in sorted(events, key=lambda event: event.end):
        if "product" in event.name:
            product_end = event.end
        elif "combine" in event.name:  # one for each chunk of the call's tokens
            combine[-1] += event.end - max(product_end, event.begin)
        elif "Memcpy DtoD" in event.name:
            copy.append(event.end - event.begin)
            combine.append(0.0)
    if len(copy) != _CALLS or not all(combine[:-1]):
        raise ValueError(f"expected {_CALLS} calls and copies in the trace, got {len(copy)} copies")
    return {"combine": statistics.median(combine[:-1]), "copy": statistics.median(copy)}


def measure(shape: Shape) -> dict[str, Any]:
    """The row of a shape."""
    import torch
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    (inputs,) = make_problem(shape, "cuda", 0).sets
    out = torch.empty_like(inputs.x)
    source = torch.empty(num_bytes(shape) // 2, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)

    def run(number: int) -> None:
        for _ in range(number):
            tessera.fused_experts(*inputs, out=out)
            target.copy_(source)
        torch.cuda.synchronize()

    run(_WARMUP)
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        run(_CALLS)
    us = times(
        Event(event.name, event.time_range.start, event.time_range.end)
        for event in trace.events()
        if event.device_type == DeviceType.CUDA
    )
    return {"shape": shape.name, **dataclasses.asdict(shape), "bytes": num_bytes(shape), "us": us}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="where to write the results, bench/results/<gpu>/fused_experts_combine.json for the "
        "performance page; is overwritten",
    )
    parser.add_argument("--commit", metavar="REV", help="what to record where git cannot tell")
    options = parser.parse_args()
    try:
        import torch
    except ImportError:
        sys.exit("fused_experts_combine: expected torch, which is not installed")
    if not torch.cuda.is_available():
        sys.exit("fused_experts_combine: expected a CUDA device, torch finds none")
    about = description("cuda", options.commit) | {"methods": {"trace": METHOD}}
    rows = []
    for model, sizes in MODELS.items():
        for num_tokens in TOKENS:
            rows.append(measure(Shape(model, *sizes, "bfloat16", num_tokens)))
            us = rows[-1]["us"]
            print(
                f"{rows[-1]['shape']}: combination {us['combine']:.1f} us, copy of as many bytes "
                f"{us['copy']:.1f} us",
                flush=True,
            )
    if options.json:
        write_results(options.json, about | {"rows": rows})
        print(f"wrote {options.json}")


if __name__ == "__main__":
    main()
