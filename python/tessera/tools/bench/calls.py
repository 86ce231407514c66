"""Ops that are timed as Python calls, on either device: their common problem and contenders."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tessera._library import torch_failure, torch_or_none
from tessera.contract import Violation
from tessera.tools.bench.contender import HOST_LIBRARY, Contender, Kind, TimedCall, native_library
from tessera.tools.bench.problem import POISON

_CPU_METHODS = ("call",)
_GPU_METHODS = ("graph", "chain", "l2", "eager")


@dataclass(frozen=True)
class CallProblem:
    """A call of an op on the arrays of a shape, and the calls that it is compared with.

    judge: runs the op's checker on the call's outputs.
    others: calls of peers and of related ops, by the name of the contender.
    num_words: words of 32 bits that the op reads, for the floor.
    """

    shape: Any
    device: str
    call: TimedCall
    judge: Callable[[tuple[Any, ...]], list[Violation]]
    others: Mapping[str, TimedCall]
    num_words: int

    def poison(self) -> None:
        """Overwrite the outputs of a call, whose memory the next call is likely to get."""
        for array in self.call.run():
            array[...] = POISON

    def violations(self, outputs: tuple[Any, ...]) -> list[Violation]:
        """The violations that the op's checker finds in these outputs."""
        return self.judge(outputs)

    def floor_arrays(self) -> tuple[Any, tuple[Any, ...]]:
        """As many words as the op reads, none negative, and arrays like those that it writes."""
        return placed(np.zeros(self.num_words, np.int32), self.device), self.call.run()


def placed(array: Any, device: str) -> Any:
    """A NumPy array, moved to the device."""
    if device == "cpu":
        return array
    import torch

    return torch.from_numpy(array).to(device)


def required_torch(op: str) -> Any:
    """The module, for an op whose contenders take torch's tensors.

    Raises:
        RuntimeError: torch cannot be imported.
    """
    torch = torch_or_none()
    if torch is None:
        why = torch_failure() or "torch is not installed"
        raise RuntimeError(f"--op {op}: expected torch, for the arrays of all contenders: {why}")
    return torch


def call_contenders(device: str, *related: str) -> list[Contender]:
    """Tessera, the related ops that each problem has a call of, and the floor."""
    contenders = named_contenders(device, dict.fromkeys(related, "related"))
    if device == "cpu":
        return [*contenders, Contender("floor", "floor", _CPU_METHODS, _host_floor)]
    from tessera.tools.bench.cuda import floor_contenders

    return [*contenders, *floor_contenders(CallProblem.floor_arrays)]


def named_contenders(device: str, others: Mapping[str, Kind]) -> list[Contender]:
    """Tessera, and the others that each problem has a call of, by their kinds."""
    methods = _CPU_METHODS if device == "cpu" else _GPU_METHODS
    ours = Contender("tessera", "tessera", methods, lambda problem: problem.call)
    return [ours, *(Contender(name, kind, methods, _other(name)) for name, kind in others.items())]


def _other(name: str) -> Callable[[CallProblem], TimedCall]:
    return lambda problem: problem.others[name]


def _host_floor(problem: CallProblem) -> TimedCall:
    words, outputs = problem.floor_arrays()
    function = native_library(HOST_LIBRARY).function("host_seconds")
    written = [np.empty_like(array) for array in outputs]
    seconds = functools.partial(function, "floor", words, None, *written, 1, 1, 1, 1)
    return TimedCall(lambda: seconds(1), seconds)
