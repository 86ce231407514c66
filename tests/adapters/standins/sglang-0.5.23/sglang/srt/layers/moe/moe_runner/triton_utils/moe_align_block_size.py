import torch
from sglang.kernels.ops.moe import moe_align_block_size as sgl_moe_align_block_size


def moe_align_block_size(
    topk_ids,
    block_size,
    num_experts,
    ignore_invalid_expert=False,
    *,
    return_inactive_prefix_count=False,
    pad_expert_ids=False,
):
    num_slots = topk_ids.numel() + min(topk_ids.numel(), num_experts + 1) * (block_size - 1)
    num_slots = -(-num_slots // 4) * 4
    sorted_ids = torch.empty(num_slots, dtype=torch.int32)
    expert_ids = torch.empty(-(-num_slots // block_size), dtype=torch.int32)
    num_tokens_post_pad = torch.empty(1 + return_inactive_prefix_count, dtype=torch.int32)
    cumsum_buffer = torch.empty(num_experts + 2, dtype=torch.int32)
    arguments = (
        topk_ids,
        num_experts + 1,
        block_size,
        sorted_ids,
        expert_ids,
        num_tokens_post_pad,
        cumsum_buffer,
        True,
    )
    if return_inactive_prefix_count or pad_expert_ids:
        from sglang.kernels.ops.moe.moe_align import moe_align_block_size as compiled

        compiled(
            *arguments,
            write_inactive_prefix_count=return_inactive_prefix_count,
            pad_expert_ids=pad_expert_ids,
        )
    else:
        sgl_moe_align_block_size(*arguments, ignore_invalid_expert)
    return sorted_ids, expert_ids, num_tokens_post_pad
