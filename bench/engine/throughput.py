"""Measures a running vLLM with and without Tessera: one model, all cases, one file of results.

Every engine has a process of its own. The variants take turns: vLLM alone, with Tessera's alignment
and router, and with its experts too. In the first turn values and the GPU time of kernels are taken
as well. With `--parts starts` engines only start. The file is written anew after every case, so a
run that is cut short keeps what it has.

Needs vLLM and Tessera, installed as packages (PYTHONPATH will do), and a GPU; no network.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from engine_models import (
    ENGINE_OPTIONS,
    EXECUTIONS,
    MODELS,
    VARIANTS,
    argument_parser,
    environment_of,
)
from engine_process import run
from engine_session import CASES, GENERATED, MARK, PROMPT_TOKENS, PROMPTS, SMALL_BATCH, num_tokens
from value_differences import greedy_agreement, logprob_differences

from tessera.tools.bench.results import write_results

SESSION = Path(__file__).with_name("engine_session.py")
STARTS = "starts"
PARTS = ("throughput", "values", "kernels", STARTS)
METHODS = {
    "seconds": "wall clock of LLM.generate, greedy, random prompts of the same length, after one "
    "that is not counted; variants in turns, each engine in a process of its own; median of the "
    "repeats of all turns",
    "start_s": "wall clock from importing vLLM until the engine is ready, without loading weights; "
    "the least of all turns",
    "kernels": "torch's profiler; prefill of one step, decoding of 32 steps",
    "values": f"log-probabilities of the tokens of {PROMPTS} random prompts of {PROMPT_TOKENS} "
    f"tokens, and {GENERATED} greedy tokens of each; all prompts in one batch, and in batches of "
    f"{SMALL_BATCH} in reverse order",
}


class Measurement:
    """The document, and its file."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._path: Path = options.json
        self._commit: str | None = options.commit
        self._begin = time.perf_counter()
        self._arrays: dict[str, dict[str, Any]] = {}
        model = MODELS[options.model]
        self.layers = options.layers or model.layers
        self.document: dict[str, Any] = {
            "kind": STARTS if options.parts == [STARTS] else "throughput",
            "model": options.model,
            "sizes": model.sizes(self.layers),
            "execution": options.execution,
            "engine_options": ENGINE_OPTIONS | EXECUTIONS[options.execution],
            "cases": {name: {"shape": CASES[name], "tokens": num_tokens(name)} for name in CASES},
            "methods": METHODS,
            "served": {},
            "sessions": [],
            "kernels": [],
            "values": [],
        }

    def say(self, text: str) -> None:
        """Print progress."""
        print(f"[{time.perf_counter() - self._begin:6.1f} s] {text}", flush=True)

    def write(self) -> None:
        """Write what there is."""
        write_results(self._path, self.document)

    def session(self, options: argparse.Namespace, variant: str, turn: int, folder: Path) -> None:
        """Run one engine, and add what it reports."""
        arrays = folder / f"{variant}.npz"
        spec = {
            "model": options.model,
            "layers": self.layers,
            "execution": options.execution,
            "variant": variant,
            "parts": [
                part
                for part in options.parts
                if part != STARTS and (turn == 0 or part == "throughput")
            ],
            "repeats": options.repeats,
            "arrays": str(arrays),
            "commit": self._commit,
        }
        row: dict[str, Any] = {"variant": variant, "turn": turn, "seconds": {}, "tokens": {}}
        self.document["sessions"].append(row)
        self.say(f"{variant}, turn {turn}: engine starts")

        def take(record: dict[str, Any]) -> None:
            self._take(record, row, arrays)
            self.write()

        log = (options.logs or folder) / f"{variant}_{turn}.log"
        failure, said = run(
            [sys.executable, str(SESSION), json.dumps(spec)],
            environment=environment_of(variant, dict(os.environ)),
            mark=MARK,
            take=take,
            log=log,
            limit_s=options.limit,
        )
        row["log"] = said
        if failure:
            row["failure"] = failure
            self.say(f"{variant}, turn {turn}: {failure}")
        self.write()

    def has_failed(self, variant: str) -> bool:
        """Whether an engine of this variant has failed."""
        sessions = self.document["sessions"]
        return any(row["variant"] == variant and "failure" in row for row in sessions)

    def _take(self, record: dict[str, Any], row: dict[str, Any], arrays: Path) -> None:
        variant, kind = row["variant"], record["record"]
        record = {name: value for name, value in record.items() if name != "record"}
        if kind == "start":
            row["start_s"] = record["start_s"]
            self.document["served"][variant] = record["served"]
            self.say(f"{variant}: engine started in {row['start_s']} s")
        elif kind == "about":
            self.document |= record["about"]
        elif kind == "case":
            case = record["case"]
            row["seconds"][case] = record["seconds"]
            row["tokens"][case] = record["tokens_sha1"]
            speed = num_tokens(case) / statistics.median(record["seconds"])
            self.say(
                f"{variant}: {case}: {speed:.0f} tokens/s, seconds {record['seconds']}, "
                f"{record['different']} different tokens, sha1 {record['tokens_sha1']}"
            )
        elif kind == "kernels":
            self.document["kernels"].append({"variant": variant, **record})
            shares = {n: f"{us / record['us']:.1%}" for n, us in record["roles_us"].items() if us}
            self.say(f"{variant}: {record['case']}: {record['us']:.0f} us of GPU time: {shares}")
        elif kind == "values":
            with np.load(arrays) as loaded:
                self._arrays[variant] = dict(loaded)
            self._compare(variant)

    def _compare(self, variant: str) -> None:
        """Compare a variant with vLLM, and with itself in other batches."""
        ours, theirs = self._arrays[variant], self._arrays.get("vllm")
        pairs = [(f"{variant}, other batches", ours, "_apart", ours, variant)]
        if theirs is not None and variant != "vllm":
            pairs.append((variant, ours, "", theirs, "vllm"))
        for name, one, suffix, other, of in pairs:
            row = {
                "run": name,
                "against": of,
                "logprobs": logprob_differences(one[f"logprobs{suffix}"], other["logprobs"]),
                "greedy": greedy_agreement(
                    one[f"tokens{suffix}"].tolist(), other["tokens"].tolist()
                ),
            }
            self.document["values"].append(row)
            self.say(f"values: {json.dumps(row)}")

    def seconds(self, variant: str, case: str) -> float | None:
        """The median of a case in all turns; None where it was not measured."""
        found = [
            one
            for row in self.document["sessions"]
            if row["variant"] == variant
            for one in row["seconds"].get(case, [])
        ]
        return statistics.median(found) if found else None

    def summary(self) -> None:
        """Print how many times vLLM's tokens per second the variants have."""
        for case in CASES:
            base = self.seconds("vllm", case)
            ratios = {
                variant: f"{base / seconds:.3f}"
                for variant in VARIANTS
                if base and variant != "vllm" and (seconds := self.seconds(variant, case))
            }
            self.say(f"{case}: times vLLM's tokens per second: {ratios}")


