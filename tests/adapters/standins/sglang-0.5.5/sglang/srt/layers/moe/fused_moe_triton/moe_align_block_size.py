import torch
from sgl_kernel import moe_align_block_size as sgl_moe_align_block_size


def moe_align_block_size(topk_ids, block_size, num_experts):
    num_slots = topk_ids.numel() + (num_experts + 1) * (block_size - 1)
    sorted_ids = torch.empty(num_slots, dtype=torch.int32)
    expert_ids = torch.empty(-(-num_slots // block_size), dtype=torch.int32)
    num_tokens_post_pad = torch.empty(1, dtype=torch.int32)
    cumsum_buffer = torch.empty(num_experts + 2, dtype=torch.int32)
    pad_sorted_token_ids = num_slots <= 4096
    if not pad_sorted_token_ids:
        sorted_ids.fill_(topk_ids.numel())
    sgl_moe_align_block_size(
        topk_ids,
        num_experts + 1,
        block_size,
        sorted_ids,
        expert_ids,
        num_tokens_post_pad,
        cumsum_buffer,
        pad_sorted_token_ids,
    )
    return sorted_ids, expert_ids, num_tokens_post_pad
