"""Times `tessera inspect` on a large routing log, and takes its peak memory; writes the results."""

from __future__ import annotations

import argparse
import importlib.util
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from tessera.contract import synthetic_topk_ids
from tessera.tools.bench.machine import description
from tessera.tools.bench.results import write_results

NUM_LAYERS = 16
NUM_EXPERTS = 64
TOP_K = 8
TOKENS_IN_A_PIECE = 4096


def write_log(path: Path, num_bytes: int) -> int:
    """Write a log of at least `num_bytes`; returns its rows, one per token and layer."""
    ids = synthetic_topk_ids(TOKENS_IN_A_PIECE, NUM_EXPERTS, TOP_K, zipf=True).tolist()
    piece = "".join(
        json.dumps(
            {
                "type": "route",
                "req_id": "r0",
                "token_idx": token,
                "layer": layer,
                "topk_ids": row,
                "topk_weights": [0.125] * TOP_K,
            }
        )
        + "\n"
        for token, row in enumerate(ids)
        for layer in range(NUM_LAYERS)
    ).encode()
    num_pieces = -(-num_bytes // len(piece))
    with path.open("wb") as file:
        file.write(b'{"type": "meta", "num_experts": %d}\n' % NUM_EXPERTS)
        for _ in track(range(num_pieces), "writing", console=Console(stderr=True), transient=True):
            file.write(piece)
    return num_pieces * TOKENS_IN_A_PIECE * NUM_LAYERS


def measure(num_bytes: int) -> dict[str, Any]:
    """The results as one JSON document."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.jsonl"
        num_rows = write_log(path, num_bytes)
        begin = time.perf_counter()
        command = [sys.executable, "-m", "tessera", "inspect", path, "--json"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - begin
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return {
            **description("cpu", None),
            "methods": {"process": "one run of the command, from its start to its end"},
            "bytes": path.stat().st_size,
            "num_rows": num_rows,
            "num_layers": NUM_LAYERS,
            "num_experts": NUM_EXPERTS,
            "top_k": TOP_K,
            "seconds": seconds,
            "cpu_seconds": used.ru_utime + used.ru_stime,
            "peak_bytes": used.ru_maxrss * 1024,
            "has_torch": importlib.util.find_spec("torch") is not None,
        }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bytes", type=int, default=2_000_000_000, help="(default: %(default)s)")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE")
    options = parser.parse_args()
    document = measure(options.bytes)
    write_results(options.json, document)


if __name__ == "__main__":
    main()
