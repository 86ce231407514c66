"""The part of the performance page about the experts' product: what block sizes are worth."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from page_text import origin, read_results, table

from tessera.tools.bench.report import figure
from tessera.tools.inspection.advice import choose, cost

RESULT = "h200/expert_product.json"


@dataclass(frozen=True)
class Batch:
    """The measurements of one layer at one number of tokens: a row for each block size."""

    layer: str
    num_tokens: int
    is_held_out: bool
    rows: dict[int, dict[str, Any]]

    def over_best(self, block_size: int) -> float:
        """The time with this block size over the time with the fastest one."""
        return self.rows[block_size]["us"] / min(row["us"] for row in self.rows.values())

    def advised(self) -> int:
        """What the cost model of `tessera inspect` picks."""
        return choose(
            {
                block_size: cost(block_size, row["num_blocks"], row["active_experts"])
                for block_size, row in self.rows.items()
            }
        )


def _vllm_default(batch: Batch) -> int:
    # `get_default_config` of vLLM 0.24.0 for bfloat16, in
    # vllm/model_executor/layers/fused_moe/fused_moe.py.
    sizes = ((32, 16), (96, 32), (512, 64))
    return next((size for most, size in sizes if batch.num_tokens <= most), 128)


CHOICES: dict[str, Callable[[Batch], int]] = {
    "advice of `tessera inspect`": Batch.advised,
    "vLLM 0.24.0's default for bfloat16": _vllm_default,
    "always 16": lambda batch: 16,
    "always 64": lambda batch: 64,
    "always 128": lambda batch: 128,
}


def batches(result: dict[str, Any]) -> list[Batch]:
    """The measured batches, in the order of the file."""
    found: dict[tuple[str, int], Batch] = {}
    for row in result["rows"]:
        key = row["layer"], row["num_tokens"]
        batch = found.setdefault(key, Batch(*key, row["is_held_out"], {}))
        batch.rows[row["block_size"]] = row
    return list(found.values())


def losses(some: list[Batch], choose: Callable[[Batch], int]) -> list[float]:
    """By how much a choice is slower than the fastest block size, for each batch."""
    return [batch.over_best(choose(batch)) - 1 for batch in some]


def _loss_cells(some: list[Batch], choose: Callable[[Batch], int]) -> list[str]:
    found = losses(some, choose)
    return [f"{100 * statistics.mean(found):.1f}%", f"{100 * max(found):.0f}%"]


def _layer_tables(some: list[Batch]) -> Iterator[str]:
    for layer in dict.fromkeys(batch.layer for batch in some):
        of_layer = [batch for batch in some if batch.layer == layer]
        first = next(iter(of_layer[0].rows.values()))
        yield (
            f"### {layer}\n\n{first['num_experts']} experts, top {first['top_k']}, "
            f"{first['hidden']} by {first['columns']}; times relative to the fastest block size.\n"
        )
        sizes = list(of_layer[0].rows)
        rows = []
        for batch in of_layer:
            best = min(row["us"] for row in batch.rows.values())
            shares = [f"{batch.over_best(size):.2f}" for size in sizes]
            advised = batch.advised()
            rows.append(
                [
                    str(batch.num_tokens),
                    figure(best),
                    *shares,
                    str(advised),
                    f"{batch.over_best(advised):.2f}",
                ]
            )
        yield table(["tokens", "fastest, us", *map(str, sizes), "advised", "its time"], rows)


def expert_product_section() -> str:
    """What the block size costs in the product itself, and what the advice is worth."""
    result = read_results(RESULT)
    if result is None:
        return ""
    everything = batches(result)
    fitted = [batch for batch in everything if not batch.is_held_out]
    held_out = [batch for batch in everything if batch.is_held_out]
    rows = [
        [name, *_loss_cells(fitted, choose), *_loss_cells(held_out, choose)]
        for name, choose in CHOICES.items()
    ]
    header = ["choice", "mean", "worst", "held out: mean", "worst"]
    return "\n".join(
        [
            "## Block sizes and the experts' product\n",
            "`bench/expert_product.py` times the product that the blocks are for, in bfloat16, on "
            "tokens of routing logs and on random ids of three models' sizes. The table shows by "
            "how much a choice of block size is slower than the fastest one, over 1 to 4,096 "
            "tokens. The parameters of the advice were chosen without the layers that are held "
            "out.\n",
            origin(result),
            table(header, rows),
            *_layer_tables(everything),
        ]
    )
