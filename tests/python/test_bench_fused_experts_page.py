"""Results of `fused_experts` on a GPU: runs that are merged, and their part of the page."""

# ruff: noqa: F811, for the imported fixture

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench_modules import BENCH, modules  # noqa: F401, it is a fixture
from tessera.tools.bench.ops.fused_experts_cuda import TABLE

SHAPES = {shape.name: shape for shape in TABLE}
QWEN, LONG = "Qwen3-30B-A3B bfloat16/64", "Qwen3-30B-A3B bfloat16/16384"
MIXTRAL = "Mixtral-8x7B bfloat16/1024"

# Tessera and the floors alone.
OURS = {"tessera": 400.0, "weights": 390.0, "dense": 20.0}
ALL = {**OURS, "grouped_mm": 900.0, "vllm": 500.0, "deep_gemm": 380.0}


@pytest.fixture
def page(modules: Callable[[str], Any]) -> Any:
    """The module of the page's part."""
    return modules("page_fused_experts_gpu")


@pytest.fixture
def merged(modules: Callable[[str], Any]) -> Any:
    return modules("merge_fused_experts").merged


def row(shape: str, us: dict[str, float], *methods: str, **changes: Any) -> dict[str, Any]:
    methods = methods or ("burst",)
    by_contender = ("spread_us", "within_noise", "spoiled", "failures", "violations", "refusals")
    return {
        "op": "fused_experts",
        "shape": shape,
        **dataclasses.asdict(SHAPES[shape]),
        "us": {name: dict.fromkeys(methods, time) for name, time in us.items()},
        **{key: {} for key in by_contender},
        **changes,
    }


def run(name: str, *rows: dict[str, Any], **changes: Any) -> dict[str, Any]:
    kinds = {
        **dict.fromkeys(ALL, "related"),
        "tessera": "tessera",
        **dict.fromkeys(("grouped_mm", "vllm"), "peer"),
        "deep_gemm": "part",
    }
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
        "peers_within": 0.02,
        "methods": {"burst": "the meaning"},
        "contenders": {
            each: {"kind": kind, "unavailable": "", "version": "9.9" if each == "vllm" else ""}
            for each, kind in kinds.items()
        },
        "rows": list(rows),
        **changes,
    }


def section(page: Any, folder: Path, result: dict[str, Any]) -> str:
    (folder / "h100").mkdir(exist_ok=True)
    (folder / "h100" / "fused_experts.json").write_text(json.dumps(result))
    (text,) = page.fused_experts_gpu_sections()
    return str(text)


def test_without_results_there_is_no_section(page: Any) -> None:
    assert page.fused_experts_gpu_sections() == []


def test_a_table_for_each_model(page: Any, merged: Any, tmp_path: Path) -> None:
    rows = [row(MIXTRAL, {**ALL, "dense": 300.0}), row(QWEN, ALL), row(LONG, ALL, "burst")]
    rows[2]["us"]["tessera"]["sustained"] = 480.0
    rows[2]["us"]["vllm"]["sustained"] = 500.0
    text = section(page, tmp_path, merged(None, run("aa", *rows)))
    assert text.startswith("## fused_experts on the NVIDIA H100\n")
    assert (
        "\n- run 1 (aa): driver unknown; CUDA 13.0; torch 2.11; vllm 9.9; 3.06 TB/s read by a sum; "
        "weights at 3.06 TB/s; commit 0123456789; 2026-01-02.\n"
    ) in f"\n{text}"
    assert "match up to 2e-02 of the norm of a token's output. burst: the meaning.\n" in text
    head, qwen, mixtral = text.split("\n### ")  # in the order of the models, not of the rows
    assert mixtral.startswith("Mixtral-8x7B, uniform ids\n")
    assert (
        "\n8 experts, hidden size 4096, intermediate size 14336, 2 experts per token.\n" in mixtral
    )
    assert (
        "\n| tokens | run | Tessera | weights | dense | / floor | must | verdict | grouped_mm "
        "| vllm | deep_gemm | / best peer | verdict | / vllm | verdict |\n"
    ) in mixtral
    assert (
        "| 1024 | 1 | 400 | 390 | 300 | 1.03 | ≤ 1.40 | aim met | 900 | 500 | 380 "
        "| 0.80 | target met | 0.80 | target met |"
    ) in mixtral
    of_qwen = [line for line in qwen.splitlines() if line.startswith("| ")][1:]
    assert of_qwen == [
        "| 64 | 1 | 400 | 390 | 20.0 | 1.03 | ≤ 1.05 | target met | 900 | 500 | 380 "
        "| 0.80 | target met | 0.80 | target met |",
        "| 16384 | 1 | 400 | 390 | 20.0 | 1.03 | ≤ 1.28 | aim met | 900 | 500 | 380 "
        "| 0.80 | target met | 0.80 | none |",
        "| 16384, sustained | 1 | 480 | - | - | - | ≤ 1.28 | not measured | - | 500 | - "
        "| 0.96 | target met | 0.96 | none |",
    ]
    assert (
        "\nMusts that are met, burst: 3 of 3 over the floor, 3 of 3 over the best peer's, "
        "2 of 2 over vLLM's; sustained: 1 of 1 over the best peer's.\n"
    ) in head
    assert "Tessera is faster than every peer in 4 of 4 figures.\n" in head
    assert "slower" not in text
    assert "Missed" not in text


