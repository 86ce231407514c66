"""CUDA graphs of calls: capture, and the time of a replay."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from typing import Any

WARMUP_CALLS = 3

# The GPU sleeps some 30 us before a graph, until the host has enqueued the graph and both events.
_SLEEP_CYCLES = 60_000


@contextlib.contextmanager
def garbage_uncollected() -> Iterator[None]:
    """Disables garbage collection: freeing a graph or event during a capture would end it."""
    gc.collect(0)
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def captured(torch: Any, run: Callable[[], Any], times: int) -> Any:
    """A graph of so many times `run` on the current stream, replayed once.

    Does not use `with torch.cuda.graph(...)`, which first collects garbage and empties the cache:
    that takes most of a second for all contenders of a shape.
    """
    for _ in range(WARMUP_CALLS):
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    graph.capture_begin()
    try:
        for _ in range(times):
            run()
    except BaseException:
        with contextlib.suppress(RuntimeError):
            graph.capture_end()
        raise
    graph.capture_end()
    graph.replay()
    torch.cuda.synchronize()
    return graph


def replay_us(torch: Any, graph: Any, times: int = 1) -> float:
    """Microseconds of so many replays, back to back, the first launch hidden behind a sleep."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(_SLEEP_CYCLES)
    begin.record()
    for _ in range(times):
        graph.replay()
    end.record()
    end.synchronize()
    return 1e3 * float(begin.elapsed_time(end))
