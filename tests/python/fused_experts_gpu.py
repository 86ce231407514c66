"""A GPU for tests of `tessera bench --op fused_experts`: a clock that replays of graphs advance.

The tensors are on the host, and a graph knows its contender alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from tessera.tools.bench import driver, methods
from tessera.tools.bench.bandwidth import Bandwidth
from tessera.tools.bench.ops import fused_experts_cuda
from tessera.tools.bench.ops.fused_experts import Shape
from tessera.tools.bench.ops.fused_experts_cuda import OP, make_problem

TINY = [Shape("tiny", 8, 2, 64, 32, "bfloat16", tokens) for tokens in (1, 5, 1024, 4096)]


def on_host(shape: Shape, device: str, seed: int, *ids: Any) -> Any:
    return make_problem(shape, "cpu", seed, *ids)


HOST_OP = dataclasses.replace(OP, make_problem=on_host)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """A clock; `us_of` has the microseconds of a replay by contender, else 1000 of each."""
    state = SimpleNamespace(us=0.0, us_of={}, replays=[], slept=0)

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            self.at = 0.0

        def record(self) -> None:
            self.at = state.us

        def synchronize(self) -> None:
            pass

        def elapsed_time(self, end: Event) -> float:
            return (end.at - self.at) / 1e3

    def captured(torch: Any, run: Callable[[], Any], times: int) -> Any:
        assert times == 1
        run()
        name = state.names.pop(0)

        def replay() -> None:
            state.replays.append(name)
            state.us += state.us_of.get(name, 1000.0)

        return SimpleNamespace(replay=replay)

    def of_long_calls(calls: Any, sample: Any) -> Any:
        state.names = list(calls)
        return long_calls(calls, sample)

    long_calls = methods._of_long_calls
    fakes = {
        "Event": Event,
        "Stream": object,
        "stream": lambda stream: contextlib.nullcontext(),
        "synchronize": lambda: None,
        "empty_cache": lambda: None,
        "_sleep": lambda cycles: setattr(state, "slept", state.slept + 1),
    }
    torch = pytest.importorskip("torch", reason="torch is not installed")
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(methods, "captured", captured)
    monkeypatch.setattr(methods, "_of_long_calls", of_long_calls)
    monkeypatch.setattr(fused_experts_cuda, "read_bandwidth", lambda: Bandwidth(1e12, "a test"))
    monkeypatch.setattr(driver, "description", lambda device, commit: {"commit": commit})
    yield state


@pytest.fixture
def no_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
