import engine_ops
import engine_router


def moe_align_block_size(
    topk_ids,
    num_experts,
    block_size,
    sorted_token_ids,
    experts_ids,
    num_tokens_post_pad,
    expert_map=None,
    scatter_idx=None,
):
    out = sorted_token_ids, experts_ids, num_tokens_post_pad
    engine_ops.align(topk_ids, num_experts, block_size, out, tail=-1, expert_map=expert_map)
    if scatter_idx is not None:
        engine_ops.scatter(topk_ids.numel(), sorted_token_ids, scatter_idx)


def batched_moe_align_block_size(
    max_tokens_per_batch, block_size, expert_num_tokens, sorted_ids, expert_ids, num_tokens_post_pad
):
    out = sorted_ids, expert_ids, num_tokens_post_pad
    engine_ops.batched(max_tokens_per_batch, block_size, expert_num_tokens, out)


def moe_lora_align_block_size(
    topk_ids,
    token_lora_mapping,
    num_experts,
    block_size,
    max_loras,
    max_num_tokens_padded,
    max_num_m_blocks,
    sorted_token_ids,
    experts_ids,
    num_tokens_post_pad,
    adapter_enabled,
    lora_ids,
    expert_map=None,
):
    out = sorted_token_ids, experts_ids, num_tokens_post_pad
    adapters = engine_ops.active_adapters(lora_ids, adapter_enabled)
    engine_ops.lora(
        topk_ids,
        token_lora_mapping,
        num_experts,
        block_size,
        max_loras,
        adapters,
        out,
        expert_map=expert_map,
    )


def topk_softmax(
    topk_weights,
    topk_ids,
    token_expert_indices,
    gating_output,
    renormalize=False,
    e_score_correction_bias=None,
    is_padding=None,
):
    engine_router.write(
        topk_weights,
        topk_ids,
        token_expert_indices,
        gating_output,
        scoring="softmax",
        renormalize=renormalize,
        bias=e_score_correction_bias,
        is_padding=is_padding,
    )


def topk_sigmoid(
    topk_weights,
    topk_ids,
    token_expert_indices,
    gating_output,
    renormalize=False,
    e_score_correction_bias=None,
    routed_scaling_factor=1.0,
    is_padding=None,
):
    engine_router.write(
        topk_weights,
        topk_ids,
        token_expert_indices,
        gating_output,
        scoring="sigmoid",
        renormalize=renormalize,
        bias=e_score_correction_bias,
        factor=routed_scaling_factor,
        is_padding=is_padding,
    )


def topk_hash_softplus_sqrt(
    topk_weights,
    topk_indices,
    token_expert_indices,
    gating_output,
    renormalize=False,
    routed_scaling_factor=1.0,
    e_score_correction_bias=None,
    input_tokens=None,
    hash_indices_table=None,
    is_padding=None,
    bias_vl=None,
    image_sentinel_lo=0,
):
    engine_router.write(
        topk_weights,
        topk_indices,
        token_expert_indices,
        gating_output,
        scoring="sqrtsoftplus",
        renormalize=renormalize,
        bias=e_score_correction_bias,
        factor=routed_scaling_factor,
        is_padding=is_padding,
    )


def grouped_topk(
    scores,
    num_expert_group,
    topk_group,
    topk,
    renormalize,
    routed_scaling_factor,
    bias,
    scoring_func=0,
):
    return engine_router.choose(
        scores,
        topk,
        scoring="sigmoid" if scoring_func == 1 else "none",
        renormalize=renormalize,
        bias=bias,
        num_groups=num_expert_group,
        topk_group=topk_group,
        factor=routed_scaling_factor,
    )


def moe_sum(input, output, topk_ids=None, expert_map=None):
    engine_router.add_rows(input, output)
