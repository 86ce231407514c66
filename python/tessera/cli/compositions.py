"""The usual way to get the op's result without the op: sort, count, sum, scatter."""

from __future__ import annotations

from typing import Any

import numpy as np


def numpy_composition(topk_ids: Any, block_size: int, num_experts: int, num_slots: int) -> Any:
    """`align_block_size` of in-range NumPy ids, as (sorted_token_ids, expert_ids, post_pad)."""
    ids = topk_ids.reshape(-1)
    order = np.argsort(ids, kind="stable")
    counts = np.bincount(ids, minlength=num_experts)
    blocks = -(-counts // block_size)
    # How far padding moves each group from where the plain sort has it.
    shift = (np.cumsum(blocks) - blocks) * block_size - (np.cumsum(counts) - counts)
    sorted_token_ids = np.full(num_slots, ids.size, np.int32)
    sorted_token_ids[np.arange(ids.size) + np.repeat(shift, counts)] = order
    expert_ids = np.full(-(-num_slots // block_size), -1, np.int32)
    num_blocks = int(blocks.sum())
    expert_ids[:num_blocks] = np.repeat(np.arange(num_experts), blocks)
    return sorted_token_ids, expert_ids, np.array([num_blocks * block_size], np.int32)


def torch_composition(topk_ids: Any, block_size: int, num_experts: int, num_slots: int) -> Any:
    """The same for torch tensors."""
    import torch

    ids = topk_ids.reshape(-1)
    order = torch.argsort(ids, stable=True)
    counts = torch.bincount(ids, minlength=num_experts)
    blocks = (counts + block_size - 1) // block_size
    shift = (torch.cumsum(blocks, 0) - blocks) * block_size - (torch.cumsum(counts, 0) - counts)
    sorted_token_ids = torch.full((num_slots,), ids.numel(), dtype=torch.int32)
    slots = torch.arange(ids.numel()) + torch.repeat_interleave(shift, counts)
    sorted_token_ids[slots] = order.to(torch.int32)
    expert_ids = torch.full((-(-num_slots // block_size),), -1, dtype=torch.int32)
    experts = torch.repeat_interleave(torch.arange(num_experts, dtype=torch.int32), blocks)
    expert_ids[: experts.numel()] = experts
    return sorted_token_ids, expert_ids, (blocks.sum() * block_size).to(torch.int32).reshape(1)
