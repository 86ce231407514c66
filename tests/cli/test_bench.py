"""`tessera bench` on the CPU: tables, files, refusals."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

import tessera
from tessera.bench import cpu, driver
from tessera.bench.contender import Call
from tessera.bench.methods import Effort
from tessera.bench.shapes import product
from tessera.cli import bench
from tessera.cli.main import main

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
    assert re.search(r"^100x8x2/64( +[\d.]+( wrong)?){6}$", shown, re.MULTILINE)
    for row in document["rows"]:
        us = {name: by_method["call"] for name, by_method in row["us"].items()}
        assert set(us) == {"tessera/1", "tessera/2", "textbook", "floor"}
        ours = min(us["tessera/1"], us["tessera/2"])
        assert row["ratios"]["Tessera / best peer"] == pytest.approx(ours / us["textbook"])
        lost = f"slower than textbook on {row['shape']}: "
        assert (lost in shown) == (ours > us["textbook"])
    assert document["build"] == tessera.build()


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


def test_logs_beside_uniform_ids(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text(META + ROUTE % (1, [3, 0]) + ROUTE % (4, [5, 1]) + ROUTE % (1, [2, 0]))
    document = results(tmp_path / "a.json", "--trace", log, "--block-size", 4, "--commit", "abc")
    assert [row["shape"] for row in document["rows"]] == [
        "2x9x2/4",
        "log layer 1: 2x9x2/4",
        "1x9x2/4",
        "log layer 4: 1x9x2/4",
    ]
    assert (document["commit"], document["modified"]) == ("abc", None)


def test_eager_lists_calls_by_shape(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = results(tmp_path / "a.json", "--method", "eager")
    shown = capsys.readouterr().out
    assert re.search(r"^call +16x64x2/16 +16x256x8/16$", shown, re.MULTILINE)
    assert re.search(r"^numpy, out=( +[\d.]+){2}$", shown, re.MULTILINE)
    for row in document["rows"]:
        assert {"numpy", "numpy, out=", "empty call, the same binding and arrays"} <= set(row["us"])
        ops = {"torch.ops.tessera.align_block_size", "empty torch op, the same arguments"}
        assert ops <= set(row["us"]) or importlib.util.find_spec("torch") is None


def test_report_writes_the_files_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def requests(device: str, *rest: object) -> dict[str, driver.Request]:
        assert device == "cpu"
        shapes = product([1], [8], [2])
        effort = Effort(repetitions=1, min_seconds=1e-4)
        return {"cpu.json": driver.Request("cpu", shapes, ["call"], effort=effort)}

    monkeypatch.setattr(bench, "report_requests", requests)
    assert run("--preset", "report", "--json", tmp_path / "new") == 0
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["cpu.json"]


def test_a_broken_contract_ends_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = cpu.contenders()

    def wrong(problem: Any) -> Call:
        def run() -> Any:
            outputs = call.run()
            outputs[2][0] += 1
            return outputs

        call = right[0].prepare(problem)
        return Call(run, call.seconds)

    broken = dataclasses.replace(right[0], prepare=wrong)
    monkeypatch.setattr(driver, "available_contenders", lambda device: [broken, *right[1:]])
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
        (["--preset", "grid", "--tokens", "4"], "--preset: expected no --tokens, --experts or"),
        (["--preset", "report"], "--preset report: expected --json FOLDER"),
        (["--preset", "report", "--json", "x", "--skew", "zipf"], "expected no --skew beside it"),
        (["--shift", "2"], "--shift: expected a multiple of the elements' size, 4 bytes, got 2"),
        (["--trace", "absent.jsonl"], "absent.jsonl: No such file or directory"),
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
    assert "matplotlib is not installed: pip install 'tessera[bench]'" in shown.err
    assert shown.out == ""
