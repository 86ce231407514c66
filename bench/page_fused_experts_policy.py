"""The part of the performance page about the policy of `fused_experts` on GPUs."""

from __future__ import annotations

import itertools
from typing import Any

import page_text
from fused_experts_policy import TOLERANCE, choice_of, growth_text
from page_text import origin, read_results, table

from tessera.tools.bench.report import figure

HEADER = ["tokens", "pairs per expert", "choice", "us", "fastest", "us", "slower by"]


def fused_experts_policy_sections() -> list[str]:
    """A section for each GPU with results."""
    files = sorted(page_text.RESULTS.glob("*/fused_experts_policy.json"))
    return [_section(read_results(f"{file.parent.name}/{file.name}")) for file in files]


def _section(result: dict[str, Any]) -> str:
    rows = result["rows"]
    num_slower = sum(not choice_of(row).is_good for row in rows)
    parts = [
        f"## The implementations of fused_experts on the {result['gpu']}\n",
        "`bench/fused_experts_policy.py` times every implementation that can run a shape, with "
        "uniform ids in bfloat16. The tables show the choice of the policy at the measured commit, "
        f"and the fastest implementation where the choice takes over {TOLERANCE:.0%} longer: on "
        f"{num_slower} of {len(rows)} shapes.\n",
        origin(result),
    ]
    grid = result.get("grid", [])  # files of older commits have none
    for model, of_model in itertools.groupby(rows, key=lambda row: row["model"]):
        parts += [f"### {model}\n", table(HEADER, [_cells(row) for row in of_model])]
        if finer := [row for row in grid if row["model"] == model]:
            sizes = f"{len(finer)} sizes from {finer[0]['num_tokens']} to {finer[-1]['num_tokens']}"
            parts.append(f"On {sizes} tokens {growth_text(finer)}.\n")
    return "\n".join(parts)


def _cells(row: dict[str, Any]) -> list[str]:
    choice = choice_of(row)
    pairs = row["num_tokens"] * row["top_k"] / row["num_experts"]
    return [
        str(row["num_tokens"]),
        f"{pairs:.4g}",
        f"`{choice.name}`",
        figure(choice.us),
        *(
            ["-", "-", "-"]
            if choice.is_good
            else [f"`{choice.fastest}`", figure(choice.fastest_us), f"{choice.slower:.0%}"]
        ),
    ]
