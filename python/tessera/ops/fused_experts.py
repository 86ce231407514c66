"""`fused_experts` for NumPy arrays, torch tensors and whatever else speaks DLPack."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from tessera._call import call
from tessera._frameworks import FRAMEWORKS
from tessera._library import load
from tessera._op import Op
from tessera._torch_hook import call_traced, is_traced, register
from tessera._torch_registry import Shape, TorchOp
from tessera.contract import Violation, judged, violations

Array = TypeVar("Array")

_OP = Op("fused_experts")


def fused_experts(
    x: Array,
    w13: Array,
    w2: Array,
    topk_weights: Any,
    topk_ids: Any,
    *,
    activation: str = "silu",
    expert_map: Any = None,
    w13_bias: Any = None,
    w2_bias: Any = None,
    w13_scale: Any = None,
    w2_scale: Any = None,
    x_scale: Any = None,
    intermediate_scale: Any = None,
    use_ue8m0: bool = False,
    swiglu_alpha: float | None = None,
    swiglu_beta: float | None = None,
    swiglu_limit: float | None = None,
    apply_router_weight_on_input: bool = False,
    batch_invariant: bool = False,
    num_threads: int | None = None,
    out: Array | None = None,
) -> Array:
    """Compute the experts of a Mixture-of-Experts layer for the router's choice.

    output[t] = sum over slots s of topk_weights[t, s] * (w2[e] @ act(w13[e] @ x[t] + w13_bias[e]) +
    w2_bias[e]), where e is the expert of topk_ids[t, s]; products and sums in float32, act(...)
    and the output rounded to the data type of `x`, on CUDA devices each slot's term, too. Ids
    outside [0, E), or that `expert_map` maps outside [0, E), add nothing.
    `include/tessera/fused_experts.hpp` has the contract, with a bound on the error of each element.
    The bits of a token depend neither on the number of threads nor on the other tokens.

    Weights may be float8_e4m3fn with scales: each token of `x`, and then its activated elements in
    float32, are quantised inside the call as `quantize_fp8` does it, in groups of 128 where the
    weights have scales of blocks, else each as one row. Arrays of
    frameworks without that type hold its bits as uint8; NumPy arrays of ml_dtypes' are taken, too.

    All arrays are on one device, the host or a CUDA device, where the op runs. Autograd does not
    follow the call.

    Args:
        x: float16, bfloat16 or, on the host, float32 [T, H]: the hidden states; or float8_e4m3fn,
            with `w13` and `x_scale`. Rows may lie apart here and in all arrays but `expert_map` and
            scales, with a contiguous last axis. NumPy has no bfloat16 that it exports; torch and
            JAX have.
        w13: [E, N, H] of the data type of `x`, or float8_e4m3fn: gate rows, then up rows, N = 2 F;
            for "swigluoai" they alternate; for an activation without a gate ("..._no_mul") N = F.
            May be a transposed view, contiguous along N.
        w2: [E, H, F] of the type of `w13`. May be a transposed view, contiguous along H.
        topk_weights: float16, bfloat16 or float32 [T, k], k at least 1: the router's weights.
        topk_ids: int32 or int64 [T, k]: the router's experts.
        activation: "silu", "gelu", "gelu_tanh", "swigluoai", "swigluoai_uninterleave",
            "silu_no_mul", "gelu_no_mul", "gelu_tanh_no_mul" or "relu2_no_mul".
        expert_map: int32 [G]: ids are global experts, and this gives each one's row in `w13`; any
            value outside [0, E) marks an expert that lives elsewhere.
        w13_bias: [E, N] of the type of the output.
        w2_bias: [E, H] of the type of the output.
        w13_scale: float32, contiguous, required with float8_e4m3fn weights: [E], one for each
            expert; [E, N, 1], for each row; or [E, R, ceil(H / 128)], for each block of 128 x 128,
            where R is ceil(N / 128), but 2 ceil(F / 128) where gate rows and then up rows follow
            each other: each of these halves has blocks of its own, the last one perhaps partial.
        w2_scale: likewise and of the same kind: [E], [E, H, 1] or [E, ceil(H / 128), ceil(F /
            128)].
        x_scale: float32, contiguous. Of an `x` in float8_e4m3fn, required: [T, ceil(H / 128)] with
            scales of blocks, else [T, 1] or [1]. Of another `x`: [1], the scale to quantise it
            with, given together with `intermediate_scale`; not with scales of blocks.
        intermediate_scale: float32 [1], with an `x_scale` of [1]: the scale of the activated
            elements; None: computed for each token and slot.
        use_ue8m0: round the scales that the call computes up to powers of two; false where it
            computes none.
        swiglu_alpha: of the two "swigluoai" activations; None stands for 1.702.
        swiglu_beta: likewise; None stands for 1.
        swiglu_limit: likewise; None stands for 7, infinity for no limit.
        apply_router_weight_on_input: scale x, before the first product; needs k = 1.
        batch_invariant: a token's bits may not depend on the other tokens. On the host and on CUDA
            devices they never do.
        num_threads: host threads to use at most, capped by TESSERA_NUM_THREADS; None and 0 stand
            for that, or, where it is unset, for the cores of this process. Never changes the
            result.
        out: [T, H] of the data type of `x`, to write to; with `x` in float8_e4m3fn, float16,
            bfloat16 or float32. It may not overlap an input.

    Returns:
        `out` if given, else a new array [T, H] in the framework of `x`, with its data type; with
        `x` in float8_e4m3fn, bfloat16, or float32 in frameworks that lack it.

    Raises:
        TypeError: an argument has the wrong type. Nothing was written; so for all errors.
        ValueError: a value, shape, device or layout lies outside the op's domain, or autograd
            follows an array.
        NotImplementedError: nothing in this build can run the call.
        RuntimeError: the machine refused; `torch.OutOfMemoryError`, if torch has no memory left.
        MemoryError: NumPy's own, where it has no memory for the output.
    """
    arguments = {
        "w13": w13,
        "w2": w2,
        "topk_weights": topk_weights,
        "topk_ids": topk_ids,
        "activation": activation,
        "expert_map": expert_map,
        "w13_bias": w13_bias,
        "w2_bias": w2_bias,
        "w13_scale": w13_scale,
        "w2_scale": w2_scale,
        "x_scale": x_scale,
        "intermediate_scale": intermediate_scale,
        "use_ue8m0": use_ue8m0,
        "swiglu_alpha": swiglu_alpha,
        "swiglu_beta": swiglu_beta,
        "swiglu_limit": swiglu_limit,
        "apply_router_weight_on_input": apply_router_weight_on_input,
        "batch_invariant": batch_invariant,
        "num_threads": num_threads,
    }
    if is_traced(FRAMEWORKS[type(x)]):
        result: Array = call_traced(_OP, x, out, **arguments)
    else:
        result = _eagerly(x, **arguments, out=out)
    return result


def _eagerly(
    x: Any,
    w13: Any,
    w2: Any,
    topk_weights: Any,
    topk_ids: Any,
    *,
    activation: str,
    expert_map: Any,
    w13_bias: Any,
    w2_bias: Any,
    w13_scale: Any,
    w2_scale: Any,
    x_scale: Any,
    intermediate_scale: Any,
    use_ue8m0: bool,
    swiglu_alpha: float | None,
    swiglu_beta: float | None,
    swiglu_limit: float | None,
    apply_router_weight_on_input: bool,
    batch_invariant: bool,
    num_threads: int | None,
    out: Any,
) -> Any:
    arrays = (w13, w2, topk_weights, topk_ids, expert_map, w13_bias, w2_bias)
    others = (*arrays, w13_scale, w2_scale, x_scale, intermediate_scale)
    swiglu = (swiglu_alpha, swiglu_beta, swiglu_limit)
    numbers = _numbers(activation, apply_router_weight_on_input, batch_invariant, swiglu, use_ue8m0)
    threads = 0 if num_threads is None else num_threads
    return call(_OP, FRAMEWORKS[type(x)], x, others, numbers, out, threads)


def _numbers(
    activation: str,
    apply_router_weight_on_input: bool,
    batch_invariant: bool,
    swiglu: tuple[float | None, ...],
    use_ue8m0: bool,
) -> tuple[Any, ...]:
    """The numbers in the order of the table. A flag may be NumPy's, which the FFI does not take."""
    flags = (bool(apply_router_weight_on_input), bool(batch_invariant))
    return (activation, *flags, *swiglu, bool(use_ue8m0))


