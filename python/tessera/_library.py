"""The compiled library, loaded at first use. The only module that uses apache-tvm-ffi."""

from __future__ import annotations

import ctypes
import functools
import json
import os
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from numbers import Integral
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from tessera._shown import shown
from tessera._starting import loading

Result = TypeVar("Result")

# Reentrant, because torch's import may run code that calls Tessera.
_LOADING = threading.RLock()


class ForkedWhileLoadingError(RuntimeError):
    """The process was forked while another thread of its parent loaded the library."""


_forked_while_loading = False


def _after_fork() -> None:
    """Records in a child whether a thread of the parent was loading the library.

    That thread also held the locks of its imports, which nobody can release in the child. Waiting
    in the parent until it is done does not help: hooks of other modules may hold what it needs.
    """
    global _forked_while_loading, _LOADING
    if _LOADING.acquire(blocking=False):
        _LOADING.release()
    else:
        _forked_while_loading, _LOADING = True, threading.RLock()


os.register_at_fork(after_in_child=_after_fork)


def _once(function: Callable[[], Result]) -> Callable[[], Result]:
    """A function that calls `function` once, in the first thread, while others wait for it."""
    shared = functools.cache(function)

    @functools.cache  # so that later calls take no lock
    def result() -> Result:
        if _forked_while_loading:
            raise ForkedWhileLoadingError(
                "tessera: expected no fork while another thread makes the first call of the "
                "process, got one (tessera.version() before the fork loads all that calls need)"
            )
        with _LOADING:
            return shared()

    return result


@_once
def _torch_and_failure() -> tuple[Any, str]:
    try:
        with loading():
            import torch
    except ModuleNotFoundError as error:
        return None, "" if error.name == "torch" else str(error)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit among them
        return None, f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    if not hasattr(torch, "Tensor"):
        return None, "module 'torch' is a stub without Tensor"
    return torch, ""


def torch_or_none() -> Any:
    """The module torch; None if it is not installed or cannot be imported. Takes seconds."""
    return _torch_and_failure()[0]


def torch_failure() -> str:
    """Why an installed torch cannot be imported; empty if it can, or is not installed."""
    return _torch_and_failure()[1]


def _import_ffi() -> Any:
    """Import apache-tvm-ffi, which imports an installed torch and expects that not to fail."""
    if not torch_failure():
        with loading():
            import tvm_ffi

        return tvm_ffi
    before = sys.modules.get("torch")  # a stub, most likely
    sys.modules["torch"] = None  # type: ignore[assignment]  # Python treats it as not installed
    try:
        with loading():
            import tvm_ffi
    finally:
        # So that the program's own import fails with torch's reason. The program may have set
        # another module meanwhile.
        if sys.modules.get("torch", before) is None:
            sys.modules.pop("torch", None)
            if before is not None:
                sys.modules["torch"] = before
    return tvm_ffi


def dlpack_device(cuda_index: int) -> tuple[int, int]:
    """DLPack's type and number of a CUDA device, or of the host if the index is negative."""
    return (1, 0) if cuda_index < 0 else (2, cuda_index)


