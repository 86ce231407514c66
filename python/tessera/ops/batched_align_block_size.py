"""`batched_align_block_size` for NumPy arrays, torch tensors and whatever else speaks DLPack."""

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

Array = TypeVar("Array")

_OP = Op("batched_align_block_size")


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
    """Lay out the tokens of batches, one per expert, in padded blocks.

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
        padded total. Each new array begins at a multiple of 16 bytes; of 128 where the allocation
        itself does, as on a GPU.

    Raises:
        TypeError: an argument has the wrong type. Nothing was written; so for all errors.
        ValueError: a value, size, device or layout lies outside the op's domain.
        NotImplementedError: nothing in this build can run the call, or, on a GPU, there are more
            batches than its shared memory has words.
        RuntimeError: the machine refused; `torch.OutOfMemoryError`, if torch has no memory left.
        MemoryError: NumPy's own, where it has no memory for the outputs.
    """
    if out is not None and _OP.direct(  # most calls
        out, None, expert_num_tokens, max_tokens_per_batch, block_size, tail_expert
    ):
        return out
    if is_traced(FRAMEWORKS[type(expert_num_tokens)]):
        return call_traced(
            _OP,
            expert_num_tokens,
            out,
            max_tokens_per_batch=max_tokens_per_batch,
            block_size=block_size,
            tail_expert=tail_expert,
        )
    return _eagerly(expert_num_tokens, max_tokens_per_batch, block_size, tail_expert, out)


def _eagerly(
    expert_num_tokens: Any, max_tokens_per_batch: int, block_size: int, tail_expert: int, out: Any
) -> Any:
    numbers = (max_tokens_per_batch, block_size, tail_expert)
    framework = FRAMEWORKS[type(expert_num_tokens)]
    return call(_OP, framework, expert_num_tokens, (), numbers, out)


def _shapes(arguments: Mapping[str, Any]) -> tuple[Shape, ...]:
    block_size = arguments["block_size"]
    blocks_per_batch = (arguments["max_tokens_per_batch"] + block_size - 1) // block_size
    num_blocks = arguments["expert_num_tokens"].numel() * blocks_per_batch
    return (num_blocks * block_size,), (num_blocks,), (1,)


register(TorchOp(_OP, batched_align_block_size, _eagerly, _shapes))


def batched_contract_violations(
    expert_num_tokens: Any,
    result: tuple[Any, ...],
    *,
    max_tokens_per_batch: int,
    block_size: int,
    tail_expert: int = -1,
    out: Any = None,
) -> list[Violation]:
    """Judge outputs of `batched_align_block_size`, whoever computed them, against its contract.

    Takes the arguments of the call and its result, and ignores `out`, on which the rules do not
    depend. Waits for arrays on a device, and copies them to the host. Time is linear in the
    outputs.

    Returns:
        At most one violation for each of the op's rules; none if the contract holds.
    """
    numbers = (max_tokens_per_batch, block_size, tail_expert)
    return violations(_OP, (expert_num_tokens,), result, numbers)
