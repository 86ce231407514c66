"""SGLang's alignment op, served by Tessera.

A call that Tessera cannot serve raises TypeError, ValueError or NotImplementedError before anything
is written.
"""

from __future__ import annotations

from typing import Any

import torch

import tessera
from tessera._plain_tensor import check_plain


def moe_align_block_size(
    topk_ids: torch.Tensor,
    num_experts: int,
    block_size: int,
    sorted_token_ids: torch.Tensor,
    experts_ids: torch.Tensor,
    num_tokens_post_pad: torch.Tensor,
    cumsum_buffer: torch.Tensor,
    pad_sorted_token_ids: bool = False,
    ignore_invalid_expert: bool = False,
) -> None:
    """SGLang's op with its parameters, served by Tessera; writes to the caller's tensors.

    Args:
        topk_ids: torch tensor of any shape and integer type, with ids in [-1, num_experts - 1).
            Other ids are dropped.
        num_experts: number of experts, and one for the group of the id -1, whose blocks show -1.
        block_size: slots in a block, at least 1.
        sorted_token_ids: int32, at least N + min(N, num_experts) * (block_size - 1) elements.
        experts_ids: int32, one element per block of that; past the last block it becomes -1.
        num_tokens_post_pad: int32[1].
        cumsum_buffer: not needed.
        pad_sorted_token_ids: whether to fill slots without a pair; they are always filled.
        ignore_invalid_expert: not served; False.

    Raises:
        TypeError, ValueError, NotImplementedError: the call cannot be served. Nothing was written.
    """
    if ignore_invalid_expert:
        raise NotImplementedError(
            "moe_align_block_size: ignore_invalid_expert: expected False, got True"
        )
    check_plain("moe_align_block_size", "topk_ids", topk_ids)
    tessera.align_block_size(
        topk_ids,
        block_size=block_size,
        num_experts=num_experts - 1,
        filtered_group=True,
        out=(sorted_token_ids, experts_ids, num_tokens_post_pad),
    )


def compiled_at_run_time(
    *args: Any,
    write_inactive_prefix_count: bool = False,
    map_invalid_experts_to_sentinel: bool = False,
    pad_expert_ids: bool = False,
) -> None:
    """SGLang's op that is compiled at run time, served by `moe_align_block_size`.

    Args:
        args: the arguments of `moe_align_block_size`.
        write_inactive_prefix_count: not served; False.
        map_invalid_experts_to_sentinel: not served; False.
        pad_expert_ids: whether to write -1 past the last block; it is always written.

    Raises:
        TypeError, ValueError, NotImplementedError: as `moe_align_block_size`.
    """
    not_served = {
        "write_inactive_prefix_count": write_inactive_prefix_count,
        "map_invalid_experts_to_sentinel": map_invalid_experts_to_sentinel,
    }
    for name, value in not_served.items():
        if value:
            raise NotImplementedError(f"moe_align_block_size: {name}: expected False, got {value}")
    moe_align_block_size(*args)
