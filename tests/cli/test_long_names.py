"""Long names of layers in the tables of `tessera inspect`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tessera.cli.main import main
from tessera.cli.tables import in_column
from tessera.contract import synthetic_topk_ids

NAMES = [f"model.language_model.layers.{number}.block_sparse_moe.experts" for number in range(2)]


def shown(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["inspect", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_an_ellipsis_takes_the_middle() -> None:
    name = "a" * 30 + "b" * 30
    assert in_column(["a" * 40, name, "3", ""]) == ["a" * 40, f"{'a' * 20}…{'b' * 19}", "3", ""]
    assert in_column([name, name]) == [f"{'a' * 20}…{'b' * 19}"] * 2


def test_names_stay_different() -> None:
    assert in_column(NAMES) == [
        f"model.language_model.layers.{number}.…e.experts" for number in "01"
    ]
    at_end = [f"{'a' * 50}{number}{'b' * 25}" for number in "01"]
    assert in_column(at_end) == [f"{'a' * 10}…{'a' * 3}{number}{'b' * 25}" for number in "01"]
    in_middle = [f"{'a' * 50}{number}{'b' * 50}" for number in "01"]
    assert in_column(in_middle) == in_middle
    assert in_column(["[b]" + "a" * 50])[0].startswith(r"\[b]aaa")


def test_every_table_and_not_the_document(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    for seed, file in enumerate(("a.jsonl", "b.jsonl")):
        lines = [
            json.dumps({"layer": name, "topk_ids": row})
            for name in NAMES
            for row in synthetic_topk_ids(400, 16, 2, zipf=True, seed=seed).tolist()
        ]
        (tmp_path / file).write_text("\n".join(lines))
    for options in ((), ("b.jsonl", "--compare")):
        files = [tmp_path / one if one.endswith("jsonl") else one for one in ("a.jsonl", *options)]
        tables = shown(capsys, *files).partition("What this says")[0]
        rows = [row for row in tables.splitlines() if "  " in row.strip()]
        assert any("model.language_model.layers.0.…e.experts" in row for row in rows)
        assert not any(name in row for row in rows for name in NAMES)
        document = json.loads(shown(capsys, *files, "--json"))
        assert [layer["layer"] for layer in document["models"][0]["layers"]][:2] == NAMES
