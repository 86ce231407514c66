"""Calls of `fused_experts`, and a model of the op in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

ACTIVATIONS = [
    "silu",
    "gelu",
    "gelu_tanh",
    "swigluoai",
    "swigluoai_uninterleave",
    "silu_no_mul",
    "gelu_no_mul",
    "gelu_tanh_no_mul",
    "relu2_no_mul",
]
ARRAYS = ("x", "w13", "w2", "topk_weights", "topk_ids", "expert_map", "w13_bias", "w2_bias")


def call(
    seed: int = 0,
    *,
    activation: str = "silu",
    tokens: int = 5,
    top_k: int = 2,
    hidden: int = 6,
    experts: int = 4,
    intermediate: int = 3,
    dtype: str = "float32",
    biases: bool = False,
) -> dict[str, Any]:
    """Arguments of a call, with ids that count."""
    random = np.random.default_rng(seed)
    rows = intermediate * (1 if activation.endswith("no_mul") else 2)

    def floats(*shape: int) -> Array:
        return random.standard_normal(shape).astype(dtype)

    arguments: dict[str, Any] = {
        "x": floats(tokens, hidden),
        "w13": floats(experts, rows, hidden),
        "w2": floats(experts, hidden, intermediate),
        "topk_weights": random.random((tokens, top_k), np.float32),
        "topk_ids": random.integers(0, experts, (tokens, top_k), np.int32),
        "activation": activation,
    }
    if biases:
        arguments |= {"w13_bias": floats(experts, rows), "w2_bias": floats(experts, hidden)}
    return arguments


def _phi(z: Array) -> Array:
    return (1 + np.vectorize(math.erf, otypes=[float])(z / math.sqrt(2))) / 2


def _activated(name: str, g: Array, alpha: float, beta: float, limit: float) -> Array:
    if name == "swigluoai":
        gate, up = g[0::2], g[1::2]
    elif name.endswith("no_mul"):
        gate, up = g, np.ones_like(g)
    else:
        gate, up = np.split(g, 2)
    if name.startswith("swigluoai"):
        z = np.minimum(gate, limit)
        return z / (1 + np.exp(-alpha * z)) * (np.clip(up, -limit, limit) + beta)
    functions = {
        "silu": lambda z: z / (1 + np.exp(-z)),
        "gelu": lambda z: z * _phi(z),
        "gelu_tanh": lambda z: (
            z / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))
        ),
        "relu2": lambda z: np.maximum(z, 0) ** 2,
    }
    result: Array = functions[name.removesuffix("_no_mul")](gate) * up
    return result


def model(
    x: Array,
    w13: Array,
    w2: Array,
    topk_weights: Array,
    topk_ids: Array,
    *,
    activation: str = "silu",
    expert_map: Array | None = None,
    w13_bias: Array | None = None,
    w2_bias: Array | None = None,
    swiglu_alpha: float = 1.702,
    swiglu_beta: float = 1.0,
    swiglu_limit: float = 7.0,
    apply_router_weight_on_input: bool = False,
) -> tuple[Array, Array]:
    """The output without any rounding, and the sum of the absolute values of its terms."""
    experts, hidden, _ = w2.shape
    values = np.zeros((len(x), hidden))
    sizes = np.zeros_like(values)
    for t, s in np.ndindex(topk_ids.shape):
        expert = int(topk_ids[t, s])
        if expert_map is not None:
            expert = int(expert_map[expert]) if 0 <= expert < len(expert_map) else -1
        if not 0 <= expert < experts:
            continue
        weight = float(topk_weights[t, s])
        before, after = (weight, 1.0) if apply_router_weight_on_input else (1.0, weight)
        g = w13[expert].astype(float) @ (before * x[t].astype(float))
        g += 0 if w13_bias is None else w13_bias[expert].astype(float)
        a = _activated(activation, g, swiglu_alpha, swiglu_beta, swiglu_limit)
        weights, bias = w2[expert].astype(float), np.zeros(hidden)
        if w2_bias is not None:
            bias = w2_bias[expert].astype(float)
        values[t] += after * (weights @ a + bias)
        sizes[t] += abs(after) * (abs(weights) @ abs(a) + abs(bias))
    return values, sizes


# Per unit of the terms' size: the roundings of the intermediate, of the rows (on a GPU) and of the
# output, each at most 2^-11 or 2^-8.
_ROUNDING = {"float32": 1e-5, "float16": 3 * 2.0**-11, "bfloat16": 3 * 2.0**-8}


def assert_near_model(found: Any, dtype: str, arguments: dict[str, Any]) -> None:
    """Compare the values of a result with the model's."""
    values, sizes = model(**arguments)
    found = np.asarray(found, float)
    assert found.shape == values.shape
    assert np.all(abs(found - values) <= _ROUNDING[dtype] * (sizes + 0.1))


def rows_apart(array: Array, gap: int = 3) -> Array:
    """The same values, with other memory between the rows: NaN, or an id that counts."""
    filler = np.nan if array.dtype.kind == "f" else 0
    wide = np.full((*array.shape[:-1], array.shape[-1] + gap), filler, array.dtype)
    wide[..., : array.shape[-1]] = array
    return wide[..., : array.shape[-1]]


def transposed(array: Array) -> Array:
    """The same values, contiguous along the axis before the last."""
    return array.swapaxes(-1, -2).copy().swapaxes(-1, -2)
