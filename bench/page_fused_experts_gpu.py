"""The part of the performance page about `fused_experts` on GPUs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import page_text
from page_text import bullets, read_results, table, times
from page_verdicts import TARGETS, Verdicts

from tessera.tools.bench.ops.fused_experts_cuda import FLOORS, LAYERS, PARTS
from tessera.tools.bench.report import figure

INTRODUCTION = """\
The experts of one layer in bfloat16, with SwiGLU, alignment and combination included. Tessera
writes to an array that the caller owns.

- **weights** and **dense** are floors. The first is the time to read the weights of the experts
  that the call uses, at the read bandwidth that was measured in the same run. The second is the
  time of two plain products of cuBLAS, with a row for each pair of a token and an expert.
- **grouped_mm** is torch: sort, index, two grouped products, activation, weights, sum.
- **vllm** is the layer of vLLM in Triton, with the configuration that it has for this GPU.
- **deep_gemm** is a part of a layer: the two grouped products of DeepGEMM, on rows that were sorted
  and padded before.

"/ floor" is Tessera's time over the greater floor, "/ best peer" and "/ vllm" over the whole
layers. A figure of another run than its line has the run's number; its ratio is of that run, too.
"""

HEADER = [
    "tokens",
    "run",
    "Tessera",
    *FLOORS,
    "/ floor",
    *LAYERS,
    *PARTS,
    "/ best peer",
    "/ vllm",
    "target",
]


@dataclass(frozen=True)
class Line:
    """The newest row of a shape that Tessera is in, by one method, and rows of older runs."""

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


def fused_experts_gpu_sections() -> list[str]:
    """A section for each GPU with results."""
    files = sorted(page_text.RESULTS.glob("*/fused_experts.json"))
    return [_section(read_results(f"{file.parent.name}/{file.name}")) for file in files]


def _section(result: dict[str, Any]) -> str:
    numbers = {run["run"]: number for number, run in enumerate(result["runs"], 1)}
    lines = list(_lines(result, numbers))
    verdicts = Verdicts("h100")
    tables = []
    of_model = itertools.groupby(lines, lambda line: (line.row["model"], _routing(line.row)))
    for (model, routing), group in of_model:
        some = list(group)
        names = ("num_experts", "hidden_size", "intermediate_size", "top_k")
        sizes = [some[0].row[name] for name in names]
        tables += [
            f"### {model}, {routing}\n",
            "{} experts, hidden size {}, intermediate size {}, {} experts per token.\n".format(
                *sizes
            ),
            table(HEADER, [_cells(line, verdicts) for line in some]),
        ]
    return "\n".join(
        [
            f"## fused_experts on the {result['runs'][0]['gpu']}\n",
            INTRODUCTION,
            _targets(),
            _runs(result),
            _standing(lines),
            *tables,
            *verdicts.explained(),
        ]
    )


def _routing(row: dict[str, Any]) -> str:
    return f"ids of {row['trace']}" if row["trace"] else f"{row['skew']} ids"


def _lines(result: dict[str, Any], numbers: dict[str, int]) -> Iterator[Line]:
    by_shape: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(result["rows"], key=lambda row: numbers[row["run"]]):
        by_shape.setdefault(row["shape"], []).append(row)
    models = list(dict.fromkeys(row["model"] for row in result["rows"]))

    def place(rows: list[dict[str, Any]]) -> tuple[int, str, int]:
        return models.index(rows[-1]["model"]), _routing(rows[-1]), rows[-1]["num_tokens"]

    for rows in sorted(by_shape.values(), key=place):
        for method in ("burst", "sustained"):
            if "tessera" in times(rows[-1], method):
                yield Line(rows[-1], rows[:-1], method, numbers)


def _cells(line: Line, verdicts: Verdicts) -> list[str]:
    us = line.us
    found = [name for name in FLOORS if name in us]
    floor = max(us[name] for name in found) if len(found) == len(FLOORS) else None
    theirs = []
    for name in (*LAYERS, *PARTS):
        row = line.row_with(name)
        theirs.append(
            figure(times(row, line.method)[name]) + line.mark(row) if row is not None else "-"
        )
    tokens = str(line.row["num_tokens"])
    return [
        f"{tokens}, sustained" if line.method == "sustained" else tokens,
        str(line.numbers[line.row["run"]]),
        figure(us["tessera"]),
        *(figure(us[name]) if name in us else "-" for name in FLOORS),
        "-" if floor is None else f"{us['tessera'] / floor:.2f}",
        *theirs,
        _best_peer(line),
        _over(line, "vllm"),
        _verdict(line, verdicts),
    ]


def _over(line: Line, name: str) -> str:
    ratio, row = line.ratio(name), line.row_with(name)
    return "-" if ratio is None or row is None else f"{ratio:.2f}{line.mark(row)}"


def _best_peer(line: Line) -> str:
    """The greatest ratio to a whole layer."""
    ratios = [(ratio, name) for name in LAYERS if (ratio := line.ratio(name)) is not None]
    return _over(line, max(ratios)[1]) if ratios else "-"


def target_of(row: dict[str, Any]) -> dict[str, float] | None:
    """How many times the layer of vLLM the shape may take; None where there is no target."""
    target = TARGETS["fused_experts_over_vllm"]
    of_model: dict[str, float] = target.get(row["model"], target["others"])
    return of_model if row["num_tokens"] <= of_model.get("max_tokens", row["num_tokens"]) else None


def _verdict(line: Line, verdicts: Verdicts) -> str:
    target, ratio, row = target_of(line.row), line.ratio("vllm"), line.row_with("vllm")
    if target is None:
        return "none"
    if ratio is None or row is None:
        return "not measured"
    name = f"{line.row['shape']}, {line.method}"
    return verdicts.of(name, ratio, target, "time over vLLM's, ") + line.mark(row)


def _targets() -> str:
    target = TARGETS["fused_experts_over_vllm"]
    parts = [
        f"{one['must']} times on {model}"
        + (f" at up to {one['max_tokens']} tokens" if "max_tokens" in one else "")
        for model, one in target.items()
        if model != "others"
    ]
    return (
        f"The target is at most {', '.join(parts)}, and {target['others']['must']} times on the "
        "other models, of the time of vLLM's layer in the same run.\n"
    )


def _runs(result: dict[str, Any]) -> str:
    """Where the figures come from, and what is missing in them."""
    texts = []
    for number, run in enumerate(result["runs"], 1):
        versions = [
            f"{name} {one['version']}" for name, one in run["contenders"].items() if one["version"]
        ]
        reasons = {
            name: one["unavailable"]
            for name, one in run["contenders"].items()
            if one["unavailable"]
        }
        for row in (row for row in result["rows"] if row["run"] == run["run"]):
            for name, why in (*row["refusals"].items(), *row["failures"].items()):
                text = why if isinstance(why, str) else "; ".join(why.values())
                reasons.setdefault(name, f"{row['shape']}: {text}")
        modified = ", with uncommitted changes" if run["modified"] else ""
        parts = [
            f"run {number} ({run['run']}): driver {run.get('driver', 'unknown')}",
            f"CUDA {run['cuda']}",
            f"torch {run['torch']}",
            *versions,
            f"{run['read_gb_per_s'] / 1e3:.2f} TB/s read by {run['read_by']}",
            f"commit {(run['commit'] or 'unknown')[:10]}{modified}",
            run["date"],
        ]
        missing = "".join(f" Not measured: {name}: {why}." for name, why in reasons.items())
        texts.append(f"{'; '.join(parts)}.{missing}")
    newest = result["runs"][-1]
    methods = "".join(f" {name}: {text}." for name, text in newest["methods"].items())
    checked = (
        "Before it was timed, Tessera was checked against its contract on a sample of tokens, and "
        "every peer against a float32 reference, which it has to match up to "
        f"{newest['peers_within']:.0e} of the norm of a token's output."
    )
    return f"{bullets(texts, '')}\n{checked}{methods}\n"


def _standing(lines: list[Line]) -> str:
    """How often Tessera is the fastest, and where it is not."""
    compared, lost = 0, []
    for line in lines:
        ratios = [(ratio, name) for name in LAYERS if (ratio := line.ratio(name)) is not None]
        compared += bool(ratios)
        if ratios and max(ratios)[0] > 1:
            ratio, name = max(ratios)
            row = line.row_with(name)
            us = times(row, line.method) if row else {}
            lost.append(
                f"{line.row['shape']}, {line.method}: {figure(us['tessera'])} against "
                f"{figure(us[name])} of {name}{line.mark(row) if row else ''}"
            )
    won = f"Tessera is faster than every peer in {compared - len(lost)} of {compared} figures."
    return f"{won}\n\nIt is slower on:\n\n{bullets(lost, '')}" if lost else f"{won}\n"
