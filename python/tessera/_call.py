"""How every op runs from Python: from arrays and numbers to the FFI and back."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np

from tessera._arrays import (
    UNFIT,
    any_followed,
    any_unfit,
    refuse_followed,
    refuse_followed_inputs,
    refused_array,
    require_eager,
)
from tessera._device import HOST
from tessera._float8 import bits_of_call, in_type_of
from tessera._framework import Framework, exportable
from tessera._library import refusal
from tessera._op import Argument, Op
from tessera._outputs import (
    NewOutput,
    call_sizes,
    made_dtypes,
    new_outputs,
    require_outputs,
    shape_of,
)
from tessera._renaming import renamed
from tessera._shown import printable, shown

_INT32 = np.dtype(np.int32)

# The number of threads that callers leave to the library, recognised by its identity.
_AUTOMATIC = 0


def call(
    op: Op,
    framework: Framework,
    source: Any,
    others: tuple[Any, ...],
    numbers: tuple[Any, ...],
    out: Any,
    num_threads: Any = _AUTOMATIC,
    rest: tuple[Any, ...] = (),
    num_rows: Any = None,
) -> Any:
    """Call an op, and let it write to `out`, or to new arrays of the first input's framework.

    Args:
        op: the op.
        framework: of the first input, which decides about the device.
        source: the first input.
        others: the other inputs, in the order of the table, None where one is not given; the empty
            tuple stands for none of them.
        numbers: its numbers and flags, in this order; flags are bools. Cut short where defaults
            will do and there is no `rest`.
        out: a tuple of its outputs, or the output if it has one; or None.
        num_threads: host threads to use at most; 0: as many as pay.
        rest: optional outputs and rarer flags, in this order, cut short where defaults will do.
        num_rows: rows that new outputs have, but the last; None where they have one axis.

    Returns:
        `out`, or new arrays: the output, or the op's named tuple of all of them; those of the
        alignment ops are parts of one allocation.

    Raises:
        TypeError, ValueError, NotImplementedError, RuntimeError: as the op's function says.
    """
    if out is not None and framework.num_modes is not None:  # quickly: tensors of torch
        inputs = (source, *(others or op.no_others))
        if op.direct(out, num_threads, *inputs, *numbers, *rest) is not None:
            return out
    try:
        is_unfit = framework.is_unfit
        if is_unfit is not None and is_unfit(source):
            raise TypeError(UNFIT)
        sent = source if framework.exportable is None else framework.exportable(source)
        kind = type(source)
        sent_others = _checked(op, framework, kind, others) if others else op.no_others
        if rest:
            _check_rest(op, framework, rest)
        workspace = None  # on the host it is the library's own
        if out is not None:
            is_tuple = isinstance(out, tuple)
            outputs = out if is_tuple else (out,)
            if len(outputs) != op.num_outputs or is_tuple is (op.num_outputs == 1):
                outputs = require_outputs(op, out)  # which refuses it
            for array in outputs:
                if type(array) is not kind:
                    _check_unlike(op, framework, outputs)
                    break
                if is_unfit is not None and is_unfit(array):
                    raise TypeError(UNFIT)
            else:
                if framework.immutable:
                    raise TypeError(UNFIT)
            function, plain = op.call, op.plain
            if op.has_floats and any_followed((source, *others, *outputs)):
                refuse_followed_inputs(op, (source, *others))
                for row, array in zip(op.outputs, outputs, strict=True):
                    refuse_followed(op.name, row.name, array)
        elif op.is_joined:
            options = (*numbers, *_flags(op, rest)) if rest else numbers
            cuda_index = framework.cuda_index(source)
            layout, workspace_bytes = call_sizes(
                op, framework.num_elements(source), options, cuda_index
            )
            # One allocation, and one array across the boundary, in place of several.
            if cuda_index == HOST:
                memory = np.empty(layout.length, _INT32)
            else:
                # Freed when this function returns, which may be before the call has run: the
                # allocators of torch and CuPy reuse memory in the order of the stream that the call
                # is on, under graph capture too. An allocation of its own, so that the outputs do
                # not keep it alive.
                if workspace_bytes:
                    workspace = framework.empty_bytes(source, workspace_bytes)
                memory = framework.empty_int32(source, layout.length)
            outputs = (memory, *layout.inner_lengths)
            function, plain = op.joined, op.joined_plain
        else:
            if op.has_floats and any_followed((source, *others)):
                refuse_followed_inputs(op, (source, *others))
            options = (*numbers, *_flags(op, rest)) if rest else numbers
            inputs = (source, *(others or op.no_others))
            wanted = new_outputs(op, inputs, options)
            if op.has_made and (made := made_dtypes(op, source)) is not None:
                wanted = tuple(
                    NewOutput(shape, dtype) for (shape, _), dtype in zip(wanted, made, strict=True)
                )
            outputs = tuple([framework.empty_like(source, shape, dtype) for shape, dtype in wanted])
            function, plain = op.call, op.plain
        missing = 0
        if framework.launch is not None:
            arguments = (num_threads, None, sent, *sent_others, *outputs, *numbers, *rest)
            _launch(framework.launch, function, framework, source, workspace, arguments)
        elif workspace is None and num_threads is _AUTOMATIC and not (others or rest):
            missing = plain(sent, *outputs, *numbers)
        else:
            missing = function(
                workspace, num_threads, None, sent, *sent_others, *outputs, *numbers, *rest
            )
        # Most calls need no workspace; one on a device that does says how much, and has done
        # nothing.
        if missing:
            workspace = framework.empty_bytes(source, missing)
            function(workspace, num_threads, None, sent, *sent_others, *outputs, *numbers, *rest)
    except Exception as error:
        # No variable of this frame may hold it: its traceback holds the frame, and so the arrays.
        inputs = (source, *(others or op.no_others))
        bits = bits_of_call(op, inputs, out)
        if bits is None:
            raise call_refusal(op, error, inputs, out, numbers, num_threads, rest) from None
    else:
        bits = None
    if bits is not None:  # looked for after a failure, so that it costs other calls nothing
        (first, *more), out_bits = bits
        options = (numbers, out_bits, num_threads, rest, num_rows)
        parts = call(op, framework, first, tuple(more), *options)
        return out if out is not None else in_type_of(op, source, parts)
    if out is not None:
        return out
    if op.is_joined:
        split = framework.split_host if cuda_index == HOST else framework.split
        parts = split(memory, layout)
    else:
        parts = outputs
    if num_rows is not None:
        rows = int(num_rows)
        *first, last = parts
        parts = (*(part.reshape((rows, -1)) for part in first), last)
    if framework.adopt is not None:
        parts = tuple(framework.adopt(source, part) for part in parts)
    return parts[0] if op.num_outputs == 1 else tuple.__new__(op.result_type, parts)


def _launch(
    launch: Callable[[Any, Callable[[], object]], None],
    function: Any,
    framework: Framework,
    source: Any,
    workspace: Any,
    arguments: tuple[Any, ...],
) -> None:
    """Make the call the way that the framework asks for."""

    def run() -> None:
        if missing := function(workspace, *arguments):
            function(framework.empty_bytes(source, missing), *arguments)

    launch(source, run)


def _checked(op: Op, framework: Framework, kind: type, others: tuple[Any, ...]) -> tuple[Any, ...]:
    """All inputs but the first, whose type is `kind`, as the FFI takes them."""
    if framework.is_direct:
        is_unfit = framework.is_unfit
        for array in others:
            if array is not None and (
                type(array) is not kind or (is_unfit is not None and is_unfit(array))
            ):
                break
        else:
            return others
    if any_unfit(others):
        raise TypeError(UNFIT)
    if framework.num_modes is None:  # else the caller has asked
        require_eager(op.name, zip((row.name for row in op.inputs[1:]), others, strict=True))
    return tuple(map(exportable, others))


def _check_unlike(op: Op, framework: Framework, outputs: tuple[Any, ...]) -> None:
    """Refuse outputs of various frameworks that the FFI would accept without an error."""
    if any_unfit(outputs, written=True):
        raise TypeError(UNFIT)
    if framework.num_modes is None:  # else the caller has asked
        require_eager(op.name, zip((row.name for row in op.outputs), outputs, strict=True))


def _check_rest(op: Op, framework: Framework, rest: tuple[Any, ...]) -> None:
    """Refuse optional outputs that the FFI would accept without an error."""
    arrays = [(row, value) for row, value in zip(op.rest, rest, strict=False) if row.is_array]
    if any_unfit((array for _, array in arrays), written=True):
        raise TypeError(UNFIT)
    for row, array in arrays:
        if row.is_float:
            refuse_followed(op.name, row.name, array)
    if framework.num_modes is None:  # else the caller has asked
        require_eager(op.name, ((row.name, array) for row, array in arrays))


def _flags(op: Op, rest: tuple[Any, ...]) -> tuple[Any, ...]:
    """The rest as far as sizes may depend on it: without the arrays."""
    return tuple(None if row.is_array else value for row, value in zip(op.rest, rest, strict=False))


def named_arguments(
    op: Op, inputs: Sequence[Any], out: object, rest: Sequence[Any] = ()
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The given arrays of a call by name; and of them those that it writes."""
    arrays = {
        row.name: array
        for row, array in zip(op.inputs, inputs, strict=True)
        if array is not None or not row.is_optional
    }
    outputs = out if isinstance(out, tuple) else () if out is None else (out,)
    written = {row.name: array for row, array in zip(op.outputs, outputs, strict=False)}
    written |= {
        row.name: array
        for row, array in zip(op.rest, rest, strict=False)
        if row.is_array and array is not None
    }
    return arrays | written, written


