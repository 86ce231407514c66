"""`fused_experts` on the CPU, with torch's two usual ways as peers, and what bounds all three."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import timeit
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

import tessera
from tessera.contract import Violation, synthetic_topk_ids
from tessera.tools.bench.calls import CallProblem, named_contenders, required_torch
from tessera.tools.bench.contender import (
    HOST_LIBRARY,
    Contender,
    Kind,
    TimedCall,
    absent,
    native_library,
)
from tessera.tools.bench.op import Op


@dataclass(frozen=True)
class Shape:
    """The experts of a model's layer, with SwiGLU, and the tokens of a call.

    skew: the popularity of the experts, uniform or zipf; log if the ids are of a routing log.
    trace: the log and the layer that the ids come from; empty for synthetic ones.
    """

    model: str
    num_experts: int
    top_k: int
    hidden_size: int
    intermediate_size: int
    dtype: str
    num_tokens: int
    skew: str = "uniform"
    trace: str = ""

    @property
    def name(self) -> str:
        """Model, data type and tokens, and where the ids are not uniform, what they are."""
        routing = self.trace or self.skew
        unusual = f"/{routing}" if routing != "uniform" else ""
        return f"{self.model} {self.dtype}/{self.num_tokens}{unusual}"


_MODELS = [("Qwen3-30B-A3B", 128, 8, 2048, 768), ("OLMoE", 64, 8, 2048, 1024)]

# Shapes with the same weights are neighbours, since only the last weights are kept.
SHAPES = [
    Shape(*model, dtype, num_tokens)
    for model, dtype, num_tokens in itertools.product(
        _MODELS, ("bfloat16", "float32"), (1, 4, 16, 64, 256, 1024)
    )
]

# The calls of a contender go round at least so many sets of ids, and round so many tokens. So one
# token's weights, 75 MB of Qwen3 in bfloat16, are not in a cache from the call before.
_NUM_SETS, _NUM_TOKENS = 2, 8

# A peer must be as near to a float64 reference, as the norm of the difference over the norm: it may
# round more often than the contract's bound allows, but has to compute the same.
NEAR = {"bfloat16": 2e-2, "float32": 1e-5}

PEERS = ("eager", "grouped_mm")

# What every implementation has to do, and the names of the contenders that do nothing else.
BOUNDS = ("read", "multiply_adds")


class Inputs(NamedTuple):
    """The arrays of one call, in the order of the op's arguments."""

    x: Any
    w13: Any
    w2: Any
    topk_weights: Any
    topk_ids: Any


def make_problem(
    shape: Shape, device: str, seed: int, log_ids: npt.NDArray[np.int32] | None = None
) -> CallProblem:
    """Calls with several sets of ids, which every contender goes round."""
    torch = required_torch("fused_experts")
    sets = [
        # Transformers passes the router's weights in the data type of the layer.
        one._replace(topk_ids=one.topk_ids.long(), topk_weights=one.topk_weights.to(one.x.dtype))
        for one in input_sets(shape, device, seed, num_sets(shape.num_tokens), log_ids)
    ]
    dtype, (_, w13, w2, *_) = sets[0].x.dtype, sets[0]
    chosen = [torch.unique(inputs.topk_ids) for inputs in sets]
    num_weights = w13[0].numel() + w2[0].numel()
    num_multiply_adds = shape.num_tokens * shape.top_k * num_weights
    num_threads = torch.get_num_threads()

    def judge(outputs: tuple[Any, ...]) -> list[Violation]:
        each = (
            tessera.fused_experts_contract_violations(*inputs, output)
            for inputs, output in zip(sets, outputs, strict=True)
        )
        return next((found for found in each if found), [])

    def peer(name: str, function: Callable[[Inputs], Any]) -> TimedCall:
        call = _calls([functools.partial(function, inputs) for inputs in sets])

        def run() -> Any:
            outputs = call.run()
            for inputs, output in zip(sets, outputs, strict=True):
                _require_near(f"{name} on {shape.name}", inputs, output, NEAR[shape.dtype])
            return outputs

        return TimedCall(run, call.seconds)

    def tesseras(**options: Any) -> TimedCall:
        calls = [functools.partial(tessera.fused_experts, *inputs) for inputs in sets]
        return _calls([functools.partial(call, **options) for call in calls])

    def read(experts: Any) -> None:
        function = native_library(HOST_LIBRARY).function("read_experts")
        function(w13, experts, num_threads)
        function(w2, experts, num_threads)

    def multiply_adds() -> None:
        function = native_library(HOST_LIBRARY).function("multiply_adds")
        function(shape.dtype, num_multiply_adds, num_threads)

    return CallProblem(
        shape,
        device,
        tesseras(),
        judge,
        {
            "tessera/1": tesseras(num_threads=1),
            "eager": peer("eager", eager),
            "grouped_mm": peer("grouped_mm", grouped_mm),
            "read": _calls([functools.partial(read, experts) for experts in chosen]),
            "multiply_adds": _calls([multiply_adds]),
        },
        len(chosen[0]) * num_weights * dtype.itemsize // 4,
    )


