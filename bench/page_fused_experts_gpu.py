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
"""
ABOUT = {
    "eager": "is a loop over the experts in torch, which dequantises their weights.",
    "grouped_mm": "is torch: sort, index, two grouped products, activation, weights, sum.",
    "vllm": "is the layer of vLLM in Triton, with the configuration that it has for this GPU.",
    "flashinfer": """\
is the layer of FlashInfer in the CuTe DSL, tuned by its own tuner for each number
  of tokens, on gate-up weights that were packed before. It adds up in any order.""",
    "deep_gemm": """\
is a part of a layer: the two grouped products of DeepGEMM, on rows that were sorted
  and padded before.""",
}
RATIOS = """\
"/ floor" is Tessera's time over the greater floor, "/ best peer" and "/ vllm" over the whole
layers, each with the verdict on its target. A figure of another run than its line has the run's
number; its ratio is of that run, too.
"""

PEERS = (*LAYERS, *PARTS)
HEADER = [
    "tokens",
    "run",
    "Tessera",
    *FLOORS,
    "/ floor",
    "must",
    "verdict",
    *PEERS,
    "/ best peer",
    "verdict",
    "/ vllm",
    "verdict",
]


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


@dataclass(frozen=True)
class Judged:
    """A ratio of a line, and what it may be.

    ratio: None where it was not measured.
    target: must and aim; empty where there is none.
    mark: what a ratio of another run has behind it.
    """

    over: str
    ratio: float | None
    target: dict[str, float]
    mark: str = ""

    def cells(self, line: Line, verdicts: Verdicts) -> list[str]:
        """The ratio and the verdict on it."""
        shape, ratio = line.row["shape"], self.ratio
        shown = "-" if ratio is None else f"{ratio:.2f}{self.mark}"
        if not self.target:
            return [shown, "none"]
        if ratio is None:
            return [shown, "not measured"]
        subject = f"time over {self.over}, "
        verdict = verdicts.of(f"{shape}, {line.method}", ratio, self.target, subject, shape)
        return [shown, verdict + self.mark]


def fused_experts_gpu_sections() -> list[str]:
    """A section for each GPU with results."""
    return [_section(folder, result) for folder, result in results_by_gpu(in_fp8=False)]


def results_by_gpu(*, in_fp8: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """The folder of each GPU, and its results with weights in fp8 or with others."""
    for file in sorted(page_text.RESULTS.glob("*/fused_experts.json")):
        result = read_results(f"{file.parent.name}/{file.name}")
        rows = [row for row in result["rows"] if is_in_fp8(row) == in_fp8]
        used = {row["run"] for row in rows}
        if rows:
            runs = [run for run in result["runs"] if run["run"] in used]
            yield file.parent.name, {**result, "runs": runs, "rows": rows}


def is_in_fp8(row: dict[str, Any]) -> bool:
    """Whether a row is of weights in fp8. Rows of older runs do not say."""
    return bool(row.get("quantization", "none") != "none")


def _section(folder: str, result: dict[str, Any]) -> str:
    numbers = {run["run"]: number for number, run in enumerate(result["runs"], 1)}
    lines = list(lines_of(result, numbers))
    verdicts = Verdicts(folder)
    tables = []
    of_model = itertools.groupby(lines, lambda line: (line.row["model"], routing_of(line.row)))
    for (model, routing), group in of_model:
        some = list(group)
        names = ("num_experts", "hidden_size", "intermediate_size", "top_k")
        sizes = [some[0].row[name] for name in names]
        tables += [
            f"### {model}, {routing}\n",
            "{} experts, hidden size {}, intermediate size {}, {} experts per token.\n".format(
                *sizes
            ),
            _table([_cells(line, verdicts) for line in some]),
        ]
    return "\n".join(
        [
            f"## fused_experts on the {result['runs'][0]['gpu']}\n",
            INTRODUCTION + peers_text(lines),
            RATIOS,
            _targets(),
            runs_text(result),
            standing(lines),
            _musts(lines),
            *tables,
            *verdicts.explained(),
        ]
    )


def peers_text(lines: list[Line]) -> str:
    """What the peers are that have figures."""
    shown = [name for name in PEERS if any(line.row_with(name) for line in lines)]
    return "".join(f"- **{name}** {ABOUT[name]}\n" for name in shown)


def routing_of(row: dict[str, Any]) -> str:
    """Where the ids of a row come from."""
    return f"ids of {row['trace']}" if row["trace"] else f"{row['skew']} ids"


def lines_of(result: dict[str, Any], numbers: dict[str, int]) -> Iterator[Line]:
    """The lines of all tables, in their order; `numbers` maps each run to its number."""
    by_shape: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(result["rows"], key=lambda row: numbers[row["run"]]):
        by_shape.setdefault(row["shape"], []).append(row)
    models = list(dict.fromkeys(row["model"] for row in result["rows"]))

    def place(rows: list[dict[str, Any]]) -> tuple[int, str, str, int]:
        row = rows[-1]
        kind = row.get("quantization", "none")
        return models.index(row["model"]), kind, routing_of(row), row["num_tokens"]

    for rows in sorted(by_shape.values(), key=place):
        for method in ("burst", "chain", "sustained"):
            ours = [row for row in rows if "tessera" in times(row, method)]
            if ours:
                yield Line(ours[-1], ours[:-1], method, numbers)


def _table(rows: list[list[str]]) -> str:
    """A table without the columns of peers that none of its rows has."""
    columns = zip(HEADER, *rows, strict=True)
    shown = [one for one in columns if one[0] not in PEERS or set(one[1:]) != {"-"}]
    header, *cells = map(list, zip(*shown, strict=True))
    return table(header, cells)


def _cells(line: Line, verdicts: Verdicts) -> list[str]:
    us, tokens = line.us, str(line.row["num_tokens"])
    theirs = []
    for name in PEERS:
        row = line.row_with(name)
        theirs.append(
            figure(times(row, line.method)[name]) + line.mark(row) if row is not None else "-"
        )
    over_floor, *over_peers = judged(line)
    ratio, verdict = over_floor.cells(line, verdicts)
    return [
        tokens if line.method == "burst" else f"{tokens}, {line.method}",
        str(line.numbers[line.row["run"]]),
        figure(us["tessera"]),
        *(figure(us[name]) if name in us else "-" for name in FLOORS),
        ratio,
        _must(floor_target(line.row)),
        verdict,
        *theirs,
        *(cell for one in over_peers for cell in one.cells(line, verdicts)),
    ]


def judged(line: Line) -> list[Judged]:
    """The ratios of a line that have targets: over the floor, the best peer and vLLM's layer."""
    of_peers = TARGETS["fused_experts_over_best_peer"]
    of_best = of_peers.get(_sizes(line.row), of_peers["others"])
    return [
        _over_floor(line),
        _over_peer(line, line.best_peer(), "the best peer's", of_best),
        _over_peer(line, "vllm", "vLLM's", vllm_target(line.row)),
    ]


