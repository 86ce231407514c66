"""NumPy arrays of ml_dtypes' types that an argument never has: refused as other types are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tessera

ml_dtypes: Any = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")

TYPES = ["float8_e5m2", "float8_e4m3", "float8_e4m3b11fnuz", "float8_e4m3fnuz", "int4"]
FLOATS = "float16, bfloat16 or float32"
FLOATS_OR_FP8 = "float16, bfloat16, float32 or float8_e4m3fn"
ONES = np.ones((2, 4), np.float32)
IDS = np.zeros((2, 1), np.int32)
WEIGHTS = (np.ones((1, 6, 4), np.float32), np.ones((1, 4, 3), np.float32))
PER_TOKEN = np.ones((2, 1), np.float32)
ALIGN: dict[str, Any] = {"block_size": 4, "num_experts": 2}
# The call of an array, and what is said of it.
CALLS: list[tuple[Any, str]] = [
    (
        lambda a: tessera.align_block_size(a, **ALIGN),
        "align_block_size: topk_ids.dtype: expected an integer type",
    ),
    (
        lambda a: tessera.align_block_size(IDS, **ALIGN, expert_map=a, validate="now"),
        "align_block_size: expert_map.dtype: expected int32",
    ),
    (
        lambda a: tessera.contract_violations(a, (IDS, IDS, IDS), **ALIGN),
        "align_block_size: topk_ids.dtype: expected an integer type",
    ),
    (
        lambda a: tessera.select_experts(a, top_k=1),
        f"select_experts: router_logits.dtype: expected {FLOATS}",
    ),
    (
        lambda a: tessera.quantize_fp8(a, group="row"),
        f"quantize_fp8: x.dtype: expected {FLOATS}",
    ),
    (
        lambda a: tessera.quantize_fp8(ONES, group="row", out=(a, PER_TOKEN)),
        "quantize_fp8: values.dtype: expected float8_e4m3fn",
    ),
    (
        lambda a: tessera.moe_permute(a, IDS, num_experts=1),
        f"moe_permute: x.dtype: expected {FLOATS_OR_FP8}",
    ),
    (
        lambda a: tessera.fused_experts(a, *WEIGHTS, PER_TOKEN, IDS),
        f"fused_experts: x.dtype: expected {FLOATS_OR_FP8}",
    ),
    (
        lambda a: tessera.moe_sum(ONES[:, None], out=a),
        f"moe_sum: out.dtype: expected {FLOATS}",
    ),
]


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize(("call", "message"), CALLS)
def test_other_types_are_refused(name: str, call: Any, message: str) -> None:
    with pytest.raises(TypeError) as caught:
        call(ONES.astype(getattr(ml_dtypes, name)))
    assert str(caught.value) == f"{message}, got {name}"


def test_float8_e4m3fn_is_refused_where_no_bits_of_it_are_taken() -> None:
    bits = ONES.astype(ml_dtypes.float8_e4m3fn)
    message = f"^moe_sum: input.dtype: expected {FLOATS}, got float8_e4m3fn$"
    with pytest.raises(TypeError, match=message):
        tessera.moe_sum(bits[:, None])


def test_bfloat16_is_refused_with_the_reason_of_numpy() -> None:
    message = "^moe_sum: input: expected an array that DLPack can carry, got ndarray of dtype bfloa"
    with pytest.raises(TypeError, match=message):
        tessera.moe_sum(ONES[:, None].astype(ml_dtypes.bfloat16))
