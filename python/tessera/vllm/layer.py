"""vLLM's functions of `fused_moe.py` of mid-2025, served by Tessera, on the CPU as on a GPU.

Each function has the name, the parameters and the behaviour of vLLM 0.9.2's. It takes weights in
fp8 with scales per expert, per row, or per block of 128 x 128. It raises NotImplementedError if the
flag of another quantisation is set, or if a zero point is given.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tessera._engine_router import check_integer, engine_names, refuse
from tessera.vllm import experts, fp8, router

Routing = Callable[..., tuple[torch.Tensor, torch.Tensor]]


def fused_topk(
    hidden_states: torch.Tensor,
    gating_output: torch.Tensor,
    topk: int,
    renormalize: bool,
    indices_type: torch.dtype | None = None,
) -> tuple[torch.Tensor, ...]:
    """Choose by softmax: weights float32 [T, k], ids [T, k], and the indices vLLM's op has."""
    return router.fused_topk(hidden_states, gating_output, topk, renormalize, indices_type)


def grouped_topk(
    hidden_states: torch.Tensor,
    gating_output: torch.Tensor,
    topk: int,
    renormalize: bool,
    num_expert_group: int = 0,
    topk_group: int = 0,
    scoring_func: str = "softmax",
    e_score_correction_bias: torch.Tensor | None = None,
) -> tuple[torch.Tensor, ...]:
    """Choose among the experts of the best groups: weights float32 [T, k], ids int32 [T, k]."""
    return router.grouped_topk(
        hidden_states,
        gating_output,
        topk,
        renormalize,
        num_expert_group,
        topk_group,
        scoring_func,
        e_score_correction_bias=e_score_correction_bias,
    )


@engine_names("fused_experts")
def fused_experts(
    hidden_states: torch.Tensor,
    w1: torch.Tensor,
    w2: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    inplace: bool = False,
    activation: str = "silu",
    apply_router_weight_on_input: bool = False,
    use_fp8_w8a8: bool = False,
    use_int8_w8a8: bool = False,
    use_int8_w8a16: bool = False,
    use_int4_w4a16: bool = False,
    per_channel_quant: bool = False,
    global_num_experts: int = -1,
    expert_map: torch.Tensor | None = None,
    w1_scale: torch.Tensor | None = None,
    w2_scale: torch.Tensor | None = None,
    w1_zp: torch.Tensor | None = None,
    w2_zp: torch.Tensor | None = None,
    a1_scale: torch.Tensor | None = None,
    a2_scale: torch.Tensor | None = None,
    block_shape: list[int] | None = None,
    allow_deep_gemm: bool = False,
    allow_cutlass_block_scaled_grouped_gemm: bool = False,
) -> torch.Tensor:
    """Run the chosen experts, as `tessera.fused_experts`.

    Args:
        hidden_states: float16, bfloat16 or, on the CPU, float32 [T, H].
        w1: [E, 2 F, H] of the type of `hidden_states`, or float8_e4m3fn: gate rows, then up rows.
            Rows may lie apart.
        w2: [E, H, F], likewise.
        topk_weights: float16, bfloat16 or float32 [T, k].
        topk_ids: int32, uint32 or int64 [T, k].
        inplace: write to `hidden_states`, and return it.
        activation: "silu", "gelu", or another one that `tessera.fused_experts` has.
        apply_router_weight_on_input: scale the first product; needs k = 1.
        use_fp8_w8a8: the weights are float8_e4m3fn, and the call quantises activations.
        use_int8_w8a8: not served; False, as the next two.
        use_int8_w8a16: likewise.
        use_int4_w4a16: likewise.
        per_channel_quant: allowed with `use_fp8_w8a8` without blocks, where it changes nothing:
            each token has a scale of its own.
        global_num_experts: number of experts on all ranks; not needed.
        expert_map: int32, the local number of each global expert.
        w1_scale: of `w1` in float8_e4m3fn, float32: [E] per expert, [E, 2 F, 1] per row, or of
            blocks [E, 2 F / 128, H / 128]; else None.
        w2_scale: likewise, of `w2`: [E], [E, H, 1] or [E, H / 128, F / 128].
        w1_zp: not served; None, as the next one.
        w2_zp: likewise.
        a1_scale: one number to quantise `hidden_states` with, together with `a2_scale`; else None.
        a2_scale: one number to quantise the activated elements with; else None.
        block_shape: [128, 128] for scales of blocks; else None.
        allow_deep_gemm: not needed, as the last one: Tessera's own kernels compute fp8.
        allow_cutlass_block_scaled_grouped_gemm: likewise.

    Returns:
        [T, H], of the type of `hidden_states`.
    """
    return experts.fused_experts_impl(
        hidden_states,
        w1,
        w2,
        topk_weights,
        topk_ids,
        inplace=inplace,
        activation=activation,
        apply_router_weight_on_input=apply_router_weight_on_input,
        use_fp8_w8a8=use_fp8_w8a8,
        use_int8_w8a8=use_int8_w8a8,
        use_int8_w8a16=use_int8_w8a16,
        use_int4_w4a16=use_int4_w4a16,
        per_channel_quant=per_channel_quant,
        expert_map=expert_map,
        w1_scale=w1_scale,
        w2_scale=w2_scale,
        w1_zp=w1_zp,
        w2_zp=w2_zp,
        a1_scale=a1_scale,
        a2_scale=a2_scale,
        block_shape=block_shape,
    )


