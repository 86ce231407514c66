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
_COMPUTE_ROUTING = ("self", "hidden_states", "router_logits", "indices_type")
_PERMUTE = ("hidden_states", "a1q_scale", "topk_ids", "n_expert", "n_local_expert", "expert_map")
_ALIGNED_PERMUTE = (*_PERMUTE, "align_block_size", "fill_invalid_expert")
_UNPERMUTE = (
    "out",
    "permuted_hidden_states",
    "topk_weights",
    "inv_permuted_idx",
    "expert_first_token_offset",
)

_EXPERTS = ("hidden_states", "w1", "w2", "topk_weights", "topk_ids")
_EXPERTS_OPTIONS = ("activation", "apply_router_weight_on_input")
_QUANTISED = ("use_fp8_w8a8", "use_int8_w8a8", "use_int8_w8a16", "use_int4_w4a16")
_EXPERTS_LAST = (
    "per_channel_quant",
    "global_num_experts",
    "expert_map",
    "w1_scale",
    "w2_scale",
    "w1_zp",
    "w2_zp",
    "a1_scale",
    "a2_scale",
    "block_shape",
)
_MXFP4 = ("use_mxfp4_w4a4", *_EXPERTS_LAST)
_OCP_MX = ("ocp_mx_scheme", *_EXPERTS_LAST)
_BIASES = ("w1_bias", "w2_bias")
_APPLY = (
    "self",
    "output",
    *_EXPERTS,
    "activation",
    "global_num_experts",
    "expert_map",
    "a1q_scale",
    "a2_scale",
    "workspace13",
    "workspace2",
    "expert_tokens_meta",
    "apply_router_weight_on_input",
)
_KERNEL_EXPERTS = (
    "self",
    "in_dtype",
    "a1q",
    "a1q_scale",
    *_EXPERTS[1:],
    "activation",
    "global_num_experts",
    "local_num_experts",
    "expert_map",
    "apply_router_weight_on_input",
    "expert_tokens_meta",
    "output_alias",
)

_FUSED_MOE = "vllm.model_executor.layers.fused_moe"
_IN_FUSED_MOE = f"{_FUSED_MOE}.fused_moe"
_IN_PERMUTE = f"{_FUSED_MOE}.moe_permute_unpermute"
_IN_FUSED_TOPK = f"{_FUSED_MOE}.router.fused_topk_router"
_IN_GROUPED_TOPK = f"{_FUSED_MOE}.router.grouped_topk_router"
_IN_TRITON = f"{_FUSED_MOE}.experts.triton_moe"
_IN_KERNEL = f"{_FUSED_MOE}.modular_kernel"

# Where versions define TritonExperts.
TRITON_MODULES = (_IN_FUSED_MOE, _IN_TRITON)
# The functions that compute experts.
EXPERTS = (
    "fused_experts_impl",
    "TritonExperts.apply",
    "FusedMoEKernelModularImpl._fused_experts",
)
# The first parameters of `kernel`; the last is the object with `apply`.
KERNEL = ("self", "prepare_finalize", "fused_experts")

Parameters = tuple[str, ...]
# A module, and the name of a function or method that it defines.
Function = tuple[str, str]


class Generation(NamedTuple):
    """vLLM's functions from one version up to the next generation.

    since: the version, major, minor and patch.
    ops: parameters of each served op in `vllm._custom_ops`.
    functions: parameters of each served Python function, with the module that defines it.
    kernel: what makes the object that holds a layer's experts, of whichever backend; None where a
        layer without expert parallelism has no such object.
    wrapper: parameters of the Python function around the first op.
    tail_expert: the value that `moe_align_block_size` writes to `experts_ids` past the last block.
        The other ops have always written -1.
    room_for_used_experts: the wrapper allocates for min(N, E) experts rather than E.
    ignores_inplace: with torch 2.9 and newer `fused_experts_impl` writes to a new tensor, whatever
        `inplace` says.
    """

    since: tuple[int, int, int]
    ops: Mapping[str, Parameters]
    functions: Mapping[Function, Parameters]
    kernel: Function | None = None
    wrapper: Parameters = _WRAPPER
    tail_expert: int = 0
    room_for_used_experts: bool = False
    ignores_inplace: bool = False


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


