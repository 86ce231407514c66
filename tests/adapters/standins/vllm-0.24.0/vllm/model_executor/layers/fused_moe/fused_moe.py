from vllm.model_executor.layers.fused_moe.moe_align_block_size import moe_align_block_size

import engine_experts


def fused_experts(topk_ids, block_size, num_experts, **options):
    return moe_align_block_size(topk_ids, block_size, num_experts, **options)


def fused_experts_impl(
    hidden_states,
    w1,
    w2,
    topk_weights,
    topk_ids,
    activation="silu",
    apply_router_weight_on_input=False,
    use_fp8_w8a8=False,
    use_int8_w8a8=False,
    use_int8_w8a16=False,
    use_int4_w4a16=False,
    ocp_mx_scheme=None,
    per_channel_quant=False,
    global_num_experts=-1,
    expert_map=None,
    w1_scale=None,
    w2_scale=None,
    w1_zp=None,
    w2_zp=None,
    a1_scale=None,
    a2_scale=None,
    block_shape=None,
    w1_bias=None,
    w2_bias=None,
):
    return engine_experts.implement(
        hidden_states,
        w1,
        w2,
        topk_weights,
        topk_ids,
        activation=activation,
        apply_router_weight_on_input=apply_router_weight_on_input,
        expert_map=expert_map,
        w1_bias=w1_bias,
        w2_bias=w2_bias,
    )
