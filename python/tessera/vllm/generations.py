"""Differences between versions of vLLM, each with the version that introduced it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

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
_TOPK = ("topk_weights", "topk_ids", "token_expert_indices", "gating_output")
_BIASED_TOPK = (*_TOPK, "renormalize", "e_score_correction_bias")
_HASH_TOPK = (
    "topk_weights",
    "topk_indices",
    *_BIASED_TOPK[2:5],
    "routed_scaling_factor",
    "e_score_correction_bias",
    "input_tokens",
    "hash_indices_table",
)
_GROUPED_TOPK_OP = (
    "scores",
    "num_expert_group",
    "topk_group",
    "topk",
    "renormalize",
    "routed_scaling_factor",
    "bias",
    "scoring_func",
)
_SUM = ("input", "output")
_FUSED_TOPK = ("hidden_states", "gating_output", "topk", "renormalize", "indices_type")
_GROUPED_TOPK = (*_FUSED_TOPK[:4], "num_expert_group", "topk_group", "scoring_func")
_SCALED_GROUPED_TOPK = (*_GROUPED_TOPK, "routed_scaling_factor", "e_score_correction_bias")
_PERMUTE = ("hidden_states", "a1q_scale", "topk_ids", "n_expert", "n_local_expert", "expert_map")
_ALIGNED_PERMUTE = (*_PERMUTE, "align_block_size", "fill_invalid_expert")
_UNPERMUTE = (
    "out",
    "permuted_hidden_states",
    "topk_weights",
    "inv_permuted_idx",
    "expert_first_token_offset",
)

_FUSED_MOE = "vllm.model_executor.layers.fused_moe"
_IN_FUSED_MOE = f"{_FUSED_MOE}.fused_moe"
_IN_PERMUTE = f"{_FUSED_MOE}.moe_permute_unpermute"
_IN_FUSED_TOPK = f"{_FUSED_MOE}.router.fused_topk_router"
_IN_GROUPED_TOPK = f"{_FUSED_MOE}.router.grouped_topk_router"

Parameters = tuple[str, ...]
# A module, and the name of a function that it defines.
Function = tuple[str, str]


class Generation(NamedTuple):
    """vLLM's functions from one version up to the next generation.

    since: the version, major, minor and patch.
    ops: parameters of each served op in `vllm._custom_ops`.
    functions: parameters of each served Python function, with the module that defines it.
    wrapper: parameters of the Python function around the first op.
    tail_expert: the value that `moe_align_block_size` writes to `experts_ids` past the last block.
        The other ops have always written -1.
    room_for_used_experts: the wrapper allocates for min(N, E) experts rather than E.
    """

    since: tuple[int, int, int]
    ops: Mapping[str, Parameters]
    functions: Mapping[Function, Parameters]
    wrapper: Parameters = _WRAPPER
    tail_expert: int = 0
    room_for_used_experts: bool = False


class _Change(NamedTuple):
    """What a version changes; None stands for a function that is no longer there, or served."""

    since: tuple[int, int, int]
    ops: Mapping[str, Parameters] = MappingProxyType({})
    functions: Mapping[Function, Parameters | None] = MappingProxyType({})
    others: Mapping[str, Any] = MappingProxyType({})


def _after(generation: Generation, change: _Change) -> Generation:
    functions = {**generation.functions, **change.functions}
    return generation._replace(
        since=change.since,
        ops={**generation.ops, **change.ops},
        functions={function: names for function, names in functions.items() if names is not None},
        **change.others,
    )


_FIRST = Generation(
    (0, 9, 2),
    {"moe_align_block_size": _ALIGN, "topk_softmax": _TOPK, "moe_sum": _SUM},
    {
        (_IN_FUSED_MOE, "fused_topk"): _FUSED_TOPK,
        (_IN_FUSED_MOE, "grouped_topk"): (*_GROUPED_TOPK, "e_score_correction_bias"),
    },
)
_CHANGES = (
    _Change(
        (0, 10, 1),
        functions={
            (_IN_PERMUTE, "moe_permute"): _ALIGNED_PERMUTE,
            (_IN_PERMUTE, "moe_unpermute"): _UNPERMUTE,
        },
    ),
    _Change(
        (0, 10, 2),
        functions={
            (_IN_FUSED_MOE, "grouped_topk"): _SCALED_GROUPED_TOPK,
            (_IN_PERMUTE, "moe_permute"): (*_ALIGNED_PERMUTE, "permuted_hidden_states"),
        },
    ),
    _Change(
        (0, 11, 1),
        ops={
            "batched_moe_align_block_size": _BATCHED,
            "moe_lora_align_block_size": _LORA,
            "topk_softmax": (*_TOPK, "renormalize"),
            "grouped_topk": _GROUPED_TOPK_OP,
        },
    ),
    _Change(
        (0, 13, 0),
        ops={
            "moe_align_block_size": (*_ALIGN, "expert_map"),
            "moe_lora_align_block_size": (*_LORA, "expert_map"),
        },
        others={
            "wrapper": (*_WRAPPER, "ignore_invalid_experts"),
            "room_for_used_experts": True,
        },
    ),
    _Change(
        (0, 15, 0),
        ops={"topk_softmax": _BIASED_TOPK, "topk_sigmoid": _BIASED_TOPK},
        functions={
            (_IN_FUSED_MOE, "fused_topk"): None,
            (_IN_FUSED_MOE, "grouped_topk"): None,
            (_IN_FUSED_TOPK, "fused_topk"): (*_FUSED_TOPK, "scoring_func"),
            (_IN_GROUPED_TOPK, "grouped_topk"): _SCALED_GROUPED_TOPK,
        },
    ),
    _Change(
        (0, 16, 0),
        functions={(_IN_PERMUTE, "moe_permute"): (*_PERMUTE, "permuted_hidden_states")},
    ),
    _Change((0, 17, 0), others={"tail_expert": -1}),
    _Change((0, 20, 0), ops={"topk_hash_softplus_sqrt": _HASH_TOPK}),
    _Change(
        (0, 23, 0),
        functions={(_IN_PERMUTE, "moe_permute"): (*_PERMUTE, "permuted_hidden_states", "scratch")},
    ),
    _Change(
        (0, 26, 0),
        ops={
            "topk_sigmoid": (*_BIASED_TOPK, "routed_scaling_factor"),
            "moe_sum": (*_SUM, "topk_ids", "expert_map"),
        },
    ),
    _Change(
        (0, 27, 0),
        ops={
            "topk_softmax": (*_BIASED_TOPK, "is_padding"),
            "topk_sigmoid": (*_BIASED_TOPK, "routed_scaling_factor", "is_padding"),
            "topk_hash_softplus_sqrt": (*_HASH_TOPK, "is_padding"),
        },
        # It takes the padding of the batch from vLLM's context, and passes it to the ops.
        functions={(_IN_FUSED_TOPK, "fused_topk"): None},
    ),
    _Change(
        (0, 30, 0),
        ops={
            "topk_hash_softplus_sqrt": (*_HASH_TOPK, "is_padding", "bias_vl", "image_sentinel_lo"),
        },
    ),
    _Change(
        (0, 31, 0),
        ops={"moe_align_block_size": (*_ALIGN, "expert_map", "scatter_idx")},
        others={"wrapper": (*_WRAPPER, "ignore_invalid_experts", "return_scatter_idx")},
    ),
)
GENERATIONS = tuple(itertools.accumulate(_CHANGES, _after, initial=_FIRST))


def generation_of(version: str) -> Generation:
    """The generation of a vLLM version, such as 0.11.2 or 0.17.1rc1; the newest for others."""
    numbers = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", version)
    if numbers is None:  # a source tree calls itself "dev"
        return GENERATIONS[-1]
    wanted = tuple(int(number or 0) for number in numbers.groups())
    older = [generation for generation in GENERATIONS if generation.since <= wanted]
    return older[-1] if older else GENERATIONS[0]
