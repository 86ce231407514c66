"""`fused_moe`: the router's choice and the experts, `select_experts` and `fused_experts` in one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from tessera._call import call
from tessera._frameworks import FRAMEWORKS
from tessera._op import Op
from tessera._torch_hook import call_traced, is_traced, register
from tessera._torch_registry import Shape, TorchOp
from tessera.contract import Violation, violations
from tessera.ops.select_experts import numbers_of_groups

Array = TypeVar("Array")

_OP = Op("fused_moe")


def fused_moe(
    x: Array,
    w13: Array,
    w2: Array,
    router_logits: Any,
    *,
    top_k: int,
    scoring: str = "softmax",
    renormalize: bool = False,
    correction_bias: Any = None,
    num_expert_group: int | None = None,
    topk_group: int | None = None,
    routed_scaling_factor: float = 1.0,
    num_valid_tokens: Any = None,
    activation: str = "silu",
    expert_map: Any = None,
    w13_bias: Any = None,
    w2_bias: Any = None,
    swiglu_alpha: float | None = None,
    swiglu_beta: float | None = None,
    swiglu_limit: float | None = None,
    apply_router_weight_on_input: bool = False,
    batch_invariant: bool = False,
    topk_weights: Any = None,
    topk_ids: Any = None,
    num_threads: int | None = None,
    out: Array | None = None,
) -> Array:
    """Compute a Mixture-of-Experts layer from the router's logits: choose experts, and run them.

    The result is that of two calls, with all its bits: `select_experts` of the logits, then
    `fused_experts` with the weights and ids that it returns. On a GPU the kernels of both are
    launched one after the other on one stream, without waiting for them; from compute capability
    9.0 on, programmatic dependent launch lets the first kernel of `fused_experts` start while that
    of `select_experts` still runs. A graph may capture the call, and `torch.compile` sees one op.

    Args:
        x: the hidden states [T, H]; it and the arguments without a description here are those of
            `fused_experts`.
        w13: [E, N, H].
        w2: [E, H, F].
        router_logits: float16, bfloat16 or float32 [T, E]; with `expert_map` [T, G], of all global
            experts. It and all arguments up to `num_valid_tokens` are those of `select_experts`.
        top_k: experts per token.
        scoring: "softmax", "sigmoid" or "sqrt_softplus".
        renormalize: divide the weights of a token by their sum.
        correction_bias: float32, one per expert, for the choice alone.
        num_expert_group: groups of experts; None stands for 1.
        topk_group: groups of a token that stay; None stands for all.
        routed_scaling_factor: what the weights are multiplied with.
        num_valid_tokens: int32 [1]: the rows of later tokens in the output are 0.
        activation: between both products.
        expert_map: int32 [G].
        w13_bias: [E, N].
        w2_bias: [E, H].
        swiglu_alpha: of the two "swigluoai" activations, as the next two.
        swiglu_beta: likewise.
        swiglu_limit: likewise.
        apply_router_weight_on_input: scale x, before the first product; needs top_k = 1.
        batch_invariant: a token's bits may not depend on the other tokens; they never do.
        topk_weights: float32 [T, k] to write the weights of `select_experts` to.
        topk_ids: int32 [T, k] to write its ids to.
        num_threads: host threads that each of both ops uses at most.
        out: [T, H] of the data type of `x`, to write to. It may not overlap an input.

    Returns:
        `out` if given, else a new array [T, H] in the framework of `x`.

    Raises:
        TypeError: an argument has the wrong type, such as weights in float8_e4m3fn, which
            `fused_experts` takes. Nothing was written; so for all errors.
        ValueError: a value, shape, device or layout lies outside the op's domain, such as logits of
            another number of experts than `w13` or `expert_map`, or autograd follows an array.
        NotImplementedError: nothing in this build can run the call.
        RuntimeError: the machine refused; `torch.OutOfMemoryError`, if torch has no memory left.
        MemoryError: NumPy's own, where it has no memory for the output.
    """
    arguments = dict(locals())
    if is_traced(FRAMEWORKS[type(x)]):
        del arguments["x"], arguments["out"]
        result: Array = call_traced(_OP, x, out, **arguments)
    else:
        result = _eagerly(**arguments)
    return result


def _eagerly(x: Any, *, num_threads: int | None, out: Any, **arguments: Any) -> Any:
    _, *others = _inputs(x, arguments)
    threads = 0 if num_threads is None else num_threads
    try:
        return call(
            _OP,
            FRAMEWORKS[type(x)],
            x,
            tuple(others),
            _numbers(arguments),
            out,
            threads,
            _choice(arguments),
        )
    except TypeError as error:
        if not any(map(_may_be_fp8, (x, arguments["w13"], arguments["w2"]))):
            raise
        remedy = "call select_experts, then fused_experts with the scales"
        raise TypeError(f"{error} (fused_moe takes no weights in fp8: {remedy})") from None


def _may_be_fp8(array: object) -> bool:
    """Whether the elements are float8_e4m3fn, or uint8, which stands for it in other ops."""
    name = str(getattr(array, "dtype", "")).removeprefix("torch.")
    return name in ("float8_e4m3fn", "uint8")


def _inputs(x: Any, arguments: Mapping[str, Any]) -> tuple[Any, ...]:
    return (x, *(arguments[row.name] for row in _OP.inputs[1:]))


def _numbers(arguments: Mapping[str, Any]) -> tuple[Any, ...]:
    """The numbers in the order of the table. A flag may be NumPy's, which the FFI does not take."""
    return (
        arguments["top_k"],
        arguments["scoring"],
        bool(arguments["renormalize"]),
        *numbers_of_groups(arguments["num_expert_group"], arguments["topk_group"]),
        arguments["routed_scaling_factor"],
        arguments["activation"],
        bool(arguments["apply_router_weight_on_input"]),
        bool(arguments["batch_invariant"]),
        arguments["swiglu_alpha"],
        arguments["swiglu_beta"],
        arguments["swiglu_limit"],
    )


