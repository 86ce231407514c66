"""The compiled library, loaded at first use. The one module that knows apache-tvm-ffi."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from numbers import Integral
from pathlib import Path
from typing import Any


def _short_and_long(module: Any, name: str) -> tuple[Any, Any]:
    short, long = module.get_function(name), module.get_function(name)
    short.release_gil, long.release_gil = False, True
    return short, long


def dlpack_device(cuda_index: int) -> tuple[int, int]:
    """DLPack's type and number of a CUDA device, or of the host where the index is negative."""
    return (1, 0) if cuda_index < 0 else (2, cuda_index)


class Library:
    """What `python/ffi` exports."""

    def __init__(self) -> None:
        # It imports torch where torch is installed, which takes seconds: not for `import tessera`.
        import tvm_ffi

        tvm_ffi.register_error("NotImplementedError", NotImplementedError)
        module = tvm_ffi.load_module(Path(__file__).with_name("lib") / "tessera_ffi.so")
        self.as_tensor: Callable[[Any], Any] = tvm_ffi.from_dlpack
        self.function: Callable[[str], Callable[..., Any]] = module.get_function
        # Each function twice. Letting go of the interpreter lock and taking it back costs a short
        # call more than other threads gain.
        self.align_short, self.align_long = _short_and_long(module, "align_block_size")
        self.align_joined_short, self.align_joined_long = _short_and_long(
            module, "align_block_size_joined"
        )
        # What calls validate that do not say; the environment is read once.
        default = module.get_function("validate_default")()
        self.validate_default: Any = {"": False, "0": False, "1": True}.get(default, default)
        self.align_with_options: Any = module.get_function("align_block_size_with_options")
        self.align_joined_with_options: Any = module.get_function(
            "align_block_size_joined_with_options"
        )

    def on_stream(self, cuda_index: int, stream: int) -> AbstractContextManager[object]:
        """Calls inside run on this stream of the device, unless a torch tensor brings its own."""
        import tvm_ffi

        context: AbstractContextManager[object] = tvm_ffi.use_raw_stream(
            tvm_ffi.device("cuda", cuda_index), stream
        )
        return context

    def read_json(self, function: str, *args: object) -> Any:
        """The decoded result of a function that returns JSON text."""
        return json.loads(self.function(function)(*args))


@functools.cache
def load() -> Library:
    """The library; loads it the first time."""
    return Library()


def refusal(
    op: str, error: Exception, arrays: Mapping[str, object], integers: Mapping[str, object]
) -> Exception:
    """The exception to raise for `error`, which a call of `op` with these arguments raised.

    The core's refusals keep type and message, and lose the FFI's frames. What failed before it
    reached the core is told in the core's form: op, argument, what was expected, what came.
    """
    message = str(error)
    if message.startswith(f"{op}: "):
        return type(error)(message)
    if message.startswith("expected "):  # a framework's refusal of the array that it is asked for
        return type(error)(f"{op}: {next(iter(arrays))}: {message}")
    for name, value in integers.items():
        if not isinstance(value, Integral):
            return TypeError(f"{op}: {name}: expected an integer, got {type(value).__name__}")
        if not -(2**63) <= int(value) < 2**63:
            return ValueError(f"{op}: {name}: expected an integer of 64 bits, got {value}")
    jax = sys.modules.get("jax")
    for name, array in arrays.items():
        kind = type(array).__name__
        if jax is not None and isinstance(array, jax.core.Tracer):
            return TypeError(
                f"{op}: {name}: expected an array, got one that JAX traces, without values "
                "(inside jax.jit, call Tessera through jax.pure_callback)"
            )
        if not hasattr(array, "__dlpack__"):
            return TypeError(f"{op}: {name}: expected an array that speaks DLPack, got {kind}")
        try:
            load().as_tensor(array)
        except Exception as reason:
            dtype = getattr(array, "dtype", "unknown")
            why = str(reason).partition("\n")[0].rstrip(".")
            return TypeError(
                f"{op}: {name}: expected an array that DLPack can carry, "
                f"got {kind} of dtype {dtype} ({why})"
            )
    return error
