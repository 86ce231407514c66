"""Files of results: one line per row, in every file that is committed."""

# ruff: noqa: F811, for the imported fixture

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench_modules import programs  # noqa: F401, it is a fixture
from tessera.tools.bench.results import command_text, results_text, write_results

BENCH = Path(__file__).parents[2] / "bench"
RESULTS = BENCH / "results"


def test_a_row_is_a_line_and_so_is_a_field(tmp_path: Path) -> None:
    document = {
        "commit": None,
        "contenders": {"tessera": {"kind": "tessera"}, "textbook": {"kind": "peer"}},
        "left_out": [],
        "rows": [{"shape": "1x8x2/16", "us": {"tessera": {"graph": 1.125}}}, {"shape": "é"}],
    }
    path = tmp_path / "a" / "b.json"
    write_results(path, document)
    assert path.read_text().splitlines() == [
        "{",
        '"commit": null,',
        '"contenders": {"tessera": {"kind": "tessera"}, "textbook": {"kind": "peer"}},',
        '"left_out": [],',
        '"rows": [',
        '{"shape": "1x8x2/16", "us": {"tessera": {"graph": 1.125}}},',
        '{"shape": "\\u00e9"}',
        "]",
        "}",
    ]
    assert json.loads(path.read_text()) == document


@pytest.mark.parametrize(
    "path", sorted(RESULTS.rglob("*.json")), ids=lambda path: str(path.relative_to(RESULTS))
)
def test_committed_results_are_as_they_would_be_written(path: Path) -> None:
    text = path.read_text()
    assert text == results_text(json.loads(text))


def test_the_launches_are_kept_with_their_commit(
    programs: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = programs("policy")
    printed = '{"device":"a GPU","shapes":[\n{"launches":[\n {"us":1.5}]}\n]}\n'
    done = SimpleNamespace(stdout=printed)
    monkeypatch.setattr(policy.subprocess, "run", lambda command, **options: done)
    monkeypatch.setattr(
        policy, "description", lambda device, commit: {"commit": commit, "device": device}
    )
    path = tmp_path / "policy.json"
    monkeypatch.setattr(sys, "argv", ["policy.py", "tune", "--json", str(path), "--commit", "abc"])
    policy.main()
    found = json.loads(path.read_text())
    assert (found["commit"], found["device"]) == ("abc", "a GPU")
    assert '\n{"launches": [{"us": 1.5}]}\n' in path.read_text()


def test_a_command_has_files_by_their_names() -> None:
    arguments = ["bench", "--json", "/home/a=b/out.json", "--log=/d/a=b/ids.npz", "--tokens=1,2"]
    expected = "tessera bench --json out.json --log=ids.npz --tokens=1,2"
    assert command_text([*arguments, "runs/b.json"]) == f"{expected} runs/b.json"
    assert command_text(["--json", "/a b/it's x.json"]) == """tessera --json 'it'"'"'s x.json'"""
