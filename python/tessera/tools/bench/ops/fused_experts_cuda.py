"""`fused_experts` on a GPU: the layers of some models, engines as peers, and what bounds them."""

from __future__ import annotations

import dataclasses
import functools
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import tessera
from tessera.tools.bench.bandwidth import read_bandwidth
from tessera.tools.bench.calls import required_torch
from tessera.tools.bench.contender import Contender, NotTimedError, TimedCall, absent
from tessera.tools.bench.op import Op
from tessera.tools.bench.ops.fused_experts import NEAR, eager, grouped_mm
from tessera.tools.bench.ops.fused_experts_engines import (
    GroupedProducts,
    deep_gemm_products,
    engine_version,
    flashinfer_layer,
    missing_engine,
    vllm_layer,
)
from tessera.tools.bench.ops.fused_experts_fp8 import BLOCK
from tessera.tools.bench.ops.fused_experts_inputs import Inputs, Shape, routes
from tessera.tools.bench.ops.fused_experts_layer import (
    NEAR_IN_FP8,
    LayerProblem,
    call_of,
    make_problem,
    num_sets,
)

# Experts, experts per token, hidden size and intermediate size, as the models' configurations or a
# rank of 8 have them: TP8 has an eighth of every expert's intermediate size, EP8 of the experts.
# The sizes of gpt-oss-120b are no multiples of 128.
MODELS = {
    "Qwen3-30B-A3B": (128, 8, 2048, 768),
    "DeepSeek-V3-TP8": (256, 8, 7168, 256),
    "DeepSeek-V3-EP8": (32, 8, 7168, 2048),
    "Mixtral-8x7B": (8, 2, 4096, 14336),
    "gpt-oss-120b": (128, 4, 2880, 2880),
}
TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024, 4096, 16384)


def model_shape(model: str, num_tokens: int) -> Shape:
    """A model's layer in bfloat16 with uniform ids."""
    return Shape(model, *MODELS[model], "bfloat16", num_tokens)


# Shapes with the same weights are neighbours, since only the last weights are kept.
TABLE = [model_shape(model, num_tokens) for model in MODELS for num_tokens in TOKENS]
ANCHORS = [
    *(model_shape("Qwen3-30B-A3B", num_tokens) for num_tokens in (1, 64, 1024, 16384)),
    *(model_shape("DeepSeek-V3-TP8", num_tokens) for num_tokens in (1, 16384)),
    model_shape("DeepSeek-V3-EP8", 1024),
    model_shape("Mixtral-8x7B", 1024),
]

METHODS = ("burst", "sustained")
_ALL_METHODS = (*METHODS, "chain")
FLOORS = ("weights", "dense")
LAYERS = ("eager", "grouped_mm", "vllm", "flashinfer")
PARTS = ("deep_gemm",)

# From here on a call is long enough to bring the GPU to its power limit.
SUSTAINED_FROM = 4096

# Up to so many tokens the kernels before and after a call matter to its time.
_CHAINED_TOKENS = 256

# DeepGEMM pads the rows of every expert to 128: below, most of its work would be padding.
_DEEP_GEMM_FROM = 1024

# The first compute capability whose tensor cores multiply float8_e4m3fn.
_FP8_SINCE = (8, 9)


def _prepare_tessera(problem: LayerProblem) -> TimedCall:
    scales = problem.scales

    def call(inputs: Inputs, out: Any) -> Callable[[], Any]:
        return lambda: tessera.fused_experts(*inputs, **scales, out=out)

    return call_of(problem, list(map(call, problem.sets, problem.outs)))


def _prepare_dense(problem: LayerProblem) -> TimedCall:
    """Two products of as many rows as there are pairs, by the weights of one expert."""
    weights = problem.weights
    products = _fp8_products if weights and multiplies_fp8() else _products

    def call(number: int, inputs: Inputs) -> Callable[[], Any]:
        expert = number % problem.shape.num_experts
        rows = inputs.x.repeat_interleave(problem.shape.top_k, 0)
        if weights:
            return products(rows, *weights.dequantized(expert))
        return products(rows, inputs.w13[expert], inputs.w2[expert])

    return call_of(problem, [call(*one) for one in enumerate(problem.sets)])


def multiplies_fp8() -> bool:
    """Whether the GPU multiplies float8_e4m3fn; others multiply weights in fp8 in 16 bits."""
    import torch

    return bool(torch.cuda.get_device_capability() >= _FP8_SINCE)


def _products(rows: Any, w13: Any, w2: Any) -> Callable[[], Any]:
    import torch

    w13, w2 = w13.to(rows.dtype).T, w2.to(rows.dtype).T
    gate_up = rows @ w13
    middle = gate_up[:, : len(w2)].contiguous()
    y = middle @ w2

    def run() -> Any:
        torch.mm(rows, w13, out=gate_up)
        return torch.mm(middle, w2, out=y)

    return run


def _fp8_products(rows: Any, w13: Any, w2: Any) -> Callable[[], Any]:
    """The same in fp8, with a scale for each array, by the faster one of two ways to add up."""
    import torch

    fp8, dtype = torch.float8_e4m3fn, rows.dtype
    one = torch.ones((), device=rows.device)

    def multiplied(values: Any, matrix: Any, scale: Any) -> Any:
        return torch._scaled_mm(values, matrix, one, scale, out_dtype=dtype, use_fast_accum=True)

    scales = [matrix.abs().max() / torch.finfo(fp8).max for matrix in (w13, w2)]
    w13, w2 = ((w / scale).to(fp8).T for w, scale in zip((w13, w2), scales, strict=True))
    rows = rows.to(fp8)
    middle = multiplied(rows, w13, scales[0])[:, : len(w2)].to(fp8).contiguous()

    def run() -> Any:
        multiplied(rows, w13, scales[0])
        return multiplied(middle, w2, scales[1])

    return run


