"""Times the last step of `fused_experts` on a GPU, beside a copy of as many bytes.

The combination reads the weighted row of every pair of a token and an expert, and writes one row
for each token. It starts before the down product has ended, so its time is taken from the end of
that product to its own end, in a trace of torch's profiler. The time of the copy, which follows it,
is taken from there to the end of the copy, so that both include the start of a kernel; the duration
of the copy alone is written, too. Both take turns in one process. There is no pass that permutes
rows: the gate-up product gathers them.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from collections.abc import Iterable
from typing import Any, NamedTuple

from gpu_program import options_of

import tessera
from tessera.tools.bench.machine import description
from tessera.tools.bench.ops.fused_experts_cuda import MODELS, make_problem, model_shape
from tessera.tools.bench.ops.fused_experts_inputs import Shape
from tessera.tools.bench.results import write_results

TOKENS = (1024, 4096, 16384)
METHOD = (
    "torch's profiler; median of 20 calls, each followed by a copy; combination: from the end of "
    "the down product to its own end, copy: from the end of the combination to its own end, "
    "alone: its duration"
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
    """Medians of microseconds per call.

    Of the combinations, of the copy from the end of the last one on, and of the copy alone.

    Raises:
        ValueError: the trace does not have all copies, or as many combinations of each call.
    """
    # A call has a combination for each chunk of its tokens, and a copy after it.
    combinations: list[list[float]] = [[]]
    copies, alone, product_end, combine_end = [], [], 0.0, 0.0
    for event in sorted(events, key=lambda event: event.end):
        if "product" in event.name:
            product_end = event.end
        elif "combine" in event.name:
            combinations[-1].append(event.end - max(product_end, event.begin))
            combine_end = event.end
        elif "Memcpy DtoD" in event.name:
            copies.append(event.end - combine_end)
            alone.append(event.end - event.begin)
            combinations.append([])
    numbers = {len(of_call) for of_call in combinations[:-1]}
    if len(copies) != _CALLS or len(numbers) != 1 or 0 in numbers:
        raise ValueError(
            f"expected {_CALLS} calls and copies in the trace, got {len(copies)} copies and "
            f"{sorted(numbers)} combinations per call"
        )
    return {
        "combine": statistics.median(map(sum, combinations[:-1])),
        "copy": statistics.median(copies),
        "copy_alone": statistics.median(alone),
    }


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
    options = options_of(parser, "fused_experts_combine.json")
    rows = []
    for model in MODELS:
        for num_tokens in TOKENS:
            rows.append(measure(model_shape(model, num_tokens)))
            us = rows[-1]["us"]
            print(
                f"{rows[-1]['shape']}: combination {us['combine']:.1f} us, copy of as many bytes "
                f"{us['copy']:.1f} us",
                flush=True,
            )
    if options.json:
        about = description("cuda", options.commit)  # with the clock of a GPU that works
        write_results(options.json, about | {"methods": {"trace": METHOD}, "rows": rows})
        print(f"wrote {options.json}")


if __name__ == "__main__":
    main()
