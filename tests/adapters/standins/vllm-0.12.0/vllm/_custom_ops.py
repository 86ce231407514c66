import engine_ops


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
