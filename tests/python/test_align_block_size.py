"""The op from Python: values, frameworks, and what `out=` and the optional outputs do."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import tessera
from oracle import expected_blocks
from tessera.contract import Case, case_inputs, case_named, cases

CASES = cases()
OPTIONS = (
    *("block_size", "num_experts", "ignore_invalid_experts", "pad_sorted_ids", "tail_expert"),
    *("map_tail", "filtered_group"),
)
# The plain oracle is slow: these are enough to leave no doubt.
SMALL_CASES = [case for case in CASES if case.num_ids <= 20_000 and case.num_experts <= 4096]


def options_of(case: Case) -> dict[str, Any]:
    return {name: getattr(case, name) for name in OPTIONS}


@pytest.mark.parametrize("case", SMALL_CASES, ids=lambda case: case.name)
def test_numpy_matches_the_oracle(case: Case) -> None:
    topk_ids, expert_map = case_inputs(case, seed=1)
    counts, dropped = np.empty(case.num_experts, np.int32), np.empty(1, np.int32)
    statistics = np.empty(6)
    found = tessera.align_block_size(
        topk_ids,
        expert_map=expert_map,
        expert_counts=counts,
        num_dropped=dropped,
        statistics=statistics,
        **options_of(case),
    )
    map_entries = None if expert_map is None else expert_map.tolist()
    expected = expected_blocks(
        topk_ids.reshape(-1).tolist(), expert_map=map_entries, **options_of(case)
    )
    assert [array.tolist() for array in (*found, counts, dropped, statistics)] == list(expected)
    assert all(isinstance(array, np.ndarray) and array.dtype == np.int32 for array in found)


@pytest.mark.parametrize("case", SMALL_CASES, ids=lambda case: case.name)
def test_torch_matches_numpy(case: Case) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    topk_ids, expert_map = case_inputs(case, seed=2)
    expected = tessera.align_block_size(topk_ids, expert_map=expert_map, **options_of(case))
    found = tessera.align_block_size(
        torch.from_numpy(topk_ids),
        expert_map=None if expert_map is None else torch.from_numpy(expert_map),
        **options_of(case),
    )
    assert all(array.dtype == torch.int32 for array in found)
    for got, want in zip(found, expected, strict=True):
        np.testing.assert_array_equal(got.numpy(), want)


@pytest.mark.parametrize("framework", ["numpy", "torch"])
def test_out_is_filled_to_its_end_and_returned(framework: str) -> None:
    topk_ids: Any = np.array([[2, 0], [1, 2], [0, 2]], np.int16)
    extra = 5
    expected = expected_blocks([2, 0, 1, 2, 0, 2], 4, 3, extra_length=extra)
    memory = [np.full(len(part) + 2, 77, np.int32) for part in expected[:3]]
    out: tuple[Any, ...] = tuple(array[1:-1] for array in memory)
    if framework == "torch":
        torch = pytest.importorskip("torch", reason="torch is not installed")
        topk_ids, out = torch.from_numpy(topk_ids), tuple(map(torch.from_numpy, out))
    returned = tessera.align_block_size(topk_ids, block_size=4, num_experts=3, out=out)
    assert returned is out
    assert [array[1:-1].tolist() for array in memory] == list(expected[:3])
    assert all(array[0] == 77 and array[-1] == 77 for array in memory)


def test_routing_statistics_are_named() -> None:
    values = np.array([7.0, 3.0, 4.0, 9.0, 5.0, 1.75])
    found = tessera.RoutingStatistics.of(values)
    assert found == (7, 3, 4, 9, 5, 1.75)
    assert [type(value) for value in found] == [int] * 5 + [float]
    assert (found.padding_slots, found.mean_load) == (9, 1.75)


def test_any_shape_is_flattened_row_major() -> None:
    flat = np.random.default_rng(0).integers(0, 5, 24)
    expected = tessera.align_block_size(flat, block_size=4, num_experts=5)
    for shape in [(24, 1), (2, 3, 4), (1, 24)]:
        found = tessera.align_block_size(flat.reshape(shape), block_size=4, num_experts=5)
        assert [a.tolist() for a in found] == [a.tolist() for a in expected]
    alone = tessera.align_block_size(np.array(3), block_size=2, num_experts=5)
    assert [array.tolist() for array in alone] == [[0, 1], [3], [2]]


def test_no_ids() -> None:
    found = tessera.align_block_size(np.empty((0, 2), np.int32), block_size=4, num_experts=3)
    assert [array.tolist() for array in found] == [[], [], [0]]


def test_read_only_inputs_are_accepted(tmp_path: Any) -> None:
    ids = np.array([[1, 0], [1, 1]], np.int32)
    expected = tessera.align_block_size(ids, block_size=2, num_experts=2)
    np.save(tmp_path / "ids.npy", ids)
    mapped = np.load(tmp_path / "ids.npy", mmap_mode="r")
    identity = np.arange(2, dtype=np.int32)
    identity.flags.writeable = False
    found = tessera.align_block_size(mapped, block_size=2, num_experts=2, expert_map=identity)
    assert [a.tolist() for a in found] == [a.tolist() for a in expected]
    assert not tessera.contract_violations(
        mapped, found, block_size=2, num_experts=2, expert_map=identity
    )


class Foreign:
    """An array that supports DLPack but no framework that Tessera knows."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)


class ForeignNamespace(Foreign):
    """The same with a namespace of the array API."""

    def __array_namespace__(self) -> Any:
        return SimpleNamespace(from_dlpack=ForeignNamespace)


def test_whatever_speaks_dlpack() -> None:
    ids = np.array([1, 0, 1], np.uint8)
    expected = [a.tolist() for a in tessera.align_block_size(ids, block_size=2, num_experts=2)]
    plain = tessera.align_block_size(Foreign(ids), block_size=2, num_experts=2)
    assert all(isinstance(array, np.ndarray) for array in plain)
    assert [a.tolist() for a in plain] == expected  # type: ignore[attr-defined]
    named = tessera.align_block_size(ForeignNamespace(ids), block_size=2, num_experts=2)
    assert all(isinstance(array, ForeignNamespace) for array in named)
    assert [a.array.tolist() for a in named] == expected


def test_random_cases_are_a_function_of_their_name() -> None:
    case = case_named("random:7:300")
    assert case.num_ids <= 300
    assert case == case_named("random:7:300") != case_named("random:8:300")
    first, second = (case_inputs(case, seed=3)[0] for _ in range(2))
    np.testing.assert_array_equal(first, second)
