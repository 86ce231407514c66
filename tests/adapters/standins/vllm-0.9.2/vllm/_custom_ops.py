import engine_ops


def moe_align_block_size(
    topk_ids, num_experts, block_size, sorted_token_ids, experts_ids, num_tokens_post_pad
):
    out = sorted_token_ids, experts_ids, num_tokens_post_pad
    engine_ops.align(topk_ids, num_experts, block_size, out, tail=0)
