"""The part of the performance page about `fused_experts` with weights in fp8 on GPUs."""

from __future__ import annotations

import itertools
from typing import Any

from page_fused_experts_gpu import peers_text, runs_text, standing, table_of_peers
from page_fused_experts_lines import Line, lines_of, results_by_gpu, routing_of
from page_fused_experts_targets import floor_target, judged, must_text, musts_text, zipf_text
from page_text import times
from page_verdicts import TARGETS, Verdicts

from tessera.tools.bench.ops.fused_experts_cuda import FLOORS, PARTS
from tessera.tools.bench.report import ERROR, figure

LAYERS = ("eager", "vllm")
PEERS = (*LAYERS, *PARTS)

INTRODUCTION = """\
The experts of one layer with weights in float8_e4m3fn and x in bfloat16, with SwiGLU, alignment and
combination included. Tessera quantises x and the intermediate inside the call.

- **weights** and **dense** are floors. The first is the time to read the weights and the scales of
  the experts that the call uses, at the greatest read bandwidth that the runs of the same commit
  measured, with weights of any type. The second is the time of two plain products in fp8 in the
  same run, with one scale for each array, and a row for each pair of a token and an expert; in
  bfloat16 on GPUs that do not multiply fp8.
"""
COLUMNS = f"""\
"/ floor" is Tessera's time over the greater floor, "- floor" what it takes beyond this floor, and
"/ best peer" its time over the fastest peer's. The ratios have the verdicts on their targets. A
figure of another run than its line has the run's number; its ratio is of that run, too. An error is
the {ERROR}. The reference that peers are compared with takes the dequantised weights, and does not
quantise x and the intermediate. vLLM 0.24 rounds the scales of activations up to powers of two,
unless VLLM_USE_DEEP_GEMM_E8M0=0, if DeepGEMM is installed: in the runs that list it as not
installed, vLLM's error is smaller.
"""
SCALES = {
    "block": "scales of blocks of 128 x 128",
    "row": "scales of rows",
    "tensor": "a scale for each expert",
}
HEADER = [
    "tokens",
    "run",
    "Tessera",
    *FLOORS,
    "- floor",
    "/ floor",
    "must",
    "verdict",
    *PEERS,
    "/ best peer",
    "verdict",
    "error",
    *(f"error of {name}" for name in LAYERS),
]


def fused_experts_fp8_sections() -> list[str]:
    """A section for each GPU with results."""
    return [_section(folder, result) for folder, result in results_by_gpu(in_fp8=True)]


def _section(folder: str, result: dict[str, Any]) -> str:
    numbers = {run["run"]: number for number, run in enumerate(result["runs"], 1)}
    lines = list(lines_of(result, numbers))
    verdicts = Verdicts(folder)
    tables = []
    for (model, kind, routing), group in itertools.groupby(lines, _place):
        tables += [
            f"### {model}, {SCALES[kind]}, {routing}\n",
            table_of_peers(HEADER, [_cells(line, verdicts) for line in group]),
        ]
    return "\n".join(
        [
            f"## fused_experts with weights in fp8 on the {result['runs'][0]['gpu']}\n",
            INTRODUCTION + peers_text(lines),
            COLUMNS,
            _targets(),
            runs_text(result),
            standing(lines),
            musts_text(lines),
            *tables,
            *verdicts.explained(),
        ]
    )


def _targets() -> str:
    over_peer = TARGETS["fused_experts_fp8_over_best_peer"]["must"]
    return (
        "Two targets limit Tessera's time. The must of a line says how many times the floor "
        f"Tessera may take. {zipf_text()} The other target is over the fastest peer with the same "
        f"weights in the same run: Tessera may take at most {over_peer} times as long as this "
        "peer. "
        'The verdict "none" says that there is no target.\n'
    )


def _place(line: Line) -> tuple[str, str, str]:
    return line.row["model"], line.row["quantization"], routing_of(line.row)


def _cells(line: Line, verdicts: Verdicts) -> list[str]:
    us, floor = line.us, line.floor()
    rows = {name: line.row_with(name) for name in ("tessera", *PEERS)}
    theirs = [
        figure(times(row, line.method)[name]) + line.mark(row) if (row := rows[name]) else "-"
        for name in PEERS
    ]
    over_floor, over_peer = judged(line)
    ratio, verdict = over_floor.cells(line, verdicts)
    errors = [(rows[name] or {}).get("errors", {}).get(name) for name in ("tessera", *LAYERS)]
    tokens = str(line.row["num_tokens"])
    return [
        tokens if line.method == "burst" else f"{tokens}, {line.method}",
        str(line.numbers[line.row["run"]]),
        figure(us["tessera"]),
        *(figure(us[name]) if name in us else "-" for name in FLOORS),
        "-" if floor is None else figure(us["tessera"] - floor),
        ratio,
        must_text(floor_target(line.row)),
        verdict,
        *theirs,
        *over_peer.cells(line, verdicts),
        *("-" if error is None else f"{error:.4f}" for error in errors),
    ]
