import engine_ops
import engine_router


def moe_align_block_size(
    topk_ids, num_experts, block_size, sorted_token_ids, experts_ids, num_tokens_post_pad
):
    out = sorted_token_ids, experts_ids, num_tokens_post_pad
    engine_ops.align(topk_ids, num_experts, block_size, out, tail=0)


def topk_softmax(topk_weights, topk_ids, token_expert_indices, gating_output):
    engine_router.write(topk_weights, topk_ids, token_expert_indices, gating_output)


def moe_sum(input, output):
    engine_router.add_rows(input, output)
