"""Compares an implementation of an op with the contract, and bit for bit with the reference.

Where the contract does not fix the bits, a second call takes the reference's place.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from tessera._device import HOST
from tessera._framework import on_device, on_host
from tessera._library import dlpack_device, load
from tessera._op import Op
from tessera._outputs import REFERENCE, new_outputs

# Every byte of outputs and workspace before a call, and of the memory around all arrays. Words of
# such bytes are neither an index nor an expert.
_POISON = 0xDE
_BESIDE = 64  # bytes on either side of an array, which is aligned to them
_BESIDE_WORKSPACE = 61  # odd: a workspace may have any alignment

# Types that NumPy does not have, and those that hold their bits.
_BITS = {"bfloat16": "uint16", "float8_e4m3fn": "uint8"}


class CaseArray(NamedTuple):
    """An array of a call; strides count elements."""

    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def _bits(self) -> np.dtype[Any]:
        return np.dtype(_BITS.get(self.dtype, self.dtype))

    @property
    def is_bits(self) -> bool:
        """Whether NumPy does not have its type."""
        return self.dtype in _BITS

    @property
    def num_bytes(self) -> int:
        """From the first element to past the last."""
        if 0 in self.shape:
            return 0
        steps = zip(self.shape, self.strides, strict=True)
        return self._bits.itemsize * (1 + sum((length - 1) * step for length, step in steps))

    @property
    def is_contiguous(self) -> bool:
        """Whether its elements follow each other."""
        steps = (math.prod(self.shape[axis + 1 :]) for axis in range(len(self.shape)))
        return self.strides == tuple(steps)

    def words(self, memory: Any) -> Any:
        """Its elements as unsigned integers, in the middle of bytes of NumPy."""
        size = self._bits.itemsize
        strides = tuple(size * step for step in self.strides)
        return np.ndarray(self.shape, f"u{size}", memory, _BESIDE, strides)

    def argument(self, memory: Any, *, takes_bits: bool = False) -> Any:
        """It as the library takes it, in the middle of bytes of NumPy or torch.

        `takes_bits`: of a type that NumPy does not have, its bits will do.
        """
        if isinstance(memory, np.ndarray):
            array = self.words(memory).view(self._bits)
            if self.is_bits and not takes_bits:
                return load().function("with_dtype")(load().as_tensor(array), self.dtype)
            return array
        import torch

        elements = memory[_BESIDE : _BESIDE + self.num_bytes].view(getattr(torch, self.dtype))
        return elements.as_strided(self.shape, self.strides)

    def text(self, word: int) -> str:
        """The value of an element in a message."""
        if "float" in self.dtype:
            return f"{word:#0{2 + 2 * self._bits.itemsize}x}"
        return str(np.array(word, f"u{self._bits.itemsize}").view(self._bits))


class CaseCall(NamedTuple):
    """A case of an op."""

    # The arguments in the order of the op's table: each an `CaseArray`, a number, a flag or, for an
    # array that is not given, None.
    values: tuple[Any, ...]
    # By name, the bytes of the given arrays before the call, with those around them.
    memory: dict[str, Any]


def case_values(op: Op, case: str, seed: int) -> tuple[Any, ...]:
    """The `values` of a case's call.

    Raises:
        ValueError: there is no such case.
    """
    return tuple(
        CaseArray(value["dtype"], tuple(value["shape"]), tuple(value["strides"]))
        if isinstance(value, dict)
        else value
        for value in load().read_json("op_case", op.name, case, seed)
    )


@functools.lru_cache(maxsize=1)  # of one case, which all implementations get
def case_call(op: Op, case: str, seed: int) -> CaseCall:
    """The call of a case.

    Raises:
        ValueError: there is no such case.
    """
    values = case_values(op, case, seed)
    memory = {
        row.name: _poisoned(value.num_bytes, _BESIDE)
        for row, value in zip(op.arguments, values, strict=True)
        if isinstance(value, CaseArray)
    }
    inputs = (memory.get(row.name) for row in op.inputs)
    write: Any = load().function("op_case_inputs")(op.name, case, seed)
    write(*(None if bytes_ is None else bytes_[_BESIDE:-_BESIDE] for bytes_ in inputs))
    return CaseCall(values, memory)


class _Ran(NamedTuple):
    """What a call left behind, on the host."""

    memory: dict[str, Any]
    problems: list[str]


def _poisoned(num_bytes: int, beside: int) -> Any:
    return np.full(num_bytes + 2 * beside, _POISON, np.uint8)


def _described(op: Op, values: tuple[Any, ...]) -> list[Any]:
    """The arguments of a size query."""
    return [
        (None if row.is_output else (value.dtype, *value.shape))
        if isinstance(value, CaseArray)
        else value
        for row, value in zip(op.arguments, values, strict=True)
        if row not in op.outputs
    ]


def has_usual_outputs(op: Op, values: tuple[Any, ...]) -> bool:
    """Whether a call's outputs are what one without `out` returns: no longer, and contiguous."""
    given = dict(zip((row.name for row in op.arguments), values, strict=True))
    inputs = [given[row.name] for row in op.inputs]
    options = tuple(_described(op, values)[len(inputs) :])
    return all(
        math.prod(given[row.name].shape) == math.prod(usual.shape) and given[row.name].is_contiguous
        for row, usual in zip(op.outputs, new_outputs(op, inputs, options), strict=True)
    )


