"""`fused_experts` on a GPU: the layers of four models, engines as peers, and what bounds them."""

from __future__ import annotations

import dataclasses
import functools
import timeit
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

import tessera
from tessera.contract import Violation
from tessera.tools.bench.bandwidth import read_bandwidth
from tessera.tools.bench.calls import required_torch
from tessera.tools.bench.contender import Contender, NotTimedError, TimedCall, absent
from tessera.tools.bench.op import Op
from tessera.tools.bench.ops.fused_experts import NEAR, Inputs, Shape, grouped_mm, input_sets
from tessera.tools.bench.ops.fused_experts_engines import (
    GroupedProducts,
    deep_gemm_products,
    engine_version,
    flashinfer_layer,
    missing_engine,
    vllm_layer,
)

# Experts, experts per token, hidden size and intermediate size, as the models' configurations or a
# rank of 8 have them: TP8 has an eighth of every expert's intermediate size, EP8 of the experts.
MODELS = {
    "Qwen3-30B-A3B": (128, 8, 2048, 768),
    "DeepSeek-V3-TP8": (256, 8, 7168, 256),
    "DeepSeek-V3-EP8": (32, 8, 7168, 2048),
    "Mixtral-8x7B": (8, 2, 4096, 14336),
}
TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024, 4096, 16384)


def _shape(model: str, num_tokens: int) -> Shape:
    return Shape(model, *MODELS[model], "bfloat16", num_tokens)


# Shapes with the same weights are neighbours, since only the last weights are kept.
TABLE = [_shape(model, num_tokens) for model in MODELS for num_tokens in TOKENS]
ANCHORS = [
    *(_shape("Qwen3-30B-A3B", num_tokens) for num_tokens in (1, 64, 1024, 16384)),
    *(_shape("DeepSeek-V3-TP8", num_tokens) for num_tokens in (1, 16384)),
    _shape("DeepSeek-V3-EP8", 1024),
    _shape("Mixtral-8x7B", 1024),
]

METHODS = ("burst", "sustained")
_ALL_METHODS = (*METHODS, "chain")
FLOORS = ("weights", "dense")
LAYERS = ("grouped_mm", "vllm", "flashinfer")
PARTS = ("deep_gemm",)

# Up to so many tokens a graph has this many calls with different ids, so that the caches do not
# hold the experts of the next call.
_FEW_TOKENS, _NUM_SETS = 64, 4

# From here on a call is long enough to bring the GPU to its power limit.
SUSTAINED_FROM = 4096

# Up to so many tokens the kernels before and after a call matter to its time.
_CHAINED_TOKENS = 256

# DeepGEMM pads the rows of every expert to 128: below, most of its work would be padding.
_DEEP_GEMM_FROM = 1024

# Tokens of a set that are compared with the reference, and those that go through the checker.
_COMPARED, _JUDGED = 16, 2


@dataclass(frozen=True)
class LayerProblem:
    """The calls of one graph: sets of inputs, and the arrays that Tessera writes to.

    calls: by contender, what has been prepared for this problem.
    """

    shape: Shape
    device: str
    sets: Sequence[Inputs]
    outs: Sequence[Any]
    calls: dict[str, TimedCall] = field(default_factory=dict)

    def poison(self) -> None:
        """Fill Tessera's outputs with NaN."""
        for out in self.outs:
            out.fill_(float("nan"))

    def violations(self, outputs: tuple[Any, ...]) -> list[Violation]:
        """What the checker finds in some tokens, or a difference from the reference in more."""
        for inputs, output in zip(self.sets, outputs, strict=True):
            number = 1 if len(self.sets) > 1 else _JUDGED
            tokens = _spread(self.shape.num_tokens, number)
            experts, ids = inputs.topk_ids[tokens].unique(return_inverse=True)
            # Only the weights that the tokens use: the checker copies all that it gets to the host.
            arguments = (
                inputs.x[tokens],
                inputs.w13[experts.long()],
                inputs.w2[experts.long()],
                inputs.topk_weights[tokens],
                ids.view(len(tokens), -1).int(),
                output[tokens],
            )
            on_host = [each.cpu() for each in arguments]
            if found := tessera.fused_experts_contract_violations(*on_host):
                return list(found)
        if why := self.difference(lambda i, tokens: outputs[i][tokens]):
            return [Violation("near_reference", "output", 0, 0, 0, why)]
        return []

    def difference(self, rows_of: Callable[[int, Any], Any]) -> str:
        """How outputs differ from the reference; empty if all are near.

        Args:
            rows_of: gives the output's rows [n, H] of a set, by its number, for n tokens.
        """
        limit = NEAR[self.shape.dtype]
        for i, inputs in enumerate(self.sets):
            tokens = _spread(self.shape.num_tokens, _COMPARED)
            expected = reference(inputs, tokens)
            off = (rows_of(i, tokens).float() - expected).norm(dim=1) / expected.norm(dim=1)
            if not bool((off <= limit).all()):
                return (
                    f"expected at most {limit:.0e} off a float32 reference, "
                    f"got {float(off.max()):.0e}"
                )
        return ""


