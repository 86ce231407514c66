"""The figures of an inspection, against loops that anybody can follow."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import groupby, pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.tools.inspection.advice import advice, blocks_over, cost
from tessera.tools.inspection.document import BATCH_SIZES, BLOCK_SIZES, RANK_COUNTS, Layer
from tessera.tools.inspection.layer import LayerSums
from tessera.tools.inspection.load import gini, hot_experts, load_figures
from tessera.tools.inspection.ranks import balanced_placement, contiguous_placement, rank_figures

Row = tuple[int, ...]


def traffic(rows: list[Row]) -> list[Row]:
    """The rows outside of runs of 64 equal ones."""
    runs = [list(run) for _, run in groupby(rows)]
    return [row for run in runs if len(run) < 64 for row in run]


def naive_batch(rows: list[Row], batch_size: int, num_experts: int) -> tuple[Any, ...]:
    """Batches, mean active experts, and for each block size mean blocks and the padding share."""
    num_batches = len(rows) // batch_size
    active = 0
    blocks = dict.fromkeys(BLOCK_SIZES, 0)
    num_ids = 0
    for batch in range(num_batches):
        window = rows[batch * batch_size : (batch + 1) * batch_size]
        counts = Counter(i for row in window for i in row if 0 <= i < num_experts)
        active += len(counts)
        num_ids += sum(counts.values())
        for block_size in BLOCK_SIZES:
            blocks[block_size] += sum(math.ceil(count / block_size) for count in counts.values())
    padding = [(b * size - num_ids) / (b * size) if b else 0.0 for size, b in blocks.items()]
    return (
        num_batches,
        active / num_batches,
        [b / num_batches for b in blocks.values()],
        padding,
    )


def inspected(
    rows: Sequence[Row], num_experts: int, cuts: list[int], keep_repeated: bool = False
) -> Layer:
    """The layer's figures, its rows given in pieces that end at `cuts`."""
    sums = LayerSums(0, 3, num_experts, keep_repeated)
    ids = np.array(rows)
    for start, end in pairwise(sorted({0, *(cut % len(rows) for cut in cuts), len(rows)})):
        sums.add(ids[start:end])
    sums.close()
    return sums.figures(num_experts)


@st.composite
def layers(draw: st.DrawFn) -> tuple[list[Row], int, list[int]]:
    num_experts = draw(st.integers(1, 12))
    top_k = draw(st.integers(1, 3))
    # Ids -1 and num_experts are invalid.
    row = st.tuples(*[st.integers(-1, num_experts)] * top_k)
    runs = draw(
        st.lists(
            st.tuples(row, st.sampled_from([1, 1, 1, 2, 5, 63, 64, 65, 130])),
            min_size=1,
            max_size=20,
        )
    )
    rows = [(num_experts - 1,) * top_k] + [row for row, length in runs for _ in range(length)]
    return rows, num_experts, draw(st.lists(st.integers(0, 10**4), max_size=6))


@settings(max_examples=150, deadline=None)
@given(layers(), st.booleans())
def test_figures_are_those_of_the_loops(
    case: tuple[list[Row], int, list[int]], keep_repeated: bool
) -> None:
    rows, num_experts, cuts = case
    counted = rows if keep_repeated else traffic(rows)
    valid = [i for row in counted for i in row if 0 <= i < num_experts]
    if not valid:
        with pytest.raises(ValueError, match="expected"):
            inspected(rows, num_experts, cuts, keep_repeated)
        return
    found = inspected(rows, num_experts, cuts, keep_repeated)
    assert found["num_tokens"] == len(counted)
    assert found["num_repeated"] == len(rows) - len(counted)
    unused = sum(row.count(-1) for row in map(list, counted))
    assert found["num_invalid_ids"] == sum(map(len, counted)) - len(valid) - unused
    counts = [valid.count(expert) for expert in range(num_experts)]
    assert found["expert_counts"] == counts
    assert found["load"]["dead_experts"] == [e for e in range(num_experts) if counts[e] == 0]
    assert found["load"]["max_over_mean"] == pytest.approx(max(counts) * num_experts / sum(counts))
    assert [batch["batch_size"] for batch in found["batches"]] == list(BATCH_SIZES)
    for batch in found["batches"]:
        assert [one["block_size"] for one in batch["blocks"]] == list(BLOCK_SIZES)
        assert batch["extrapolated"] == (batch["batch_size"] > len(counted))
        if batch["extrapolated"]:
            continue
        num_batches, active, blocks, padding = naive_batch(
            counted, batch["batch_size"], num_experts
        )
        assert batch["num_batches"] == num_batches
        assert batch["active_experts"] == pytest.approx(active)
        assert [one["num_blocks"] for one in batch["blocks"]] == pytest.approx(blocks)
        assert [one["padding_share"] for one in batch["blocks"]] == pytest.approx(padding)