@pytest.mark.parametrize(
    ("shape", "us", "verdict"),
    [
        (QWEN, 625.0, "target met"),
        (QWEN, 630.0, "**missed by 0.01 (1%)**"),
        (MIXTRAL, 750.0, "target met"),
        (MIXTRAL, 800.0, "**missed by 0.10 (7%)**"),
        ("Mixtral-8x7B bfloat16/16384", 800.0, "**missed by 0.10 (7%)**"),
    ],
)
def test_verdicts_and_losses(
    shape: str, us: float, verdict: str, page: Any, merged: Any, tmp_path: Path
) -> None:
    text = section(page, tmp_path, merged(None, run("aa", row(shape, {**ALL, "tessera": us}))))
    assert f" | {us / 500:.2f} | {verdict} |\n" in text
    assert f"{'0' if 'missed' in verdict else '1'} of 1 over vLLM's.\n" in text
    assert "Tessera is faster than every peer in 0 of 1 figures.\n" in text
    assert f"It is slower on:\n\n- {shape}, burst: {us:.0f} against 500 of vllm\n" in text
    assert (f"- time over vLLM's, {shape}, burst: " in text) == ("missed" in verdict)
    assert (
        "The target over vLLM's layer in the same run is at most 1.25 times on Qwen3-30B-A3B at up "
        "to 4096 tokens, and 1.5 times on the other models.\n"
    ) in text


def test_a_method_other_than_burst_is_named(page: Any, merged: Any) -> None:
    result = merged(None, run("a", row(QWEN, OURS, "burst", "chain"), row(LONG, OURS, "sustained")))
    lines = list(page.lines_of(result, {"a": 1}))
    assert [line.method for line in lines] == ["burst", "chain", "sustained"]
    names = [page._cells(line, page.Verdicts("none"))[0] for line in lines]
    assert names == ["64", "64, chain", "16384, sustained"]


def test_the_targets_over_the_floor() -> None:
    of_shapes = json.loads((BENCH / "targets.json").read_text())["fused_experts_over_floor"]
    assert of_shapes.pop("zipf") == 1.1
    others = [shape for shape in TABLE if shape.model != "gpt-oss-120b"]
    in_fp8 = [dataclasses.replace(shape, quantization="block") for shape in others]
    shapes = {shape.name: shape for shape in (*others, *in_fp8)}
    # With scales of rows or experts, plain products take at least 0.85 of the time.
    long = [one for one in others if one.num_tokens >= 1024 and one.intermediate_size >= 2048]
    for one, kind in itertools.product(long, ("row", "tensor")):
        assert of_shapes.pop(dataclasses.replace(one, quantization=kind).name) == {"must": 1.176}
    assert sorted(of_shapes) == sorted(shapes)
    for name, target in of_shapes.items():
        assert target["aim"] < target.get("must", 2), name
        few = {"must_us", "aim_us"} if shapes[name].num_tokens < 16 else set()
        assert few == {key for key in target if key.endswith("_us")}, name