def _workspace_bytes(op: Op, call: CaseCall, implementation: str, cuda_index: int) -> int:
    """What the implementation asks for on a device; on the host the library has its own."""
    if cuda_index == HOST:
        return 0
    size = np.empty(1, np.int64)
    op.sizes(*dlpack_device(cuda_index), 0, implementation, size, *_described(op, call.values))
    return int(size[0])


def _arguments(op: Op, call: CaseCall, memory: dict[str, Any]) -> list[Any]:
    return [
        value.argument(memory[row.name], takes_bits=row.dtypes == ("float8_e4m3fn",))
        if isinstance(value, CaseArray)
        else value
        for row, value in zip(op.arguments, call.values, strict=True)
    ]


def _run(op: Op, call: CaseCall, implementation: str, cuda_index: int) -> _Ran:
    """Makes the call, with memory around every output and the workspace that it must not write."""
    memory = {name: on_device(before.copy(), cuda_index) for name, before in call.memory.items()}
    size = _workspace_bytes(op, call, implementation, cuda_index)
    around = on_device(_poisoned(size, _BESIDE_WORKSPACE), cuda_index)
    workspace = around[_BESIDE_WORKSPACE : _BESIDE_WORKSPACE + size]
    missing = op.call(workspace, 0, implementation, *_arguments(op, call, memory))

    problems = [f"a workspace of {size} bytes was asked for, then {missing}"] if missing else []
    memory = {name: np.asarray(on_host(after)) for name, after in memory.items()}
    for row, value in zip(op.arguments, call.values, strict=True):
        if not isinstance(value, CaseArray):
            continue
        after = memory[row.name]
        if not row.is_output and not np.array_equal(after, call.memory[row.name]):
            problems.append(f"{row.name} was written")
        elif row.is_output and not is_whole(value, after):
            problems.append(f"memory beside {row.name} was written")
    around = np.asarray(on_host(around))
    around[_BESIDE_WORKSPACE : _BESIDE_WORKSPACE + size] = _POISON
    if np.any(around != _POISON):
        problems.append("memory beside workspace was written")
    return _Ran(memory, problems)


def is_whole(array: CaseArray, memory: Any) -> bool:
    """Whether the memory around an output, and between its rows, is as before the call."""
    memory = memory.copy()
    array.words(memory).view(np.uint8)[...] = _POISON
    return bool(np.all(memory == _POISON))


@functools.lru_cache(maxsize=1)
def _reference_of(op: Op, case: str, seed: int) -> _Ran:
    return _run(op, case_call(op, case, seed), REFERENCE, HOST)


def _differences(array: CaseArray, found: Any, expected: Any, other: str) -> Iterator[str]:
    """Where an output first differs from the output of another call."""
    words, wanted = array.words(found), array.words(expected)
    for place in np.argwhere(words != wanted)[:1]:
        where = ", ".join(map(str, place))
        got, want = (array.text(each[tuple(place)]) for each in (words, wanted))
        yield f"[{where}]: {other} has {want}, found {got}"


def problems(op: Op, case: str, seed: int, implementation: str, cuda_index: int = 0) -> list[str]:
    """What is wrong with an implementation of an op on one case; nothing if all is well.

    Implementations of the CUDA backend run on the device `cuda_index`, on arrays of torch.

    Raises:
        NotImplementedError: the implementation does not take this shape.
        ValueError: there is no such case.
    """
    call = case_call(op, case, seed)
    device = cuda_index if implementation.startswith("cuda/") else HOST
    ran = _run(op, call, implementation, device)
    if load().function("op_fixes_bits")(op.name):
        expected, other = _reference_of(op, case, seed), REFERENCE
    else:
        expected, other = _run(op, call, implementation, device), "the same call, repeated,"
    messages = list(ran.problems)
    for row, value in zip(op.arguments, call.values, strict=True):
        if isinstance(value, CaseArray) and row.is_output:
            after = (ran.memory[row.name], expected.memory[row.name])
            differences = _differences(value, *after, other)
            messages += [row.name + difference for difference in differences]
    device_type, _ = dlpack_device(device)
    violations = json.loads(op.checker(device_type, *_arguments(op, call, ran.memory)))
    return messages + [violation["message"] for violation in violations]


def implementations(op: Op, cuda_index: int) -> dict[str, str]:
    """Those for a device, fastest first, and why one does not run the op's first case."""
    (first, *_) = case_names(op)
    described = _described(op, case_values(op, first, 0))
    reports = json.loads(op.explain(*dlpack_device(cuda_index), 0, *described))
    return {report["name"]: report["refusal"] for report in reports}


def case_names(op: Op) -> list[str]:
    """Names of the cases in the op's table."""
    return load().read_json("op_case_names", op.name)  # type: ignore[no-any-return]


def require_case(op: Op, name: str) -> None:
    """Refuse a name that is no case of the op, of its table or random.

    Raises:
        ValueError: so it is.
    """
    if name not in case_names(op):
        case_call(op, name, 0)