def inplace_fused_experts(
    hidden_states: torch.Tensor,
    w1: torch.Tensor,
    w2: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    *options: Any,
    **named: Any,
) -> None:
    """The same, writing to `hidden_states`; without an argument `inplace`."""
    fused_experts(hidden_states, w1, w2, topk_weights, topk_ids, True, *options, **named)


def outplace_fused_experts(
    hidden_states: torch.Tensor,
    w1: torch.Tensor,
    w2: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    *options: Any,
    **named: Any,
) -> torch.Tensor:
    """The same, writing to a new tensor; without an argument `inplace`."""
    return fused_experts(hidden_states, w1, w2, topk_weights, topk_ids, False, *options, **named)


def fused_moe(
    hidden_states: torch.Tensor,
    w1: torch.Tensor,
    w2: torch.Tensor,
    gating_output: torch.Tensor,
    topk: int,
    renormalize: bool,
    inplace: bool = False,
    activation: str = "silu",
    use_grouped_topk: bool = False,
    num_expert_group: int | None = None,
    topk_group: int | None = None,
    custom_routing_function: Routing | None = None,
    use_fp8_w8a8: bool = False,
    use_int8_w8a8: bool = False,
    use_int8_w8a16: bool = False,
    use_int4_w4a16: bool = False,
    per_channel_quant: bool = False,
    global_num_experts: int = -1,
    expert_map: torch.Tensor | None = None,
    w1_scale: torch.Tensor | None = None,
    w2_scale: torch.Tensor | None = None,
    w1_zp: torch.Tensor | None = None,
    w2_zp: torch.Tensor | None = None,
    a1_scale: torch.Tensor | None = None,
    a2_scale: torch.Tensor | None = None,
    block_shape: list[int] | None = None,
) -> torch.Tensor:
    """Choose experts, and run them.

    Args:
        hidden_states: float16, bfloat16 or, on the CPU, float32 [T, H].
        w1: [E, 2 F, H] of the type of `hidden_states`, or float8_e4m3fn.
        w2: [E, H, F], likewise.
        gating_output: float16, bfloat16 or float32 [T, E], with a map [T, G].
        topk: experts per token.
        renormalize: divide the weights of a token by their sum.
        inplace: write to `hidden_states`, and return it.
        activation: as of `fused_experts`.
        use_grouped_topk: choose by `grouped_topk` with the next two rather than by `fused_topk`.
        num_expert_group: groups of neighbouring experts.
        topk_group: groups of a token that stay.
        custom_routing_function: chooses, given the hidden states, the logits, `topk` and
            `renormalize`; it returns weights and ids.
        use_fp8_w8a8: the weights are float8_e4m3fn, and the call quantises activations.
        use_int8_w8a8: not served; False, as the next two.
        use_int8_w8a16: likewise.
        use_int4_w4a16: likewise.
        per_channel_quant: allowed with `use_fp8_w8a8` without blocks, where it changes nothing:
            each token has a scale of its own.
        global_num_experts: number of experts on all ranks; not needed.
        expert_map: int32 [G], the local number of each global expert.
        w1_scale: of `w1` in float8_e4m3fn, float32: [E] per expert, [E, 2 F, 1] per row, or of
            blocks [E, 2 F / 128, H / 128]; else None.
        w2_scale: likewise, of `w2`: [E], [E, H, 1] or [E, H / 128, F / 128].
        w1_zp: not served; None, as the next one.
        w2_zp: likewise.
        a1_scale: one number to quantise `hidden_states` with, together with `a2_scale`; else None.
        a2_scale: one number to quantise the activated elements with; else None.
        block_shape: [128, 128] for scales of blocks; else None.

    Returns:
        [T, H], of the type of `hidden_states`.
    """
    if use_grouped_topk:
        for name, groups in (("num_expert_group", num_expert_group), ("topk_group", topk_group)):
            check_integer("fused_moe", name, groups, 1, 2**31 - 1)
        chosen: tuple[torch.Tensor, ...] = grouped_topk(
            hidden_states,
            gating_output,
            topk,
            renormalize,
            num_expert_group or 0,
            topk_group or 0,
        )
    elif custom_routing_function is None:
        chosen = fused_topk(hidden_states, gating_output, topk, renormalize)
    else:
        chosen = custom_routing_function(hidden_states, gating_output, topk, renormalize)
    return fused_experts(
        hidden_states,
        w1,
        w2,
        chosen[0],
        chosen[1],
        inplace,
        activation,
        use_fp8_w8a8=use_fp8_w8a8,
        use_int8_w8a8=use_int8_w8a8,
        use_int8_w8a16=use_int8_w8a16,
        use_int4_w4a16=use_int4_w4a16,
        per_channel_quant=per_channel_quant,
        expert_map=expert_map,
        w1_scale=w1_scale,
        w2_scale=w2_scale,
        w1_zp=w1_zp,
        w2_zp=w2_zp,
        a1_scale=a1_scale,
        a2_scale=a2_scale,
        block_shape=block_shape,
    )


