"""`tessera bench` on the CPU: tables, files, refusals."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tessera
from tessera.cli import bench
from tessera.cli.main import main
from tessera.tools.bench import cpu, driver, ops
from tessera.tools.bench.contender import TimedCall
from tessera.tools.bench.methods import Effort
from tessera.tools.bench.results import results_text
from tessera.tools.bench.shapes import Shape, product
from tessera.tools.inspection.document import BLOCK_SIZES

META = '{"type": "meta", "num_experts": 9}\n'
ROUTE = '{"type": "route", "layer": %d, "topk_ids": %s}\n'


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is measured does not matter here."""
    effort = Effort(repetitions=1, min_seconds=1e-4)
    monkeypatch.setattr(bench, "Request", functools.partial(driver.Request, effort=effort))


def run(*arguments: object) -> int:
    return main(["bench", "--device", "cpu", *map(str, arguments)])


def results(path: Path, *arguments: object) -> Any:
    assert run(*arguments, "--json", path) == 0
    return json.loads(path.read_text())


def test_axes_and_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    axes = ("--tokens", "1,100", "--experts", 8, "--top-k", "2,9")
    document = results(tmp_path / "a.json", *axes, "--peers", "textbook")
    shown = capsys.readouterr().out
    assert [row["shape"] for row in document["rows"]] == ["1x8x2/16", "100x8x2/64"]
    assert re.search(r"^shape +tessera/1 +tessera/2 +textbook +floor +/ floor", shown, re.MULTILINE)
    assert re.search(r"^100x8x2/64( +[\d.]+\*?( wrong)?){6}$", shown, re.MULTILINE)
    for row in document["rows"]:
        us = {name: by_method["call"] for name, by_method in row["us"].items()}
        assert set(us) == {"tessera/1", "tessera/2", "textbook", "floor"}
        ours = min(us["tessera/1"], us["tessera/2"])
        assert row["ratios"]["Tessera / best peer"] == pytest.approx(ours / us["textbook"])
        lost = f"slower than textbook on {row['shape']}: "
        assert (lost in shown) == (ours > us["textbook"])
    assert document["build"] == tessera.build()
    assert (tmp_path / "a.json").read_text() == results_text(document)


@pytest.mark.parametrize(
    ("arguments", "device", "methods"),
    [
        ([], "cuda", ["graph", "chain"]),
        (["--preset", "grid"], "cuda", ["graph", "chain"]),
        (["--preset", "headline"], "cuda", ["graph", "chain"]),
        (["--method", "l2"], "cuda", ["l2"]),
        (["--log", "a.jsonl"], "cuda", ["graph"]),
        (["--preset", "grid"], "cpu", ["call"]),
    ],
)
def test_methods_that_are_usual(arguments: list[str], device: str, methods: list[str]) -> None:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    assert bench._methods(parser.parse_args(arguments), device) == methods


@pytest.mark.parametrize("op", ops.OPS)
def test_every_preset_can_be_asked_for(op: str) -> None:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    for device in ("cpu", "cuda"):
        for preset in ops.OPS[op].on(device).presets:
            args = parser.parse_args(["--op", op, "--preset", preset])
            assert bench._op(args, device).presets[preset]


