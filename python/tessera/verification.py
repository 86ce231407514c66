"""Compares an implementation with the reference, bit for bit, and with the contract."""

from __future__ import annotations

from typing import Any

import numpy as np

from tessera._library import load
from tessera.align_block_size import AlignedBlocks
from tessera.contract import Case, case_inputs, contract_violations

REFERENCE = "cpu/reference"

# In every word of the outputs before a call, and around them: neither an index nor an expert.
_POISON = -0x21524111
_CANARIES = 16

_OUTPUTS = (*AlignedBlocks._fields, "expert_counts", "num_dropped")


def _guarded(length: int) -> tuple[Any, Any]:
    """A poisoned int32 array of this length, and the memory that it lies in the middle of."""
    memory = np.full(length + 2 * _CANARIES, _POISON, np.int32)
    return memory, memory[_CANARIES : _CANARIES + length]


def _run(
    case: Case, topk_ids: Any, expert_map: Any, implementation: str, lengths: list[int]
) -> tuple[list[Any], list[str]]:
    """The five outputs of a call, and the names of those whose surroundings were written."""
    guarded = [_guarded(length) for length in lengths]
    outputs = [array for _, array in guarded]
    load().align_long(
        topk_ids,
        expert_map,
        *outputs,
        case.block_size,
        case.num_experts,
        case.ignore_invalid_experts,
        case.pad_sorted_ids,
        case.tail_expert,
        0,
        implementation,
    )
    trampled = [
        name
        for name, (memory, _) in zip(_OUTPUTS, guarded, strict=True)
        if np.any(memory[:_CANARIES] != _POISON) or np.any(memory[-_CANARIES:] != _POISON)
    ]
    return outputs, trampled


def problems(case: Case, seed: int, implementation: str) -> list[str]:
    """What is wrong with an implementation on one case; nothing if all is well."""
    topk_ids, expert_map = case_inputs(case, seed)
    least = np.empty(2, np.int64)
    load().function("align_block_size_sizes")(
        case.num_ids, case.block_size, case.num_experts, case.pad_sorted_ids, least
    )
    lengths = [int(length) + case.extra_length for length in least] + [1, case.num_experts, 1]
    found, trampled = _run(case, topk_ids, expert_map, implementation, lengths)
    expected, _ = _run(case, topk_ids, expert_map, REFERENCE, lengths)

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
