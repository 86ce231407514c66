"""Which block size to use for a batch size: the cost model, and what it recommends."""

from __future__ import annotations

from collections.abc import Sequence

from tessera.inspection.document import BATCH_SIZES, BLOCK_SIZES, Advice, Blocks, CostModel, Layer

# Rows that a block's work on its expert's weights is worth.
_WEIGHT_ROWS = 64.0
# Costs closer than this are no reason to pad more.
_TIE = 1.01

COST_MODEL: CostModel = {
    "formula": "cost(B) = blocks(B) * (B + r)",
    "parameters": {"r": _WEIGHT_ROWS},
    "source": "provisional",
}


def block_cost(block_size: int) -> float:
    """Cost of one block, in rows of a matrix product."""
    return block_size + _WEIGHT_ROWS


def advice(layers: Sequence[Layer]) -> list[Advice]:
    """The cheapest block size for each batch size, over all layers of a model."""
    return [_advice(batch_size, blocks_over(layers, batch_size)) for batch_size in BATCH_SIZES]


def blocks_over(layers: Sequence[Layer], batch_size: int) -> list[Blocks]:
    """For each block size the blocks of a batch in all layers together, and their padding."""
    of_layers = [
        batch["blocks"]
        for layer in layers
        for batch in layer["batches"]
        if batch["batch_size"] == batch_size
    ]
    joined: list[Blocks] = []
    for index, block_size in enumerate(BLOCK_SIZES):
        counts = [blocks[index]["num_blocks"] for blocks in of_layers]
        padding = sum(
            count * blocks[index]["padding_share"]
            for count, blocks in zip(counts, of_layers, strict=True)
        )
        total = sum(counts)
        joined.append(
            {
                "block_size": block_size,
                "num_blocks": total,
                "padding_share": padding / total if total else 0.0,
            }
        )
    return joined


def _advice(batch_size: int, blocks: list[Blocks]) -> Advice:
    costs = [one["num_blocks"] * block_cost(one["block_size"]) for one in blocks]
    cheapest = min(costs)
    near = [one for one, cost in zip(blocks, costs, strict=True) if cost <= _TIE * cheapest]
    best = min(near, key=lambda one: one["padding_share"])
    return {
        "batch_size": batch_size,
        "block_size": best["block_size"],
        "padding_share": best["padding_share"],
        "costs": [
            {"block_size": block_size, "relative_cost": cost / cheapest if cheapest else 1.0}
            for block_size, cost in zip(BLOCK_SIZES, costs, strict=True)
        ],
    }
