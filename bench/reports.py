"""Times what statistics and validation add to a call on a GPU; writes a file of results."""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tessera
from tessera.tools.bench.contender import Call
from tessera.tools.bench.machine import description
from tessera.tools.bench.methods import MEANINGS, METHODS, THOROUGH
from tessera.tools.bench.problem import make_problem
from tessera.tools.bench.results import write_results
from tessera.tools.bench.shapes import HEADLINE, Shape

METHOD = "graph"
SHAPES = [
    dataclasses.replace(shape, map=map_)
    for map_ in ("none", "half-remote")
    for shape in HEADLINE
    if shape.skew == "uniform"
]


def calls_of(shape: Shape) -> dict[str, Call]:
    """The calls to compare, with outputs that the caller owns."""
    import torch

    problem = make_problem(shape, "cuda", 0)
    ids, device = problem.topk_ids, problem.topk_ids.device
    counts = torch.empty(shape.num_experts, dtype=torch.int32, device=device)
    statistics = torch.empty(6, dtype=torch.float64, device=device)
    align: Callable[..., Any] = functools.partial(
        tessera.align_block_size, ids, **problem.options, out=problem.empty_outputs()
    )
    added = {
        "nothing": {},
        "expert_counts": {"expert_counts": counts},
        "statistics": {"statistics": statistics},
        "validation": {"validate": True},
        "all": {"expert_counts": counts, "statistics": statistics, "validate": True},
    }
    return {name: Call.of(functools.partial(align, **options)) for name, options in added.items()}


def measure(commit: str | None = None) -> dict[str, Any]:
    """The results as one JSON document; each is printed as soon as it is there."""
    rows = []
    for shape in SHAPES:
        times = METHODS[METHOD](calls_of(shape), THOROUGH)
        if times.failures:
            raise RuntimeError(f"{shape.name}: {times.failures}")
        if invalid := tessera.check(raise_invalid=False):
            raise RuntimeError(f"{shape.name}: {invalid} invalid ids or map entries")
        print(shape.name, *(f"{name} {us:.2f}" for name, us in times.us.items()), flush=True)
        rows.append({"shape": shape.name, "us": times.us})
    return {**description("cuda", commit), "methods": {METHOD: MEANINGS[METHOD]}, "rows": rows}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True, metavar="FILE")
    parser.add_argument("--commit", metavar="REV", help="what to record where git cannot tell")
    options = parser.parse_args()
    document = measure(options.commit)
    write_results(options.json, document)


if __name__ == "__main__":
    main()
