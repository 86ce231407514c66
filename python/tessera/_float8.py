"""Arrays of ml_dtypes' types, which NumPy cannot export.

Ops get the bits of float8_e4m3fn as uint8. Others are refused.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tessera._op import Op


def _is_float8(array: object) -> bool:
    """Whether it is such an array."""
    if not isinstance(array, np.ndarray) or array.dtype.kind != "V":  # quickly: most arrays
        return False
    return bool(array.dtype.name == "float8_e4m3fn")


def refused_dtype(op: Op, name: str, array: object) -> TypeError | None:
    """The error for an array of a type of ml_dtypes that this argument never has."""
    if not isinstance(array, np.ndarray) or array.dtype.type.__module__ != "ml_dtypes":
        return None
    (dtypes,) = (row.dtypes for row in op.arguments if row.name == name)
    if array.dtype.name in dtypes:  # another reason is at hand, such as NumPy's for bfloat16
        return None
    *most, last = dtypes
    expected = f"{', '.join(most)} or {last}" if most else last
    if "uint64" in dtypes:  # and so all integers
        expected = "an integer type"
    return TypeError(f"{op.name}: {name}.dtype: expected {expected}, got {array.dtype.name}")


def as_bits(places: tuple[int, ...], arrays: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arrays, with a view of the bits of each such array at these places.

    Without one, it is the same tuple.
    """
    found = [i for i in places if i < len(arrays) and _is_float8(arrays[i])]
    if not found:
        return arrays
    return tuple(array.view(np.uint8) if i in found else array for i, array in enumerate(arrays))


def bits_of_call(op: Op, inputs: tuple[Any, ...], out: Any) -> tuple[tuple[Any, ...], Any] | None:
    """The inputs and `out` of a call with bits in place of such arrays; None if there are none."""
    outputs = out if isinstance(out, tuple) else ()
    read, written = as_bits(op.fp8_inputs, inputs), as_bits(op.fp8_outputs, outputs)
    if read is inputs and written is outputs:
        return None
    return read, written if outputs else out


def in_type_of(op: Op, source: Any, result: Any) -> Any:
    """New outputs of a call that got bits, in the type of its first input where they share it."""
    if not (op.fp8_outputs and _is_float8(source)):
        return result
    parts = [
        array.view(source.dtype) if i in op.fp8_outputs else array for i, array in enumerate(result)
    ]
    return tuple.__new__(op.result_type, parts)
