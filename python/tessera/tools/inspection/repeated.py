"""Runs of equal rows, which an engine's warm-up and profiling batches leave in a log."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tessera.routing_log import widened
from tessera.tools.inspection.document import RepeatedRun
from tessera.tools.routing_files.reading import OUTSIDE

# Shorter runs may be traffic: with one id per token, some tens of equal rows are not unusual.
SHORTEST_RUN = 64
_MAX_RUNS_SHOWN = 10


@dataclass(frozen=True)
class Runs:
    """Consecutive runs of equal rows: rows [runs, top_k], lengths int64[runs]."""

    rows: npt.NDArray[Any]
    lengths: npt.NDArray[np.int64]

    def __getitem__(self, chosen: Any) -> Runs:
        return Runs(self.rows[chosen], self.lengths[chosen])

    def tokens(self) -> npt.NDArray[Any]:
        """The rows [tokens, top_k] of all runs."""
        return np.repeat(self.rows, self.lengths, axis=0)


class RepeatedRows:
    """Splits a layer's rows, as they arrive, into traffic and runs of at least `SHORTEST_RUN`.

    num_rows: rows in such runs so far.
    first_runs: the first of these runs.
    """

    def __init__(self) -> None:
        self.num_rows = 0
        self.first_runs: list[RepeatedRun] = []
        self._num_closed = 0
        self._open: Runs | None = None  # the last run seen, which may continue

    def split(self, rows: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], Runs]:
        """Take the next rows, [n, top_k], at least one.

        Returns:
            The traffic [m, top_k] and the repeated runs, as far as they are now complete. The run
            at the end is in neither: a later call returns it, or `rest`.
        """
        held = 0
        if self._open is not None:
            rows = np.concatenate([widened(self._open.rows, rows.shape[1]), rows])
            held = int(self._open.lengths[0]) - 1
        starts = np.flatnonzero((rows[1:] != rows[:-1]).any(axis=1)) + 1
        starts = np.concatenate([np.zeros(1, np.int64), starts])
        lengths = np.diff(starts, append=len(rows))
        lengths[0] += held
        runs = Runs(rows[starts], lengths)
        self._open = runs[-1:]
        return self._closed(runs[:-1])

    def rest(self) -> tuple[npt.NDArray[Any], Runs]:
        """Like `split`, for the run at the end; there has been at least one row."""
        assert self._open is not None
        return self._closed(self._open)

    def _closed(self, runs: Runs) -> tuple[npt.NDArray[Any], Runs]:
        is_long = runs.lengths >= SHORTEST_RUN
        repeated = runs[is_long]
        first_tokens = self._num_closed + np.cumsum(runs.lengths) - runs.lengths
        for token, length, row in zip(
            first_tokens[is_long][:_MAX_RUNS_SHOWN],
            repeated.lengths,
            repeated.rows,
            strict=False,
        ):
            if len(self.first_runs) < _MAX_RUNS_SHOWN:
                self.first_runs.append(
                    {
                        "first_token": int(token),
                        "num_tokens": int(length),
                        "topk_ids": row[row != OUTSIDE].tolist(),
                    }
                )
        self._num_closed += int(runs.lengths.sum())
        self.num_rows += int(repeated.lengths.sum())
        return runs[~is_long].tokens(), repeated