def test_variants_and_what_peers_refuse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    variants = ("--skew", "zipf,one-hot-expert", "--dtype", "int32,int64", "--map", "half-remote")
    document = results(tmp_path / "a.json", "--tokens", 50, *variants)
    names = [row["shape"] for row in document["rows"]]
    assert names[1] == "50x64x2/16/zipf/int64/map half-remote"
    assert len(names) == 4
    for row in document["rows"]:
        assert {"tessera/1", "tessera/2", "floor"} <= set(row["us"])
        assert "textbook" not in row["us"]
        assert row["violations"] == {}
    assert (
        "textbook: not measured on 50x64x2/16/zipf/map half-remote, and 3 more shapes: takes no "
        "expert map\n" in capsys.readouterr().out
    )


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Layer 3: a warm-up of 70 equal rows, then 5 tokens. Layer 7: 2 tokens."""
    path = tmp_path / "log.jsonl"
    rows = [(3, [8, 7])] * 70 + [(3, [0, 1]), (3, [0, 2]), (7, [4, 5]), (3, [0, 1])]
    rows += [(3, [1, 0]), (7, [4, 6]), (3, [3, 2])]
    path.write_text(META + "".join(ROUTE % row for row in rows))
    return path


def test_windows_of_a_log_beside_its_advice(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ("--tokens", "1,2,4", "--block-size", "8,16", "--peers", "none")
    document = results(tmp_path / "a.json", "--log", log, *sizes, "--commit", "abc")
    shown = capsys.readouterr().out
    assert [row["shape"] for row in document["rows"]] == [
        *(f"log layer 3: {size}x9x2/{block}" for size in (1, 2, 4) for block in (8, 16)),
        *(f"log layer 7: {size}x9x2/{block}" for size in (1, 2) for block in (8, 16)),
    ]
    row = document["rows"][3]  # two tokens: experts 0, 1, 2 and 0, 1
    assert row["num_windows"] == row["num_windows_timed"] == 2
    assert row["num_blocks"] == 2.5
    assert row["padding_share"] == pytest.approx(1 - 4 / (2.5 * 16))
    (advice,) = [
        one for one in document["inspection"]["models"][0]["advice"] if one["batch_size"] == 2
    ]
    assert row["relative_cost"] == advice["costs"][1]["relative_cost"]
    assert row["is_recommended"] == (advice["block_size"] == 16)
    assert set(row["us"]) == {"tessera/1", "tessera/2", "floor"}
    assert "\nlog layer 3: 5 tokens, top 2 of 9 experts; without 70 rows of warm-up\n" in shown
    assert "\nlog layer 7: 2 tokens, top 2 of 9 experts\n" in shown
    assert re.search(r"^tokens +windows +block +Tessera +floor +blocks +padding +cost", shown, re.M)
    assert re.search(r"^2 +2 +8 +[\d.]+\*? +[\d.]+\*? +2\.5 +80\.0% +[\d.]+", shown, re.M)
    assert "\nlog layer 7: no windows of 4 tokens or more: it has 2\n" in shown
    assert (document["commit"], document["modified"]) == ("abc", None)


def test_block_sizes_in_question_are_the_advised_and_its_neighbours(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = results(tmp_path / "a.json", "--log", log, "--peers", "none")
    assert {row["num_tokens"] for row in document["rows"]} == {1, 2, 4}
    for size in (1, 2, 4):
        rows = [row for row in document["rows"] if row["num_tokens"] == size]
        (advised,) = {row["block_size"] for row in rows if row["is_recommended"]}
        around = {advised // 2, advised, 2 * advised} & set(BLOCK_SIZES)
        assert {row["block_size"] for row in rows} == around
    assert len(re.findall(r" use *$", capsys.readouterr().out, re.MULTILINE)) == 5


def test_a_log_as_an_array(tmp_path: Path) -> None:
    path = tmp_path / "ids.npy"
    np.save(path, np.array([[0, 3], [1, 2], [0, 1]]))
    document = results(tmp_path / "a.json", "--log", path, "--tokens", "2", "--peers", "none")
    assert {row["trace"] for row in document["rows"]} == {"ids"}
    assert {row["num_experts"] for row in document["rows"]} == {4}


def test_slots_without_an_expert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "ids.jsonl"
    rows = [[0, 3, 2], [1, -1], [2], [3, 1], [0, 2], [1]]
    path.write_text("".join(f'{{"layer": 0, "topk_ids": {row}}}\n' for row in rows))
    options = ("--log", path, "--tokens", "2", "--block-size", "8")
    (row,) = results(tmp_path / "a.json", *options)["rows"]
    assert {"tessera/1", "textbook", "floor"} <= set(row["us"])
    assert row["violations"] == {}
    shown = capsys.readouterr().out
    assert "ids: 6 tokens, top 1 to 3 of 4 experts; 1 slot without an expert\n" in shown
    if importlib.util.find_spec("torch"):
        assert set(row["refusals"]) == {"torch"}
        assert "torch: not measured on ids: 2x4x3/8: takes no ids of -1: it indexes by" in shown


def test_ids_outside_the_experts_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "ids.npz"
    np.savez(path, topk_ids=np.array([[0, 3], [1, 7]]), num_experts=4)
    for words in ([], ["--preset", "report", "--json", tmp_path / "new"]):
        assert run("--log", path, *words) == 2
        message = f"tessera bench: {path}: topk_ids: expected ids in [0, 4), got 1 others\n"
        assert capsys.readouterr().err == message


def test_eager_lists_calls_by_shape(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = results(tmp_path / "a.json", "--method", "eager")
    shown = capsys.readouterr().out
    assert re.search(r"^call +16x64x2/16 +16x256x8/16$", shown, re.MULTILINE)
    assert re.search(r"^numpy, out=( +[\d.]+\*?){2}$", shown, re.MULTILINE)
    for row in document["rows"]:
        assert {"numpy", "numpy, out=", "empty call, the same binding and arrays"} <= set(row["us"])
        ops = {"torch.ops.tessera.align_block_size", "empty torch op, the same arguments"}
        assert ops <= set(row["us"]) or importlib.util.find_spec("torch") is None


def test_report_writes_the_files_of_the_page(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def requests(
        device: str, shapes: list[Shape], windows: dict[Any, Any], *rest: object
    ) -> dict[str, list[driver.Request]]:
        assert device == "cpu"
        assert [shape.name for shape in shapes] == [
            "75x9x2/128",
            "log layer 3: 75x9x2/128",
            "2x9x2/128",
            "log layer 7: 2x9x2/128",
        ]
        assert windows["log layer 7", 2].tolist() == [[[4, 5], [4, 6]]]
        assert windows["log layer 3", 75].shape == (1, 75, 2)
        shapes = product([1], [8], [2])
        effort = Effort(repetitions=1, min_seconds=1e-4)
        return {"cpu.json": [driver.Request("cpu", shapes, ["call"], effort=effort)]}

    monkeypatch.setattr(bench, "report_requests", requests)
    assert run("--preset", "report", "--json", tmp_path / "new", "--log", log) == 0
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["cpu.json"]


def test_another_op_has_its_own_shapes_and_peers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = results(tmp_path / "a.json", "--op", "lora_align_block_size", "--seed", 3)
    assert {row["op"] for row in document["rows"]} == {"lora_align_block_size"}
    assert document["rows"][0]["shape"] == "16x64x8/16, 4 adapters"
    assert document["seed"] == 3
    assert document["rows"][0]["violations"] == {}
    shown = capsys.readouterr().out
    assert "; lora_align_block_size; commit " in shown
    header = r"^shape +tessera +align_block_size +floor +/ floor +/ align_block_size$"
    assert re.search(header, shown, re.MULTILINE)
    assert re.search(r"^16x64x8/16, 4 adapters( +[\d.]+\*?){5}$", shown, re.MULTILINE)


def test_the_preset_outputs_times_what_reports_add(tmp_path: Path) -> None:
    document = results(tmp_path / "a.json", "--preset", "outputs", "--op", "align_block_size")
    assert len(document["rows"]) == 22
    for row in document["rows"]:
        assert set(row["us"]) == {"nothing", "expert_counts", "statistics", "validation", "all"}


def test_results_of_several_ops_are_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    effort = Effort(repetitions=1, min_seconds=0.0)
    parts = [
        driver.Request("cpu", op.usual_shapes[:1], ["call"], effort=effort, op=op)
        for op in list(ops.OPS.values())[1:3]
    ]
    monkeypatch.setattr(bench, "report_requests", lambda *rest: {"cpu_family.json": parts})
    assert run("--preset", "report", "--json", tmp_path / "new") == 0
    written = (tmp_path / "new/cpu_family.json").read_text()
    assert [row["op"] for row in json.loads(written)["rows"]] == [
        "batched_align_block_size",
        "lora_align_block_size",
    ]
    shown = capsys.readouterr().out
    assert shown.index("; batched_align_block_size; ") < shown.index("; lora_align_block_size; ")
    assert shown.count("cpu_family.json") == 1


def test_a_broken_contract_ends_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = cpu.contenders()

    def wrong(problem: Any) -> TimedCall:
        def run() -> Any:
            outputs = call.run()
            outputs[2][0] += 1
            return outputs

        call = right[0].prepare(problem)
        return TimedCall(run, call.seconds)

    broken = dataclasses.replace(right[0], prepare=wrong)
    op = dataclasses.replace(
        ops.align_block_size.OP, contenders=lambda device: [broken, *right[1:]]
    )
    monkeypatch.setitem(ops.OPS, op.name, op)
    assert run("--tokens", 9) == 1
    message = capsys.readouterr().err
    assert message.startswith("tessera bench: tessera/1 breaks the contract on 9x64x2/16: num_")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tokens", "0"], "argument --tokens: expected integers in [1, 2147483647], comma-"),
        (["--tokens", "4,x"], "comma-separated, got '4,x'"),
        (["--skew", "uniform,hot"], "expected some of uniform, zipf, one-hot-expert, comma-"),
        (["--method", "graph"], "--method: expected some of call, eager with --device cpu, got"),
        (["--peers", "nobody"], "--peers: expected some of textbook, thread_local_counts, torch"),
        (["--experts", "1"], "--top-k: expected at most as many as --experts"),
        (["--preset", "grid", "--tokens", "4"], "--preset: expected no --tokens beside it"),
        (["--preset", "report"], "--preset report: expected --json FOLDER"),
        (["--preset", "report", "--json", "x", "--skew", "zipf"], "expected no --skew beside it"),
        (["--shift", "2"], "--shift: expected a multiple of the elements' size, 4 bytes, got 2"),
        (["--log", "absent.jsonl"], "absent.jsonl: No such file or directory"),
        (["--log", "a.txt"], "a.txt: No such file or directory"),
        (["--log", "a.jsonl", "--method", "eager"], "--log: expected no --method beside it"),
        (["--log", "a.jsonl", "--tokens", "3"], "--tokens: expected some of 1, 2, 4, 8, 16, 32"),
        (["--log", "a.jsonl", "--block-size", "4"], "--block-size: expected some of 8, 16, 32"),
        (["--op", "moe"], "argument --op: invalid choice: 'moe' (choose from"),
        (
            ["--op", "lora_align_block_size", "--tokens", "4"],
            "--op lora_align_block_size: expected no --tokens beside it",
        ),
        (
            ["--op", "batched_align_block_size", "--preset", "grid"],
            "--preset: expected some of quick with --op batched_align_block_size, got grid",
        ),
        (
            ["--op", "batched_align_block_size", "--preset", "outputs"],
            "--preset: expected some of quick with --op batched_align_block_size, got outputs",
        ),
        (
            ["--op", "batched_align_block_size", "--plot", "a.png"],
            "--op batched_align_block_size: expected no --plot beside it",
        ),
        (
            ["--op", "batched_align_block_size", "--log", "a.jsonl"],
            "--log: expected --op align_block_size, got batched_align_block_size",
        ),
        (["--op", "batched_align_block_size", "--method", "eager"], "expected some of call with"),
        (["--preset", "outputs", "--map", "none"], "--preset outputs: expected no --map beside it"),
        (
            ["--preset", "report", "--json", "x", "--op", "align_block_size"],
            "--preset report: expected no --op beside it",
        ),
        (["--plot", "a.pdf"], "--plot: expected a .png or .svg file, got a.pdf"),
    ],
)
def test_bad_usage(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = run(*arguments)
    except SystemExit as error:  # argparse's own refusals
        code = int(error.code or 0)
    shown = capsys.readouterr()
    assert code == 2
    assert shown.err.startswith("tessera bench: ")
    assert message in shown.err
    assert shown.out == ""


def test_a_plot_without_matplotlib_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run("--plot", "a.svg") == 2
    shown = capsys.readouterr()
    assert "matplotlib is not installed: pip install matplotlib, or pip install '.[bench]'" in (
        shown.err
    )
    assert shown.out == ""
