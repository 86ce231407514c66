"""`quantize_fp8` for NumPy arrays, torch tensors and whatever else speaks DLPack."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, TypeVar

from tessera._call import call
from tessera._frameworks import FRAMEWORKS
from tessera._op import Op
from tessera._results import QuantizedFp8
from tessera._shown import shown
from tessera._torch_hook import call_traced, is_traced, register
from tessera._torch_registry import Shape, TorchOp
from tessera.contract import Violation, violations

Array = TypeVar("Array")

_OP = Op("quantize_fp8")

# Names in the table, which are also those of `torch.ops`.
_GROUPS = ("tensor", "row", "1x128", "128x128")


def quantize_fp8(
    x: Array,
    *,
    group: str | int | tuple[int, int],
    scale: Any = None,
    use_ue8m0: bool = False,
    num_threads: int | None = None,
    out: tuple[Array, Array] | None = None,
) -> QuantizedFp8[Array]:
    """Quantise activations or weights to float8_e4m3fn, with a scale for each group of elements.

    values = x / scale, rounded to the nearest value, ties to even, and saturated to +-448; scale =
    max(amax, 1e-10) / 448 in float32, where amax is the largest finite magnitude of the group. A
    NaN stays a NaN, an infinity becomes 448 with its sign, and neither changes a scale. So the bits
    depend neither on the device nor on the number of threads.
    `include/tessera/quantize_fp8.hpp` has the contract.

    All arrays are on one device, where the op runs: on a GPU, on the current stream of torch or
    CuPy, without waiting for it; a graph may capture it. Calls with JAX arrays on a GPU are waited
    for. Autograd does not follow the call.

    Args:
        x: float16, bfloat16 or float32 [T, H]; rows may lie apart, but the last axis is contiguous.
            NumPy has no bfloat16 that it exports; torch and JAX have.
        group: the elements that share a scale: "tensor", all; "row", a row (a token, or an output
            channel of weights); 128, 128 columns of a row; (128, 128), blocks of weights. The last
            group of a row or a column holds what is left. In `torch.ops` the last two are "1x128"
            and "128x128", which are taken here too.
        scale: float32, contiguous, of the shape of `scales`, or with one axis; for "tensor" any
            array of one element. The scales to use, whatever they are; None: they are computed.
        use_ue8m0: round computed scales up to powers of two; not with `scale`.
        num_threads: host threads to use at most, capped by TESSERA_NUM_THREADS; None and 0 stand
            for that, or, where it is unset, for the cores of this process. Never changes the
            result.
        out: tuple of the two arrays to write to; rows of values may lie apart. Neither may overlap
            another array of the call.

    Returns:
        `out` if given, else new arrays in the framework of `x`. values: float8_e4m3fn [T, H]; NumPy
        and CuPy lack that type, and have its bits as uint8. scales: float32, [1] for "tensor", [T,
        1] for "row", [T, ceil(H / 128)] for 128, [ceil(T / 128), ceil(H / 128)] for (128, 128); a
        copy of `scale` if that is given.

    Raises:
        TypeError: an argument has the wrong type. Nothing was written; so for all errors.
        ValueError: a value, shape, device or layout lies outside the op's domain, or autograd
            follows an array.
        NotImplementedError: nothing in this build can run the call.
        RuntimeError: the machine refused; `torch.OutOfMemoryError`, if torch has no memory left.
        MemoryError: NumPy's own, where it has no memory for the outputs.
    """
    arguments = {
        "group": _group_name(group),
        "scale": scale,
        "use_ue8m0": use_ue8m0,
        "num_threads": num_threads,
    }
    if is_traced(FRAMEWORKS[type(x)]):
        result: QuantizedFp8[Array] = call_traced(_OP, x, out, **arguments)
    else:
        result = _eagerly(x, **arguments, out=out)
    return result


def _group_name(group: object) -> str:
    """The name of a group in the table."""
    if isinstance(group, str):
        if group in _GROUPS:
            return group
    elif isinstance(group, (tuple, list)):
        if [_length(one, group) for one in group] == [128, 128]:
            return "128x128"
    elif _length(group, type(group).__name__) == 128:
        return "1x128"
    raise ValueError(
        f"{_OP.name}: group: expected 'tensor', 'row', 128 or (128, 128), got {shown(group)}"
    )


def _length(value: Any, got: object) -> int:
    """Convert an integer of any type to int; refuse anything else, with `got` in the message."""
    if type(value) is int:  # all that a trace needs
        return value
    if not isinstance(value, bool):
        with suppress(TypeError):
            return operator.index(value)
    text = got if isinstance(got, str) else shown(got)
    raise TypeError(f"{_OP.name}: group: expected a string, 128 or (128, 128), got {text}")


def _eagerly(
    x: Any,
    group: str,
    scale: Any,
    use_ue8m0: bool,
    num_threads: int | None,
    out: Any,
) -> Any:
    threads = 0 if num_threads is None else num_threads
    others = () if scale is None else (scale,)
    # A flag may be NumPy's, which the FFI does not take.
    numbers = (group, bool(use_ue8m0))
    result = call(_OP, FRAMEWORKS[type(x)], x, others, numbers, out, threads)
    if out is not None:
        return result
    values, scales = result
    return QuantizedFp8(values, scales.reshape(_scales_shape(values.shape, group)))


def _scales_shape(shape: Any, group: str) -> Shape:
    num_tokens, hidden_size = shape
    columns = (hidden_size + 127) // 128
    return {
        "tensor": (1,),
        "row": (num_tokens, 1),
        "1x128": (num_tokens, columns),
        "128x128": ((num_tokens + 127) // 128, columns),
    }[group]


def _shapes(arguments: Mapping[str, Any]) -> tuple[Shape, ...]:
    shape = tuple(arguments["x"].shape)
    return (shape, _scales_shape(shape, _group_name(arguments["group"])))


register(TorchOp(_OP, quantize_fp8, _eagerly, _shapes, {"group": _group_name}))


def quantize_fp8_contract_violations(
    x: Any,
    result: tuple[Any, ...],
    *,
    group: str | int | tuple[int, int],
    scale: Any = None,
    use_ue8m0: bool = False,
    num_threads: int | None = None,
    out: Any = None,
) -> list[Violation]:
    """Judge outputs of `quantize_fp8`, whoever computed them, against the op's contract.

    Takes the arguments of the call and its result, and ignores `num_threads` and `out`, on which
    the rules do not depend. Waits for arrays on a device, and copies them to the host. Time is
    linear in the input. A program that multiplies by a reciprocal, or has another least scale,
    keeps the rule `nearest`, and may break `scales` and `values`.

    Returns:
        At most one violation for each of the op's rules; none if the contract holds.
    """
    return violations(_OP, (x, scale), result, (_group_name(group), bool(use_ue8m0)))