def make_problem(
    shape: Shape, device: str, seed: int, log_ids: npt.NDArray[np.int32] | None = None
) -> LayerProblem:
    """One set of inputs, or for few tokens several."""
    torch = required_torch("fused_experts")
    sets = input_sets(shape, device, seed, num_sets(shape.num_tokens), log_ids)
    return LayerProblem(shape, device, sets, [torch.empty_like(one.x) for one in sets])


def num_sets(num_tokens: int) -> int:
    """How many calls with different inputs a graph has."""
    return _NUM_SETS if num_tokens <= _FEW_TOKENS else 1


def _spread(num_tokens: int, number: int) -> Any:
    """At most so many tokens, the first and the last among them."""
    import torch

    return torch.linspace(0, num_tokens - 1, min(number, num_tokens)).round().long()


def reference(inputs: Inputs, tokens: Any) -> Any:
    """The layer for some tokens in float32 [n, H], expert by expert, from float32 weights."""
    import torch
    from torch.nn import functional

    tokens = tokens.to(inputs.x.device)
    x, ids, weights = inputs.x[tokens].float(), inputs.topk_ids[tokens], inputs.topk_weights[tokens]
    expected = torch.zeros_like(x)
    for expert in ids.unique().tolist():
        rows, slots = torch.where(ids == expert)
        gate, up = (x[rows] @ inputs.w13[expert].float().T).chunk(2, dim=-1)
        y = (functional.silu(gate) * up) @ inputs.w2[expert].float().T
        expected.index_add_(0, rows, y * weights[rows, slots, None].float())
    return expected


def _call(
    problem: LayerProblem,
    functions: Sequence[Callable[[], Any]],
    check: Callable[[], None] | None = None,
) -> TimedCall:
    """The calls of a graph, of which each function makes one on a set and returns its output."""

    def run() -> tuple[Any, ...]:
        return tuple(function() for function in functions)

    def link(function: Callable[[], Any], inputs: Inputs) -> TimedCall:
        return TimedCall.of(lambda: (function(),), inputs.x, is_aligned=False)

    return TimedCall(
        run,
        lambda number: timeit.timeit(run, number=number),
        num_calls=len(functions),
        links=list(map(link, functions, problem.sets)),
        check=check,
    )


def _prepare_tessera(problem: LayerProblem) -> TimedCall:
    def call(inputs: Inputs, out: Any) -> Callable[[], Any]:
        return lambda: tessera.fused_experts(*inputs, out=out)

    return _call(problem, list(map(call, problem.sets, problem.outs)))


def _prepare_dense(problem: LayerProblem) -> TimedCall:
    """Two products of as many rows as there are pairs, by the weights of one expert."""
    import torch

    def call(number: int, inputs: Inputs) -> Callable[[], Any]:
        expert = number % problem.shape.num_experts
        w13, w2 = inputs.w13[expert].T, inputs.w2[expert].T
        rows = inputs.x.repeat_interleave(problem.shape.top_k, 0)
        gate_up = rows @ w13
        middle = gate_up[:, : problem.shape.intermediate_size].contiguous()
        y = middle @ w2

        def run() -> Any:
            torch.mm(rows, w13, out=gate_up)
            return torch.mm(middle, w2, out=y)

        return run

    return _call(problem, [call(*one) for one in enumerate(problem.sets)])


def _layer(name: str, function_of: Callable[[], Callable[[Inputs], Any]]) -> Contender:
    """A peer that computes the whole layer, of one set of inputs at a time."""

    def prepare(problem: LayerProblem) -> TimedCall:
        function = function_of()
        functions = [functools.partial(function, one) for one in problem.sets]
        call = _call(problem, functions)

        def check() -> None:
            outputs = call.run()
            _require_near(problem, lambda i, tokens: outputs[i][tokens])

        return dataclasses.replace(call, check=check)

    return Contender(name, "peer", _ALL_METHODS, _once(name, prepare), version=engine_version(name))


