"""`bench/fused_experts_combine.py`, as far as it goes without a GPU, and its part of the page."""

# ruff: noqa: F811, for the imported fixture

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench_modules import modules  # noqa: F401, it is a fixture
from fused_experts_gpu import TINY

torch = pytest.importorskip("torch", reason="torch is not installed")


def trace(script: Any, num_chunks: int) -> list[Any]:
    """Calls of 100 us, whose combinations take 10 us per chunk, and copies of 7 us, which start 10
    us after them, in disorder."""
    found, now = [], 0.0
    for _ in range(script._CALLS):
        for _ in range(num_chunks):
            # The combination starts early, and waits for the product.
            found.append(script.Event("void combine<__half, 8>(CombineArgs)", now + 50, now + 110))
            found.append(script.Event("void wgmma_product<__half, 0, 1>", now + 40, now + 100))
            now += 120
        found.append(script.Event("Memcpy DtoD (Device -> Device)", now, now + 7))
        now += 20
    return found


@pytest.mark.parametrize("num_chunks", [1, 3])
def test_a_combination_lasts_from_the_end_of_the_product(
    modules: Callable[[str], Any], num_chunks: int
) -> None:
    script = modules("fused_experts_combine")
    us = script.times(trace(script, num_chunks))
    assert us == pytest.approx({"combine": 10.0 * num_chunks, "copy": 17.0, "copy_alone": 7.0})


@pytest.mark.parametrize("num_chunks", [1, 3])
def test_a_trace_has_to_be_complete(modules: Callable[[str], Any], num_chunks: int) -> None:
    script = modules("fused_experts_combine")
    events = trace(script, num_chunks)
    copies = [event for event in events if "Memcpy" in event.name]
    for missing in (copies[:1], [events[0]]):
        with pytest.raises(ValueError, match=r"^expected 20 calls and copies in the trace, got"):
            script.times(event for event in events if event not in missing)


def test_the_bytes_are_the_rows_of_pairs_and_of_tokens(modules: Callable[[str], Any]) -> None:
    # 1024 tokens with two rows to read and one to write, of 64 elements of two bytes.
    assert modules("fused_experts_combine").num_bytes(TINY[2]) == 1024 * 3 * 64 * 2


def test_what_is_refused(
    modules: Callable[[str], Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    script = modules("fused_experts_combine")
    monkeypatch.setattr(sys, "argv", ["fused_experts_combine.py", "--json", str(tmp_path)])
    with pytest.raises(SystemExit):
        script.main()
    assert f"--json: expected a file, got the folder {tmp_path}" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["fused_experts_combine.py"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="expected a CUDA device, torch finds none"):
        script.main()


def test_the_page_compares_it_with_the_copy(modules: Callable[[str], Any], tmp_path: Path) -> None:
    page = modules("page_fused_experts_combine")
    assert page.fused_experts_combine_sections() == []
    about = {"machine": "m", "build": "b", "gpu": "NVIDIA X", "cuda": "13.0", "torch": "2"}
    about |= {"commit": "abc", "modified": None, "date": "today", "methods": {"trace": "so"}}
    rows = [
        {
            "shape": "a",
            "bytes": 2_000_000,
            "us": {"combine": 10.0, "copy": 10.0, "copy_alone": 9.0},
        },
        {
            "shape": "b",
            "bytes": 2_000_000,
            "us": {"combine": 12.0, "copy": 10.0, "copy_alone": 9.0},
        },
    ]
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "fused_experts_combine.json").write_text(json.dumps(about | {"rows": rows}))
    (section,) = page.fused_experts_combine_sections()
    assert section.startswith("## The combination of fused_experts on the NVIDIA X\n")
    assert "| a | 2.00 | 10.0 | 0.20 | 10.0 | 0.20 | 1.00 | target met | 9.00 | 1.11 |" in section
    assert (
        "| b | 2.00 | 12.0 | 0.17 | 10.0 | 0.20 | 1.20 | **missed by 0.09 (8%)** | 9.00 | 1.33 |"
        in section
    )
    assert "time over a copy's, b, combination: 1.20, missed" in section
