"""The timing methods. Each takes all contenders of a shape, and returns microseconds per call."""

from __future__ import annotations

import importlib.util
import math
import random
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tessera._library import torch_or_none
from tessera.tools.bench.contender import CUDA_LIBRARY, TimedCall, native_library
from tessera.tools.bench.graphs import WARMUP_CALLS, captured, garbage_uncollected, replay_us
from tessera.tools.bench.load import SPOILED_ABOVE, waited_seconds
from tessera.tools.bench.problem import MAX_WINDOWS

# So every window of a log is used once.
_CALLS_PER_GRAPH = MAX_WINDOWS
_REPLAYS = (5, 30)
_GRAPH_ROUNDS = 2
_REPLAY_BUDGET_US = 25_000.0

# Of long calls: a burst leaves the GPU time to cool down, a second at full power does not.
_BURST_REPLAYS = (7, 31)
_BURST_BUDGET_US = 60_000.0
_SUSTAINED_US = 1e6
_SUSTAINED_ROUNDS = 2

# Few enough that the launches of a peer with several kernels fit into the GPU's queue: once it is
# full, the host waits.
_EAGER_CALLS = 100
_EAGER_ROUNDS = 25


@dataclass(frozen=True)
class Effort:
    """Effort of the method `call`: number of repetitions, and the minimum time of one.

    After `max_seconds` for one shape there are only as many repetitions as in `QUICK`.
    """

    repetitions: int
    min_seconds: float
    max_seconds: float = math.inf


# OpenMP's threads spin for some 8 ms after a call, which slows down the next contender, so a
# repetition takes tens of milliseconds.
QUICK = Effort(repetitions=5, min_seconds=0.02)
THOROUGH = Effort(repetitions=21, min_seconds=0.04, max_seconds=10.0)


@dataclass
class Times:
    """Results by contender.

    us: median microseconds per call.
    spread_us: the interquartile range of the samples, if the method has it.
    within_noise: a time that is no larger than its spread, and therefore not in `us`.
    spoiled: for a host time, the share of it that threads of this process waited for a processor,
        in the median repetition, if that is above `SPOILED_ABOVE`.
    failures: why a contender could not be timed.
    """

    us: dict[str, float] = field(default_factory=dict)
    spread_us: dict[str, float] = field(default_factory=dict)
    within_noise: dict[str, float] = field(default_factory=dict)
    spoiled: dict[str, float] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


def host_calls(calls: Mapping[str, TimedCall], effort: Effort) -> Times:
    """Host time of whole calls, contenders interleaved at random."""
    numbers = {name: _enough_calls(call, effort.min_seconds) for name, call in calls.items()}
    return _interleaved(calls, numbers, effort.repetitions, lambda: None, effort.max_seconds)


def eager(calls: Mapping[str, TimedCall], effort: Effort) -> Times:
    """Host time of enqueuing a call: a loop that does not synchronise. Interleaved at random."""
    numbers = dict.fromkeys(calls, _EAGER_CALLS)
    for call in calls.values():
        for _ in range(WARMUP_CALLS):
            call.run()
    return _interleaved(calls, numbers, _EAGER_ROUNDS, _synchronize_if_cuda())


def graph(calls: Mapping[str, TimedCall], effort: Effort) -> Times:
    """GPU time of back-to-back calls in a CUDA graph, L2 warm, launches hidden."""
    samples, failures = _samples_of_graphs(calls, lambda call: [call.run])
    return Times(
        {name: statistics.median(found) for name, (found,) in samples.items()},
        {name: _interquartile_range(found) for name, (found,) in samples.items()},
        failures=failures,
    )


def chain(calls: Mapping[str, TimedCall], effort: Effort) -> Times:
    """GPU time that a call adds between a kernel that writes its input and a reader of its outputs.

    Subtracts the time of the same graph without the call, whose reader gets outputs of an earlier
    call.
    """
    times = Times()
    samples, times.failures = _samples_of_graphs(calls, _with_and_without)
    for name, (with_call, without) in samples.items():
        us, spread_us = difference_of_medians(with_call, without)
        number = calls[name].num_calls
        us, times.spread_us[name] = us / number, spread_us / number
        (times.us if us > times.spread_us[name] else times.within_noise)[name] = us
    return times


def difference_of_medians(minuend: list[float], subtrahend: list[float]) -> tuple[float, float]:
    """The difference, and its interquartile range if both vary independently."""
    spreads = (_interquartile_range(found) for found in (minuend, subtrahend))
    return statistics.median(minuend) - statistics.median(subtrahend), math.hypot(*spreads)


