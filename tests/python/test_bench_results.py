"""Files of results: one line per row, in every file that is committed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tessera.tools.bench.results import results_text, write_results

RESULTS = Path(__file__).parents[2] / "bench/results"


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
