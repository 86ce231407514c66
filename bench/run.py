"""Measures align_block_size on the CPU and writes one result file.

Times the C++ op beside its peers on every benchmark case and on the recorded routing logs, and the
cost of a call from Python. Needs the `dev` build and the installed package: `make bench` sees to
both. Method: Google Benchmark, one process per shape, all contenders interleaved at random,
median of the repetitions; Python calls by timeit, interleaved, median of the rounds.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import timeit
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

import tessera
from tessera._library import load
from tessera.routing_log import read_routing_log

ROOT = Path(__file__).resolve().parent.parent
DRIVER = ROOT / "build" / "dev" / "bench" / "bench_align_block_size"
LOG_BLOCK_SIZE = 128


def benchmark_shape(arguments: list[str], repetitions: int) -> dict[str, float]:
    """Median microseconds per call of every contender on one shape."""
    command = [
        str(DRIVER),
        *arguments,
        "--benchmark_enable_random_interleaving=true",
        f"--benchmark_repetitions={repetitions}",
        # OpenMP's threads spin for some 8 ms after a call, at the cost of whoever is timed next.
        "--benchmark_min_time=0.04",
        "--benchmark_format=json",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    samples: dict[str, list[float]] = {}
    for entry in json.loads(done.stdout)["benchmarks"]:
        if entry["run_type"] == "iteration":
            name = entry["run_name"].removesuffix("/real_time")
            samples.setdefault(name, []).append(entry["real_time"])
    return {name: statistics.median(times) for name, times in samples.items()}


def ratios(us: dict[str, float]) -> dict[str, float]:
    """What the times of one shape are measured for. Above 1, but for the floor, is a win."""
    ours = min(us["tessera/1"], us["tessera/2"])
    theirs = min(us["thread_local_counts/1"], us["thread_local_counts/2"])
    return {
        "textbook / 1 thread": us["textbook"] / us["tessera/1"],
        "1 thread / 2 threads": us["tessera/1"] / us["tessera/2"],
        "thread-local counts / Tessera": theirs / ours,
        "Tessera / floor": ours / us["memory_floor"],
    }


def case_names() -> list[str]:
    """The benchmark set of the case table."""
    done = subprocess.run([str(DRIVER), "--list"], capture_output=True, text=True, check=True)
    return done.stdout.split()


def log_shapes(folder: Path, scratch: Path) -> Iterator[tuple[str, list[str]]]:
    """The layers of every routing log in `folder`, as arguments of the driver."""
    for path in sorted(folder.glob("*.jsonl")):
        log = read_routing_log(path)
        for layer, topk_ids in log.layers.items():
            num_experts = log.num_experts or int(topk_ids.max()) + 1
            tokens, top_k = topk_ids.shape
            ids = scratch / f"{path.stem}-{layer}.int32"
            topk_ids.tofile(ids)
            yield (
                f"{path.stem}: {tokens}x{num_experts}x{top_k}/{LOG_BLOCK_SIZE}",
                [f"--ids={ids}", f"--experts={num_experts}", f"--block-size={LOG_BLOCK_SIZE}"],
            )


def python_calls() -> dict[str, Callable[[], object]]:
    """One call each: 16 tokens, 64 experts, top 2, block 16, beside what bounds such a call."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 64, (16, 2), dtype=np.int32)
    arguments: dict[str, Any] = {"num_experts": 64, "block_size": 16}
    out = tessera.align_block_size(ids, **arguments)
    scratch = np.empty_like(ids)
    raw_call = load().align_short
    calls: dict[str, Callable[[], object]] = {
        "numpy": lambda: tessera.align_block_size(ids, **arguments),
        "numpy, out=": lambda: tessera.align_block_size(ids, **arguments, out=out),
        "raw FFI call, the same arrays": lambda: raw_call(
            ids, None, *out, None, None, 16, 64, False, False, -1, 0, ""
        ),
        "three numpy.empty": lambda: [np.empty(n, np.int32) for n in (512, 32, 1)],
        "NumPy no-op: numpy.copyto of the ids": lambda: np.copyto(scratch, ids),
    }
    try:
        import torch
    except ImportError:
        print("torch is not installed: its calls are not measured")
    else:
        tensor = torch.from_numpy(ids)
        tensor_out = tessera.align_block_size(tensor, **arguments)
        calls["torch"] = lambda: tessera.align_block_size(tensor, **arguments)
        calls["torch, out="] = lambda: tessera.align_block_size(tensor, **arguments, out=tensor_out)
        calls["three torch.empty"] = lambda: [
            torch.empty(n, dtype=torch.int32) for n in (512, 32, 1)
        ]
    return calls


def python_overhead(rounds: int = 25, number: int = 2000) -> dict[str, float]:
    """Median microseconds per call."""
    calls = python_calls()
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            samples[name].append(timeit.timeit(call, number=number) / number * 1e6)
    return {name: statistics.median(times) for name, times in samples.items()}


def git(*arguments: str) -> str:
    """Output of a git command on this repository."""
    return subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()


def processor() -> str:
    """The name the processor gives itself."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def main() -> None:
    """Measure and write the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=ROOT / "bench" / "results" / "cpu.json")
    parser.add_argument("--repetitions", type=int, default=21)
    parser.add_argument(
        "--cases", nargs="*", default=None, help="case names; default: the whole benchmark set"
    )
    parser.add_argument(
        "--traces",
        type=Path,
        default=Path(os.environ.get("TESSERA_TRACES", ROOT.parent / "shared" / "traces")),
        help="folder of routing logs (default: %(default)s)",
    )
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as scratch:
        names = case_names() if options.cases is None else options.cases
        shapes = [(name, [f"--case={name}"]) for name in names]
        if options.traces.is_dir():
            shapes += log_shapes(options.traces, Path(scratch))
        else:
            print(f"no routing logs: {options.traces} is not a folder")
        rows = []
        for name, arguments in track(shapes, "Measuring"):
            us = benchmark_shape(arguments, options.repetitions)
            rows.append({"shape": name, "us": us, "ratios": ratios(us)})
    result = {
        "commit": git("rev-parse", "HEAD"),
        "modified": bool(git("status", "--porcelain", "--", "src", "include", "python")),
        "date": datetime.date.today().isoformat(),
        "machine": f"{processor()}, {len(os.sched_getaffinity(0))} cores",
        "build": tessera.build(),
        "method": "Google Benchmark, contenders interleaved at random, "
        f"median of {options.repetitions} repetitions, microseconds per call",
        "rows": rows,
        "python_us": python_overhead(),
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
