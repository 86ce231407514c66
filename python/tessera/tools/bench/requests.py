"""The files of results of the performance page, and the measurements in each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from tessera.contract import cases
from tessera.tools.bench.driver import Request
from tessera.tools.bench.judgement import GPU_METHODS
from tessera.tools.bench.methods import THOROUGH
from tessera.tools.bench.op import Op
from tessera.tools.bench.ops import OPS
from tessera.tools.bench.ops.align_block_size import REPORTING
from tessera.tools.bench.shapes import (
    DTYPES,
    GRID,
    HEADLINE,
    SIXTEEN_TOKENS,
    SKEWS,
    Shape,
    varied,
)

_UNIFORM = [shape for shape in HEADLINE if shape.skew == "uniform"]
_SKEWED = [shape for shape in _UNIFORM if shape.num_tokens >= 16]
_ADDRESSED = [shape for shape in _UNIFORM if shape.num_tokens in (16, 1024, 4096, 65536)]

# Only one, since every figure takes several processes, and each of them seconds.
_COLD = Shape(4096, 64, 2, 128)

# A word, a vector of four, a cache line, some pages, and other numbers.
_SHIFTS = (0, 4, 16, 128, 512, 4096, 69636)


def report_requests(
    device: str,
    log_shapes: Sequence[Shape],
    windows: Mapping[tuple[str, int], npt.NDArray[np.int32]],
    seed: int,
    commit: str | None,
) -> dict[str, list[Request]]:
    """The requests, by the file for their results."""

    def request(
        shapes: Sequence[Shape], *methods: str, peers: Sequence[str] | None = None
    ) -> list[Request]:
        return [Request(device, shapes, methods, peers, windows, seed, THOROUGH, commit)]

    def of_op(op: Op, *methods: str) -> Request:
        shapes = op.usual_shapes
        return Request(device, shapes, methods, seed=seed, effort=THOROUGH, commit=commit, op=op)

    family: dict[str, list[Request]] = {}
    prefix, methods = ("cpu_", ("call",)) if device == "cpu" else ("", GPU_METHODS)
    of_device = [op.on(device) for op in list(OPS.values())[1:] if device in op.devices]
    for op in [op for op in of_device if op.results]:
        family.setdefault(f"{prefix}{op.results}.json", []).append(of_op(op, *methods))
    if device == "cpu":
        logs = [shape for shape in log_shapes if shape.trace]
        return {
            "cpu.json": request([*_cases(), *logs], "call"),
            "cpu_python.json": request(SIXTEEN_TOKENS[:1], "eager"),
            **family,
        }
    return {
        "headline.json": request(HEADLINE, "graph", "chain", "l2"),
        "grid.json": request(GRID, "graph", "chain"),
        "skew.json": request([*varied(_SKEWED, skews=SKEWS), *log_shapes], "graph"),
        "variants.json": request(
            [*varied(_UNIFORM, dtypes=DTYPES), *varied(_UNIFORM, maps=("half-remote",))], "graph"
        ),
        "addresses.json": request(
            varied(_ADDRESSED, shifts=_SHIFTS), "graph", peers=("textbook", "cub_radix")
        ),
        "eager.json": request(SIXTEEN_TOKENS, "eager"),
        "cold.json": request([_COLD], "cold", peers=("textbook", "vllm", "sgl_kernel")),
        f"{REPORTING.results}.json": [of_op(REPORTING, "graph")],
        **family,
    }


def _cases() -> list[Shape]:
    """The benchmark shapes of the table of cases."""
    found = []
    for case in cases():
        if case.benchmark:
            shape = Shape(case.num_tokens, case.num_experts, case.top_k, case.block_size)
            found.append(replace(shape, skew=case.distribution))
    return found
