import torch
from vllm.model_executor.layers.fused_moe.moe_align_block_size import moe_align_block_size

import engine_experts
import engine_router


def fused_experts(topk_ids, block_size, num_experts, **options):
    return moe_align_block_size(topk_ids, block_size, num_experts, **options)


def fused_topk(hidden_states, gating_output, topk, renormalize, indices_type=None):
    num_tokens = len(hidden_states)
    topk_weights = torch.empty((num_tokens, topk), dtype=torch.float32)
    topk_ids = torch.empty((num_tokens, topk), dtype=indices_type or torch.int32)
    token_expert_indices = torch.empty((num_tokens, topk), dtype=torch.int32)
    engine_router.write(
        topk_weights,
        topk_ids,
        token_expert_indices,
        gating_output,
        scoring="softmax",
        renormalize=renormalize,
    )
    return topk_weights, topk_ids, token_expert_indices


def grouped_topk(
    hidden_states,
    gating_output,
    topk,
    renormalize,
    num_expert_group=0,
    topk_group=0,
    scoring_func="softmax",
    routed_scaling_factor=1.0,
    e_score_correction_bias=None,
):
    return engine_router.choose(
        gating_output,
        topk,
        scoring=scoring_func,
        renormalize=renormalize,
        bias=e_score_correction_bias,
        num_groups=num_expert_group,
        topk_group=topk_group,
        factor=routed_scaling_factor,
    )


def fused_experts_impl(
    hidden_states,
    w1,
    w2,
    topk_weights,
    topk_ids,
    inplace=False,
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
        inplace=inplace,
        activation=activation,
        apply_router_weight_on_input=apply_router_weight_on_input,
        expert_map=expert_map,
        w1_bias=w1_bias,
        w2_bias=w2_bias,
    )


class TritonExperts:
    def __init__(self, quant_config):
        self.quant_config = quant_config

    def apply(
        self,
        output,
        hidden_states,
        w1,
        w2,
        topk_weights,
        topk_ids,
        activation,
        global_num_experts,
        expert_map,
        a1q_scale,
        a2_scale,
        workspace13,
        workspace2,
        expert_tokens_meta,
        apply_router_weight_on_input,
    ):
        engine_experts.apply(
            self,
            output,
            hidden_states,
            w1,
            w2,
            topk_weights,
            topk_ids,
            activation,
            expert_map,
            (workspace13, workspace2),
            apply_router_weight_on_input,
            (None, 1.0, 0.0),
        )