@pytest.mark.parametrize(
    ("shape", "floors", "us", "shown"),
    [
        # 1.06 times 20 us and 5 us more are 26.2 us.
        ("Qwen3-30B-A3B bfloat16/1", (20, 9), 26.0, "1.30 | ≤ 1.06 + 5 us | target met"),
        (
            "Qwen3-30B-A3B bfloat16/1",
            (20, 9),
            26.4,
            "1.32 | ≤ 1.06 + 5 us | **missed by 0.01 (1%)**",
        ),
        # The aim is 1.03 times 20 us and 3 us more.
        ("DeepSeek-V3-TP8 bfloat16/1", (20, 9), 23.5, "1.18 | ≤ 1.06 + 5 us | aim met"),
        ("DeepSeek-V3-TP8 bfloat16/1", (20, 9), 24.0, "1.20 | ≤ 1.06 + 5 us | target met"),
        ("DeepSeek-V3-TP8 bfloat16/16", (100, 9), 104.0, "1.04 | ≤ 1.04 | target met"),
        (
            "DeepSeek-V3-TP8 bfloat16/16",
            (100, 9),
            104.2,
            "1.04 | ≤ 1.04 | **missed by less than 0.01 (0.2%)**",
        ),
        ("DeepSeek-V3-EP8 bfloat16/1", (100, 9), 107.0, "1.07 | ≤ 1.04 + 2 us | **missed by 0.01"),
        (
            "DeepSeek-V3-EP8 bfloat16/256",
            (100, 9),
            110.0,
            "1.10 | ≤ 1.08 | **missed by 0.02 (2%)**",
        ),
        # The greater floor counts.
        ("Qwen3-30B-A3B bfloat16/4096", (390, 400), 560.0, "1.40 | ≤ 1.40 | target met"),
        (
            "Qwen3-30B-A3B bfloat16/4096",
            (400, 390),
            600.0,
            "1.50 | ≤ 1.40 | **missed by 0.10 (7%)**",
        ),
        ("DeepSeek-V3-TP8 bfloat16/16384", (9, 100), 165.0, "1.65 | ≤ 1.70 | target met"),
        ("Mixtral-8x7B bfloat16/16384", (9, 100), 165.0, "1.65 | - | aim missed"),
        ("Mixtral-8x7B bfloat16/16384", (9, 100), 100.0, "1.00 | - | aim met"),
    ],
)
def test_verdicts_on_the_time_over_the_floor(
    shape: str,
    floors: tuple[float, float],
    us: float,
    shown: str,
    page: Any,
    merged: Any,
    tmp_path: Path,
) -> None:
    found = dict(zip(("weights", "dense"), floors, strict=True)) | {"tessera": us, "vllm": 900.0}
    text = section(page, tmp_path, merged(None, run("aa", row(shape, found))))
    assert f" | {shown}" in text
    # The other peers are in no row, and have no column.
    assert "| must | verdict | vllm | / best peer |" in text
    assert (f"time over the floor, {shape}, burst: " in text) == ("missed by" in shown)
    counted = f"burst: {'0' if 'missed by' in shown else '1'} of 1 over the floor, "
    assert (counted in text) == ("≤" in shown)


@pytest.mark.parametrize(
    ("skew", "us", "shown"),
    [
        ("zipf", 461.0, "1.15 | ≤ 1.155 | target met"),
        ("zipf", 470.0, "1.18 | ≤ 1.155 | **missed by 0.02 (2%)**"),
        ("one-hot-expert", 470.0, "1.18 | - | none"),
    ],
)
def test_other_ids_have_other_targets(
    skew: str, us: float, shown: str, page: Any, merged: Any, tmp_path: Path
) -> None:
    found = row(QWEN, {**ALL, "weights": 400.0, "tessera": us}, skew=skew)
    found["shape"] += f"/{skew}"
    text = section(page, tmp_path, merged(None, run("aa", found)))
    assert f" | {shown} | " in text
    assert "For zipf ids this number is 1.1 times as large." in text


