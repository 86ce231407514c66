"""`fused_experts` on the CPU, with torch's two usual ways as peers, and what bounds all three."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import timeit
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

import tessera
from tessera.contract import Violation
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
from tessera.tools.bench.ops.fused_experts_inputs import (
    Accuracy,
    Inputs,
    Shape,
    WeightsOf,
    input_sets,
    reference,
    routes,
    weights_in_fp8,
)

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


@dataclass(frozen=True)
class LayerCalls(CallProblem):
    """The calls on a shape; with weights in fp8 a check also finds the error of a contender."""

    errors: dict[str, float] = field(default_factory=dict)


def make_problem(
    shape: Shape, device: str, seed: int, log_ids: npt.NDArray[np.int32] | None = None
) -> LayerCalls:
    """Calls with several sets of ids, which every contender goes round."""
    torch = required_torch("fused_experts")
    sets = [
        # Transformers passes the router's weights in the data type of the layer.
        one._replace(topk_ids=one.topk_ids.long(), topk_weights=one.topk_weights.to(one.x.dtype))
        for one in input_sets(shape, device, seed, num_sets(shape.num_tokens), log_ids)
    ]
    _, w13, w2, *_ = sets[0]
    chosen = [torch.unique(inputs.topk_ids) for inputs in sets]
    num_weights = w13[0].numel() + w2[0].numel()
    num_multiply_adds = shape.num_tokens * shape.top_k * num_weights
    num_threads = torch.get_num_threads()
    weights = weights_in_fp8(shape, device, seed)
    scales = weights.scales if weights else {}
    weights_of = weights.dequantized if weights else None
    accuracy = Accuracy(sets[0], weights, seed) if weights else None
    errors: dict[str, float] = {}

    def judge(outputs: tuple[Any, ...]) -> list[Violation]:
        each = (
            tessera.fused_experts_contract_violations(*inputs, output, **scales)
            for inputs, output in zip(sets, outputs, strict=True)
        )
        return next((found for found in each if found), [])

    def compare(name: str, function: Callable[[Inputs], Any]) -> None:
        if accuracy is not None and name not in errors:
            errors[name] = accuracy.error(function(accuracy.inputs))

    def peer(name: str, function: Callable[[Inputs], Any]) -> TimedCall:
        call = _calls([functools.partial(function, inputs) for inputs in sets])

        def run() -> Any:
            outputs = call.run()
            for inputs, output in zip(sets, outputs, strict=True):
                what = f"{name} on {shape.name}"
                _require_near(what, inputs, output, weights_of, NEAR[shape.dtype])
            compare(name, function)
            return outputs

        return TimedCall(run, call.seconds)

    def tesseras(**options: Any) -> TimedCall:
        calls = [functools.partial(tessera.fused_experts, *inputs, **scales) for inputs in sets]
        return _calls([functools.partial(call, **options) for call in calls])

    def ours() -> TimedCall:
        call = tesseras()

        def run() -> Any:
            compare("tessera", lambda inputs: tessera.fused_experts(*inputs, **scales))
            return call.run()

        return dataclasses.replace(call, run=run)

    def read(experts: Any) -> None:
        function = native_library(HOST_LIBRARY).function("read_experts")
        for each in (w13, w2, *scales.values()):
            function(each, experts, num_threads)

    def multiply_adds() -> None:
        function = native_library(HOST_LIBRARY).function("multiply_adds")
        function(shape.dtype, num_multiply_adds, num_threads)

    return LayerCalls(
        shape,
        device,
        ours(),
        judge,
        {
            "tessera/1": tesseras(num_threads=1),
            "eager": peer(
                "eager", functools.partial(eager, weights_of=weights_of) if weights else eager
            ),
            "grouped_mm": peer("grouped_mm", grouped_mm),
            "read": _calls([functools.partial(read, experts) for experts in chosen]),
            "multiply_adds": _calls([multiply_adds]),
        },
        len(chosen[0]) * num_weights * w13.dtype.itemsize // 4,
        errors,
    )


def num_sets(num_tokens: int) -> int:
    """How many sets of ids the calls of a contender go round."""
    return max(_NUM_SETS, _NUM_TOKENS // num_tokens)


def _calls(functions: Sequence[Callable[[], Any]]) -> TimedCall:
    """One that makes all these calls and returns their results; timed, it goes round them."""
    following = itertools.cycle(functions).__next__
    return TimedCall(
        lambda: tuple(function() for function in functions),
        lambda number: timeit.timeit(lambda: following()(), number=number),
    )


def eager(
    inputs: Inputs,
    weights_of: WeightsOf | None = None,
    routed: Iterable[tuple[Any, Any, Any]] | None = None,
) -> Any:
    """The loop over the experts with tokens, as Transformers calls it: two products for each.

    Args:
        inputs: of one call.
        weights_of: what takes the place of the inputs' weights.
        routed: the inputs' `routes`, where they are known.
    """
    import torch
    from torch.nn import functional

    x = inputs.x
    output = torch.zeros_like(x)
    for expert, tokens, slots in routes(inputs) if routed is None else routed:
        found = weights_of(expert) if weights_of else (inputs.w13[expert], inputs.w2[expert])
        w13, w2 = (one.to(x.dtype) for one in found)
        gate, up = functional.linear(x[tokens], w13).chunk(2, dim=-1)
        y = functional.linear(functional.silu(gate) * up, w2)
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


def _require_near(
    what: str, inputs: Inputs, output: Any, weights_of: WeightsOf | None, limit: float
) -> None:
    """Compare the first and the last token with float64."""
    import torch

    tokens = torch.tensor([0, len(output) - 1])
    expected = reference(inputs, tokens, weights_of, torch.float64)
    off = (output[tokens] - expected).norm(dim=1) / expected.norm(dim=1)
    if not bool((off <= limit).all()):
        raise RuntimeError(
            f"{what}: expected at most {limit:.0e} off a float64 reference, "
            f"got {float(off.max()):.0e}"
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


def contenders_in_fp8(device: str) -> list[Contender]:
    """The same with weights in fp8, which `grouped_mm` does not take."""
    return [
        absent(one.name, one.kind, "takes no weights in fp8") if one.name == "grouped_mm" else one
        for one in contenders(device)
    ]


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
IN_FP8 = dataclasses.replace(
    OP,
    presets={"quick": [shape for shape in SHAPES if shape.dtype == "bfloat16"]},
    contenders=contenders_in_fp8,
    errors=lambda problem: problem.errors,
)
OP = dataclasses.replace(OP, quantized=IN_FP8)
