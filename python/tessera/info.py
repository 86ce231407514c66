"""What this build of Tessera is, and what a call would run."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, overload

import numpy as np

from tessera._call import refused_choice
from tessera._device import cuda_index_of
from tessera._library import dlpack_device, load, refusal
from tessera._op import Argument, Op, op_names, refuse_bool_threads
from tessera._outputs import ALIGN
from tessera._shown import printable
from tessera._shown import shown as shown_value
from tessera._torch_registry import TORCH_OPS


@dataclass(frozen=True)
class Backend:
    """A backend that Tessera knows; `detail` says what it runs on, or why it is unavailable."""

    name: str
    available: bool
    detail: str


@dataclass(frozen=True)
class Implementation:
    """An implementation of an op.

    `refusal` says why it does not run, and is empty if it could; `plan` says how it would, and is
    empty on the CPU.
    """

    name: str
    refusal: str
    plan: str
    selected: bool


def version() -> str:
    """Version of the compiled library, "major.minor.patch"."""
    return str(load().function("version")())


def build() -> str:
    """Compiler and build type of the compiled library."""
    return str(load().function("build")())


def backends() -> list[Backend]:
    """Every backend, available or not."""
    return [Backend(**fields) for fields in load().read_json("backends")]


@overload
def explain(
    num_ids: int,
    num_experts: int,
    block_size: int,
    *,
    pad_sorted_ids: bool = ...,
    num_threads: int | None = ...,
    device: Any = ...,
) -> list[Implementation]: ...


@overload
def explain(
    op: str, /, *, num_threads: int | None = ..., device: Any = ..., **shape: Any
) -> list[Implementation]: ...


def explain(
    *given: Any, num_threads: int | None = None, device: Any = "cpu", **shape: Any
) -> list[Implementation]:
    """What an op would run for a shape, and why not the others, fastest first.

    `explain("moe_sum", T=16, k=8, H=7168, dtype="bfloat16")`: the name of the op, and by name the
    lengths of its inputs, as its page calls them, its numbers and flags, such as `block_size=128`,
    and the data type of its first input, as torch's or as anything that `np.dtype()` takes. Flags
    are False by default. A number that is also the length of an output has both names: in
    `select_experts` and `select_and_align`, `k` is `top_k`. Ops that read their inputs flattened,
    as the alignment ops do, need no data type.

    `explain(8192, 64, 128, pad_sorted_ids=True)` is short for `explain("align_block_size", N=8192,
    num_experts=64, block_size=128, pad_sorted_ids=True)`; the first of these three numbers may also
    be given as `num_ids`.

    Args:
        *given: the name of the op, or the three numbers of `align_block_size`.
        num_threads: host threads to use at most; None or 0: as many as the op would.
        device: "cpu", "cuda", "cuda:1", the number of a CUDA device, or a `torch.device`.
        **shape: lengths, numbers, flags and data type.

    Returns:
        All implementations for this device; none where `backends()` says that it is unavailable.

    Raises:
        TypeError: a value is missing, has the wrong type, or a name that the op does not know.
        ValueError: there is no such op or device, or the shape lies outside the op's domain.
    """
    op = ALIGN
    if given and isinstance(given[0], str):
        op = _op_named(given[0])
        given = given[1:]
        names: dict[str, str] = {}
    else:
        names = {"num_ids": "N", "num_experts": "num_experts", "block_size": "block_size"}
    if len(given) > len(names):
        raise TypeError(
            f"{op.name}: expected {len(names) or 'no'} numbers without a name, got {len(given)}"
        )
    named = dict(zip(names, given, strict=False)) | shape
    values: dict[str, Any] = {}
    for name, value in named.items():
        own_name = names.get(name) or argument_name(op, name)
        if own_name in values:
            raise TypeError(f"{op.name}: {own_name}: expected one value, got two")
        values[own_name] = value
    shown = {symbol: name for name, symbol in names.items()}
    refuse_bool_threads(op.name, num_threads)
    threads = 0 if num_threads is None else num_threads
    place = dlpack_device(cuda_index_of(op.name, device))
    described = _described(op, values, shown)
    try:
        reports = json.loads(op.explain(*place, threads, *described))
    except Exception as error:
        raise refusal(op.name, error, {}, {"num_threads": threads}) from None
    return [Implementation(**fields) for fields in reports]


def _op_named(name: str) -> Op:
    known = op_names()
    if name not in known:
        raise ValueError(f"explain: op: expected one of {', '.join(known)}, got {name!r}")
    return Op(name)


def _given_lengths(op: Op, *, optional: bool) -> dict[str, int]:
    """Name and maximum of each length that an input gives; `optional`: optional inputs count."""
    return {
        op.symbols[length.symbol]: length.constant
        for row in op.inputs
        for length in row.lengths
        if length.bound == "gives" and length.symbol is not None
        if optional or not row.is_optional
    }


def known_names(op: Op) -> list[str]:
    """What `explain` takes for an op by name."""
    lengths = _given_lengths(op, optional=True)
    numbers = [row.name for row in (*op.numbers, *op.rest) if not row.is_array]
    return [*lengths, *numbers, "dtype"]


def argument_name(op: Op, name: str) -> str:
    """The name of the number whose symbol on the op's page is `name`; of all else, `name` itself.

    In `select_experts` and `select_and_align`, `k` is `top_k`.
    """
    symbols = {op.symbols[row.symbol]: row.name for row in op.numbers if row.symbol is not None}
    return symbols.get(name, name)


def required_names(op: Op) -> list[str]:
    """What `explain` needs for an op, by name."""
    required = [*_given_lengths(op, optional=False)]
    required += [row.name for row in op.numbers if row.kind == "int64" and not row.default]
    if op.inputs[0].ndim > 0:
        required.append("dtype")
    return required


def _described(op: Op, values: dict[str, Any], shown: dict[str, str]) -> list[Any]:
    """The arguments of a size query; `shown` has the names of values in messages, if others."""
    known = known_names(op)
    for name in values:
        if name not in known:
            raise TypeError(f"{op.name}: expected values of {', '.join(known)}, got one of {name}")
    missing = [shown.get(name, name) for name in required_names(op) if values.get(name) is None]
    if missing:
        dtypes = ", ".join(op.inputs[0].dtypes)
        raise TypeError(
            f"{op.name}: {', '.join(missing)}: expected a value, got none"
            + (f"; dtype is one of {dtypes}" if "dtype" in missing else "")
        )

    def integer(name: str, low: int, high: int) -> int:
        value = values.get(name)
        called = shown.get(name, name)
        if not isinstance(value, Integral):
            kind = type(value).__name__
            raise TypeError(f"{op.name}: {called}: expected an integer, got {kind}")
        if not low <= int(value) <= high:
            raise ValueError(
                f"{op.name}: {called}: expected an integer in [{low}, {high}], got "
                f"{shown_value(value)}"
            )
        return int(value)

    def number(row: Argument) -> Any:
        if row.kind == "flag":
            value = values.get(row.name, bool(row.default))
            if not isinstance(value, bool | np.bool_):
                kind = type(value).__name__
                raise TypeError(f"{op.name}: {row.name}: expected a bool, got {kind}")
            return bool(value)
        if row.name not in values and (row.kind in ("int32", "float32") or row.default):
            return row.default
        if row.choices:
            return _choice(op, row, values[row.name])
        if row.kind == "float32":
            return _float(op, row, values[row.name])
        return integer(row.name, row.low, row.high)

    most = _given_lengths(op, optional=True)
    known_lengths = {name: integer(name, 0, most[name]) for name in most if name in values}

    def described_input(row: Argument) -> Any:
        names = [op.symbols[one.symbol] for one in row.lengths if one.symbol is not None]
        given = [one for one in row.lengths if one.bound == "gives"]
        if not given or (row.is_optional and names[0] not in values):
            return None
        # A length that follows from others is not read.
        shape = [known_lengths.get(name, 0) for name in names]
        if math.prod(shape) >= 2**63:
            raise ValueError(
                f"{op.name}: {' * '.join(names)}: expected at most {2**63 - 1}, "
                f"got {math.prod(shape)}"
            )
        if row.ndim == 0 and "dtype" not in values:
            return shape[0]
        takes_dtype = row is op.inputs[0] or row.same_dtype_as is not None
        return (_dtype(op, row, values["dtype"]) if takes_dtype else row.dtypes[0], *shape)

    described = [described_input(row) for row in op.inputs]
    described += map(number, op.numbers)
    return described + [None if row.is_array else number(row) for row in op.rest]


def _choice(op: Op, row: Argument, value: Any) -> str:
    convert = TORCH_OPS[op.name].conversions.get(row.name)
    if convert is not None and not isinstance(value, str):  # the command gives names alone
        value = convert(value)
    if value not in row.choices:
        raise refused_choice(op, row, value)
    return str(value)


def _float(op: Op, row: Argument, value: Any) -> float:
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{op.name}: {row.name}: expected a number, got {type(value).__name__}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(
            f"{op.name}: {row.name}: expected a number that float32 holds, got {shown_value(value)}"
        ) from None


def _dtype(op: Op, row: Argument, dtype: Any) -> str:
    """The name of a data type of the input, given as torch's, or as `np.dtype()` takes it."""
    name = shown_value(dtype) if isinstance(dtype, Integral) else printable(str(dtype))
    name = name.removeprefix("torch.")
    if name not in row.dtypes and dtype is not None:  # None stands for float64
        try:
            known = np.dtype(dtype)
        except (TypeError, ValueError, SyntaxError):  # NumPy parses text
            pass
        else:
            name = known.name if known.isnative else str(known)
    if name not in row.dtypes:
        raise TypeError(f"{op.name}: dtype: expected one of {', '.join(row.dtypes)}, got {name}")
    return name
