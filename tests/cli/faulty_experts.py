"""Implementations of `fused_experts` and `moe_sum`, most with a planted fault each."""

from __future__ import annotations

import itertools
import os
import time
from typing import Any

import numpy as np

import tessera

_calls = itertools.count()


def plain(x: Any, w13: Any, w2: Any, topk_weights: Any, topk_ids: Any) -> Any:
    """Right, with NumPy, for silu alone; overflow is part of some cases."""
    total = np.zeros(x.shape, np.float32)
    for t, s in np.ndindex(topk_ids.shape):
        if not 0 <= (expert := topk_ids[t, s]) < len(w13):
            continue
        with np.errstate(all="ignore"):
            g = w13[expert].astype(np.float32) @ x[t].astype(np.float32)
            gate, up = np.split(g, 2)
            a = (gate / (1 + np.exp(-gate)) * up).astype(x.dtype)
            y = w2[expert].astype(np.float32) @ a.astype(np.float32)
            total[t] += np.float32(topk_weights[t, s]) * y
    with np.errstate(all="ignore"):
        return total.astype(x.dtype)


def ids_from_the_end(
    x: Any, w13: Any, w2: Any, topk_weights: Any, topk_ids: Any, **options: Any
) -> Any:
    """As programs whose indices count from the end if they are negative."""
    ids = np.where(topk_ids < 0, len(w13) - 1, topk_ids)
    return tessera.fused_experts(x, w13, w2, topk_weights, ids, **options)


def no_biases(*arrays: Any, **options: Any) -> Any:
    for name in ("w13_bias", "w2_bias"):
        options.pop(name, None)
    return tessera.fused_experts(*arrays, **options)


def aborts(*arrays: Any, **options: Any) -> Any:
    if arrays[0].shape[0] == 0:
        os.abort()
    return tessera.fused_experts(*arrays, **options)


def hangs(*arrays: Any, **options: Any) -> Any:
    if arrays[4].shape[1] == 3:
        time.sleep(1000)
    return tessera.fused_experts(*arrays, **options)


def raises(*arrays: Any, **options: Any) -> Any:
    if options.get("activation") == "gelu_no_mul":
        raise KeyError(options["activation"])
    return tessera.fused_experts(*arrays, **options)


def writes_to_its_input(*arrays: Any, **options: Any) -> Any:
    found = tessera.fused_experts(*arrays, **options)
    arrays[3][...] = 0
    return found


def fills_gaps(*arrays: Any, out: Any = None, **options: Any) -> Any:
    found = tessera.fused_experts(*arrays, **options)
    if out is None:
        return found
    out[...] = found
    if out.shape[0] > 1:
        np.lib.stride_tricks.as_strided(out, (1, out.strides[0] // out.itemsize))[...] = 0
        out[...] = found
    return out


def not_repeatable(*arrays: Any, **options: Any) -> Any:
    found = tessera.fused_experts(*arrays, **options)
    return np.nextafter(found, np.float16(0)) if next(_calls) % 2 else found


def of_lists(*arrays: Any, **options: Any) -> Any:
    return tessera.fused_experts(*arrays, **options).tolist()


def float64(*arrays: Any, **options: Any) -> Any:
    return tessera.fused_experts(*arrays, **options).astype(np.float64)


def other_parameters(hidden: Any, weights: Any) -> Any:
    return hidden @ weights


def sum_in_pairs(input: Any, topk_weights: Any = None) -> Any:
    weights = np.ones(input.shape[:2], np.float32) if topk_weights is None else topk_weights
    with np.errstate(all="ignore"):
        terms = input.astype(np.float32) * weights[..., None]
        return (terms[:, ::2].sum(1) + terms[:, 1::2].sum(1)).astype(input.dtype)


def numpy_sum(input: Any, topk_weights: Any = None) -> Any:
    """Of tensors it raises for bfloat16, and for the rest returns an array of NumPy."""
    weights = 1 if topk_weights is None else np.asarray(topk_weights)[..., None]
    return np.sum(np.asarray(input).astype(np.float32) * weights, axis=1)
