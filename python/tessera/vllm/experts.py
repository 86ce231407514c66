"""vLLM's expert computations, served by `fused_experts`.

Each function has the parameters and meaning of vLLM's, of all its versions together. A call that
Tessera cannot serve raises TypeError, ValueError or NotImplementedError before anything is written.
The workspace of `fused_experts` comes from torch, so that vLLM's memory profiler sees it, and under
the capture of a CUDA graph from the graph's pool.
"""

from __future__ import annotations

from typing import Any

import torch

import tessera
from tessera._engine_router import engine_names, refuse
from tessera._patching import REFUSALS, LeftToOriginalError
from tessera._plain_tensor import check_float, check_inplace, check_plain, check_same_dtype
from tessera.vllm import fp8
from tessera.vllm.generations import TRITON_MODULES

KERNEL_EXPERTS = "FusedMoEKernelModularImpl._fused_experts"
APPLY = "TritonExperts.apply"
IMPL = "fused_experts_impl"

# vLLM's names of the arguments, by Tessera's.
_NAMES = {
    "x": "hidden_states",
    "w13": "w1",
    "w13_bias": "w1_bias",
    "w13_scale": "w1_scale",
    "intermediate_scale": "a2_scale",
}
# Names that vLLM takes for others.
_ALIASES = {"gelu_pytorch_tanh": "gelu_tanh"}
# What LoRA replaces in a single object, until vLLM 0.19.
_DECORATED_BY_LORA = ("activation", "moe_sum")


def check_experts(experts: Any) -> bool:
    """Refuse objects whose `apply` does what Tessera does not serve.

    Returns:
        Whether the experts are in fp8.

    Raises:
        NotImplementedError: it is of a subclass, such as those that emulate quantisation; has
            another quantisation; LoRA adapters; or a hook before the sum.
        TypeError: it lacks scales.
    """
    kind = type(experts)
    if kind.__name__ != "TritonExperts":
        raise NotImplementedError(f"{APPLY}: self: expected TritonExperts, got {kind.__name__}")
    if kind.__module__ not in TRITON_MODULES:
        raise NotImplementedError(
            f"{APPLY}: self: expected vLLM's own TritonExperts, got that of {kind.__module__}"
        )
    in_fp8 = fp8.is_fp8(APPLY, experts.quant_config)
    if getattr(experts, "_lora_context", None) is not None or any(
        name in vars(experts) for name in _DECORATED_BY_LORA
    ):
        raise NotImplementedError(f"{APPLY}: self: expected experts without LoRA, got some with it")
    refuse(APPLY, post_gemm2_hook=getattr(experts, "post_gemm2_hook", None))
    return in_fp8


def describe_kernel(
    self: object, prepare_finalize: object, fused_experts: Any, *rest: object, **options: object
) -> str:
    """Say whether Tessera serves the experts that a layer's kernel is made with."""
    name = type(fused_experts).__name__
    try:
        kind = "experts in fp8" if check_experts(fused_experts) else "experts"
    except REFUSALS as refusal:
        reason = str(refusal).removeprefix(f"{APPLY}: ").removeprefix("self: ")
        return f"vLLM's backend for experts is {name}, not served by Tessera: {reason}"
    return f"vLLM's backend for {kind} is {name}, served by Tessera, but for calls it refuses"


def _swiglu(experts: Any) -> tuple[Any, float, float]:
    """The limit, None if there is none, alpha and beta of activations that have them."""
    if (config := getattr(experts, "activation_config", None)) is not None:
        return config.clamp_limit, config.alpha, config.beta
    config = experts.quant_config
    alpha, beta = getattr(config, "gemm1_alpha", None), getattr(config, "gemm1_beta", None)
    return (
        getattr(config, "gemm1_clamp_limit", None),
        1.0 if alpha is None else alpha,
        0.0 if beta is None else beta,
    )


def _activation(experts: Any, activation: Any) -> dict[str, Any]:
    """The activation as `fused_experts` takes it; vLLM has an enumeration, or until 0.16 names."""
    name = getattr(activation, "value", activation)
    if name not in ("silu", "swigluoai_uninterleave"):
        return {"activation": name}
    limit, alpha, beta = _swiglu(experts)
    if name == "silu":
        if limit is None:
            return {"activation": name}
        alpha, beta = 1.0, 0.0  # with which the other one is this one, limited
    elif limit is None:
        raise ValueError(f"{APPLY}: clamp_limit: expected a number for {name}, got None")
    return {
        "activation": "swigluoai_uninterleave",
        "swiglu_alpha": alpha,
        "swiglu_beta": beta,
        "swiglu_limit": float(limit),
    }


def _signed(topk_ids: torch.Tensor) -> torch.Tensor:
    """The ids of experts have the same bits in both types of 32 bits."""
    return topk_ids.view(torch.int32) if topk_ids.dtype == torch.uint32 else topk_ids


