"""Arrays that an op must refuse, because neither DLPack nor the library detects them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from tessera._float8 import refused_dtype
from tessera._framework import exportable, on_host
from tessera._frameworks import FORWARD_MODE, FRAMEWORKS
from tessera._op import Op

# Message of the error that a call raises for an unfit array; `refused_array` finds which and why.
UNFIT = "an array is unfit"


def any_unfit(arrays: Iterable[object], *, written: bool = False) -> bool:
    """Whether `refused_array` would refuse an array; None stands for an array that is not given."""
    for array in arrays:
        kind = type(array)
        if array is None or kind is np.ndarray:  # what the FFI refuses itself
            continue
        framework = FRAMEWORKS[kind]
        is_unfit = framework.is_unfit
        if (written and framework.immutable) or (is_unfit is not None and is_unfit(array)):
            return True
    return False


def require_eager(op: str, arrays: Iterable[tuple[str, object]]) -> None:
    """Refuse torch arrays in a call that torch traces but does not see as one op.

    The values that the call reads would become constants of the traced program.

    Raises:
        TypeError: torch traces, and one of the arrays is a torch tensor.
    """
    for name, array in arrays:
        if array is None:
            continue
        framework = FRAMEWORKS[type(array)]
        if framework.num_modes is not None and (framework.num_modes() or framework.is_tracing()):
            raise TypeError(f"{op}: {name}: expected eager execution, got a call that torch traces")


def any_followed(arrays: Iterable[object]) -> bool:
    """Whether autograd may follow one of the arrays.

    It does so backward if an array requires a gradient. It may do so forward whenever forward-mode
    differentiation is active, whatever the arrays are.
    """
    for array in arrays:
        if getattr(array, "requires_grad", False):
            return True
    return FORWARD_MODE.module._current_level >= 0  # type: ignore[no-any-return]


def _refuse_dual(op: str, name: str, array: object) -> None:
    """Refuse an array with a tangent, which the op would not see."""
    if array is None or FORWARD_MODE.module._current_level < 0:
        return
    framework = FRAMEWORKS[type(array)]
    if framework.num_modes is None or framework.num_modes():
        return  # no tensor of torch, or one that is traced: the call that is made later has values
    if sys.modules["torch"].compiler.is_dynamo_compiling():
        # Dynamo would take it for a tensor without a tangent. It leaves code that raises to Python.
        raise ValueError(f"{op}: {name}: expected eager execution, got a call that torch traces")
    try:
        is_dual = FORWARD_MODE.module.unpack_dual(array).tangent is not None
    except RuntimeError:  # inside an op of torch it cannot take a tangent apart, and has none else
        is_dual = True
    if is_dual:
        raise ValueError(
            f"{op}: {name}: expected a tensor that autograd does not follow, got one with a "
            "tangent (the primal of its torch.autograd.forward_ad.unpack_dual() has none)"
        )


def refuse_followed(op: str, name: str, array: object) -> None:
    """Refuse an output that autograd follows, which would not see it written."""
    _refuse_dual(op, name, array)
    if array is not None and getattr(array, "requires_grad", False):
        raise ValueError(
            f"{op}: {name}: expected a tensor that autograd does not follow, got one that "
            "requires grad (its detach() does not)"
        )


def refuse_followed_inputs(op: Op, inputs: Iterable[object]) -> None:
    """Refuse inputs that autograd follows, as the op has no gradient."""
    for row, array in zip(op.inputs, inputs, strict=False):
        _refuse_dual(op.name, row.name, array)
        if not getattr(array, "requires_grad", False):
            continue
        torch = sys.modules.get("torch")  # the array may be of another framework
        if torch is None or torch.is_grad_enabled():
            raise ValueError(
                f"{op.name}: {row.name}: expected a tensor that autograd does not follow, got one "
                "that requires grad (its detach() does not; under torch.no_grad() any is taken)"
            )


def refused_array(
    op: str, arrays: Mapping[str, object], written: Iterable[str] = ()
) -> Exception | None:
    """The error that `op` has to raise for an array that cannot be read, or cannot be written.

    Finds arrays that DLPack exports without an error, or refuses without a reason.
    """
    for name, array in arrays.items():
        if array is None:  # a size query leaves any array out
            return TypeError(f"{op}: {name}: expected an array that speaks DLPack, got NoneType")
        framework = FRAMEWORKS[type(array)]
        if framework.is_unfit is not None and framework.is_unfit(array):
            unfit = framework.unfit
            return TypeError(f"{op}: {name}: {unfit if isinstance(unfit, str) else unfit(array)}")
        if (refused := refused_dtype(Op(op), name, array)) is not None:
            return refused
    for name in written:
        array = arrays[name]
        if FRAMEWORKS[type(array)].immutable or (
            isinstance(array, np.ndarray) and not array.flags.writeable
        ):
            return ValueError(f"{op}: {name}: expected a writable array, got a read-only one")
    return None


def host_arrays(op: str, arrays: Mapping[str, object]) -> dict[str, Any]:
    """The arrays for a checker, copied to the host if they are elsewhere; waits for them.

    Raises:
        TypeError: an array cannot be copied, or its memory does not hold its values.
    """
    if refused := refused_array(op, arrays):
        try:
            raise refused
        finally:
            del refused  # its traceback holds this frame, and so the arrays
    copied = {}
    for name, array in arrays.items():
        try:
            copied[name] = exportable(on_host(array))
        except Exception as error:
            raise TypeError(
                f"{op}: {name}: expected an array whose values can be copied to the host, "
                f"got {type(array).__name__} ({_first_line(error)})"
            ) from None
    return copied


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
