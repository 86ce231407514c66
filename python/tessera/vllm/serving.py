"""Which function of Tessera serves a function of vLLM."""

from __future__ import annotations

import functools

import torch

from tessera._patching import Function, by_name
from tessera.vllm import experts, ops, router, rows
from tessera.vllm.generations import Generation, Parameters

_OPS: dict[str, Function] = {
    "moe_align_block_size": ops.moe_align_block_size,
    "batched_moe_align_block_size": ops.batched_moe_align_block_size,
    "moe_lora_align_block_size": ops.moe_lora_align_block_size,
    "topk_softmax": router.topk_softmax,
    "topk_sigmoid": router.topk_sigmoid,
    "topk_hash_softplus_sqrt": router.topk_hash_softplus_sqrt,
    "grouped_topk": router.grouped_topk_op,
    "moe_sum": rows.moe_sum,
}
_FUNCTIONS: dict[str, Function] = {
    experts.IMPL: experts.fused_experts_impl,
    experts.APPLY: experts.triton_experts_apply,
    experts.KERNEL_EXPERTS: experts.kernel_experts,
    "fused_topk": router.fused_topk,
    router.COMPUTE_ROUTING: router.compute_routing,
    "grouped_topk": router.grouped_topk,
    "moe_permute": rows.moe_permute,
    "moe_unpermute": rows.moe_unpermute,
}


def op(name: str, generation: Generation) -> Function:
    """The function that serves an op of `vllm._custom_ops`; its parameters have vLLM's order."""
    serve = _OPS[name]
    if name == "moe_align_block_size":
        return functools.partial(serve, tail_expert=generation.tail_expert)
    return serve


def function(name: str, parameters: Parameters, generation: Generation) -> Function:
    """The function that serves a Python function of vLLM, which has these parameters."""
    serve = _FUNCTIONS[name]
    if name == experts.IMPL and generation.ignores_inplace and torch.__version__ >= (2, 9):
        serve = functools.partial(serve, ignores_inplace=True)
    if name == "moe_permute" and "fill_invalid_expert" in parameters:
        serve = functools.partial(serve, returns_experts=True)
    return by_name(serve, parameters)
