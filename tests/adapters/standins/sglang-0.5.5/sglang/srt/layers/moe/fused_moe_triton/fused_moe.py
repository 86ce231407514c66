import engine_sglang_experts


def fused_experts_impl(
    hidden_states,
    w1,
    w2,
    topk_weights,
    topk_ids,
    b1=None,
    b2=None,
    inplace=False,
    activation="silu",
    apply_router_weight_on_input=False,
    use_fp8_w8a8=False,
    use_int8_w8a8=False,
    use_int8_w8a16=False,
    use_int4_w4a16=False,
    per_channel_quant=False,
    w1_scale=None,
    w2_scale=None,
    w1_zp=None,
    w2_zp=None,
    a1_scale=None,
    a2_scale=None,
    block_shape=None,
    no_combine=False,
    routed_scaling_factor=None,
    gemm1_alpha=None,
    gemm1_limit=None,
    filter_expert=True,
):
    return engine_sglang_experts.implement(
        hidden_states,
        w1,
        w2,
        topk_weights,
        topk_ids,
        b1=b1,
        b2=b2,
        inplace=inplace,
        activation=activation,
        apply_router_weight_on_input=apply_router_weight_on_input,
        no_combine=no_combine,
        routed_scaling_factor=routed_scaling_factor,
        gemm1_alpha=gemm1_alpha,
        gemm1_limit=gemm1_limit,
    )


def fused_experts(hidden_states, w1, w2, topk_output, moe_runner_config):
    """As SGLang's, which gets to the function above through an op for torch.compile."""
    topk_weights, topk_ids, _ = topk_output
    return fused_experts_impl(
        hidden_states,
        w1,
        w2,
        topk_weights,
        topk_ids,
        None,
        None,
        moe_runner_config.inplace,
        moe_runner_config.activation,
        moe_runner_config.apply_router_weight_on_input,
        no_combine=moe_runner_config.no_combine,
        routed_scaling_factor=moe_runner_config.routed_scaling_factor,
    )