@pytest.mark.parametrize(
    ("shape", "us", "shown"),
    [
        (QWEN, 510.0, "1.02 | target met"),
        (QWEN, 520.0, "1.04 | **missed by 0.02 (2%)**"),
        ("Mixtral-8x7B bfloat16/16384", 500.0, "1.00 | target met"),
        ("Mixtral-8x7B bfloat16/16384", 510.0, "1.02 | **missed by 0.02 (2%)**"),
    ],
)
def test_verdicts_on_the_time_over_the_best_peer(
    shape: str, us: float, shown: str, page: Any, merged: Any, tmp_path: Path
) -> None:
    found = {**ALL, "tessera": us, "grouped_mm": 500.0, "vllm": 600.0}
    text = section(page, tmp_path, merged(None, run("aa", row(shape, found))))
    assert f" | 380 | {shown} | {us / 600:.2f} | " in text
    assert (f"time over the best peer's, {shape}, burst: " in text) == ("missed" in shown)
    assert f"{'0' if 'missed' in shown else '1'} of 1 over the best peer's, " in text
    assert "1.0 times on Mixtral-8x7B bfloat16/16384, and 1.02 times on the other" in text


def test_misses_are_explained_by_the_notes_of_the_gpu(
    page: Any, merged: Any, tmp_path: Path
) -> None:
    slow = {"weights": 100.0, "dense": 20.0, "tessera": 200.0, "vllm": 160.0}
    rows = [row(shape, slow) for shape in (QWEN, LONG, MIXTRAL)]
    for folder, notes in (("h100", {f"{QWEN}; {MIXTRAL}": "A tail."}), ("h200", {LONG: "No."})):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "notes.json").write_text(json.dumps(notes))
    text = section(page, tmp_path, merged(None, run("aa", *rows)))
    without = "No explanation yet."
    explained = [
        "- A tail.",
        f"  - time over the floor, {QWEN}, burst: 2.00, missed by 0.95 (90%)",
        f"  - time over the best peer's, {QWEN}, burst: 1.25, missed by 0.23 (23%)",
        f"  - time over the floor, {MIXTRAL}, burst: 2.00, missed by 0.60 (43%)",
        f"  - time over the best peer's, {MIXTRAL}, burst: 1.25, missed by 0.23 (23%)",
        f"- time over the floor, {LONG}, burst: 2.00, missed by 0.72 (56%). {without}",
        f"- time over the best peer's, {LONG}, burst: 1.25, missed by 0.23 (23%). {without}",
    ]
    assert text.split("Missed, and why:\n\n")[1].splitlines() == explained
    one = section(page, tmp_path, merged(None, run("aa", row(QWEN, {**slow, "vllm": 200.0}))))
    assert f"{QWEN}, burst: 2.00, missed by 0.95 (90%). A tail.\n" in one


def test_peers_of_an_earlier_run_stay_beside_tessera_of_that_run(
    page: Any, merged: Any, tmp_path: Path
) -> None:
    old = run("aa", row(QWEN, ALL), row(MIXTRAL, ALL), date="2026-01-01")
    faster = {**OURS, "tessera": 395.0, "grouped_mm": 800.0}
    result = merged(merged(None, old), run("bb", row(QWEN, faster)))
    assert [one["run"] for one in result["runs"]] == ["aa", "bb"]
    kept = {(one["run"], one["shape"]): set(one["us"]) for one in result["rows"]}
    assert kept == {
        ("aa", QWEN): {*OURS, "vllm", "deep_gemm"},
        ("aa", MIXTRAL): set(ALL),
        ("bb", QWEN): {*OURS, "grouped_mm"},
    }
    text = section(page, tmp_path, result)
    assert (
        "| 64 | 2 | 395 | 390 | 20.0 | 1.01 | ≤ 1.05 | aim met | 800 | 500 (run 1) | 380 (run 1) "
        "| 0.80 (run 1) | target met (run 1) | 0.80 (run 1) | target met (run 1) |\n"
    ) in text
    assert "- run 1 (aa): " in text
    assert "- run 2 (bb): " in text


