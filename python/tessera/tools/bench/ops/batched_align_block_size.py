"""`batched_align_block_size`, with `align_block_size` for the same tokens in the same groups."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

import tessera
from tessera.tools.bench.calls import CallProblem, call_contenders, placed
from tessera.tools.bench.contender import TimedCall
from tessera.tools.bench.op import Op


@dataclass(frozen=True)
class Shape:
    """Batches x rows of each / block size; every number of tokens is equally likely."""

    num_batches: int
    max_tokens_per_batch: int
    block_size: int

    @property
    def name(self) -> str:
        """The sizes."""
        return f"{self.num_batches}x{self.max_tokens_per_batch}/{self.block_size}"


SHAPES = [
    Shape(8, 64, 16),
    Shape(32, 128, 16),
    Shape(32, 256, 64),
    Shape(256, 1024, 128),
    Shape(256, 4096, 128),
    Shape(512, 4096, 128),
]


def make_problem(shape: Shape, device: str, seed: int) -> CallProblem:
    """Calls of both ops: this one gets the groups that `align_block_size` has to compute."""
    random = np.random.default_rng(seed)
    host_counts = random.integers(0, shape.max_tokens_per_batch + 1, shape.num_batches, np.int32)
    host_ids = np.repeat(np.arange(shape.num_batches, dtype=np.int32), host_counts)
    random.shuffle(host_ids)
    counts, ids = placed(host_counts, device), placed(host_ids, device)
    options: dict[str, Any] = {
        "max_tokens_per_batch": shape.max_tokens_per_batch,
        "block_size": shape.block_size,
    }
    align = functools.partial(
        tessera.align_block_size, ids, block_size=shape.block_size, num_experts=shape.num_batches
    )
    return CallProblem(
        shape,
        device,
        TimedCall.of(
            functools.partial(tessera.batched_align_block_size, counts, **options), counts
        ),
        functools.partial(tessera.batched_contract_violations, counts, **options),
        {"align_block_size": TimedCall.of(align, ids)},
        num_words=shape.num_batches,
    )


OP = Op(
    "batched_align_block_size",
    {"quick": SHAPES},
    make_problem,
    lambda device: call_contenders(device, "align_block_size"),
    results="family",
)
