"""docs/verify.md matches the judge's tables and the verdicts in bench/results/verify/."""

# ruff: noqa: F811, for the imported fixture

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench_modules import programs  # noqa: F401, it is a fixture
from tessera import contract_violations

ROOT = Path(__file__).parents[2]
MARKED = "".join(
    f"<!-- generated: {name} -->\n<!-- end -->\n" for name in ("forms", "rules", "verdicts", "ops")
)


@pytest.fixture
def generator(programs: Callable[[str], Any]) -> Any:
    return programs("verify_page")


def finding(rule: str, *, valid: bool, alone: bool = True) -> dict[str, Any]:
    call = {
        "num_tokens": 3,
        "top_k": 2,
        "num_experts": 4,
        "block_size": 5,
        "dtype": "int64",
        "options": ["expert_map"],
    }
    message = f"{rule}: expert_ids[1]: expected -1, found 0"
    snippet = "import numpy as np\n\ntopk_ids = np.array([[7, 8]], np.int64)\nf(topk_ids)"
    return {
        "rule": rule,
        "kind": "",
        "message": message,
        "valid_ids": valid,
        "alone": alone,
        "call": call,
        "snippet": snippet,
    }


def test_the_committed_page_is_that_of_the_committed_verdicts(generator: Any) -> None:
    text = (ROOT / "docs/verify.md").read_text()
    assert generator.page(text) == text


def test_what_is_broken_with_valid_ids_is_told_apart(
    generator: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verdict = {
        "num_calls": 7,
        "num_cases": 9,
        "tessera": "1.0",
        "seed": 3,
        "seconds": 60.0,
        "findings": [
            finding("expert_tail", valid=True),
            finding("no_crash", valid=False, alone=False),
        ],
    }
    one = {
        "name": "an engine's",
        "version": "2.0",
        "device": "cpu",
        "machine": "a processor",
        "date": "2026-01-02",
        "verdict": verdict,
    }
    (tmp_path / "one.json").write_text(json.dumps(one))
    monkeypatch.setattr(generator, "VERDICTS", tmp_path)
    text = generator.page(MARKED)
    row = "| an engine's | 2.0 | cpu | 7 of 9 | `expert_tail` | `no_crash` | not recorded |\n"
    assert row in text
    assert (
        "- `expert_tail`: expert_ids[1]: expected -1, found 0. Smallest call: 6 int64 ids "
        "`[[7, 8]]`, 4 experts, blocks of 5, with expert_map.\n"
    ) in text
    assert "found 0, which an earlier call of the same process has caused. Smallest" in text
    assert "- a processor; Tessera 1.0, seed 3, 60 s each; 2026-01-02\n" in text
    assert "| `sglang-op` | `(topk_ids, num_buckets, block_size, " in text
    assert "| `no_hang` | A call comes to an end. |" in text


def test_what_programs_show(generator: Any) -> None:
    shown = finding("padding", valid=True, alone=False) | {"shown": True, "num_program_calls": 2}
    other = finding("no_crash", valid=True) | {"shown": False, "num_program_calls": 1}
    untried = other | {"shown": None}
    assert generator._shown([shown, other, untried]) == "1 of 3"
    assert generator._shown([]) == "–"
    lines = generator._details({"verdict": {"findings": [shown, other]}})
    assert "found 0. Smallest program: 2 calls, the last one of 6 int64 ids" in lines[0]
    assert "which its program does not show in a new process. Smallest call: 6" in lines[1]


@pytest.mark.parametrize("name", ["numpy_composition", "textbook", "thread_local_counts"])
def test_peers_that_are_judged_can_be_called(name: str, programs: Callable[[str], Any]) -> None:
    topk_ids = np.array([[2, 0], [1, 2]], np.int32)
    sizes = {"block_size": 2, "num_experts": 3}
    result = getattr(programs("judged_peers"), name)(topk_ids, **sizes)
    assert contract_violations(topk_ids, result, **sizes) == []
