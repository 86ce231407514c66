"""The ops of `tessera bench --op`, each described in a separate module."""

from __future__ import annotations

import dataclasses

from tessera.tools.bench.op import Op
from tessera.tools.bench.ops import (
    align_block_size,
    batched_align_block_size,
    fused_experts,
    fused_experts_cuda,
    fused_moe,
    lora_align_block_size,
    moe_permute,
    moe_sum,
    moe_unpermute,
    quantize_fp8,
    select_and_align,
    select_experts,
)

# The first is the default.
OPS: dict[str, Op] = {
    op.name: op
    for op in (
        align_block_size.OP,
        batched_align_block_size.OP,
        lora_align_block_size.OP,
        moe_permute.OP,
        moe_sum.OP,
        moe_unpermute.OP,
        quantize_fp8.OP,
        dataclasses.replace(fused_experts.OP, cuda=fused_experts_cuda.OP),
        select_experts.OP,
        fused_moe.OP,
        select_and_align.OP,
    )
}