def num_sets(num_tokens: int) -> int:
    """How many sets of ids the calls of a contender go round."""
    return max(_NUM_SETS, _NUM_TOKENS // num_tokens)


def input_sets(
    shape: Shape, device: str, seed: int, number: int, log_ids: npt.NDArray[np.int32] | None
) -> list[Inputs]:
    """So many sets of different tokens for the same weights; of a log, one window after another.

    The ids are int32, and the router's weights float32 numbers that the data type of x has, too.
    """
    torch = required_torch("fused_experts")
    random = torch.Generator(device).manual_seed(seed)
    dtype = getattr(torch, shape.dtype)
    sizes = (shape.num_experts, shape.hidden_size, shape.intermediate_size)
    w13, w2 = _weights(*sizes, shape.dtype, device, seed)

    def make_inputs(i: int) -> Inputs:
        x = torch.randn((shape.num_tokens, shape.hidden_size), generator=random, device=device)
        scores = torch.rand((shape.num_tokens, shape.top_k), generator=random, device=device)
        if log_ids is None:
            is_zipf = shape.skew == "zipf"
            sizes = (shape.num_tokens, shape.num_experts, shape.top_k)
            topk_ids = synthetic_topk_ids(*sizes, zipf=is_zipf, seed=seed + i)
        else:
            topk_ids = log_ids[i * shape.num_tokens : (i + 1) * shape.num_tokens]
        topk_weights = (scores / scores.sum(1, keepdim=True)).to(dtype).float()
        ids = torch.from_numpy(np.ascontiguousarray(topk_ids)).to(device)
        return Inputs(x.to(dtype), w13, w2, topk_weights, ids)

    return [make_inputs(i) for i in range(number)]


def _calls(functions: Sequence[Callable[[], Any]]) -> TimedCall:
    """One that makes all these calls and returns their results; timed, it goes round them."""
    following = itertools.cycle(functions).__next__
    return TimedCall(
        lambda: tuple(function() for function in functions),
        lambda number: timeit.timeit(lambda: following()(), number=number),
    )


@functools.lru_cache(maxsize=1)
def _weights(
    num_experts: int, hidden_size: int, intermediate_size: int, dtype: str, device: str, seed: int
) -> tuple[Any, Any]:
    """w13 and w2, of a size that keeps the values of a call near 1. They take up to 2.8 GB."""
    import torch

    random = torch.Generator(device).manual_seed(seed)

    def normal(num_rows: int, num_columns: int) -> Any:
        sizes = (num_experts, num_rows, num_columns)
        empty = torch.empty(sizes, dtype=getattr(torch, dtype), device=device)
        return empty.normal_(std=num_columns**-0.5, generator=random)

    return normal(2 * intermediate_size, hidden_size), normal(hidden_size, intermediate_size)


def eager(inputs: Inputs) -> Any:
    """The loop over the experts with tokens, as Transformers calls it: two products for each."""
    import torch
    from torch.nn import functional

    x, topk_ids = inputs.x, inputs.topk_ids
    output = torch.zeros_like(x)
    mask = functional.one_hot(topk_ids, len(inputs.w13)).permute(2, 1, 0)
    for (expert,) in mask.sum((-1, -2)).nonzero():
        slots, tokens = torch.where(mask[expert])
        gate, up = functional.linear(x[tokens], inputs.w13[expert]).chunk(2, dim=-1)
        y = functional.linear(functional.silu(gate) * up, inputs.w2[expert])
        y = y * inputs.topk_weights[tokens, slots, None]
        output.index_add_(0, tokens, y.to(output.dtype))
    return output


def grouped_mm(inputs: Inputs) -> Any:
    """Two grouped products over the pairs, sorted by expert, as in Transformers."""
    import torch
    from torch.nn import functional

    (num_tokens, top_k), num_experts = inputs.topk_ids.shape, len(inputs.w13)
    experts, order = torch.sort(inputs.topk_ids.reshape(-1))
    # Nothing is read back to the host, so that a CUDA graph can capture it.
    each = torch.arange(num_experts, dtype=experts.dtype, device=experts.device)
    ends = torch.searchsorted(experts, each, right=True, out_int32=True)
    rows = inputs.x[order // top_k]
    gate, up = functional.grouped_mm(rows, inputs.w13.mT, offs=ends).chunk(2, dim=-1)
    y = functional.grouped_mm(functional.silu(gate) * up, inputs.w2.mT, offs=ends)
    y = y * inputs.topk_weights.reshape(-1)[order, None]
    places = torch.empty_like(order)
    places[order] = torch.arange(len(order), device=order.device)
    return y[places].view(num_tokens, top_k, -1).sum(1).to(inputs.x.dtype)


def _require_near(what: str, inputs: Inputs, output: Any, limit: float) -> None:
    """Compare the first and the last token with float64."""
    import torch
    from torch.nn import functional

    for token in {0, len(output) - 1}:
        expected = torch.zeros(inputs.x.shape[1], dtype=torch.float64)
        for expert, weight in zip(inputs.topk_ids[token], inputs.topk_weights[token], strict=True):
            gate, up = (inputs.w13[expert].double() @ inputs.x[token].double()).chunk(2)
            expected += weight * (inputs.w2[expert].double() @ (functional.silu(gate) * up))
        off = float((output[token] - expected).norm() / expected.norm())
        if not off <= limit:
            raise RuntimeError(
                f"{what}: expected at most {limit:.0e} off a float64 reference, got {off:.0e}"
            )


def contenders(device: str) -> list[Contender]:
    """Tessera on all threads and on one, the peers and the bounds."""
    kinds: dict[str, Kind] = {
        "tessera/1": "related",
        **dict.fromkeys(PEERS, "peer"),
        **dict.fromkeys(BOUNDS, "related"),
    }
    torch = required_torch("fused_experts")
    reasons = _no_bounds()
    if not hasattr(torch.nn.functional, "grouped_mm"):
        reasons["grouped_mm"] = "needs torch 2.10 or newer"
    found = []
    for one in named_contenders(device, kinds):
        if one.name in reasons:
            found.append(absent(one.name, one.kind, reasons[one.name]))
        else:
            version = torch.__version__ if one.name in PEERS else ""
            found.append(dataclasses.replace(one, version=version))
    return found


def _no_bounds() -> dict[str, str]:
    """Why the bounds cannot be measured, by name."""
    try:
        native = native_library(HOST_LIBRARY)
    except OSError as error:
        return dict.fromkeys(BOUNDS, str(error))
    if not native.function("has_openmp")():
        return dict.fromkeys(BOUNDS, "this build has no OpenMP")
    if not native.function("has_multiply_adds")():
        return {"multiply_adds": "needs an x86 processor with FMA"}
    return {}


def ratios(us: Mapping[str, float]) -> dict[str, float]:
    """Tessera's time, on all threads, over a peer's and over the greater of the two bounds."""
    found = {"1 thread / all threads": us["tessera/1"] / us["tessera"]}
    if peers := [us[name] for name in PEERS if name in us]:
        found["Tessera / best peer"] = us["tessera"] / min(peers)
    if us.keys() >= set(BOUNDS):
        found["Tessera / floor"] = us["tessera"] / max(us[name] for name in BOUNDS)
    return found


OP = Op(
    "fused_experts",
    {"quick": SHAPES},
    make_problem,
    contenders,
    results="fused_experts",
    ratios=ratios,
    num_sets=num_sets,
)
