import engine_ops
import engine_router


def moe_align_block_size(
    topk_ids, num_experts, block_size, sorted_token_ids, experts_ids, num_tokens_post_pad
):
    out = sorted_token_ids, experts_ids, num_tokens_post_pad
    engine_ops.align(topk_ids, num_experts, block_size, out, tail=0)


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
):
    out = sorted_token_ids, experts_ids, num_tokens_post_pad
    adapters = engine_ops.active_adapters(lora_ids, adapter_enabled)
    engine_ops.lora(topk_ids, token_lora_mapping, num_experts, block_size, max_loras, adapters, out)


def topk_softmax(topk_weights, topk_ids, token_expert_indices, gating_output, renormalize=False):
    engine_router.write(
        topk_weights, topk_ids, token_expert_indices, gating_output, renormalize=renormalize
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


def moe_sum(input, output):
    engine_router.add_rows(input, output)
