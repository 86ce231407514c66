"""Runs programs written for a GPU on the CPU: redirects their tensors and synchronisation."""

from __future__ import annotations

import contextlib
import re
import time
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


def _on_cpu(value: Any) -> Any:
    """The value, or the CPU's name if it is a CUDA device or the name of one."""
    named = isinstance(value, (str, torch.device)) and re.fullmatch(r"cuda(:\d+)?", str(value))
    return "cpu" if named else value


class _OnCpu(TorchFunctionMode):  # type: ignore[misc]  # it has no type if torch is absent
    """Passes the CPU to torch functions in place of a CUDA device."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function in (torch.Tensor.cuda, torch.Tensor.pin_memory):
            return args[0]
        kwargs = {name: _on_cpu(value) for name, value in (kwargs or {}).items()}
        if isinstance(kwargs.get("device"), int):
            kwargs["device"] = "cpu"
        return function(*map(_on_cpu, args), **kwargs)


class _Event:
    """A `torch.cuda.Event` for work that is done as soon as it is requested."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        self._seconds = 0.0

    def record(self, stream: object = None) -> None:
        self._seconds = time.perf_counter()

    def elapsed_time(self, end: _Event) -> float:
        return (end._seconds - self._seconds) * 1e3

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        pass

    def wait(self, stream: object = None) -> None:
        pass


def _always(value: object) -> Any:
    return lambda *args, **kwargs: value


def _seed(seed: int) -> None:
    torch.default_generator.manual_seed(seed)


# The members of `torch.cuda` that work; all others behave as on a machine without a GPU.
CUDA: dict[str, Any] = {
    "current_device": _always(0),
    "device": _always(contextlib.nullcontext()),
    "device_count": _always(1),
    "empty_cache": _always(None),
    "Event": _Event,
    "get_device_name": _always("CPU, in place of a GPU"),
    "is_available": _always(True),
    "manual_seed": _seed,
    "manual_seed_all": _seed,
    "set_device": _always(None),
    "synchronize": _always(None),
}


def redirect_to_cpu() -> None:
    """From now on, let this thread use the CPU wherever it asks torch for a CUDA device."""
    set_default_device = torch.set_default_device
    torch.set_default_device = lambda device: set_default_device(_on_cpu(device))
    for name, value in CUDA.items():
        setattr(torch.cuda, name, value)
    _OnCpu().__enter__()