def _over_floor(line: Line) -> Judged:
    floor, target = line.floor(), floor_target(line.row)
    if floor is None:
        return Judged("the floor", None, target)
    of_ratio: dict[str, float] = {
        key: target[key] + target.get(f"{key}_us", 0) / floor
        for key in ("must", "aim")
        if key in target
    }
    return Judged("the floor", line.us["tessera"] / floor, of_ratio)


def _over_peer(line: Line, name: str | None, owner: str, target: dict[str, float]) -> Judged:
    row = line.row_with(name) if name else None
    if name is None or row is None:
        return Judged(owner, None, target)
    return Judged(owner, line.ratio(name), target, line.mark(row))


def _sizes(row: dict[str, Any]) -> str:
    """The name of the shape with uniform ids."""
    return f"{row['model']} {row['dtype']}/{row['num_tokens']}"


def floor_target(row: dict[str, Any]) -> dict[str, float]:
    """How many times the greater floor a call may take, and how many microseconds more."""
    target = TARGETS["fused_experts_over_floor"]
    factors = {"uniform": 1.0, "zipf": target["zipf"]}
    routing = row["trace"] or row["skew"]
    if routing not in factors:
        return {}
    return {
        key: value if key.endswith("_us") else value * factors[routing]
        for key, value in target.get(_sizes(row), {}).items()
    }


def _must(target: dict[str, float]) -> str:
    if "must" not in target:
        return "-"
    factor = f"{target['must']:.3f}".removesuffix("0")
    return f"≤ {factor}" + (f" + {target['must_us']} us" if "must_us" in target else "")


def vllm_target(row: dict[str, Any]) -> dict[str, float]:
    """How many times the layer of vLLM the shape may take; empty where there is no target."""
    target = TARGETS["fused_experts_over_vllm"]
    of_model: dict[str, float] = target.get(row["model"], target["others"])
    return of_model if row["num_tokens"] <= of_model.get("max_tokens", row["num_tokens"]) else {}


def _targets() -> str:
    peers = TARGETS["fused_experts_over_best_peer"]
    of_peers = [f"{peers[name]['must']} times on {name}" for name in peers if name != "others"]
    target = TARGETS["fused_experts_over_vllm"]
    parts = [
        f"{one['must']} times on {model}"
        + (f" at up to {one['max_tokens']} tokens" if "max_tokens" in one else "")
        for model, one in target.items()
        if model != "others"
    ]
    zipf = TARGETS["fused_experts_over_floor"]["zipf"]
    return (
        "Three targets limit Tessera's time. The must of a line says how many times the floor "
        f"Tessera may take. For zipf ids this number is {zipf} times as large. Of the "
        "time of the fastest whole layer of the same run, Tessera may take at most "
        f"{', '.join(of_peers)}, and {peers['others']['must']} times on the other shapes. The "
        "target over vLLM's layer in the same run is at most "
        f"{', '.join(parts)}, and {target['others']['must']} times on the other models.\n"
    )


def _musts(lines: list[Line]) -> str:
    """How many of the musts are met, by method."""
    texts = []
    for method in dict.fromkeys(line.method for line in lines):
        held: dict[str, list[bool]] = {}
        for one in (one for line in lines if line.method == method for one in judged(line)):
            if one.ratio is not None and "must" in one.target:
                held.setdefault(one.over, []).append(one.ratio <= one.target["must"])
        counts = [f"{sum(met)} of {len(met)} over {over}" for over, met in held.items()]
        texts.append(f"{method}: {', '.join(counts) or 'none measured'}")
    return f"Musts that are met, {'; '.join(texts)}.\n"


def runs_text(result: dict[str, Any]) -> str:
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


def standing(lines: list[Line]) -> str:
    """How often Tessera is the fastest, and where it is not."""
    compared, lost = 0, []
    for line in lines:
        name = line.best_peer()
        compared += name is not None
        if name is not None and (line.ratio(name) or 0) > 1:
            row = line.row_with(name)
            us = times(row, line.method) if row else {}
            lost.append(
                f"{line.row['shape']}, {line.method}: {figure(us['tessera'])} against "
                f"{figure(us[name])} of {name}{line.mark(row) if row else ''}"
            )
    won = f"Tessera is faster than every peer in {compared - len(lost)} of {compared} figures."
    return f"{won}\n\nIt is slower on:\n\n{bullets(lost, '')}" if lost else f"{won}\n"
