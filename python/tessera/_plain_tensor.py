"""Tensors that Tessera can serve an engine's op with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def check_tensor(op: str, name: str, value: object) -> None:
    """Refuse what is no tensor, or a sparse one.

    Raises:
        TypeError: it is none, or sparse.
    """
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{op}: {name}: expected a torch.Tensor, got {type(value).__name__}")
    if value.layout is not torch.strided:
        raise TypeError(
            f"{op}: {name}: expected a torch.Tensor with memory, got layout {value.layout}"
        )


def check_plain(
    op: str,
    name: str,
    tensor: torch.Tensor,
    *,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
    num_axes: int | None = None,
) -> None:
    """Refuse tensors without memory of their own, such as torch.compile uses for tracing.

    Args:
        op: the engine's name of the op, for messages.
        name: of the argument.
        tensor: the argument.
        device: where it has to be; None: anywhere.
        dtype: its data type; None: any.
        num_axes: number of its axes; None: any.

    Raises:
        TypeError: the tensor is none, an instance of a subclass but for parameters of modules,
            sparse or on meta, or has another data type.
        ValueError: it is elsewhere, or has another number of axes.
    """
    # A module's parameter is a tensor like any other; other subclasses may have no memory.
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        raise TypeError(
            f"{op}: {name}: expected a torch.Tensor with memory, got {type(tensor).__name__}"
        )
    if device is not None and tensor.device != device:
        raise ValueError(f"{op}: {name}: expected a tensor on {device}, got {tensor.device}")
    if tensor.is_meta or tensor.layout is not torch.strided:
        got = "one on meta" if tensor.is_meta else f"layout {tensor.layout}"
        raise TypeError(f"{op}: {name}: expected a torch.Tensor with memory, got {got}")
    if dtype is not None and tensor.dtype != dtype:
        raise TypeError(f"{op}: {name}: expected {dtype}, got {tensor.dtype}")
    if num_axes is not None and tensor.dim() != num_axes:
        axes = "axis" if num_axes == 1 else "axes"
        raise ValueError(f"{op}: {name}: expected {num_axes} {axes}, got {tensor.dim()}")


def check_float(op: str, name: str, tensor: torch.Tensor, *, in_fp8: bool = False) -> None:
    """Refuse a tensor of a type that experts take only with scales, if at all.

    Args:
        op: the engine's name of the op, for messages.
        name: of the argument.
        tensor: the argument.
        in_fp8: there are scales, so that it may be in float8_e4m3fn.

    Raises:
        TypeError: it is not float16, bfloat16 or float32.
    """
    types = [torch.float16, torch.bfloat16, torch.float32]
    types += [torch.float8_e4m3fn] if in_fp8 else []
    if tensor.dtype not in types:
        *names, last = (str(dtype).removeprefix("torch.") for dtype in types)
        raise TypeError(
            f"{op}: {name}.dtype: expected {', '.join(names)} or {last}, got {_dtype_name(tensor)}"
        )


def check_same_dtype(op: str, name: str, tensor: Any, other_name: str, other: torch.Tensor) -> None:
    """Refuse what is no tensor of the type that another one has.

    Raises:
        TypeError: it is none.
    """
    check_tensor(op, name, tensor)
    if tensor.dtype != other.dtype:
        raise TypeError(
            f"{op}: {name}.dtype: expected {_dtype_name(other)}, as {other_name} has, got "
            f"{_dtype_name(tensor)}"
        )


def _dtype_name(tensor: torch.Tensor) -> str:
    """The name of its type, as messages of the core have it."""
    return str(tensor.dtype).removeprefix("torch.")


def check_contiguous(op: str, name: str, tensor: torch.Tensor) -> None:
    """Refuse a tensor whose elements lie apart.

    Raises:
        ValueError: it is one.
    """
    if not tensor.is_contiguous():
        raise ValueError(
            f"{op}: {name}: expected a contiguous tensor, got strides {list(tensor.stride())}"
        )


def check_apart(
    op: str, written: Mapping[str, torch.Tensor], read: Mapping[str, torch.Tensor] | None = None
) -> None:
    """Refuse tensors to write to that share memory with each other, or with those to read.

    Raises:
        ValueError: one does.
    """
    # Tensors that are traced have no memory.
    if torch.compiler.is_compiling():
        return
    seen = [(name, *_span(tensor)) for name, tensor in (read or {}).items()]
    for name, tensor in written.items():
        begin, end = _span(tensor)
        for other, other_begin, other_end in seen:
            if max(begin, other_begin) < min(end, other_end):
                raise ValueError(
                    f"{op}: {name}: expected memory of its own, got memory shared with {other}"
                )
        seen.append((name, begin, end))


def _span(tensor: torch.Tensor) -> tuple[int, int]:
    """The addresses of the first byte and past the last; equal for a tensor without elements."""
    begin, length = tensor.data_ptr(), tensor.numel()
    if length and not tensor.is_contiguous():
        steps = zip(tensor.shape, tensor.stride(), strict=True)
        length = 1 + sum((size - 1) * step for size, step in steps)
    return begin, begin + length * tensor.element_size()


def check_inplace(op: str, tensor: torch.Tensor) -> None:
    """Refuse to write in place to an inference tensor outside of inference mode: torch raises then.

    Raises:
        ValueError: so it is.
    """
    if tensor.is_inference() and not torch.is_inference_mode_enabled():
        raise ValueError(f"{op}: inplace: expected False for an inference tensor, got True")
