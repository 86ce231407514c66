"""vLLM's ops on rows of hidden states: `moe_sum`, `moe_permute` and `moe_unpermute`.

Each has the name, parameters and meaning of vLLM's, of all its versions together. A call that
Tessera cannot serve raises TypeError, ValueError or NotImplementedError before anything is written.
"""

from __future__ import annotations

import torch

import tessera
from tessera._engine_router import check_integer, engine_names, refuse
from tessera._plain_tensor import check_apart, check_contiguous, check_plain, check_tensor

# What int32 can count.
_MAX_EXPERTS = 2**31 - 1


@engine_names("moe_sum", out="output")
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
    check_plain("moe_sum", "output", output)
    tessera.moe_sum(input, out=output)


def _check_scale(op: str, scale: torch.Tensor, device: torch.device, num_tokens: int) -> None:
    """Refuse scales that are no tensor, or of which torch cannot take a row for each token."""
    check_tensor(op, "a1q_scale", scale)
    if scale.dim() > 1:
        check_plain(op, "a1q_scale", scale, device=device)
        if scale.shape[0] != num_tokens:
            raise ValueError(
                f"{op}: a1q_scale: expected {num_tokens} rows, one for each token, got "
                f"{scale.shape[0]}"
            )


@engine_names(
    "moe_permute",
    x="hidden_states",
    rows="permuted_hidden_states",
    num_experts="n_expert",
    tail_expert="fill_invalid_expert",
)
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
        a1q_scale: scales; permuted with the rows if they have 2 axes or more, [T, ...]; or None.
        topk_ids: int32 or int64 [T, k].
        n_expert: number of experts, on all ranks.
        n_local_expert: number of experts here, at most `n_expert`, which -1 stands for.
        expert_map: int32 [n_expert], the local number of each expert; any value outside
            [0, n_local_expert) marks a remote one.
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
    check_plain(op, "hidden_states", hidden_states, num_axes=2)
    device = hidden_states.device
    check_plain(op, "topk_ids", topk_ids, device=device, num_axes=2)
    num_tokens, top_k = topk_ids.shape
    num_pairs = num_tokens * top_k
    check_integer(op, "n_expert", n_expert, 1, _MAX_EXPERTS)
    num_experts = n_expert
    if n_local_expert != -1:
        check_integer(op, "n_local_expert", n_local_expert, 1, n_expert)
        num_experts = n_local_expert
    if permuted_hidden_states is not None:
        check_plain(op, "permuted_hidden_states", permuted_hidden_states)
    if expert_map is not None:
        check_plain(op, "expert_map", expert_map, device=device, dtype=torch.int32, num_axes=1)
        if permuted_hidden_states is not None:
            written = {"permuted_hidden_states": permuted_hidden_states}
            check_apart(op, written, {"expert_map": expert_map})
        if num_experts != n_expert:
            # So that `align_block_size`, which takes the number of all experts, and `moe_permute`,
            # which takes that of the local ones, leave out the same.
            expert_map = torch.where(expert_map < num_experts, expert_map, -1)
    elif num_experts != n_expert:
        raise NotImplementedError(
            f"{op}: n_local_expert: expected {n_expert} without expert_map, got {n_local_expert}"
        )
    if a1q_scale is not None:
        _check_scale(op, a1q_scale, device, num_tokens)
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
    if a1q_scale is not None and a1q_scale.dim() > 1:
        # Before the rows are written, which may have the memory of the scales.
        a1q_scale = a1q_scale[pairs.clamp(max=num_pairs - 1) // top_k]
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
    last = experts if returns_experts else pairs
    return permuted_hidden_states, a1q_scale, offsets.to(torch.int64), inverse.flatten(), last


@engine_names("moe_unpermute", rows="permuted_hidden_states", inverse="inv_permuted_idx")
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
    op = "moe_unpermute"
    check_plain(op, "permuted_hidden_states", permuted_hidden_states)
    device = permuted_hidden_states.device
    check_plain(op, "out", out)
    check_plain(op, "topk_weights", topk_weights, num_axes=2)
    check_plain(op, "inv_permuted_idx", inv_permuted_idx, device=device, dtype=torch.int32)
    if inv_permuted_idx.numel() != topk_weights.numel():
        raise ValueError(
            f"{op}: inv_permuted_idx: expected {topk_weights.numel()} elements, as topk_weights "
            f"has, got {inv_permuted_idx.numel()}"
        )
    check_contiguous(op, "inv_permuted_idx", inv_permuted_idx)
    inverse = inv_permuted_idx.view(topk_weights.shape)
    if expert_first_token_offset is not None:
        name = "expert_first_token_offset"
        check_plain(
            op, name, expert_first_token_offset, device=device, dtype=torch.int64, num_axes=1
        )
        if expert_first_token_offset.numel() == 0:
            raise ValueError(f"{op}: {name}: expected at least 1 element, got 0")
        # What torch reads here, and Tessera does not see.
        read = {"inv_permuted_idx": inv_permuted_idx, name: expert_first_token_offset}
        check_apart(op, {"out": out}, read)
        inverse = torch.where(inverse < expert_first_token_offset[-1], inverse, -1)
    tessera.moe_unpermute(permuted_hidden_states, topk_weights, inverse, out=out)
