"""`tessera inspect --compare`: two logs side by side, and what cannot be compared."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tessera.cli.main import main
from tessera.contract import synthetic_topk_ids

LINE = '{"type": "route", "layer": %s, "topk_ids": %s}\n'


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["inspect", *map(str, arguments), "--compare"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def document(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    return json.loads(run(capsys, *arguments, "--json"))["comparison"]


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["inspect", *map(str, arguments)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    return err.removeprefix("tessera inspect: ").rstrip("\n")


def saved(path: Path, layers: dict[str, list[list[int]]]) -> Path:
    path.write_text("".join(LINE % (name, row) for name, rows in layers.items() for row in rows))
    return path


@pytest.fixture
def logs(tmp_path: Path) -> list[Path]:
    """Layer 0 of 4 experts changes from experts 0 and 1 to 0 and 2; 1 and 2 are in one log each."""
    first = saved(tmp_path / "old.jsonl", {"0": [[0, 1], [0, 3]] * 4, "1": [[0, 3]] * 4})
    second = saved(tmp_path / "new.jsonl", {"0": [[0, 2], [0, 3]] * 4, "2": [[0, 3]] * 4})
    return [first, second]


def test_figures_by_hand(logs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, *logs)
    assert found["num_layers"] == 1
    (layer,) = found["layers"]
    assert (layer["layer"], layer["distance"]) == (0, 0.25)
    assert found["experts"] == [
        {"layer": 0, "expert": 1, "first": 0.25, "second": 0.0},
        {"layer": 0, "expert": 2, "first": 0.0, "second": 0.25},
    ]
    assert found["first"]["sorted_over_mean"] == [2.0, 1.0, 1.0, 0.0]
    assert (found["first"]["num_tokens"], found["first"]["num_hot"]) == (8, 1)
    assert (found["first"]["num_dead"], found["second"]["num_dead"]) == (1, 1)
    # By the first log expert 0 is beside 2, which is dead there; in the second 2 is not.
    assert found["placed_by_first"] == [
        {"num_ranks": 2, "on_second": 1.5},
        {"num_ranks": 4, "on_second": 2.0},
    ]
    assert found["second"]["ranks"][0] == {
        "num_ranks": 2,
        "contiguous": 1.0,
        "in_hindsight": 1.0,
    }
    assert found["notes"] == [
        "only in old.jsonl, and left out: layer 1",
        "only in new.jsonl, and left out: layer 2",
    ]


def test_in_a_terminal(
    logs: list[Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = [" ".join(line.split()) for line in run(capsys, *logs).splitlines()]
    assert lines[:2] == ["First: old.jsonl, 4 experts", "Second: new.jsonl, 4 experts"]
    assert "max/mean 2.00 2.00 0" in lines
    assert "1 1.00 0.00 -1.00 layer 0" in lines
    assert "2 1.50 1.00 1.00 1.00 1.50" in lines
    assert "1 16 16 94% 94%" in lines
    assert "- only in old.jsonl, and left out: layer 1" in lines
    assert max(map(len, run(capsys, *logs).splitlines())) <= 80


def test_a_log_and_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [tmp_path / name for name in ("a.npy", "b.npy")]
    for path in paths:
        np.save(path, synthetic_topk_ids(300, 16, 4, seed=1))
    found = document(capsys, *paths)
    assert found["layers"][0]["distance"] == 0.0
    assert found["experts"] == []
    assert {**found["first"], "name": ""} == {**found["second"], "name": ""}
    out = run(capsys, *paths)
    assert "The block size to use is the same for every batch size." in out


def test_a_file_of_one_layer_need_not_name_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "b.npy", np.array([[0, 1], [0, 3]] * 4))
    one = saved(tmp_path / "one.jsonl", {"7": [[0, 2], [0, 3]] * 4})
    (layer,) = document(capsys, tmp_path / "b.npy", one)["layers"]
    assert (layer["layer"], layer["distance"]) == (7, 0.25)


def test_models_of_other_numbers_of_experts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [tmp_path / name for name in ("a.npy", "b.npy")]
    np.save(paths[0], synthetic_topk_ids(300, 16, 4, seed=1))
    np.save(paths[1], synthetic_topk_ids(300, 60, 2, seed=1))
    found = document(capsys, *paths)
    assert (found["layers"], found["experts"], found["placed_by_first"]) == ([], [], [])
    assert len(found["first"]["advice"]) == len(found["second"]["advice"]) == 17
    assert found["notes"] == [
        "16 and 60 experts: not compared one by one; where a number is the largest id + 1, "
        "--experts gives the right one"
    ]
    out = run(capsys, *paths)
    assert "Experts whose load changed most" not in out
    assert "second by first" not in out
    assert "\n   16 " in out and "\n   32 " not in out


def test_loads_without_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ids = synthetic_topk_ids(3000, 64, 4, seed=1)
    loads = np.stack([np.bincount(ids.reshape(-1), minlength=64)] * 3)
    np.save(tmp_path / "ids.npy", np.stack([ids] * 3, axis=1))
    np.save(tmp_path / "loads.npy", loads)
    np.save(tmp_path / "later.npy", loads[:, ::-1])
    found = document(capsys, tmp_path / "ids.npy", tmp_path / "loads.npy")
    assert [one["distance"] for one in found["layers"]] == [0.0] * 3
    assert found["first"]["ranks"] == found["second"]["ranks"]
    note = "block sizes are not compared: loads.npy has loads without tokens"
    assert found["notes"] == [note]
    assert found["first"]["advice"] == found["second"]["advice"] == []
    out = run(capsys, tmp_path / "ids.npy", tmp_path / "loads.npy")
    assert f"- {note}" in out
    assert "Block size to use" not in out
    out = run(capsys, tmp_path / "loads.npy", tmp_path / "later.npy")
    assert "nan" not in out
    assert out.count("not compared") == 1
    assert "- block sizes are not compared: loads.npy and later.npy have loads" in out
    assert "\ntokens " not in out and "\npairs " in out
    assert "A placement on 8 ranks" in out
    for name in ("loads.npy", "later.npy"):  # with an expert for each rank all are equal
        np.save(tmp_path / name, np.load(tmp_path / name)[:, :8])
    assert "A placement on" not in run(capsys, tmp_path / "loads.npy", tmp_path / "later.npy")


def test_what_cannot_be_compared_is_refused(
    tmp_path: Path, logs: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused(capsys, logs[0], "--compare") == "--compare: expected two LOG, got 1"
    assert refused(capsys, *logs, "--files", "ranks", "--compare").startswith(
        "--compare: expected no --files beside it"
    )
    other = saved(tmp_path / "other.jsonl", {"1": [[0, 3]] * 4, "9": [[0, 3]] * 4})
    assert refused(capsys, logs[1], other, "--compare") == (
        "--compare: expected layers of the same name in both logs, got layer 0, layer 2 in "
        "new.jsonl, and layer 1, layer 9 in other.jsonl"
    )


def test_report_and_pictures(
    tmp_path: Path, logs: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    if importlib.util.find_spec("jinja2") is None:
        pytest.skip("jinja2 is not installed")
    from report_page import ReportPage

    run(capsys, *logs, "--html", tmp_path / "a.html", "--pictures", tmp_path / "pictures")
    names = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert {"compared_load.svg", "compared_ranks.svg"} <= names
    text = (tmp_path / "a.html").read_text(encoding="utf-8")
    start = text.index('<section id="comparison"')
    page = ReportPage(text[start : text.index("</section>", start) + len("</section>")])
    head, *rows = page.tables["Load"]
    assert head == ["Figure", "First", "Second", "Change"]
    assert ["hot experts, 2 x mean", "1", "1", "0"] in rows
    assert page.tables["Experts whose load changed most, over the mean load"][1:] == [
        ["layer 0", "1", "1.00", "0.00", "-1.00"],
        ["layer 0", "2", "0.00", "1.00", "+1.00"],
    ]
    assert page.tables["Load of the busiest rank over the mean"][1][-1] == "1.50"
    assert any("First: 2.00× the mean on the hottest" in one for one in page.drawings)
