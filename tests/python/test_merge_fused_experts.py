"""The command that adds runs of `fused_experts` to a GPU's results loses no other file."""

# ruff: noqa: F811, for the imported fixture

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench_modules import modules  # noqa: F401, it is a fixture


@pytest.mark.parametrize("text", ["[]", "null", "{}", '{"run": "aa", "gpu": "GPU", "rows": []}'])
def test_a_file_that_is_no_results_is_not_replaced(
    text: str,
    modules: Callable[[str], Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    into = tmp_path / "into.json"
    into.write_text(text)
    monkeypatch.setattr(sys, "argv", ["merge", "run.json", "--into", str(into)])
    with pytest.raises(SystemExit, match="2"):
        modules("merge_fused_experts").main()
    said = capsys.readouterr().err
    assert said.endswith(f"{into}: expected a file of runs and rows, which it would replace\n")
    assert into.read_text() == text
