"""`torch.ops.tessera.*`: the ops for compiled code. Importing this registers them.

`tessera.align_block_size` and the others become these ops inside `torch.compile`, which imports
this by itself.
"""

from __future__ import annotations

import inspect
import string
from collections.abc import Sequence
from typing import Any

import torch

from tessera._arrays import refuse_followed, refuse_followed_inputs
from tessera._device import HOST
from tessera._op import Argument, refuse_bool_threads
from tessera._outputs import REFERENCE, call_sizes, made_dtypes
from tessera._torch_registry import TORCH_OPS, Shape, TorchOp

_library = torch.library.Library("tessera", "DEF")  # the ops live as long as this object

# A schema has no type for `validate`: TESSERA_VALIDATE decides.
_LEFT_OUT = ("out", "validate")


class _Registered:
    """One op, and the functions that torch calls for it."""

    def __init__(self, torch_op: TorchOp) -> None:
        self.torch_op = torch_op
        self.op = torch_op.op
        self.rows = {row.name: row for row in self.op.arguments}
        parameters = inspect.signature(torch_op.function).parameters.values()
        self.parameters = [one for one in parameters if one.name not in _LEFT_OUT]
        self.defaults = {
            one.name: one.default
            for one in self.parameters
            if one.default is not inspect.Parameter.empty
        }
        aliases = iter(string.ascii_lowercase)
        # Not keyword-only, which would make eager calls slower.
        arguments = ", ".join(self.declaration(one, aliases) for one in self.parameters)
        names = [row.name for row in self.op.outputs]
        returns = ", ".join(f"Tensor {name}" for name in names)
        written = ", ".join(f"Tensor({next(aliases)}!) {name}" for name in names)
        for schema in (
            f"{self.op.name}({arguments}) -> ({returns})",
            f"{self.op.name}.out({arguments}, *, {written}) -> ()",
        ):
            _library.define(schema, tags=torch.Tag.pt2_compliant_tag)
        self.packet = getattr(torch.ops.tessera, self.op.name)
        for device in ("CPU", "CUDA"):
            _library.impl(self.op.name, self.run, device)
            _library.impl(f"{self.op.name}.out", self.run_out, device)
        torch.library.register_fake(self.packet.default, self.fake, lib=_library)
        torch.library.register_fake(self.packet.out, self.fake_out, lib=_library)

    def declaration(self, parameter: inspect.Parameter, aliases: Any) -> str:
        """A parameter of the function in a schema of torch."""
        row = self.rows.get(parameter.name)
        kind = _type_of(row, aliases)
        if parameter.default is None and not kind.endswith("?"):
            kind += "?"
        text = f"{kind} {parameter.name}"
        if parameter.default is inspect.Parameter.empty:
            return text
        default = parameter.default
        return f'{text}="{default}"' if isinstance(default, str) else f"{text}={default}"

    def named(self, values: Sequence[Any]) -> dict[str, Any]:
        """Arguments by name; the dispatcher leaves out the last ones with their defaults."""
        names = [one.name for one in self.parameters]
        return self.defaults | dict(zip(names, values, strict=False))

    def positional(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        """All arguments in the schema's order, taken out of `kwargs`.

        Inductor keeps compiled code on disk by the graph's text. The text of a call by names would
        stay as it is when a later version of an op takes one more argument, and code that was
        compiled for the earlier order would run.
        """
        rest = [one.name for one in self.parameters[len(args) :]]
        values = list(args)
        for name in rest:
            if name not in kwargs and name not in self.defaults:
                break  # torch names what is missing
            values.append(kwargs.pop(name, self.defaults.get(name)))
        return values

    def refuse_devices(self, arguments: dict[str, Any]) -> None:
        """Refuse arrays on several devices; torch asks for a fake if one of them is meta."""
        first, *others = self.op.inputs
        device = arguments[first.name].device
        for row in (*others, *self.op.rest):
            array = arguments.get(row.name) if row.is_array else None
            if array is not None and array.device != device:
                raise ValueError(
                    f"{self.op.name}: {row.name}: expected a tensor on {device}, as "
                    f"{first.name}, got one on {array.device}"
                )

    def refuse_followed(self, arguments: dict[str, Any]) -> None:
        """Refuse arrays that autograd follows while code is compiled, as the graph hides them."""
        refuse_followed_inputs(self.op, (arguments.get(row.name) for row in self.op.inputs))
        for row in self.op.rest:
            if row.is_float:
                refuse_followed(self.op.name, row.name, arguments.get(row.name))

    def shapes(self, arguments: dict[str, Any]) -> tuple[Shape, ...]:
        """The shapes of the outputs."""
        source = arguments[self.op.inputs[0].name]
        rows = (*self.op.numbers, *self.op.rest)
        options = [None if row.is_array else arguments.get(row.name) for row in rows]
        sizes = (*source.shape, *options)
        if not self.op.is_joined or any(isinstance(size, torch.SymInt) for size in sizes):
            return self.torch_op.shapes(arguments)
        # Every build has the reference, wherever the tensors are.
        layout = call_sizes(self.op, source.numel(), tuple(options), HOST, REFERENCE).layout
        num_rows = arguments.get("max_loras")
        lengths = [part.stop - part.start for part in layout.slices]
        if num_rows is None:
            return tuple((length,) for length in lengths)
        *others, last = lengths
        return (*((num_rows, length // num_rows) for length in others), (last,))

    def empty_outputs(self, arguments: dict[str, Any]) -> tuple[torch.Tensor, ...]:
        """Tensors of their own, not parts of one: a functional op's outputs may not alias."""
        source = arguments[self.op.inputs[0].name]
        made = made_dtypes(self.op, source) if self.op.has_made else None

        def dtype_of(i: int, row: Argument) -> torch.dtype:
            if made is not None:
                name = made[i]
            elif row.same_dtype_as:
                return source.dtype
            else:
                name = row.dtypes[0]
            return getattr(torch, name)

        return tuple(
            source.new_empty(shape, dtype=dtype_of(i, row))
            for i, (row, shape) in enumerate(
                zip(self.op.outputs, self.shapes(arguments), strict=True)
            )
        )

    def run(self, *values: Any) -> Any:
        arguments = self.named(values)
        try:
            outputs = self.empty_outputs(arguments)
        except Exception:
            # Of arguments that give no sizes the op itself says what is wrong.
            self.torch_op.eagerly(**arguments, out=None)
            raise
        self.torch_op.eagerly(**arguments, out=_as_out(outputs))
        return _as_out(outputs)

    def run_out(self, *values: Any, **outputs: torch.Tensor) -> None:
        out = tuple(outputs[row.name] for row in self.op.outputs)
        self.torch_op.eagerly(**self.named(values), out=_as_out(out))

    def fake(self, *values: Any) -> Any:
        arguments = self.named(values)
        self.refuse_devices(arguments)
        self.refuse_followed(arguments)
        return _as_out(self.empty_outputs(arguments))

    def fake_out(self, *values: Any, **outputs: torch.Tensor) -> None:
        arguments = self.named(values)
        self.refuse_devices(arguments)
        self.refuse_followed(arguments)


def _type_of(row: Argument | None, aliases: Any) -> str:
    if row is None:
        return "int?"  # num_threads
    if row.is_array:
        tensor = f"Tensor({next(aliases)}!)" if row.is_output else "Tensor"
        return f"{tensor}?" if row.is_optional else tensor
    if row.choices:
        return "str"
    return {"int64": "SymInt", "int32": "int", "flag": "bool", "float32": "float?"}[row.kind]


def _as_out(outputs: tuple[Any, ...]) -> Any:
    return outputs[0] if len(outputs) == 1 else outputs


_REGISTERED = {name: _Registered(torch_op) for name, torch_op in TORCH_OPS.items()}


def call_in_graph(name: str, *args: Any, out: Any = None, **kwargs: Any) -> Any:
    """A call of one of Tessera's functions as calls of the ops, for Dynamo to trace."""
    registered = _REGISTERED[name]
    refuse_bool_threads(name, kwargs.get("num_threads"))
    for parameter, convert in registered.torch_op.conversions.items():
        if parameter in kwargs:
            kwargs[parameter] = convert(kwargs[parameter])
    values = registered.positional(args, kwargs)
    if out is None:
        outputs = registered.packet.default(*values, **kwargs)
        return registered.op.result_type(*outputs) if registered.op.num_outputs > 1 else outputs
    arrays = out if isinstance(out, tuple) else (out,)
    names = [row.name for row in registered.op.outputs]
    written = dict(zip(names, arrays, strict=True))
    registered.packet.out(*values, **kwargs, **written)
    return out
