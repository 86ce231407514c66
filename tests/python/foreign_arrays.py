"""Arrays of a framework that Tessera does not know."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np


class SpeaksDlpack:
    """Another framework's array, which can do nothing but be exported."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()


class _DLTensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device", ctypes.c_int32 * 2),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.c_void_p),
        ("byte_offset", ctypes.c_uint64),
        # Of DLManagedTensor.
        ("manager", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    ]


_new_capsule = ctypes.PYFUNCTYPE(
    ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p
)(("PyCapsule_New", ctypes.pythonapi))


class Malformed:
    """What no framework makes: an array of any lengths and number of axes, over 64 bytes.

    Without lengths it has no memory for them either.
    """

    def __init__(self, dtype: Any, *lengths: int, ndim: int | None = None) -> None:
        kind = np.dtype(dtype)
        self.memory = np.zeros(64, np.uint8)
        self.tensor = _DLTensor(
            data=self.memory.ctypes.data,
            device=(1, 0),
            ndim=len(lengths) if ndim is None else ndim,
            code={"i": 0, "u": 1, "f": 2}[kind.kind],
            bits=8 * kind.itemsize,
            lanes=1,
            shape=(ctypes.c_int64 * len(lengths))(*lengths) if lengths else None,
        )

    def __dlpack__(self, **options: Any) -> Any:
        return _new_capsule(ctypes.addressof(self.tensor), b"dltensor", None)

    def __dlpack_device__(self) -> Any:
        return (1, 0)