def _shapes(arguments: Mapping[str, Any]) -> tuple[Shape, ...]:
    return (tuple(arguments["x"].shape),)


register(TorchOp(_OP, fused_experts, _eagerly, _shapes))


def fused_experts_contract_violations(
    x: Any,
    w13: Any,
    w2: Any,
    topk_weights: Any,
    topk_ids: Any,
    output: Any,
    *,
    activation: str = "silu",
    expert_map: Any = None,
    w13_bias: Any = None,
    w2_bias: Any = None,
    w13_scale: Any = None,
    w2_scale: Any = None,
    x_scale: Any = None,
    intermediate_scale: Any = None,
    use_ue8m0: bool = False,
    swiglu_alpha: float | None = None,
    swiglu_beta: float | None = None,
    swiglu_limit: float | None = None,
    apply_router_weight_on_input: bool = False,
    batch_invariant: bool = False,
    num_threads: int | None = None,
    out: Any = None,
) -> list[Violation]:
    """Judge an output of `fused_experts`, whoever computed it, against the op's contract.

    Takes the arguments of the call and its result, and ignores `batch_invariant`, `num_threads` and
    `out`, on which the rules do not depend. Waits for arrays on a device, and copies them to the
    host. With weights in fp8 an output on a CUDA device has a wider bound than one on the host.
    Small calls are checked whole, of large ones a sample of tokens and columns.

    Returns:
        At most one violation for each of the op's rules; none if the contract holds.
    """
    arrays = (x, w13, w2, topk_weights, topk_ids, expert_map, w13_bias, w2_bias)
    inputs = (*arrays, w13_scale, w2_scale, x_scale, intermediate_scale)
    swiglu = (swiglu_alpha, swiglu_beta, swiglu_limit)
    numbers = _numbers(activation, apply_router_weight_on_input, False, swiglu, use_ue8m0)
    return violations(_OP, inputs, output, numbers)


