"""Waiting for a GPU while another thread captures a graph."""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Iterator
from typing import Any

_RELAXED = 2  # CU_STREAM_CAPTURE_MODE_RELAXED


@functools.cache
def _exchange_mode() -> Any:
    """The driver's function, or one that does nothing if there is no NVIDIA driver."""
    try:
        return ctypes.CDLL("libcuda.so.1").cuThreadExchangeStreamCaptureMode
    except OSError:
        return lambda mode: None


@contextlib.contextmanager
def beside_captures() -> Iterator[None]:
    """Lets this thread wait for streams, copy and allocate, whatever other threads capture.

    In CUDA's default mode, "global", every such call of any thread during a capture is an error
    that ends the capture, even if it uses another stream. Waiting for the device, or for a stream
    that is being captured, remains an error.
    """
    mode = ctypes.c_int(_RELAXED)
    _exchange_mode()(ctypes.byref(mode))
    try:
        yield
    finally:
        _exchange_mode()(ctypes.byref(mode))
