"""The annotations hold under mypy --strict, and NumPy arrays come back as NumPy arrays."""

from __future__ import annotations

from pathlib import Path

import pytest

import tessera

SNIPPET = """
from typing import Any

import numpy as np
import numpy.typing as npt
import tessera

topk_ids = np.zeros((4, 2), np.int64)
found = tessera.align_block_size(topk_ids, block_size=4, num_experts=8)
experts: npt.NDArray[np.int32] = found.expert_ids
again = tessera.align_block_size(topk_ids, block_size=4, num_experts=8, out=found)
broken: list[tessera.Violation] = tessera.contract_violations(
    topk_ids, again, block_size=4, num_experts=8
)


counts = np.zeros(4, np.int32)
rows = tessera.batched_align_block_size(counts, max_tokens_per_batch=8, block_size=4)
batches: npt.NDArray[np.int32] = rows.expert_ids
broken = tessera.batched_contract_violations(counts, rows, max_tokens_per_batch=8, block_size=4)

mapping = np.zeros(4, np.int32)
adapters = tessera.lora_align_block_size(
    topk_ids, mapping, block_size=4, num_experts=8, max_loras=2
)
totals: npt.NDArray[np.int32] = adapters.num_tokens_post_pad
broken = tessera.lora_contract_violations(
    topk_ids, mapping, adapters, block_size=4, num_experts=8, max_loras=2
)

chosen = tessera.select_experts(np.zeros((4, 8), np.float16), top_k=2)
weights: npt.NDArray[np.float32] = chosen.topk_weights
topk_ids = chosen.topk_ids
chosen = tessera.select_experts(np.zeros((4, 8), np.float16), top_k=2, out=chosen)
broken = tessera.select_experts_contract_violations(np.zeros((4, 8)), chosen, top_k=2)
aligned = tessera.select_and_align(np.zeros((4, 8), np.float16), top_k=2, block_size=4)
blocks_of_chosen: npt.NDArray[np.int32] = aligned.expert_ids
broken = tessera.select_and_align_contract_violations(
    np.zeros((4, 8)), aligned, top_k=2, block_size=4
)
hidden_states = np.zeros((4, 8), np.float32)
permuted = tessera.moe_permute(hidden_states, topk_ids, num_experts=8)
inverse: npt.NDArray[np.int32] = permuted.inverse
broken = tessera.moe_permute_contract_violations(hidden_states, topk_ids, permuted, num_experts=8)


class Other:
    pass


others: tessera.AlignedBlocks[Other] = tessera.align_block_size(
    Other(), block_size=4, num_experts=8
)
selected: tessera.SelectedExperts[Other] = tessera.select_experts(Other(), top_k=2)


def anything(ids: Any, options: dict[str, Any]) -> None:
    result = tessera.align_block_size(ids, **options)
    tessera.contract_violations(ids, result, **options)


# Wrong calls: under --strict, a mistake that mypy does not see is an unused `ignore`.
tessera.align_block_size(topk_ids, block_size="4", num_experts=8)  # type: ignore[call-overload]
text: str = found.expert_ids  # type: ignore[assignment]
"""


def test_strict(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    api = pytest.importorskip("mypy.api", reason="mypy is not installed")
    assert Path(tessera.__file__).with_name("py.typed").exists()
    assert pytestconfig.cache is not None
    cache = pytestconfig.cache.mkdir("mypy")  # NumPy's annotations take long to read
    file = tmp_path / "snippet.py"
    file.write_text(SNIPPET)
    out, err, _ = api.run(["--strict", f"--cache-dir={cache}", "--config-file=", str(file)])
    assert (out, err) == ("Success: no issues found in 1 source file\n", "")
