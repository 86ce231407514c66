"""The functions that Tessera needs of a framework, and the conversion of its arrays."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from tessera._capture import beside_captures
from tessera._device import HOST
from tessera._outputs import Layout

# DLPack's types of devices: host memory, and memory of a CUDA device, also managed.
DLPACK_HOST = 1
DLPACK_CUDA = (2, 13)


def slices(array: Any, layout: Layout) -> tuple[Any, ...]:
    """The outputs in an array, as views."""
    slots, blocks, totals = layout.slices
    return array[slots], array[blocks], array[totals]


def _never_captures(cuda_index: int) -> bool:
    return False


def _no_stream(cuda_index: int) -> None:
    pass


def _is_done(cuda_index: int, stream: object) -> bool:
    return True


def _zero(array: Any) -> None:
    array[:] = 0


@dataclass(frozen=True, slots=True)
class Framework:
    """Functions for arrays of one framework; `like` is an array whose device new memory is on."""

    num_elements: Callable[[Any], int]
    # Index of the array's CUDA device, or HOST.
    cuda_index: Callable[[Any], int]
    # (like, length): int32 on the CUDA device of `like`.
    empty_int32: Callable[[Any, int], Any]
    # (like, shape, dtype's name): on the device of `like`, of its dtype if the name is None.
    empty_like: Callable[[Any, tuple[int, ...], str | None], Any]
    # (like, bytes): scratch memory on the CUDA device of `like`.
    empty_bytes: Callable[[Any, int], Any]
    # The outputs in an array that `empty_int32` made, as views.
    split: Callable[[Any, Layout], Sequence[Any]]
    # (like, length): int64 zeros on the device of `like`, which any stream may use at once.
    zeros_int64: Callable[[Any, int], Any]
    # The outputs in a NumPy array, as views: on the host NumPy allocates, as it takes two thirds of
    # torch's time.
    split_host: Callable[[Any, Layout], Sequence[Any]] = slices
    # (index): whether a graph is being captured on the device's current stream.
    is_capturing: Callable[[int], bool] = _never_captures
    # (index): the device's current stream in this thread; None on the host.
    current_stream: Callable[[int], Any] = _no_stream
    # (index, stream): waits for a stream of the device and returns True. Returns False at once if a
    # graph is being captured on the stream: a wait would break the capture.
    wait_for: Callable[[int, Any], bool] = _is_done
    # (array): zeroes it, in the order of its device's current stream.
    zero: Callable[[Any], None] = _zero
    # (like, array): converts an output to the caller's framework. None: it is already made there.
    adopt: Callable[[Any, Any], Any] | None = None
    # Converts an input so that the FFI can export it. None: the FFI exports all arrays as they are.
    exportable: Callable[[Any], Any] | None = None
    # (like, call): makes the call on the right stream. None: the FFI finds the stream itself, or
    # there is none.
    launch: Callable[[Any, Callable[[], object]], None] | None = None
    # Arrays never change, so that they cannot be written to.
    immutable: bool = False
    # Whether the array's memory does not hold its values, which DLPack does not detect; and the
    # message that refuses such an array, or what gives it for one. None: the memory always holds
    # the values.
    is_unfit: Callable[[Any], bool] | None = None
    unfit: str | Callable[[Any], str] = ""
    # Whether something traces or redirects operations on arrays, and so must see the op as one.
    # Both are C functions, because every call evaluates them: the number of active modes, and
    # whether a trace is being recorded. None: the framework has no such modes.
    num_modes: Callable[[], int] | None = None
    is_tracing: Callable[[], bool] = bool
    # Whether the FFI reads and writes all arrays as they are, on the stream that it finds itself.
    is_direct: bool = field(init=False)

    def __post_init__(self) -> None:
        is_direct = self.exportable is None and self.launch is None and not self.immutable
        object.__setattr__(self, "is_direct", is_direct)

    def but(self, **changes: Any) -> Framework:
        """The same with other functions."""
        return replace(self, **changes)


class _Memory:
    """Memory of a read-only NumPy array, for `np.asarray` to view as if it were writable."""

    def __init__(self, array: Any) -> None:
        interface = array.__array_interface__
        self.__array_interface__ = {**interface, "data": (interface["data"][0], False)}
        self.owner = array


def exportable_ndarray(array: Any) -> Any:
    """An input that NumPy exports by DLPack: it refuses read-only arrays."""
    if array.flags.writeable or not array.dtype.isnative:
        return array
    return np.asarray(_Memory(array))


def exportable(array: Any) -> Any:
    """An input of any framework that DLPack can export."""
    return exportable_ndarray(array) if isinstance(array, np.ndarray) else array


_memory_of = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


def why_malformed(array: Any) -> str:
    """What refuses an array whose shape the FFI would read or write beside; empty of any other."""
    try:
        capsule = array.__dlpack__()
        # DLTensor begins with a pointer and the two numbers of a device. Then it has the number of
        # axes, a data type of 4 bytes, and a pointer to the lengths.
        tensor = _memory_of(capsule, b"dltensor")
        ndim = ctypes.c_int32.from_address(tensor + 16).value
        lengths = ctypes.c_void_p.from_address(tensor + 24).value
    except Exception:  # the FFI takes no other capsules of __dlpack__: the call says why
        return ""
    if ndim < 0:
        return "expected a DLPack tensor of 0 or more axes, got one with a negative ndim"
    if ndim > 0 and lengths is None:
        return "expected a DLPack tensor with the length of each axis, got one without lengths"
    return ""


def on_device(array: Any, cuda_index: int) -> Any:
    """A NumPy array or None, unchanged for HOST, else as a torch tensor on the CUDA device."""
    if array is None or cuda_index == HOST:
        return array
    import torch

    return torch.from_numpy(array).to(f"cuda:{cuda_index}")


def _device_type(array: Any) -> Any:
    """DLPack's type of the device that an array is on; None if it does not say."""
    device = getattr(array, "__dlpack_device__", None)
    return None if device is None else device()[0]


def is_on_cuda(array: Any) -> bool:
    return _device_type(array) in DLPACK_CUDA


def on_host(array: Any) -> Any:
    """The array, copied to host memory if it is elsewhere; waits for it."""
    if _device_type(array) in (None, DLPACK_HOST):
        return array
    with beside_captures():
        if hasattr(array, "cpu"):  # torch
            return array.cpu()
        return array.get() if hasattr(array, "get") else np.asarray(array)  # CuPy, others
