"""`tessera bench --log` on a GPU: every contender that is here, on a log's own windows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tessera.cli.main import main


def test_windows_of_a_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log, results = tmp_path / "ids.npz", tmp_path / "results.json"
    ids = np.random.default_rng(0).integers(0, 64, (600, 8))
    np.savez(log, topk_ids=ids, num_experts=64)
    arguments = ["--device", "cuda", "--tokens", "1,64,512", "--json", str(results)]
    assert main(["bench", "--log", str(log), *arguments]) == 0
    rows = json.loads(results.read_text())["rows"]
    assert {row["num_tokens"]: row["num_windows_timed"] for row in rows} == {1: 20, 64: 9, 512: 1}
    for row in rows:
        assert row["us"]["tessera"]["graph"] > 0
        assert row["us"]["torch"]["graph"] > 0
    assert "\nids: 600 tokens, top 8 of 64 experts\n" in capsys.readouterr().out
