"""Bad arguments: the right exception, a message in the house's form, and nothing written."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tessera
from tessera.contract import synthetic_topk_ids

IDS = np.array([[0, 1], [1, 2]], np.int32)
GOOD: dict[str, Any] = {"block_size": 4, "num_experts": 3}
CANARY = -0x21524111


def outputs(**changes: Any) -> tuple[Any, ...]:
    """Outputs of the right size for IDS and GOOD, but for those given."""
    arrays = {
        "sorted_token_ids": np.full(13, CANARY, np.int32),
        "expert_ids": np.full(4, CANARY, np.int32),
        "num_tokens_post_pad": np.full(1, CANARY, np.int32),
    }
    return tuple((arrays | changes).values())


def read_only(array: Any) -> Any:
    array.flags.writeable = False
    return array


def int32(*shape: int) -> Any:
    return np.zeros(shape, np.int32)


MAP_LENGTH = "expert_map.num_elements: expected 3, got 2"
DLPACK = "expected an array that speaks DLPack, got"
CARRY = "expected an array that DLPack can carry, got"
REFUSED: list[tuple[type[Exception], str, Any, dict[str, Any]]] = [
    # topk_ids
    (TypeError, "topk_ids.dtype: expected an integer type, got float32", IDS.astype("f4"), {}),
    (TypeError, "topk_ids.dtype: expected an integer type, got bool", IDS.astype(bool), {}),
    (TypeError, "topk_ids.dtype: expected an integer type, got complex128", IDS.astype("c16"), {}),
    (TypeError, f"topk_ids: {DLPACK} list", [0, 1], {}),
    (TypeError, f"topk_ids: {DLPACK} NoneType", None, {}),
    (TypeError, f"topk_ids: {DLPACK} int", 3, {}),
    (TypeError, f"topk_ids: {DLPACK} list", [0, 1], {"out": outputs()}),
    (TypeError, f"topk_ids: {CARRY} ndarray of dtype object (", IDS.astype(object), {}),
    (TypeError, f"topk_ids: {CARRY} ndarray of dtype >i4 (", IDS.astype(">i4"), {}),
    (TypeError, f"topk_ids: {CARRY} ndarray of dtype >i4 (", read_only(IDS.astype(">i4")), {}),
    (TypeError, f"topk_ids: {CARRY} ndarray of dtype datetime64", IDS.astype("M8[s]"), {}),
    (ValueError, "topk_ids: expected a contiguous array, got a strided one", IDS.T, {}),
    (ValueError, "topk_ids: expected a contiguous array, got a strided one", IDS[:, ::2], {}),
    (
        ValueError,
        "topk_ids.data: expected memory aligned to 4 bytes, got an address 1 past",
        np.zeros(17, np.uint8)[1:].view(np.int32),
        {},
    ),
    # Numbers
    (
        ValueError,
        "block_size: expected an integer in [1, 2147483647], got 0",
        IDS,
        {"block_size": 0},
    ),
    (
        ValueError,
        "block_size: expected an integer in [1, 2147483647], got -4",
        IDS,
        {"block_size": -4},
    ),
    (TypeError, "block_size: expected an integer, got float", IDS, {"block_size": 4.0}),
    (TypeError, "block_size: expected an integer, got NoneType", IDS, {"block_size": None}),
    (TypeError, "block_size: expected an integer, got list", IDS, {"block_size": [4]}),
    (ValueError, "block_size: expected an integer of 64 bits, got 1", IDS, {"block_size": 2**70}),
    (
        ValueError,
        "num_experts: expected an integer in [1, 1073741824], got 0",
        IDS,
        {"num_experts": 0},
    ),
    (
        ValueError,
        "num_experts: expected an integer in [1, 1073741824], got -1",
        IDS,
        {"num_experts": -1},
    ),
    (TypeError, "num_experts: expected an integer, got str", IDS, {"num_experts": "3"}),
    (
        ValueError,
        "tail_expert: expected an integer of 32 bits, got 2147483648",
        IDS,
        {"tail_expert": 2**31},
    ),
    (TypeError, "tail_expert: expected an integer, got float", IDS, {"tail_expert": 0.5}),
    (
        ValueError,
        "num_threads: expected an integer >= 1, or 0 for automatic, got -1",
        IDS,
        {"num_threads": -1},
    ),
    (TypeError, "num_threads: expected an integer, got str", IDS, {"num_threads": "all"}),
    (TypeError, "num_threads: expected an integer, got bool", IDS, {"num_threads": True}),
    (TypeError, "num_threads: expected an integer, got bool", IDS, {"num_threads": False}),
    (TypeError, "num_threads: expected an integer, got bool", IDS, {"num_threads": np.True_}),
    (
        ValueError,
        "capacity: expected at most 2147483647 slots, got 6442450942 (4 ids + min(ids, 3 experts) "
        "* (block_size 2147483647 - 1)",
        IDS,
        {"block_size": 2**31 - 1},
    ),
    # The map
    (ValueError, MAP_LENGTH, IDS, {"expert_map": int32(2)}),
    (
        TypeError,
        "expert_map.dtype: expected int32, got int64",
        IDS,
        {"expert_map": np.zeros(3, "i8")},
    ),
    (TypeError, f"expert_map: {DLPACK} list", IDS, {"expert_map": [0, 1, 2]}),
    (ValueError, "expert_map: expected a contiguous array", IDS, {"expert_map": int32(6)[::2]}),
    # Outputs
    (
        ValueError,
        "sorted_token_ids.num_elements: expected at least 13, got 12",
        IDS,
        {"out": outputs(sorted_token_ids=int32(12))},
    ),
    (
        ValueError,
        "expert_ids.num_elements: expected at least 4, got 3",
        IDS,
        {"out": outputs(expert_ids=int32(3))},
    ),
    (
        ValueError,
        "num_tokens_post_pad.num_elements: expected 1, got 2",
        IDS,
        {"out": outputs(num_tokens_post_pad=int32(2))},
    ),
    (
        TypeError,
        "sorted_token_ids.dtype: expected int32, got int64",
        IDS,
        {"out": outputs(sorted_token_ids=np.zeros(13, np.int64))},
    ),
    (
        ValueError,
        "expert_ids: expected a contiguous array, got a strided one",
        IDS,
        {"out": outputs(expert_ids=int32(8)[::2])},
    ),
    (
        ValueError,
        "sorted_token_ids: expected a writable array, got a read-only one",
        IDS,
        {"out": outputs(sorted_token_ids=read_only(int32(13)))},
    ),
    (TypeError, f"expert_ids: {DLPACK} list", IDS, {"out": outputs(expert_ids=[0] * 4)}),
    (TypeError, "out: expected a tuple of three arrays, got one of 2", IDS, {"out": outputs()[:2]}),
    (TypeError, "out: expected a tuple of three arrays, got ndarray", IDS, {"out": IDS}),
    (
        ValueError,
        "expert_counts: expected a writable array, got a read-only one",
        IDS,
        {"expert_counts": read_only(int32(3))},
    ),
    (ValueError, "expert_counts.num_elements: expected 3, got 4", IDS, {"expert_counts": int32(4)}),
    (ValueError, "num_dropped.num_elements: expected 1, got 0", IDS, {"num_dropped": int32(0)}),
    (
        TypeError,
        "num_dropped.dtype: expected int32, got uint32",
        IDS,
        {"num_dropped": np.zeros(1, "u4")},
    ),
    (
        TypeError,
        "statistics.dtype: expected float64, got float32",
        IDS,
        {"statistics": np.zeros(6, np.float32)},
    ),
    (ValueError, "statistics.num_elements: expected 6, got 5", IDS, {"statistics": np.zeros(5)}),
    (TypeError, f"statistics: {DLPACK} list", IDS, {"statistics": [0.0] * 6}),
    (
        ValueError,
        "statistics: expected a writable array, got a read-only one",
        IDS,
        {"statistics": read_only(np.zeros(6))},
    ),
    (
        ValueError,
        "sorted_token_ids.num_elements: expected at least 16, got 13",
        IDS,
        {"filtered_group": True},
    ),
    (ValueError, "validate: expected a bool or 'now'", IDS, {"validate": "later"}),
]


@pytest.mark.parametrize(("kind", "message", "topk_ids", "changes"), REFUSED)
def test_refused(
    kind: type[Exception], message: str, topk_ids: Any, changes: dict[str, Any]
) -> None:
    out = changes.get("out", outputs())
    before = [np.array(array) for array in out]
    with pytest.raises(kind) as caught:
        tessera.align_block_size(topk_ids, **{**GOOD, "out": out, **changes})
    assert str(caught.value).startswith(f"align_block_size: {message}")
    assert "\n" not in str(caught.value)
    for array, old in zip(out, before, strict=False):
        np.testing.assert_array_equal(array, old)


@pytest.mark.parametrize("shared", ["expert_ids", "num_tokens_post_pad"])
def test_overlapping_outputs_are_refused(shared: str) -> None:
    memory = int32(20)
    length = {"expert_ids": 4, "num_tokens_post_pad": 1}[shared]
    out = outputs(**{"sorted_token_ids": memory[:13], shared: memory[12 : 12 + length]})
    message = f"sorted_token_ids: expected memory of its own, got memory shared with {shared}"
    with pytest.raises(ValueError, match=message):
        tessera.align_block_size(IDS, out=out, **GOOD)
    assert not memory.any()


def test_output_over_the_ids_is_refused() -> None:
    memory = int32(13)
    with pytest.raises(ValueError, match="got memory shared with topk_ids"):
        tessera.align_block_size(memory[:4], out=outputs(sorted_token_ids=memory), **GOOD)


def test_read_only_outputs_of_an_earlier_call_are_refused() -> None:
    out = tessera.align_block_size(IDS, **GOOD)
    out.expert_ids.flags.writeable = False
    with pytest.raises(ValueError, match="expert_ids: expected a writable array") as caught:
        tessera.align_block_size(IDS, out=out, **GOOD)
    assert caught.value.__suppress_context__


def test_refusals_do_not_show_the_ffi() -> None:
    with pytest.raises(ValueError, match="block_size") as caught:
        tessera.align_block_size(IDS, block_size=0, num_experts=3)
    assert caught.value.__cause__ is None
    files = [str(entry.path) for entry in caught.traceback]
    assert not any("tvm_ffi" in file or "ffi.cc" in file for file in files)


def test_flags_may_be_numpy_s() -> None:
    yes = np.bool_(True)
    found = tessera.align_block_size(IDS, pad_sorted_ids=yes, **GOOD)  # type: ignore[call-overload]
    assert len(found.sorted_token_ids) == 16
    expected = tessera.align_block_size(IDS, filtered_group=True, map_tail=True, **GOOD)
    flags: dict[str, Any] = {"filtered_group": yes, "map_tail": yes, "ignore_invalid_experts": yes}
    found = tessera.align_block_size(IDS, **flags, **GOOD)
    assert [array.tolist() for array in found] == [array.tolist() for array in expected]


def test_torch_tensors_that_cannot_be() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    with pytest.raises(
        TypeError, match="align_block_size: topk_ids: expected an array that DLPack"
    ):
        tessera.align_block_size(torch.zeros(4, dtype=torch.int32, device="meta"), **GOOD)
    with pytest.raises(TypeError, match=r"topk_ids.dtype: expected an integer type, got float32"):
        tessera.align_block_size(torch.zeros(4, requires_grad=True), **GOOD)
    with pytest.raises(ValueError, match="topk_ids: expected a contiguous array"):
        tessera.align_block_size(torch.from_numpy(IDS).T, **GOOD)


def test_explain_refuses_bad_shapes() -> None:
    with pytest.raises(ValueError, match="align_block_size: block_size: expected"):
        tessera.explain(4, 3, 0)
    with pytest.raises(
        TypeError, match="align_block_size: num_experts: expected an integer, got str"
    ):
        tessera.explain(4, "3", 1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "message", "changes"),
    [
        (ValueError, "num_tokens: expected an integer in [0, 2147483647], got -1", (-1, 4, 2)),
        (
            ValueError,
            f"num_tokens: expected an integer in [0, 2147483647], got {2**63}",
            (2**63, 4, 2),
        ),
        (ValueError, "num_experts: expected an integer in [1, 2147483647], got 0", (4, 0, 2)),
        (ValueError, f"top_k: expected an integer in [1, 2147483647], got {2**60}", (4, 4, 2**60)),
        (ValueError, "num_tokens * top_k: expected at most 2147483647, got", (2**30, 4, 2)),
        (TypeError, "num_tokens: expected an integer, got float", (4.0, 4, 2)),
        (TypeError, "num_experts: expected an integer, got str", (4, "4", 2)),
    ],
)
def test_synthetic_ids_that_cannot_be(
    kind: type[Exception], message: str, changes: tuple[Any, ...]
) -> None:
    with pytest.raises(kind) as caught:
        synthetic_topk_ids(*changes)
    assert str(caught.value).startswith(f"synthetic_topk_ids: {message}")


CHECKERS: list[tuple[str, Any]] = [
    ("align_block_size", lambda found: tessera.contract_violations(IDS, found, **GOOD)),
    (
        "batched_align_block_size",
        lambda found: tessera.batched_contract_violations(
            int32(2), found, max_tokens_per_batch=4, block_size=4
        ),
    ),
    (
        "lora_align_block_size",
        lambda found: tessera.lora_contract_violations(IDS, int32(2), found, max_loras=2, **GOOD),
    ),
]


@pytest.mark.parametrize(("op", "check"), CHECKERS)
def test_results_that_are_none(op: str, check: Any) -> None:
    for result, got in (
        ((int32(1), int32(1)), "2 of them"),
        ([int32(1)] * 4, "4 of them"),
        (None, "NoneType"),
        ("abc", "str"),
    ):
        with pytest.raises(TypeError) as caught:
            check(result)
        expected = f"{op}: result: expected a tuple of three arrays, got {got}"
        assert str(caught.value) == expected
    with pytest.raises(TypeError) as caught:
        check((int32(1), None, int32(1)))
    assert str(caught.value) == f"{op}: expert_ids: {DLPACK} NoneType"


def test_statistics_of_another_length() -> None:
    with pytest.raises(ValueError, match=r"^RoutingStatistics.of: array: expected 6 elements, got"):
        tessera.RoutingStatistics.of(np.zeros(5))


def test_a_flag_as_a_number() -> None:
    with pytest.raises(TypeError, match=r"lora_align_block_size: max_loras: .*, got bool$"):
        tessera.lora_align_block_size(IDS, int32(2), max_loras=True, **GOOD)
    logits = np.zeros((2, 4), np.float32)
    for _ in range(2):  # with a known shape for 1, too
        with pytest.raises(TypeError, match=r"select_experts: top_k: .*, got bool$"):
            tessera.select_experts(logits, top_k=True)
        assert tessera.select_experts(logits, top_k=1).topk_ids.tolist() == [[0], [0]]
