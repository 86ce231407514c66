"""Tensors that Tessera can serve an engine's op with."""

from __future__ import annotations

import torch


def check_plain(op: str, name: str, tensor: torch.Tensor) -> None:
    """Refuse tensors without memory of their own, such as torch.compile uses for tracing.

    Raises:
        TypeError: the tensor is an instance of a subclass.
    """
    if type(tensor) is not torch.Tensor:
        raise TypeError(
            f"{op}: {name}: expected a torch.Tensor with memory, got {type(tensor).__name__}"
        )
