"""vLLM's ops on rows of hidden states: `moe_sum`, `moe_permute` and `moe_unpermute`.

Each has the name, parameters and meaning of vLLM's, of all its versions together. A call that
Tessera cannot serve raises TypeError, ValueError or NotImplementedError before anything is written.
"""

from __future__ import annotations

import torch

import tessera
from tessera._engine_router import refuse
from tessera._plain_tensor import check_plain


def moe_sum(
    input: torch.Tensor,
    output: torch.Tensor,
    topk_ids: torch.Tensor | None = None,
    expert_map: torch.Tensor | None = None,
) -> None:
    """Add up the rows of each token.

    Args:
        input: float16, bfloat16 or float32 [T, k, H].
        output: [T, H] of the same type.
        topk_ids: not served; None.
        expert_map: not served; None.
    """
    refuse("moe_sum", topk_ids=topk_ids, expert_map=expert_map)
    check_plain("moe_sum", "input", input)
    tessera.moe_sum(input, out=output)


def moe_permute(
    hidden_states: torch.Tensor,
    a1q_scale: torch.Tensor | None,
    topk_ids: torch.Tensor,
    n_expert: int,
    n_local_expert: int = -1,
    expert_map: torch.Tensor | None = None,
    align_block_size: int | None = None,
    fill_invalid_expert: int = -1,
    permuted_hidden_states: torch.Tensor | None = None,
    scratch: object = None,
    *,
    returns_experts: bool = False,
) -> tuple[torch.Tensor | None, ...]:
    """Copy the rows of tokens to the order of their experts.

    Args:
        hidden_states: float16, bfloat16, float32 or float8_e4m3fn [T, H].
        a1q_scale: scales of the rows, permuted with them if they have 2 axes; or None.
        topk_ids: int32 or int64 [T, k].
        n_expert: number of experts, on all ranks.
        n_local_expert: number of experts here; -1 stands for `n_expert`.
        expert_map: int32 [n_expert], the local number of each expert, -1 if it has none.
        align_block_size: not served; None.
        fill_invalid_expert: with `returns_experts`, the expert of rows that are not in use.
        permuted_hidden_states: [T * k, H] of the type of `hidden_states`, to write to.
        scratch: not served; None.
        returns_experts: the last array of the result has the expert of each row, as until vLLM
            0.15, rather than the pair.

    Returns:
        permuted_hidden_states; a1q_scale; the first row of each expert, then the number of rows in
        use, int64 [n_local_expert + 1]; the row of each pair, int32 [T * k], where all pairs of
        remote experts have the last row, which is not in use then; int32 [T * k], the pair of each
        row, T * k for rows that are not in use, or with `returns_experts` the expert of each row.
    """
    op = "moe_permute"
    refuse(op, align_block_size=align_block_size, scratch=scratch)
    check_plain(op, "hidden_states", hidden_states)
    check_plain(op, "topk_ids", topk_ids)
    num_experts = n_expert if n_local_expert == -1 else n_local_expert
    if expert_map is None and num_experts != n_expert:
        raise NotImplementedError(
            f"{op}: n_local_expert: expected {n_expert} without expert_map, got {n_local_expert}"
        )
    num_tokens, top_k = topk_ids.shape
    num_pairs = num_tokens * top_k
    # In blocks of one slot these are the pair and the expert of each row.
    blocks = tessera.align_block_size(
        topk_ids,
        block_size=1,
        num_experts=n_expert,
        expert_map=expert_map,
        ignore_invalid_experts=expert_map is not None,
        tail_expert=fill_invalid_expert,
    )
    pairs, experts = blocks.sorted_token_ids[:num_pairs], blocks.expert_ids[:num_pairs]
    if permuted_hidden_states is None:
        permuted_hidden_states = hidden_states.new_empty((num_pairs, hidden_states.shape[1]))
    offsets = topk_ids.new_empty(num_experts + 1, dtype=torch.int32)
    inverse = topk_ids.new_empty((num_tokens, top_k), dtype=torch.int32)
    tessera.moe_permute(
        hidden_states,
        topk_ids,
        num_experts=num_experts,
        expert_map=expert_map,
        out=(permuted_hidden_states, offsets, inverse),
    )
    if expert_map is not None and num_pairs:
        inverse.remainder_(num_pairs)  # -1 becomes the last row
    if a1q_scale is not None and a1q_scale.dim() > 1:
        a1q_scale = a1q_scale[pairs.clamp(max=num_pairs - 1) // top_k]
    last = experts if returns_experts else pairs
    return permuted_hidden_states, a1q_scale, offsets.to(torch.int64), inverse.flatten(), last


def moe_unpermute(
    out: torch.Tensor,
    permuted_hidden_states: torch.Tensor,
    topk_weights: torch.Tensor,
    inv_permuted_idx: torch.Tensor,
    expert_first_token_offset: torch.Tensor | None = None,
) -> None:
    """Add up the rows of each token, weighted.

    Args:
        out: [T, H] of the type of the rows.
        permuted_hidden_states: float16, bfloat16 or float32 [M, H].
        topk_weights: float32 [T, k].
        inv_permuted_idx: int32, T * k elements: the row of each pair.
        expert_first_token_offset: int64; its last element is the number of rows in use, and pairs
            whose row is not in use add nothing. None: all rows are.
    """
    check_plain("moe_unpermute", "permuted_hidden_states", permuted_hidden_states)
    inverse = inv_permuted_idx.view(topk_weights.shape)
    if expert_first_token_offset is not None:
        inverse = torch.where(inverse < expert_first_token_offset[-1], inverse, -1)
    tessera.moe_unpermute(permuted_hidden_states, topk_weights, inverse, out=out)
