"""What vLLM's own tests are given to compare with in fp8, by its definition in float64."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from experts_calls import random  # noqa: E402
from published import references  # noqa: E402

FP8 = torch.float8_e4m3fn


def is_nearest(values: Any, scales: Any, x: Any) -> bool:
    """Whether the values in fp8 times their scales are `x`, up to half a step of fp8."""
    quotients = x.double() / scales.double()
    # 3 bits after the first one, or steps of 2**-9 below 2**-6.
    half_steps = (quotients.abs() / 16).clamp(min=2.0**-10)
    return bool(((values.double() - quotients).abs() <= half_steps * 1.0001).all())


def test_tokens() -> None:
    x = random(5, 64)
    x[1] = 0
    values, scales = references.quantised_tokens(x, use_per_token_if_dynamic=True)
    assert (values.dtype, scales.dtype, scales.shape) == (FP8, torch.float32, (5, 1))
    assert is_nearest(values, scales, x)
    assert values.float().abs().amax(-1).tolist() == [448, 0, 448, 448, 448]


def test_groups() -> None:
    x = random(3, 8) * torch.tensor([1, 100]).repeat_interleave(4)
    x[1] = 0
    values, scales = references.quantised_groups(x, 4)
    assert (values.dtype, scales.dtype, scales.shape) == (FP8, torch.float32, (3, 2))
    assert is_nearest(values, scales.repeat_interleave(4, -1), x)
    largest = values.float().abs().unflatten(-1, (2, 4)).amax(-1)
    assert largest.tolist() == [[448, 448], [0, 0], [448, 448]]


def test_weights() -> None:
    torch.manual_seed(0)
    made = references.make_test_weights(
        2, 4, 6, torch.bfloat16, FP8, per_act_token_quant=False, block_shape=[2, 2]
    )
    for (exact, values, scales), rows, columns in ((made[:3], 8, 6), (made[3:], 6, 4)):
        assert (exact.dtype, exact.shape) == (torch.bfloat16, (2, rows, columns))
        assert (values.dtype, values.shape) == (FP8, exact.shape)
        assert (scales.dtype, scales.shape) == (torch.float32, (2, rows // 2, columns // 2))
        wide = scales.repeat_interleave(2, 1).repeat_interleave(2, 2)
        assert is_nearest(values, wide, exact)
        largest = values.float().abs().unflatten(-1, (-1, 2)).unflatten(1, (-1, 2)).amax((2, 4))
        assert (largest == 448).all()


def test_activation_in_float32() -> None:
    x = random(3, 8)
    expected = references.silu_and_mul(x.double())
    found = references.silu_and_mul_in_float32(x)
    assert (x.dtype, found.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-7)


def test_product() -> None:
    a, a_scales = references.quantised_groups(random(3, 8), 4)
    b = random(6, 8).to(FP8)
    b_scales = random(3, 2, dtype=torch.float32, seed=1)
    expected = torch.zeros(3, 6, dtype=torch.float64)
    for token in range(3):
        for row in range(6):
            for k in range(8):
                scale = a_scales[token, k // 4].double() * b_scales[row // 2, k // 4].double()
                expected[token, row] += a[token, k].double() * b[row, k].double() * scale
    found = references.product_of_blocks(
        a, b, a_scales, b_scales, [2, 4], output_dtype=torch.float32
    )
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_product_in_float32() -> None:
    a, a_scales = references.quantised_groups(random(3, 8), 4)
    b = random(6, 8).to(FP8)
    b_scales = random(3, 2, dtype=torch.float32, seed=1)
    # The first product, whose `a` the test widens, and the second.
    for values, dtype in ((a.float(), torch.float32), (a, torch.bfloat16)):
        found = references.product_of_blocks_in_float32(
            values, b, a_scales, b_scales, [2, 4], output_dtype=torch.bfloat16
        )
        expected = references.product_of_blocks(
            values, b, a_scales, b_scales, [2, 4], output_dtype=dtype
        )
        assert found.dtype == dtype
        assert torch.equal(found, expected)