class Library:
    """The functions that `python/ffi` exports."""

    def __init__(self) -> None:
        # Imports an installed torch, which takes seconds, and so not in `import tessera`.
        tvm_ffi = _import_ffi()
        tvm_ffi.register_error("NotImplementedError", NotImplementedError)
        path = Path(__file__).with_name("lib") / "tessera_ffi.so"
        module = tvm_ffi.load_module(path)
        self._functions_of_python = ctypes.PyDLL(str(path))
        self.as_tensor: Callable[[Any], Any] = tvm_ffi.from_dlpack
        self._module = module
        # The default of `validate=`; the environment is read once.
        default = module.get_function("validate_default")()
        self.validate_default: Any = {"": False, "0": False, "1": True}.get(default, default)

    def function(self, name: str) -> Callable[..., Any]:
        """An exported function, which runs without the interpreter lock.

        TVM_FFI_RELEASE_GIL_BY_DEFAULT has no effect on it.
        """
        function: Any = self._module.get_function(name)
        function.release_gil = True
        return function  # type: ignore[no-any-return]

    def direct_call(self, op: str, result_type: Any) -> Callable[..., Any]:
        """A function that calls the op with tensors of the types that are known to it.

        It takes the required outputs, in a tuple if there are several, or None for new ones; the
        number of threads; then all other arguments in the order of the table, cut short where
        defaults will do. It returns the required outputs, or None where the arguments need a
        conversion, or a refusal, or where the call has failed, and raises no `Exception`.

        Args:
            op: its name.
            result_type: the named tuple of new outputs; None if there is only one.
        """
        function = self._functions_of_python.tessera_direct_call
        function.argtypes, function.restype = [ctypes.c_char_p, ctypes.py_object], ctypes.py_object
        # Dynamo warns of builtin functions that it does not know, though not of other callables.
        kind = type("DirectCall", (), {"__call__": function(op.encode(), result_type)})
        made: Callable[..., Any] = kind()
        return made

    def add_tensor_type(self, kind: type, *functions: Any) -> None:
        """Make a type known to direct calls, if it has DLPack's C functions.

        Args:
            kind: the type.
            functions: its `num_modes`, `is_tracing`, `empty_bytes` and `is_neg`, then the module
                `torch.autograd.forward_ad`.
        """
        exchange = getattr(kind, "__dlpack_c_exchange_api__", None)
        add = self._functions_of_python.tessera_add_tensor_type
        add.argtypes, add.restype = [ctypes.py_object] * 7, None
        add(kind, exchange, *functions)

    def on_stream(self, cuda_index: int, stream: int) -> AbstractContextManager[object]:
        """Calls inside run on this stream of the device, unless torch tensors set another one."""
        import tvm_ffi

        context: AbstractContextManager[object] = tvm_ffi.use_raw_stream(
            tvm_ffi.device("cuda", cuda_index), stream
        )
        return context

    def read_json(self, function: str, *args: object) -> Any:
        """The decoded result of a function that returns JSON text."""
        return json.loads(self.function(function)(*args))


@_once
def load() -> Library:
    """The library; loads it the first time."""
    return Library()


def _writable(array: Any) -> Any:
    """An array without elements in place of one that is read-only, which is no reason to refuse."""
    flags = getattr(array, "flags", None)
    return array if getattr(flags, "writeable", True) else np.empty(0, array.dtype)


def refusal(
    op: str, error: Exception, arrays: Mapping[str, object], integers: Mapping[str, object]
) -> Exception:
    """The exception to raise for `error`, which a call of `op` with these arguments raised.

    The core's refusals keep type and message, and lose the FFI's frames. Failures before the core
    get a message of the core's form: op, argument, what was expected, what came.
    """
    if isinstance(error, ForkedWhileLoadingError):
        return error
    message = str(error)
    if message.startswith(f"{op}: "):
        return type(error)(message)
    if message.startswith("expected "):  # a framework refuses to make an array
        return type(error)(f"{op}: {next(iter(arrays))}: {message}")
    for name, value in integers.items():
        if not isinstance(value, Integral) or isinstance(value, bool):
            return TypeError(f"{op}: {name}: expected an integer, got {type(value).__name__}")
        if not -(2**63) <= int(value) < 2**63:
            return ValueError(f"{op}: {name}: expected an integer of 64 bits, got {shown(value)}")
    tracer = getattr(getattr(sys.modules.get("jax"), "core", None), "Tracer", None)
    for name, array in arrays.items():
        kind = type(array).__name__
        if isinstance(tracer, type) and isinstance(array, tracer):
            return TypeError(
                f"{op}: {name}: expected an array, got one that JAX traces, without values "
                "(inside jax.jit, call Tessera through jax.pure_callback)"
            )
        if not hasattr(array, "__dlpack__"):
            return TypeError(f"{op}: {name}: expected an array that speaks DLPack, got {kind}")
        try:
            load().as_tensor(_writable(array))
        except Exception as reason:
            dtype = getattr(array, "dtype", "unknown")
            why = str(reason).partition("\n")[0].rstrip(".")
            return TypeError(
                f"{op}: {name}: expected an array that DLPack can carry, "
                f"got {kind} of dtype {dtype} ({why})"
            )
    return error
