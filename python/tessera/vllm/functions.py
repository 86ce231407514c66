"""vLLM's functions of mid-2025, served by Tessera.

Wherever vLLM's functions were deterministic these give the same bits, including lengths, types and
values past the last block.
"""

from __future__ import annotations

from typing import Any

import torch

import tessera
from tessera.vllm import wrapper
from tessera.vllm.call_forms import accept_both_forms
from tessera.vllm.generations import GENERATIONS

_MID_2025 = GENERATIONS[0]

Aligned = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def cdiv(a: int, b: int) -> int:
    """How many times `b` it takes to reach `a`, for b > 0."""
    return -(-a // b)


def round_up(x: int, y: int) -> int:
    """The least multiple of `y` that is not less than `x`."""
    return -(-x // y) * y


@accept_both_forms
def moe_align_block_size(
    topk_ids: torch.Tensor,
    block_size: int,
    num_experts: int,
    expert_map: torch.Tensor | None = None,
    pad_sorted_ids: bool = False,
    ignore_invalid_experts: bool = False,
) -> Aligned:
    """Group (token, slot) pairs by expert, every group padded to whole blocks.

    Args:
        topk_ids: any shape and integer type, N elements.
        block_size: slots in a block, at least 1.
        num_experts: number of experts, on all ranks, at least 1.
        expert_map: int32[num_experts], the local number of each expert, -1 if it has none.
        pad_sorted_ids: round the capacity up to a multiple of `block_size`.
        ignore_invalid_experts: with a map, leave out the pairs of remote experts.

    Returns:
        sorted_token_ids: int32[capacity], where capacity is N + num_experts * (block_size - 1).
        expert_ids: int32[ceil(capacity / block_size)]; past the last block it is 0, or with a map,
            unless `ignore_invalid_experts` is set, the map's entry of 0.
        num_tokens_post_pad: int32[1], the padded total.

    Raises:
        TypeError, ValueError: as `tessera.align_block_size`; TypeError also for a mix of this order
            of arguments and `(topk_ids, num_experts, block_size, topk)`.
    """
    try:
        return wrapper.moe_align_block_size(
            topk_ids,
            block_size,
            num_experts,
            expert_map,
            pad_sorted_ids,
            ignore_invalid_experts,
            generation=_MID_2025,
        )
    except Exception:
        # If outputs of such sizes cannot be made, the core says what is wrong with the sizes.
        tessera.align_block_size(topk_ids, block_size=block_size, num_experts=num_experts)
        raise


def batched_moe_align_block_size(
    max_tokens_per_batch: int, block_size: int, expert_num_tokens: torch.Tensor
) -> Aligned:
    """List the used slots of all batches, each batch padded to whole blocks.

    Args:
        max_tokens_per_batch: slots of a batch, of which the first ones are used; at least 1.
        block_size: slots in a block, at least 1.
        expert_num_tokens: int32[num_batches], the number of used slots of each batch.

    Returns:
        sorted_token_ids: int32[capacity], where capacity is max(max_tokens_per_batch, block_size) *
            num_batches, rounded up to whole blocks; the filler is num_batches *
            max_tokens_per_batch. If `max_tokens_per_batch` is not a multiple of `block_size`, the
            last blocks of full batches may not fit, and are cut off.
        expert_ids: int32[capacity / block_size], the batch of each block, -1 past the last.
        num_tokens_post_pad: int32[1], the padded total.

    Raises:
        TypeError, ValueError: as `tessera.batched_align_block_size`.
    """
    sizes: dict[str, Any] = {"max_tokens_per_batch": max_tokens_per_batch, "block_size": block_size}
    try:
        num_batches = expert_num_tokens.numel()
        capacity = round_up(max(max_tokens_per_batch, block_size) * num_batches, block_size)
        num_slots = max(capacity, round_up(max_tokens_per_batch, block_size) * num_batches)
        out = (
            expert_num_tokens.new_empty(num_slots, dtype=torch.int32),
            expert_num_tokens.new_empty(num_slots // block_size, dtype=torch.int32),
            expert_num_tokens.new_empty(1, dtype=torch.int32),
        )
    except Exception:
        tessera.batched_align_block_size(expert_num_tokens, **sizes)
        raise
    tessera.batched_align_block_size(expert_num_tokens, **sizes, out=out)
    return out[0][:capacity], out[1][: capacity // block_size], out[2]