@settings(max_examples=50, deadline=None)
@given(layers(), st.lists(st.integers(0, 10**4), max_size=6))
def test_where_pieces_end_does_not_matter(
    case: tuple[list[Row], int, list[int]], cuts: list[int]
) -> None:
    rows, num_experts, other_cuts = case
    rows = [*rows, (0,) * len(rows[0])]
    assert inspected(rows, num_experts, cuts, True) == inspected(
        rows, num_experts, other_cuts, True
    )


def test_runs_of_equal_rows_are_left_out_and_told() -> None:
    rows = [(1, 0)] * 63 + [(2, 0)] * 64 + [(1, 3)] + [(0, 1)] * 100
    found = inspected(rows, 4, [10, 70, 100, 150])
    assert found["repeated"] == [
        {"first_token": 63, "num_tokens": 64, "topk_ids": [2, 0]},
        {"first_token": 128, "num_tokens": 100, "topk_ids": [0, 1]},
    ]
    assert (found["num_tokens"], found["num_repeated"]) == (64, 164)
    assert found["expert_counts"] == [63, 64, 0, 1]
    with_repeated = found["load_with_repeated"]
    assert with_repeated is not None
    assert with_repeated["max_over_mean"] == pytest.approx((63 + 64 + 100) * 4 / (2 * 228))
    kept = inspected(rows, 4, [], keep_repeated=True)
    assert (kept["num_tokens"], kept["num_repeated"], kept["repeated"]) == (228, 0, [])
    assert kept["load_with_repeated"] is None


def test_only_the_first_runs_are_listed() -> None:
    rows = [*((run % 2,) for run in range(12) for _ in range(64)), (0,)]
    found = inspected(rows, 2, [])
    assert found["num_repeated"] == 12 * 64
    assert [run["first_token"] for run in found["repeated"]] == [64 * run for run in range(10)]


def test_extrapolated_batches_have_the_layers_shares() -> None:
    found = inspected([(0, 1), (0, 2), (0, 1)], 4, [])
    batch = found["batches"][BATCH_SIZES.index(64)]
    # 64 tokens: 64 ids of expert 0, 42.7 of expert 1, 21.3 of expert 2.
    assert (batch["num_batches"], batch["extrapolated"], batch["active_experts"]) == (0, True, 3)
    assert [one["num_blocks"] for one in batch["blocks"]] == [
        8 + 6 + 3,
        4 + 3 + 2,
        2 + 2 + 1,
        3,
        3,
        3,
    ]
    assert batch["blocks"][0]["padding_share"] == pytest.approx(1 - 128 / (17 * 8))


def test_room_for_experts_grows() -> None:
    sums = LayerSums(0, 0, 4, keep_repeated=True)
    sums.add(np.array([[0], [3], [3]]))
    sums.widen(16)
    sums.add(np.array([[9]]))
    sums.close()
    expected = inspected([(0,), (3,), (3,), (9,)], 10, [], keep_repeated=True)
    assert sums.figures(10) == expected | {"layer": 0}


def test_load_figures() -> None:
    load = load_figures(np.array([8, 4, 2, 2, 0, 0, 0, 0]))
    assert load["entropy_bits"] == pytest.approx(0.5 * 1 + 0.25 * 2 + 2 * 0.125 * 3)
    assert load["max_entropy_bits"] == 3
    assert load["max_over_mean"] == 4
    assert load["dead_experts"] == [4, 5, 6, 7]
    # Half the mean absolute difference of all pairs, over the mean.
    counts = [8, 4, 2, 2, 0, 0, 0, 0]
    differences = sum(abs(a - b) for a in counts for b in counts)
    assert load["gini"] == pytest.approx(differences / (2 * 64 * 2))
    assert [(one["expert"], one["share"], one["over_mean"]) for one in load["hot_experts"]] == [
        (0, 0.5, 4.0),
        (1, 0.25, 2.0),
    ]


@pytest.mark.parametrize(("counts", "expected"), [([5] * 7, 0.0), ([0, 0, 0, 9], 0.75), ([3], 0.0)])
def test_gini_at_its_ends(counts: list[int], expected: float) -> None:
    assert gini(np.array(counts)) == pytest.approx(expected)


def test_ten_hot_experts_at_most() -> None:
    counts = np.array([100] * 12 + [1] * 100)
    assert [one["expert"] for one in hot_experts(counts)] == list(range(10))


