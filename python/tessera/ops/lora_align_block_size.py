"""`lora_align_block_size` for NumPy arrays, torch tensors and whatever else speaks DLPack."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, overload

import numpy as np
import numpy.typing as npt

from tessera._call import call
from tessera._frameworks import FRAMEWORKS
from tessera._op import Op
from tessera._results import AlignedBlocks
from tessera._torch_hook import call_traced, is_traced, register
from tessera._torch_registry import Shape, TorchOp
from tessera.contract import Violation, violations
from tessera.ops.align_block_size import symbolic_sizes

Array = TypeVar("Array")

_OP = Op("lora_align_block_size")


@overload
def lora_align_block_size(
    topk_ids: npt.NDArray[Any],
    token_lora_mapping: npt.NDArray[np.int32],
    *,
    block_size: int,
    num_experts: int,
    max_loras: int,
    adapter_enabled: Any = ...,
    lora_ids: Any = ...,
    expert_map: Any = ...,
    pad_sorted_ids: bool = ...,
    tail_expert: int = ...,
    out: tuple[npt.NDArray[np.int32], ...] | None = ...,
) -> AlignedBlocks[npt.NDArray[np.int32]]: ...


@overload
def lora_align_block_size(
    topk_ids: Array,
    token_lora_mapping: Array,
    *,
    block_size: int,
    num_experts: int,
    max_loras: int,
    adapter_enabled: Any = ...,
    lora_ids: Any = ...,
    expert_map: Any = ...,
    pad_sorted_ids: bool = ...,
    tail_expert: int = ...,
    out: tuple[Array, ...] | None = ...,
) -> AlignedBlocks[Array]: ...


def lora_align_block_size(
    topk_ids: Any,
    token_lora_mapping: Any,
    *,
    block_size: int,
    num_experts: int,
    max_loras: int,
    adapter_enabled: Any = None,
    lora_ids: Any = None,
    expert_map: Any = None,
    pad_sorted_ids: bool = False,
    tail_expert: int = -1,
    out: tuple[Any, ...] | None = None,
) -> Any:
    """Group the (token, slot) pairs of each LoRA adapter by expert, padded to whole blocks.

    Row l of every output is what `align_block_size` gives for the pairs of the tokens that use
    adapter l. N is the number of elements of `topk_ids`, and the filler in all rows; the capacity
    is N + min(N, num_experts) * (block_size - 1). All arrays are contiguous and on one device,
    where the op runs: on a GPU, on the current stream of torch or CuPy, without waiting for it; a
    graph may capture it.

    Args:
        topk_ids: [num_tokens, top_k], any of the eight integer types; expert of each pair. Ids
            outside [0, num_experts) are dropped.
        token_lora_mapping: int32[num_tokens], adapter of each token; one outside [0, max_loras)
            stands for none.
        block_size: slots in a block, at least 1.
        num_experts: at least 1.
        max_loras: number of rows, at least 1.
        adapter_enabled: int32[max_loras or more]; the row of an adapter with 0 stays empty.
        lora_ids: int32 of any length, the adapters in use, in any order; the rows of all others
            stay empty. Values outside [0, max_loras) are ignored.
        expert_map: int32[num_experts], the local number of each global expert; groups are formed
            by local expert, and pairs of experts marked by a value outside [0, num_experts) are
            left out.
        pad_sorted_ids: round the capacity up to a multiple of `block_size`.
        tail_expert: int32 value of a row of `expert_ids` past its last block.
        out: tuple of the three arrays to write to, of any shape with max_loras rows of equal
            length, which may be longer than needed. No memory is allocated then.

    Returns:
        `out` if given, else new arrays, parts of one allocation, in the framework of `topk_ids`.
        Each array, though not each of its rows, begins at a multiple of 16 bytes; of 128 where the
        allocation itself does, as on a GPU.
        sorted_token_ids: [max_loras, capacity], indices into the flattened `topk_ids`.
        expert_ids: [max_loras, ceil(capacity / block_size)], the expert of each block.
        num_tokens_post_pad: [max_loras], the padded total of each row.

    Raises:
        TypeError: an argument has the wrong type. Nothing was written; so for all errors.
        ValueError: a value, size, device or layout lies outside the op's domain.
        NotImplementedError: nothing in this build can run the call, or, on a GPU, its shared memory
            has no room for a counter of every expert.
        RuntimeError: the machine refused; `torch.OutOfMemoryError`, if torch has no memory left.
        MemoryError: NumPy's own, where it has no memory for the outputs.
    """
    if out is not None and _OP.direct(  # most calls
        out,
        None,
        topk_ids,
        token_lora_mapping,
        adapter_enabled,
        lora_ids,
        expert_map,
        block_size,
        num_experts,
        max_loras,
        None,  # top_k is read off the shape of topk_ids
        pad_sorted_ids,
        tail_expert,
    ):
        return out
    if is_traced(FRAMEWORKS[type(topk_ids)]):
        return call_traced(
            _OP,
            topk_ids,
            out,
            token_lora_mapping=token_lora_mapping,
            block_size=block_size,
            num_experts=num_experts,
            max_loras=max_loras,
            adapter_enabled=adapter_enabled,
            lora_ids=lora_ids,
            expert_map=expert_map,
            pad_sorted_ids=pad_sorted_ids,
            tail_expert=tail_expert,
        )
    return _eagerly(
        topk_ids,
        token_lora_mapping,
        block_size,
        num_experts,
        max_loras,
        adapter_enabled,
        lora_ids,
        expert_map,
        pad_sorted_ids,
        tail_expert,
        out,
    )


def _eagerly(
    topk_ids: Any,
    token_lora_mapping: Any,
    block_size: int,
    num_experts: int,
    max_loras: int,
    adapter_enabled: Any,
    lora_ids: Any,
    expert_map: Any,
    pad_sorted_ids: bool,
    tail_expert: int,
    out: Any,
) -> Any:
    others = (token_lora_mapping, adapter_enabled, lora_ids, expert_map)
    # `top_k` is read off the shape of `topk_ids`.
    numbers = (block_size, num_experts, max_loras, None, bool(pad_sorted_ids), tail_expert)
    framework = FRAMEWORKS[type(topk_ids)]
    return call(_OP, framework, topk_ids, others, numbers, out, num_rows=max_loras)


def _shapes(arguments: Mapping[str, Any]) -> tuple[Shape, ...]:
    num_slots, num_blocks = symbolic_sizes(
        arguments["topk_ids"].numel(),
        arguments["block_size"],
        arguments["num_experts"],
        arguments.get("pad_sorted_ids", False),
        False,
    )
    num_rows = arguments["max_loras"]
    return (num_rows, num_slots), (num_rows, num_blocks), (num_rows,)


register(TorchOp(_OP, lora_align_block_size, _eagerly, _shapes))


def lora_contract_violations(
    topk_ids: Any,
    token_lora_mapping: Any,
    result: tuple[Any, ...],
    *,
    block_size: int,
    num_experts: int,
    max_loras: int,
    adapter_enabled: Any = None,
    lora_ids: Any = None,
    expert_map: Any = None,
    pad_sorted_ids: bool = False,
    tail_expert: int = -1,
    out: Any = None,
) -> list[Violation]:
    """Judge outputs of `lora_align_block_size`, whoever computed them, against its contract.

    Takes the arguments of the call and its result, and ignores `out`, on which the rules do not
    depend. Waits for arrays on a device, and copies them to the host. Time is linear in the
    outputs and max_loras * num_experts.

    Returns:
        At most one violation for each of the op's rules; none if the contract holds.
    """
    inputs = (topk_ids, token_lora_mapping, adapter_enabled, lora_ids, expert_map)
    numbers = (block_size, num_experts, max_loras, None, bool(pad_sorted_ids), tail_expert)
    return violations(_OP, inputs, result, numbers)
