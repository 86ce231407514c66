"""The lines of the tables about `fused_experts` on GPUs: rows of results, and what they say."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import page_text
from page_text import read_results, times

from tessera.tools.bench.ops.fused_experts_cuda import FLOORS, LAYERS, MODELS


@dataclass(frozen=True)
class Line:
    """The newest row of a shape by one method, and rows of older runs, all with Tessera's time."""

    row: dict[str, Any]
    older: list[dict[str, Any]]
    method: str
    numbers: dict[str, int]

    @property
    def us(self) -> dict[str, float]:
        """The times of the newest row."""
        return times(self.row, self.method)

    def row_with(self, name: str) -> dict[str, Any] | None:
        """The newest row with a time of this contender."""
        rows = [self.row, *reversed(self.older)]
        return next((row for row in rows if name in times(row, self.method)), None)

    def mark(self, row: dict[str, Any]) -> str:
        """What a figure of another run has behind it."""
        return "" if row is self.row else f" (run {self.numbers[row['run']]})"

    def ratio(self, name: str) -> float | None:
        """Tessera's time over a contender's, both of the newest run that has the contender."""
        row = self.row_with(name)
        us = times(row, self.method) if row else {}
        return us["tessera"] / us[name] if "tessera" in us else None

    def best_peer(self) -> str | None:
        """The whole layer that the ratio is greatest to."""
        ratios = [(ratio, name) for name in LAYERS if (ratio := self.ratio(name)) is not None]
        return max(ratios)[1] if ratios else None

    def floor(self) -> float | None:
        """The greater floor; None where one was not measured."""
        us = self.us
        return max(us[name] for name in FLOORS) if us.keys() >= set(FLOORS) else None


def results_by_gpu(*, in_fp8: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """The folder of each GPU, and its results with weights in fp8 or with others.

    What runs measure as the read bandwidth varies on one GPU, and calls can read faster than the
    least of it. So the floor "weights" of a row is the time to read at the greatest bandwidth of
    all runs of its commit, which are mostly of one machine: "weights_gb_per_s" of its run.
    """
    for file in sorted(page_text.RESULTS.glob("*/fused_experts.json")):
        result = read_results(f"{file.parent.name}/{file.name}")
        greatest: dict[str, float] = {}
        for run in result["runs"]:
            greatest[_commit(run)] = max(run["read_gb_per_s"], greatest.get(_commit(run), 0))
        factors = {
            run["run"]: run["read_gb_per_s"] / greatest[_commit(run)] for run in result["runs"]
        }
        rows = [
            _with_weights(row, factors[row["run"]])
            for row in result["rows"]
            if is_in_fp8(row) == in_fp8
        ]
        used = {row["run"] for row in rows}
        if rows:
            runs = [
                {**run, "weights_gb_per_s": greatest[_commit(run)]}
                for run in result["runs"]
                if run["run"] in used
            ]
            yield file.parent.name, {**result, "runs": runs, "rows": rows}


def _commit(run: dict[str, Any]) -> str:
    """The commit of a run; of an unknown one, the run itself."""
    return str(run["commit"] or run["run"])


def _with_weights(row: dict[str, Any], factor: float) -> dict[str, Any]:
    """A row whose times to read the weights are multiplied by a factor."""
    us = row["us"]
    if "weights" not in us:
        return row
    weights = {method: time * factor for method, time in us["weights"].items()}
    return {**row, "us": {**us, "weights": weights}}


def is_in_fp8(row: dict[str, Any]) -> bool:
    """Whether a row is of weights in fp8. Rows of older runs do not say."""
    return bool(row.get("quantization", "none") != "none")


def routing_of(row: dict[str, Any]) -> str:
    """Where the ids of a row come from."""
    return f"ids of {row['trace']}" if row["trace"] else f"{row['skew']} ids"


def lines_of(result: dict[str, Any], numbers: dict[str, int]) -> Iterator[Line]:
    """The lines of all tables, in their order; `numbers` maps each run to its number."""
    by_shape: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(result["rows"], key=lambda row: numbers[row["run"]]):
        by_shape.setdefault(row["shape"], []).append(row)
    models = list(MODELS)

    def place(rows: list[dict[str, Any]]) -> tuple[int, str, str, int]:
        row = rows[-1]
        kind = row.get("quantization", "none")
        return models.index(row["model"]), kind, routing_of(row), row["num_tokens"]

    for rows in sorted(by_shape.values(), key=place):
        for method in ("burst", "chain", "sustained"):
            ours = [row for row in rows if "tessera" in times(row, method)]
            if ours:
                yield Line(ours[-1], ours[:-1], method, numbers)
