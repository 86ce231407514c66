"""The recipe of docs/recording.md for vLLM, with a made-up engine: its file is read as it says."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tessera.cli.main import main
from tessera.contract import synthetic_topk_ids

PAGE = (Path(__file__).parents[2] / "docs/recording.md").read_text(encoding="utf-8")
LAYERS = 48


class Engine:
    """Stands for `vllm.LLM`: 19 tokens a prompt, fewer than the model has layers."""

    def __init__(self, model: str, **options: object) -> None:
        assert options == {"enable_return_routed_experts": True}

    def generate(self, prompts: list[str]) -> list[Any]:
        ids = synthetic_topk_ids(len(prompts) * 19 * LAYERS, 128, 8, seed=3).astype(np.int16)
        of_requests = ids.reshape(len(prompts), 19, LAYERS, 8)
        return [
            SimpleNamespace(outputs=[SimpleNamespace(routed_experts=one)]) for one in of_requests
        ]


def test_the_page_s_command_reads_what_the_page_s_program_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    section = PAGE.partition("\n## vLLM\n")[2].partition("\n## ")[0]
    (program,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    (command,) = re.findall(r"`tessera (inspect [^`]*)`", section)
    engine = ModuleType("vllm")
    engine.LLM = Engine  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", engine)
    monkeypatch.chdir(tmp_path)
    exec(program, {"__name__": "__main__"})
    assert main(command.split()) == 0
    assert f": 128 experts, top 8, {LAYERS} layers\n" in capsys.readouterr().out
