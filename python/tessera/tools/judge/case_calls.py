"""The process that makes the calls of an op's cases, for any op with one output."""

from __future__ import annotations

import inspect
import math
import time
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np

import tessera
from tessera._library import torch_or_none
from tessera._op import Argument, Op
from tessera.contract import violations
from tessera.tools.judge.faults import Fault
from tessera.tools.judge.implementation import load_implementation
from tessera.tools.judge.worker import (
    ArrayLibrary,
    Refused,
    Target,
    begin_serving,
    failed,
    poison_free_memory,
)
from tessera.verification import CaseArray, CaseCall, case_call, is_whole


class Found(NamedTuple):
    """What the process found of an implementation.

    parameters: the names that it takes; None if it takes any.
    """

    parameters: frozenset[str] | None
    arrays: str
    device: str


class Judged(NamedTuple):
    """The rules that a call broke. lost: why the process can no longer use the device."""

    faults: list[Fault]
    seconds: float
    lost: str = ""


def passed(op: Op, values: tuple[Any, ...]) -> dict[str, Any]:
    """The arguments of a case that its call passes, by parameter: not those with their defaults."""

    def is_passed(row: Argument, value: Any) -> bool:
        if row.is_output:
            return bool(value.strides != _contiguous(value.shape))
        return value is not None if row.is_array else bool(value != row.default)

    return {
        "out" if row.is_output else row.name: value
        for row, value in zip(op.arguments, values, strict=True)
        if is_passed(row, value)
    }


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def serve(name: str, connection: Connection, target: Target, log: str) -> None:
    """Send what was found, then judge each case that is received, until None is."""
    begin_serving(log)
    op = Op(name)
    try:
        function = load_implementation(target.implementation, target.folder)
        parameters = _parameters(function, name)
        usual = "numpy" if torch_or_none() is None else "torch"
        library = ArrayLibrary(target.arrays or usual, target.device)  # type: ignore[arg-type]
    except (ValueError, ImportError) as error:
        connection.send(Refused(str(error)))
        return
    arrays = "numpy" if library.torch is None else "torch"
    connection.send(Found(parameters, arrays, library.device))
    while (request := connection.recv()) is not None:
        started = time.perf_counter()
        call = case_call(op, *request)
        judged, first = _made(op, function, library, call)
        if not judged.faults and not judged.lost:
            judged, second = _made(op, function, library, call)
            if not judged.faults and first != second:
                message = "the output differed between two equal calls"
                judged.faults.append(Fault("repeatable", "", message))
        connection.send(judged._replace(seconds=time.perf_counter() - started))
        if judged.lost:
            return


def _parameters(function: Any, name: str) -> frozenset[str] | None:
    """The names of the function's parameters; None if it takes any, or does not say.

    Raises:
        ValueError: it cannot be called as the op's function.
    """
    expected = inspect.signature(getattr(tessera, name))
    required = [one for one in expected.parameters.values() if one.default is one.empty]
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # compiled functions may have no signature
        return None
    try:
        signature.bind(*required)
    except TypeError:
        raise ValueError(
            f"--impl: expected a function with the parameters of tessera.{name}{expected}, got one "
            f"with {signature}"
        ) from None
    kinds = [one.kind for one in signature.parameters.values()]
    if inspect.Parameter.VAR_KEYWORD in kinds:
        return None
    return frozenset(signature.parameters)


def _made(
    op: Op, function: Any, library: ArrayLibrary, call: CaseCall
) -> tuple[Judged, bytes | None]:
    """Make the call; returns the rules that it broke, and the bytes of its output."""
    memory = {name: library.array(before.copy()) for name, before in call.memory.items()}
    (output,) = op.outputs
    arguments = {
        name: value.argument(memory[output.name if name == "out" else name])
        if isinstance(value, CaseArray)
        else value
        for name, value in passed(op, call.values).items()
    }
    parameters = inspect.signature(getattr(tessera, op.name)).parameters.values()
    # An optional array may be a parameter without a default, as in moe_unpermute.
    required = [arguments.pop(one.name, None) for one in parameters if one.default is one.empty]
    poison_free_memory(library, {output.name: len(call.memory[output.name]) // 4})
    try:
        result = function(*required, **arguments)
        library.synchronize()
    except BaseException as error:
        outcome = failed(library, error)
        if outcome.error is None:
            return Judged([], 0, outcome.lost), None
        kind, text = outcome.error
        return Judged([Fault("no_exception", kind, f"raised {kind}: {text}")], 0), None
    after = {name: np.asarray(library.host(bytes_)) for name, bytes_ in memory.items()}
    faults = list(_memory_faults(op, call, after))
    result = arguments.get("out", result)
    malformed = _malformed(library, result)
    if malformed:
        faults.append(Fault("output_form", "", f"expected one array, got {malformed}"))
        return Judged(faults, 0), None
    if library.torch is None:
        host = np.ascontiguousarray(result)
        found = host.tobytes()
    else:
        host = result.detach().cpu().contiguous()
        found = bytes(host.reshape(-1).view(library.torch.uint8).numpy())
    given = {
        row.name: value.argument(call.memory[row.name]) if isinstance(value, CaseArray) else value
        for row, value in zip(op.arguments, call.values, strict=True)
    }
    inputs = tuple(given[row.name] for row in op.inputs)
    numbers = tuple(given[row.name] for row in op.numbers)
    try:
        broken = violations(op, inputs, host, numbers)
    except TypeError as error:  # of a data type that no op has
        faults.append(Fault("output_form", "", str(error)))
    else:
        faults += [Fault(one.rule, "", one.message) for one in broken]
    return Judged(faults, 0), found


def _memory_faults(op: Op, call: CaseCall, after: dict[str, Any]) -> Any:
    for row, value in zip(op.arguments, call.values, strict=True):
        if not isinstance(value, CaseArray):
            continue
        if row.is_output and not is_whole(value, after[row.name]):
            yield Fault("memory_kept", "", f"memory beside {row.name} was written")
        elif not row.is_output and not np.array_equal(after[row.name], call.memory[row.name]):
            yield Fault("inputs_kept", "", f"{row.name} was written to")


def _malformed(library: ArrayLibrary, result: Any) -> str:
    """What is wrong with the form of the return value; empty if nothing is."""
    if not library.is_array(result):
        return f"a value of type {type(result).__name__}"
    on = "cpu" if library.torch is None else result.device.type
    return "" if on == library.device.partition(":")[0] else f"one on {on}"
