"""`select_experts` from Python: values beside a model in float64, frameworks, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tessera
from select_experts_calls import BEST_TWO, LOGITS, model, random_call, violations

SCORINGS = ["softmax", "sigmoid", "sqrt_softplus"]


@pytest.mark.parametrize("scoring", SCORINGS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    "groups",
    [
        {},
        {"num_expert_group": 6, "topk_group": 2},
        {"num_expert_group": 24, "topk_group": 5},
        {"num_expert_group": 4},
    ],
    ids=["one group", "two of six", "groups of one", "all groups"],
)
@pytest.mark.parametrize("weighing", [{}, {"renormalize": True, "routed_scaling_factor": 2.5}])
def test_values(scoring: str, bias: bool, groups: dict[str, int], weighing: dict[str, Any]) -> None:
    logits, options = random_call(
        1, scoring=scoring, correction_bias=bias or None, **groups, **weighing
    )
    found = tessera.select_experts(logits, **options)
    weights, ids = model(logits, **options)
    assert (found.topk_weights.dtype, found.topk_ids.dtype) == (np.float32, np.int32)
    np.testing.assert_array_equal(found.topk_ids, ids)
    np.testing.assert_allclose(found.topk_weights, weights, rtol=2e-6)
    assert violations(logits, found, **options) == []


def test_by_hand() -> None:
    found = tessera.select_experts(LOGITS, top_k=2, renormalize=True)
    assert found.topk_ids.tolist() == BEST_TWO
    # The weights of both depend on the difference of their logits alone.
    differences = np.array([1, 5, 1])
    expected = 1 / (1 + np.exp(-differences))
    np.testing.assert_allclose(found.topk_weights[:, 0], expected, rtol=1e-6)
    np.testing.assert_allclose(found.topk_weights.sum(1), 1, rtol=1e-6)


def test_of_equal_logits_the_first() -> None:
    found = tessera.select_experts(np.zeros((2, 6), np.float32), top_k=3)
    assert found.topk_ids.tolist() == [[0, 1, 2]] * 2
    np.testing.assert_allclose(found.topk_weights, 1 / 6, rtol=1e-6)


def test_the_bias_counts_for_the_choice_alone() -> None:
    bias = np.array([0, 0, 0, 10], np.float32)
    found = tessera.select_experts(LOGITS, top_k=1, scoring="sigmoid", correction_bias=bias)
    assert found.topk_ids.tolist() == [[3]] * 3
    np.testing.assert_allclose(
        found.topk_weights[:, 0], 1 / (1 + np.exp(-LOGITS[:, 3].astype(float))), rtol=1e-6
    )


def test_groups() -> None:
    """The best expert is in the second group; with a bias the first has the larger sum of two."""
    logits = np.array([[2, 2, 3, -9]], np.float32)
    groups: dict[str, Any] = {"top_k": 2, "num_expert_group": 2, "topk_group": 1}
    assert tessera.select_experts(logits, **groups).topk_ids.tolist() == [[2, 3]]
    bias = np.zeros(4, np.float32)
    biased = tessera.select_experts(logits, **groups, scoring="sigmoid", correction_bias=bias)
    assert biased.topk_ids.tolist() == [[0, 1]]


@pytest.mark.parametrize("count", [-1, 0, 2, 3, 9])
def test_padding(count: int) -> None:
    number = np.array([count], np.int32)
    found = tessera.select_experts(LOGITS, top_k=2, num_valid_tokens=number)
    valid = min(max(count, 0), 3)
    assert found.topk_ids.tolist() == BEST_TWO[:valid] + [[-1, -1]] * (3 - valid)
    assert not found.topk_weights[valid:].any()
    assert (found.topk_weights[:valid] > 0).all()
    assert violations(LOGITS, found, top_k=2, num_valid_tokens=number) == []


def test_logits_that_are_no_numbers() -> None:
    nan, inf = np.nan, np.inf
    logits = np.array([[nan, 1, nan, 2], [nan] * 4, [inf, 0, inf, 0], [-inf] * 4], np.float32)
    found = tessera.select_experts(logits, top_k=3)
    assert found.topk_ids.tolist() == [[3, 1, 0], [0, 1, 2], [0, 2, 1], [0, 1, 2]]
    assert found.topk_weights[1:].tolist() == [[0, 0, 0], [0.5, 0.5, 0], [0, 0, 0]]
    np.testing.assert_allclose(found.topk_weights[0, :2].sum(), 1, rtol=1e-6)
    assert found.topk_weights[0, 2] == 0


@given(
    st.integers(0, 4),
    st.integers(1, 4),
    st.integers(1, 20),
    st.sampled_from(["float16", "float32"]),
    st.sampled_from(SCORINGS),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_any_bits_keep_the_contract(
    tokens: int, groups: int, size: int, dtype: str, scoring: str, biased: bool, seed: int
) -> None:
    random = np.random.default_rng(seed)
    num_experts = groups * size

    def any_floats(kind: str, *shape: int) -> npt.NDArray[Any]:
        width = np.dtype(kind).itemsize
        return np.frombuffer(random.bytes(width * int(np.prod(shape))), kind).reshape(shape)

    logits = any_floats(dtype, tokens, num_experts)
    staying = int(random.integers(1, groups + 1))
    options: dict[str, Any] = {
        "top_k": int(random.integers(1, staying * size + 1)),
        "scoring": scoring,
        "renormalize": bool(random.integers(2)),
        "correction_bias": any_floats("float32", num_experts) if biased else None,
        "num_expert_group": groups,
        "topk_group": staying,
        "routed_scaling_factor": float(np.float32(random.normal())),
    }
    found = tessera.select_experts(logits, **options)
    assert all(len(set(row)) == len(row) for row in found.topk_ids.tolist())
    assert violations(logits, found, **options) == []
    again = tessera.select_experts(logits, **options, num_threads=1)
    assert [one.tobytes() for one in again] == [one.tobytes() for one in found]


def test_threads_and_other_tokens_do_not_change_a_bit() -> None:
    random = np.random.default_rng(3)
    logits = random.normal(0, 3, (2000, 256)).astype(np.float32)
    options: dict[str, Any] = {"top_k": 8, "renormalize": True}
    one = tessera.select_experts(logits, **options, num_threads=1)
    for num_threads in (None, 2, 16):
        found = tessera.select_experts(logits, **options, num_threads=num_threads)
        assert [array.tobytes() for array in found] == [array.tobytes() for array in one]
    some = tessera.select_experts(logits[700:703], **options)
    assert some.topk_weights.tobytes() == one.topk_weights[700:703].tobytes()


def test_numpy_outputs() -> None:
    out = (np.empty((3, 2), np.float32), np.empty((3, 2), np.int32))
    assert tessera.select_experts(LOGITS, top_k=2, out=out) is out
    found = tessera.select_experts(LOGITS, top_k=2)
    assert isinstance(found, tessera.SelectedExperts)
    for array, want in zip(out, found, strict=True):
        np.testing.assert_array_equal(array, want)
    named = tessera.select_experts(LOGITS, top_k=2, out=found)
    assert named is found


def test_jax() -> None:
    jax = pytest.importorskip("jax", reason="jax is not installed")
    for dtype in (jax.numpy.float32, jax.numpy.bfloat16):
        found = tessera.select_experts(jax.numpy.asarray(LOGITS, dtype), top_k=2)
        assert all(isinstance(array, jax.Array) for array in found)
        assert found.topk_ids.tolist() == BEST_TWO
        assert [str(array.dtype) for array in found] == ["float32", "int32"]


def test_rows_apart() -> None:
    wide = np.full((3, 7), np.nan, np.float32)
    wide[:, 1:5] = LOGITS
    found = tessera.select_experts(wide[:, 1:5], top_k=2)
    assert found.topk_ids.tolist() == BEST_TWO


def test_read_only_inputs() -> None:
    logits, bias = LOGITS.copy(), np.zeros(4, np.float32)
    logits.flags.writeable = bias.flags.writeable = False
    found = tessera.select_experts(logits, top_k=2, scoring="sigmoid", correction_bias=bias)
    assert found.topk_ids.tolist() == BEST_TWO


def test_no_tokens() -> None:
    found = tessera.select_experts(np.empty((0, 4), np.float16), top_k=3)
    assert [array.shape for array in found] == [(0, 3), (0, 3)]


EMPTY = (np.empty((3, 2), np.float32), np.empty((3, 2), np.int32))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"top_k": 5}, ValueError, "top_k: expected an integer in [1, 4], got 5"),
        ({"top_k": 0}, ValueError, "top_k: expected an integer in [1, 2147483647], got 0"),
        ({"top_k": "2"}, TypeError, "top_k: expected an integer, got str"),
        (
            {"router_logits": LOGITS[:, :0]},
            ValueError,
            "router_logits.shape[1]: expected an integer in [1, 2147483647], got 0",
        ),
        (
            {"router_logits": LOGITS.astype(np.int32)},
            TypeError,
            "router_logits.dtype: expected float16, bfloat16 or float32, got int32",
        ),
        ({"router_logits": LOGITS[0]}, ValueError, "router_logits.ndim: expected 2, got 1"),
        (
            {"router_logits": LOGITS.tolist()},
            TypeError,
            "router_logits: expected an array that speaks DLPack, got list",
        ),
        (
            {"num_expert_group": 3},
            ValueError,
            "num_expert_group: expected a divisor of the number of experts, 4, got 3",
        ),
        (
            {"num_expert_group": 2, "topk_group": 3},
            ValueError,
            "topk_group: expected an integer in [1, 2], got 3",
        ),
        ({"topk_group": 2}, ValueError, "topk_group: expected an integer in [1, 1], got 2"),
        (
            {"top_k": 3, "num_expert_group": 2, "topk_group": 1},
            ValueError,
            "top_k: expected at most 2, the experts of topk_group = 1 group, got 3",
        ),
        ({"num_expert_group": 2.0}, TypeError, "num_expert_group: expected an integer, got float"),
        (
            {"scoring": "relu"},
            ValueError,
            "scoring: expected one of softmax, sigmoid, sqrt_softplus, got relu",
        ),
        (
            {"scoring": "\ud800"},  # which UTF-8 cannot hold
            ValueError,
            "scoring: expected one of softmax, sigmoid, sqrt_softplus, got \\ud800",
        ),
        ({"scoring": 1}, TypeError, "scoring: expected a string, got int"),
        (
            {"correction_bias": np.zeros(5, np.float32)},
            ValueError,
            "correction_bias.shape[0]: expected 4, got 5",
        ),
        (
            {"correction_bias": np.zeros(4, np.float16)},
            TypeError,
            "correction_bias.dtype: expected float32, got float16",
        ),
        (
            {"num_valid_tokens": np.zeros(1, np.int64)},
            TypeError,
            "num_valid_tokens.dtype: expected int32, got int64",
        ),
        (
            {"num_valid_tokens": 3},
            TypeError,
            "num_valid_tokens: expected an array that speaks DLPack, got int",
        ),
        (
            {"routed_scaling_factor": float("inf")},
            ValueError,
            "routed_scaling_factor: expected a finite number, got inf",
        ),
        (
            {"routed_scaling_factor": "2"},
            TypeError,
            "routed_scaling_factor: expected a number, got str",
        ),
        ({"out": EMPTY[0]}, TypeError, "out: expected a tuple of two arrays, got ndarray"),
        ({"out": EMPTY[:1]}, TypeError, "out: expected a tuple of two arrays, got one of 1"),
        (
            {"out": (EMPTY[1], EMPTY[1])},
            TypeError,
            "topk_weights.dtype: expected float32, got int32",
        ),
        ({"out": EMPTY, "top_k": 1}, ValueError, "topk_weights.shape[1]: expected 1, got 2"),
        (
            {"out": (EMPTY[0], EMPTY[0].view(np.int32))},
            ValueError,
            "topk_weights: expected memory of its own, got memory shared with topk_ids",
        ),
        ({"num_threads": True}, TypeError, "num_threads: expected an integer, got bool"),
    ],
)
def test_refusals(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    for array in EMPTY:
        array.fill(99)
    with pytest.raises(error) as caught:
        tessera.select_experts(**{"router_logits": LOGITS, "top_k": 2, **arguments})
    assert str(caught.value) == f"select_experts: {message}"
    assert all((array == 99).all() for array in EMPTY)


def test_outputs_may_not_overlap_the_logits() -> None:
    logits = np.zeros((3, 2), np.float32)
    with pytest.raises(ValueError, match=r"^select_experts: topk_weights: expected memory of its"):
        tessera.select_experts(logits, top_k=2, out=(logits, EMPTY[1]))


@pytest.mark.parametrize("rule", ["padding", "valid_ids", "ids", "weights", "exact_bits"])
def test_the_checker_bites(rule: str) -> None:
    options: dict[str, Any] = {"top_k": 2, "num_valid_tokens": np.array([2], np.int32)}
    found = tessera.select_experts(LOGITS, **options)
    assert violations(LOGITS, found, **options) == []
    weights, ids = found
    if rule == "padding":
        ids[2, 1] = 0
    elif rule == "valid_ids":
        ids[1, 1] = ids[1, 0]
    elif rule == "ids":
        ids[0], weights[0] = ids[0, ::-1].copy(), weights[0, ::-1].copy()
    elif rule == "weights":
        weights[1, 0] *= 1.001
    else:
        weights[1, 0] = np.nextafter(weights[1, 0], np.float32(0))
    broken = violations(LOGITS, found, **options)
    assert broken[0] == rule
    assert broken == ["exact_bits"] or rule != "exact_bits"
