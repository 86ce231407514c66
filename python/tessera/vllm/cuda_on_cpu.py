"""What `torch.cuda` has under `--device cpu`: one GPU of no memory, all of whose work is done."""

from __future__ import annotations

import inspect
import math
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from types import ModuleType
from typing import Any, NoReturn

import torch

_NAME = "CPU, in place of a GPU"


def _refused(what: str) -> str:
    return f"{what}: needs a GPU; tessera.vllm --device cpu runs this program on the CPU"


def _refuse_cuda(*args: object) -> NoReturn:
    # Torch calls it before any other use of CUDA, in every thread.
    raise RuntimeError(f"{_refused('CUDA')}, and redirects no other threads")


class _Named(type):
    """The type of classes that lack what needs a GPU, and say so: `hasattr` is false of it."""

    _of: str  # the name of torch that the class stands for

    def __getattr__(cls, name: str) -> NoReturn:
        raise AttributeError(_refused(f"{name} of {cls._of}"))


class _InPlace(metaclass=_Named):
    _of = ""

    def __getattr__(self, name: str) -> NoReturn:
        _Named.__getattr__(type(self), name)


def _refusal(name: str) -> type:
    """A class in place of a function or class that needs a GPU; `isinstance` still takes it."""

    def refuse(*args: object, **kwargs: object) -> NoReturn:
        raise RuntimeError(_refused(name))

    return _Named(name.rpartition(".")[2], (), {"__new__": refuse, "_of": name})


def index_of(device: Any) -> int:
    """The index of a device, which is 0.

    Raises:
        RuntimeError: it is another; torch, too, raises this for a GPU that is not there.
    """
    if device is not None and not isinstance(device, int):
        device = torch.device(device).index
    if device is not None and device > 0:
        raise RuntimeError(
            f"cuda:{device}: no such device; tessera.vllm --device cpu has device 0 only"
        )
    return 0


def _on_device_0(function: Callable[..., Any], original: Callable[..., Any]) -> Any:
    """The function in place of torch's own, but it refuses other devices."""
    signature = inspect.signature(original)
    devices = [name for name in ("device", "peer_device") if name in signature.parameters]

    def checked(*args: Any, **kwargs: Any) -> Any:
        arguments = signature.bind(*args, **kwargs).arguments
        for name in devices:
            index_of(arguments.get(name))
        return function(*args, **kwargs)

    return checked if devices else function


def _always(value: object) -> Any:
    return lambda *args, **kwargs: value


def _seed(seed: int) -> None:
    torch.default_generator.manual_seed(seed)


def _memory(device: object = None) -> tuple[int, int]:
    """Bytes of the host's memory: free and in all."""
    page = os.sysconf("SC_PAGE_SIZE")
    return os.sysconf("SC_AVPHYS_PAGES") * page, os.sysconf("SC_PHYS_PAGES") * page


class _Properties(_InPlace):
    """What `torch.cuda.get_device_properties` says of the CPU."""

    _of = "torch.cuda.get_device_properties"

    def __init__(self, device: object = None) -> None:
        self.name, self.gcnArchName = _NAME, ""
        # Below every GPU's: a program that asks takes the way that needs no GPU's instructions.
        self.major, self.minor = 0, 0
        self.total_memory = _memory()[1]
        self.multi_processor_count = os.cpu_count() or 1


class _Device:
    """A `with` block that changes nothing: there is one device."""

    idx = prev_idx = 0

    def __init__(self, device: object) -> None:
        index_of(device)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        pass


class _DeviceOf(_Device):
    def __init__(self, obj: object) -> None:
        pass


class _Event(_InPlace):
    """A `torch.cuda.Event` for work that is done as soon as it is requested."""

    _of = "torch.cuda.Event"
    device = torch.device("cpu")
    query = _always(True)
    synchronize = wait = _always(None)

    def __init__(self, enable_timing: bool = False, *args: object, **kwargs: object) -> None:
        self._timed, self._seconds = enable_timing, math.nan

    def record(self, stream: object = None) -> None:
        self._seconds = time.perf_counter()

    def elapsed_time(self, end_event: _Event) -> float:
        milliseconds = (end_event._seconds - self._seconds) * 1e3
        if not (self._timed and end_event._timed):
            raise ValueError("Both events must be created with argument 'enable_timing=True'.")
        if math.isnan(milliseconds):
            raise ValueError("Both events must be recorded before calculating elapsed time.")
        return milliseconds


