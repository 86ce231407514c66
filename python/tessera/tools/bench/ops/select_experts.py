"""`select_experts`, with torch, the engines on a GPU, and a plain copy of as many bytes."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import tessera
from tessera.tools.bench.calls import CallProblem, named_contenders, required_torch
from tessera.tools.bench.contender import Contender, Kind, NotTimedError, TimedCall, absent
from tessera.tools.bench.op import Op
from tessera.tools.bench.ops.fused_experts_engines import engine_version

_GPU_METHODS = ("graph", "chain", "l2", "eager")


@dataclass(frozen=True)
class Shape:
    """Tokens x experts x experts per token; groups come with a bias, as in DeepSeek-V3."""

    num_tokens: int
    num_experts: int
    top_k: int
    scoring: str
    dtype: str
    num_expert_group: int = 1
    topk_group: int = 1

    @property
    def has_bias(self) -> bool:
        """Whether a correction bias and a scaling factor are given."""
        return self.num_expert_group > 1

    @property
    def name(self) -> str:
        """The sizes, the scoring and the data type."""
        groups = f" {self.topk_group} of {self.num_expert_group} groups" if self.has_bias else ""
        sizes = f"{self.num_tokens}x{self.num_experts}x{self.top_k}"
        return f"{sizes} {self.scoring}{groups} {self.dtype}"


TOKENS = (1, 16, 64, 256, 1024, 4096, 16384)
_FEW_TOKENS = (1, 64, 1024, 16384)


def _shapes(tokens: tuple[int, ...], dtypes: tuple[str, ...]) -> list[Shape]:
    return [
        shape
        for dtype in dtypes
        for num_tokens in tokens
        for shape in (
            Shape(num_tokens, 128, 8, "softmax", dtype),  # Qwen3-30B-A3B
            Shape(num_tokens, 256, 8, "sigmoid", dtype, 8, 4),  # DeepSeek-V3
            Shape(num_tokens, 256, 8, "softmax", dtype),
        )
    ]


PRESETS = {
    "quick": _shapes(_FEW_TOKENS, ("bfloat16",)),
    "grid": _shapes(TOKENS, ("bfloat16", "float32")),
}

# Tessera without `out=`, and the two calls of torch that compute the least of it, on one thread.
_WITHOUT_OUT = ("tessera/1 new", "torch/1 topk")

# Peers compute sigmoids in the type of the logits, and choose any of equal logits: their weights,
# and the scores by which they choose, may be off by this much, and in so many rows by more.
_NEAR, _FAR_ROWS = 0.02, 0.1


@dataclass(frozen=True)
class RoutingProblem(CallProblem):
    """A call with outputs of the caller, and what the engines need for theirs."""

    logits: Any
    bias: Any
    out: tuple[Any, Any]
    options: dict[str, Any]

    def peer(self, function: Callable[[], tuple[Any, Any]]) -> TimedCall:
        """A peer's call, which returns weights and ids."""

        def check() -> None:
            weights, ids = function()
            if why := _difference(self, weights, ids):
                raise NotTimedError(why)

        return dataclasses.replace(_timed(function, self.logits), check=check)


def _timed(function: Callable[[], tuple[Any, Any]], logits: Any) -> TimedCall:
    import torch

    def run() -> tuple[Any, Any]:
        weights, ids = function()
        return weights.view(torch.int32), ids  # the method `chain` writes and reads words

    return TimedCall.of(run, logits.view(torch.int32), is_aligned=False)


def _difference(problem: RoutingProblem, weights: Any, ids: Any) -> str:
    """How a peer's outputs differ from Tessera's; empty if most rows are near."""
    expected, expected_ids = tessera.select_experts(problem.logits, **problem.options)
    choice = problem.logits.float()
    if problem.bias is not None:
        choice = choice.sigmoid() + problem.bias

    def choice_of(ids: Any) -> Any:
        return choice.gather(1, ids.clamp(0, problem.shape.num_experts - 1).long())

    pairs = {"weights": (weights, expected), "experts": (choice_of(ids), choice_of(expected_ids))}
    for name, (found, wanted) in pairs.items():
        off = (found - wanted).abs().amax(1) / wanted.abs().amax(1)
        share = float((off > _NEAR).float().mean())
        if share > _FAR_ROWS:
            return (
                f"expected {name} within {_NEAR:.0%} of Tessera's in all but {_FAR_ROWS:.0%} of "
                f"the rows, got others in {share:.0%}"
            )
    return ""


