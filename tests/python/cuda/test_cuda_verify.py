"""`tessera verify --impl` on a GPU: what is right, and a call that costs the process its device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tessera.cli.main import main

LOSES_THE_DEVICE = """
import tessera
import torch

def align(topk_ids, block_size, num_experts):
    torch.zeros(num_experts, device=topk_ids.device)[topk_ids.long()]
    return tessera.align_block_size(topk_ids, block_size=block_size, num_experts=num_experts)
"""


def judged(capfd: pytest.CaptureFixture[str], name: str, *arguments: str) -> dict[str, Any]:
    usual = ("--json", "--device", "cuda", "--seconds", "60")
    code = main(["verify", "--impl", name, *usual, *arguments])
    document: dict[str, Any] = json.loads(capfd.readouterr().out)
    all_made = all(each["num_calls"] == each["num_cases"] for each in document["classes"])
    assert code == (1 if document["findings"] else 0 if all_made else 3)
    return document


def test_tessera_breaks_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    document = judged(capfd, "tessera:align_block_size", "--random", "5", "--max-ids", "300")
    assert (document["findings"], document["not_asked"]) == ([], {})
    assert (document["arrays"], document["device"]) == ("torch", "cuda")


def test_a_lost_device_is_told_with_the_call_that_lost_it(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "loses.py").write_text(LOSES_THE_DEVICE)
    monkeypatch.chdir(tmp_path)
    # One call, since each loss costs seconds: the next process has to start CUDA anew.
    document = judged(capfd, "loses:align", "--cases", "random:47:64", "--random", "0")
    (finding,) = document["findings"]
    assert finding["rule"] == "no_crash"
    assert "device-side assert" in finding["message"]
    assert (finding["alone"], finding["valid_ids"]) == (True, False)
    assert finding["call"]["num_tokens"] * finding["call"]["top_k"] == 1