def l2(calls: Mapping[str, TimedCall], effort: Effort) -> Times:
    """GPU time of single calls with the L2 cache flushed before each: triton's do_bench, median."""
    from triton.testing import do_bench

    times = Times()
    for name, call in calls.items():
        try:
            times.us[name] = 1e3 * do_bench(call.run, warmup=5, rep=30, return_mode="median")
        except Exception as error:
            times.failures[name] = _first_line(error)
    return times


def burst(calls: Mapping[str, TimedCall], effort: Effort) -> Times:
    """GPU time of a call in single replays of a graph of its calls; interleaved at random."""

    def sample(torch: Any, graphs: Mapping[str, Any]) -> dict[str, list[float]]:
        slowest = max((replay_us(torch, graph) for graph in graphs.values()), default=1.0)
        turns = int(min(max(_BURST_BUDGET_US / slowest, _BURST_REPLAYS[0]), _BURST_REPLAYS[1]))
        return _in_turns(graphs, turns, lambda name: replay_us(torch, graphs[name]))

    return _of_long_calls(calls, sample)


def sustained(calls: Mapping[str, TimedCall], effort: Effort) -> Times:
    """GPU time of a call while the same graph is replayed for a second; interleaved at random."""

    def sample(torch: Any, graphs: Mapping[str, Any]) -> dict[str, list[float]]:
        numbers = {
            name: math.ceil(_SUSTAINED_US / replay_us(torch, graph))
            for name, graph in graphs.items()
        }

        def mean_us(name: str) -> float:
            return replay_us(torch, graphs[name], numbers[name]) / numbers[name]

        return _in_turns(graphs, _SUSTAINED_ROUNDS, mean_us)

    return _of_long_calls(calls, sample)


METHODS: dict[str, Callable[[Mapping[str, TimedCall], Effort], Times]] = {
    "call": host_calls,
    "graph": graph,
    "chain": chain,
    "l2": l2,
    "eager": eager,
    "burst": burst,
    "sustained": sustained,
}

MEANINGS = {
    "call": "host time of a call, contenders interleaved at random, median of repetitions",
    "graph": f"CUDA graph of {_CALLS_PER_GRAPH} back-to-back calls of the whole Python-level "
    "function, launches hidden behind a sleep of the GPU, L2 warm, median of 2 rounds of 5 to "
    "30 replays",
    "chain": f"CUDA graph of {_CALLS_PER_GRAPH} times a kernel that writes the input, the call and "
    "a kernel that reads its outputs, both launched without programmatic dependent launch, less "
    "the same graph without the call, L2 not flushed; difference of medians of as many replays, "
    "with their interquartile range in brackets",
    "l2": "triton's do_bench, L2 flushed before every call, median",
    "eager": "host time of a call in a loop that does not synchronise, median of 25 rounds",
    "burst": "CUDA graph of a shape's calls, four with different inputs up to 64 tokens and one "
    f"above, median of {_BURST_REPLAYS[0]} to {_BURST_REPLAYS[1]} single replays, contenders "
    "interleaved at random",
    "sustained": "the same graph replayed back to back for "
    f"{_SUSTAINED_US / 1e6:.0f} second, median of {_SUSTAINED_ROUNDS} such runs, contenders "
    "interleaved at random, from 4096 tokens on",
    "cold": "first call of a process and synchronisation, inputs ready, by the wall clock, median "
    "of 3 processes",
}


def missing(method: str) -> str:
    """Why a method cannot be used here; empty if it can."""
    if method == "l2" and importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if method == "chain":
        try:
            native_library(CUDA_LIBRARY)
        except OSError as error:
            return str(error)
    return ""


def _enough_calls(call: TimedCall, min_seconds: float) -> int:
    """The number of calls that take this long."""
    number, seconds = 1, call.seconds(1)
    while seconds < min_seconds / 4:
        number *= 2
        seconds = call.seconds(number)
    return max(1, round(number * min_seconds / seconds))


def _interleaved(
    calls: Mapping[str, TimedCall],
    numbers: Mapping[str, int],
    repetitions: int,
    settle: Callable[[], object],
    max_seconds: float = math.inf,
) -> Times:
    samples: dict[str, list[float]] = {name: [] for name in calls}
    waited: dict[str, list[float]] = {name: [] for name in calls}
    order, shuffle = list(calls), random.Random(0).shuffle
    end = time.perf_counter() + max_seconds
    for repetition in range(repetitions):
        if repetition >= QUICK.repetitions and time.perf_counter() > end:
            break
        shuffle(order)
        for name in order:
            settle()
            waited_before, begin = waited_seconds(), time.perf_counter()
            samples[name].append(1e6 * calls[name].seconds(numbers[name]) / numbers[name])
            seconds = time.perf_counter() - begin
            waited[name].append((waited_seconds() - waited_before) / seconds)
    settle()
    # The median time is spoiled if most times are.
    shares = {name: statistics.median(found) for name, found in waited.items()}
    return Times(
        {name: statistics.median(found) for name, found in samples.items()},
        {name: _interquartile_range(found) for name, found in samples.items()},
        spoiled={name: share for name, share in shares.items() if share > SPOILED_ABOVE},
    )


