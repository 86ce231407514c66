"""`fused_moe`: the router's choice and the experts, `select_experts` and then `fused_experts`."""

from __future__ import annotations

from typing import Any, TypeVar

from tessera.ops.fused_experts import fused_experts
from tessera.ops.select_experts import select_experts

Array = TypeVar("Array")


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
    num_threads: int | None = None,
    out: Array | None = None,
) -> Array:
    """Compute a Mixture-of-Experts layer from the router's logits: choose experts, and run them.

    The result is that of two calls, with all its bits: `select_experts` of the logits, then
    `fused_experts` with the weights and ids that it returns. On a GPU the kernels of both are
    launched one after the other on one stream, without waiting for them; from compute capability
    9.0 on, programmatic dependent launch lets the first kernel of `fused_experts` start while that
    of `select_experts` still runs. A graph may capture the call, and `torch.compile` sees both ops.

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
        num_threads: host threads that each of both ops uses at most.
        out: [T, H] of the data type of `x`, to write to.

    Returns:
        `out` if given, else a new array [T, H] in the framework of `x`.

    Raises:
        ValueError: `router_logits` has another number of experts than `w13` or `expert_map`.
            Nothing was written to `out`; so for all errors.
        Exception: what the two ops raise, with the name of the op that refuses an argument.
    """
    _refuse_other_experts(router_logits, w13, expert_map)
    topk_weights, topk_ids = select_experts(
        router_logits,
        top_k=top_k,
        scoring=scoring,
        renormalize=renormalize,
        correction_bias=correction_bias,
        num_expert_group=num_expert_group,
        topk_group=topk_group,
        routed_scaling_factor=routed_scaling_factor,
        num_valid_tokens=num_valid_tokens,
        num_threads=num_threads,
    )
    return fused_experts(
        x,
        w13,
        w2,
        topk_weights,
        topk_ids,
        activation=activation,
        expert_map=expert_map,
        w13_bias=w13_bias,
        w2_bias=w2_bias,
        swiglu_alpha=swiglu_alpha,
        swiglu_beta=swiglu_beta,
        swiglu_limit=swiglu_limit,
        apply_router_weight_on_input=apply_router_weight_on_input,
        batch_invariant=batch_invariant,
        num_threads=num_threads,
        out=out,
    )


def _refuse_other_experts(router_logits: Any, w13: Any, expert_map: Any) -> None:
    """Neither op sees both sizes. Arrays with another number of axes are left to the ops."""
    found: Any = getattr(router_logits, "shape", ())
    name, array = ("w13", w13) if expert_map is None else ("expert_map", expert_map)
    expected: Any = getattr(array, "shape", ())
    if len(found) == 2 and len(expected) > 0 and found[1] != expected[0]:
        raise ValueError(
            f"fused_moe: router_logits.shape[1]: expected {expected[0]}, as {name}.shape[0], "
            f"got {found[1]}"
        )
