"""Writes docs/performance.md from bench/results/: every figure there comes from a file here."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from page_cpu import cpu_section
from page_engine import engine_section
from page_expert_product import expert_product_section
from page_fused_experts import fused_experts_section
from page_fused_experts_combine import fused_experts_combine_sections
from page_fused_experts_fp8 import fused_experts_fp8_sections
from page_fused_experts_gpu import fused_experts_gpu_sections
from page_fused_experts_policy import fused_experts_policy_sections
from page_guards import guards_section
from page_h200 import h200_section
from page_inspection import inspection_section
from page_ops import ops_sections
from page_reports import reports_section
from page_text import RESULTS, is_check, read_results, require_current
from page_tuning import tuning_section
from page_verdicts import TARGETS

ROOT = RESULTS.parent.parent
PAGE = ROOT / "docs" / "performance.md"
PICTURE = ROOT / "docs" / "performance.svg"
PICTURED = "h200/grid.json"
PEERS = "h200/peers.json"
PICTURED_PEERS = ("vllm", "sglang_aot", "sglang_v2_pdl")

INTRODUCTION = f"""\
# Performance

`bench/performance_page.py` generates this page from the files in `bench/results/`;
[benchmarking.md](benchmarking.md) says how to measure again. All times are microseconds per call;
lower is better. The figures of one table come from one run, so a shape that is in several tables
has a different figure in each; compare ratios, not machines.

**Must** and **aim** are this project's own targets, from `bench/targets.json`. "target met" says
that a figure is at most its must, "aim met" that it is also at most its aim.
They are fixed figures; whether a peer is faster is stated separately. Tessera may take at most
{TARGETS["best_peer"]["must"]} times as long as the best peer.
"""


def page() -> str:
    """The whole page."""
    parts = [
        INTRODUCTION,
        engine_section(),
        h200_section(),
        reports_section(),
        *ops_sections(),
        *fused_experts_gpu_sections(),
        *fused_experts_fp8_sections(),
        *fused_experts_combine_sections(),
        *fused_experts_policy_sections(),
        fused_experts_section(),
        tuning_section(),
        expert_product_section(),
        inspection_section(),
        guards_section(),
        cpu_section(),
    ]
    return "\n".join(part for part in parts if part)


def picture_note() -> str | None:
    """What the picture says that it was drawn from; None where there is nothing to draw."""
    if not (RESULTS / PICTURED).exists():
        return None
    content = json.dumps([read_results(name) for name in (PICTURED, PEERS)], sort_keys=True)
    digest = hashlib.sha256(content.encode()).hexdigest()
    return f"drawn from {PICTURED} and {PEERS}, sha256 {digest}"


def pictured() -> dict[str, Any]:
    """The results of the grid; engines that are not in it as they were measured before."""
    result = read_results(PICTURED)
    known = {row["shape"]: row["us"] for row in read_results(PEERS)["rows"]}
    for name in (name for name in PICTURED_PEERS if name not in result["rows"][0]["us"]):
        result["contenders"][name] = {"kind": "peer", "unavailable": ""}
        for row in result["rows"]:
            row["us"][name] = {"graph": known[row["shape"]][name]}
    return result


def picture_is_current() -> bool:
    """Whether the picture was drawn from these results; drawing it takes matplotlib."""
    note = picture_note()
    return note is None or (PICTURE.exists() and note in PICTURE.read_text())


def main() -> None:
    """Write or check the page."""
    is_checked = is_check(__doc__)
    text = page()
    if is_checked:
        require_current(PAGE.exists() and PAGE.read_text() == text, PAGE)
        require_current(picture_is_current(), PICTURE)
        return
    PAGE.write_text(text)
    if not picture_is_current():
        from tessera.tools.bench.plot import plot

        plot(pictured(), PICTURE, note=picture_note() or "")


if __name__ == "__main__":
    main()
