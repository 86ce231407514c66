"""Advice on the block size for a batch size: the cost model and its recommendation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tessera.tools.inspection.document import (
    BATCH_SIZES,
    BLOCK_SIZES,
    Advice,
    Blocks,
    CostModel,
    Layer,
)

# The unit is the time of one row of a large block, in the product of a block's rows with its
# expert's weights.
_EXPERT_ROWS = 128.0
_LEAST_BLOCK_ROWS = 92.0
# Smaller block sizes are shown but not advised: the measured kernel has no smaller tiles.
_SMALLEST_ADVISED = 16
# Costs closer than this do not justify more padding.
_TIE = 1.01

COST_MODEL: CostModel = {
    "formula": "active_experts * expert_rows + num_blocks(B) * max(B, least_block_rows)",
    "parameters": {"expert_rows": _EXPERT_ROWS, "least_block_rows": _LEAST_BLOCK_ROWS},
    "source": "fitted to times of the experts' product on an H200, over routing logs and skewed "
    "ids (bench/results/h200/expert_product.json): "
    f"loading an active expert's weights takes as long as {_EXPERT_ROWS:g} rows, and no block "
    f"takes less time than {_LEAST_BLOCK_ROWS:g} rows do",
}


def cost(block_size: int, num_blocks: float, active_experts: float) -> float:
    """Cost of a batch, in rows; for several layers if both counts are sums over them."""
    return active_experts * _EXPERT_ROWS + num_blocks * max(block_size, _LEAST_BLOCK_ROWS)


def choose(costs: Mapping[int, float]) -> int:
    """The block size to use, among those that may be advised, from the cost of each."""
    may_be = {size: value for size, value in costs.items() if size >= _SMALLEST_ADVISED}
    cheapest = min(may_be.values())
    return min(size for size, value in may_be.items() if value <= _TIE * cheapest)


def advice(layers: Sequence[Layer]) -> list[Advice]:
    """The cheapest block size for each batch size, over all layers of a model."""
    return [_advice(layers, batch_size) for batch_size in BATCH_SIZES]


def blocks_over(layers: Sequence[Layer], batch_size: int) -> list[Blocks]:
    """For each block size, the blocks of a batch in all layers together, and their padding."""
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


def _advice(layers: Sequence[Layer], batch_size: int) -> Advice:
    blocks = blocks_over(layers, batch_size)
    active = sum(
        batch["active_experts"]
        for layer in layers
        for batch in layer["batches"]
        if batch["batch_size"] == batch_size
    )
    costs = {
        one["block_size"]: cost(one["block_size"], one["num_blocks"], active) for one in blocks
    }
    best, least = choose(costs), min(costs[size] for size in costs if size >= _SMALLEST_ADVISED)
    return {
        "batch_size": batch_size,
        "block_size": best,
        "padding_share": blocks[BLOCK_SIZES.index(best)]["padding_share"],
        "costs": [
            {"block_size": block_size, "relative_cost": value / least}
            for block_size, value in costs.items()
        ],
    }
