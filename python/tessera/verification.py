"""Compares an implementation with the reference, bit for bit, and with the contract."""

from __future__ import annotations

from typing import Any

import numpy as np

from tessera._device import HOST
from tessera._frameworks import on_device, on_host
from tessera._library import load
from tessera.align_block_size import AlignedBlocks, output_sizes
from tessera.contract import Case, case_inputs, contract_violations

REFERENCE = "cpu/reference"

# In every word of the outputs before a call, and around them: neither an index nor an expert.
_POISON = -0x21524111
_CANARIES = 16

_POISON_BYTE = 0xDE
_CANARY_BYTES = 61  # odd: a workspace may have any alignment

_OUTPUTS = (*AlignedBlocks._fields, "expert_counts", "num_dropped")


def _guarded(length: int, cuda_index: int) -> tuple[Any, Any]:
    """A poisoned int32 array of this length, and the memory that it lies in the middle of."""
    memory = on_device(np.full(length + 2 * _CANARIES, _POISON, np.int32), cuda_index)
    return memory, memory[_CANARIES : _CANARIES + length]


def _workspace(case: Case, implementation: str, cuda_index: int) -> tuple[Any, Any]:
    """The same of bytes, as many as the implementation asks for; on the host, none."""
    size = 0
    if cuda_index != HOST:
        shape = (case.num_ids, case.block_size, case.num_experts, case.pad_sorted_ids)
        size = output_sizes(*shape, cuda_index, implementation)[2]
    memory = on_device(np.full(size + 2 * _CANARY_BYTES, _POISON_BYTE, np.uint8), cuda_index)
    return memory, memory[_CANARY_BYTES : _CANARY_BYTES + size]


def _is_whole(memory: Any) -> bool:
    size, poison = (_CANARIES, _POISON)
    if memory.dtype == np.uint8:
        size, poison = (_CANARY_BYTES, _POISON_BYTE)
    return bool(np.all(memory[:size] == poison) and np.all(memory[-size:] == poison))


def _run(
    case: Case,
    topk_ids: Any,
    expert_map: Any,
    implementation: str,
    lengths: list[int],
    cuda_index: int,
) -> tuple[list[Any], list[str]]:
    """The five outputs of a call, and the names of those whose surroundings were written."""
    workspace_memory, workspace = _workspace(case, implementation, cuda_index)
    guarded = [_guarded(length, cuda_index) for length in lengths]
    load().align_long(
        on_device(topk_ids, cuda_index),
        on_device(expert_map, cuda_index),
        *(array for _, array in guarded),
        None,
        None,
        workspace,
        case.block_size,
        case.num_experts,
        case.ignore_invalid_experts,
        case.pad_sorted_ids,
        case.tail_expert,
        False,
        False,
        0,
        implementation,
    )
    memories = [np.asarray(on_host(memory)) for memory, _ in guarded]
    around = dict(zip(_OUTPUTS, memories, strict=True))
    around["workspace"] = np.asarray(on_host(workspace_memory))
    trampled = [name for name, memory in around.items() if not _is_whole(memory)]
    return [memory[_CANARIES:-_CANARIES] for memory in memories], trampled


def problems(case: Case, seed: int, implementation: str, cuda_index: int = 0) -> list[str]:
    """What is wrong with an implementation on one case; nothing if all is well.

    Those of the CUDA backend run on the device `cuda_index`, on arrays of torch.

    Raises:
        NotImplementedError: the implementation does not take this shape.
    """
    topk_ids, expert_map = case_inputs(case, seed)
    shape = (case.num_ids, case.block_size, case.num_experts, case.pad_sorted_ids)
    least = output_sizes(*shape, HOST, REFERENCE)[:2]
    lengths = [length + case.extra_length for length in least] + [1, case.num_experts, 1]
    inputs = (case, topk_ids, expert_map)
    place = cuda_index if implementation.startswith("cuda/") else HOST
    found, trampled = _run(*inputs, implementation, lengths, place)
    expected, _ = _run(*inputs, REFERENCE, lengths, HOST)

    messages = [f"memory beside {name} was written" for name in trampled]
    for name, got, want in zip(_OUTPUTS, found, expected, strict=True):
        if differing := np.flatnonzero(got != want).tolist():
            at = differing[0]
            messages.append(f"{name}[{at}]: {REFERENCE} has {want[at]}, found {got[at]}")
    violations = contract_violations(
        topk_ids,
        AlignedBlocks(*found[:3]),
        block_size=case.block_size,
        num_experts=case.num_experts,
        expert_map=expert_map,
        ignore_invalid_experts=case.ignore_invalid_experts,
        pad_sorted_ids=case.pad_sorted_ids,
        tail_expert=case.tail_expert,
        expert_counts=found[3],
        num_dropped=found[4],
    )
    return messages + [violation.message for violation in violations]