def test_a_run_that_measures_all_again_replaces_the_earlier_ones(merged: Any) -> None:
    old = merged(None, run("aa", row(QWEN, ALL)))
    before = copy.deepcopy(old)
    result = merged(old, run("bb", row(QWEN, {**ALL, "vllm": 600.0})))
    assert [one["run"] for one in result["runs"]] == ["bb"]
    assert [one["us"]["vllm"] for one in result["rows"]] == [{"burst": 600.0}]
    assert old == before
    # The same run again changes nothing.
    assert merged(result, run("bb", row(QWEN, {**ALL, "vllm": 600.0}))) == result


def test_another_method_of_a_shape_stays_beside_the_newer_run(
    page: Any, merged: Any, tmp_path: Path
) -> None:
    old = run("aa", row(QWEN, ALL, "burst", "chain"))
    result = merged(merged(None, old), run("bb", row(QWEN, {**ALL, "tessera": 395.0})))
    kept = {one["run"]: one["us"]["tessera"] for one in result["rows"]}
    assert kept == {"aa": {"chain": 400}, "bb": {"burst": 395.0}}
    text = section(page, tmp_path, result)
    assert "\n| 64 | 2 | 395 | " in text
    assert "\n| 64, chain | 1 | 400 | " in text
    again = run("cc", row(QWEN, {**ALL, "tessera": 390.0}, "chain"))
    assert [one["run"] for one in merged(result, again)["runs"]] == ["bb", "cc"]


def test_runs_of_other_gpus_or_ops_are_not_merged(merged: Any) -> None:
    known = merged(None, run("aa", row(QWEN, ALL)))
    with pytest.raises(ValueError, match=r"^expected results of NVIDIA H100, got NVIDIA H200$"):
        merged(known, run("bb", row(QWEN, ALL), gpu="NVIDIA H200"))
    with pytest.raises(ValueError, match=r"^expected results of tessera bench --op fused_experts"):
        merged(known, {"rows": [], "gpu": "NVIDIA H100"})
    with pytest.raises(ValueError, match=r"^expected results of tessera bench --op fused_experts"):
        merged(known, {"run": "bb", "gpu": "NVIDIA H100"})
    with pytest.raises(ValueError, match=r"^expected results of tessera bench --op fused_experts"):
        merged(known, {"run": "bb", "gpu": "NVIDIA H100", "rows": []})
    with pytest.raises(ValueError, match=r"^expected results of tessera bench --op fused_experts"):
        merged(known, [])


def test_what_was_not_measured_is_named(page: Any, merged: Any, tmp_path: Path) -> None:
    measured = run(
        "aa",
        row(QWEN, OURS, refusals={"deep_gemm": "mostly padding"}, failures={"x": {"burst": "y"}}),
    )
    measured["contenders"]["vllm"]["unavailable"] = "vllm is not installed"
    text = section(page, tmp_path, merged(None, measured))
    assert (
        " Not measured: vllm: vllm is not installed. Not measured: deep_gemm: "
        f"{QWEN}: mostly padding. Not measured: x: {QWEN}: y.\n"
    ) in text
    assert (
        "| 64 | 1 | 400 | 390 | 20.0 | 1.03 | ≤ 1.05 | target met | - | not measured | - "
        "| not measured |\n"
    ) in text
    assert "Tessera is faster than every peer in 0 of 0 figures.\n" in text


def test_the_command_writes_a_row_in_a_line(
    merged: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = sys.modules["merge_fused_experts"]
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    files[0].write_text(json.dumps(run("aa", row(QWEN, ALL))))
    files[1].write_text(json.dumps(run("bb", row(MIXTRAL, ALL))))
    into = tmp_path / "h100" / "fused_experts.json"
    monkeypatch.setattr(sys, "argv", ["merge", *map(str, files), "--into", str(into)])
    script.main()
    assert capsys.readouterr().out == f"wrote {into}: 2 rows of 2 runs\n"
    rows = [line for line in into.read_text().splitlines() if '"shape": ' in line]
    assert [json.loads(line.rstrip(","))["run"] for line in rows] == ["aa", "bb"]
