"""The named tuples that ops with several outputs return."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from typing_extensions import NamedTuple

Array_co = TypeVar("Array_co", covariant=True)


class AlignedBlocks(NamedTuple, Generic[Array_co]):
    """Outputs of the alignment ops: int32 arrays, of one dimension but for `lora_align_block_size`.

    sorted_token_ids: [capacity or more], indices into the flattened `topk_ids`, grouped by expert
        and ascending inside a group. Padding, and all that follows the last group, is N.
    expert_ids: [ceil(capacity / block_size) or more], the expert of each block, then `tail_expert`.
    num_tokens_post_pad: [1], the padded total, a multiple of `block_size`.
    """

    sorted_token_ids: Array_co
    expert_ids: Array_co
    num_tokens_post_pad: Array_co


class SelectedExperts(NamedTuple, Generic[Array_co]):
    """Outputs of `select_experts`.

    topk_weights: float32 [T, k], the weight of each chosen expert.
    topk_ids: int32 [T, k], the chosen experts of each token, the best first.
    """

    topk_weights: Array_co
    topk_ids: Array_co


class SelectedAndAligned(NamedTuple, Generic[Array_co]):
    """Outputs of `select_and_align`: those of `select_experts`, then those of `align_block_size`.

    topk_weights: float32 [T, k], the weight of each chosen expert.
    topk_ids: int32 [T, k], the chosen experts of each token, the best first.
    sorted_token_ids: int32 [capacity or more], indices into the flattened `topk_ids`, grouped by
        expert and ascending inside a group. Padding, and all that follows the last group, is T * k.
    expert_ids: int32 [ceil(capacity / block_size) or more], the expert of each block, then -1.
    num_tokens_post_pad: int32 [1], the padded total, a multiple of `block_size`.
    """

    topk_weights: Array_co
    topk_ids: Array_co
    sorted_token_ids: Array_co
    expert_ids: Array_co
    num_tokens_post_pad: Array_co


class PermutedTokens(NamedTuple, Generic[Array_co]):
    """Outputs of `moe_permute`.

    rows: [capacity, H], rows of tokens in the order of their experts, of the data type of `x`.
    expert_offsets: int32 [num_experts + 1], the first row of each expert, then the rows in use.
    inverse: int32 [T, k], the row of each pair, -1 for a pair that does not count.
    """

    rows: Array_co
    expert_offsets: Array_co
    inverse: Array_co


class QuantizedFp8(NamedTuple, Generic[Array_co]):
    """Outputs of `quantize_fp8`.

    values: float8_e4m3fn [T, H], or its bits as uint8 in frameworks without that type.
    scales: float32, one for each group: values times scales is about x.
    """

    values: Array_co
    scales: Array_co


_BY_OUTPUTS: dict[tuple[str, ...], Any] = {
    kind._fields: kind
    for kind in (
        AlignedBlocks,
        PermutedTokens,
        QuantizedFp8,
        SelectedAndAligned,
        SelectedExperts,
    )
}


def result_type(outputs: tuple[str, ...]) -> Any:
    """The named tuple of outputs with these names; None for a single output."""
    return _BY_OUTPUTS[outputs] if len(outputs) > 1 else None