def _choice(arguments: Mapping[str, Any]) -> tuple[Any, ...]:
    """The optional outputs; none of them where neither is given."""
    weights, ids = arguments["topk_weights"], arguments["topk_ids"]
    return () if weights is None and ids is None else (weights, ids)


def _shapes(arguments: Mapping[str, Any]) -> tuple[Shape, ...]:
    return (tuple(arguments["x"].shape),)


register(TorchOp(_OP, fused_moe, _eagerly, _shapes))


def fused_moe_contract_violations(
    x: Any,
    w13: Any,
    w2: Any,
    router_logits: Any,
    output: Any,
    *,
    top_k: int,
    scoring: str = "softmax",
    renormalize: bool = False,
    correction_bias: Any = None,
    num_expert_group: int | None = None,
    topk_group: int | None = None,
    routed_scaling_factor: float = 1.0,
    num_valid_tokens: Any = None,
    activation: str = "silu",
    expert_map: Any = None,
    w13_bias: Any = None,
    w2_bias: Any = None,
    swiglu_alpha: float | None = None,
    swiglu_beta: float | None = None,
    swiglu_limit: float | None = None,
    apply_router_weight_on_input: bool = False,
    batch_invariant: bool = False,
    topk_weights: Any = None,
    topk_ids: Any = None,
    num_threads: int | None = None,
    out: Any = None,
) -> list[Violation]:
    """Judge an output of `fused_moe`, whoever computed it, against the op's contract.

    Takes the arguments of the call and its result, and ignores `batch_invariant`, `num_threads` and
    `out`, on which the rules do not depend. The output is judged for `topk_weights` and `topk_ids`
    if the call wrote them, else for those that `select_experts` has. Waits for arrays on a device,
    and copies them to the host. Small calls are checked whole, of large ones a sample of tokens and
    columns.

    Returns:
        At most one violation for each of the op's rules; none if the contract holds.
    """
    arguments = dict(locals())
    inputs = _inputs(x, arguments)
    return violations(_OP, inputs, output, _numbers(arguments), _choice(arguments))
