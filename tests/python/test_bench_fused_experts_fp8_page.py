"""Results of `fused_experts` with weights in fp8 on a GPU: their part of the page."""

# ruff: noqa: F811, for the imported fixture

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench_modules import modules  # noqa: F401, it is a fixture
from tessera.tools.bench.ops.fused_experts_cuda import TABLE
from tessera.tools.bench.ops.fused_experts_inputs import Shape

ALL = {"tessera": 400.0, "weights": 200.0, "dense": 20.0, "eager": 9000.0, "vllm": 500.0}
ERRORS = {"tessera": 0.0521, "eager": 0.0456, "vllm": 0.0543}
QWEN = {shape.num_tokens: shape for shape in TABLE if shape.model == "Qwen3-30B-A3B"}


def row(shape: Shape, us: dict[str, float], *methods: str, **changes: Any) -> dict[str, Any]:
    by_contender = ("spread_us", "within_noise", "spoiled", "failures", "violations", "refusals")
    return {
        "op": "fused_experts",
        "shape": shape.name,
        **dataclasses.asdict(shape),
        "us": {name: dict.fromkeys(methods or ("burst",), time) for name, time in us.items()},
        **{key: {} for key in by_contender},
        **changes,
    }


def in_fp8(num_tokens: int, kind: str, us: dict[str, float] = ALL, *methods: str) -> dict[str, Any]:
    errors = {name: error for name, error in ERRORS.items() if name in us}
    shape = dataclasses.replace(QWEN[num_tokens], quantization=kind)
    return row(shape, us, *methods, errors=errors)


def run(name: str, *rows: dict[str, Any], **changes: Any) -> dict[str, Any]:
    kinds = dict.fromkeys(ALL, "related") | {"tessera": "tessera", "eager": "peer", "vllm": "peer"}
    return {
        "run": name,
        "commit": "0123456789abcdef",
        "modified": False,
        "date": "2026-01-02",
        "machine": "a processor",
        "gpu": "NVIDIA H100",
        "cuda": "13.0",
        "torch": "2.11",
        "read_gb_per_s": 3060.0,
        "read_by": "a sum",
        "peers_within": 0.1,
        "methods": {"burst": "the meaning"},
        "contenders": {
            name: {"kind": kind, "unavailable": "", "version": ""} for name, kind in kinds.items()
        },
        "rows": list(rows),
        **changes,
    }


@pytest.fixture
def sections(modules: Callable[[str], Any], tmp_path: Path) -> Callable[..., Any]:
    """Merges runs, and gives the sections without fp8 and with it."""
    merged = modules("merge_fused_experts").merged

    def of(*runs: dict[str, Any]) -> tuple[list[str], list[str]]:
        result = None
        for each in runs:
            result = merged(result, each)
        (tmp_path / "h100").mkdir()
        (tmp_path / "h100" / "fused_experts.json").write_text(json.dumps(result))
        return (
            modules("page_fused_experts_gpu").fused_experts_gpu_sections(),
            modules("page_fused_experts_fp8").fused_experts_fp8_sections(),
        )

    return of


def test_a_table_for_each_kind_of_scales(sections: Callable[..., Any]) -> None:
    rows = [in_fp8(64, "row"), in_fp8(64, "block"), in_fp8(16, "block")]
    others, (text,) = sections(run("aa", *rows))
    assert others == []
    assert text.startswith("## fused_experts with weights in fp8 on the NVIDIA H100\n")
    assert "match up to 1e-01 of the norm of a token's output. burst: the meaning.\n" in text
    assert "- **eager** is a loop over the experts in torch, which dequantises" in text
    head, blocks, by_row = text.split("\n### ")
    assert "target" not in head
    assert blocks.startswith("Qwen3-30B-A3B, scales of blocks of 128 x 128, uniform ids\n")
    assert by_row.startswith("Qwen3-30B-A3B, scales of rows, uniform ids\n")
    line = "| 1 | 400 | 200 | 20.0 | 2.00 | 9000 | 500 | 0.80 | 0.0521 | 0.0456 | 0.0543 |"
    assert [each for each in blocks.splitlines() if each.endswith(line)] == [
        f"| 16 {line}",
        f"| 64 {line}",
    ]


def test_other_results_stay_as_they_are(sections: Callable[..., Any], tmp_path: Path) -> None:
    """The rows with fp8 and their runs are in no other section, nor are others in theirs."""
    us = {name: time for name, time in ALL.items() if name != "eager"}
    old = row(QWEN[64], us)
    del old["quantization"]  # as in results of before
    (alone,), none = sections(run("aa", old))
    assert none == []
    (tmp_path / "h100" / "fused_experts.json").unlink()
    (tmp_path / "h100").rmdir()
    (both,), (text,) = sections(run("aa", old), run("bb", in_fp8(64, "tensor")))
    assert both == alone
    assert "run 1 (bb)" in text
    assert "(aa)" not in text


def test_what_was_not_measured_has_no_figure(sections: Callable[..., Any]) -> None:
    us = {name: ALL[name] for name in ("tessera", "weights", "eager")}
    _, (text,) = sections(run("aa", in_fp8(16384, "block", us, "burst", "sustained")))
    cells = "| 1 | 400 | 200 | - | - | 9000 | - | 0.04 | 0.0521 | 0.0456 | - |"
    assert f"\n| 16384 {cells}\n| 16384, sustained {cells}\n" in text


def test_the_page_of_the_cpu_leaves_rows_in_fp8_out(
    modules: Callable[[str], Any], tmp_path: Path
) -> None:
    us = {"tessera": 20.0, "tessera/1": 39.0, "eager": 100.0, "grouped_mm": 80.0}
    ratios = {"Tessera / best peer": 0.25, "1 thread / all threads": 1.95}
    rows = [
        row(shape, us, "call", ratios=ratios)
        for shape in (QWEN[64], dataclasses.replace(QWEN[64], quantization="block"))
    ]
    document = run("aa", build="a compiler")
    document["contenders"] |= {"grouped_mm": {"kind": "peer", "unavailable": "", "version": ""}}

    def page(*rows: dict[str, Any]) -> str:
        text = json.dumps({**document, "rows": list(rows)})
        (tmp_path / "cpu_fused_experts.json").write_text(text)
        return str(modules("page_fused_experts").fused_experts_section())

    assert page(*rows) == page(rows[0])
