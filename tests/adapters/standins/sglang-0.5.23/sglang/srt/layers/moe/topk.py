import engine_router


def fused_topk(
    hidden_states,
    gating_output,
    topk,
    renormalize,
    correction_bias=None,
    scoring_func="softmax",
    routed_scaling_factor=None,
    apply_routed_scaling_factor_on_output=False,
    num_fused_shared_experts=0,
    packed_out=None,
    num_token_non_padded=None,
):
    is_scaled = apply_routed_scaling_factor_on_output and scoring_func != "softmax"
    return engine_router.choose(
        gating_output,
        topk,
        scoring=scoring_func,
        renormalize=renormalize,
        bias=correction_bias,
        factor=routed_scaling_factor if is_scaled else 1.0,
    )


def grouped_topk_gpu(
    hidden_states,
    gating_output,
    topk,
    renormalize,
    num_expert_group=None,
    topk_group=None,
    num_fused_shared_experts=0,
    routed_scaling_factor=None,
    apply_routed_scaling_factor_on_output=False,
    scoring_func="softmax",
):
    return engine_router.choose(
        gating_output,
        topk,
        scoring=scoring_func,
        renormalize=renormalize,
        num_groups=num_expert_group,
        topk_group=topk_group,
        factor=routed_scaling_factor if apply_routed_scaling_factor_on_output else 1.0,
    )


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
    apply_routed_scaling_factor_on_output=False,
):
    return engine_router.choose(
        gating_output,
        topk,
        scoring="sigmoid",
        renormalize=renormalize,
        bias=correction_bias,
        num_groups=num_expert_group,
        topk_group=topk_group,
        factor=routed_scaling_factor if apply_routed_scaling_factor_on_output else 1.0,
    )


biased_grouped_topk = biased_grouped_topk_gpu
grouped_topk = grouped_topk_gpu
