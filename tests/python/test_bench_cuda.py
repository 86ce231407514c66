"""The methods of `tessera bench` on CUDA, as far as they go without a GPU: torch only counts."""

from __future__ import annotations

import contextlib
import itertools
import sys
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tessera.tools.bench import methods
from tessera.tools.bench.contender import TimedCall
from tessera.tools.bench.problem import MAX_WINDOWS


class FakeGpu:
    """Stands for `torch`: graphs count their calls, and every call takes `call_us`."""

    def __init__(self) -> None:
        self.clock_us = 0.0
        self.call_us = 0.0
        self.jitter_us: Iterator[float] = itertools.repeat(0.0)  # of replays
        self.capturing: list[float] | None = None
        self.replays = 0
        gpu = self

        class Graph:
            def capture_begin(self) -> None:
                self.calls: list[float] = []
                gpu.capturing = self.calls

            def capture_end(self) -> None:
                gpu.capturing = None

            def replay(self) -> None:
                gpu.replays += 1
                gpu.clock_us += sum(self.calls) + next(gpu.jitter_us)

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                self.at_us = 0.0

            def record(self) -> None:
                self.at_us = gpu.clock_us

            def synchronize(self) -> None:
                pass

            def elapsed_time(self, end: Event) -> float:
                return (end.at_us - self.at_us) / 1e3

        self.cuda = types.SimpleNamespace(
            CUDAGraph=Graph,
            Event=Event,
            Stream=object,
            stream=lambda stream: contextlib.nullcontext(),
            synchronize=lambda: None,
            empty_cache=lambda: None,
            _sleep=lambda cycles: setattr(gpu, "clock_us", gpu.clock_us + 30),
        )

    def take(self, us: float) -> None:
        """Records a kernel of this many microseconds if a graph is being captured."""
        if self.capturing is not None:
            self.capturing.append(us)

    def call(self, us: float) -> TimedCall:
        return TimedCall.of(lambda: self.take(us))