def _deep_gemm() -> Contender:
    def prepare(problem: LayerProblem) -> TimedCall:
        products: list[GroupedProducts] = [deep_gemm_products(one) for one in problem.sets]

        def check() -> None:
            for each in products:
                each.run()
            _require_near(problem, lambda i, tokens: products[i].combined(tokens))

        return _call(problem, [each.run for each in products], check)

    def refusal(shape: Shape) -> str:
        few = shape.num_tokens < _DEEP_GEMM_FROM
        return f"mostly padding below {_DEEP_GEMM_FROM} tokens" if few else ""

    version = engine_version("deep_gemm")
    return Contender(
        "deep_gemm", "part", METHODS, _once("deep_gemm", prepare), version=version, refusal=refusal
    )


def _require_near(problem: LayerProblem, rows_of: Callable[[int, Any], Any]) -> None:
    if why := problem.difference(rows_of):
        raise NotTimedError(why)


def _once(
    name: str, prepare: Callable[[LayerProblem], TimedCall]
) -> Callable[[LayerProblem], TimedCall]:
    """Prepares a contender once for a problem.

    Whatever it raises then, or when it is checked, keeps it from being timed on this shape; the
    others are timed all the same.
    """

    def failing(function: Callable[[], Any]) -> Any:
        try:
            return function()
        except NotTimedError:
            raise
        except Exception as error:  # an engine of another version fails in many ways
            raise NotTimedError(f"{type(error).__name__}: {error}".partition("\n")[0]) from error

    def of(problem: LayerProblem) -> TimedCall:
        if name not in problem.calls:
            call = failing(lambda: prepare(problem))
            if (check := call.check) is not None:
                call = dataclasses.replace(call, check=lambda: failing(check))
            problem.calls[name] = call
        return problem.calls[name]

    return of


def _torch_grouped_mm() -> Callable[[Inputs], Any]:
    """The pipeline with the router's weights in the type of the layer, as Transformers has them."""
    kept: dict[int, Any] = {}

    def run(inputs: Inputs) -> Any:
        weights = kept.setdefault(id(inputs), inputs.topk_weights.to(inputs.x.dtype))
        return grouped_mm(inputs._replace(topk_weights=weights))

    return run


def contenders(device: str) -> list[Contender]:
    """Tessera, the floors, torch's pipeline, and the engines as far as they are installed."""
    torch = required_torch("fused_experts")
    found = [
        Contender("tessera", "tessera", _ALL_METHODS, _prepare_tessera),
        Contender("weights", "related", (), _prepare_tessera),  # computed, see `bounds`
        Contender("dense", "related", _ALL_METHODS, _once("dense", _prepare_dense)),
    ]
    if hasattr(torch.nn.functional, "grouped_mm"):
        found.append(_layer("grouped_mm", _torch_grouped_mm))
    else:
        found.append(absent("grouped_mm", "peer", "needs torch 2.10 or newer"))
    for name, function_of in (("vllm", vllm_layer), ("flashinfer", flashinfer_layer)):
        why = missing_engine(name)
        found.append(absent(name, "peer", why) if why else _layer(name, function_of))
    if why := missing_engine("deep_gemm"):
        found.append(absent("deep_gemm", "part", why))
    else:
        found.append(_deep_gemm())
    return found


def bounds(problem: LayerProblem) -> dict[str, float]:
    """Microseconds to read the weights of the experts that a call uses, at this GPU's bandwidth."""
    inputs = problem.sets[0]
    num_chosen = sum(one.topk_ids.unique().numel() for one in problem.sets) / len(problem.sets)
    num_bytes = num_chosen * (inputs.w13[0].nbytes + inputs.w2[0].nbytes)
    return {"weights": 1e6 * num_bytes / read_bandwidth().bytes_per_second}


def facts() -> dict[str, Any]:
    """A name of the run, the bandwidth that `weights` rests on, and how far a peer may be off."""
    found = read_bandwidth()
    return {
        "run": uuid.uuid4().hex[:8],
        "read_gb_per_s": found.bytes_per_second / 1e9,
        "read_by": found.reader,
        "peers_within": NEAR["bfloat16"],
    }


def ratios(us: Mapping[str, float]) -> dict[str, float]:
    """Tessera's time over the greater of the two floors, and over each peer's."""
    found = {f"Tessera / {name}": us["tessera"] / us[name] for name in LAYERS if name in us}
    if us.keys() >= set(FLOORS):
        found["Tessera / floor"] = us["tessera"] / max(us[name] for name in FLOORS)
    return found


def _is_timed(shape: Shape, method: str) -> bool:
    if method == "sustained":
        return shape.num_tokens >= SUSTAINED_FROM
    return method != "chain" or shape.num_tokens <= _CHAINED_TOKENS


OP = Op(
    "fused_experts",
    {"table": TABLE, "anchors": ANCHORS},
    make_problem,
    contenders,
    ratios=ratios,
    methods=METHODS,
    is_timed=_is_timed,
    bounds=bounds,
    facts=facts,
    num_sets=num_sets,
)
