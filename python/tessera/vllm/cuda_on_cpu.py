"""What `torch.cuda` has under `--device cpu`: one GPU of no memory, all of whose work is done."""

from __future__ import annotations

import os
import time
from collections import Counter
from types import ModuleType
from typing import Any, NoReturn

import torch

_NAME = "CPU, in place of a GPU"


def _refused(what: str) -> str:
    return f"{what}: needs a GPU; tessera.vllm --device cpu runs this program on the CPU"


def _refuse_cuda(*args: object) -> NoReturn:
    # Torch calls it before any other use of CUDA, in every thread.
    raise RuntimeError(f"{_refused('CUDA')}, and redirects the main thread only")


def _refusal(name: str) -> type:
    """A class in place of a function or class that needs a GPU; `isinstance` still takes it."""

    def refuse(*args: object, **kwargs: object) -> NoReturn:
        raise RuntimeError(_refused(f"torch.cuda.{name}"))

    return type(name, (), {"__new__": refuse})


def _always(value: object) -> Any:
    return lambda *args, **kwargs: value


def _seed(seed: int) -> None:
    torch.default_generator.manual_seed(seed)


def _memory(device: object = None) -> tuple[int, int]:
    """Bytes of the host's memory: free and in all."""
    page = os.sysconf("SC_PAGE_SIZE")
    return os.sysconf("SC_AVPHYS_PAGES") * page, os.sysconf("SC_PHYS_PAGES") * page


class _Properties:
    """What `torch.cuda.get_device_properties` says of the CPU."""

    def __init__(self, device: object = None) -> None:
        self.name, self.gcnArchName = _NAME, ""
        # Below every GPU's: a program that asks takes the way that needs no GPU's instructions.
        self.major, self.minor = 0, 0
        self.total_memory = _memory()[1]
        self.multi_processor_count = os.cpu_count() or 1

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(_refused(f"{name} of torch.cuda.get_device_properties"))


class _Context:
    """A `with` block that changes nothing: there is one device, and one stream."""

    idx = prev_idx = 0

    def __init__(self, *args: object) -> None:
        pass

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        pass


class _Device(_Context):
    pass


class _DeviceOf(_Device):
    pass


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


class _Stream(_Context):
    """A `torch.cuda.Stream` of such work."""

    cuda_stream = stream_id = device_index = priority = 0
    device = torch.device("cpu")
    query = _always(True)
    synchronize = wait_event = wait_stream = _always(None)

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def record_event(self, event: _Event | None = None) -> _Event:
        event = event or _Event()
        event.record(self)
        return event


_STREAM = _Stream()

# Functions that do nothing, return 0, or False. Each name gets its own: the tables of torch.compile
# take no function under two names.
_NOTHING = """
empty_cache init ipc_collect reset_accumulated_memory_stats reset_max_memory_allocated
reset_max_memory_cached reset_peak_memory_stats set_device set_per_process_memory_fraction
set_stream set_sync_debug_mode synchronize"""
_ZERO = """
current_device get_sync_debug_mode max_memory_allocated max_memory_cached max_memory_reserved
memory_allocated memory_cached memory_reserved"""
_FALSE = "can_device_access_peer is_current_stream_capturing is_tf32_supported"

# The members of `torch.cuda` that work. Those of `_UNCHANGED` stay torch's; all others are refused.
CUDA: dict[str, Any] = {
    **{name: _always(None) for name in _NOTHING.split()},
    **{name: _always(0) for name in _ZERO.split()},
    **{name: _always(False) for name in _FALSE.split()},
    "current_stream": _always(_STREAM),
    "default_generators": (torch.default_generator,),
    "default_stream": _always(_STREAM),
    "device": _Device,
    "device_count": _always(1),
    "device_of": _DeviceOf,
    "Event": _Event,
    "get_arch_list": lambda: [],
    "get_device_capability": _always((0, 0)),
    "get_device_name": _always(_NAME),
    "get_device_properties": _Properties,
    "get_rng_state": lambda device=None: torch.default_generator.get_state(),
    "get_rng_state_all": lambda: [torch.default_generator.get_state()],
    "initial_seed": lambda: torch.default_generator.initial_seed(),
    "is_available": _always(True),
    "is_bf16_supported": _always(True),
    "manual_seed": lambda seed: _seed(seed),
    "manual_seed_all": _seed,
    "mem_get_info": _memory,
    "memory_stats": lambda device=None: Counter(),  # 0, whatever is asked
    "memory_summary": _always(f"{_NAME}: no memory of a GPU is in use"),
    "seed": lambda: torch.default_generator.seed(),
    "seed_all": lambda: torch.default_generator.seed(),
    "set_rng_state": lambda state, device=None: torch.default_generator.set_state(state),
    "set_rng_state_all": lambda states: torch.default_generator.set_state(states[0]),
    "Stream": _Stream,
    "stream": _Context,
    "StreamContext": _Context,
}
_UNCHANGED = ("CudaError", "DeferredCudaCallError", "get_gencode_flags", "is_initialized")
# What profilers of GPUs are told.
_NVTX = {"mark": _always(None), "range_pop": _always(0), "range_push": _always(0)}
_PROFILER = {"start": _always(None), "stop": _always(None)}


def _member(name: str) -> Any:
    """What a public name of `torch.cuda` stands for."""
    member = getattr(torch.cuda, name)
    if name in CUDA:
        return CUDA[name]
    if name.endswith(("Storage", "Tensor")):
        return getattr(torch, name)
    if name in _UNCHANGED or isinstance(member, ModuleType) or not callable(member):
        return member
    return _refusal(name)


def provide() -> None:
    """Replace the members of `torch.cuda`, also where its own modules have imported them."""
    members = {name: _member(name) for name in torch.cuda.__all__}
    members["_lazy_init"] = _refuse_cuda
    for module in (torch.cuda, torch.cuda.memory, torch.cuda.random, torch.cuda.streams):
        vars(module).update({name: members[name] for name in members.keys() & vars(module).keys()})
    vars(torch.cuda.graphs).update(
        {name: members[name] for name in ("CUDAGraph", "graph", "make_graphed_callables")}
    )
    vars(torch.cuda.nvtx).update(_NVTX)
    vars(torch.cuda.profiler).update(_PROFILER)
