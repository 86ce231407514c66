"""Runs programs written for a GPU on the CPU: redirects what they give torch as a CUDA device."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from tessera.vllm import cuda_on_cpu

# Functions that take the number of a device, and where.
_DEVICE_AT = {
    torch.device: 0,
    torch.Tensor.cuda: 1,
    torch.Tensor.to: 1,
    torch._C._nn._parse_to: 0,
}


def _on_cpu(value: Any) -> Any:
    """The value, or the CPU's name if it is a CUDA device or the name of one, or of its tensors."""
    if isinstance(value, str) and re.fullmatch(r"torch\.cuda\.\w+Tensor", value):
        return value.replace(".cuda", "")
    named = isinstance(value, (str, torch.device)) and re.fullmatch(r"cuda(:\d+)?", str(value))
    if named:
        cuda_on_cpu.index_of(int((named[1] or ":0")[1:]))
        return "cpu"
    return value


def _number_on_cpu(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        cuda_on_cpu.index_of(value)
        return "cpu"
    return _on_cpu(value)


class _OnCpu(TorchFunctionMode):  # type: ignore[misc]  # it has no type if torch is absent
    """Passes the CPU to torch functions in place of a CUDA device."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        named = {**dict(zip(("type", "index"), args, strict=False)), **kwargs}
        if function is torch.device and named.get("type") == "cuda" and "index" in named:
            args, kwargs = (named["index"],), {}  # devices of tensors on the CPU have no index
        kwargs = {name: _on_cpu(value) for name, value in kwargs.items()}
        if "device" in kwargs:
            kwargs["device"] = _number_on_cpu(kwargs["device"])
        kwargs.pop("pin_memory", None)
        args = [*map(_on_cpu, args)]
        if (at := _DEVICE_AT.get(function, len(args))) < len(args):
            args[at] = _number_on_cpu(args[at])
        if function in (torch.Tensor.cuda, torch.Tensor.pin_memory):
            return args[0]
        return function(*args, **kwargs)


class _Engine(type(torch.autograd.Variable._execution_engine)):  # type: ignore[misc]
    """Runs a backward pass with the mode, which `Tensor.backward` and others leave before."""

    def run_backward(self, *args: Any, **kwargs: Any) -> Any:
        with _OnCpu():
            return super().run_backward(*args, **kwargs)


_TorchGenerator = torch.Generator


class _Generators(type):
    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, _TorchGenerator)


class _Generator(metaclass=_Generators):
    """`torch.Generator`, whose argument no mode sees; its instances are torch's own."""

    def __new__(cls, device: Any = "cpu") -> Any:
        return _TorchGenerator(_number_on_cpu(device))


def _fork_rng(function: Any, devices: Any = None, enabled: bool = True, **kwargs: Any) -> Any:
    for device in devices or ():
        cuda_on_cpu.index_of(device)
    return function([], enabled)  # that of the CPU is always forked


def _autocast(
    function: Any, self: Any, device_type: Any, dtype: Any = None, *args: Any, **kwargs: Any
) -> None:
    if _on_cpu(device_type) != device_type:
        device_type, dtype = "cpu", dtype or torch.float16  # which a GPU's default is
    function(self, device_type, dtype, *args, **kwargs)


def _profile(function: Any, *args: Any, **kwargs: Any) -> None:
    if kwargs.get("use_cuda") or kwargs.get("use_device") == "cuda":
        kwargs |= {"use_cuda": False, "use_device": None, "use_cpu": True}
    function(*args, **kwargs)


def _device_module(function: Any, device: Any = None) -> Any:
    # A device that is the CPU may have been made as a GPU's, which is the default, too.
    may_be_cuda = device is None or str(_on_cpu(device)) == "cpu" != device
    return torch.cuda if may_be_cuda else function(device)


def _emit_nvtx(function: Any, self: Any, *args: Any, **kwargs: Any) -> None:
    function(self, False)


def _scatter(function: Any, inputs: Any, kwargs: Any, *args: Any, **dim: Any) -> tuple[Any, Any]:
    # Over one device DataParallel is its module, but torch's copies need a GPU.
    return (inputs,), (kwargs or {},)


def _loader(function: Any, self: Any, *args: Any, **kwargs: Any) -> None:
    function(self, *args, **kwargs)
    self.pin_memory = False


def _replace(owner: Any, name: str, replacement: Callable[..., Any]) -> None:
    """Let a function of torch that no mode sees be one that gets it as the first argument."""
    function = getattr(owner, name)

    @functools.wraps(function)
    def replaced(*args: Any, **kwargs: Any) -> Any:
        return replacement(function, *args, **kwargs)

    setattr(owner, name, replaced)


def redirect_to_cpu() -> None:
    """From now on, let this thread use the CPU wherever it asks torch for a CUDA device."""
    _replace(torch, "set_default_device", lambda function, device: function(_number_on_cpu(device)))
    _replace(torch.random, "fork_rng", _fork_rng)
    _replace(torch, "get_device_module", _device_module)
    if hasattr(torch, "accelerator"):  # which asks torch.cuda, but needs a GPU
        _replace(torch.accelerator, "is_available", lambda function: False)
    _replace(torch.Tensor, "record_stream", lambda function, tensor, stream: None)
    _replace(torch.autocast, "__init__", _autocast)
    torch.autograd.Variable._execution_engine = _Engine()
    _replace(torch.autograd.profiler.profile, "__init__", _profile)
    _replace(torch.autograd.profiler.emit_nvtx, "__init__", _emit_nvtx)
    _replace(torch.utils.data.DataLoader, "__init__", _loader)
    parallel: Any = sys.modules["torch.nn.parallel.data_parallel"]
    _replace(parallel, "_get_device_index", lambda function, of, *_: cuda_on_cpu.index_of(of))
    _replace(parallel, "scatter_kwargs", _scatter)
    # What a file, or `map_location`, places on a GPU stays where it was read.
    torch.serialization.register_package(
        19,  # before torch's own for CUDA, which has 20
        lambda storage: None,
        lambda storage, location: storage if _on_cpu(location) != location else None,
    )
    torch.Generator = _Generator
    cuda_on_cpu.provide()
    _OnCpu().__enter__()