@engine_names(APPLY, **_NAMES, x_scale="a1q_scale", out="output")
def triton_experts_apply(
    self: Any,
    output: torch.Tensor,
    hidden_states: torch.Tensor,
    w1: torch.Tensor,
    w2: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    activation: Any,
    global_num_experts: int,
    expert_map: torch.Tensor | None,
    a1q_scale: torch.Tensor | None,
    a2_scale: torch.Tensor | None,
    workspace13: torch.Tensor,
    workspace2: torch.Tensor,
    expert_tokens_meta: object,
    apply_router_weight_on_input: bool,
) -> None:
    """The method `TritonExperts.apply`: experts not quantised, or in fp8.

    Args:
        self: the TritonExperts, with biases, parameters of the activation, and scales of weights.
        output: [T, H] of the type of `hidden_states`, or where that is float8_e4m3fn, float16 or
            bfloat16; it may lie in `workspace13`.
        hidden_states: float16 or bfloat16 [T, H], or float8_e4m3fn.
        w1: [E, N, H] of the type of `hidden_states`, or float8_e4m3fn: gate rows, then up rows.
        w2: [E, H, F], likewise.
        topk_weights: float16, bfloat16 or float32 [T, k].
        topk_ids: int32, uint32 or int64 [T, k]; ids that no expert here has add nothing.
        activation: its name, or an enumeration's member with the name as value.
        global_num_experts: number of experts on all ranks; not needed.
        expert_map: int32, the local number of each global expert.
        a1q_scale: of `hidden_states` in float8_e4m3fn, float32 [T, H / 128] where weights have
            scales of blocks, else [T, 1] or one number; None: the one of the configuration, if any.
        a2_scale: one number to quantise the intermediate with, where the scale of `hidden_states`
            is one number, too; else None.
        workspace13: not needed, as the next two.
        workspace2: not needed.
        expert_tokens_meta: not needed.
        apply_router_weight_on_input: the weights are in `hidden_states`, where vLLM's step before
            this one has multiplied them in.
    """
    in_fp8 = check_experts(self)
    config = self.quant_config
    scales: dict[str, Any] = {}
    if in_fp8:
        blocks = config.block_shape
        scales = fp8.scales_of_weights(APPLY, w1, w2, config.w1_scale, config.w2_scale, blocks)
        a1q_scale = config.a1_scale if a1q_scale is None else a1q_scale
        scales["x_scale"] = fp8.scale_of_activations(APPLY, "a1q_scale", a1q_scale, blocks)
        scales["intermediate_scale"] = fp8.scale_of_activations(APPLY, "a2_scale", a2_scale, blocks)
    else:
        refuse(APPLY, a1q_scale=a1q_scale, a2_scale=a2_scale)
    check_plain(APPLY, "hidden_states", hidden_states)
    if not in_fp8:
        fp8.check_not_fp8(APPLY, w1, "quant_dtype", fp8.FP8, None)
    check_float(APPLY, "hidden_states", hidden_states, in_fp8=in_fp8)
    if not in_fp8:
        check_same_dtype(APPLY, "w1", w1, "hidden_states", hidden_states)
    check_plain(APPLY, "output", output)
    check_plain(APPLY, "topk_ids", topk_ids)
    options = _activation(self, activation)
    if apply_router_weight_on_input:
        topk_weights = torch.ones_like(topk_weights)
    tessera.fused_experts(
        hidden_states,
        w1,
        w2,
        topk_weights,
        _signed(topk_ids),
        expert_map=expert_map,
        w13_bias=config.w1_bias,
        w2_bias=config.w2_bias,
        out=output,
        **scales,
        **options,
    )


def kernel_experts(
    self: Any,
    in_dtype: torch.dtype,
    a1q: torch.Tensor,
    a1q_scale: torch.Tensor | None,
    w1: torch.Tensor,
    w2: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    activation: Any,
    global_num_experts: int,
    local_num_experts: int,
    expert_map: torch.Tensor | None,
    apply_router_weight_on_input: bool,
    expert_tokens_meta: object,
    output_alias: torch.Tensor | None = None,
) -> torch.Tensor:
    """The method around `TritonExperts.apply` that allocates its workspaces and its output.

    vLLM copies that output to the one of the layer, `output_alias`, unless it is the same tensor.
    Here it is, where nothing else is done to it; all other calls are left to vLLM's method.

    Args:
        self: vLLM's kernel: its experts, and what happens before and after them.
        in_dtype: of the output.
        a1q: as `hidden_states` of `TritonExperts.apply`.
        a1q_scale: as there, and the arguments of the same names likewise.
        w1: as there.
        w2: as there.
        topk_weights: as there.
        topk_ids: as there.
        activation: as there.
        global_num_experts: as there.
        local_num_experts: E; not needed.
        expert_map: as there.
        apply_router_weight_on_input: as there.
        expert_tokens_meta: as there.
        output_alias: [T, H], the output of the layer.

    Returns:
        `output_alias`.
    """
    finalizes = type(self.prepare_finalize).__name__ != "MoEPrepareAndFinalizeNoDPEPModular"
    if finalizes or output_alias is None or output_alias.dtype != in_dtype:
        raise LeftToOriginalError
    try:
        triton_experts_apply(
            self.fused_experts,
            output_alias,
            a1q,
            w1,
            w2,
            topk_weights,
            topk_ids,
            activation,
            global_num_experts,
            expert_map,
            a1q_scale,
            getattr(self.fused_experts, "a2_scale", None),
            output_alias,
            output_alias,
            expert_tokens_meta,
            apply_router_weight_on_input,
        )
    except REFUSALS:
        # vLLM's method calls `apply`, which says why.
        raise LeftToOriginalError from None
    return output_alias


