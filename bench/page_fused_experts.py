"""The part of the performance page about `fused_experts`."""

from __future__ import annotations

import itertools
import math
from typing import Any

from page_fused_experts_lines import is_in_fp8
from page_text import bullets, origin, read_results, spoiled, table, times

from tessera.tools.bench.ops.fused_experts import BOUNDS, NEAR, PEERS
from tessera.tools.bench.report import figure

INTRODUCTION = """\
## fused_experts on the CPU

The experts of one layer, with SwiGLU. Ids are uniform, and the next call has other ones. All
contenders run in one process, on as many threads as it has cores:

- **eager**: torch, expert by expert: index, two linear layers, weight, `index_add_`, which
  Transformers calls its eager implementation of the experts.
- **grouped_mm**: torch's `grouped_mm` over the pairs sorted by expert, as in Transformers.
- **read**: reads the weights of the experts that the call uses, and computes nothing.
- **multiply-adds**: as many multiply-adds as the call's products take, from registers, with the
  widest of AVX-512 BF16 (for bfloat16), AVX-512 and AVX2 that the processor has.

The **floor** is the greater of the last two, and the share is the floor over Tessera's time: 1.00
is as fast as the memory, or the cores, allow.
"""

HEADER = [
    "tokens",
    "Tessera",
    *PEERS,
    "Tessera / best peer",
    "read",
    "multiply-adds",
    "share of the floor",
    "1 thread / all threads",
]


def fused_experts_section() -> str:
    """A table for each model and data type; empty if nothing was measured."""
    result = read_results("cpu_fused_experts.json")
    if result is None:
        return ""
    result |= {"rows": [row for row in result["rows"] if not is_in_fp8(row)]}
    versions = dict.fromkeys(result["contenders"][name]["version"] for name in PEERS)
    peers = f"Peers: torch {', '.join(filter(None, versions))}.\n"
    parts = [INTRODUCTION, origin(result), peers, _losses(result), _precision(result)]
    of_model = itertools.groupby(result["rows"], lambda row: (row["model"], row["dtype"]))
    for (model, dtype), group in of_model:
        rows = list(group)
        sizes = (rows[0][name] for name in ("num_experts", "hidden_size", "intermediate_size"))
        parts += [
            f"### {model}, {dtype}\n",
            "{} experts, hidden size {}, intermediate size {}, ".format(*sizes)
            + f"{rows[0]['top_k']} experts per token.\n",
            table(HEADER, [_cells(row) for row in rows]),
        ]
    return "\n".join([*parts, *spoiled(result)])


def _cells(row: dict[str, Any]) -> list[str]:
    us, ratios = times(row, "call"), row["ratios"]
    bounds = {name: us[name] for name in BOUNDS if name in us}
    share = "-"
    if len(bounds) == len(BOUNDS):
        floor = max(bounds, key=lambda name: bounds[name])
        share = f"{bounds[floor] / us['tessera']:.2f} {floor.replace('_', '-')}"
    return [
        str(row["num_tokens"]),
        *(figure(us[name]) if name in us else "-" for name in ("tessera", *PEERS)),
        f"{ratios['Tessera / best peer']:.2f}",
        *(figure(us[name]) if name in us else "-" for name in BOUNDS),
        share,
        f"{ratios['1 thread / all threads']:.2f}",
    ]


def _losses(result: dict[str, Any]) -> str:
    """How often Tessera is the fastest, and where it is not."""
    lost = []
    for row in result["rows"]:
        us = times(row, "call")
        peer = min(PEERS, key=lambda name: us.get(name, math.inf))
        if us["tessera"] > us.get(peer, math.inf):
            lost.append(
                f"{row['shape']}: {figure(us['tessera'])} against {figure(us[peer])} of {peer}"
            )
    num_shapes = len(result["rows"])
    won = f"Tessera is faster than every peer on {num_shapes - len(lost)} of {num_shapes} shapes."
    return "\n".join([won, "", f"It is slower on:\n\n{bullets(lost, '')}"]) if lost else won + "\n"


def _precision(result: dict[str, Any]) -> str:
    """The peers that round too often for the contract of Tessera's op."""
    counts = {name: sum(name in row["violations"] for row in result["rows"]) for name in PEERS}
    found = [f"{name} on {count} shapes" for name, count in counts.items() if count]
    limits = " and ".join(f"{limit:.0e} ({dtype})" for dtype, limit in NEAR.items())
    checked = (
        "Before it was timed, Tessera was checked against its contract, and a peer against a "
        f"float64 reference, which it has to match up to {limits} of the norm of a token's output."
    )
    if found:
        checked += f" Beyond the error bound of Tessera's contract: {', '.join(found)}."
    return checked + "\n"
