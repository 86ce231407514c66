"""`align_block_size` once more, written from the contract in plain Python, for tests to compare."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Expected(NamedTuple):
    sorted_token_ids: list[int]
    expert_ids: list[int]
    num_tokens_post_pad: list[int]
    expert_counts: list[int]
    num_dropped: list[int]
    statistics: list[float]


def expected_blocks(
    topk_ids: Sequence[int],
    block_size: int,
    num_experts: int,
    expert_map: Sequence[int] | None = None,
    ignore_invalid_experts: bool = False,
    pad_sorted_ids: bool = False,
    tail_expert: int = -1,
    map_tail: bool = False,
    filtered_group: bool = False,
    extra_length: int = 0,
) -> Expected:
    num_ids = len(topk_ids)
    local = None
    if expert_map is not None:
        local = [entry if 0 <= entry < num_experts else -1 for entry in expert_map]
    groups: list[list[int]] = [[] for _ in range(num_experts)]
    filtered: list[int] = []
    dropped = 0
    for index, expert in enumerate(topk_ids):
        if expert == -1 and filtered_group:
            filtered.append(index)
        elif not 0 <= expert < num_experts:
            dropped += 1
        elif local is None or not ignore_invalid_experts:
            groups[expert].append(index)
        elif local[expert] >= 0:
            groups[local[expert]].append(index)

    slots: list[int] = []
    experts: list[int] = []
    for expert, group in enumerate([filtered, *groups], start=-1):
        blocks = -(-len(group) // block_size)
        slots += group + [num_ids] * (blocks * block_size - len(group))
        shown = expert if local is None or ignore_invalid_experts or expert < 0 else local[expert]
        experts += [shown] * blocks
    num_groups = num_experts + (1 if filtered_group else 0)
    capacity = num_ids + min(num_ids, num_groups) * (block_size - 1)
    num_blocks = -(-capacity // block_size)
    if pad_sorted_ids:
        capacity = num_blocks * block_size
    if local is not None and map_tail:
        tail_expert = local[tail_expert] if 0 <= tail_expert < num_experts else -1
    counts = [len(group) for group in groups]
    return Expected(
        slots + [num_ids] * (capacity + extra_length - len(slots)),
        experts + [tail_expert] * (num_blocks + extra_length - len(experts)),
        [len(slots)],
        counts,
        [dropped],
        [
            sum(counts),
            sum(count > 0 for count in counts),
            len(experts),
            len(slots) - sum(counts) - len(filtered),
            max(counts),
            sum(counts) / num_experts,
        ],
    )
