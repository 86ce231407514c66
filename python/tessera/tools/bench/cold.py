"""The first call of a process. Run as a program, it makes that call and prints its microseconds."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

import tessera
from tessera.tools.bench.methods import Times
from tessera.tools.bench.problem import Problem, make_problem
from tessera.tools.bench.shapes import Shape

_PROCESSES = 3

# Preparation before the timed call. Tessera loads its library at first use, with the FFI and all
# its imports; an engine imports its own while it starts.
_PREPARATIONS = {
    "tessera": "load",
    "tessera, library not loaded": "nothing",
    "tessera, after warmup": "warmup",
}


def cold_times(
    shape: Shape, names: Iterable[str], progress: Callable[[str], object] = lambda name: None
) -> Times:
    """Microseconds of the first call, by contender; for Tessera in three variants."""
    wanted = [one for name in names for one in (_PREPARATIONS if name == "tessera" else [name])]
    sizes = make_problem(shape, "cpu", seed=0)
    times = Times()
    for name in wanted:
        progress(name)
        order = {
            "shape": asdict(shape),
            "contender": "tessera" if name in _PREPARATIONS else name,
            "preparation": _PREPARATIONS.get(name, "nothing"),
            "lengths": (sizes.num_slots, sizes.num_blocks),
        }
        try:
            times.us[name] = statistics.median(_in_a_process(order) for _ in range(_PROCESSES))
        except RuntimeError as error:
            times.failures[name] = str(error)
    return times


def _in_a_process(order: dict[str, Any]) -> float:
    command = [sys.executable, "-m", "tessera.tools.bench.cold", json.dumps(order)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no message"])[-1])
    return float(done.stdout.split()[-1])


def first_call_us(order: dict[str, Any]) -> float:
    """Make the inputs, prepare as ordered, and time one call."""
    import torch

    from tessera.tools.bench.cuda import contenders, prepare_tessera

    shape = Shape(**order["shape"])
    num_slots, num_blocks = order["lengths"]
    # Does not use the generator of cases, which is in the library that may not be loaded yet.
    scores = torch.rand((shape.num_tokens, shape.num_experts), device="cuda")
    ids = scores.topk(shape.top_k).indices.to(getattr(torch, shape.dtype))
    problem = Problem(
        shape, "cuda", ids.cpu().numpy(), None, ids, None, num_slots, num_blocks, None
    )
    if order["contender"] == "tessera":
        call = prepare_tessera(problem)  # without the libraries of its peers
    else:
        call = next(one for one in contenders() if one.name == order["contender"]).prepare(problem)
    if order["preparation"] == "load":
        tessera.version()
    elif order["preparation"] == "warmup":
        tessera.warmup("cuda")
    torch.cuda.synchronize()
    start = time.perf_counter()
    call.run()
    torch.cuda.synchronize()
    return 1e6 * (time.perf_counter() - start)


if __name__ == "__main__":
    print(first_call_us(json.loads(sys.argv[1])))