def main() -> None:
    """Measure, print and write."""
    parser = argument_parser(__doc__, execution="decode-graphs")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=PARTS,
        default=list(PARTS[:-1]),
        help=f"{STARTS} alone: engines only start (default: {' '.join(PARTS[:-1])})",
    )
    parser.add_argument(
        "--turns", type=int, default=2, help="engines of each variant, until one fails (default: 2)"
    )
    parser.add_argument(
        "--repeats", type=int, default=5, help="of each case in each turn (default: 5)"
    )
    parser.add_argument(
        "--limit", type=float, default=300, metavar="SECONDS", help="of each engine's process"
    )
    parser.add_argument("--logs", type=Path, metavar="FOLDER", help="keeps the engines' logs")
    options = parser.parse_args()
    if min(options.turns, options.repeats) < 1:
        parser.error("--turns and --repeats: expected 1 or more")
    if options.logs:
        options.logs.mkdir(parents=True, exist_ok=True)
    measurement = Measurement(options)
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(options.turns):
            for variant in options.variants:
                if not measurement.has_failed(variant):  # it would probably fail again
                    measurement.session(options, variant, turn, Path(folder))
    if options.parts != [STARTS]:
        measurement.summary()
    measurement.say(f"wrote {options.json}")
    if any(map(measurement.has_failed, options.variants)):
        sys.exit(1)


if __name__ == "__main__":
    main()