@engine_names(IMPL, **_NAMES, x_scale="a1_scale")
def fused_experts_impl(
    hidden_states: torch.Tensor,
    w1: torch.Tensor,
    w2: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    inplace: bool = False,
    activation: str = "silu",
    is_act_and_mul: bool = True,
    apply_router_weight_on_input: bool = False,
    global_num_experts: int = -1,
    expert_map: torch.Tensor | None = None,
    w1_bias: torch.Tensor | None = None,
    w2_bias: torch.Tensor | None = None,
    use_fp8_w8a8: bool = False,
    per_channel_quant: bool = False,
    w1_scale: torch.Tensor | None = None,
    w2_scale: torch.Tensor | None = None,
    a1_scale: torch.Tensor | None = None,
    a2_scale: torch.Tensor | None = None,
    block_shape: object = None,
    ignores_inplace: bool = False,
    **quantisation: object,
) -> torch.Tensor:
    """The Python function `fused_experts_impl`, which is behind vLLM's op `fused_experts`.

    Args:
        hidden_states: float16 or bfloat16 [T, H]; on the host float32, too.
        w1: [E, N, H] of the type of `hidden_states`, or float8_e4m3fn: gate rows, then up rows.
        w2: [E, H, F], likewise.
        topk_weights: float16, bfloat16 or float32 [T, k].
        topk_ids: int32, uint32 or int64 [T, k]; ids that no expert here has add nothing.
        inplace: write to `hidden_states`, and return it; not with `ignores_inplace`.
        activation: its name.
        is_act_and_mul: the activation has a gate; in vLLM 0.10 it can be False.
        apply_router_weight_on_input: scale the first product; needs k = 1, and no `w1_bias`.
        global_num_experts: number of experts on all ranks; not needed.
        expert_map: int32, the local number of each global expert.
        w1_bias: [E, N].
        w2_bias: [E, H].
        use_fp8_w8a8: the weights are float8_e4m3fn; activations are quantised in the call.
        per_channel_quant: allowed in float8_e4m3fn without blocks, where it changes nothing: the
            shapes of scales tell whose they are, and a scale that is computed is a token's.
        w1_scale: float32, of `w1` in float8_e4m3fn: per expert, per row, or of blocks; else None.
        w2_scale: likewise, of `w2`.
        a1_scale: one number to quantise `hidden_states` with, together with `a2_scale`; else None.
        a2_scale: one number to quantise the intermediate with; else None.
        block_shape: [128, 128] for scales of blocks; else None.
        ignores_inplace: of Tessera; the installed vLLM writes to a new tensor.
        quantisation: other types, scales and zero points; none is served.

    Returns:
        [T, H], of the type of `hidden_states`.
    """
    refuse(IMPL, **quantisation)
    if apply_router_weight_on_input:
        # vLLM scales the bias, too.
        refuse(IMPL, w1_bias=w1_bias)
    check_plain(IMPL, "hidden_states", hidden_states)
    check_plain(IMPL, "topk_ids", topk_ids)
    check_float(IMPL, "hidden_states", hidden_states)  # for fp8 no argument has the scales
    scales: dict[str, Any] = {}
    without_blocks = {
        "per_channel_quant": per_channel_quant,
        "a1_scale": a1_scale,
        "a2_scale": a2_scale,
    }
    if use_fp8_w8a8:
        fp8.check_block_shape(IMPL, block_shape, **without_blocks)
        fp8.check_device(IMPL, "w1_scale", w1_scale)
        scales = fp8.scales_of_weights(IMPL, w1, w2, w1_scale, w2_scale, block_shape)
        scales["x_scale"] = fp8.scale_of_activations(IMPL, "a1_scale", a1_scale, block_shape)
        scales["intermediate_scale"] = fp8.scale_of_activations(
            IMPL, "a2_scale", a2_scale, block_shape
        )
    else:
        fp8.check_not_fp8(IMPL, w1, "use_fp8_w8a8", True, use_fp8_w8a8)
        check_same_dtype(IMPL, "w1", w1, "hidden_states", hidden_states)
        refuse(
            IMPL, w1_scale=w1_scale, w2_scale=w2_scale, block_shape=block_shape, **without_blocks
        )
    inplace = inplace and not ignores_inplace
    if inplace:
        check_inplace(IMPL, hidden_states)
    activation = _ALIASES.get(activation, activation)
    result: torch.Tensor = tessera.fused_experts(
        hidden_states,
        w1,
        w2,
        topk_weights,
        _signed(topk_ids),
        activation=activation if is_act_and_mul else f"{activation}_no_mul",
        expert_map=expert_map,
        w13_bias=w1_bias,
        w2_bias=w2_bias,
        apply_router_weight_on_input=apply_router_weight_on_input,
        **scales,
    )
    return hidden_states.copy_(result) if inplace else result
