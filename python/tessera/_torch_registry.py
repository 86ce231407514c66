"""The ops that `tessera.torch_ops` registers with torch, which nothing here imports."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from tessera._op import Op

Shape = tuple[Any, ...]


class TorchOp(NamedTuple):
    """An op as `tessera.torch_ops` registers it with torch."""

    op: Op
    # The public function. The torch op has its parameters, without `out` and `validate`.
    function: Callable[..., Any]
    # The same function for calls with `out`, even while torch traces.
    eagerly: Callable[..., Any]
    # Shapes of the outputs for SymInts, which the core cannot take. A test compares these formulas
    # with the core.
    shapes: Callable[[Mapping[str, Any]], tuple[Shape, ...]]
    # By parameter, what makes of the function's argument one that a schema of torch can have.
    conversions: Mapping[str, Callable[[Any], Any]] = {}


TORCH_OPS: dict[str, TorchOp] = {}
