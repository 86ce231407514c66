"""Implementations of the op with a planted fault each, for `tessera verify --impl` to find.

They are NumPy's alone where they can be, since their processes are started many times.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from typing import Any, NamedTuple

import numpy as np

# From here on `unstable` gives up the order.
MANY = 40


class Blocks(NamedTuple):
    sorted_token_ids: Any
    expert_ids: Any
    num_tokens_post_pad: Any


def right(topk_ids: Any, *, block_size: int, num_experts: int) -> Blocks:
    return placed(topk_ids, *empty(topk_ids, block_size, num_experts), block_size, num_experts)


def empty(topk_ids: Any, block_size: int, num_experts: int) -> tuple[Any, Any]:
    """Slots and blocks without a value."""
    number = topk_ids.size
    num_slots = number + min(number, num_experts) * (block_size - 1)
    slots = np.full(num_slots, number, np.int32)
    return slots, np.full(-(-num_slots // block_size), -1, np.int32)


def placed(
    topk_ids: Any, slots: Any, experts: Any, block_size: int, num_experts: int, counts: Any = None
) -> Blocks:
    """Every index at its place, by its group's count, or by another one."""
    ids = topk_ids.reshape(-1)
    order = np.flatnonzero((ids >= 0) & (ids < num_experts))
    order = order[np.argsort(ids[order], kind="stable")]
    groups = ids[order].astype(np.int64)
    if counts is None:
        counts = np.bincount(groups, minlength=num_experts)
    blocks = -(-counts // block_size)
    ends = np.cumsum(blocks)
    ranks = np.arange(len(order)) - np.searchsorted(groups, groups)
    slots[((ends - blocks) * block_size)[groups] + ranks] = order
    experts[: ends[-1]] = np.repeat(np.arange(num_experts), blocks)
    return Blocks(slots, experts, np.array([ends[-1] * block_size], np.int32))


def everything(topk_ids: Any, **options: Any) -> Any:
    """Takes every option, and says nothing of them."""
    import tessera

    return tessera.align_block_size(topk_ids, **options)


def unstable(topk_ids: Any, *, block_size: int, num_experts: int) -> Any:
    result = right(topk_ids, block_size=block_size, num_experts=num_experts)
    if topk_ids.size >= MANY:
        slots = result.sorted_token_ids
        for start in range(0, len(slots) - block_size + 1, block_size):
            block = slots[start : start + block_size]
            members = block < topk_ids.size
            block[members] = block[members][::-1]
    return result


def tail_zero(topk_ids: Any, *, block_size: int, num_experts: int) -> Any:
    result = right(topk_ids, block_size=block_size, num_experts=num_experts)
    result.expert_ids[int(result.num_tokens_post_pad[0]) // block_size :] = 0
    return result


def no_padding(topk_ids: Any, block_size: int, num_experts: int) -> Any:
    """vLLM's order of arguments; does not write slots without an index."""
    result = right(topk_ids, block_size=block_size, num_experts=num_experts)
    result.sorted_token_ids[result.sorted_token_ids == topk_ids.size] = -5
    return result


def int64(topk_ids: Any, *, block_size: int, num_experts: int) -> Any:
    result = right(topk_ids, block_size=block_size, num_experts=num_experts)
    return tuple(array.astype(np.int64) for array in result)


def two(topk_ids: Any, *, block_size: int, num_experts: int) -> Any:
    return right(topk_ids, block_size=block_size, num_experts=num_experts)[:2]


def sorts_its_input(topk_ids: Any, *, block_size: int, num_experts: int) -> Any:
    result = right(topk_ids, block_size=block_size, num_experts=num_experts)
    topk_ids.sort(axis=None) if topk_ids.ndim == 1 else topk_ids.sort(axis=0)
    return result


def random(topk_ids: Any, *, block_size: int, num_experts: int) -> Any:
    result = right(topk_ids, block_size=block_size, num_experts=num_experts)
    if block_size > 1:
        result.sorted_token_ids[-1:] = np.random.default_rng().integers(2**30)
    return result


def aborts(topk_ids: Any, *, block_size: int, num_experts: int) -> Any:
    if np.any(topk_ids.astype(np.int64) == -1):
        os.write(2, b"free(): invalid pointer\n")
        os.abort()
    return right(topk_ids, block_size=block_size, num_experts=num_experts)


def hangs(topk_ids: Any, *, block_size: int, num_experts: int) -> Any:
    if num_experts == 13:
        time.sleep(3600)
    return right(topk_ids, block_size=block_size, num_experts=num_experts)


def raises(topk_ids: Any, *, block_size: int, num_experts: int) -> Any:
    if num_experts > 5:
        raise KeyError("too many experts")
    return right(topk_ids, block_size=block_size, num_experts=num_experts)


def past_the_end(
    topk_ids: Any,
    num_experts: int,
    block_size: int,
    sorted_token_ids: Any,
    experts_ids: Any,
    num_tokens_post_pad: Any,
    expert_map: Any = None,
) -> None:
    """vLLM's op, which rounds the number of blocks up once too often."""
    import tessera

    out = (sorted_token_ids, experts_ids, num_tokens_post_pad)
    tessera.align_block_size(
        topk_ids,
        block_size=block_size,
        num_experts=num_experts,
        expert_map=expert_map,
        ignore_invalid_experts=expert_map is not None,
        out=out,
    )
    view = np.asarray(experts_ids)
    beyond = np.lib.stride_tricks.as_strided(view, (len(view) + 1,))
    beyond[len(view)] = -1


def sglang_op(
    topk_ids: Any,
    num_experts: int,
    block_size: int,
    sorted_token_ids: Any,
    experts_ids: Any,
    num_tokens_post_pad: Any,
    cumsum_buffer: Any,
    pad_sorted_token_ids: bool = False,
) -> None:
    """SGLang's op, without a fault."""
    import tessera

    assert pad_sorted_token_ids
    assert len(cumsum_buffer) == num_experts + 1
    out = (sorted_token_ids, experts_ids, num_tokens_post_pad)
    tessera.align_block_size(
        topk_ids, block_size=block_size, num_experts=num_experts - 1, filtered_group=True, out=out
    )


def sglang(
    topk_ids: Any, block_size: int, num_experts: int, ignore_invalid_expert: bool = False
) -> Any:
    """SGLang's function, without a fault."""
    import tessera

    return tessera.align_block_size(
        topk_ids, block_size=block_size, num_experts=num_experts, filtered_group=True
    )


def script(topk_ids: Any, num_experts: int, block_size: int, topk: int) -> Any:
    assert topk == topk_ids.shape[-1]
    return right(topk_ids, block_size=block_size, num_experts=num_experts)


def order_unknown(ids: Any, num_experts: int, block_size: int) -> Any:
    return right(ids, block_size=block_size, num_experts=num_experts)


class Holder:
    right = staticmethod(right)


not_a_function = 3


def of_numpy(topk_ids: Any, block_size: int, num_experts: int) -> Any:
    """In a form that gets torch tensors by default."""
    if not isinstance(topk_ids, np.ndarray):
        raise TypeError("expected a NumPy array")
    return right(topk_ids, block_size=block_size, num_experts=num_experts)


def first_of_a_group(topk_ids: Any, *, block_size: int, num_experts: int) -> Blocks:
    """Keeps the first index of each block."""
    result = right(topk_ids, block_size=block_size, num_experts=num_experts)
    used = result.sorted_token_ids[: int(result.num_tokens_post_pad[0])]
    used.reshape(-1, block_size)[:, 1:] = topk_ids.size
    return result


def counts_from_behind(topk_ids: Any, *, block_size: int, num_experts: int) -> Blocks:
    """Takes an id below 0 for one of the last expert, as an unguarded index does."""
    if topk_ids.dtype.kind == "i":
        topk_ids = np.where(topk_ids < 0, topk_ids.dtype.type(min(num_experts, 127) - 1), topk_ids)
    return right(topk_ids, block_size=block_size, num_experts=num_experts)


def one_block_of_threads(topk_ids: Any, *, block_size: int, num_experts: int) -> Blocks:
    """Leaves out the experts from the 1,024th on."""
    result = right(topk_ids, block_size=block_size, num_experts=min(num_experts, 1024))
    slots, experts = empty(topk_ids, block_size, num_experts)
    slots[: len(result.sorted_token_ids)] = result.sorted_token_ids
    experts[: len(result.expert_ids)] = result.expert_ids
    return Blocks(slots, experts, result.num_tokens_post_pad)


def counts_in_16_bits(topk_ids: Any, *, block_size: int, num_experts: int) -> Blocks:
    result = right(topk_ids, block_size=block_size, num_experts=num_experts)
    ids = topk_ids.reshape(-1)
    kept = ids[(ids >= 0) & (ids < num_experts)].astype(np.int64)
    counts = np.bincount(kept, minlength=num_experts)
    total = int((-(-(counts & 0xFFFF) // block_size)).sum()) * block_size
    return result._replace(num_tokens_post_pad=np.array([total], np.int32))


def invalid_in_group_0(topk_ids: Any, *, block_size: int, num_experts: int) -> Blocks:
    """Sorts an invalid id as one of expert 0, which it is not counted for."""
    result = right(topk_ids, block_size=block_size, num_experts=num_experts)
    ids = topk_ids.reshape(-1)
    invalid = np.flatnonzero((ids < 0) | (ids >= num_experts))
    if len(invalid) and result.expert_ids[0] == 0:
        result.sorted_token_ids[0] = invalid[0]
    return result


def by_fours(topk_ids: Any, *, block_size: int, num_experts: int) -> Blocks:
    """Works on four experts at a time; an incomplete four repeats its last experts."""
    result = right(topk_ids, block_size=block_size, num_experts=num_experts)
    if num_experts > 4 and num_experts % 4 and len(first := np.flatnonzero(result.expert_ids == 0)):
        result.sorted_token_ids[first[0] * block_size] = topk_ids.size
    return result


_buffers: list[Any] = [np.empty(0, np.int32), np.empty(0, np.int32)]


def kept_buffers(topk_ids: Any, block_size: int, num_experts: int) -> tuple[Any, Any]:
    """Parts of two buffers that are reallocated, and so cleared, if they are too short."""
    new = empty(topk_ids, block_size, num_experts)
    for at, array in enumerate(new):
        if len(_buffers[at]) < len(array):
            _buffers[at] = array
    return _buffers[0][: len(new[0])], _buffers[1][: len(new[1])]


def keeps_its_buffers(topk_ids: Any, *, block_size: int, num_experts: int) -> Blocks:
    """Does not clear what the call before has written; hands out copies."""
    kept = kept_buffers(topk_ids, block_size, num_experts)
    result = placed(topk_ids, *kept, block_size, num_experts)
    return Blocks(*(array.copy() for array in result))


def hands_out_its_buffers(topk_ids: Any, *, block_size: int, num_experts: int) -> Blocks:
    """Right, as long as nobody looks at the outputs of an earlier call."""
    result = right(topk_ids, block_size=block_size, num_experts=num_experts)
    kept = kept_buffers(topk_ids, block_size, num_experts)
    for array, new in zip(kept, result, strict=False):
        array[:] = new
    return Blocks(*kept, result.num_tokens_post_pad)


_left: dict[int, Any] = {}


def counts_on(topk_ids: Any, *, block_size: int, num_experts: int) -> Blocks:
    """Starts at the counts that a call with many ids has left behind."""
    ids = topk_ids.reshape(-1)
    kept = ids[(ids >= 0) & (ids < num_experts)].astype(np.int64)
    counts = np.bincount(kept, minlength=num_experts)
    before = _left.get(num_experts, 0)
    _left[num_experts] = counts
    counts = counts + (before > np.full(num_experts, 20))
    slots, experts = empty(topk_ids, block_size, num_experts)
    blocks = int((-(-counts // block_size)).sum())
    if blocks > len(experts):
        return Blocks(slots, experts, np.array([blocks * block_size], np.int32))
    return placed(topk_ids, slots, experts, block_size, num_experts, counts)


_calls = {"order": 0, "tired": 0}


def order_in_turns(topk_ids: Any, *, block_size: int, num_experts: int) -> Any:
    """Has another order, a legal one but for stability, at every second call."""
    _calls["order"] += 1
    chosen = unstable if _calls["order"] % 2 else right
    return chosen(topk_ids, block_size=block_size, num_experts=num_experts)


def tires(topk_ids: Any, *, block_size: int, num_experts: int) -> Blocks:
    """Does not write the tail from the 30th call on."""
    _calls["tired"] += 1
    result = right(topk_ids, block_size=block_size, num_experts=num_experts)
    if _calls["tired"] >= 30:
        result.expert_ids[int(result.num_tokens_post_pad[0]) // block_size :] = 0
    return result


def sorted_tail_zero(topk_ids: Any, *, block_size: int, num_experts: int) -> Blocks:
    result = right(topk_ids, block_size=block_size, num_experts=num_experts)
    result.sorted_token_ids[int(result.num_tokens_post_pad[0]) :] = 0
    return result


def wants_ids(topk_ids: Any, *, block_size: int, num_experts: int) -> Blocks:
    assert topk_ids.shape[0] > 0, "no tokens"
    return right(topk_ids, block_size=block_size, num_experts=num_experts)


def cut_off(topk_ids: Any, *, block_size: int, num_experts: int) -> Any:
    """Outputs that are an element short where every slot is taken."""
    result = right(topk_ids, block_size=block_size, num_experts=num_experts)
    if int(result.num_tokens_post_pad[0]) == len(result.sorted_token_ids):
        return (result.sorted_token_ids[:-1], *result[1:])
    return result


def only_forked(topk_ids: Any, *, block_size: int, num_experts: int) -> Blocks:
    """Wrong in the judge's process, but right in a separate interpreter."""
    result = right(topk_ids, block_size=block_size, num_experts=num_experts)
    if "tessera.tools.judge.worker" in sys.modules:
        result.expert_ids[int(result.num_tokens_post_pad[0]) // block_size :] = 0
    return result


def quits(topk_ids: Any, *, block_size: int, num_experts: int) -> Blocks:
    """Ends its process as if all were well, and leaves another one and a thread behind."""
    if num_experts > 5:
        subprocess.Popen(["sleep", "3600.25"])
        threading.Thread(target=time.sleep, args=(3600,)).start()
        os._exit(0)
    return right(topk_ids, block_size=block_size, num_experts=num_experts)


def exits(topk_ids: Any, *, block_size: int, num_experts: int) -> Blocks:
    print("good bye")
    if num_experts > 5:
        sys.exit("too many experts")
    return right(topk_ids, block_size=block_size, num_experts=num_experts)


def slow(topk_ids: Any, *, block_size: int, num_experts: int) -> Blocks:
    time.sleep(0.5)
    return right(topk_ids, block_size=block_size, num_experts=num_experts)


def of_other_arrays(topk_ids: Any, block_size: int, num_experts: int) -> Any:
    """In vLLM's form, and takes torch's tensors, but returns NumPy's arrays."""
    return right(np.asarray(topk_ids), block_size=block_size, num_experts=num_experts)


def big_endian(topk_ids: Any, *, block_size: int, num_experts: int) -> Any:
    result = right(topk_ids, block_size=block_size, num_experts=num_experts)
    return tuple(array.astype(">i4") for array in result)
