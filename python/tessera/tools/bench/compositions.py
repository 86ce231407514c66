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


def torch_composition(
    topk_ids: Any, block_size: int, num_experts: int, num_slots: int, expert_map: Any = None
) -> Any:
    """The same for torch tensors on any device, optionally with a map.

    Nothing is read back to the host, so that a CUDA graph can capture it.
    """
    import torch

    ids = topk_ids.reshape(-1)
    device, num_ids = ids.device, ids.numel()
    keys, order = torch.sort(ids, stable=True)
    keys = keys.long()
    counts = torch.zeros(num_experts, dtype=torch.int64, device=device)
    counts.scatter_add_(0, keys, torch.ones_like(keys))
    blocks = (counts + block_size - 1) // block_size
    ends = torch.cumsum(blocks, 0)
    shift = (ends - blocks) * block_size - (torch.cumsum(counts, 0) - counts)
    sorted_token_ids = torch.full((num_slots,), num_ids, dtype=torch.int32, device=device)
    slots = torch.arange(num_ids, device=device) + shift[keys]
    sorted_token_ids.scatter_(0, slots, order.to(torch.int32))
    block = torch.arange(-(-num_slots // block_size), device=device)
    experts = torch.searchsorted(ends, block, right=True)
    used = experts < num_experts
    if expert_map is not None:
        local = expert_map[experts.clamp(max=num_experts - 1)].long()
        used &= (local >= 0) & (local < num_experts)
        experts = local
    expert_ids = torch.where(used, experts, -1).to(torch.int32)
    return sorted_token_ids, expert_ids, (ends[-1:] * block_size).to(torch.int32)
