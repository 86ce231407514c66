"""Calls on CUDA devices for tests to compare with the same calls on the host."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import numpy as np

import tessera
from tessera._outputs import ALIGN, output_sizes
from tessera.contract import synthetic_topk_ids

# (tokens, experts, top_k, block_size): one for each way in which the policy runs a call, and more.
SHAPES = [
    (0, 8, 2, 16),
    (1, 64, 2, 16),
    (16, 256, 8, 16),
    (64, 256, 8, 16),
    (256, 64, 2, 64),
    (1024, 256, 8, 64),
    (4096, 64, 2, 128),
    (4096, 512, 8, 100),
    (16384, 256, 8, 128),
    (65536, 8, 2, 128),
    (300, 20_000, 4, 8),
]
CANARY = -0x21524111


def implementations() -> list[str]:
    """Names of CUDA implementations; without any, one that stands for them in the skips."""
    available = {backend.name for backend in tessera.backends() if backend.available}
    if "cuda" not in available:
        return ["cuda"]
    return [one.name for one in tessera.explain(1, 1, 1, device="cuda")]


@functools.cache
def host_ids(shape: tuple[int, int, int, int], seed: int, broken: bool = False) -> Any:
    """Skewed ids of a shape, int32; `broken`: about one in nine lies outside [0, experts)."""
    tokens, num_experts, top_k, _ = shape
    topk_ids = synthetic_topk_ids(tokens, num_experts, top_k, zipf=True, seed=seed)
    if broken:
        topk_ids.reshape(-1)[seed % 9 :: 9] = [-1, num_experts, 2**31 - 1, -(2**31)][seed % 4]
    return topk_ids


def options_of(shape: tuple[int, int, int, int]) -> dict[str, Any]:
    return {"num_experts": shape[1], "block_size": shape[3]}


def assert_same(found: Iterable[Any], expected: Iterable[Any]) -> None:
    """Compare outputs on any device with NumPy outputs."""
    for got, want in zip(found, expected, strict=True):
        np.testing.assert_array_equal(got.cpu().numpy() if hasattr(got, "cpu") else got, want)


def shifted(array: Any, shift: int) -> tuple[Any, Any]:
    """A copy of a NumPy array on the current CUDA device, `shift` elements past where its memory
    begins, and that memory.
    """
    import torch

    memory = torch.empty(array.size + shift + 8, dtype=torch.from_numpy(array).dtype, device="cuda")
    memory.view(torch.uint8).fill_(0xDE)
    part = memory[shift : shift + array.size]
    part.copy_(torch.from_numpy(array.reshape(-1)))
    return part, memory


def call_shifted(
    topk_ids: Any, options: dict[str, Any], implementation: str, shift: int
) -> list[Any]:
    """The five outputs, as NumPy arrays, of a call by one implementation, with arrays `shift`
    elements past an aligned address, workspace and all, poisoned before and checked around it.

    Raises:
        NotImplementedError: the implementation does not take this shape.
    """
    import torch

    block_size, num_experts = options["block_size"], options["num_experts"]
    pad_sorted_ids = options.get("pad_sorted_ids", False)
    filtered_group = options.get("filtered_group", False)
    sizes = (topk_ids.size, block_size, num_experts, pad_sorted_ids)
    device = torch.cuda.current_device()
    num_slots, num_blocks, workspace_bytes = output_sizes(
        *sizes, device, implementation, filtered_group
    )
    ids, _ = shifted(topk_ids, shift)
    expert_map = options.get("expert_map")
    if expert_map is not None:
        expert_map, _ = shifted(expert_map, shift)
    poison = [
        np.full(length, CANARY, np.int32) for length in (num_slots, num_blocks, 1, num_experts, 1)
    ]
    outputs = [shifted(array, shift) for array in poison]
    workspace, workspace_memory = shifted(np.full(workspace_bytes, 0xDE, np.uint8), shift)
    arrays = [array for array, _ in outputs]
    ALIGN.call(
        workspace,
        0,
        implementation,
        ids,
        expert_map,
        *arrays[:3],
        block_size,
        num_experts,
        options.get("ignore_invalid_experts", False),
        pad_sorted_ids,
        options.get("tail_expert", -1),
        *arrays[3:],
        None,
        None,
        options.get("map_tail", False),
        filtered_group,
    )
    for array, memory in [*outputs, (workspace, workspace_memory)]:
        around = torch.cat([memory[:shift], memory[shift + array.numel() :]])
        assert around.view(torch.uint8).eq(0xDE).all(), "memory beside an array was written"
    return [array.cpu().numpy() for array, _ in outputs]


def call_on_host(topk_ids: Any, options: dict[str, Any]) -> list[Any]:
    """The five outputs of the same call on the host."""
    counts, dropped = np.empty(options["num_experts"], np.int32), np.empty(1, np.int32)
    found = tessera.align_block_size(topk_ids, **options, expert_counts=counts, num_dropped=dropped)
    return [*found, counts, dropped]
