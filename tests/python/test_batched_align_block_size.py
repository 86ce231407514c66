"""`batched_align_block_size` from Python: values against a plain oracle, frameworks, refusals."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tessera

GOOD: dict[str, Any] = {"max_tokens_per_batch": 6, "block_size": 4}
COUNTS = np.array([2, 5, -3, 100], np.int32)


class Expected(NamedTuple):
    sorted_token_ids: list[int]
    expert_ids: list[int]
    num_tokens_post_pad: list[int]


def expected_blocks(
    counts: list[int], max_tokens_per_batch: int, block_size: int, tail_expert: int = -1
) -> Expected:
    """The contract once more, in plain Python."""
    filler = len(counts) * max_tokens_per_batch
    slots: list[int] = []
    experts: list[int] = []
    for batch, given_count in enumerate(counts):
        count = min(max(given_count, 0), max_tokens_per_batch)
        blocks = -(-count // block_size)
        first = batch * max_tokens_per_batch
        slots += [*range(first, first + count)] + [filler] * (blocks * block_size - count)
        experts += [batch] * blocks
    total = len(slots)
    num_blocks = len(counts) * -(-max_tokens_per_batch // block_size)
    slots += [filler] * (num_blocks * block_size - total)
    experts += [tail_expert] * (num_blocks - len(experts))
    return Expected(slots, experts, [total])


def as_lists(result: tuple[Any, ...]) -> Expected:
    return Expected(*(array.tolist() for array in result))


@given(
    st.lists(st.integers(-(2**31), 2**31 - 1) | st.integers(-2, 40), max_size=30),
    st.integers(0, 40),
    st.integers(1, 50),
    st.integers(-(2**31), 2**31 - 1),
)
def test_values(counts: list[int], maximum: int, block_size: int, tail: int) -> None:
    array = np.array(counts, np.int32)
    options: dict[str, Any] = {"max_tokens_per_batch": maximum, "block_size": block_size}
    found = tessera.batched_align_block_size(array, **options, tail_expert=tail)
    assert as_lists(found) == expected_blocks(counts, maximum, block_size, tail)
    assert all(output.dtype == np.int32 for output in found)
    violations = tessera.batched_contract_violations(array, found, **options, tail_expert=tail)
    assert violations == []


def test_outputs_that_the_caller_owns() -> None:
    out = tuple(np.full(length, 99, np.int32) for length in (35, 9, 1))
    found = tessera.batched_align_block_size(COUNTS, **GOOD, out=out)
    assert found is out
    want = expected_blocks(COUNTS.tolist(), 6, 4)
    assert as_lists(out) == Expected(
        want.sorted_token_ids + [24] * 3, [*want.expert_ids, -1], want.num_tokens_post_pad
    )


def test_read_only_counts() -> None:
    counts = COUNTS.copy()
    counts.flags.writeable = False
    found = tessera.batched_align_block_size(counts, **GOOD)
    assert as_lists(found) == expected_blocks(COUNTS.tolist(), 6, 4)


@pytest.mark.parametrize("with_out", [False, True])
def test_torch(with_out: bool) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    counts = torch.from_numpy(COUNTS)
    out = tuple(torch.empty(n, dtype=torch.int32) for n in (32, 8, 1)) if with_out else None
    found = tessera.batched_align_block_size(counts, **GOOD, out=out)
    assert as_lists(found) == expected_blocks(COUNTS.tolist(), 6, 4)
    assert all(array.dtype == torch.int32 for array in found)
    assert tessera.batched_contract_violations(counts, found, **GOOD) == []


@pytest.mark.parametrize(
    ("rule", "array", "position", "value"),
    [
        ("num_tokens_post_pad", "num_tokens_post_pad", 0, 24),
        ("group_members", "sorted_token_ids", 1, 0),
        ("padding", "sorted_token_ids", 2, 2),
        ("sorted_tail", "sorted_token_ids", 31, 23),
        ("block_experts", "expert_ids", 2, 2),
        ("expert_tail", "expert_ids", 7, 0),
    ],
)
def test_the_checker_bites(rule: str, array: str, position: int, value: int) -> None:
    found = tessera.batched_align_block_size(COUNTS, **GOOD)
    right = int(getattr(found, array)[position])
    getattr(found, array)[position] = value
    (violation,) = tessera.batched_contract_violations(COUNTS, found, **GOOD)
    assert violation == tessera.Violation(
        rule,
        array,
        position,
        right,
        value,
        f"{rule}: {array}[{position}]: expected {right}, found {value}",
    )


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"expert_num_tokens": COUNTS.astype(np.int64)}, TypeError,
         "expert_num_tokens.dtype: expected int32, got int64"),
        ({"expert_num_tokens": [1, 2]}, TypeError,
         "expert_num_tokens: expected an array that speaks DLPack, got list"),
        ({"expert_num_tokens": COUNTS[::2]}, ValueError,
         "expert_num_tokens: expected a contiguous array, got a strided one"),
        ({"max_tokens_per_batch": -1}, ValueError,
         "max_tokens_per_batch: expected an integer in [0, 2147483647], got -1"),
        ({"max_tokens_per_batch": 2**31 - 1}, ValueError,
         "capacity: expected at most 2147483647 slots, got 8589934592 (4 batches * "
         "max_tokens_per_batch 2147483647 rounded up to whole blocks of 4)"),
        ({"block_size": 0}, ValueError,
         "block_size: expected an integer in [1, 2147483647], got 0"),
        ({"block_size": "4"}, TypeError, "block_size: expected an integer, got str"),
        ({"block_size": 2**64}, ValueError,
         f"block_size: expected an integer of 64 bits, got {2**64}"),
        ({"tail_expert": 2**31}, ValueError,
         "tail_expert: expected an integer of 32 bits, got 2147483648"),
        ({"out": (np.empty(32, np.int32),) * 2}, TypeError,
         "out: expected a tuple of three arrays, got one of 2"),
        ({"out": (np.broadcast_to(np.int32(0), 32),) * 3}, ValueError,
         "sorted_token_ids: expected a writable array, got a read-only one"),
        ({"out": [np.empty(32, np.int32)] * 3}, TypeError,
         "out: expected a tuple of three arrays, got list"),
        ({"out": (np.empty(31, np.int32), np.empty(8, np.int32), np.empty(1, np.int32))},
         ValueError, "sorted_token_ids.num_elements: expected at least 32, got 31"),
    ],
)  # fmt: skip
def test_refusals(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments: dict[str, Any] = {"expert_num_tokens": COUNTS, **GOOD, **changes}
    counts = arguments.pop("expert_num_tokens")
    with pytest.raises(error) as refused:
        tessera.batched_align_block_size(counts, **arguments)
    assert type(refused.value) is error
    assert str(refused.value) == f"batched_align_block_size: {message}"
