"""The outputs of a call: their sizes, and their layout in a common allocation."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np

from tessera._device import HOST
from tessera._library import dlpack_device, load
from tessera._op import Op

# Every build has it, wherever the arrays are.
REFERENCE = "cpu/reference"


_WORDS = {2: "two", 3: "three", 5: "five"}


def require_outputs(op: Op, out: Any) -> tuple[Any, ...]:
    """The arrays of an `out`, one for each output of the op; refuses another number of them."""
    count = len(op.outputs)
    if count == 1:
        if isinstance(out, tuple):
            raise TypeError(f"{op.name}: out: expected an array, got a tuple of {len(out)}")
        return (out,)
    if not isinstance(out, tuple) or len(out) != count:
        got = f"one of {len(out)}" if isinstance(out, tuple) else type(out).__name__
        raise TypeError(f"{op.name}: out: expected a tuple of {_WORDS[count]} arrays, got {got}")
    return out


def named_outputs(op: Op, result: object) -> dict[str, Any]:
    """The arrays of a result by their names; refuses what is none."""
    names = [row.name for row in op.outputs]
    if len(names) == 1:
        return {names[0]: result}
    if isinstance(result, (tuple, list)) and len(result) == len(names):
        return dict(zip(names, result, strict=True))
    got = f"{len(result)} of them" if isinstance(result, (tuple, list)) else type(result).__name__
    raise TypeError(
        f"{op.name}: result: expected a tuple of {_WORDS[len(names)]} arrays, got {got}"
    )


class Layout(NamedTuple):
    """Outputs in one int32 array, each beginning at a multiple of 128 bytes, as the FFI cuts it."""

    # The length of each output but the last, which the FFI gives the rest.
    inner_lengths: tuple[int, ...]
    length: int  # of the array
    slices: tuple[slice, ...]  # of the outputs
    # Lengths of consecutive pieces, gaps between the outputs included, and what takes the outputs
    # from these pieces; None where there is no gap.
    pieces: tuple[int, ...]
    outputs_of: Callable[[Sequence[Any]], tuple[Any, ...]] | None


def layout_of(lengths: Sequence[int], begins: Sequence[int]) -> Layout:
    """The layout of outputs of these lengths, which begin where the FFI's size query says."""
    pieces: list[int] = []
    places: list[int] = []
    end_before = 0
    for length, begin in zip(lengths, begins, strict=True):
        if begin > end_before:
            pieces.append(begin - end_before)
        places.append(len(pieces))
        pieces.append(length)
        end_before = begin + length
    return Layout(
        tuple(lengths[:-1]),
        end_before,
        tuple(slice(begin, begin + length) for length, begin in zip(lengths, begins, strict=True)),
        tuple(pieces),
        None if len(pieces) == len(places) else itemgetter(*places),
    )


class CallSizes(NamedTuple):
    """The sizes that calls of an op with the same numbers on one device have in common."""

    layout: Layout
    workspace_bytes: int  # on the device


def _sizes(
    op: Op, inputs: Sequence[Any], options: Sequence[Any], cuda_index: int, implementation: str
) -> list[int]:
    """The answer of the FFI's size query."""
    sizes = np.empty(16, np.int64)
    op.sizes(*dlpack_device(cuda_index), 0, implementation, sizes, *inputs, *options)
    return sizes.tolist()  # type: ignore[no-any-return]


@functools.lru_cache(maxsize=4096)
def call_sizes(
    op: Op,
    num_elements: int,
    options: tuple[Any, ...],
    cuda_index: int = HOST,
    implementation: str = "",
) -> CallSizes:
    """The sizes of an op whose outputs are joined.

    Args:
        op: the op.
        num_elements: number of elements of its first array.
        options: the numbers, and of the rest whatever changes a size, with None for arrays.
        cuda_index: the device.
        implementation: the implementation; empty: the one that dispatch selects.
    """
    inputs = (num_elements, *(None,) * (len(op.inputs) - 1))
    workspace_bytes, *others = _sizes(op, inputs, options, cuda_index, implementation)
    num_symbols = len(op.symbols)
    symbols = tuple(others[:num_symbols])
    begins = others[num_symbols : num_symbols + len(op.outputs)]
    lengths = [output.lengths[0].value(symbols) for output in op.outputs]
    return CallSizes(layout_of(lengths, begins), workspace_bytes)


class NewOutput(NamedTuple):
    """An output to allocate."""

    shape: tuple[int, ...]
    dtype: str | None  # None: that of the first input


def new_outputs(op: Op, inputs: Sequence[Any], options: tuple[Any, ...]) -> tuple[NewOutput, ...]:
    """The outputs of an op whose outputs have axes, and an allocation each.

    Args:
        op: the op.
        inputs: its arrays, None for those that are not given.
        options: as for `call_sizes`.
    """
    key = (op, tuple([shape_of(inputs[i]) for i in op.shaping]), options)
    found = _known_outputs.get(key)
    if found is None:
        if len(_known_outputs) >= _MAX_KNOWN:
            _known_outputs.clear()
        found = _known_outputs[key] = _find_outputs(*key)
    return found


def made_dtypes(op: Op, source: Any) -> tuple[str, ...] | None:
    """The data types of new outputs, if `source` has a type that no output can have; else None."""
    dtype = getattr(source, "dtype", None)
    if getattr(dtype, "itemsize", 0) != 1:  # quickly: most calls
        return None
    # NumPy and CuPy, which hold float8 as uint8, have no bfloat16 either.
    has_bits = str(dtype) == "uint8"
    return tuple("float32" if has_bits else row.made_as[0] for row in op.outputs)


# A dictionary, because torch.compile warns of functools.lru_cache, if it is given an op's function
# itself.
_known_outputs: dict[Any, tuple[NewOutput, ...]] = {}
_MAX_KNOWN = 4096


def shape_of(array: Any) -> tuple[int, ...] | None:
    """The shape of an array of any framework; None of None."""
    if array is None:
        return None
    shape = getattr(array, "shape", None)
    return shape if isinstance(shape, tuple) else tuple(load().as_tensor(array).shape)


def _find_outputs(
    op: Op, shapes: tuple[Any, ...], options: tuple[Any, ...]
) -> tuple[NewOutput, ...]:
    inputs: list[Any] = [None] * len(op.inputs)
    for i, shape in zip(op.shaping, shapes, strict=True):
        # Any data type will do, and any device: no shape depends on them, and the call checks them.
        # The reference takes all, whatever implementation TESSERA_IMPL asks for.
        inputs[i] = None if shape is None else (op.inputs[i].dtypes[0], *shape)
    _, *others = _sizes(op, inputs, options, HOST, REFERENCE)
    symbols = tuple(others[: len(op.symbols)])
    return tuple(
        NewOutput(
            tuple(length.value(symbols) for length in row.lengths),
            None if row.same_dtype_as else row.dtypes[0],
        )
        for row in op.outputs
    )


ALIGN = Op("align_block_size")


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
    options: tuple[Any, ...] = (block_size, num_experts, False, pad_sorted_ids, -1)
    if filtered_group:
        options = (*options, None, None, None, None, False, True)
    sizes = call_sizes(ALIGN, num_ids, options, cuda_index, implementation)
    num_slots, num_blocks = sizes.layout.inner_lengths
    return num_slots, num_blocks, sizes.workspace_bytes
