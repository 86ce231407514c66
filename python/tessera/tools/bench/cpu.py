"""The contenders on the CPU: C++ functions in a loop in C++, and costs of calls from Python."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

import tessera
from tessera._library import torch_failure, torch_or_none
from tessera.tools.bench.compositions import torch_composition
from tessera.tools.bench.contender import (
    HOST_LIBRARY,
    Contender,
    Kind,
    TimedCall,
    absent,
    native_library,
)
from tessera.tools.bench.problem import Problem
from tessera.tools.bench.shapes import Shape
from tessera.tools.bench.torch_calls import torch_op_contenders


def contenders() -> list[Contender]:
    """All contenders, available or not."""
    native = native_library(HOST_LIBRARY)
    found = [
        _native("tessera/1", "tessera", "tessera", 1),
        _native("tessera/2", "tessera", "tessera", 2),
        _native("textbook", "peer", "textbook", 1),
        _native("thread_local_counts/1", "peer", "thread_local_counts", 1),
        _native("thread_local_counts/2", "peer", "thread_local_counts", 2)
        if native.function("has_openmp")()
        else absent("thread_local_counts/2", "peer", "this build has no OpenMP"),
        _native("floor", "floor", "floor", 1),
    ]
    torch = torch_or_none()
    if torch is None:
        why = torch_failure() or "torch is not installed"
        return [*found, absent("torch", "peer", why), *_costs(None)]
    return [*found, Contender("torch", "peer", ("call",), _prepare_torch), *_costs(torch)]


def ratios(us: Mapping[str, float]) -> dict[str, float]:
    """The ratios of interest for one shape. Values above 1 are wins, except for the floor."""
    ours = min(us["tessera/1"], us["tessera/2"])
    found = {
        "1 thread / 2 threads": us["tessera/1"] / us["tessera/2"],
        "Tessera / floor": ours / us["floor"],
    }
    if "textbook" in us:
        found["textbook / 1 thread"] = us["textbook"] / us["tessera/1"]
    theirs = [time for name, time in us.items() if name.startswith("thread_local_counts/")]
    if theirs:
        found["thread-local counts / Tessera"] = min(theirs) / ours
    return found


def _native(name: str, kind: Kind, function: str, num_threads: int) -> Contender:
    def prepare(problem: Problem) -> TimedCall:
        return timed(problem, problem.topk_ids, 1)

    def prepare_in_turn(problems: Sequence[Problem]) -> TimedCall:
        return timed(problems[0], np.stack([one.topk_ids for one in problems]), len(problems))

    def timed(problem: Problem, topk_ids: Any, num_windows: int) -> TimedCall:
        outputs = problem.empty_outputs()
        host_seconds = functools.partial(
            native_library(HOST_LIBRARY).function("host_seconds"),
            function,
            topk_ids,
            problem.expert_map,
            *outputs,
            problem.shape.block_size,
            problem.shape.num_experts,
            num_threads,
            num_windows,
        )

        def run() -> Any:
            for array in outputs:
                array[...] = -7
            host_seconds(1)
            return outputs

        return TimedCall(run, host_seconds)

    refusal = _refuse_all_but_plain_int32 if kind == "peer" else lambda shape: ""
    return Contender(
        name, kind, ("call",), prepare, refusal=refusal, prepare_in_turn=prepare_in_turn
    )


def _refuse_all_but_plain_int32(shape: Shape) -> str:
    if shape.dtype != "int32":
        return f"takes int32 ids only, not {shape.dtype}"
    return "takes no expert map" if shape.map != "none" else ""


def _prepare_torch(problem: Problem) -> TimedCall:
    import torch

    problem.require_experts("it indexes by them")
    ids = torch.from_numpy(problem.topk_ids)
    expert_map = None if problem.expert_map is None else torch.from_numpy(problem.expert_map)
    shape = problem.shape
    return TimedCall.of(
        lambda: torch_composition(
            ids, shape.block_size, shape.num_experts, problem.num_slots, expert_map
        )
    )


def _costs(torch: Any) -> list[Contender]:
    """A call from Python in every form, and calls that bound its cost."""

    def cost(name: str, make: Callable[[Problem], Callable[[], Any]]) -> Contender:
        return Contender(name, "cost", ("eager",), lambda problem: TimedCall.of(make(problem)))

    def align(convert: Callable[[Any], Any], *, allocates: bool) -> Any:
        def make(problem: Problem) -> Callable[[], Any]:
            ids = convert(problem.topk_ids)
            out = None if allocates else tuple(map(convert, problem.empty_outputs()))
            options = problem.options
            return lambda: tessera.align_block_size(ids, **options, out=out)

        return make

    def empty_call(problem: Problem) -> Callable[[], Any]:
        native = native_library(HOST_LIBRARY)
        function = native.function("empty_call", release_gil=False)
        arrays = (problem.topk_ids, *problem.empty_outputs())
        return lambda: function(*arrays)

    def copy(problem: Problem) -> Callable[[], Any]:
        scratch, ids = np.empty_like(problem.topk_ids), problem.topk_ids
        return lambda: np.copyto(scratch, ids)

    def three(empty: Callable[[int], Any]) -> Any:
        def make(problem: Problem) -> Callable[[], Any]:
            lengths = (problem.num_slots, problem.num_blocks, 1)
            return lambda: [empty(length) for length in lengths]

        return make

    found = [
        cost("numpy", align(lambda array: array, allocates=True)),
        cost("numpy, out=", align(lambda array: array, allocates=False)),
        cost("empty call, the same binding and arrays", empty_call),
        cost("three numpy.empty", three(lambda length: np.empty(length, np.int32))),
        cost("NumPy no-op: numpy.copyto of the ids", copy),
    ]
    if torch is not None:
        empty = functools.partial(torch.empty, dtype=torch.int32)
        found += [
            cost("torch tensors", align(torch.from_numpy, allocates=True)),
            cost("torch tensors, out=", align(torch.from_numpy, allocates=False)),
            cost("three torch.empty", three(empty)),
            *torch_op_contenders(),
        ]
    return found
