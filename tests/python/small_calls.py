"""A small call of every op."""

from __future__ import annotations

from typing import Any

import numpy as np

IDS = np.array([[0, 1], [1, 2]], np.int32)
COUNTS = np.zeros(2, np.int32)
LOGITS = np.zeros((2, 3), np.float32)
WEIGHTS = np.zeros((2, 2), np.float32)
X = np.zeros((2, 128), np.float32)
EXPERTS = (np.zeros((3, 8, 128), np.float32), np.zeros((3, 128, 4), np.float32))
SIZES = {"block_size": 4, "num_experts": 3}

CALLS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "align_block_size": ((IDS,), SIZES),
    "batched_align_block_size": ((COUNTS,), {"max_tokens_per_batch": 4, "block_size": 4}),
    "lora_align_block_size": ((IDS, COUNTS), SIZES | {"max_loras": 2}),
    "fused_experts": ((X, *EXPERTS, WEIGHTS, IDS), {}),
    "fused_moe": ((X, *EXPERTS, LOGITS), {"top_k": 2}),
    "moe_permute": ((X, IDS), {"num_experts": 3}),
    "moe_sum": ((np.zeros((2, 2, 2), np.float32),), {}),
    "moe_unpermute": ((X, WEIGHTS, IDS), {}),
    "quantize_fp8": ((X,), {"group": 128}),
    "select_and_align": ((LOGITS,), {"top_k": 2, "block_size": 4}),
    "select_experts": ((LOGITS,), {"top_k": 2}),
}
