"""Counts of a layer, kept while its rows are streamed, and the figures computed from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tessera.routing_log import LayerKey
from tessera.tools.inspection.document import BATCH_SIZES, BLOCK_SIZES, Batch, Layer
from tessera.tools.inspection.drift import drift_figures
from tessera.tools.inspection.load import hot_experts, load_figures, max_over_mean
from tessera.tools.inspection.ranks import rank_figures
from tessera.tools.inspection.repeated import RepeatedRows, Runs
from tessera.tools.inspection.windows import WindowSums
from tessera.tools.routing_files.reading import Excluded

# An even number, because neighbours are merged when all are full.
_NUM_SLICES = 16


class LayerSums:
    """Counts of a layer's rows, whose size does not depend on the number of rows.

    width: number of experts with counters; larger ids are invalid.
    num_tokens: tokens counted so far, without repeated rows.
    """

    def __init__(self, log: int, layer: LayerKey, width: int, keep_repeated: bool) -> None:
        self.log = log
        self.layer = layer
        self.width = width
        self.num_tokens = 0
        self._num_invalid = 0
        self._repeated = None if keep_repeated else RepeatedRows()
        self._repeated_counts = np.zeros(width, np.int64)
        self._windows = WindowSums(width)
        self._slice_counts = np.zeros((_NUM_SLICES, width), np.int64)
        self._slice_tokens = 1

    def widen(self, width: int) -> None:
        """Make room for experts below `width`, at least the present width."""
        more = (0, width - self.width)
        self._repeated_counts = np.pad(self._repeated_counts, more)
        self._slice_counts = np.pad(self._slice_counts, ((0, 0), more))
        self._windows.widen(width)
        self.width = width

    def add(self, topk_ids: npt.NDArray[Any]) -> None:
        """Take the next rows, [n, top_k], at least one."""
        if self._repeated is None:
            self._count(topk_ids)
        else:
            self._take(*self._repeated.split(topk_ids))

    def close(self) -> None:
        """Count the rows that were held back; no row follows."""
        if self._repeated is not None:
            self._take(*self._repeated.rest())

    def _take(self, traffic: npt.NDArray[Any], repeated: Runs) -> None:
        if len(traffic):
            self._count(traffic)
        for row, length in zip(repeated.rows, repeated.lengths, strict=True):
            valid = row[(row >= 0) & (row < self.width)]
            np.add.at(self._repeated_counts, valid, length)

    def _count(self, topk_ids: npt.NDArray[Any]) -> None:
        valid = (topk_ids >= 0) & (topk_ids < self.width)
        unused = int(np.count_nonzero(topk_ids == -1))
        self._num_invalid += valid.size - int(np.count_nonzero(valid)) - unused
        self._windows.add(topk_ids, valid)
        self._add_to_slices(topk_ids, valid)

    def _add_to_slices(self, topk_ids: npt.NDArray[Any], valid: npt.NDArray[np.bool_]) -> None:
        first_token = self.num_tokens
        self.num_tokens += len(topk_ids)
        while self.num_tokens > _NUM_SLICES * self._slice_tokens:
            merged = self._slice_counts[0::2] + self._slice_counts[1::2]
            self._slice_counts[: len(merged)] = merged
            self._slice_counts[len(merged) :] = 0
            self._slice_tokens *= 2
        slices = np.arange(first_token, self.num_tokens) // self._slice_tokens
        first = int(slices[0])
        cells = ((slices - first)[:, None] * self.width + topk_ids)[valid]
        end = int(slices[-1]) + 1
        counts = np.bincount(cells, minlength=(end - first) * self.width)
        self._slice_counts[first:end] += counts.reshape(end - first, self.width)

    def figures(
        self, num_experts: int, excluded: Excluded | None = None, *, in_order: bool = True
    ) -> Layer:
        """The layer's part of the document; all counted ids are below `num_experts`.

        `excluded`: what of the layer was left out before. `in_order`: the rows came in the order of
        time, as far as their files have one.

        Raises:
            ValueError: no id was counted.
        """
        excluded = excluded or Excluded()
        if self.num_tokens == 0:
            raise ValueError(
                "expected traffic, got nothing but repeated rows: --keep-repeated counts them"
            )
        slices = self._slice_counts[:, :num_experts]
        counts = slices.sum(axis=0)
        if not counts.any():
            raise ValueError(f"topk_ids: expected ids in [0, {num_experts}), got none")
        half = max(1, round(self.num_tokens / 2 / self._slice_tokens))
        ranks = rank_figures(slices[:half].sum(axis=0), slices[half:].sum(axis=0))
        holds_out = any(row["held_out"] for row in ranks)
        with_repeated = counts + self._repeated_counts[:num_experts]
        repeated = self._repeated
        return {
            "log": self.log,
            "layer": self.layer,
            "num_tokens": self.num_tokens,
            "num_repeated": 0 if repeated is None else repeated.num_rows,
            "repeated": [] if repeated is None else repeated.first_runs,
            "num_invalid_ids": self._num_invalid,
            "num_unrecorded": excluded.num_unrecorded,
            "num_empty": excluded.num_empty,
            "num_unused": excluded.num_unused,
            "expert_counts": counts.tolist(),
            "load": load_figures(counts),
            "load_with_repeated": {
                "max_over_mean": max_over_mean(with_repeated),
                "hot_experts": hot_experts(with_repeated),
            }
            if repeated is not None and repeated.num_rows
            else None,
            "batches": [
                self._batch(size)
                if batch_size <= self.num_tokens
                else _extrapolated(batch_size, counts * (batch_size / self.num_tokens))
                for size, batch_size in enumerate(BATCH_SIZES)
            ],
            "num_held_out": self.num_tokens - half * self._slice_tokens if holds_out else 0,
            "ranks": ranks,
            "drift": drift_figures(slices, self._slice_tokens, self.num_tokens)
            if in_order
            else None,
        }

    def _batch(self, size: int) -> Batch:
        windows = self._windows
        num_windows = int(windows.num_windows[size])
        return _batch_figures(
            BATCH_SIZES[size],
            num_windows,
            int(windows.num_ids[size]) / num_windows,
            int(windows.num_active[size]) / num_windows,
            (windows.num_blocks[size] / num_windows).tolist(),
        )


def load_layer(log: int, layer: LayerKey, counts: npt.NDArray[np.int64]) -> Layer:
    """The part of a layer whose loads alone are known, int64 [experts], with at least one id."""
    ranks = rank_figures(counts, np.zeros_like(counts))
    return {
        "log": log,
        "layer": layer,
        "num_tokens": 0,
        "num_repeated": 0,
        "repeated": [],
        "num_invalid_ids": 0,
        "num_unrecorded": 0,
        "num_empty": 0,
        "num_unused": 0,
        "expert_counts": counts.tolist(),
        "load": load_figures(counts),
        "load_with_repeated": None,
        "batches": [],
        "num_held_out": 0,
        "ranks": ranks,
        "drift": None,
    }


def _extrapolated(batch_size: int, counts: npt.NDArray[np.float64]) -> Batch:
    """Figures of a batch with `counts` ids per expert, which need not be integers."""
    num_blocks = [float(np.ceil(counts / block_size).sum()) for block_size in BLOCK_SIZES]
    num_active = int(np.count_nonzero(counts))
    return _batch_figures(batch_size, 0, float(counts.sum()), num_active, num_blocks)


def _batch_figures(
    batch_size: int,
    num_batches: int,
    num_ids: float,
    num_active: float,
    num_blocks: Sequence[float],
) -> Batch:
    return {
        "batch_size": batch_size,
        "num_batches": num_batches,
        "extrapolated": num_batches == 0,
        "active_experts": float(num_active),
        "blocks": [
            {
                "block_size": block_size,
                "num_blocks": count,
                "padding_share": 1 - num_ids / (count * block_size) if count else 0.0,
            }
            for block_size, count in zip(BLOCK_SIZES, num_blocks, strict=True)
        ],
    }
