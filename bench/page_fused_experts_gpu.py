"""The part of the performance page about `fused_experts` on GPUs."""

from __future__ import annotations

import itertools
from typing import Any

from page_fused_experts_lines import Line, lines_of, results_by_gpu, routing_of
from page_fused_experts_targets import floor_target, judged, must_text, musts_text, zipf_text
from page_text import bullets, table, times
from page_verdicts import TARGETS, Verdicts

from tessera.tools.bench.ops.fused_experts_cuda import FLOORS, LAYERS, PARTS
from tessera.tools.bench.report import figure

INTRODUCTION = """\
The experts of one layer in bfloat16, with SwiGLU, alignment and combination included. Tessera
writes to an array that the caller owns.

- **weights** and **dense** are floors. The first is the time to read the weights of the experts
  that the call uses, at the greatest read bandwidth that the runs of the same commit measured. The
  second is the time of two plain products of cuBLAS in the same run, with a row for each pair of a
  token and an expert.
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


def fused_experts_gpu_sections() -> list[str]:
    """A section for each GPU with results."""
    return [_section(folder, result) for folder, result in results_by_gpu(in_fp8=False)]


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
            table_of_peers(HEADER, [_cells(line, verdicts) for line in some]),
        ]
    return "\n".join(
        [
            f"## fused_experts on the {result['runs'][0]['gpu']}\n",
            INTRODUCTION + peers_text(lines),
            RATIOS,
            _targets(),
            runs_text(result),
            standing(lines),
            musts_text(lines),
            *tables,
            *verdicts.explained(),
        ]
    )


def peers_text(lines: list[Line]) -> str:
    """What the peers are that have figures."""
    shown = [name for name in PEERS if any(line.row_with(name) for line in lines)]
    return "".join(f"- **{name}** {ABOUT[name]}\n" for name in shown)


def table_of_peers(header: list[str], rows: list[list[str]]) -> str:
    """A table without the columns of peers that none of its rows has."""
    columns = zip(header, *rows, strict=True)
    of_peers = {*PEERS, *(f"error of {name}" for name in PEERS)}
    shown = [one for one in columns if one[0] not in of_peers or set(one[1:]) != {"-"}]
    head, *cells = map(list, zip(*shown, strict=True))
    return table(head, cells)


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
        must_text(floor_target(line.row)),
        verdict,
        *theirs,
        *(cell for one in over_peers for cell in one.cells(line, verdicts)),
    ]


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
    return (
        "Three targets limit Tessera's time. The must of a line says how many times the floor "
        f"Tessera may take. {zipf_text()} Of the time of the fastest whole layer of the same run, "
        f"Tessera may take at most {', '.join(of_peers)}, and {peers['others']['must']} times on "
        "the other shapes. The target over vLLM's layer in the same run is at most "
        f"{', '.join(parts)}, and {target['others']['must']} times on the other models.\n"
    )


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
            f"weights at {run['weights_gb_per_s'] / 1e3:.2f} TB/s",
            f"commit {(run['commit'] or 'unknown')[:10]}{modified}",
            run["date"],
        ]
        missing = "".join(f" Not measured: {name}: {why}." for name, why in reasons.items())
        texts.append(f"{'; '.join(parts)}.{missing}")
    newest = result["runs"][-1]
    of_all = {name: text for run in result["runs"] for name, text in run["methods"].items()}
    methods = "".join(f" {name}: {text}." for name, text in of_all.items())
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
