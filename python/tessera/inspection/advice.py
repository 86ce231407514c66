"""Which block size to use for a batch size: the cost model, and what it recommends."""

from __future__ import annotations

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


def advice(layers: list[Layer]) -> list[Advice]:
    """The cheapest block size for each batch size, over all layers of a model."""
    return [
        _advice(batch_size, [layer["batches"][index]["blocks"] for layer in layers])
        for index, batch_size in enumerate(BATCH_SIZES)
    ]


def _advice(batch_size: int, layers: list[list[Blocks]]) -> Advice:
    costs, padding_shares = [], []
    for index, block_size in enumerate(BLOCK_SIZES):
        of_layers = [blocks[index] for blocks in layers]
        num_blocks = sum(blocks["num_blocks"] for blocks in of_layers)
        padding = sum(blocks["num_blocks"] * blocks["padding_share"] for blocks in of_layers)
        costs.append(num_blocks * block_cost(block_size))
        padding_shares.append(padding / num_blocks if num_blocks else 0.0)
    cheapest = min(costs)
    near = [index for index, cost in enumerate(costs) if cost <= _TIE * cheapest]
    best = min(near, key=lambda index: padding_shares[index])
    return {
        "batch_size": batch_size,
        "block_size": BLOCK_SIZES[best],
        "padding_share": padding_shares[best],
        "costs": [
            {"block_size": block_size, "relative_cost": cost / cheapest if cheapest else 1.0}
            for block_size, cost in zip(BLOCK_SIZES, costs, strict=True)
        ],
    }