def named_integers(op: Op, numbers: Sequence[Any]) -> dict[str, Any]:
    """The integers by name, without what the library fills in."""
    return {
        row.name: number
        for row, number in zip(op.numbers, numbers, strict=False)
        if row.kind in ("int64", "int32") and not row.choices and row.row_length_of is None
    }


def refused_number(op: Op, numbers: Sequence[Any]) -> Exception | None:
    """The error to raise for a choice or float that the FFI refuses without its name."""
    for row, number in zip(op.numbers, numbers, strict=False):
        wanted = str if row.choices else Real if row.kind == "float32" else object
        if not isinstance(number, wanted) and not (number is None and row.kind == "float32"):
            kind = "a string" if row.choices else "a number"
            got = type(number).__name__
            return TypeError(f"{op.name}: {row.name}: expected {kind}, got {got}")
        if row.choices and printable(str(number)) != number:  # the FFI passes UTF-8
            return refused_choice(op, row, number)
        if (
            row.kind == "float32"
            and isinstance(number, Integral)
            and not -(2**63) <= int(number) < 2**63
        ):
            return ValueError(
                f"{op.name}: {row.name}: expected a float or an integer of 64 bits, got "
                f"{shown(number)}"
            )
    return None


def refused_choice(op: Op, row: Argument, value: object) -> ValueError:
    """The error to raise for a value that is none of an argument's choices."""
    got = printable(value) if isinstance(value, str) else shown(value)
    return ValueError(f"{op.name}: {row.name}: expected one of {', '.join(row.choices)}, got {got}")


