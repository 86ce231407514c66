"""The outputs of a call: their sizes, and where they lie in the allocation they are cut from."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any, Generic, TypeVar

import numpy as np
from typing_extensions import NamedTuple

from tessera._device import HOST
from tessera._library import dlpack_device, load

# An implementation that every build has, wherever the arrays are.
REFERENCE = "cpu/reference"

Array_co = TypeVar("Array_co", covariant=True)

# Calls on the host whose outputs and number of experts are all below this take some ten
# microseconds, and keep the interpreter lock.
LONG_CALL = 16384


class AlignedBlocks(NamedTuple, Generic[Array_co]):
    """Outputs of `align_block_size`: int32 arrays of one dimension.

    sorted_token_ids: [capacity or more], indices into the flattened `topk_ids`, grouped by expert
        and ascending inside a group. Padding, and all that follows the last group, is N.
    expert_ids: [ceil(capacity / block_size) or more], the expert of each block, then `tail_expert`.
    num_tokens_post_pad: [1], the padded total, a multiple of `block_size`.
    """

    sorted_token_ids: Array_co
    expert_ids: Array_co
    num_tokens_post_pad: Array_co


def require_triple(op: str, out: object) -> None:
    """Refuse an `out` that is no tuple of three."""
    if not isinstance(out, tuple) or len(out) != 3:
        got = f"one of {len(out)}" if isinstance(out, tuple) else type(out).__name__
        raise TypeError(f"{op}: out: expected a tuple of three arrays, got {got}")


def named_outputs(op: str, result: object) -> dict[str, Any]:
    """The arrays of a result by their names; refuses what is none."""
    if isinstance(result, (tuple, list)) and len(result) == len(AlignedBlocks._fields):
        return dict(zip(AlignedBlocks._fields, result, strict=True))
    got = f"{len(result)} of them" if isinstance(result, (tuple, list)) else type(result).__name__
    raise TypeError(f"{op}: result: expected a tuple of three arrays, got {got}")


class Layout(NamedTuple):
    """Parts of an int32 array, each beginning at a multiple of 128 bytes, as the FFI cuts it."""

    num_slots: int
    num_blocks: int
    length: int  # of the array
    # `sorted_token_ids`, `expert_ids` and `num_tokens_post_pad` in it.
    slices: tuple[slice, slice, slice]
    # Lengths of consecutive pieces, gaps between the outputs included, and what takes the outputs
    # from these pieces; None where there is no gap.
    pieces: tuple[int, ...]
    outputs_of: Callable[[Sequence[Any]], tuple[Any, ...]] | None


def layout_of(sizes: Sequence[int]) -> Layout:
    """The layout that the FFI's size queries describe.

    Args:
        sizes: elements of `sorted_token_ids` and of `expert_ids`, where `expert_ids` and
            `num_tokens_post_pad` begin, and the length of the array.
    """
    num_slots, num_blocks, blocks_begin, totals_begin, length = sizes
    begins = (0, blocks_begin, totals_begin)
    ends = (num_slots, blocks_begin + num_blocks, length)
    pieces: list[int] = []
    places: list[int] = []
    end_before = 0
    for begin, end in zip(begins, ends, strict=True):
        if begin > end_before:
            pieces.append(begin - end_before)
        places.append(len(pieces))
        pieces.append(end - begin)
        end_before = end
    first, second, third = map(slice, begins, ends)
    return Layout(
        num_slots,
        num_blocks,
        length,
        (first, second, third),
        tuple(pieces),
        None if len(pieces) == len(places) else itemgetter(*places),
    )


class Plan(NamedTuple):
    """What calls of `align_block_size` of one shape on one device have in common."""

    layout: Layout
    workspace_bytes: int  # on the device
    is_short: bool  # whether a call with outputs of this layout may keep the interpreter lock


@functools.lru_cache(maxsize=4096)
def plan_of(
    num_ids: int,
    block_size: int,
    num_experts: int,
    pad_sorted_ids: bool,
    cuda_index: int = HOST,
    implementation: str = "",
    filtered_group: bool = False,
) -> Plan:
    """The plan, of which the core knows the sizes."""
    sizes = np.empty(6, np.int64)
    shape = (num_ids, block_size, num_experts, pad_sorted_ids, filtered_group)
    query = load().function("align_block_size_sizes")
    query(*shape, *dlpack_device(cuda_index), implementation, sizes)
    *joined_sizes, workspace_bytes = sizes.tolist()
    layout = layout_of(joined_sizes)
    longest = max(layout.num_slots, layout.num_blocks, num_experts)
    return Plan(layout, workspace_bytes, cuda_index == HOST and longest < LONG_CALL)


def output_sizes(
    num_ids: int,
    block_size: int,
    num_experts: int,
    pad_sorted_ids: bool,
    cuda_index: int = HOST,
    implementation: str = "",
    filtered_group: bool = False,
) -> tuple[int, int, int]:
    """Lengths of `sorted_token_ids` and `expert_ids`, and bytes of workspace on the device."""
    shape = (num_ids, block_size, num_experts, pad_sorted_ids)
    plan = plan_of(*shape, cuda_index, implementation, filtered_group)
    return plan.layout.num_slots, plan.layout.num_blocks, plan.workspace_bytes
