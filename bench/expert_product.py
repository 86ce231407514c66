"""Times the experts' matrix product on aligned blocks, for every block size, on a GPU.

This is what a block size is chosen for: a grouped product in bfloat16 whose tiles are the blocks of
`align_block_size`, each block size with the best of several tile widths. The ids are consecutive
windows of routing logs. Writes a file of results, which the cost model of `tessera inspect` is held
against.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import triton
import triton.language as tl

import tessera
from tessera.contract import synthetic_topk_ids
from tessera.tools.bench.machine import description
from tessera.tools.bench.results import write_results
from tessera.tools.bench.tuning import WINDOW_SIZES, tuning

MAX_WINDOWS = 8
REPLAYS = 5
METHOD = (
    "CUDA graph of the product of one window after another, up to 8 windows of consecutive tokens, "
    "the graph held back by a sleep of the GPU, median of 5 replays, best of the tiles"
)


@dataclass(frozen=True)
class Tile:
    """How a block of `block_size` rows is computed."""

    block_size: int
    width: int
    depth: int
    num_warps: int
    num_stages: int


TILES = [
    Tile(block_size, *rest)
    for block_size, tiles in {
        16: [(64, 128, 4, 4), (128, 128, 4, 4), (128, 64, 4, 5), (256, 64, 4, 4)],
        32: [(64, 128, 4, 4), (128, 128, 4, 4), (128, 64, 4, 5), (256, 64, 8, 4)],
        64: [(64, 128, 4, 4), (128, 128, 4, 3), (128, 64, 4, 4), (256, 64, 8, 4)],
        128: [(128, 64, 4, 4), (128, 64, 8, 4), (256, 64, 8, 3), (128, 128, 8, 3)],
        256: [(64, 64, 8, 4), (128, 64, 8, 3), (128, 64, 8, 4), (128, 32, 8, 4)],
    }.items()
    for rest in tiles
]


@dataclass(frozen=True)
class Layer:
    """A layer's first product: tokens [n, hidden] by weights [experts, columns, hidden].

    windows: by their number of tokens, int32 [windows, tokens, top_k].
    is_held_out: the cost model's parameters were chosen without it.
    """

    name: str
    windows: dict[int, npt.NDArray[np.int32]]
    num_experts: int
    top_k: int
    hidden: int
    columns: int
    is_held_out: bool = False


@triton.jit
def _product_kernel(
    tokens,
    weights,
    products,
    sorted_token_ids,
    expert_ids,
    num_tokens_post_pad,
    num_ids,
    columns,
    hidden,
    top_k,
    block_size: tl.constexpr,
    width: tl.constexpr,
    depth: tl.constexpr,
    group: tl.constexpr,
):
    """One tile: a block's rows by `width` columns of its expert."""
    program = tl.program_id(0)
    num_blocks = tl.load(num_tokens_post_pad) // block_size
    num_columns = tl.cdiv(columns, width)
    if program >= num_blocks * num_columns:
        return
    # Neighbours take a few blocks by a few columns, so that what they load meets in the L2 cache.
    in_group = group * num_columns
    first = program // in_group * group
    height = min(num_blocks - first, group)
    block = first + program % in_group % height
    column = program % in_group // height

    ids = tl.load(sorted_token_ids + block * block_size + tl.arange(0, block_size))
    is_pair = ids < num_ids
    expert = tl.load(expert_ids + block).to(tl.int64)
    shown = column * width + tl.arange(0, width)
    along = tl.arange(0, depth)
    token_row = tokens + (ids // top_k)[:, None].to(tl.int64) * hidden + along[None, :]
    weight_row = weights + (expert * columns + shown[None, :]) * hidden + along[:, None]
    total = tl.zeros((block_size, width), tl.float32)
    for _ in range(0, hidden, depth):
        some = tl.load(token_row, mask=is_pair[:, None], other=0.0)
        total = tl.dot(some, tl.load(weight_row), total)
        token_row += depth
        weight_row += depth
    place = products + ids[:, None].to(tl.int64) * columns + shown[None, :]
    tl.store(place, total.to(tl.bfloat16), mask=is_pair[:, None])


class Product:
    """A layer's arrays on the GPU, and its product."""

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        shape = (layer.num_experts, layer.columns, layer.hidden)
        self.weights = torch.randn(shape, dtype=torch.bfloat16, device="cuda")

    def prepare(self, topk_ids: npt.NDArray[np.int32], tile: Tile) -> Any:
        """A function that computes the product of these ids' tokens."""
        layer = self.layer
        ids = torch.from_numpy(topk_ids).cuda()
        aligned = tessera.align_block_size(
            ids, block_size=tile.block_size, num_experts=layer.num_experts
        )
        tokens = torch.randn((len(ids), layer.hidden), dtype=torch.bfloat16, device="cuda")
        products = torch.empty((ids.numel(), layer.columns), dtype=torch.bfloat16, device="cuda")
        grid = (len(aligned.expert_ids) * triton.cdiv(layer.columns, tile.width),)

        def run() -> tuple[torch.Tensor, torch.Tensor]:
            _product_kernel[grid](
                tokens,
                self.weights,
                products,
                *aligned,
                ids.numel(),
                layer.columns,
                layer.hidden,
                ids.shape[1],
                tile.block_size,
                tile.width,
                tile.depth,
                group=8,
                num_warps=tile.num_warps,
                num_stages=tile.num_stages,
            )
            return tokens, products

        run.num_blocks = int(aligned.num_tokens_post_pad) // tile.block_size
        return run

    def check(self, topk_ids: npt.NDArray[np.int32], tile: Tile) -> None:
        """Compare with the product of each pair by its expert, in float32."""
        tokens, products = self.prepare(topk_ids, tile)()
        rows = tokens.repeat_interleave(topk_ids.shape[1], 0).float()
        experts = torch.from_numpy(topk_ids).cuda().flatten()
        wanted = torch.stack(
            [self.weights[e].float() @ row for e, row in zip(experts, rows, strict=True)]
        )
        error = (torch.linalg.norm(products.float() - wanted) / torch.linalg.norm(wanted)).item()
        if not error < 1e-2:
            raise RuntimeError(f"{tile}: the product is wrong, relative error {error}")


def replay_us(calls: list[Any]) -> float:
    """Microseconds per call, in a graph of all calls."""
    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    graph.replay()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    samples = []
    for _ in range(REPLAYS):
        torch.cuda._sleep(60_000)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        samples.append(1e3 * begin.elapsed_time(end) / len(calls))
    return statistics.median(samples)


def measure_layer(layer: Layer) -> Iterator[dict[str, Any]]:
    """One row for every batch size and block size."""
    product = Product(layer)
    for tile in TILES:
        product.check(layer.windows[32][0], tile)
    for size, block_size in itertools.product(
        layer.windows, sorted({tile.block_size for tile in TILES})
    ):
        some = layer.windows[size][:MAX_WINDOWS]
        times: dict[Tile, float] = {}
        for tile in TILES:
            if tile.block_size == block_size:
                calls = [product.prepare(ids, tile) for ids in some]
                times[tile] = replay_us(calls)
        best = min(times, key=lambda tile: times[tile])
        yield {
            "layer": layer.name,
            "is_held_out": layer.is_held_out,
            "num_experts": layer.num_experts,
            "top_k": layer.top_k,
            "hidden": layer.hidden,
            "columns": layer.columns,
            "num_tokens": size,
            "block_size": block_size,
            "us": times[best],
            "tile": asdict(best),
            "num_windows": len(some),
            "num_blocks": statistics.mean(call.num_blocks for call in calls),
            "active_experts": statistics.mean(len(np.unique(ids)) for ids in some),
        }


def _compile(tile: Tile) -> None:
    """Put a tile's machine code into Triton's cache."""
    ids = synthetic_topk_ids(16, 4, 2)
    Product(Layer("", {}, 4, 2, 2048, 2048)).prepare(ids, tile)()
    torch.cuda.synchronize()


# hidden_size, and twice the experts' intermediate size, of the models' published configurations.
_LOGGED = {"olmoe": (2048, 2048), "qwen1.5-moe": (2048, 2816)}
_SYNTHETIC = [
    # DeepSeek-V3, Mixtral 8x7B, Qwen3-235B-A22B
    ("256 experts, top 8, zipf", 256, 8, 7168, 4096, False),
    ("8 experts, top 2, uniform", 8, 2, 4096, 28672, True),
    ("128 experts, top 8, uniform", 128, 8, 4096, 3072, True),
]


def _log_layers(paths: list[Path]) -> Iterator[Layer]:
    found = tuning(paths, None, [TILES[0].block_size], seed=0)
    for name, figures in found.layers.items():
        windows = {size: ids for (of, size), ids in found.windows.items() if of == name}
        sizes = next(sizes for model, sizes in _LOGGED.items() if model in name)
        yield Layer(name, windows, figures["num_experts"], figures["top_k"], *sizes)


def _synthetic_layers() -> Iterator[Layer]:
    for name, num_experts, top_k, *rest in _SYNTHETIC:
        ids = synthetic_topk_ids(16384, num_experts, top_k, zipf="zipf" in name)
        windows = {size: ids.reshape(-1, size, top_k) for size in WINDOW_SIZES}
        yield Layer(name, windows, num_experts, top_k, *rest)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("logs", type=Path, nargs="*", metavar="LOG")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE")
    parser.add_argument("--commit", metavar="REV", help="what to record where git cannot tell")
    options = parser.parse_args()
    with multiprocessing.get_context("spawn").Pool(10) as pool:
        pool.map(_compile, TILES)
    layers = [*(_log_layers(options.logs) if options.logs else []), *_synthetic_layers()]
    rows = []
    for layer in layers:
        for row in measure_layer(layer):
            rows.append(row)
            print(*(row[key] for key in ("layer", "num_tokens", "block_size", "us")), flush=True)
    document = {
        **description("cuda", options.commit),
        "methods": {"product": METHOD},
        "rows": rows,
    }
    write_results(options.json, document)


if __name__ == "__main__":
    main()
