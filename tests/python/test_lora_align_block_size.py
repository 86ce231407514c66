"""`lora_align_block_size` from Python: values against a plain oracle, frameworks, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tessera
from oracle import expected_blocks
from random_calls import calls

TOPK_IDS = np.array([[2, 0], [1, 2], [2, 0], [0, 2]])
MAPPING = np.array([0, 2, 0, -1], np.int32)
GOOD: dict[str, Any] = {"block_size": 2, "num_experts": 3, "max_loras": 3}


def expected_rows(
    topk_ids: Any, mapping: Any, max_loras: int, active: set[int], options: dict[str, Any]
) -> list[list[list[int]]]:
    """The contract once more: for each adapter `align_block_size` of its own pairs, where the
    pairs of other adapters are dropped ids.
    """
    rows = []
    for adapter in range(max_loras):
        is_own = [adapter in active and entry == adapter for entry in mapping.tolist()]
        ids = [
            [value if own else -1 for value in token]
            for token, own in zip(topk_ids.tolist(), is_own, strict=True)
        ]
        flat = [value for token in ids for value in token]
        rows.append([list(part) for part in expected_blocks(flat, **options)[:3]])
    return rows


def as_rows(result: tuple[Any, ...]) -> list[list[list[int]]]:
    slots, experts, totals = (array.tolist() for array in result)
    return [list(row) for row in zip(slots, experts, [[total] for total in totals], strict=True)]


ANY_INT32 = st.integers(-2, 7) | st.integers(-(2**31), 2**31 - 1)


@given(calls(), st.integers(1, 5), st.data())
def test_values(call: tuple[Any, dict[str, Any], int], max_loras: int, data: st.DataObject) -> None:
    topk_ids, options, extra_length = call
    only_in_the_main_op = {
        "ignore_invalid_experts": True,
        "map_tail": False,
        "filtered_group": False,
    }
    options |= only_in_the_main_op

    def int32s(length: int, longest: int) -> Any:
        return np.array(data.draw(st.lists(ANY_INT32, min_size=length, max_size=longest)), np.int32)

    mapping = int32s(len(topk_ids), len(topk_ids))
    enabled = int32s(max_loras, max_loras + 2) if data.draw(st.booleans()) else None
    lora_ids = int32s(0, 6) if data.draw(st.booleans()) else None
    active = {
        adapter
        for adapter in range(max_loras)
        if (enabled is None or enabled[adapter] != 0) and (lora_ids is None or adapter in lora_ids)
    }
    given_options = {k: v for k, v in options.items() if k not in only_in_the_main_op} | {
        "max_loras": max_loras,
        "adapter_enabled": enabled,
        "lora_ids": lora_ids,
    }
    found = tessera.lora_align_block_size(topk_ids, mapping, **given_options)
    assert as_rows(found) == expected_rows(topk_ids, mapping, max_loras, active, options)
    assert tessera.lora_contract_violations(topk_ids, mapping, found, **given_options) == []

    out = tuple(
        np.full((max_loras, part.shape[1] + extra_length), 99, np.int32) for part in found[:2]
    )
    out = (*out, np.full(max_loras, 99, np.int32))
    assert tessera.lora_align_block_size(topk_ids, mapping, **given_options, out=out) is out
    options["extra_length"] = extra_length
    assert as_rows(out) == expected_rows(topk_ids, mapping, max_loras, active, options)


def test_flat_outputs_that_the_caller_owns() -> None:
    want = tessera.lora_align_block_size(TOPK_IDS, MAPPING, **GOOD)
    out = tuple(np.empty(length, np.int32) for length in (33, 18, 3))
    tessera.lora_align_block_size(TOPK_IDS, MAPPING, **GOOD, out=out)
    for flat, rows in zip(out, want, strict=True):
        assert flat.tolist() == rows.reshape(-1).tolist()


def test_shapes_and_types() -> None:
    found = tessera.lora_align_block_size(TOPK_IDS, MAPPING, **GOOD)
    assert [array.shape for array in found] == [(3, 11), (3, 6), (3,)]
    assert all(array.dtype == np.int32 for array in found)
    nothing = tessera.lora_align_block_size(TOPK_IDS[:0], MAPPING[:0], **GOOD)
    assert [array.shape for array in nothing] == [(3, 0), (3, 0), (3,)]
    assert nothing.num_tokens_post_pad.tolist() == [0, 0, 0]


def test_one_pair_a_token() -> None:
    ids = np.array([1, 0, 1, 1], np.uint8)
    found = tessera.lora_align_block_size(ids, MAPPING, **GOOD)
    again = tessera.lora_align_block_size(ids.reshape(4, 1), MAPPING, **GOOD)
    assert as_rows(found) == as_rows(again)
    assert found.sorted_token_ids[:, :2].tolist() == [[0, 2], [4, 4], [1, 4]]


def test_read_only_inputs() -> None:
    inputs = [TOPK_IDS.copy(), MAPPING.copy(), np.ones(3, np.int32), np.arange(3, dtype=np.int32)]
    for array in inputs:
        array.flags.writeable = False
    found = tessera.lora_align_block_size(
        *inputs[:2], **GOOD, adapter_enabled=inputs[2], lora_ids=inputs[3], expert_map=inputs[3]
    )
    assert as_rows(found) == as_rows(tessera.lora_align_block_size(TOPK_IDS, MAPPING, **GOOD))


@pytest.mark.parametrize("with_out", [False, True])
def test_torch(with_out: bool) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    topk_ids, mapping = torch.from_numpy(TOPK_IDS), torch.from_numpy(MAPPING)
    out = tuple(torch.empty(n, dtype=torch.int32) for n in (33, 18, 3)) if with_out else None
    found = tessera.lora_align_block_size(topk_ids, mapping, **GOOD, out=out)
    want = tessera.lora_align_block_size(TOPK_IDS, MAPPING, **GOOD)
    for tensor, array in zip(found, want, strict=True):
        assert tensor.dtype == torch.int32
        assert tensor.reshape(array.shape).tolist() == array.tolist()
    assert tessera.lora_contract_violations(topk_ids, mapping, found, **GOOD) == []


@pytest.mark.parametrize(
    ("rule", "array", "position", "value"),
    [
        ("num_tokens_post_pad", "num_tokens_post_pad", 1, 2),
        ("stable_order", "sorted_token_ids", 0, 7),
        ("padding", "sorted_token_ids", 23, 2),
        ("sorted_tail", "sorted_token_ids", 11, 0),
        ("block_experts", "expert_ids", 13, 1),
        ("expert_tail", "expert_ids", 6, 0),
    ],
)
def test_the_checker_bites(rule: str, array: str, position: int, value: int) -> None:
    found = tessera.lora_align_block_size(TOPK_IDS, MAPPING, **GOOD)
    spoilt = getattr(found, array).reshape(-1)
    spoilt[position] = value
    if rule == "stable_order":
        spoilt[:2] = [5, 1]
        position = 1
    (violation,) = tessera.lora_contract_violations(TOPK_IDS, MAPPING, found, **GOOD)
    assert (violation.rule, violation.array, violation.position) == (rule, array, position)
    row = position // getattr(found, array)[0].size
    assert violation.message.startswith(f"adapter {row}: {rule}: {array}[")


def int32(*shape: int) -> Any:
    return np.zeros(shape, np.int32)


def test_more_elements_than_64_bits_count_in_no_rows() -> None:
    torch = pytest.importorskip("torch")
    topk_ids = torch.empty((0, 1, 1), dtype=torch.int32).expand(0, 2**40, 2**40)
    with pytest.raises(ValueError, match=r"^lora_align_block_size: topk_ids"):
        tessera.lora_align_block_size(topk_ids, torch.empty(0, dtype=torch.int32), **GOOD)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"topk_ids": TOPK_IDS.astype("f4")}, TypeError, "topk_ids.dtype: expected an integer"),
        ({"topk_ids": [[1]]}, TypeError, "topk_ids: expected an array that speaks DLPack, got"),
        (
            {"token_lora_mapping": int32(2)},
            ValueError,
            "token_lora_mapping.num_elements: expected 4, got 2",
        ),
        (
            {"token_lora_mapping": MAPPING.astype("i8")},
            TypeError,
            "token_lora_mapping.dtype: expected int32, got int64",
        ),
        (
            {"token_lora_mapping": None},
            TypeError,
            "token_lora_mapping: expected an array that speaks DLPack, got NoneType",
        ),
        ({"max_loras": 0}, ValueError, "max_loras: expected an integer in [1, 1048576], got 0"),
        ({"max_loras": 1.5}, TypeError, "max_loras: expected an integer, got float"),
        ({"block_size": None}, TypeError, "block_size: expected an integer, got NoneType"),
        (
            {"tail_expert": 2**31},
            ValueError,
            "tail_expert: expected an integer of 32 bits, got 2147483648",
        ),
        (
            {"adapter_enabled": int32(2)},
            ValueError,
            "adapter_enabled.num_elements: expected at least 3, got 2",
        ),
        ({"lora_ids": [0]}, TypeError, "lora_ids: expected an array that speaks DLPack, got list"),
        ({"expert_map": int32(2)}, ValueError, "expert_map.num_elements: expected 3, got 2"),
        ({"out": int32(33)}, TypeError, "out: expected a tuple of three arrays, got ndarray"),
        (
            {"out": (int32(33), int32(18))},
            TypeError,
            "out: expected a tuple of three arrays, got one of 2",
        ),
        (
            {
                "out": tessera.lora_align_block_size(TOPK_IDS, MAPPING, **GOOD)._replace(
                    expert_ids=np.broadcast_to(np.int32(7), (3, 6))
                )
            },
            ValueError,
            "expert_ids: expected a writable array, got a read-only one",
        ),
        (
            {"out": (int32(34), int32(18), int32(3))},
            ValueError,
            "sorted_token_ids.num_elements: expected a multiple of 3, a row for each adapter, got",
        ),
    ],
)
def test_refused(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    arrays = {"topk_ids": TOPK_IDS, "token_lora_mapping": MAPPING}
    with pytest.raises(error) as caught:
        tessera.lora_align_block_size(**{**arrays, **GOOD, **changes})
    assert str(caught.value).startswith(f"lora_align_block_size: {message}")
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