def test_contiguous_placement() -> None:
    # As vLLM's: the first ranks have one more.
    assert contiguous_placement(7, 3).tolist() == [0, 0, 0, 1, 1, 2, 2]


def test_balanced_placement_by_hand() -> None:
    # By falling load: 9 -> rank 0, 7 -> 1, 5 -> 1, 4 -> 0, then 1 (rank 1 is full) -> 0.
    assert balanced_placement(np.array([4, 9, 1, 5, 7]), 2).tolist() == [0, 0, 0, 1, 1]


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=40), st.integers(1, 8))
def test_balanced_ranks_hold_as_many_experts_as_contiguous_ones(
    loads: list[int], num_ranks: int
) -> None:
    ranks = balanced_placement(np.array(loads), num_ranks)
    sizes = np.bincount(ranks, minlength=num_ranks)
    contiguous = contiguous_placement(len(loads), num_ranks)
    assert sizes.tolist() == np.bincount(contiguous, minlength=num_ranks).tolist()


def naive_imbalance(
    judges: list[Row], placed_by: list[Row] | None, num_experts: int, num_ranks: int
) -> float:
    """Largest over mean load of the ranks, by the ids of the rows that judge.

    Experts are placed by the rows `placed_by`; without any, neighbours together.
    """
    room = [len(part) for part in np.array_split(np.arange(num_experts), num_ranks)]
    ranks: list[list[int]] = [[] for _ in room]
    if placed_by is None:
        experts = iter(range(num_experts))
        ranks = [[next(experts) for _ in range(number)] for number in room]
    else:
        loads = Counter(i for row in placed_by for i in row)
        for expert in sorted(range(num_experts), key=lambda one: (-loads[one], one)):
            open_ranks = [rank for rank in range(num_ranks) if len(ranks[rank]) < room[rank]]
            least = min(open_ranks, key=lambda rank: (sum(loads[i] for i in ranks[rank]), rank))
            ranks[least].append(expert)
    counts = Counter(i for row in judges for i in row if 0 <= i < num_experts)
    on_ranks = [sum(counts[i] for i in experts) for experts in ranks]
    return max(on_ranks) / (sum(on_ranks) / num_ranks)


def naive_comparison(
    judges: list[Row], placed_by: list[Row] | None, num_experts: int, num_ranks: int
) -> dict[str, float]:
    """All placements on the same rows, `balanced` by `placed_by` where that is given."""
    made_by = {"contiguous": None, "in_hindsight": judges}
    if placed_by is not None:
        made_by["balanced"] = placed_by
    return {
        name: naive_imbalance(judges, by, num_experts, num_ranks) for name, by in made_by.items()
    }


@given(
    st.integers(2, 70).flatmap(
        lambda num_experts: st.tuples(
            st.just(num_experts),
            st.lists(
                st.tuples(st.integers(0, num_experts - 1), st.integers(0, min(3, num_experts - 1))),
                min_size=1,
                max_size=100,
            ),
        )
    )
)
@settings(deadline=None)
def test_every_placement_is_judged_on_the_same_tokens(log: tuple[int, list[Row]]) -> None:
    num_experts, rows = log
    layer = inspected(rows, num_experts, [], keep_repeated=True)
    first = rows[: len(rows) - layer["num_held_out"]]
    second = rows[len(first) :]
    assert bool(second) == (len(rows) > 1)
    if second:  # to the nearest sixteenth
        assert abs(len(first) - len(second)) <= max(1, len(rows) / 8)
    assert [one["num_ranks"] for one in layer["ranks"]] == [
        number for number in RANK_COUNTS if number <= num_experts
    ]
    for found in layer["ranks"]:
        number = found["num_ranks"]
        whole = naive_comparison(rows, None, num_experts, number)
        assert found["all_tokens"] == pytest.approx(whole)
        if second:
            held_out = naive_comparison(second, first, num_experts, number)
            assert found["held_out"] == pytest.approx(held_out)
        else:
            assert found["held_out"] is None


@given(
    st.sampled_from(RANK_COUNTS).flatmap(
        lambda number: st.lists(
            st.tuples(st.integers(0, number - 1)), min_size=1, max_size=3 * number
        ).map(lambda rows: (number, rows))
    )
)
def test_with_an_expert_on_every_rank_all_placements_are_equal(log: tuple[int, list[Row]]) -> None:
    number, rows = log
    ranks = inspected(rows, number, [], keep_repeated=True)["ranks"][-1]
    assert ranks["num_ranks"] == number
    for compared in (ranks["held_out"], ranks["all_tokens"]):
        if compared is not None:
            assert len(set(compared.values())) == 1


