"""The bandwidth at which a GPU reads its memory, as a kernel that does nothing else gets it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

_NUM_WORDS = 2**29  # 2 GiB, 40 times what the L2 cache holds
_WORDS_PER_STEP = 4096
_STEPS = 16
_SAMPLES = 100


class Bandwidth(NamedTuple):
    """Bytes per second, and what has read them."""

    bytes_per_second: float
    reader: str


@functools.cache
def read_bandwidth() -> Bandwidth:
    """The fastest of many sums of 2 GiB: torch's, and a kernel's in Triton if it can run."""
    import torch

    words = torch.ones(_NUM_WORDS, dtype=torch.int32, device="cuda")
    readers: dict[str, Callable[[], Any]] = {}
    otherwise = ""
    try:
        readers[f"the fastest of {_SAMPLES} sums in Triton"] = _triton_sum(torch, words)
    except Exception as error:  # without a compiler, or for another GPU, Triton fails in many ways
        otherwise = f", without Triton: {type(error).__name__}: {error}".partition("\n")[0]
    readers[f"the fastest of {_SAMPLES} torch.sum{otherwise}"] = words.view(torch.float32).sum
    found = []
    for reader, read in readers.items():
        read()
        seconds = min(_seconds(torch, read) for _ in range(_SAMPLES))
        found.append(Bandwidth(words.nbytes / seconds, reader))
    readers.clear()
    del words
    torch.cuda.empty_cache()
    return max(found)


def _seconds(torch: Any, run: Callable[[], Any]) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(60_000)  # until both events and the kernel are enqueued
    begin.record()
    run()
    end.record()
    end.synchronize()
    return 1e-3 * float(begin.elapsed_time(end))


def _triton_sum(torch: Any, words: Any) -> Callable[[], Any]:
    """A function that reads all words; it has been run once, and has read them."""
    from tessera.tools.bench.read_kernel import sum_kernel

    num_programs = words.numel() // (_WORDS_PER_STEP * _STEPS)
    sums = torch.empty(num_programs, dtype=torch.int32, device=words.device)

    def run() -> None:
        sum_kernel[(num_programs,)](words, sums, _WORDS_PER_STEP, _STEPS, num_warps=8)

    run()
    if int(sums.sum()) != int(words.sum()):
        raise RuntimeError("the kernel has not read every word")
    return run
