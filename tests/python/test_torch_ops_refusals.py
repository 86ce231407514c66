"""`torch.ops.tessera.*`: arguments that the ops refuse as the functions do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch", reason="torch is not installed")

import tessera.torch_ops  # noqa: E402, F401

ops = torch.ops.tessera
LOGITS = torch.linspace(-1, 1, 32).view(4, 8)
IDS = torch.zeros(4, 2, dtype=torch.int32)
ROWS = torch.ones(4, 8)


def meta(*shape: int, dtype: Any = torch.float32) -> Any:
    return torch.zeros(shape, dtype=dtype, device="meta")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: ops.select_experts(LOGITS, 2, correction_bias=meta(8)),
            "select_experts: correction_bias: expected a tensor on cpu, as router_logits, got one "
            "on meta",
        ),
        (
            lambda: ops.select_experts.out(
                LOGITS, 2, correction_bias=meta(8), topk_weights=torch.ones(4, 2), topk_ids=IDS
            ),
            "select_experts: correction_bias: expected a tensor on cpu, as router_logits, got one "
            "on meta",
        ),
        (
            lambda: ops.moe_unpermute(ROWS, None, meta(2, 2, dtype=torch.int32)),
            "moe_unpermute: inverse: expected a tensor on cpu, as rows, got one on meta",
        ),
        (
            lambda: ops.select_and_align(LOGITS, 2, 0),
            "select_and_align: block_size: expected an integer in [1, 2147483647], got 0",
        ),
        (
            lambda: ops.select_and_align(LOGITS[0], 2, 4),
            "select_and_align: router_logits.ndim: expected 2, got 1",
        ),
        (
            lambda: ops.select_experts(LOGITS, -1),
            "select_experts: top_k: expected an integer in [1, 2147483647], got -1",
        ),
        (
            lambda: ops.select_experts(LOGITS, 2**31),
            "select_experts: top_k: expected an integer in [1, 2147483647], got 2147483648",
        ),
        (
            lambda: ops.moe_permute(ROWS, IDS, 9, -1),
            "moe_permute: block_size: expected an integer in [1, 2147483647], got -1",
        ),
        (lambda: ops.moe_permute(ROWS[0], IDS, 9), "moe_permute: x.ndim: expected 2, got 1"),
        (lambda: ops.quantize_fp8(ROWS[0], "row"), "quantize_fp8: x.ndim: expected 2, got 1"),
        (
            lambda: ops.quantize_fp8(ROWS, "64"),
            "quantize_fp8: group: expected one of tensor, row, 1x128, 128x128, got 64",
        ),
        (
            lambda: ops.quantize_fp8(meta(4, 8), "64"),
            "quantize_fp8: group: expected 'tensor', 'row', 128 or (128, 128), got '64'",
        ),
        (
            lambda: ops.quantize_fp8(ROWS, "row", meta(4, 1)),
            "quantize_fp8: scale: expected a tensor on cpu, as x, got one on meta",
        ),
        (lambda: ops.moe_sum(ROWS[0]), "moe_sum: input.ndim: expected 3, got 1"),
    ],
)
def test_refusals(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        call()
    assert str(caught.value) == message
