import engine_ops


def moe_align_block_size(
    topk_ids,
    num_experts,
    block_size,
    sorted_token_ids,
    expert_ids,
    num_tokens_post_pad,
    cumsum_buffer,
    pad_sorted_token_ids=False,
    *,
    write_inactive_prefix_count=False,
    map_invalid_experts_to_sentinel=False,
    pad_expert_ids=False,
):
    out = sorted_token_ids, expert_ids, num_tokens_post_pad
    tail = -1 if pad_expert_ids else None
    engine_ops.align_with_filtered(topk_ids, num_experts, block_size, out, tail=tail)