def make_problem(shape: Shape, device: str, seed: int) -> RoutingProblem:
    """A call that renormalizes, torch's, and a copy of as many bytes."""
    torch = required_torch("select_experts")
    random = torch.Generator(device).manual_seed(seed)
    sizes = (shape.num_tokens, shape.num_experts)
    dtype = getattr(torch, shape.dtype)
    logits = torch.randn(sizes, generator=random, device=device).to(dtype)
    out = (
        torch.empty((shape.num_tokens, shape.top_k), device=device),
        torch.empty((shape.num_tokens, shape.top_k), dtype=torch.int32, device=device),
    )
    options: dict[str, Any] = {
        "top_k": shape.top_k,
        "scoring": shape.scoring,
        "renormalize": True,
        "num_expert_group": shape.num_expert_group,
        "topk_group": shape.topk_group,
    }
    bias = None
    if shape.has_bias:
        bias = torch.randn(shape.num_experts, generator=random, device=device) / 10
        options |= {"correction_bias": bias, "routed_scaling_factor": 2.5}
    num_words = max(1, (logits.nbytes + 2 * out[0].nbytes) // 8)
    words = torch.zeros(2 * num_words, dtype=torch.int32, device=device)
    source, copied = words[:num_words], words[num_words:]

    def copy() -> tuple[Any]:
        copied.copy_(source)
        return (copied,)

    problem = RoutingProblem(
        shape,
        device,
        _timed(functools.partial(tessera.select_experts, logits, **options, out=out), logits),
        lambda outputs: tessera.select_experts_contract_violations(
            logits, (outputs[0].view(torch.float32), outputs[1]), **options
        ),
        {"copy": TimedCall.of(copy, source, is_aligned=False)},
        num_words,
        logits,
        bias,
        out,
        options,
    )
    one_thread = functools.partial(
        tessera.select_experts, logits, **options, num_threads=1, out=out
    )
    function = functools.partial(_torch_grouped if shape.has_bias else _torch_softmax, problem)
    new = functools.partial(tessera.select_experts, logits, **options, num_threads=1)
    two_calls = functools.partial(_on_one_thread, functools.partial(_torch_two_calls, problem))
    others = {
        "tessera/1": _timed(one_thread, logits),
        "tessera/1 new": TimedCall.of(new),
        "torch/1 topk": TimedCall.of(two_calls),
        "torch": problem.peer(function),
        "torch/1": problem.peer(functools.partial(_on_one_thread, function)),
    }
    return dataclasses.replace(problem, others={**problem.others, **others})


def _on_one_thread(function: Callable[[], tuple[Any, Any]]) -> tuple[Any, Any]:
    """A call of torch's on one thread; to change their number takes a tenth of a microsecond."""
    import torch

    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return function()
    finally:
        torch.set_num_threads(num_threads)


def _two_calls_refusal(shape: Shape) -> str:
    return "two calls choose no groups" if shape.has_bias else ""


def _torch_two_calls(problem: RoutingProblem) -> Any:
    """The best scores alone, neither renormalized nor scaled."""
    import torch

    logits, top_k = problem.logits, problem.shape.top_k
    if problem.shape.scoring == "sigmoid":
        return torch.topk(torch.sigmoid(logits), top_k)
    return torch.topk(torch.softmax(logits, -1), top_k)


def _torch_softmax(problem: RoutingProblem) -> tuple[Any, Any]:
    import torch

    scores = torch.softmax(problem.logits.float(), -1)
    weights, ids = torch.topk(scores, problem.shape.top_k)
    return weights / weights.sum(-1, keepdim=True), ids.int()


def _torch_grouped(problem: RoutingProblem) -> tuple[Any, Any]:
    shape = problem.shape
    scores = problem.logits.float().sigmoid()
    choice = (scores + problem.bias).view(shape.num_tokens, shape.num_expert_group, -1)
    staying = choice.topk(2).values.sum(-1).topk(shape.topk_group).indices
    is_gone = choice.new_ones(choice.shape[:2]).scatter_(1, staying, 0).bool()
    choice = choice.masked_fill(is_gone[..., None], float("-inf")).flatten(1)
    ids = choice.topk(shape.top_k).indices
    weights = scores.gather(1, ids)
    scale = problem.options["routed_scaling_factor"]
    return weights / weights.sum(-1, keepdim=True) * scale, ids.int()


def _vllm(problem: RoutingProblem) -> Callable[[], tuple[Any, Any]]:
    """The op that vLLM runs for this shape, as its function of the same name calls it."""
    import torch

    ops = importlib.import_module("vllm._custom_ops")
    shape, logits, (weights, ids) = problem.shape, problem.logits, problem.out
    if shape.has_bias:
        of_sigmoids = 1  # 0: the scores are given
        arguments = (shape.num_expert_group, shape.topk_group, shape.top_k, True)
        scale = problem.options["routed_scaling_factor"]
        return lambda: ops.grouped_topk(logits, *arguments, scale, problem.bias, of_sigmoids)
    places = torch.empty_like(ids)

    def run() -> tuple[Any, Any]:
        ops.topk_softmax(weights, ids, places, logits, True)
        return weights, ids

    return run


def _sgl_kernel(problem: RoutingProblem) -> Callable[[], tuple[Any, Any]]:
    """The op that SGLang runs for this shape; the one with groups takes logits in float32."""
    ops = importlib.import_module("sgl_kernel")
    shape, logits, (weights, ids) = problem.shape, problem.logits, problem.out
    if shape.has_bias:
        return lambda: ops.moe_fused_gate(
            logits.float(),
            problem.bias,
            shape.num_expert_group,
            shape.topk_group,
            shape.top_k,
            routed_scaling_factor=problem.options["routed_scaling_factor"],
            apply_routed_scaling_factor_on_output=True,
        )

    def run() -> tuple[Any, Any]:
        ops.topk_softmax(weights, ids, logits, renormalize=True)
        return weights, ids

    return run


def _engine(
    name: str, function_of: Callable[[RoutingProblem], Callable[[], tuple[Any, Any]]]
) -> Contender:
    """An engine as a peer, if it is installed. Whatever it raises keeps it from being timed."""
    if importlib.util.find_spec(name) is None:
        return absent(name, "peer", f"{name} is not installed")

    def prepare(problem: RoutingProblem) -> TimedCall:
        try:
            function = function_of(problem)
            function()
        except Exception as error:  # an engine of another version fails in many ways
            raise NotTimedError(f"{type(error).__name__}: {error}".partition("\n")[0]) from error
        return problem.peer(function)

    return Contender(name, "peer", _GPU_METHODS, prepare, version=engine_version(name))


def contenders(device: str) -> list[Contender]:
    """Tessera, torch, the copy; on the CPU the first two on one thread, on a GPU the engines."""
    kinds: dict[str, Kind] = {"torch": "peer", "copy": "related"}
    if device == "cpu":
        others: dict[str, Kind] = dict.fromkeys(("tessera/1", *_WITHOUT_OUT), "related")
        found = named_contenders(device, {**kinds, **others, "torch/1": "peer"})
        return [
            dataclasses.replace(one, refusal=_two_calls_refusal)
            if one.name == "torch/1 topk"
            else one
            for one in found
        ]
    return [
        *named_contenders(device, kinds),
        _engine("vllm", _vllm),
        _engine("sgl_kernel", _sgl_kernel),
    ]


def ratios(us: Mapping[str, float]) -> dict[str, float]:
    """On the CPU: what a second thread gains, and both programs on one thread.

    The last ratio compares calls without `out=`, which make their outputs.
    """
    found = {}
    if us.keys() >= {"tessera", "tessera/1"}:
        found["1 thread / all threads"] = us["tessera/1"] / us["tessera"]
    if us.keys() >= {"tessera/1", "torch/1"}:
        found["Tessera / torch, on 1 thread"] = us["tessera/1"] / us["torch/1"]
    if us.keys() >= set(_WITHOUT_OUT):
        new, two_calls = (us[name] for name in _WITHOUT_OUT)
        found["Tessera without out / torch's two calls, on 1 thread"] = new / two_calls
    return found


OP = Op(
    "select_experts",
    PRESETS,
    make_problem,
    contenders,
    results="select_experts",
    ratios=ratios,
)
