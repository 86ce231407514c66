"""Differences between versions of vLLM, each with the version that introduced it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

_ALIGN = (
    "topk_ids",
    "num_experts",
    "block_size",
    "sorted_token_ids",
    "experts_ids",
    "num_tokens_post_pad",
)
_BATCHED = (
    "max_tokens_per_batch",
    "block_size",
    "expert_num_tokens",
    "sorted_ids",
    "expert_ids",
    "num_tokens_post_pad",
)
_LORA = (
    "topk_ids",
    "token_lora_mapping",
    "num_experts",
    "block_size",
    "max_loras",
    "max_num_tokens_padded",
    "max_num_m_blocks",
    "sorted_token_ids",
    "experts_ids",
    "num_tokens_post_pad",
    "adapter_enabled",
    "lora_ids",
)
_WRAPPER = ("topk_ids", "block_size", "num_experts", "expert_map", "pad_sorted_ids")


class Generation(NamedTuple):
    """vLLM's functions from one version up to the next generation.

    since: the version, major, minor and patch.
    ops: parameters of each alignment op in `vllm._custom_ops`.
    wrapper: parameters of the Python function around the first op.
    tail_expert: the value that `moe_align_block_size` writes to `experts_ids` past the last block.
        The other ops have always written -1.
    room_for_used_experts: the wrapper allocates for min(N, E) experts rather than E.
    """

    since: tuple[int, int, int]
    ops: Mapping[str, tuple[str, ...]]
    wrapper: tuple[str, ...] = _WRAPPER
    tail_expert: int = 0
    room_for_used_experts: bool = False


GENERATIONS = (
    Generation((0, 9, 2), {"moe_align_block_size": _ALIGN}),
    Generation(
        (0, 11, 1),
        {
            "moe_align_block_size": _ALIGN,
            "batched_moe_align_block_size": _BATCHED,
            "moe_lora_align_block_size": _LORA,
        },
    ),
    Generation(
        (0, 13, 0),
        {
            "moe_align_block_size": (*_ALIGN, "expert_map"),
            "batched_moe_align_block_size": _BATCHED,
            "moe_lora_align_block_size": (*_LORA, "expert_map"),
        },
        wrapper=(*_WRAPPER, "ignore_invalid_experts"),
        room_for_used_experts=True,
    ),
    Generation(
        (0, 17, 0),
        {
            "moe_align_block_size": (*_ALIGN, "expert_map"),
            "batched_moe_align_block_size": _BATCHED,
            "moe_lora_align_block_size": (*_LORA, "expert_map"),
        },
        wrapper=(*_WRAPPER, "ignore_invalid_experts"),
        tail_expert=-1,
        room_for_used_experts=True,
    ),
    Generation(
        (0, 31, 0),
        {
            "moe_align_block_size": (*_ALIGN, "expert_map", "scatter_idx"),
            "batched_moe_align_block_size": _BATCHED,
            "moe_lora_align_block_size": (*_LORA, "expert_map"),
        },
        wrapper=(*_WRAPPER, "ignore_invalid_experts", "return_scatter_idx"),
        tail_expert=-1,
        room_for_used_experts=True,
    ),
)


def generation_of(version: str) -> Generation:
    """The generation of a vLLM version, such as 0.11.2 or 0.17.1rc1; the newest for others."""
    numbers = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", version)
    if numbers is None:  # a source tree calls itself "dev"
        return GENERATIONS[-1]
    wanted = tuple(int(number or 0) for number in numbers.groups())
    older = [generation for generation in GENERATIONS if generation.since <= wanted]
    return older[-1] if older else GENERATIONS[0]
