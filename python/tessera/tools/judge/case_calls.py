"""The process that makes the calls of an op's cases, for any op."""

from __future__ import annotations

import inspect
import time
from collections.abc import Collection, Mapping
from multiprocessing.connection import Connection
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

import tessera
from tessera._library import torch_or_none
from tessera._op import Op
from tessera.contract import violations
from tessera.tools.judge.engine_functions import as_op
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
from tessera.verification import CaseArray, CaseCall, case_call, has_usual_outputs, is_whole

COUNTS = {1: "one array", 2: "two arrays", 3: "three arrays", 5: "five arrays"}


class Found(NamedTuple):
    """What the process found of an implementation.

    parameters: the names that it takes; None if it takes any.
    """

    parameters: frozenset[str] | None
    arrays: str
    device: str
    only: Mapping[str, Collection[Any]] = MappingProxyType({})  # the values of numbers that it has


class Judged(NamedTuple):
    """The rules that a call broke. lost: why the process can no longer use the device."""

    faults: list[Fault]
    seconds: float
    lost: str = ""


def passed(op: Op, values: tuple[Any, ...]) -> dict[str, Any]:
    """The arguments of a case that its call passes, by parameter: not those with their defaults.

    `out` is one array or a tuple of them, as for the op's function.
    """
    defaults = inspect.signature(getattr(tessera, op.name)).parameters
    given: dict[str, Any] = {}
    dependent: dict[str, Any] = {}  # numbers whose default depends on others, such as topk_group
    for row, value in zip(op.arguments, values, strict=True):
        if row.is_array:
            if not row.is_output and value is not None:
                given[row.name] = value
        elif row.row_length_of is None:
            is_given = value != row.default
            if row.default is not None and defaults[row.name].default is None:
                dependent[row.name] = value
            elif is_given or defaults[row.name].default is inspect.Parameter.empty:
                given[row.name] = value
    usual = {row.name: row.default for row in op.arguments}
    if any(value != usual[name] for name, value in dependent.items()):
        given |= dependent
    if not has_usual_outputs(op, values):
        by_name = dict(zip((row.name for row in op.arguments), values, strict=True))
        outputs = tuple(by_name[row.name] for row in op.outputs)
        given["out"] = outputs if op.num_outputs > 1 else outputs[0]
    return given


