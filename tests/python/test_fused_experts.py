"""`fused_experts` from Python: values, frameworks, layouts. Its refusals have a file of their own.

Where the numbers are small integers and the activation is exact, the values are exact: relu2, and
swigluoai with alpha 0, which is half the product of gate and up.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tessera
from fused_experts_calls import (
    ACTIVATIONS,
    ARRAYS,
    assert_near_model,
    call,
    model,
    rows_apart,
    transposed,
)

FLOATS = ["float16", "bfloat16", "float32"]

X = np.array([[1, 2], [3, -1]], np.float32)
# Expert 0 takes the first number for gate and the second for up, expert 1 the other way round.
W13 = np.array([[[1, 0], [0, 1]], [[0, 1], [1, 0]]], np.float32)
W2 = np.array([[[1], [10]], [[-1], [0]]], np.float32)
WEIGHTS = np.array([[1, 0.5], [0.5, 2]], np.float32)
IDS = np.array([[0, 1], [1, 1]], np.int32)
HALF: dict[str, Any] = {"activation": "swigluoai", "swiglu_alpha": 0.0, "swiglu_beta": 0.0}
# Gate times up is 2 for token 0 and -3 for token 1, whichever is which; a is half of it.
BY_HAND = [[1 * 1 - 0.5 * 1, 10], [0.5 * 1.5 + 2 * 1.5, 0]]


def torch_or_skip() -> Any:
    return pytest.importorskip("torch", reason="torch is not installed")


def in_torch(arguments: dict[str, Any], dtype: str) -> dict[str, Any]:
    """The same call with tensors, and with x, weights and biases of this type."""
    torch = torch_or_skip()
    moved = dict(arguments)
    for name in set(ARRAYS) & set(moved):
        moved[name] = torch.from_numpy(moved[name])
        if name in ("x", "w13", "w2", "w13_bias", "w2_bias"):
            moved[name] = moved[name].to(getattr(torch, dtype))
    return moved


def in_numpy(arguments: dict[str, Any]) -> dict[str, Any]:
    """The call of `in_torch` as the model takes it."""
    moved = dict(arguments)
    for name in set(ARRAYS) & set(moved):
        tensor = moved[name]
        moved[name] = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    return moved


def test_by_hand() -> None:
    found = tessera.fused_experts(X, W13, W2, WEIGHTS, IDS, **HALF)
    assert found.dtype == np.float32
    assert found.tolist() == BY_HAND


@given(
    st.fixed_dictionaries(
        {
            "tokens": st.integers(0, 5),
            "top_k": st.integers(1, 3),
            "hidden": st.integers(1, 5),
            "experts": st.integers(1, 4),
            "intermediate": st.integers(1, 4),
        }
    ),
    st.sampled_from(["relu2_no_mul", "swigluoai", "swigluoai_uninterleave"]),
    st.sampled_from(["float16", "float32"]),
    st.sampled_from(["float16", "float32"]),
    st.sampled_from(["int32", "int64"]),
    st.sets(st.sampled_from(ARRAYS), max_size=4),
    st.sets(st.sampled_from(["w13", "w2"])),
    st.integers(0, 2**32 - 1),
)
def test_exact_values(
    shape: dict[str, int],
    activation: str,
    dtype: str,
    weights_dtype: str,
    ids_dtype: str,
    apart: set[str],
    turned: set[str],
    seed: int,
) -> None:
    random = np.random.default_rng(seed)
    arguments = call(0, activation=activation, dtype=dtype, biases=bool(seed % 2), **shape)
    for name in set(ARRAYS) & set(arguments):
        array = arguments[name]
        arguments[name] = random.integers(-2, 3, array.shape).astype(array.dtype)
    experts = shape["experts"]
    global_experts = int(random.integers(0, 7)) if seed % 3 else None
    if global_experts is not None:
        arguments["expert_map"] = random.integers(-2, experts + 2, global_experts, np.int32)
        arguments["topk_ids"] = random.integers(-2, 9, arguments["topk_ids"].shape)
    else:
        arguments["topk_ids"] = random.integers(-2, experts + 2, arguments["topk_ids"].shape)
    arguments["topk_ids"] = arguments["topk_ids"].astype(ids_dtype)
    arguments["topk_weights"] = arguments["topk_weights"].astype(weights_dtype)
    if activation != "relu2_no_mul":
        arguments |= {
            "swiglu_alpha": 0.0,
            "swiglu_beta": float(random.integers(-2, 3)),
            "swiglu_limit": float(random.integers(1, 9)),
        }
    if shape["top_k"] == 1:
        arguments["apply_router_weight_on_input"] = bool(random.integers(2))
    want, _ = model(**arguments)
    for name in apart & set(arguments) - {"expert_map"}:
        arguments[name] = rows_apart(arguments[name])
    for name in turned:
        arguments[name] = transposed(arguments[name])
    found = tessera.fused_experts(**arguments)
    assert found.dtype == np.dtype(dtype)
    assert np.array_equal(found, want.astype(dtype))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation: str, dtype: str) -> None:
    arguments = call(1, activation=activation, dtype=dtype, biases=True)
    assert_near_model(tessera.fused_experts(**arguments), dtype, arguments)
    larger = call(2, activation=activation, dtype=dtype, hidden=40, intermediate=17)
    assert_near_model(tessera.fused_experts(**larger), dtype, larger)


@pytest.mark.parametrize("activation", ["swigluoai", "swigluoai_uninterleave"])
@pytest.mark.parametrize(
    "parameters",
    [
        {"swiglu_alpha": 1},
        {"swiglu_alpha": np.float32(-0.5), "swiglu_beta": -2},
        {"swiglu_beta": np.float64(0.25)},
        {"swiglu_limit": 0.5},
        {"swiglu_limit": float("inf"), "swiglu_beta": 0.0},
    ],
)
def test_swiglu_parameters(activation: str, parameters: dict[str, Any]) -> None:
    arguments = call(3, activation=activation, hidden=30) | parameters
    found = tessera.fused_experts(**arguments)
    assert_near_model(found, "float32", arguments)
    assert not np.allclose(
        found, tessera.fused_experts(**call(3, activation=activation, hidden=30))
    )


def test_defaults_are_those_of_gpt_oss() -> None:
    arguments = call(3, activation="swigluoai", hidden=30)
    given_values = {"swiglu_alpha": 1.702, "swiglu_beta": 1.0, "swiglu_limit": 7.0}
    expected = tessera.fused_experts(**arguments | given_values)
    assert tessera.fused_experts(**arguments).tobytes() == expected.tobytes()


def test_weight_on_the_input() -> None:
    arguments = call(4, top_k=1, biases=True)
    after = tessera.fused_experts(**arguments)
    arguments["apply_router_weight_on_input"] = True
    before = tessera.fused_experts(**arguments)
    assert_near_model(before, "float32", arguments)
    assert not np.allclose(after, before)


def test_the_intermediate_is_rounded_once() -> None:
    """(1 + 2^-10)^2 = 1 + 2^-9 + 2^-20, of which float16 keeps the first two."""
    x = np.array([[1 + 2**-10]], np.float16)
    one = np.ones((1, 1, 1), np.float16)
    arguments: dict[str, Any] = {
        "topk_weights": np.ones((1, 1), np.float32),
        "topk_ids": np.zeros((1, 1), np.int32),
        "activation": "relu2_no_mul",
    }
    bias = np.array([[-1 - 2**-9]])
    found = tessera.fused_experts(x, one, one, **arguments, w2_bias=bias.astype(np.float16))
    assert found.tolist() == [[0]]
    floats = (array.astype(np.float32) for array in (x, one, one))
    found = tessera.fused_experts(*floats, **arguments, w2_bias=bias.astype(np.float32))
    assert found.tolist() == [[2**-20]]


def test_what_counts_for_nothing_reaches_no_output() -> None:
    arguments = call(5, tokens=4, experts=5, biases=True)
    ids = np.array([[3, 7], [-1, 5], [0, 8], [2**40, -(2**40)]])
    mapping = np.array([1, -1, 2, 4, 5, -7, 0, 2**31 - 1], np.int32)  # 3 -> 4, 0 -> 1
    used = arguments | {"topk_ids": ids, "expert_map": mapping}
    want, _ = model(**used)
    assert np.all(want[[1, 3]] == 0)
    assert np.all(want[[0, 2]] != 0)
    for name in ("w13", "w2", "w13_bias", "w2_bias"):
        used[name][[0, 2, 3]] = np.nan
    used["x"][[1, 3]] = np.inf
    used["topk_weights"][[0, 1, 1, 2, 3, 3], [1, 0, 1, 1, 0, 1]] = np.nan
    found = tessera.fused_experts(**used)
    np.testing.assert_allclose(found, want, rtol=1e-4)
    assert not np.any(np.signbit(found[[1, 3]]))
    assert np.all(tessera.fused_experts(**used | {"expert_map": np.empty(0, np.int32)}) == 0)


def test_a_nan_that_counts_makes_its_token_nan() -> None:
    arguments = call(6, tokens=3, top_k=1)
    arguments["topk_weights"][1] = np.nan
    found = tessera.fused_experts(**arguments)
    assert np.isnan(found).all(axis=1).tolist() == [False, True, False]
    assert not np.isnan(found[[0, 2]]).any()


@pytest.mark.parametrize("layout", ["rows apart", "transposed", "transposed and apart"])
def test_layouts_do_not_change_the_bits(layout: str) -> None:
    arguments = call(7, biases=True)
    expected = tessera.fused_experts(**arguments).tobytes()
    for name in ARRAYS[:5] + ARRAYS[6:] if layout == "rows apart" else ("w13", "w2"):
        array = arguments[name]
        if layout == "rows apart":
            arguments[name] = rows_apart(array)
        elif layout == "transposed":
            arguments[name] = transposed(array)
        else:
            arguments[name] = rows_apart(array.swapaxes(1, 2)).swapaxes(1, 2)
        assert not arguments[name].flags.c_contiguous
    assert tessera.fused_experts(**arguments).tobytes() == expected


@pytest.mark.parametrize("gap", [0, 2])
def test_out(gap: int) -> None:
    arguments = call(8)
    wide = np.full((5, 6 + gap), -1, np.float32)
    out = wide[:, :6]
    assert tessera.fused_experts(**arguments, out=out) is out
    assert out.tobytes() == tessera.fused_experts(**arguments).tobytes()
    assert np.all(wide[:, 6:] == -1)


def test_read_only_inputs() -> None:
    arrays = [array.copy() for array in (X, W13, W2, WEIGHTS, IDS)]
    for array in arrays:
        array.flags.writeable = False
    assert tessera.fused_experts(*arrays, **HALF).tolist() == BY_HAND


def test_no_tokens() -> None:
    arguments = call(9, tokens=0, dtype="float16")
    found = tessera.fused_experts(**arguments)
    assert (found.shape, found.dtype) == ((0, 6), np.float16)
    out = np.empty((0, 6), np.float16)
    assert tessera.fused_experts(**arguments, out=out) is out


def test_bits_depend_neither_on_threads_nor_on_other_tokens() -> None:
    arguments = call(10, tokens=70, top_k=3, hidden=50, intermediate=40, biases=True)
    expected = tessera.fused_experts(**arguments)
    for options in ({"num_threads": 1}, {"num_threads": 2}, {"batch_invariant": True}):
        assert tessera.fused_experts(**arguments, **options).tobytes() == expected.tobytes()
    order = np.random.default_rng(10).permutation(70)[:23]
    some = arguments | {name: arguments[name][order] for name in ("x", "topk_weights", "topk_ids")}
    assert tessera.fused_experts(**some).tobytes() == expected[order].tobytes()


@pytest.mark.parametrize("weights_dtype", FLOATS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_torch(dtype: str, weights_dtype: str) -> None:
    torch = torch_or_skip()
    arguments = in_torch(call(11, biases=True), dtype)
    arguments["topk_weights"] = arguments["topk_weights"].to(getattr(torch, weights_dtype))
    arguments["topk_ids"] = arguments["topk_ids"].long()
    found = tessera.fused_experts(**arguments)
    assert found.dtype == arguments["x"].dtype
    assert_near_model(found.float(), dtype, in_numpy(arguments))
    out = torch.full_like(found, 99.0)
    assert tessera.fused_experts(**arguments, out=out) is out
    assert torch.equal(out, found)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_bfloat16(activation: str) -> None:
    arguments = in_torch(call(12, activation=activation, biases=True), "bfloat16")
    assert_near_model(tessera.fused_experts(**arguments).float(), "bfloat16", in_numpy(arguments))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_jax(dtype: str) -> None:
    jax = pytest.importorskip("jax", reason="jax is not installed")
    arrays = [jax.numpy.asarray(array, dtype) for array in (X, W13, W2)]
    found = tessera.fused_experts(
        *arrays, jax.numpy.asarray(WEIGHTS), jax.numpy.asarray(IDS), **HALF
    )
    assert isinstance(found, jax.Array)
    assert found.dtype == dtype
    assert found.tolist() == BY_HAND


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_the_contract_holds(activation: str, dtype: str) -> None:
    options: dict[str, Any] = {"tokens": 9, "hidden": 33, "intermediate": 20}
    if dtype == "bfloat16":
        arguments = in_torch(call(13, activation=activation, biases=True, **options), dtype)
    else:
        arguments = call(13, activation=activation, biases=True, dtype=dtype, **options)
    arguments["topk_ids"][[2, 5]] = -1
    if activation.startswith("swigluoai"):
        arguments |= {"swiglu_alpha": 1.0, "swiglu_beta": 0.5, "swiglu_limit": 2.0}
    found = tessera.fused_experts(**arguments)
    assert tessera.fused_experts_contract_violations(**arguments, output=found) == []


def test_the_checker_bites() -> None:
    arguments = call(14, tokens=3, top_k=1)
    arguments["topk_ids"][1] = 4
    right = tessera.fused_experts(**arguments)
    for place, value, rule in (
        ((1, 2), -0.0, "no_experts"),
        ((0, 3), right[0, 3] * 1.0001, "error_bound"),
        ((2, 5), np.nan, "error_bound"),
    ):
        found = right.copy()
        found[place] = value
        (violation,) = tessera.fused_experts_contract_violations(**arguments, output=found)
        assert (violation.rule, violation.array) == (rule, "output")
        assert violation.position == 6 * place[0] + place[1]
    for other, got in ((right[:2], "float32[2, 6]"), (right.astype("f2"), "float16[3, 6]")):
        (violation,) = tessera.fused_experts_contract_violations(**arguments, output=other)
        assert (violation.rule, violation.expected, violation.found) == (
            "output_sizes",
            18,
            other.size,
        )
        assert violation.message == (
            f"output_sizes: output: expected float32[3, 6] in contiguous rows, found {got}"
        )
    arguments["topk_ids"] = arguments["topk_ids"].astype(np.int16)
    broken = tessera.fused_experts_contract_violations(**arguments, output=right)
    assert [violation.rule for violation in broken] == ["valid_inputs"]


def test_how_much_of_the_bound_is_used() -> None:
    arguments = call(15)
    found = tessera.fused_experts(**arguments)
    assert 0 <= tessera.fused_experts_bound_used(**arguments, output=found) <= 1
    found[1, 2] += 1
    assert tessera.fused_experts_bound_used(**arguments, output=found) > 1
    exact = {"x": X, "w13": W13, "w2": W2, "topk_weights": WEIGHTS, "topk_ids": IDS}
    by_hand = np.array(BY_HAND, np.float32)
    assert tessera.fused_experts_bound_used(**exact, **HALF, output=by_hand) == 0
    with pytest.raises(ValueError, match=r"^fused_experts: output_sizes: output"):
        tessera.fused_experts_bound_used(**arguments, output=found[1:])