def _synchronize_if_cuda() -> Callable[[], object]:
    torch = torch_or_none()
    if torch is None or not torch.cuda.is_initialized():
        return lambda: None
    return torch.cuda.synchronize  # type: ignore[no-any-return]


def _with_and_without(call: TimedCall) -> list[Callable[[], Any]]:
    """A call between its neighbours, or each of several; and the neighbours alone."""
    library = native_library(CUDA_LIBRARY)
    write = library.function("write_input", release_gil=False)
    read_outputs = library.function("read_outputs", release_gil=False)
    read_array = library.function("read_array", release_gil=False)
    links = [(link, link.source.clone(), link.run()) for link in call.links or (call,)]

    def read(link: TimedCall, outputs: Any) -> None:
        if link.is_aligned:
            read_outputs(*outputs)
        else:
            for array in outputs:
                read_array(array)

    def between() -> None:
        for link, values, _ in links:
            write(values, link.source)
            read(link, link.run())

    def alone() -> None:
        for link, values, outputs in links:
            write(values, link.source)
            read(link, outputs)

    return [between, alone]


def _samples_of_graphs(
    calls: Mapping[str, TimedCall], steps_of: Callable[[TimedCall], Sequence[Callable[[], Any]]]
) -> tuple[dict[str, list[list[float]]], dict[str, str]]:
    """Microseconds of every step of a call, each in its own graph, by contender and step.

    Also returns why contenders could not be captured.
    """
    import torch

    failures: dict[str, str] = {}
    graphs: dict[str, list[Any]] = {}
    # Steps own arrays that their graphs use.
    steps: dict[str, Sequence[Callable[[], Any]]] = {}
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()), garbage_uncollected():
        for name, call in calls.items():
            try:
                steps[name] = steps_of(call)
                graphs[name] = [captured(torch, step, _CALLS_PER_GRAPH) for step in steps[name]]
            except Exception as error:
                failures[name] = _first_line(error)
        samples: dict[str, list[list[float]]] = {
            name: [[] for _ in of_steps] for name, of_steps in graphs.items()
        }
        for _ in range(_GRAPH_ROUNDS):
            for name, of_steps in graphs.items():
                for found, one in zip(samples[name], of_steps, strict=True):
                    found += _replays(torch, one)
    graphs.clear()
    torch.cuda.empty_cache()
    return samples, failures


def _interquartile_range(samples: list[float]) -> float:
    if len(samples) == 1:
        return 0.0
    low, _, high = statistics.quantiles(samples, n=4)
    return high - low


def _replays(torch: Any, graph: Any) -> list[float]:
    """Microseconds per call, by replay; short graphs are replayed more often."""
    first = replay_us(torch, graph)
    wanted = int(min(max(_REPLAY_BUDGET_US / first, _REPLAYS[0]), _REPLAYS[1]))
    samples = [first, *(replay_us(torch, graph) for _ in range(wanted - 1))]
    return [one / _CALLS_PER_GRAPH for one in samples]


def _in_turns(
    names: Iterable[str], turns: int, measure: Callable[[str], float]
) -> dict[str, list[float]]:
    samples: dict[str, list[float]] = {name: [] for name in names}
    order, shuffle = list(samples), random.Random(0).shuffle
    for _ in range(turns):
        shuffle(order)
        for name in order:
            samples[name].append(measure(name))
    return samples


def _of_long_calls(
    calls: Mapping[str, TimedCall],
    sample: Callable[[Any, Mapping[str, Any]], dict[str, list[float]]],
) -> Times:
    """Medians per call of samples of graphs, each of which holds the calls of one `run`."""
    import torch

    times = Times()
    graphs: dict[str, Any] = {}
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    with torch.cuda.stream(torch.cuda.Stream()), garbage_uncollected():
        for name, call in calls.items():
            try:
                graphs[name] = captured(torch, call.run, 1)
            except Exception as error:
                times.failures[name] = _first_line(error)
            # What the calls before the capture have allocated, up to some GB for each contender.
            torch.cuda.empty_cache()
        for name, found in sample(torch, graphs).items():
            us = [one / calls[name].num_calls for one in found]
            times.us[name] = statistics.median(us)
            times.spread_us[name] = _interquartile_range(us)
    graphs.clear()
    torch.cuda.empty_cache()
    return times


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0]
