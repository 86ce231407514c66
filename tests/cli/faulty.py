"""Implementations of the op with a planted fault each, for `tessera verify --impl` to find."""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np

import tessera

# From here on `unstable` gives up the order.
MANY = 40


def right(topk_ids: Any, *, block_size: int, num_experts: int) -> Any:
    return tessera.align_block_size(topk_ids, block_size=block_size, num_experts=num_experts)


def everything(topk_ids: Any, **options: Any) -> Any:
    """Takes every option, and says nothing of them."""
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
    """vLLM's order of arguments; what is no index is left as it was."""
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
    """In a form that is given torch's tensors, unless it is asked otherwise."""
    if not isinstance(topk_ids, np.ndarray):
        raise TypeError("expected a NumPy array")
    return right(topk_ids, block_size=block_size, num_experts=num_experts)