def test_rank_figures() -> None:
    two, four = rank_figures(np.array([6, 0, 0, 1]), np.array([0, 2, 3, 0]))
    assert two == {
        "num_ranks": 2,
        # By the first half: 0 -> rank 0, 3 and then 1 -> rank 1, which is full, 2 -> rank 0.
        "held_out": {"contiguous": 3 / 2.5, "balanced": 3 / 2.5, "in_hindsight": 3 / 2.5},
        "all_tokens": {"contiguous": 8 / 6, "in_hindsight": 7 / 6},
    }
    assert four["num_ranks"] == 4
    assert set((four["held_out"] or {}).values()) == {3 / 1.25}
    assert set(four["all_tokens"].values()) == {2.0}


def test_halves_of_a_layer() -> None:
    # 32 tokens and 16 slices: each holds two tokens, and the halves are exact.
    rows = [(0,)] * 10 + [(1,)] * 6 + [(2,)] * 9 + [(3,)] * 7
    layer = inspected(rows, 4, [5, 9], keep_repeated=True)
    assert layer["num_held_out"] == 16
    two, four = layer["ranks"]
    # By the first half: 0 -> rank 0, 1 -> rank 1, then 2 -> 1 and 3 -> 0.
    assert two["held_out"] == {"contiguous": 2.0, "balanced": 9 / 8, "in_hindsight": 9 / 8}
    assert two["all_tokens"] == {"contiguous": 1.0, "in_hindsight": 1.0}
    assert set((four["held_out"] or {}).values()) == {9 / 4}


@pytest.mark.parametrize("rows", [[(0, 1)], [(0, 1), (-1, 4)], [(4, -1), (0, 1)]])
def test_nothing_is_held_out_where_a_half_has_no_id(rows: list[Row]) -> None:
    layer = inspected(rows, 4, [])
    assert layer["num_held_out"] == 0
    assert [one["held_out"] for one in layer["ranks"]] == [None, None]
    assert layer["ranks"][0]["all_tokens"] == {"contiguous": 2.0, "in_hindsight": 1.0}


def test_one_expert_has_no_ranks_and_holds_nothing_out() -> None:
    layer = inspected([(0,), (0,)], 1, [])
    assert (layer["num_held_out"], layer["ranks"]) == (0, [])


def a_layer(rows: Sequence[Row], num_experts: int) -> Layer:
    return inspected(rows, num_experts, [], keep_repeated=True)


def test_advice_is_the_cheapest_and_of_ties_the_smallest() -> None:
    rng = np.random.default_rng(0)
    layers = [
        a_layer([tuple(row) for row in rng.integers(0, 16, (3000, 2)).tolist()], 16)
        for _ in range(2)
    ]
    for index, found in enumerate(advice(layers)):
        batch_size = BATCH_SIZES[index]
        assert found["batch_size"] == batch_size
        batches = [layer["batches"][index] for layer in layers]
        active = sum(batch["active_experts"] for batch in batches)
        costs = {
            size: sum(
                one["num_blocks"] * max(size, 92)
                for batch in batches
                for one in batch["blocks"]
                if one["block_size"] == size
            )
            + active * 128
            for size in BLOCK_SIZES
        }
        cheapest = min(costs[size] for size in BLOCK_SIZES if size >= 16)
        within = [size for size in BLOCK_SIZES if size >= 16 and costs[size] <= 1.01 * cheapest]
        assert found["block_size"] == min(within)
        assert {one["block_size"]: one["relative_cost"] for one in found["costs"]} == {
            size: pytest.approx(value / cheapest) for size, value in costs.items()
        }
    assert advice(layers)[0]["block_size"] == 16
    assert advice(layers)[-1]["block_size"] == 128


def test_cost_by_hand() -> None:
    assert cost(16, num_blocks=10, active_experts=8) == 8 * 128 + 10 * 92
    assert cost(128, num_blocks=10, active_experts=8) == 8 * 128 + 10 * 128


def test_blocks_over_layers() -> None:
    layers = [a_layer([(0,)] * 16, 2), a_layer([(0,), (1,)] * 8, 2)]
    first = blocks_over(layers, 16)[0]
    # 16 of one expert are 2 blocks of 8, 8 of two are 2 blocks: no padding. Of 16: 1 and 2 blocks.
    assert first == {"block_size": 8, "num_blocks": 4.0, "padding_share": 0.0}
    second = blocks_over(layers, 16)[1]
    assert second == {"block_size": 16, "num_blocks": 3.0, "padding_share": pytest.approx(1 / 3)}
