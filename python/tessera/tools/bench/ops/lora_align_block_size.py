"""`lora_align_block_size`, with `align_block_size` for the same tokens in the same groups."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

import tessera
from tessera.contract import synthetic_topk_ids
from tessera.tools.bench.calls import CallProblem, call_contenders, placed
from tessera.tools.bench.contender import TimedCall
from tessera.tools.bench.op import Op


@dataclass(frozen=True)
class Shape:
    """Tokens x experts x top_k / block size, adapters; tokens of a request follow each other."""

    num_tokens: int
    num_experts: int
    top_k: int
    block_size: int
    max_loras: int

    @property
    def name(self) -> str:
        """The sizes."""
        sizes = f"{self.num_tokens}x{self.num_experts}x{self.top_k}/{self.block_size}"
        return f"{sizes}, {self.max_loras} adapters"


SHAPES = [
    Shape(16, 64, 8, 16, 4),
    Shape(64, 128, 8, 16, 8),
    Shape(256, 128, 8, 16, 8),
    Shape(2048, 128, 8, 64, 8),
    Shape(8192, 128, 8, 64, 4),
    Shape(8192, 64, 6, 64, 16),
]


def make_problem(shape: Shape, device: str, seed: int) -> CallProblem:
    """Calls of both ops; for `align_block_size`, each expert of each adapter is its own expert."""
    topk_ids = synthetic_topk_ids(shape.num_tokens, shape.num_experts, shape.top_k, seed=seed)
    random = np.random.default_rng(seed)
    mapping = np.sort(random.integers(0, shape.max_loras, shape.num_tokens, np.int32))
    joint_ids = placed(topk_ids + shape.num_experts * mapping[:, None], device)
    inputs = (placed(topk_ids, device), placed(mapping, device))
    options: dict[str, Any] = {
        "block_size": shape.block_size,
        "num_experts": shape.num_experts,
        "max_loras": shape.max_loras,
    }
    align = functools.partial(
        tessera.align_block_size,
        joint_ids,
        block_size=shape.block_size,
        num_experts=shape.num_experts * shape.max_loras,
    )
    return CallProblem(
        shape,
        device,
        TimedCall.of(
            functools.partial(tessera.lora_align_block_size, *inputs, **options), inputs[0]
        ),
        functools.partial(tessera.lora_contract_violations, *inputs, **options),
        {"align_block_size": TimedCall.of(align, joint_ids)},
        num_words=topk_ids.size + mapping.size,
    )


OP = Op(
    "lora_align_block_size",
    {"quick": SHAPES},
    make_problem,
    lambda device: call_contenders(device, "align_block_size"),
    results="family",
)
