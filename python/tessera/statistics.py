"""Routing statistics of a call, as `statistics=` writes them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from tessera._framework import on_host


class RoutingStatistics(NamedTuple):
    """Totals over the groups of one call. Loads are numbers of pairs per expert.

    The fields have the order of the array, and of `AlignBlockSizeStatistic` in the C++ header.
    """

    assigned_pairs: int
    active_experts: int
    used_blocks: int
    padding_slots: int
    max_load: int
    mean_load: float

    @classmethod
    def of(cls, array: Any) -> RoutingStatistics:
        """Read float64[6] that a call has written; waits for an array on a device.

        Raises:
            ValueError: the array has another shape.
        """
        found = np.asarray(on_host(array))
        if found.shape != (len(cls._fields),):
            raise ValueError(
                f"RoutingStatistics.of: array: expected {len(cls._fields)} elements, "
                f"got the shape {found.shape}"
            )
        values = found.tolist()
        return cls._make([*map(int, values[:-1]), *values[-1:]])
