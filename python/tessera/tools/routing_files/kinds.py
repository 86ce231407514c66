"""What the numbers of an array without a name are: ids, a map, loads, logits or packed ids."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tessera.routing_log import MAX_EXPERTS, repeats_an_id

# More ids for a token than any model chooses, more layers and experts than any has.
_MOST_TOP_K = 32
MOST_LAYERS = 128
_MOST_EXPERTS = 4096
# The loads of a layer add up to less, so that they are exact in floating point. Readers cut larger
# ones off there, before they would overflow.
MAX_LOAD = 2**53
# A list of more numbers is not taken for the loads of a layer.
_MOST_LISTED = 1024
# The end of a message about numbers that are no ids, but may be loads.
OR_LOADS = "; tessera inspect --loads reads loads of experts"
# Fewer numbers in a row are not taken for loads.
_LEAST_EXPERTS = 8


def kind_of(rows: npt.NDArray[Any], shape: tuple[int, ...]) -> str:
    """What the rows are: "ids", "map" (one-hot), "loads", "logits", "packed", or "zeros".

    Args:
        rows: [n, k], the first ones of the array.
        shape: of the whole array.
    """
    if rows.dtype == np.bool_:
        return "map"
    if rows.dtype.kind == "f":
        if not are_whole(rows):
            return "logits"
        rows = rows.astype(np.int64)
    elif rows.dtype.kind == "u":
        minus_one = rows == np.iinfo(rows.dtype).max
        signed = np.minimum(rows, np.uint64(np.iinfo(np.int64).max)).astype(np.int64)
        rows = np.where(minus_one, -1, signed)
    else:
        rows = rows.astype(np.int64)
    # A few negative ids are refused with their places; so many are none.
    if rows.shape[1] > 1 and (rows < -1).mean() > 0.25:
        return "logits"
    rows = rows[(rows > 0).any(axis=1)]
    if not len(rows):
        return "zeros"
    return _kind(rows, shape)


def are_whole(numbers: npt.NDArray[Any]) -> bool:
    """Whether numbers in floating point are ids or counts: integers, and none that is too large."""
    # A limit in float64, since float16 has none so large. Comparisons with NaN are false.
    return bool(((np.abs(numbers) < np.float64(MAX_LOAD)) & (numbers == np.rint(numbers))).all())


def may_hold_loads(shape: tuple[int, ...]) -> bool:
    """Whether an array of this shape may be loads [layers, experts] or [steps, layers, experts]."""
    return len(shape) > 1 and shape[-2] <= MOST_LAYERS and shape[-1] > 1


def loads_note(rows: npt.NDArray[Any], shape: tuple[int, ...]) -> str:
    """A note on rows that are read as ids, if they may be loads."""
    if len(shape) == 1:
        is_open, ids, loads = shape[0] <= _MOST_LISTED, "[tokens]", "[experts]"
    else:
        is_open = len(shape) == 2 and may_hold_loads(shape)
        ids, loads = "[tokens, top_k]", "[layers, experts]"
    if not is_open or shape[-1] < _LEAST_EXPERTS or rows.min() < 0:
        return ""
    return (
        f"{list(shape)} is read as ids {ids}, but may be loads {loads}: tessera inspect --loads "
        "reads loads, --experts says ids"
    )


def _kind(rows: npt.NDArray[np.int64], shape: tuple[int, ...]) -> str:
    width, largest = rows.shape[1], int(rows.max())
    if largest >= MAX_EXPERTS and _are_packed(rows):
        return "packed"
    if width == 1:
        return "loads" if len(shape) == 1 and _are_counts(rows, shape[0]) else "ids"
    if largest == 1 and width > 2 and rows.min() == 0:
        return "map"
    if rows.min() < 0:
        return "ids"
    share = repeats_an_id(rows.astype(np.int64)).mean()
    if share > 0.5 and width >= _LEAST_EXPERTS and _may_be_loads(rows, shape):
        return "loads"
    if share == 0.0 and width <= _MOST_TOP_K:
        # Every layer counts the same tokens.
        # And rows of the same experts, such as an engine's warm-up, have equal sums too.
        is_sum_equal = (
            len(np.unique(rows.sum(axis=1))) == 1
            and len(np.unique(np.sort(rows, axis=1), axis=0)) > 1
        )
        are_few = int(np.prod(shape[:-1])) <= _MOST_EXPERTS
        if are_few and width >= _LEAST_EXPERTS and (is_sum_equal or largest >= _MOST_EXPERTS):
            return "loads"
        return "ids"
    return "loads" if width > _MOST_TOP_K and len(rows) < _MOST_EXPERTS else "ids"


def _may_be_loads(rows: npt.NDArray[np.int64], shape: tuple[int, ...]) -> bool:
    """Whether rows that repeat numbers are loads of experts, rather than ids that are wrong."""
    if shape[-1] > _MOST_TOP_K:
        return True
    if len(shape) == 2:
        return shape[0] <= MOST_LAYERS
    # The layers of a step count the same tokens.
    sums = rows.sum(axis=1)
    return bool((sums[1:] == sums[:-1]).mean() > 0.5) if len(sums) > 1 else True


def _are_counts(numbers: npt.NDArray[np.int64], length: int) -> bool:
    """Whether a list of numbers has a number for each expert, rather than one for each token."""
    return length <= _MOST_LISTED and int(numbers.max()) >= max(_MOST_EXPERTS, 4 * length)


def _are_packed(rows: npt.NDArray[np.int64]) -> bool:
    """Whether the lower halves are weights in bfloat16, 0 to 1, and the upper ones ids."""
    ids, weights = rows >> 16, rows & 0xFFFF
    return bool(
        (ids < _MOST_EXPERTS).all()
        and (weights <= 0x3F80).all()
        and (weights > 0).mean() > 0.5
        and not repeats_an_id(ids).any()
    )
