"""One call of the op: its arguments, its expected outputs, and its source text."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

import tessera
from tessera._outputs import output_sizes
from tessera.contract import Case, case_inputs

# Longer arrays are written as an expression if there is one.
_LITERAL_LENGTH = 64


@dataclass(frozen=True, eq=False)
class Call:
    """Arguments of a call, as NumPy arrays.

    topk_ids: [num_tokens, top_k], any integer type.
    expert_map: int32[num_experts] or None.
    reports: whether the call requests `expert_counts`, `num_dropped` and `statistics`.
    extra_length: number of elements by which the output arrays exceed the minimum.
    source: a short expression of NumPy and Tessera that makes `topk_ids`, if there is one.
    map_source: the same for `expert_map`.
    """

    topk_ids: npt.NDArray[Any]
    block_size: int
    num_experts: int
    expert_map: npt.NDArray[np.int32] | None = None
    ignore_invalid_experts: bool = False
    pad_sorted_ids: bool = False
    tail_expert: int = -1
    map_tail: bool = False
    filtered_group: bool = False
    reports: bool = False
    extra_length: int = 0
    source: str = ""
    map_source: str = ""

    @property
    def has_valid_inputs(self) -> bool:
        """Whether all ids and map entries are valid by the contract."""
        least = -1 if self.filtered_group else 0
        entries = () if self.expert_map is None else self.expert_map
        return _within(self.topk_ids, least, self.num_experts) and _within(
            np.asarray(entries), -1, self.num_experts
        )

    @property
    def weight(self) -> tuple[int, ...]:
        """Sort key of calls: simpler calls are smaller."""
        number, options = self.topk_ids.size, self.changed_options()
        entries = 0 if self.expert_map is None else int(np.abs(self.expert_map.astype(float)).sum())
        return (
            number,
            self.num_experts,
            self.block_size,
            len(options),
            int(self.topk_ids.dtype != np.int32),
            int(np.abs(self.topk_ids.astype(float)).sum()) + entries,
            self.extra_length,
            abs(self.tail_expert),
            *self.topk_ids.shape,
        )

    @property
    def num_words(self) -> int:
        """The number of array elements that the call reads and writes."""
        return self.topk_ids.size + self.num_experts + sum(self.output_lengths().values())

    @functools.cached_property
    def identity(self) -> tuple[object, ...]:
        """Equal for equal calls."""
        options = tuple(getattr(self, name) for name in OPTIONS if name != "expert_map")
        map_ = None if self.expert_map is None else _digest(self.expert_map)
        ids = (self.topk_ids.dtype.str, self.topk_ids.shape, _digest(self.topk_ids))
        return (*ids, self.block_size, self.num_experts, map_, *options)

    def changed_options(self) -> list[str]:
        """The options that are not at their default."""
        given = [] if self.expert_map is None else ["expert_map"]
        return given + [name for name in OPTIONS[1:] if getattr(self, name) != DEFAULTS[name]]

    def contract_options(self) -> dict[str, Any]:
        """Keyword arguments for `tessera.align_block_size` and `contract_violations`."""
        left_out = ("topk_ids", "reports", "extra_length", "source", "map_source")
        names = [field.name for field in fields(self) if field.name not in left_out]
        return {name: getattr(self, name) for name in names}

    def output_lengths(self) -> dict[str, int]:
        """The lengths of the output arrays that may be passed to an implementation."""
        shape = (self.topk_ids.size, self.block_size, self.num_experts, self.pad_sorted_ids)
        num_slots, num_blocks, _ = output_sizes(*shape, filtered_group=self.filtered_group)
        return {
            "sorted_token_ids": num_slots + self.extra_length,
            "expert_ids": num_blocks + self.extra_length,
            "num_tokens_post_pad": 1,
        }

    def expected(self) -> dict[str, npt.NDArray[Any]]:
        """The outputs by the contract, computed by Tessera on the host."""
        lengths = self.output_lengths()
        out = tuple(np.empty(length, np.int32) for length in lengths.values())
        reports: dict[str, Any] = self.report_arrays()
        tessera.align_block_size(self.topk_ids, **self.contract_options(), out=out, **reports)
        return dict(zip(lengths, out, strict=True)) | reports

    def report_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Arrays for the reports that the call requests."""
        if not self.reports:
            return {}
        return {
            "expert_counts": np.zeros(self.num_experts, np.int32),
            "num_dropped": np.zeros(1, np.int32),
            "statistics": np.zeros(len(tessera.RoutingStatistics._fields), np.float64),
        }

    def written(self, name: str) -> str:
        """The expression that makes the array of this name with NumPy."""
        array = getattr(self, name)
        if array.size > _LITERAL_LENGTH:
            kind = f"np.{array.dtype}"
            if np.all(array == array.flat[0]):
                return f"np.full({array.shape}, {array.flat[0]}, {kind})"
            if np.array_equal(array.reshape(-1), np.arange(array.size) % self.num_experts):
                cycle = f"np.arange({array.size}) % {self.num_experts}"
                return f"({cycle}).reshape{array.shape}.astype({kind})"
            if source := {"topk_ids": self.source, "expert_map": self.map_source}[name]:
                return source
        if array.size == 0:
            return f"np.empty({array.shape}, np.{array.dtype})"
        return f"np.array({array.tolist()}, np.{array.dtype})"


# Options that a form of the op may lack, and their defaults.
OPTIONS = (
    "expert_map",
    "ignore_invalid_experts",
    "pad_sorted_ids",
    "tail_expert",
    "map_tail",
    "filtered_group",
    "reports",
    "extra_length",
)
DEFAULTS: dict[str, Any] = {
    field.name: field.default for field in fields(Call) if field.name in OPTIONS
}


def call_of_case(case: Case, seed: int) -> Call:
    """The call of a case from the contract's table, or of a random case."""
    topk_ids, expert_map = case_inputs(case, seed)
    made = f"case_inputs(case_named({case.name!r}), seed={seed})"
    return Call(
        topk_ids,
        case.block_size,
        case.num_experts,
        expert_map,
        case.ignore_invalid_experts,
        case.pad_sorted_ids,
        case.tail_expert,
        case.map_tail,
        case.filtered_group,
        case.statistics,
        case.extra_length,
        f"{made}[0]",
        f"{made}[1]",
    )


def _digest(array: npt.NDArray[Any]) -> bytes:
    """Identifies the contents of an array without keeping it."""
    return hashlib.blake2b(array.tobytes()).digest()


def _within(array: npt.NDArray[Any], least: int, end: int) -> bool:
    if array.size == 0:
        return True
    return bool(int(array.min()) >= least and int(array.max()) < end)
