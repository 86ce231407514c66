"""The benchmark of the family's ops, on the CPU, and its part of the performance page."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tessera.tools.bench.driver import ContractBrokenError
from tessera.tools.bench.methods import Effort

BENCH = Path(__file__).parents[2] / "bench"
SHORT = Effort(repetitions=1, min_seconds=0.0)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Imports a module of the folder bench/, for one test."""
    monkeypatch.syspath_prepend(str(BENCH))
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if str(BENCH) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def test_every_workload_is_timed_beside_the_main_op_and_the_floor(bench: Any) -> None:
    document = bench("family").measure("cpu", "abc", SHORT)
    assert document["commit"] == "abc"
    assert {row["op"] for row in document["rows"]} == {
        "batched_align_block_size",
        "lora_align_block_size",
    }
    for row in document["rows"]:
        assert set(row["us"]) == {"op", "align_block_size", "floor"}
        assert all(us > 0 for us in row["us"].values())


def test_the_call_beside_it_gives_the_same_tokens_to_the_same_groups(bench: Any) -> None:
    family = bench("family")
    workload = next(family.batched_workloads(lambda array: array))
    ours, beside = workload.run(), workload.beside()
    assert ours.num_tokens_post_pad.tolist() == beside.num_tokens_post_pad.tolist()
    num_blocks = min(len(ours.expert_ids), len(beside.expert_ids))
    np.testing.assert_array_equal(ours.expert_ids[:num_blocks], beside.expert_ids[:num_blocks])

    workload = next(family.lora_workloads(lambda array: array))
    ours, beside = workload.run(), workload.beside()
    totals = ours.num_tokens_post_pad
    assert len(totals) > 1
    rows = [row[:total] for row, total in zip(ours.sorted_token_ids, totals, strict=True)]
    total = int(beside.num_tokens_post_pad[0])
    np.testing.assert_array_equal(np.concatenate(rows), beside.sorted_token_ids[:total])


def test_wrong_outputs_are_not_timed(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    family = bench("family")
    import tessera

    def wrong(*arguments: Any, **options: Any) -> Any:
        found = right(*arguments, **options)
        found.expert_ids[0] += 1
        return found

    right = tessera.batched_align_block_size
    monkeypatch.setattr(tessera, "batched_align_block_size", wrong)
    with pytest.raises(ContractBrokenError, match="block_experts"):
        family.measure("cpu", effort=SHORT)


def test_the_section_shows_what_was_measured(
    bench: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    page, text = bench("page_family"), bench("page_text")
    monkeypatch.setattr(text, "RESULTS", tmp_path)
    assert page.family_section() == ""
    document = {
        "commit": "0123456789abcdef",
        "modified": False,
        "date": "2026-01-02",
        "machine": "a processor",
        "build": "a compiler",
        "methods": {"call": "meaning"},
        "rows": [
            {
                "op": "some_op",
                "shape": "8x64/16",
                "us": {"op": 1.5, "align_block_size": 3.0, "floor": 1.0},
                "floor": "floor",
            }
        ],
    }
    (tmp_path / "cpu_family.json").write_text(json.dumps(document))
    section = page.family_section()
    assert section.startswith("## The family\n")
    assert "### On the CPU\n" in section
    assert "H200" not in section
    assert "| some_op 8x64/16 | 1.50 | 3.00 | 1.00 | 0.50 | 1.50 |" in section