def call_refusal(
    op: Op,
    error: Exception,
    inputs: tuple[Any, ...],
    out: object,
    numbers: tuple[Any, ...],
    num_threads: object,
    rest: tuple[Any, ...],
) -> Exception:
    """What to raise for `error`, which a call with these arguments raised."""
    arrays, written = named_arguments(op, inputs, out, rest)
    integers = named_integers(op, numbers) | {"num_threads": num_threads}
    refused = refused_array(op.name, arrays, written) or refused_number(op, numbers)
    refused = refused or refused_size(op, inputs, error)
    refused = refusal(op.name, refused or error, arrays, integers)
    return refused if out is None or op.num_outputs > 1 else _as_out(op, refused)


def refused_size(op: Op, inputs: tuple[Any, ...], error: Exception) -> Exception | None:
    """The error to raise for an input that is too long for a framework to make outputs.

    Frameworks say so in their own words, before the op sees the input. Elements have up to 8 bytes,
    so that 2^60 of them end past 2^63.
    """
    if str(error).startswith(f"{op.name}: "):
        return None
    for i in op.shaping:
        try:
            num_elements = math.prod(shape_of(inputs[i]) or ())
        except Exception:  # it is no array, which `refusal` says
            continue
        if num_elements >= 2**60:
            name = f"{op.name}: {op.inputs[i].name}.shape"
            return ValueError(
                f"{name}: expected an end within the address space, got more elements"
            )
    return None


def _as_out(op: Op, refused: Exception) -> Exception:
    """The same error with the name that callers of the only output have for it.

    Of several outputs each has the name that it has in the op's named tuple.
    """
    message = renamed(str(refused), {op.outputs[0].name: "out"})
    return refused if message == str(refused) else type(refused)(message)
