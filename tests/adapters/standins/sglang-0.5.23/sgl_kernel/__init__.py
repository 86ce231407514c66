import engine_ops


def moe_align_block_size(
    topk_ids,
    num_experts,
    block_size,
    sorted_token_ids,
    experts_ids,
    num_tokens_post_pad,
    cumsum_buffer,
    pad_sorted_token_ids=False,
    ignore_invalid_expert=False,
):
    out = sorted_token_ids, experts_ids, num_tokens_post_pad
    engine_ops.align_with_filtered(topk_ids, num_experts, block_size, out, tail=None)