class _Stream(_InPlace):
    """A `torch.cuda.Stream` of such work; in a `with` block it is the current one."""

    _of = "torch.cuda.Stream"
    cuda_stream = stream_id = device_index = priority = 0
    device = torch.device("cpu")
    query = _always(True)
    synchronize = wait_event = wait_stream = _always(None)

    def __init__(self, device: object = None, priority: int = 0, **kwargs: object) -> None:
        index_of(device)
        self._outer: list[_Stream] = []

    def record_event(self, event: _Event | None = None) -> _Event:
        event = event or _Event()
        event.record(self)
        return event

    def __enter__(self) -> _Stream:
        self._outer.append(_current_stream())
        _set_stream(self)
        return self

    def __exit__(self, *error: object) -> None:
        _set_stream(self._outer.pop())


class _StreamContext:
    def __init__(self, stream: _Stream | None) -> None:
        self.stream = stream

    def __enter__(self) -> None:
        if self.stream is not None:
            self.stream.__enter__()

    def __exit__(self, *error: object) -> None:
        if self.stream is not None:
            self.stream.__exit__(*error)


_STREAM = _Stream()
_of_thread = threading.local()


def _current_stream() -> _Stream:
    return getattr(_of_thread, "stream", _STREAM)


def _set_stream(stream: _Stream | None) -> None:
    if stream is not None:
        _of_thread.stream = stream


# Functions that do nothing, return 0, or False. Each name gets its own: the tables of torch.compile
# take no function under two names.
_NOTHING = """
empty_cache init ipc_collect reset_accumulated_memory_stats reset_max_memory_allocated
reset_max_memory_cached reset_peak_memory_stats set_device set_per_process_memory_fraction
set_sync_debug_mode synchronize"""
_ZERO = """
current_device get_sync_debug_mode max_memory_allocated max_memory_cached max_memory_reserved
memory_allocated memory_cached memory_reserved"""
_FALSE = "can_device_access_peer is_current_stream_capturing is_initialized is_tf32_supported"

# The members of `torch.cuda` that work, except classes of errors, which stay torch's.
CUDA: dict[str, Any] = {
    **{name: _always(None) for name in _NOTHING.split()},
    **{name: _always(0) for name in _ZERO.split()},
    **{name: _always(False) for name in _FALSE.split()},
    "current_stream": lambda device=None: _current_stream(),
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
    "get_gencode_flags": lambda: "",
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
    "set_rng_state": lambda new_state, device=None: torch.default_generator.set_state(new_state),
    "set_rng_state_all": lambda new_states: torch.default_generator.set_state(new_states[0]),
    "set_stream": _set_stream,
    "Stream": _Stream,
    "stream": _StreamContext,
    "StreamContext": _StreamContext,
}
# The members of its modules that work. Marks for profilers of GPUs are dropped.
_OF_MODULES: dict[str, dict[str, Any]] = {
    "torch.cuda.nccl": {"is_available": _always(False)},
    "torch.cuda.nvtx": {
        "mark": _always(None),
        "range": torch.cuda.nvtx.range,
        "range_end": _always(None),
        "range_pop": _always(0),
        "range_push": _always(0),
        "range_start": _always(0),
    },
    "torch.cuda.profiler": {
        "profile": torch.cuda.profiler.profile,
        "start": _always(None),
        "stop": _always(None),
    },
}
# Names with an underscore that programs call; torch itself needs others.
_PRIVATE = ("_compile_kernel", "_sleep")


def _in_place_of(module: ModuleType, name: str, member: Any) -> Any:
    """What a function or class of `torch.cuda` or of one of its modules stands for."""
    where = module.__name__
    if name.endswith(("Storage", "Tensor")):
        return getattr(sys.modules[where.replace("torch.cuda", "torch")], name)
    if isinstance(member, type) and issubclass(member, Exception):
        return member
    members = CUDA if module is torch.cuda else _OF_MODULES.get(where, {})
    if name not in members:
        return _refusal(f"{where}.{name}")
    return members[name] if isinstance(member, type) else _on_device_0(members[name], member)


def provide() -> None:
    """Replace the functions and classes of `torch.cuda`, wherever its modules have them."""
    # torch.cuda.amp works on the CPU as it is.
    modules = [
        module
        for name, module in vars(torch.cuda).items()
        if isinstance(module, ModuleType) and module.__name__ == f"torch.cuda.{name}"
        if not name.startswith("_") and name != "amp"
    ]
    modules = [torch.cuda, *modules, torch.nn.parallel.comm]  # the last is torch.cuda.comm, too
    replaced: dict[Any, Any] = {}
    for module in modules:
        for name, member in vars(module).items():
            if not callable(member) or member in replaced:
                continue
            if module is torch.cuda:
                own = name in module.__all__ or name in _PRIVATE
            else:
                own = getattr(member, "__module__", None) == module.__name__
            if own:
                replaced[member] = _in_place_of(module, name, member)
    for module in modules:
        for name, member in vars(module).items():
            if callable(member) and member in replaced:
                vars(module)[name] = replaced[member]
    vars(torch.cuda).update(default_generators=CUDA["default_generators"], _lazy_init=_refuse_cuda)
