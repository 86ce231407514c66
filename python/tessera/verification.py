"""Compares an implementation with the reference, bit for bit, and with the contract."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from tessera._device import HOST
from tessera._framework import on_device, on_host
from tessera._outputs import ALIGN, REFERENCE, AlignedBlocks, output_sizes
from tessera.contract import Case, case_inputs, contract_violations
from tessera.statistics import RoutingStatistics
from tessera.strict import Findings

# In every word of the outputs before a call, and around them: neither an index nor an expert.
_POISON = -0x21524111
_CANARIES = 16

_POISON_BYTE = 0xDE
_CANARY_BYTES = 61  # odd: a workspace may have any alignment


class _Output(NamedTuple):
    name: str
    length: int
    dtype: Any


def _outputs(case: Case) -> list[_Output | None]:
    """The outputs of a call in the order of the FFI, None in the place of one not asked for."""
    num_slots, num_blocks, _ = output_sizes(*_shape(case), HOST, REFERENCE, case.filtered_group)
    return [
        _Output("sorted_token_ids", num_slots + case.extra_length, np.int32),
        _Output("expert_ids", num_blocks + case.extra_length, np.int32),
        _Output("num_tokens_post_pad", 1, np.int32),
        _Output("expert_counts", case.num_experts, np.int32),
        _Output("num_dropped", 1, np.int32),
        _Output("statistics", len(RoutingStatistics._fields), np.float64)
        if case.statistics
        else None,
        _Output("validation", len(Findings._fields), np.int64) if case.validation else None,
    ]


def _shape(case: Case) -> tuple[int, int, int, bool]:
    return case.num_ids, case.block_size, case.num_experts, case.pad_sorted_ids


def _guarded(output: _Output | None, cuda_index: int) -> tuple[Any, Any]:
    """A poisoned array for this output, and the memory that it lies in the middle of."""
    if output is None:
        return None, None
    memory = np.full(output.length + 2 * _CANARIES, _POISON, output.dtype)
    memory = on_device(memory, cuda_index)
    return memory, memory[_CANARIES : _CANARIES + output.length]


def _workspace(case: Case, implementation: str, cuda_index: int) -> tuple[Any, Any]:
    """The same of bytes, as many as the implementation asks for; on the host, none."""
    size = 0
    if cuda_index != HOST:
        size = output_sizes(*_shape(case), cuda_index, implementation, case.filtered_group)[2]
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
    cuda_index: int,
) -> tuple[dict[str, Any], list[str]]:
    """The outputs of a call by name, and the names of those whose surroundings were written."""
    workspace_memory, workspace = _workspace(case, implementation, cuda_index)
    outputs = _outputs(case)
    guarded = [_guarded(output, cuda_index) for output in outputs]
    arrays = [array for _, array in guarded]
    ALIGN.call_long(
        workspace,
        0,
        implementation,
        on_device(topk_ids, cuda_index),
        on_device(expert_map, cuda_index),
        *arrays[:3],
        case.block_size,
        case.num_experts,
        case.ignore_invalid_experts,
        case.pad_sorted_ids,
        case.tail_expert,
        *arrays[3:],
        case.map_tail,
        case.filtered_group,
    )
    around = {
        output.name: np.asarray(on_host(memory))
        for output, (memory, _) in zip(outputs, guarded, strict=True)
        if output is not None
    }
    found = {name: memory[_CANARIES:-_CANARIES] for name, memory in around.items()}
    around["workspace"] = np.asarray(on_host(workspace_memory))
    return found, [name for name, memory in around.items() if not _is_whole(memory)]


def problems(case: Case, seed: int, implementation: str, cuda_index: int = 0) -> list[str]:
    """What is wrong with an implementation on one case; nothing if all is well.

    Those of the CUDA backend run on the device `cuda_index`, on arrays of torch.

    Raises:
        NotImplementedError: the implementation does not take this shape.
    """
    topk_ids, expert_map = case_inputs(case, seed)
    inputs = (case, topk_ids, expert_map)
    place = cuda_index if implementation.startswith("cuda/") else HOST
    found, trampled = _run(*inputs, implementation, place)
    expected, _ = _run(*inputs, REFERENCE, HOST)

    messages = [f"memory beside {name} was written" for name in trampled]
    for name, got in found.items():
        want = expected[name]
        if differing := np.flatnonzero(got != want).tolist():
            at = differing[0]
            messages.append(f"{name}[{at}]: {REFERENCE} has {want[at]}, found {got[at]}")
    violations = contract_violations(
        topk_ids,
        AlignedBlocks(**{name: found.pop(name) for name in AlignedBlocks._fields}),
        block_size=case.block_size,
        num_experts=case.num_experts,
        expert_map=expert_map,
        ignore_invalid_experts=case.ignore_invalid_experts,
        pad_sorted_ids=case.pad_sorted_ids,
        tail_expert=case.tail_expert,
        map_tail=case.map_tail,
        filtered_group=case.filtered_group,
        **found,
    )
    return messages + [violation.message for violation in violations]