def _layer(name: str, function_of: Callable[[LayerProblem], Callable[[Inputs], Any]]) -> Contender:
    """A peer that computes the whole layer, of one set of inputs at a time."""

    def prepare(problem: LayerProblem) -> TimedCall:
        function = function_of(problem)
        functions = [functools.partial(function, one) for one in problem.sets]
        call = call_of(problem, functions)

        def check() -> None:
            outputs = call.run()
            _require_near(problem, lambda i, tokens: outputs[i][tokens])
            problem.compare(name, function)

        return dataclasses.replace(call, check=check)

    return Contender(name, "peer", _ALL_METHODS, _once(name, prepare), version=engine_version(name))


def _deep_gemm() -> Contender:
    if why := missing_engine("deep_gemm"):
        return absent("deep_gemm", "part", why)

    def prepare(problem: LayerProblem) -> TimedCall:
        weights = problem.weights
        products: list[GroupedProducts] = [deep_gemm_products(one, weights) for one in problem.sets]

        def check() -> None:
            for each in products:
                each.run()
            _require_near(problem, lambda i, tokens: products[i].combined(tokens))

        return call_of(problem, [each.run for each in products], check)

    def refusal(shape: Shape) -> str:
        if shape.quantization not in ("none", "block"):
            return "multiplies fp8 with scales of blocks alone"
        if shape.quantization == "block" and shape.intermediate_size % BLOCK:
            return f"counts blocks over gate and up: needs an F of a multiple of {BLOCK}"
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


def _torch_grouped_mm(problem: LayerProblem) -> Callable[[Inputs], Any]:
    """The pipeline with the router's weights in the type of the layer, as Transformers has them."""
    kept: dict[int, Any] = {}

    def run(inputs: Inputs) -> Any:
        weights = kept.setdefault(id(inputs), inputs.topk_weights.to(inputs.x.dtype))
        return grouped_mm(inputs._replace(topk_weights=weights))

    return run


def _torch_eager(problem: LayerProblem) -> Callable[[Inputs], Any]:
    """The loop over the experts; what needs the ids on the host has been done before."""
    weights_of = problem.weights.dequantized if problem.weights else None
    kept: dict[int, Any] = {}

    def run(inputs: Inputs) -> Any:
        if id(inputs) not in kept:
            # Numbers on the host, so that a CUDA graph can capture the loop.
            kept[id(inputs)] = [(int(expert), *others) for expert, *others in routes(inputs)]
        return eager(inputs, weights_of, kept[id(inputs)])

    return run


def contenders(device: str) -> list[Contender]:
    """Tessera, the floors, torch's pipeline, and the engines as far as they are installed."""
    torch = required_torch("fused_experts")
    found = _ours()
    if hasattr(torch.nn.functional, "grouped_mm"):
        found.append(_layer("grouped_mm", _torch_grouped_mm))
    else:
        found.append(absent("grouped_mm", "peer", "needs torch 2.10 or newer"))
    found.append(_engine("vllm", lambda problem: vllm_layer()))
    found.append(_engine("flashinfer", lambda problem: flashinfer_layer()))
    found.append(_deep_gemm())
    return found


def contenders_in_fp8(device: str) -> list[Contender]:
    """Those that take weights in fp8, and why the others are left out."""
    required_torch("fused_experts")
    return [
        *_ours(),
        _layer("eager", _torch_eager),
        _engine("vllm", lambda problem: vllm_layer(problem.weights)),
        absent("grouped_mm", "peer", "takes no weights in fp8"),
        absent("flashinfer", "peer", "its layer in the CuTe DSL takes weights in bfloat16 alone"),
        _deep_gemm(),
    ]


def _ours() -> list[Contender]:
    return [
        Contender("tessera", "tessera", _ALL_METHODS, _prepare_tessera),
        Contender("weights", "related", (), _prepare_tessera),  # computed, see `bounds`
        Contender("dense", "related", _ALL_METHODS, _once("dense", _prepare_dense)),
    ]


def _engine(name: str, function_of: Callable[[LayerProblem], Callable[[Inputs], Any]]) -> Contender:
    why = missing_engine(name)
    return absent(name, "peer", why) if why else _layer(name, function_of)


def bounds(problem: LayerProblem) -> dict[str, float]:
    """Microseconds to read the weights of the experts that a call uses, at this GPU's bandwidth."""
    inputs = problem.sets[0]
    num_chosen = sum(one.topk_ids.unique().numel() for one in problem.sets) / len(problem.sets)
    arrays = (inputs.w13, inputs.w2, *problem.scales.values())
    num_bytes = num_chosen * sum(one[0].nbytes for one in arrays)
    return {"weights": 1e6 * num_bytes / read_bandwidth().bytes_per_second}


def facts(within: float = NEAR["bfloat16"]) -> dict[str, Any]:
    """A name of the run, the bandwidth that `weights` rests on, and how far a peer may be off."""
    found = read_bandwidth()
    return {
        "run": uuid.uuid4().hex[:8],
        "read_gb_per_s": found.bytes_per_second / 1e9,
        "read_by": found.reader,
        "peers_within": within,
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
IN_FP8 = dataclasses.replace(
    OP,
    contenders=contenders_in_fp8,
    facts=functools.partial(facts, NEAR_IN_FP8),
    errors=lambda problem: problem.errors,
)
OP = dataclasses.replace(OP, quantized=IN_FP8)
