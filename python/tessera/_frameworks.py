"""Access to the frameworks of arrays: sizes, devices, memory, streams."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

import numpy as np

from tessera._capture import beside_captures
from tessera._device import HOST
from tessera._framework import (
    DLPACK_CUDA,
    Framework,
    exportable_ndarray,
    slices,
    why_malformed,
)
from tessera._library import load
from tessera._outputs import Layout

_INT32 = np.dtype(np.int32)

# Types for new arrays of NumPy and CuPy: for one that they lack the one that holds its bits. By a
# name NumPy finds a type in twice the time of the allocation.
_NUMPYS: dict[str, Any] = {
    "float8_e4m3fn": np.dtype(np.uint8),
    "float32": np.dtype(np.float32),
    "int32": _INT32,
}
_NOT_NUMPYS = ("bfloat16", "float8_e4m3fn")


class _ForwardMode:
    """Forward-mode autograd: torch.autograd.forward_ad, once a call was given a tensor of torch."""

    __slots__ = ("module",)
    _current_level = -1  # as there: no level of dual numbers is entered

    def __init__(self) -> None:
        self.module: Any = self


FORWARD_MODE = _ForwardMode()


def _empty_like_numpy(like: Any, shape: tuple[int, ...], dtype: str | None) -> Any:
    return np.empty(shape, like.dtype if dtype is None else _NUMPYS.get(dtype, dtype))


def _never_on_device(like: object, length: Any) -> Any:
    raise AssertionError("arrays of NumPy are on the host")


def _zeros_numpy(like: object, length: int) -> Any:
    return np.zeros(length, np.int64)


def _numpy_framework(kind: type) -> Framework:
    # Accessing numpy.ma would import it in the middle of a call.
    masked = getattr(sys.modules.get("numpy.ma"), "MaskedArray", None)
    is_masked = masked is not None and issubclass(kind, masked)
    return Framework(
        attrgetter("size"),
        lambda array: HOST,
        _never_on_device,
        _empty_like_numpy,
        _never_on_device,
        _never_on_device,
        _zeros_numpy,
        exportable=exportable_ndarray,
        is_unfit=(lambda array: True) if is_masked else None,
        unfit=f"expected an array without a mask, got {kind.__name__} (its filled() makes one)",
    )


def _torch_framework(torch: Any, kind: type) -> Framework:
    int8, int32, from_numpy = torch.int8, torch.int32, torch.from_numpy
    cut = torch.unsafe_split_with_sizes
    # torch passes all ops on such a subclass to it. It may have no memory, as tensors for tracing,
    # and it would not notice writes that bypass it.
    is_handed_ops = kind.__torch_dispatch__ is not torch.Tensor.__torch_dispatch__  # type: ignore[attr-defined]

    def empty_int32(like: Any, length: int) -> Any:
        if like.dtype is int32:
            return like.new_empty(length)
        return like.new_empty(length, dtype=int32)

    def empty_like(like: Any, shape: tuple[int, ...], dtype: str | None) -> Any:
        if dtype is None:
            return like.new_empty(shape)
        # NumPy takes half of the time, but an array of no elements has strides of 0 there.
        if like.is_cpu and 0 not in shape and dtype not in _NOT_NUMPYS:
            return from_numpy(np.empty(shape, _NUMPYS.get(dtype, dtype)))
        return like.new_empty(shape, dtype=getattr(torch, dtype))

    def empty_bytes(like: Any, length: int) -> Any:
        return like.new_empty(length, dtype=int8)

    def split(array: Any, layout: Layout) -> Sequence[Any]:
        pieces: Sequence[Any] = cut(array, layout.pieces)
        return pieces if layout.outputs_of is None else layout.outputs_of(pieces)

    def split_host(array: Any, layout: Layout) -> Sequence[Any]:
        slots, blocks, totals = layout.slices
        return from_numpy(array[slots]), from_numpy(array[blocks]), from_numpy(array[totals])

    def zeros_int64(like: Any, length: int) -> Any:
        if like.is_cpu:
            return np.zeros(length, np.int64)
        # Tensors made in inference mode stay bound to it.
        with beside_captures(), torch.inference_mode(False):
            return like.new_zeros(length, dtype=torch.int64)

    def is_capturing(cuda_index: int) -> bool:
        if cuda_index == HOST:
            return False
        if torch.cuda.current_device() == cuda_index:  # entering a device costs a microsecond
            return bool(torch.cuda.is_current_stream_capturing())
        with torch.cuda.device(cuda_index):
            return bool(torch.cuda.is_current_stream_capturing())

    def current_stream(cuda_index: int) -> Any:
        return None if cuda_index == HOST else torch.cuda.current_stream(cuda_index)

    def wait_for(cuda_index: int, stream: Any) -> bool:
        if stream is not None:
            with torch.cuda.stream(stream):
                if torch.cuda.is_current_stream_capturing():
                    return False
            with beside_captures():
                stream.synchronize()
        return True

    num_modes, is_tracing = torch._C._len_torch_dispatch_stack, torch._C._is_tracing
    is_neg = torch.Tensor.is_neg
    FORWARD_MODE.module = sys.modules.get("torch.autograd.forward_ad", FORWARD_MODE)
    if not is_handed_ops:
        functions = (num_modes, is_tracing, empty_bytes, is_neg)
        load().add_tensor_type(kind, *functions, FORWARD_MODE.module)
    # `get_device` gives -1 on the host.
    return Framework(
        torch.Tensor.numel,
        torch.Tensor.get_device,
        empty_int32,
        empty_like,
        empty_bytes,
        split,
        zeros_int64,
        split_host,
        is_capturing,
        current_stream,
        wait_for,
        is_unfit=(lambda tensor: True) if is_handed_ops else is_neg,
        unfit=f"expected a torch.Tensor with memory, got {kind.__name__}"
        if is_handed_ops
        else "expected a tensor whose memory holds its values, got a negated view of another "
        "(its resolve_neg() makes one)",
        num_modes=(lambda: 1) if is_handed_ops else num_modes,
        is_tracing=is_tracing,
    )


def _cupy_framework(cupy: Any) -> Framework:
    # CuPy allocates, and looks up streams, on the current device, which may not be the array's.
    def empty(like: Any, shape: int | tuple[int, ...], dtype: Any) -> Any:
        with like.device:
            return cupy.empty(shape, dtype)

    def zeros_int64(like: Any, length: int) -> Any:
        with like.device, beside_captures():
            return cupy.zeros(length, cupy.int64)

    def is_capturing(cuda_index: int) -> bool:
        with cupy.cuda.Device(cuda_index):
            return bool(cupy.cuda.get_current_stream().is_capturing())

    def current_stream(cuda_index: int) -> Any:
        with cupy.cuda.Device(cuda_index):
            return cupy.cuda.get_current_stream()

    def wait_for(cuda_index: int, stream: Any) -> bool:
        with cupy.cuda.Device(cuda_index):
            if stream.is_capturing():
                return False
            with beside_captures():
                stream.synchronize()
        return True

    def zero(array: Any) -> None:
        with array.device:
            array[:] = 0

    def launch(like: Any, call: Callable[[], object]) -> None:
        with like.device, load().on_stream(like.device.id, cupy.cuda.get_current_stream().ptr):
            call()

    return Framework(
        lambda array: array.size,
        lambda array: array.device.id,
        lambda like, length: empty(like, length, cupy.int32),
        lambda like, shape, dtype: empty(
            like, shape, like.dtype if dtype is None else _NUMPYS.get(dtype, dtype)
        ),
        lambda like, length: empty(like, length, cupy.int8),
        slices,
        zeros_int64,
        slices,
        is_capturing,
        current_stream,
        wait_for,
        zero,
        launch=launch,
    )


def _dlpack_framework(kind: type) -> Framework:
    def num_elements(array: Any) -> int:
        lengths: tuple[int, ...] = load().as_tensor(array).shape
        # Of impossible lengths a number that the library refuses.
        return min((0, *lengths)) or min(math.prod(lengths), 2**63 - 1)

    def cuda_index(array: Any) -> int:
        device_type, index = array.__dlpack_device__()
        return index if device_type in DLPACK_CUDA else HOST

    def empty(like: Any, length: int) -> Any:
        raise TypeError(
            "expected an array of torch, CuPy or JAX where memory on a device is to be allocated, "
            f"got {kind.__name__}"
        )

    def empty_like(like: Any, shape: tuple[int, ...], dtype: str | None) -> Any:
        if cuda_index(like) == HOST:
            # An array need not have a dtype beside the one that DLPack exports.
            exported = like if hasattr(like, "dtype") else load().as_tensor(like)
            return np.empty(shape, exported.dtype if dtype is None else _NUMPYS.get(dtype, dtype))
        return empty(like, 0)  # which says why not

    def zeros_int64(like: Any, length: int) -> Any:
        if cuda_index(like) == HOST:
            return np.zeros(length, np.int64)
        raise TypeError(
            "align_block_size: topk_ids: expected an array of torch or CuPy where ids on a device "
            f"are to be validated, got {kind.__name__}"
        )

    def adopt(like: Any, array: Any) -> Any:
        return like.__array_namespace__().from_dlpack(array)

    return Framework(
        num_elements,
        cuda_index,
        empty,
        empty_like,
        empty,
        slices,
        zeros_int64,
        adopt=adopt if hasattr(kind, "__array_namespace__") else None,
    )


class _Launch:
    """For `jax.dlpack.from_dlpack`: an array that is ready when a call is done.

    JAX names a stream only when it imports an array; work that the exporter enqueues there precedes
    all that JAX does with the array.
    """

    def __init__(self, array: Any, call: Callable[[], object]) -> None:
        self.array = array
        self.call = call

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()

    def __dlpack__(self, *, stream: int, **options: Any) -> Any:
        with load().on_stream(self.array.__dlpack_device__()[1], stream):
            self.call()
        return self.array.__dlpack__(stream=stream, **options)


def _jax_framework(jax: Any, kind: type) -> Framework:
    zeros, from_dlpack = jax.numpy.zeros, jax.dlpack.from_dlpack
    general = _dlpack_framework(kind)

    def empty_like(like: Any, shape: tuple[int, ...], dtype: str | None) -> Any:
        kind = np.dtype(dtype or like.dtype)
        if general.cuda_index(like) != HOST:
            return zeros(shape, kind, device=like.device)
        if kind.kind != "V":
            return np.empty(shape, kind)
        # NumPy exports neither bfloat16 nor float8.
        return zeros(shape, kind, device=like.device).block_until_ready()

    # JAX may read memory only after it was written, so the array is imported anew.
    def split(array: Any, layout: Layout) -> Sequence[Any]:
        pieces: Sequence[Any] = jax.lax.split(from_dlpack(array), layout.pieces)
        return pieces if layout.outputs_of is None else layout.outputs_of(pieces)

    def adopt(like: Any, array: Any) -> Any:
        return from_dlpack(array, device=like.device) if isinstance(array, np.ndarray) else array

    # JAX exposes no stream that would keep inputs alive until a call has run, so this waits for the
    # call. Some of JAX's clients treat an imported array as ready at once, which holds only for
    # their own later work; so this waits for such work, an addition.
    def launch(like: Any, call: Callable[[], object]) -> None:
        if general.cuda_index(like) == HOST:
            call()
        else:
            done = from_dlpack(_Launch(zeros(1, _INT32, device=like.device), call))
            (done + 1).block_until_ready()

    return general.but(
        num_elements=lambda array: array.size,
        empty_int32=lambda like, length: zeros(length, _INT32, device=like.device),
        empty_like=empty_like,
        empty_bytes=lambda like, length: zeros(length, np.int8, device=like.device),
        split=split,
        adopt=adopt,
        launch=launch,
        immutable=True,
    )


def _is_of(kind: type, module: str, name: str) -> bool:
    """Whether `kind` is the module's array type, or a subclass.

    The module may be a stub, or another thread may still be importing it.
    """
    array = getattr(sys.modules.get(module), name, None)
    return isinstance(array, type) and issubclass(kind, array)


class _Frameworks(dict[type, Framework]):
    """The framework of each array type; examines a new type once."""

    def __missing__(self, kind: type) -> Framework:
        if issubclass(kind, np.ndarray):
            framework = _numpy_framework(kind)
        elif _is_of(kind, "torch", "Tensor"):
            framework = _torch_framework(sys.modules["torch"], kind)
        elif _is_of(kind, "cupy", "ndarray"):
            framework = _cupy_framework(sys.modules["cupy"])
        elif _is_of(kind, "jax", "Array"):
            framework = _jax_framework(sys.modules["jax"], kind)
        else:
            framework = _dlpack_framework(kind)
            if not hasattr(kind, "__dlpack_c_exchange_api__"):  # by which the FFI reads such arrays
                framework = framework.but(
                    is_unfit=lambda array: why_malformed(array) != "", unfit=why_malformed
                )
        self[kind] = framework
        return framework


FRAMEWORKS = _Frameworks()
