import torch

import engine_router


def padded(topk_ids, num_token_non_padded):
    if num_token_non_padded is not None:
        topk_ids[torch.arange(len(topk_ids)) >= num_token_non_padded] = -1
    return topk_ids


def fused_topk(
    hidden_states,
    gating_output,
    topk,
    renormalize,
    num_token_non_padded=None,
    expert_location_dispatch_info=None,
):
    weights, ids = engine_router.choose(gating_output, topk, renormalize=renormalize)
    return weights, padded(ids, num_token_non_padded)


def grouped_topk_gpu(
    hidden_states,
    gating_output,
    topk,
    renormalize,
    num_expert_group=None,
    topk_group=None,
    num_fused_shared_experts=0,
    routed_scaling_factor=None,
    num_token_non_padded=None,
    expert_location_dispatch_info=None,
    apply_routed_scaling_factor_on_output=False,
):
    is_scaled = renormalize and apply_routed_scaling_factor_on_output
    weights, ids = engine_router.choose(
        gating_output,
        topk,
        renormalize=renormalize,
        num_groups=num_expert_group,
        topk_group=topk_group,
        factor=routed_scaling_factor if is_scaled else 1.0,
    )
    return weights, padded(ids, num_token_non_padded)


def biased_grouped_topk_gpu(
    hidden_states,
    gating_output,
    correction_bias,
    topk,
    renormalize,
    num_expert_group=None,
    topk_group=None,
    num_fused_shared_experts=0,
    routed_scaling_factor=None,
    num_token_non_padded=None,
    expert_location_dispatch_info=None,
    apply_routed_scaling_factor_on_output=False,
):
    is_scaled = renormalize and apply_routed_scaling_factor_on_output
    weights, ids = engine_router.choose(
        gating_output,
        topk,
        scoring="sigmoid",
        renormalize=renormalize,
        bias=correction_bias,
        num_groups=num_expert_group,
        topk_group=topk_group,
        factor=routed_scaling_factor if is_scaled else 1.0,
    )
    return weights, padded(ids, num_token_non_padded)


biased_grouped_topk = biased_grouped_topk_gpu
grouped_topk = grouped_topk_gpu
