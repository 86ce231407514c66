"""The implementations that Tessera compares with on the CPU, as functions that can be judged.

cd bench && tessera verify --impl judged_peers:textbook
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tessera._outputs import output_sizes
from tessera.tools.bench.compositions import numpy_composition as compose_numpy
from tessera.tools.bench.compositions import torch_composition as compose_torch
from tessera.tools.bench.contender import HOST_LIBRARY, native_library


def numpy_composition(topk_ids: Any, *, block_size: int, num_experts: int) -> Any:
    """Sort, count, sum, scatter with NumPy; arrays [capacity], [ceil(capacity / B)], [1]."""
    num_slots, _, _ = output_sizes(topk_ids.size, block_size, num_experts, False)
    return compose_numpy(topk_ids, block_size, num_experts, num_slots)


def torch_composition(
    topk_ids: Any, *, block_size: int, num_experts: int, expert_map: Any = None
) -> Any:
    """The same with torch, on the device of `topk_ids`."""
    num_slots, _, _ = output_sizes(topk_ids.numel(), block_size, num_experts, False)
    return compose_torch(topk_ids, block_size, num_experts, num_slots, expert_map)


def textbook(topk_ids: Any, *, block_size: int, num_experts: int) -> Any:
    """Count, padded prefix sum, scatter; NumPy's int32 ids."""
    return _native("textbook", topk_ids, block_size, num_experts)


def thread_local_counts(topk_ids: Any, *, block_size: int, num_experts: int) -> Any:
    """The algorithm of SGLang's CPU path on two threads; NumPy's int32 ids."""
    return _native("thread_local_counts", topk_ids, block_size, num_experts)


def _native(name: str, topk_ids: Any, block_size: int, num_experts: int) -> Any:
    if topk_ids.dtype != np.int32:
        raise TypeError(f"{name}: topk_ids: expected int32, got {topk_ids.dtype}")
    num_slots, num_blocks, _ = output_sizes(topk_ids.size, block_size, num_experts, False)
    outputs = tuple(np.empty(length, np.int32) for length in (num_slots, num_blocks, 1))
    call = native_library(HOST_LIBRARY).function("host_seconds")
    call(name, topk_ids, None, *outputs, block_size, num_experts, 2, 1, 1)  # 2 threads, 1 window
    return outputs