_IMPL = (_IN_FUSED_MOE, "fused_experts_impl")

_FIRST = Generation(
    (0, 9, 2),
    {"moe_align_block_size": _ALIGN, "topk_softmax": _TOPK, "moe_sum": _SUM},
    {
        (_IN_FUSED_MOE, "fused_topk"): _FUSED_TOPK,
        (_IN_FUSED_MOE, "grouped_topk"): (*_GROUPED_TOPK, "e_score_correction_bias"),
        _IMPL: (*_EXPERTS, "inplace", *_EXPERTS_OPTIONS, *_QUANTISED, *_EXPERTS_LAST),
    },
)
_CHANGES = (
    _Change(
        (0, 10, 0),
        functions={_IMPL: (*_EXPERTS, "inplace", *_EXPERTS_OPTIONS, *_QUANTISED, *_MXFP4)},
    ),
    _Change(
        (0, 10, 1),
        functions={
            _IMPL: (
                *_EXPERTS,
                "inplace",
                "activation",
                "is_act_and_mul",
                "apply_router_weight_on_input",
                *_QUANTISED,
                *_MXFP4,
                *_BIASES,
            ),
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
        (0, 11, 0),
        functions={
            _IMPL: (*_EXPERTS, "inplace", *_EXPERTS_OPTIONS, *_QUANTISED, *_MXFP4, *_BIASES),
            (_IN_FUSED_MOE, "TritonExperts.apply"): _APPLY,
        },
    ),
    _Change(
        (0, 11, 1),
        functions={
            _IMPL: (*_EXPERTS, "inplace", *_EXPERTS_OPTIONS, *_QUANTISED, *_OCP_MX, *_BIASES),
        },
        ops={
            "batched_moe_align_block_size": _BATCHED,
            "moe_lora_align_block_size": _LORA,
            "topk_softmax": (*_TOPK, "renormalize"),
            "grouped_topk": _GROUPED_TOPK_OP,
        },
        others={"ignores_inplace": True},
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
    _Change((0, 14, 0), others={"kernel": (_IN_KERNEL, "FusedMoEModularKernel.__init__")}),
    _Change(
        (0, 15, 0),
        ops={"topk_softmax": _BIASED_TOPK, "topk_sigmoid": _BIASED_TOPK},
        functions={
            (_IN_FUSED_MOE, "fused_topk"): None,
            (_IN_FUSED_MOE, "grouped_topk"): None,
            (_IN_FUSED_TOPK, "fused_topk"): (*_FUSED_TOPK, "scoring_func"),
            (_IN_FUSED_TOPK, "FusedTopKRouter._compute_routing"): _COMPUTE_ROUTING,
            (_IN_GROUPED_TOPK, "grouped_topk"): _SCALED_GROUPED_TOPK,
        },
    ),
    _Change(
        (0, 16, 0),
        functions={(_IN_PERMUTE, "moe_permute"): (*_PERMUTE, "permuted_hidden_states")},
        others={"ignores_inplace": False},
    ),
    _Change(
        (0, 17, 0), others={"tail_expert": -1, "kernel": (_IN_KERNEL, "FusedMoEKernel.__init__")}
    ),
    _Change((0, 20, 0), ops={"topk_hash_softplus_sqrt": _HASH_TOPK}),
    _Change(
        (0, 21, 0),
        functions={
            (_IN_FUSED_MOE, "TritonExperts.apply"): None,
            (_IN_TRITON, "TritonExperts.apply"): _APPLY,
            (_IN_KERNEL, "FusedMoEKernelModularImpl._fused_experts"): _KERNEL_EXPERTS,
        },
    ),
    _Change(
        (0, 23, 0),
        functions={_IMPL: (*_EXPERTS, *_EXPERTS_OPTIONS, *_QUANTISED, *_OCP_MX, *_BIASES)},
    ),
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
        functions={
            (_IN_FUSED_TOPK, "fused_topk"): None,
            (_IN_FUSED_TOPK, "FusedTopKRouter._compute_routing"): None,
        },
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
