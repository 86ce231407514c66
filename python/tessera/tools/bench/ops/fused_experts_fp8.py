"""Weights of `fused_experts` in fp8: random ones, their scales, and what both stand for."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import tessera

# What an option names: which elements of a matrix share a scale.
QUANTIZATIONS = ("none", "block", "row", "tensor")

BLOCK = 128

_GROUPS: dict[str, Any] = {"block": (BLOCK, BLOCK), "row": "row", "tensor": "tensor"}


@dataclass(frozen=True)
class Fp8Matrices:
    """One matrix per expert.

    values: float8_e4m3fn [E, rows, columns].
    scales: float32, as the op takes them: [E, blocks, blocks], [E, rows, 1] or [E].
    unquantized: what the values were rounded from, bfloat16 [E, rows, columns].
    quantization: which of the three kinds of scales these are.
    halves: how many parts of the rows have blocks of their own.
    """

    values: Any
    scales: Any
    unquantized: Any
    quantization: str
    halves: int

    def dequantized(self, expert: Any) -> Any:
        """The values of an expert times their scales, float32 [rows, columns]."""
        values = self.values[expert].float()
        sizes = (*values.shape, self.halves)
        return values * _expanded(self.scales[expert], self.quantization, *sizes)


class Fp8Weights(NamedTuple):
    """The weights of a layer."""

    w13: Fp8Matrices
    w2: Fp8Matrices

    @property
    def scales(self) -> dict[str, Any]:
        """The scales by the names of the op's arguments."""
        return {"w13_scale": self.w13.scales, "w2_scale": self.w2.scales}

    def dequantized(self, expert: Any) -> tuple[Any, Any]:
        """Both matrices of an expert, float32."""
        return self.w13.dequantized(expert), self.w2.dequantized(expert)

    def unquantized(self, expert: Any) -> tuple[Any, Any]:
        """Both matrices of an expert before they were quantised, bfloat16."""
        return self.w13.unquantized[expert], self.w2.unquantized[expert]


@functools.lru_cache(maxsize=1)
def fp8_weights(
    num_experts: int,
    hidden_size: int,
    intermediate_size: int,
    quantization: str,
    device: str,
    seed: int,
) -> Fp8Weights:
    """Weights of a size that keeps the values of a call near 1. They take up to 4.3 GB."""
    import torch

    # Not the numbers that x begins with: a token would resemble a row of w13.
    random = torch.Generator(device).manual_seed(seed + 1)

    def matrices(rows: int, columns: int, halves: int) -> Fp8Matrices:
        sizes = (num_experts, rows, columns)
        empty = torch.empty(sizes, dtype=torch.bfloat16, device=device)
        normal = empty.normal_(std=columns**-0.5, generator=random)
        return _quantized(normal, quantization, halves, random)

    # Gate and up rows have blocks of their own, the rows of w2 do not.
    return Fp8Weights(
        matrices(2 * intermediate_size, hidden_size, 2),
        matrices(hidden_size, intermediate_size, 1),
    )


def _quantized(matrices: Any, quantization: str, halves: int, random: Any) -> Fp8Matrices:
    """The matrices [E, rows, columns] in fp8; they themselves are multiplied by random factors.

    Scales of normal numbers are nearly the same. The factors, one for each scale, tell an
    implementation that takes the wrong scale.
    """
    import torch

    num_experts, rows, columns = matrices.shape
    device = matrices.device
    halves = halves if quantization == "block" else 1
    of_expert = {
        "block": (halves * -(-(rows // halves) // BLOCK), -(-columns // BLOCK)),
        "row": (rows, 1),
        "tensor": (1,),
    }[quantization]
    scales = torch.empty((num_experts, *of_expert), device=device)
    values = torch.empty_like(matrices, dtype=torch.float8_e4m3fn)
    for matrix, value, scale in zip(matrices, values, scales, strict=True):
        factors = torch.rand(of_expert, generator=random, device=device) + 0.5
        matrix *= _expanded(factors, quantization, rows, columns, halves)
        parts = (one.chunk(halves) for one in (matrix, value, scale))
        for source, *out in zip(*parts, strict=True):
            tessera.quantize_fp8(source, group=_GROUPS[quantization], out=tuple(out))
    if quantization == "tensor":
        scales = scales.view(num_experts)
    return Fp8Matrices(values, scales, matrices, quantization, halves)


def _expanded(scales: Any, quantization: str, rows: int, columns: int, halves: int) -> Any:
    """The scale of each element of a matrix [rows, columns], or what broadcasts to that."""
    if quantization != "block":
        return scales
    across = scales.shape[1]
    # Reads nothing back to the host, so that a CUDA graph can capture it.
    each = scales.view(halves, -1, 1, across, 1).expand(-1, -1, BLOCK, -1, BLOCK)
    wide = each.reshape(halves, -1, BLOCK * across)
    return wide[:, : rows // halves, :columns].reshape(rows, columns)