def test_graphs_are_replayed_by_their_length(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu()
    monkeypatch.setitem(sys.modules, "torch", gpu)
    times = methods.graph({"short": gpu.call(2.0)}, methods.QUICK)
    assert times.us == pytest.approx({"short": 2.0})
    assert gpu.replays == 1 + 2 * 30
    gpu.replays = 0
    times = methods.graph({"long": gpu.call(1000.0)}, methods.QUICK)
    assert times.us == pytest.approx({"long": 1000.0})
    assert gpu.replays == 1 + 2 * 5


def test_every_window_of_a_log_has_its_turn_in_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu()
    monkeypatch.setitem(sys.modules, "torch", gpu)
    windows = [gpu.call(float(us)) for us in range(1, MAX_WINDOWS + 1)]
    times = methods.graph({"log": TimedCall.in_turn(windows)}, methods.QUICK)
    assert times.us == pytest.approx({"log": (MAX_WINDOWS + 1) / 2})


class FakeNeighbours:
    """Stands for the native library: the writer takes 1 us, the reader 1 us and 0.5 for a slot."""

    def __init__(self, gpu: FakeGpu) -> None:
        self.gpu = gpu
        self.written: list[Any] = []
        self.read: list[Any] = []

    def function(self, name: str, *, release_gil: bool) -> Any:
        readers = {"read_outputs": self._read, "read_array": self._read_array}
        return {"write_input": self._write, **readers}[name]

    def _write(self, values: Any, source: Any) -> None:
        assert values is not source
        np.testing.assert_array_equal(values, source)
        self.written.append(source)
        self.gpu.take(1.0)

    def _read(self, slots: Any, blocks: Any, total: Any) -> None:
        self.read.append(slots)
        self.gpu.take(1.0 + 0.5 * len(slots))

    def _read_array(self, array: Any) -> None:
        self.read.append(array)
        self.gpu.take(1.0)


class Ids(np.ndarray):  # type: ignore[type-arg]
    """A NumPy array with torch's name for a copy."""

    def clone(self) -> Any:
        return self.copy()


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> tuple[FakeGpu, FakeNeighbours]:
    gpu = FakeGpu()
    neighbours = FakeNeighbours(gpu)
    monkeypatch.setitem(sys.modules, "torch", gpu)
    monkeypatch.setattr(methods, "native_library", lambda name: neighbours)
    return gpu, neighbours


def chained(gpu: FakeGpu, us: float, num_slots: int) -> TimedCall:
    """A call that allocates outputs of that many slots."""

    def run() -> Any:
        gpu.take(us)
        return np.zeros(num_slots), np.zeros(1), np.zeros(1)

    return TimedCall.of(run, np.arange(4).view(Ids))


def test_neighbours_are_taken_off(beside: tuple[FakeGpu, FakeNeighbours]) -> None:
    gpu, neighbours = beside
    calls = {"short": chained(gpu, 2.5, 4), "long": chained(gpu, 300.0, 100)}
    times = methods.chain(calls, methods.QUICK)
    assert times.us == pytest.approx({"short": 2.5, "long": 300.0})
    assert times.spread_us == pytest.approx({"short": 0.0, "long": 0.0})
    assert (times.within_noise, times.failures) == ({}, {})
    # Each call's own ids are written; its outputs are those that are read.
    written, read = ({id(one) for one in of} for of in (neighbours.written, neighbours.read))
    assert written == {id(call.source) for call in calls.values()}
    assert len(neighbours.read) == len(neighbours.written) == 2 * 2 * (3 + 20)
    assert len(read) >= 2


def test_a_chain_reads_the_outputs_of_its_own_calls(
    beside: tuple[FakeGpu, FakeNeighbours],
) -> None:
    gpu, neighbours = beside
    made: list[Any] = []

    def run() -> Any:
        gpu.take(2.0)
        made.append(np.zeros(1))
        return made[-1], np.zeros(1), np.zeros(1)

    methods.chain({"a": TimedCall.of(run, np.arange(4).view(Ids))}, methods.QUICK)
    static, *of_calls = made
    with_call, without = neighbours.read[:23], neighbours.read[23:]
    assert [id(one) for one in with_call] == [id(one) for one in of_calls]
    assert {id(one) for one in without} == {id(static)}


def test_a_chain_reads_every_output_of_an_op_that_aligns_nothing(
    beside: tuple[FakeGpu, FakeNeighbours],
) -> None:
    gpu, neighbours = beside
    outputs = np.zeros(3), np.zeros(5)

    def run() -> Any:
        gpu.take(2.0)
        return outputs

    call = TimedCall.of(run, np.arange(4).view(Ids), is_aligned=False)
    times = methods.chain({"a": call}, methods.QUICK)
    assert times.us == pytest.approx({"a": 2.0})
    assert [len(one) for one in neighbours.read] == 2 * (3 + 20) * [3, 5]


def test_a_chain_has_a_link_for_each_call(beside: tuple[FakeGpu, FakeNeighbours]) -> None:
    gpu, neighbours = beside

    def link(us: float, length: int) -> TimedCall:
        source = np.arange(length + 1).view(Ids)
        return TimedCall.of(
            lambda: (gpu.take(us), (np.zeros(length),))[1], source, is_aligned=False
        )

    links = [link(2.0, 3), link(6.0, 5)]
    both = TimedCall(lambda: None, lambda _: 0.0, is_aligned=False, num_calls=2, links=links)
    assert methods.chain({"a": both}, methods.QUICK).us == pytest.approx({"a": 4.0})
    assert [len(one) for one in neighbours.read] == 2 * (3 + 20) * [3, 5]
    assert [len(one) for one in neighbours.written] == 2 * (3 + 20) * [4, 6]


def test_a_difference_within_the_noise_is_no_time(beside: tuple[FakeGpu, FakeNeighbours]) -> None:
    gpu, _ = beside
    gpu.jitter_us = itertools.cycle([0.0, 30.0, 60.0])  # per replay; 0 to 3 us per step
    times = methods.chain(
        {"quick": chained(gpu, 2.0, 1), "slow": chained(gpu, 50.0, 1)}, methods.QUICK
    )
    assert list(times.us) == ["slow"]
    assert times.us["slow"] == pytest.approx(50.0)
    assert list(times.within_noise) == ["quick"]
    assert times.within_noise["quick"] == pytest.approx(2.0)
    assert times.spread_us["quick"] == pytest.approx(3 * 2**0.5)


def test_the_difference_of_medians_and_its_spread() -> None:
    us, spread = methods.difference_of_medians([7.0, 5.0, 6.0, 9.0, 8.0], [3.0, 3.0, 3.0])
    assert (us, spread) == (4.0, 3.0)
    us, spread = methods.difference_of_medians([1.0, 1.0], [2.0, 2.0])
    assert (us, spread) == (-1.0, 0.0)


def test_one_that_is_faster_than_nothing_is_within_the_noise(
    beside: tuple[FakeGpu, FakeNeighbours],
) -> None:
    gpu, _ = beside
    times = methods.chain({"none": chained(gpu, 0.0, 1)}, methods.QUICK)
    assert (times.us, times.within_noise) == ({}, {"none": pytest.approx(0.0)})


def test_a_chain_without_its_kernels_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise OSError(f"{name} is missing")

    monkeypatch.setattr(methods, "native_library", absent)
    assert methods.missing("chain") == "tessera_bench_cuda.so is missing"


def test_one_that_cannot_be_captured_does_not_stop_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpu = FakeGpu()
    monkeypatch.setitem(sys.modules, "torch", gpu)

    def run() -> None:
        if gpu.capturing is not None:
            raise RuntimeError("operation not permitted when stream is capturing\nand more")

    times = methods.graph({"bad": TimedCall.of(run), "good": gpu.call(3.0)}, methods.QUICK)
    assert times.us == pytest.approx({"good": 3.0})
    assert times.failures == {
        "bad": "RuntimeError: operation not permitted when stream is capturing"
    }
