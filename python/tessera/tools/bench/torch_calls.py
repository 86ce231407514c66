"""Calls through torch's dispatcher: Tessera's op, and one that does nothing."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from tessera.tools.bench.contender import Contender, TimedCall
from tessera.tools.bench.problem import Problem


def torch_op_contenders() -> list[Contender]:
    """Both contenders, on either device; torch must be installed."""
    return [
        Contender("torch.ops.tessera.align_block_size", "cost", ("eager",), _prepare(_tesseras_op)),
        Contender("empty torch op, the same arguments", "cost", ("eager",), _prepare(_empty_op)),
    ]


def _prepare(op_of: Callable[[], Any]) -> Callable[[Problem], TimedCall]:
    def prepare(problem: Problem) -> TimedCall:
        import torch

        # NumPy arrays become tensors of the same memory.
        ids, options = torch.as_tensor(problem.topk_ids), problem.options
        if problem.expert_map is not None:
            options["expert_map"] = torch.as_tensor(problem.expert_map)
        op = op_of()
        return TimedCall.of(lambda: op(ids, **options))

    return prepare


def _tesseras_op() -> Any:
    import torch

    import tessera.torch_ops  # noqa: F401, it registers the op

    return torch.ops.tessera.align_block_size


@functools.cache
def _empty_library() -> Any:
    """Defines the empty op, which lives as long as this object."""
    import torch

    library = torch.library.Library("tessera_bench", "DEF")
    library.define(
        "empty(Tensor topk_ids, SymInt block_size, SymInt num_experts, Tensor? expert_map=None) "
        "-> (Tensor, Tensor, Tensor)"
    )
    outputs = tuple(torch.empty(1) for _ in range(3))
    for device in ("CPU", "CUDA"):
        library.impl("empty", lambda *arguments: outputs, device)
    return library


def _empty_op() -> Any:
    import torch

    _empty_library()
    return torch.ops.tessera_bench.empty