def modular_triton_fused_moe(
    use_fp8_w8a8: bool,
    use_int8_w8a8: bool,
    use_int8_w8a16: bool,
    use_int4_w4a16: bool,
    per_act_token_quant: bool = False,
    block_shape: list[int] | None = None,
    *,
    per_channel_quant: bool = False,
    use_mxfp4_w4a4: bool = False,
) -> Callable[..., torch.Tensor]:
    """VLLM's modular kernel over `TritonExperts`.

    Args:
        use_fp8_w8a8: as of `fused_experts`.
        use_int8_w8a8: not served; False, as the next two.
        use_int8_w8a16: likewise.
        use_int4_w4a16: likewise.
        per_act_token_quant: as `per_channel_quant` of `fused_experts`.
        block_shape: as of `fused_experts`.
        per_channel_quant: what vLLM 0.9.1 has in place of `per_act_token_quant`.
        use_mxfp4_w4a4: of vLLM 0.10; not served.

    Returns:
        A function of the parameters that the kernel's `forward` has, which are those of
        `fused_experts` in another order.
    """
    op = "modular_triton_fused_moe"
    refuse(
        op,
        use_int8_w8a8=use_int8_w8a8,
        use_int8_w8a16=use_int8_w8a16,
        use_int4_w4a16=use_int4_w4a16,
        use_mxfp4_w4a4=use_mxfp4_w4a4,
    )
    per_token = {
        "per_act_token_quant": per_act_token_quant,
        "per_channel_quant": per_channel_quant,
    }
    if use_fp8_w8a8:
        fp8.check_block_shape(op, block_shape, **per_token)
    else:
        refuse(op, block_shape=block_shape, **per_token)

    def forward(
        hidden_states: torch.Tensor,
        w1: torch.Tensor,
        w2: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        inplace: bool = False,
        activation: str = "silu",
        global_num_experts: int = -1,
        expert_map: torch.Tensor | None = None,
        w1_scale: torch.Tensor | None = None,
        w2_scale: torch.Tensor | None = None,
        w1_zp: torch.Tensor | None = None,
        w2_zp: torch.Tensor | None = None,
        a1_scale: torch.Tensor | None = None,
        a2_scale: torch.Tensor | None = None,
        apply_router_weight_on_input: bool = False,
    ) -> torch.Tensor:
        return fused_experts(
            hidden_states,
            w1,
            w2,
            topk_weights,
            topk_ids,
            inplace,
            activation,
            apply_router_weight_on_input,
            use_fp8_w8a8,
            global_num_experts=global_num_experts,
            expert_map=expert_map,
            w1_scale=w1_scale,
            w2_scale=w2_scale,
            w1_zp=w1_zp,
            w2_zp=w2_zp,
            a1_scale=a1_scale,
            a2_scale=a2_scale,
            block_shape=block_shape,
        )

    return forward
