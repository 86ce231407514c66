"""vLLM's Python function around its alignment op, as one call of Tessera."""

from __future__ import annotations

import torch

import tessera
from tessera._plain_tensor import check_plain
from tessera.vllm.generations import Generation


def moe_align_block_size(
    topk_ids: torch.Tensor,
    block_size: int,
    num_experts: int,
    expert_map: torch.Tensor | None = None,
    pad_sorted_ids: bool = False,
    ignore_invalid_experts: bool = False,
    return_scatter_idx: bool = False,
    *,
    generation: Generation,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Group the pairs by expert, into new tensors of this generation's lengths.

    Args:
        topk_ids: any shape and integer type, N elements.
        block_size: slots in a block, at least 1.
        num_experts: number of experts, at least 1.
        expert_map: int32[num_experts], the local number of each expert, -1 if it has none.
        pad_sorted_ids: round the length up to a multiple of `block_size`.
        ignore_invalid_experts: with a map, leave out the pairs of remote experts.
        return_scatter_idx: not served; False.
        generation: determines lengths and tail.

    Returns:
        Indices int32[num_slots], expert of each block int32[ceil(num_slots / block_size)], and the
        padded total int32[1].

    Raises:
        TypeError, ValueError, NotImplementedError: the call cannot be served.
    """
    if return_scatter_idx:
        raise NotImplementedError(
            "moe_align_block_size: return_scatter_idx: expected False, got True"
        )
    check_plain("moe_align_block_size", "topk_ids", topk_ids)
    num_groups = num_experts
    if generation.room_for_used_experts:
        num_groups = min(num_experts, topk_ids.numel())
    num_slots = topk_ids.numel() + num_groups * (block_size - 1)
    if pad_sorted_ids:
        num_slots += -num_slots % block_size
    num_blocks = -(-num_slots // block_size)
    # Separate allocations, because Triton compiles kernels anew for addresses not aligned to 16.
    out = (
        topk_ids.new_empty(num_slots, dtype=torch.int32),
        topk_ids.new_empty(num_blocks, dtype=torch.int32),
        topk_ids.new_empty(1, dtype=torch.int32),
    )
    mapped_afterwards = expert_map is not None and not ignore_invalid_experts
    tail_expert = generation.tail_expert
    tessera.align_block_size(
        topk_ids,
        block_size=block_size,
        num_experts=num_experts,
        expert_map=expert_map,
        ignore_invalid_experts=ignore_invalid_experts,
        # vLLM also indexes the map with the tail: -1 is then its last entry.
        tail_expert=tail_expert % num_experts if mapped_afterwards else tail_expert,
        map_tail=mapped_afterwards,
        out=out,
    )
    return out
