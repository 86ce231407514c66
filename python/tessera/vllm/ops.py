"""vLLM's alignment ops, served by Tessera.

Each function has the name, parameters and meaning of an op in `vllm._custom_ops`, and writes to the
caller's tensors. A call that Tessera cannot serve raises TypeError, ValueError or
NotImplementedError before anything is written.
"""

from __future__ import annotations

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
    expert_map: torch.Tensor | None = None,
    scatter_idx: None = None,
    *,
    tail_expert: int = -1,
) -> None:
    """Group the pairs by expert; with a map by local expert, without pairs of remote experts.

    Args:
        topk_ids: any shape and integer type.
        num_experts: number of experts, at least 1.
        block_size: slots in a block, at least 1.
        sorted_token_ids: int32, at least N + min(N, num_experts) * (block_size - 1) elements.
        experts_ids: int32, one element per block of `sorted_token_ids`.
        num_tokens_post_pad: int32[1].
        expert_map: int32[num_experts].
        scatter_idx: not served; None.
        tail_expert: value of `experts_ids` past the last block.
    """
    if scatter_idx is not None:
        raise NotImplementedError(
            f"moe_align_block_size: scatter_idx: expected None, got {type(scatter_idx).__name__}"
        )
    check_plain("moe_align_block_size", "topk_ids", topk_ids)
    tessera.align_block_size(
        topk_ids,
        block_size=block_size,
        num_experts=num_experts,
        expert_map=expert_map,
        ignore_invalid_experts=expert_map is not None,
        tail_expert=tail_expert,
        out=(sorted_token_ids, experts_ids, num_tokens_post_pad),
    )


def batched_moe_align_block_size(
    max_tokens_per_batch: int,
    block_size: int,
    expert_num_tokens: torch.Tensor,
    sorted_ids: torch.Tensor,
    expert_ids: torch.Tensor,
    num_tokens_post_pad: torch.Tensor,
    *,
    tail_expert: int = -1,
) -> None:
    """List the tokens of batches, one batch per expert.

    Args:
        max_tokens_per_batch: tokens that a batch has room for.
        block_size: slots in a block, at least 1.
        expert_num_tokens: int32[num_batches], the number of tokens of each batch.
        sorted_ids: int32, at least num_batches elements times `max_tokens_per_batch` rounded up to
            whole blocks.
        expert_ids: int32, one element per block of `sorted_ids`.
        num_tokens_post_pad: int32[1].
        tail_expert: value of `expert_ids` past the last block.
    """
    check_plain("batched_moe_align_block_size", "expert_num_tokens", expert_num_tokens)
    tessera.batched_align_block_size(
        expert_num_tokens,
        max_tokens_per_batch=max_tokens_per_batch,
        block_size=block_size,
        tail_expert=tail_expert,
        out=(sorted_ids, expert_ids, num_tokens_post_pad),
    )


def moe_lora_align_block_size(
    topk_ids: torch.Tensor,
    token_lora_mapping: torch.Tensor,
    num_experts: int,
    block_size: int,
    max_loras: int,
    max_num_tokens_padded: int,
    max_num_m_blocks: int,
    sorted_token_ids: torch.Tensor,
    experts_ids: torch.Tensor,
    num_tokens_post_pad: torch.Tensor,
    adapter_enabled: torch.Tensor,
    lora_ids: torch.Tensor,
    expert_map: torch.Tensor | None = None,
    *,
    tail_expert: int = -1,
) -> None:
    """Group the pairs of each LoRA adapter by expert, with one row of the outputs per adapter.

    Rows of adapters that are disabled or not in `lora_ids` become filler with a padded total of 0;
    vLLM's own op does not write them.

    Args:
        topk_ids: [num_tokens, top_k], any integer type.
        token_lora_mapping: int32[num_tokens], the adapter of each token, or -1.
        num_experts: number of experts, at least 1.
        block_size: slots in a block, at least 1.
        max_loras: number of adapters, and of rows.
        max_num_tokens_padded: elements per row of `sorted_token_ids`.
        max_num_m_blocks: elements per row of `experts_ids`.
        sorted_token_ids: int32, max_loras * max_num_tokens_padded elements.
        experts_ids: int32, max_loras * max_num_m_blocks elements.
        num_tokens_post_pad: int32[max_loras].
        adapter_enabled: int32[max_loras or more], 0 for adapters that are disabled.
        lora_ids: int32, the adapters that are active, and -1.
        expert_map: int32[num_experts]; with it groups are formed by local expert.
        tail_expert: value of `experts_ids` past the last block of a row.
    """
    check_plain("moe_lora_align_block_size", "topk_ids", topk_ids)
    rows = (
        ("sorted_token_ids", sorted_token_ids, max_num_tokens_padded),
        ("experts_ids", experts_ids, max_num_m_blocks),
        ("num_tokens_post_pad", num_tokens_post_pad, 1),
    )
    for name, tensor, row_length in rows:
        # The core derives the row length from the tensor; vLLM passes it as an argument.
        if tensor.numel() != max_loras * row_length:
            raise ValueError(
                f"moe_lora_align_block_size: {name}: expected {max_loras} rows of {row_length} "
                f"elements, got {tensor.numel()} elements"
            )
    tessera.lora_align_block_size(
        topk_ids,
        token_lora_mapping,
        block_size=block_size,
        num_experts=num_experts,
        max_loras=max_loras,
        adapter_enabled=adapter_enabled,
        lora_ids=lora_ids,
        expert_map=expert_map,
        tail_expert=tail_expert,
        out=(sorted_token_ids, experts_ids, num_tokens_post_pad),
    )
