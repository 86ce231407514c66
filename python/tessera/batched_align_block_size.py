"""`batched_align_block_size` for NumPy arrays, torch tensors and whatever else speaks DLPack."""

from __future__ import annotations

import functools
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from tessera._frameworks import FRAMEWORKS, exportable, on_host, read_only
from tessera._library import load, refusal
from tessera.align_block_size import AlignedBlocks, Array
from tessera.contract import Violation

_OP = "batched_align_block_size"


@functools.lru_cache(maxsize=4096)
def _output_sizes(num_batches: int, max_tokens_per_batch: int, block_size: int) -> tuple[int, int]:
    """Lengths of `sorted_token_ids` and `expert_ids`."""
    sizes = np.empty(2, np.int64)
    load().function(f"{_OP}_sizes")(num_batches, max_tokens_per_batch, block_size, sizes)
    num_slots, num_blocks = sizes.tolist()
    return num_slots, num_blocks


@functools.cache
def _function(name: str) -> Any:
    return load().function(name)


@overload
def batched_align_block_size(
    expert_num_tokens: npt.NDArray[np.int32],
    *,
    max_tokens_per_batch: int,
    block_size: int,
    tail_expert: int = ...,
    out: tuple[npt.NDArray[np.int32], ...] | None = ...,
) -> AlignedBlocks[npt.NDArray[np.int32]]: ...


@overload
def batched_align_block_size(
    expert_num_tokens: Array,
    *,
    max_tokens_per_batch: int,
    block_size: int,
    tail_expert: int = ...,
    out: tuple[Array, ...] | None = ...,
) -> AlignedBlocks[Array]: ...


def batched_align_block_size(
    expert_num_tokens: Any,
    *,
    max_tokens_per_batch: int,
    block_size: int,
    tail_expert: int = -1,
    out: tuple[Any, ...] | None = None,
) -> Any:
    """Lay out the tokens of batches, one an expert, in padded blocks.

    Row j of batch b has index b * max_tokens_per_batch + j. The filler is num_batches *
    max_tokens_per_batch; the capacity is that with `max_tokens_per_batch` rounded up to whole
    blocks. All arrays are contiguous and on one device, where the op runs: on a GPU, on the current
    stream of torch or CuPy, without waiting for it; a graph may capture it. Calls with JAX arrays
    on a GPU are waited for.

    Args:
        expert_num_tokens: int32[num_batches], tokens in each batch; negative ones count as 0, those
            above `max_tokens_per_batch` as that.
        max_tokens_per_batch: rows that each batch has room for, at least 0.
        block_size: slots in a block, at least 1.
        tail_expert: int32 value of `expert_ids` past the last block.
        out: tuple of the three arrays to write to, which may be longer than needed. No memory is
            allocated then.

    Returns:
        `out` if given, else new arrays, parts of one allocation, in the framework of
        `expert_num_tokens`. sorted_token_ids: [capacity], the indices of the rows in use, batch by
        batch, each batch filled up to whole blocks; the filler elsewhere. expert_ids: [capacity /
        block_size], the batch of each block, then `tail_expert`. num_tokens_post_pad: [1], the
        padded total.

    Raises:
        TypeError: an argument has the wrong type. Nothing was written; so for all errors.
        ValueError: a value, size, device or layout lies outside the op's domain.
        NotImplementedError: nothing in this build can run the call, or, on a GPU, there are more
            batches than its shared memory has words.
        RuntimeError: the machine refused; `torch.OutOfMemoryError`, if torch has no memory left.
    """
    try:
        framework = FRAMEWORKS[type(expert_num_tokens)]
        if out is None:
            num_slots, num_blocks = _output_sizes(
                framework.num_elements(expert_num_tokens), max_tokens_per_batch, block_size
            )
            memory = framework.empty_int32(expert_num_tokens, num_slots + num_blocks + 1)
            align = _function(f"{_OP}_joined")
            outputs: tuple[Any, ...] = (memory, num_slots, num_blocks)
        else:
            if not isinstance(out, tuple) or len(out) != 3:
                got = f"one of {len(out)}" if isinstance(out, tuple) else type(out).__name__
                raise TypeError(f"{_OP}: out: expected a tuple of three arrays, got {got}")
            if refused := read_only(_OP, dict(zip(AlignedBlocks._fields, out, strict=True))):
                raise refused
            align = _function(_OP)
            outputs = out
        arguments = (
            exportable(expert_num_tokens),
            *outputs,
            max_tokens_per_batch,
            block_size,
            tail_expert,
        )
        if framework.launch is None:
            align(*arguments)
        else:
            framework.launch(expert_num_tokens, lambda: align(*arguments))
    except Exception as error:
        arrays = {"expert_num_tokens": expert_num_tokens}
        if isinstance(out, tuple):
            arrays |= zip(AlignedBlocks._fields, out, strict=False)
        integers = {
            "max_tokens_per_batch": max_tokens_per_batch,
            "block_size": block_size,
            "tail_expert": tail_expert,
        }
        raise refusal(_OP, error, arrays, integers) from None
    if out is not None:
        return out
    parts = framework.split(memory, num_slots, num_blocks)
    if framework.adopt is not None:
        parts = [framework.adopt(expert_num_tokens, part) for part in parts]
    return AlignedBlocks(*parts)


def batched_contract_violations(
    expert_num_tokens: Any,
    result: tuple[Any, ...],
    *,
    max_tokens_per_batch: int,
    block_size: int,
    tail_expert: int = -1,
) -> list[Violation]:
    """Judge outputs of `batched_align_block_size`, whoever computed them, against its contract.

    Takes the arguments of the call and its result; waits for arrays on a device, and copies them to
    the host. Time is linear in the outputs.

    Returns:
        At most one violation for each of the op's rules; none if the contract holds.
    """
    outputs = dict(zip(AlignedBlocks._fields, result, strict=True))
    arrays = {
        name: exportable(on_host(array))
        for name, array in {"expert_num_tokens": expert_num_tokens, **outputs}.items()
    }
    integers = {
        "max_tokens_per_batch": max_tokens_per_batch,
        "block_size": block_size,
        "tail_expert": tail_expert,
    }
    try:
        found = load().read_json(f"{_OP}_check", *arrays.values(), *integers.values())
    except Exception as error:
        raise refusal(_OP, error, arrays, integers) from None
    return [Violation(**fields) for fields in found]
