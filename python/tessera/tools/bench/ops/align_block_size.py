"""`align_block_size`, with its peers, and with the outputs that describe the routing."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

import tessera
from tessera.tools.bench import cpu
from tessera.tools.bench.contender import Contender, TimedCall
from tessera.tools.bench.op import Op
from tessera.tools.bench.problem import Problem, make_problem
from tessera.tools.bench.shapes import HEADLINE, MAPS, PRESETS


def _contenders(device: str) -> list[Contender]:
    if device == "cpu":
        return cpu.contenders()
    from tessera.tools.bench import cuda

    return cuda.contenders()


OP = Op("align_block_size", PRESETS, make_problem, _contenders, ratios=cpu.ratios)

_REPORTED_SHAPES = [
    dataclasses.replace(shape, map=map_)
    for map_ in MAPS
    for shape in HEADLINE
    if shape.skew == "uniform"
]


def _reporting_contenders(device: str) -> list[Contender]:
    """Calls with outputs that the caller owns, by the further outputs that they request."""

    def counts(problem: Problem) -> dict[str, Any]:
        return {"expert_counts": _empty(problem, problem.shape.num_experts, "int32")}

    def statistics(problem: Problem) -> dict[str, Any]:
        return {"statistics": _empty(problem, 6, "float64")}

    def validation(problem: Problem) -> dict[str, Any]:
        return {"validate": True}

    added: dict[str, Callable[[Problem], dict[str, Any]]] = {
        "nothing": lambda problem: {},
        "expert_counts": counts,
        "statistics": statistics,
        "validation": validation,
        "all": lambda problem: counts(problem) | statistics(problem) | validation(problem),
    }
    methods = ("call",) if device == "cpu" else ("graph", "chain", "l2", "eager")
    return [
        Contender(name, "tessera", methods, functools.partial(_reporting_call, options))
        for name, options in added.items()
    ]


def _reporting_call(added: Callable[[Problem], dict[str, Any]], problem: Problem) -> TimedCall:
    ids, out = problem.topk_ids, problem.empty_outputs()
    options = problem.options | added(problem)
    return TimedCall.of(lambda: tessera.align_block_size(ids, **options, out=out), ids)


def _empty(problem: Problem, length: int, dtype: str) -> Any:
    if problem.device == "cpu":
        return np.empty(length, dtype)
    import torch

    return torch.empty(length, dtype=getattr(torch, dtype), device=problem.topk_ids.device)


REPORTING = Op(
    OP.name,
    {"outputs": _REPORTED_SHAPES},
    make_problem,
    _reporting_contenders,
    results="reports",
    after_shape=tessera.check,
)