def fused_experts_bound_used(
    x: Any,
    w13: Any,
    w2: Any,
    topk_weights: Any,
    topk_ids: Any,
    output: Any,
    *,
    activation: str = "silu",
    expert_map: Any = None,
    w13_bias: Any = None,
    w2_bias: Any = None,
    w13_scale: Any = None,
    w2_scale: Any = None,
    x_scale: Any = None,
    intermediate_scale: Any = None,
    use_ue8m0: bool = False,
    swiglu_alpha: float | None = None,
    swiglu_beta: float | None = None,
    swiglu_limit: float | None = None,
    apply_router_weight_on_input: bool = False,
    batch_invariant: bool = False,
    num_threads: int | None = None,
    out: Any = None,
) -> float:
    """How much of its error bound an output of `fused_experts` uses, whoever computed it.

    Takes the arguments of `fused_experts_contract_violations`, and checks the same elements.

    Returns:
        The largest share of an element: 1 or less if the output lies within the bound.

    Raises:
        ValueError: the op takes no such inputs, or has no such output.
    """
    arrays = (x, w13, w2, topk_weights, topk_ids, expert_map, w13_bias, w2_bias)
    inputs = (*arrays, w13_scale, w2_scale, x_scale, intermediate_scale)
    swiglu = (swiglu_alpha, swiglu_beta, swiglu_limit)
    numbers = _numbers(activation, apply_router_weight_on_input, False, swiglu, use_ue8m0)
    for violation in violations(_OP, inputs, output, numbers):
        if violation.rule in ("valid_inputs", "output_sizes"):
            raise ValueError(f"{_OP.name}: {violation.message}")
    judge = load().function("fused_experts_bound_used")()
    return float(judged(_OP, judge, inputs, output, numbers))
