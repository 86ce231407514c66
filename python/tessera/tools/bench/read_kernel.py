"""A kernel in Triton that reads an array and adds up its elements."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def sum_kernel(words, sums, step: tl.constexpr, num_steps: tl.constexpr):  # type: ignore[no-untyped-def]
    """sums[program]: the sum of the program's `step` times `num_steps` words."""
    program = tl.program_id(0).to(tl.int64)
    offsets = program * (step * num_steps) + tl.arange(0, step)
    total = tl.zeros((step,), tl.int32)
    for i in range(num_steps):
        total += tl.load(words + offsets + i * step)
    tl.store(sums + program, tl.sum(total, 0))
