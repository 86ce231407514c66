"""Blocks and active experts of all windows of 1, 2, 4 ... tokens in a stream of tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tessera.tools.inspection.document import BATCH_SIZES, BLOCK_SIZES

# Counts that are processed at once: a few megabytes, which fit into caches.
_MAX_CELLS = 1 << 18


class WindowSums:
    """Sums over all consecutive full windows of each of `BATCH_SIZES` tokens.

    A window of one size is a pair of windows of the previous size: for each size, only the window
    that waits for its partner is kept.

    num_windows, num_ids, num_active: int64[batch sizes], windows, ids in them, experts with an id.
    num_blocks: int64[batch sizes, block sizes].
    """

    def __init__(self, width: int) -> None:
        self.num_windows = np.zeros(len(BATCH_SIZES), np.int64)
        self.num_ids = np.zeros_like(self.num_windows)
        self.num_active = np.zeros_like(self.num_windows)
        self.num_blocks = np.zeros((len(BATCH_SIZES), len(BLOCK_SIZES)), np.int64)
        self._width = width
        self._waiting: list[npt.NDArray[np.int32] | None] = [None] * len(BATCH_SIZES)

    def widen(self, width: int) -> None:
        """Make room for experts below `width`."""
        self._waiting = [
            None if counts is None else np.pad(counts, (0, width - self._width))
            for counts in self._waiting
        ]
        self._width = width

    def add(self, topk_ids: npt.NDArray[Any], valid: npt.NDArray[np.bool_]) -> None:
        """Take the next tokens: [tokens, top_k], with the ids in [0, width) marked in `valid`."""
        step = max(1, _MAX_CELLS // self._width)
        for start in range(0, len(topk_ids), step):
            piece, mask = topk_ids[start : start + step], valid[start : start + step]
            cells = np.arange(len(piece))[:, None] * self._width + piece
            counts = np.bincount(cells[mask], minlength=len(piece) * self._width)
            self._add_windows(counts.astype(np.int32).reshape(len(piece), self._width))

    def _add_windows(self, counts: npt.NDArray[np.int32]) -> None:
        for size in range(len(BATCH_SIZES)):
            self._sum(size, counts)
            waiting = self._waiting[size]
            if waiting is not None:
                counts = np.concatenate([waiting[None], counts])
            pairs = len(counts) // 2
            self._waiting[size] = counts[-1].copy() if len(counts) % 2 else None
            counts = counts[0 : 2 * pairs : 2] + counts[1 : 2 * pairs : 2]
            if pairs == 0:
                return

    def _sum(self, size: int, counts: npt.NDArray[np.int32]) -> None:
        active = np.count_nonzero(counts)
        largest = counts.max()
        self.num_windows[size] += len(counts)
        self.num_ids[size] += counts.sum(dtype=np.int64)
        self.num_active[size] += active
        for index, block_size in enumerate(BLOCK_SIZES):
            if largest <= block_size:  # one block per active expert, also for all larger sizes
                self.num_blocks[size, index:] += active
                return
            blocks = (counts + (block_size - 1)) // block_size
            self.num_blocks[size, index] += blocks.sum(dtype=np.int64)
