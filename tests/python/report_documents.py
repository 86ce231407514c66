"""Documents of `tessera inspect`, made from random routing, for the tests of its report."""

from __future__ import annotations

from typing import Any

import numpy as np

from tessera.tools.inspection.comparison import compare
from tessera.tools.inspection.drift import drift_figures
from tessera.tools.inspection.ranks import rank_figures

BATCH_SIZES = [2**i for i in range(17)]
BLOCK_SIZES = [8, 16, 32, 64, 128, 256]
WEIGHT_ROWS = 40.0


def layer_of(ids: np.ndarray, num_experts: int, layer: int | None, log: int = 0) -> dict[str, Any]:
    """A layer's part of the document, for `ids` of shape [num_tokens, top_k]."""
    counts = np.bincount(ids.ravel(), minlength=num_experts)
    mean = counts.mean()
    order = np.argsort(-counts, kind="stable")
    middle = len(ids) // 2
    halves = [
        np.bincount(half.ravel(), minlength=num_experts) for half in (ids[:middle], ids[middle:])
    ]
    shares = counts[counts > 0] / counts.sum()
    hot = [
        {
            "expert": int(expert),
            "count": int(counts[expert]),
            "share": float(counts[expert] / counts.sum()),
            "over_mean": float(counts[expert] / mean),
        }
        for expert in order[:10]
        if counts[expert] >= 2 * mean
    ]
    return {
        "log": log,
        "layer": layer,
        "num_tokens": len(ids),
        "num_repeated": 0,
        "repeated": [],
        "num_invalid_ids": 0,
        "num_unrecorded": 0,
        "num_empty": 0,
        "num_unused": 0,
        "expert_counts": counts.tolist(),
        "load": {
            "entropy_bits": float(-(shares * np.log2(shares)).sum()),
            "max_entropy_bits": float(np.log2(num_experts)),
            "gini": _gini(counts),
            "max_over_mean": float(counts.max() / mean),
            "hot_experts": hot,
            "dead_experts": np.flatnonzero(counts == 0).tolist(),
        },
        "load_with_repeated": None,
        "batches": [_batch(ids, num_experts, size) for size in BATCH_SIZES],
        "num_held_out": len(ids) - middle,
        "ranks": rank_figures(*halves),
        "drift": drift_figures(_slices(ids, num_experts), -(-len(ids) // 10), len(ids)),
    }


def _slices(ids: np.ndarray, num_experts: int) -> np.ndarray:
    parts = [ids[i : i + -(-len(ids) // 10)] for i in range(0, len(ids), -(-len(ids) // 10))]
    return np.stack([np.bincount(one.ravel(), minlength=num_experts) for one in parts])


def _gini(counts: np.ndarray) -> float:
    ordered = np.sort(counts)
    places = np.arange(1, len(counts) + 1)
    return float((2 * places - len(counts) - 1) @ ordered / (len(counts) * counts.sum()))


def _batch(ids: np.ndarray, num_experts: int, size: int) -> dict[str, Any]:
    number = len(ids) // size
    if number:
        windows = ids[: number * size].reshape(number, -1)
        counts = np.stack([np.bincount(one, minlength=num_experts) for one in windows])
    else:
        counts = np.bincount(ids.ravel(), minlength=num_experts)[None] * size // len(ids)
    blocks = []
    for block_size in BLOCK_SIZES:
        num_blocks = float(np.ceil(counts / block_size).sum(axis=1).mean())
        pairs = float(counts.sum(axis=1).mean())
        padding = 1 - pairs / (num_blocks * block_size)
        blocks.append(
            {"block_size": block_size, "num_blocks": num_blocks, "padding_share": padding}
        )
    return {
        "batch_size": size,
        "num_batches": number or 1,
        "extrapolated": not number,
        "active_experts": float((counts > 0).sum(axis=1).mean()),
        "blocks": blocks,
    }


def _advice(layers: list[dict[str, Any]], batch: int) -> dict[str, Any]:
    blocks = [layer["batches"][batch]["blocks"] for layer in layers]
    costs, padding = [], []
    for i, block_size in enumerate(BLOCK_SIZES):
        number = sum(one[i]["num_blocks"] for one in blocks)
        costs.append(number * (block_size + WEIGHT_ROWS))
        padding.append(
            sum(one[i]["num_blocks"] * one[i]["padding_share"] for one in blocks) / number
        )
    best = int(np.argmin(costs))
    cheapest = costs[best]
    return {
        "batch_size": BATCH_SIZES[batch],
        "block_size": BLOCK_SIZES[best],
        "padding_share": padding[best],
        "costs": [
            {"block_size": size, "relative_cost": cost / cheapest}
            for size, cost in zip(BLOCK_SIZES, costs, strict=True)
        ],
    }


def model_of(name: str, layers: list[dict[str, Any]], top_k: int) -> dict[str, Any]:
    """A model's part of the document."""
    return {
        "name": name,
        "num_experts": len(layers[0]["expert_counts"]),
        "top_k": top_k,
        "least_top_k": top_k,
        "layers": layers,
        "advice": [_advice(layers, batch) for batch in range(len(BATCH_SIZES))],
    }


def log_of(file: str, model_id: str | None, num_experts: int) -> dict[str, Any]:
    """A log's part of the document."""
    return {
        "file": file,
        "model_id": model_id,
        "num_experts": num_experts,
        "num_experts_source": "log",
        "num_lines": 1001,
        "num_skipped": 0,
        "skipped": [],
        "form": "",
        "notes": [],
    }


def document_of(models: list[dict[str, Any]], logs: list[dict[str, Any]]) -> Any:
    """A whole document."""
    return {
        "version": "0.1.0",
        "logs": logs,
        "models": models,
        "comparison": None,
        "limits": ["The windows are of consecutive tokens, as the log holds them."],
        "cost_model": {
            "formula": "num_blocks * (block_size + weight_rows)",
            "parameters": {"weight_rows": WEIGHT_ROWS},
            "source": "made up for this test",
        },
    }


def skewed_ids(
    num_tokens: int, num_experts: int, top_k: int, seed: int, skew: float = 0.6
) -> np.ndarray:
    """Ids of shape [num_tokens, top_k], distinct in a row; popularity falls as a power."""
    rng = np.random.default_rng(seed)
    weights = rng.permutation((1.0 + np.arange(num_experts)) ** -skew)
    # Gumbel's trick: the top_k largest are a draw without replacement.
    noise = -np.log(rng.exponential(size=(num_tokens, num_experts)))
    return np.argsort(-(np.log(weights) + noise), axis=1)[:, :top_k]


def one_layer(
    model_id: str = "maker/model-1", file: str = "logs/routing.jsonl", num_tokens: int = 1000
) -> Any:
    """One layer of 64 experts, two of them dead, and 128 repeated rows."""
    ids = skewed_ids(num_tokens, 62, 4, seed=1)
    layer = layer_of(np.where(ids >= 10, ids + 2, ids), 64, 0)  # experts 10 and 11 are dead
    layer["num_repeated"] = 128
    layer["repeated"] = [{"first_token": 0, "num_tokens": 128, "topk_ids": [7, 6, 5, 4]}]
    hot = {"expert": 7, "count": 900, "share": 0.2, "over_mean": 12.8}
    layer["load_with_repeated"] = {"max_over_mean": 12.8, "hot_experts": [hot]}
    return document_of([model_of(model_id, [layer], 4)], [log_of(file, model_id, 64)])


def many_layers(num_layers: int = 60, num_experts: int = 512) -> Any:
    """A large model."""
    layers = [
        layer_of(skewed_ids(200, num_experts, 8, seed=i), num_experts, i) for i in range(num_layers)
    ]
    return document_of(
        [model_of("maker/large", layers, 8)], [log_of("large.jsonl", "maker/large", num_experts)]
    )


def compared() -> Any:
    """Two logs of a model with two layers, side by side."""
    layers = [
        layer_of(skewed_ids(500, 60, 4, seed=2 * log + layer), 60, layer, log=log)
        for log in range(2)
        for layer in range(2)
    ]
    logs = [log_of("old.jsonl", "m", 60), log_of("new.jsonl", "m", 60)]
    models: list[Any] = [model_of("m", layers, 4)]
    document = document_of(models, logs)
    document["comparison"] = compare(logs, ["old.jsonl", "new.jsonl"], models)  # type: ignore[arg-type]
    return document


def two_models() -> Any:
    """A model with two layers from two logs, and one whose layer has no number."""
    first = [
        layer_of(skewed_ids(500, 60, 4, seed=2), 60, 0, log=0),
        layer_of(skewed_ids(500, 60, 4, seed=3, skew=0.2), 60, 12, log=1),
    ]
    second = [layer_of(skewed_ids(300, 8, 2, seed=4, skew=0.1), 8, None, log=2)]
    logs = [
        log_of("a.jsonl", "m/a", 60),
        log_of("b.jsonl", "m/a", 60),
        log_of("logs/WITH_A_LONG_NAME_wwww.npy", None, 8),
    ]
    return document_of(
        [model_of("m/a", first, 4), model_of("WITH_A_LONG_NAME_wwww.npy", second, 2)], logs
    )
