import torch
from vllm import _custom_ops as ops


def moe_align_block_size(
    topk_ids,
    block_size,
    num_experts,
    expert_map=None,
    pad_sorted_ids=False,
    ignore_invalid_experts=False,
):
    num_slots = topk_ids.numel() + num_experts * (block_size - 1)
    if pad_sorted_ids:
        num_slots = -(-num_slots // block_size) * block_size
    if topk_ids.numel() < num_experts:
        num_slots = min(num_slots, topk_ids.numel() * block_size)
    sorted_ids = torch.empty(num_slots, dtype=torch.int32)
    expert_ids = torch.empty(-(-num_slots // block_size), dtype=torch.int32)
    num_tokens_post_pad = torch.empty(1, dtype=torch.int32)
    ops.moe_align_block_size(
        topk_ids,
        num_experts,
        block_size,
        sorted_ids,
        expert_ids,
        num_tokens_post_pad,
        expert_map if ignore_invalid_experts else None,
    )
    if expert_map is not None and not ignore_invalid_experts:
        expert_ids = expert_map[expert_ids]
    return sorted_ids, expert_ids, num_tokens_post_pad


def batched_moe_align_block_size(max_tokens_per_batch, block_size, expert_num_tokens):
    num_blocks = expert_num_tokens.numel() * -(-max_tokens_per_batch // block_size)
    sorted_ids = torch.empty(num_blocks * block_size, dtype=torch.int32)
    expert_ids = torch.empty(num_blocks, dtype=torch.int32)
    num_tokens_post_pad = torch.empty(1, dtype=torch.int32)
    ops.batched_moe_align_block_size(
        max_tokens_per_batch,
        block_size,
        expert_num_tokens,
        sorted_ids,
        expert_ids,
        num_tokens_post_pad,
    )
    return sorted_ids, expert_ids, num_tokens_post_pad
