"""The ops that `tessera bench --op` knows, each described in a module of its own."""

from __future__ import annotations

from tessera.tools.bench.op import Op
from tessera.tools.bench.ops import (
    align_block_size,
    batched_align_block_size,
    lora_align_block_size,
)

# The first is the usual one.
OPS: dict[str, Op] = {
    op.name: op
    for op in (align_block_size.OP, batched_align_block_size.OP, lora_align_block_size.OP)
}
