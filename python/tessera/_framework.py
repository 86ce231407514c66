"""What Tessera needs of a framework, and arrays on their way to the FFI and to the host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tessera._capture import beside_captures
from tessera._device import HOST
from tessera._outputs import Layout

DLPACK_HOST = 1


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
    """Functions of one array of the framework, called `like` where new memory is to be like it."""

    num_elements: Callable[[Any], int]
    # Index of the array's CUDA device, or HOST.
    cuda_index: Callable[[Any], int]
    # (like, length): int32 where `like` is.
    empty_int32: Callable[[Any, int], Any]
    # (like, shape, dtype's name): where `like` is, of its dtype where the name is None.
    empty_like: Callable[[Any, tuple[int, ...], str | None], Any]
    # (like, bytes): scratch memory where `like` is.
    empty_bytes: Callable[[Any, int], Any]
    # The three outputs in an array that `empty_int32` made, as views.
    split: Callable[[Any, Layout], Sequence[Any]]
    # (like, length): int64 zeros where `like` is, which may be written to and read at any time.
    zeros_int64: Callable[[Any, int], Any]
    # (index): whether a graph is being captured on the device's current stream.
    is_capturing: Callable[[int], bool] = _never_captures
    # (index): the device's current stream in this thread; None on the host.
    current_stream: Callable[[int], Any] = _no_stream
    # (index, stream): waits for a stream of the device and returns True. Returns False at once if a
    # graph is being captured on the stream: a wait would break the capture.
    wait_for: Callable[[int, Any], bool] = _is_done
    # (array): zeroes it, in the order of its device's current stream.
    zero: Callable[[Any], None] = _zero
    # Turns an output into the caller's framework, where it is not made there. (like, array)
    adopt: Callable[[Any, Any], Any] | None = None
    # An input of the op such that the FFI can carry it, where it cannot carry all.
    exportable: Callable[[Any], Any] | None = None
    # (like, call): makes the call, on the stream that it belongs on. None: the FFI asks for the
    # stream itself, or there is none.
    launch: Callable[[Any, Callable[[], object]], None] | None = None
    # Arrays promise never to change, so that they cannot be written to.
    immutable: bool = False
    # Whether the array's memory does not hold its values, which DLPack does not tell; and the
    # refusal of such an array. None: it always does.
    is_unfit: Callable[[Any], bool] | None = None
    unfit: str = ""
    # Whether something records or replaces what is done with arrays, so that it must see one op in
    # place of what the op does. Two functions of C and none of Python, for a call asks every time:
    # the first counts, the second tells. None: nothing can.
    num_modes: Callable[[], int] | None = None
    is_tracing: Callable[[], bool] = bool

    def but(self, **changes: Any) -> Framework:
        """The same with other functions."""
        return replace(self, **changes)


class _Memory:
    """Memory of a read-only NumPy array, for `np.asarray` to view as if it were writable."""

    def __init__(self, array: Any) -> None:
        interface = array.__array_interface__
        self.__array_interface__ = {**interface, "data": (interface["data"][0], False)}
        self.owner = array


def exportable(array: Any) -> Any:
    """An input of the op, such that DLPack can carry it: NumPy refuses read-only arrays."""
    if isinstance(array, np.ndarray) and not array.flags.writeable and array.dtype.isnative:
        return np.asarray(_Memory(array))
    return array


def on_device(array: Any, cuda_index: int) -> Any:
    """A NumPy array, or None, as it is; or, unless the index is HOST, as a torch tensor there."""
    if array is None or cuda_index == HOST:
        return array
    import torch

    return torch.from_numpy(array).to(f"cuda:{cuda_index}")


def on_host(array: Any) -> Any:
    """The array, or a copy in host memory of one that lies elsewhere; waits for it."""
    device = getattr(array, "__dlpack_device__", None)
    if device is None or device()[0] == DLPACK_HOST:
        return array
    with beside_captures():
        if hasattr(array, "cpu"):  # torch
            return array.cpu()
        return array.get() if hasattr(array, "get") else np.asarray(array)  # CuPy, others
