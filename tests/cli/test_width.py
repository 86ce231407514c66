"""The width of what `tessera inspect` prints: the terminal's, or COLUMNS, or none in a pipe."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tessera.cli.main import main
from tessera.contract import synthetic_topk_ids


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log.npy"
    np.save(path, synthetic_topk_ids(300, 16, 4, zipf=True))
    return path


def shown(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["inspect", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_a_narrow_terminal_loses_no_column(
    log: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def tables(columns: int) -> list[list[str]]:
        """The words of the tables' rows, of every row together."""
        monkeypatch.setenv("COLUMNS", str(columns))
        text = shown(capsys, log).partition("What this says")[0]
        assert "…" not in text
        assert max(map(len, text.splitlines())) <= columns
        rows: dict[str, list[str]] = {}
        for line in text.splitlines():
            key, *cells = line.split()[:1] + line.split()[1:] or [""]
            if key.lstrip("~").replace(",", "").isdigit() or key in ("layer", "tokens", "ranks"):
                rows.setdefault(key, []).extend(cells)
        return sorted([key, *sorted(cells)] for key, cells in rows.items())

    wide = tables(80)
    assert any("contiguous" in row for row in wide)
    assert tables(40) == wide


@pytest.mark.parametrize("columns", ["", "0", "many"])
def test_nothing_is_wrapped_in_a_pipe(
    columns: str, log: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    lines = shown(capsys, log).splitlines()
    (note,) = (line for line in lines if line.startswith("* the block size to use"))
    assert note.endswith(" tokens at a layer's end that fill none are not in it.")
    monkeypatch.setenv("COLUMNS", "80")
    wrapped = shown(capsys, log)
    assert max(map(len, wrapped.splitlines())) <= 80
    prose = " ".join(wrapped.split()).partition("What this says")[2]
    assert " ".join(" ".join(lines).split()).endswith(prose)