def serve(name: str, connection: Connection, target: Target, log: str) -> None:
    """Send what was found, then judge each case that is received, until None is."""
    begin_serving(log)
    op = Op(name)
    try:
        loaded = load_implementation(target.implementation, target.folder)
        function, only = as_op(name, loaded)
        parameters = _parameters(function, name)
        usual = "numpy" if torch_or_none() is None else "torch"
        library = ArrayLibrary(target.arrays or usual, target.device)  # type: ignore[arg-type]
    except (ValueError, ImportError) as error:
        connection.send(Refused(str(error)))
        return
    arrays = "numpy" if library.torch is None else "torch"
    connection.send(Found(parameters, arrays, library.device, only))
    while (request := connection.recv()) is not None:
        started = time.perf_counter()
        call = case_call(op, *request)
        judged, first = _made(op, function, library, call)
        if not judged.faults and not judged.lost:
            judged, second = _made(op, function, library, call)
            if not judged.faults and first != second:
                message = f"the {_noun(op)} differed between two equal calls"
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
    by_name = {one.name: one for one in required if one.kind is one.KEYWORD_ONLY}
    positional = [one for one in required if one.name not in by_name]
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # compiled functions may have no signature
        return None
    try:
        signature.bind(*positional, **by_name)
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
    """Make the call; returns the rules that it broke, and the bytes of its outputs."""
    memory = {name: library.array(before.copy()) for name, before in call.memory.items()}

    def made(name: str, value: Any) -> Any:
        return value.argument(memory[name]) if isinstance(value, CaseArray) else value

    given = passed(op, call.values)
    arguments = {name: made(name, value) for name, value in given.items() if name != "out"}
    if "out" in given:
        by_name = dict(zip((row.name for row in op.arguments), call.values, strict=True))
        outputs = tuple(made(row.name, by_name[row.name]) for row in op.outputs)
        arguments["out"] = outputs if op.num_outputs > 1 else outputs[0]
    parameters = inspect.signature(getattr(tessera, op.name)).parameters.values()
    # An optional array may be a parameter without a default, as in moe_unpermute.
    positional = [
        arguments.pop(one.name, None)
        for one in parameters
        if one.default is one.empty and one.kind is not one.KEYWORD_ONLY
    ]
    poison_free_memory(library, {row.name: len(call.memory[row.name]) // 4 for row in op.outputs})
    try:
        result = function(*positional, **arguments)
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
    malformed = _malformed(op, library, result)
    if malformed:
        message = f"expected {COUNTS[op.num_outputs]}, got {malformed}"
        faults.append(Fault("output_form", "", message))
        return Judged(faults, 0), None
    returned = result if op.num_outputs > 1 else (result,)
    host = tuple(_on_host(library, array) for array in returned)
    found = b"".join(_bytes(library, array) for array in _in_use(op, host))
    original = {
        row.name: value.argument(call.memory[row.name]) if isinstance(value, CaseArray) else value
        for row, value in zip(op.arguments, call.values, strict=True)
    }
    inputs = tuple(original[row.name] for row in op.inputs)
    # The library reads a row's length off its array.
    numbers = tuple(None if row.row_length_of else original[row.name] for row in op.numbers)
    try:
        broken = violations(op, inputs, host if op.num_outputs > 1 else host[0], numbers)
    except TypeError as error:  # of a data type that no op has
        faults.append(Fault("output_form", "", str(error)))
    else:
        faults += [Fault(one.rule, "", one.message) for one in broken]
    return Judged([each for each in faults if each.rule not in not_asked(op)], 0), found


def not_asked(op: Op) -> frozenset[str]:
    """Rules of the contract that only Tessera keeps: its own elementary functions."""
    return frozenset(["exact_bits"] if op.name == "select_experts" else [])


def _on_host(library: ArrayLibrary, array: Any) -> Any:
    return (
        np.ascontiguousarray(array) if library.torch is None else array.detach().cpu().contiguous()
    )


def _bytes(library: ArrayLibrary, array: Any) -> bytes:
    if library.torch is None:
        return bytes(np.ascontiguousarray(array).tobytes())
    return bytes(array.reshape(-1).view(library.torch.uint8).numpy())


def _in_use(op: Op, outputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """The outputs without the rows that the contract leaves unwritten."""
    if op.name != "moe_permute":
        return outputs
    rows, expert_offsets, inverse = outputs
    offsets = expert_offsets.reshape(-1).tolist()
    return rows[: max(int(offsets[-1]), 0)] if offsets else rows, expert_offsets, inverse


def _noun(op: Op) -> str:
    return "output" if op.num_outputs == 1 else "outputs"


def _memory_faults(op: Op, call: CaseCall, after: dict[str, Any]) -> Any:
    for row, value in zip(op.arguments, call.values, strict=True):
        if not isinstance(value, CaseArray):
            continue
        if row.is_output and not is_whole(value, after[row.name]):
            yield Fault("memory_kept", "", f"memory beside {row.name} was written")
        elif not row.is_output and not np.array_equal(after[row.name], call.memory[row.name]):
            yield Fault("inputs_kept", "", f"{row.name} was written to")


def _malformed(op: Op, library: ArrayLibrary, result: Any) -> str:
    """What is wrong with the form of the return value; empty if nothing is."""
    if op.num_outputs == 1:
        return _malformed_array(library, result)
    if not isinstance(result, (tuple, list)):
        return f"a value of type {type(result).__name__}"
    if len(result) != op.num_outputs:
        return f"{len(result)} values"
    for row, array in zip(op.outputs, result, strict=True):
        if malformed := _malformed_array(library, array):
            return f"for {row.name} {malformed}"
    return ""


def _malformed_array(library: ArrayLibrary, array: Any) -> str:
    if not library.is_array(array):
        return f"a value of type {type(array).__name__}"
    on = "cpu" if library.torch is None else array.device.type
    return "" if on == library.device.partition(":")[0] else f"one on {on}"
