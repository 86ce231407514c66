"""The ops that `tessera.torch_ops` registers with torch, which nothing here imports."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from tessera._op import Op

Shape = tuple[Any, ...]


class TorchOp(NamedTuple):
    """An op as `tessera.torch_ops` registers it with torch."""

    op: Op
    # Whose parameters the op of torch has, but `out` and `validate`.
    function: Callable[..., Any]
    # The same with `out`, whatever records what is done with its arrays.
    eagerly: Callable[..., Any]
    # Shapes of the outputs by the arguments, where the core cannot be asked: for SymInts. The one
    # formula in Python; a test holds it to the core's.
    shapes: Callable[[Mapping[str, Any]], tuple[Shape, ...]]


TORCH_OPS: dict[str, TorchOp] = {}
