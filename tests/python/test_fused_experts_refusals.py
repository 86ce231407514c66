"""Bad calls of `fused_experts`: each is refused by name, and writes nothing."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import tessera
from fused_experts_calls import ACTIVATIONS, ARRAYS, call, transposed

Spoil = Callable[[dict[str, Any]], dict[str, Any]]

ROWS = "expected contiguous rows that share no memory, got strides"
COUNT = "expected an integer in [1, 2147483647], got 0"


def strided(array: Any) -> Any:
    return np.repeat(array, 2, axis=-1)[..., ::2]


def ones(*shape: int, dtype: str = "float32") -> Any:
    return np.ones(shape, dtype)


def message_of(arguments: dict[str, Any], error: type[Exception]) -> str:
    """The message of a call that is refused before it writes anything."""
    out = arguments.setdefault("out", np.full((5, 6), 99, np.float32))
    arrays = [value for value in arguments.values() if isinstance(value, np.ndarray)]
    before = [array.tobytes() for array in arrays]
    with pytest.raises(error) as caught:
        tessera.fused_experts(**arguments)
    assert [array.tobytes() for array in arrays] == before
    if isinstance(out, np.ndarray) and (out.shape, out.dtype) == ((5, 6), np.float32):
        # Without an output, sizes are asked first, and refused alike.
        del arguments["out"]
        if "fused_experts: out" not in str(caught.value):
            with pytest.raises(error) as again:
                tessera.fused_experts(**arguments)
            assert str(again.value) == str(caught.value)
    return str(caught.value)


# T 5, k 2, H 6, E 4, F 3, N 6.
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"x": ones(6)}, "x.ndim: expected 2, got 1"),
        ({"x": ones(5, 7)}, "w13.shape[2]: expected 7, got 6"),
        ({"x": ones(4, 6)}, "topk_weights.shape[0]: expected 4, got 5"),
        ({"w13": ones(4, 6)}, "w13.ndim: expected 3, got 2"),
        ({"w13": ones(3, 6, 6)}, "w2.shape[0]: expected 3, got 4"),
        ({"w2": ones(4, 5, 3)}, "w2.shape[1]: expected 6, got 5"),
        ({"topk_ids": ones(5, 1, dtype="int32")}, "topk_ids.shape[1]: expected 2, got 1"),
        ({"topk_ids": ones(4, 2, dtype="int64")}, "topk_ids.shape[0]: expected 5, got 4"),
        ({"topk_ids": ones(10, dtype="int32")}, "topk_ids.ndim: expected 2, got 1"),
        ({"expert_map": ones(4, 1, dtype="int32")}, "expert_map.ndim: expected 1, got 2"),
        ({"w13_bias": ones(4, 3)}, "w13_bias.shape[1]: expected 6, got 3"),
        ({"w13_bias": ones(5, 6)}, "w13_bias.shape[0]: expected 4, got 5"),
        ({"w2_bias": ones(4, 3)}, "w2_bias.shape[1]: expected 6, got 3"),
        ({"out": ones(5, 7)}, "out.shape[1]: expected 6, got 7"),
        ({"out": ones(4, 6)}, "out.shape[0]: expected 5, got 4"),
        ({"x": ones(5, 0), "w13": ones(4, 6, 0), "w2": ones(4, 0, 3)}, f"x.shape[1]: {COUNT}"),
        ({"w13": ones(4, 0, 6), "w2": ones(4, 6, 0)}, f"w2.shape[2]: {COUNT}"),
        ({"w13": ones(0, 6, 6), "w2": ones(0, 6, 3)}, f"w13.shape[0]: {COUNT}"),
        (
            {"topk_weights": ones(5, 0), "topk_ids": ones(5, 0, dtype="int32")},
            f"topk_weights.shape[1]: {COUNT}",
        ),
        (
            {"w13": ones(4, 5, 6)},
            "w13.shape[1]: expected 6, twice w2.shape[2] = 3, for activation silu, got 5",
        ),
        (
            {"w13": ones(4, 3, 6), "activation": "swigluoai"},
            "w13.shape[1]: expected 6, twice w2.shape[2] = 3, for activation swigluoai, got 3",
        ),
        (
            {"activation": "relu2_no_mul"},
            "w13.shape[1]: expected 3, as w2.shape[2] = 3, for activation relu2_no_mul, got 6",
        ),
        (
            {"apply_router_weight_on_input": True},
            "apply_router_weight_on_input: expected false where top_k is not 1, got true with "
            "top_k 2",
        ),
    ],
)
def test_shapes(bad: dict[str, Any], message: str) -> None:
    assert message_of(call() | bad, ValueError) == f"fused_experts: {message}"


@pytest.mark.parametrize(
    ("name", "dtype", "message"),
    [
        ("x", "float64", "expected float16, bfloat16, float32 or float8_e4m3fn, got float64"),
        ("x", "int32", "expected float16, bfloat16, float32 or float8_e4m3fn, got int32"),
        ("w13", "float16", "expected float32, as x has, or float8_e4m3fn, got float16"),
        ("w13", "int8", "expected float32, as x has, or float8_e4m3fn, got int8"),
        ("w2", "float64", "expected float32, as w13 has, got float64"),
        ("w13_bias", "float16", "expected float32, as x has, got float16"),
        ("w2_bias", "float16", "expected float32, as x has, got float16"),
        ("topk_weights", "float64", "expected float16, bfloat16 or float32, got float64"),
        ("topk_ids", "int16", "expected int32 or int64, got int16"),
        ("topk_ids", "uint32", "expected int32 or int64, got uint32"),
        ("topk_ids", "float32", "expected int32 or int64, got float32"),
        ("expert_map", "int64", "expected int32, got int64"),
        ("out", "float16", "expected float32, as x has, got float16"),
        ("out", "float64", "expected float32, as x has, got float64"),
    ],
)
def test_data_types(name: str, dtype: str, message: str) -> None:
    arguments = call(biases=True) | {"expert_map": ones(4, dtype="int32")}
    arguments["out"] = ones(5, 6)
    arguments[name] = arguments[name].astype(dtype)
    assert message_of(arguments, TypeError) == f"fused_experts: {name}.dtype: {message}"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda a: {"x": strided(a["x"])}, f"x: {ROWS} [12, 2] of shape [5, 6]"),
        (lambda a: {"x": transposed(a["x"])}, f"x: {ROWS} [1, 5] of shape [5, 6]"),
        (lambda a: {"x": a["x"][::-1]}, f"x: {ROWS} [-6, 1] of shape [5, 6]"),
        (lambda a: {"x": np.broadcast_to(a["x"][:1], (5, 6))}, f"x: {ROWS} [0, 1] of shape [5, 6]"),
        (
            lambda a: {"topk_weights": strided(a["topk_weights"])},
            f"topk_weights: {ROWS} [4, 2] of shape [5, 2]",
        ),
        (
            lambda a: {"topk_ids": transposed(a["topk_ids"])},
            f"topk_ids: {ROWS} [1, 5] of shape [5, 2]",
        ),
        (
            lambda a: {"w13_bias": strided(a["w13_bias"])},
            f"w13_bias: {ROWS} [12, 2] of shape [4, 6]",
        ),
        (lambda a: {"w2_bias": strided(a["w2_bias"])}, f"w2_bias: {ROWS} [12, 2] of shape [4, 6]"),
        (lambda a: {"out": transposed(ones(5, 6))}, f"out: {ROWS} [1, 5] of shape [5, 6]"),
        (lambda a: {"out": strided(ones(5, 6))}, f"out: {ROWS} [12, 2] of shape [5, 6]"),
        (
            lambda a: {"expert_map": strided(ones(4, dtype="int32"))},
            "expert_map: expected a contiguous array, got strides [2] of shape [4]",
        ),
        *(
            (
                spoil,
                f"{name}: expected contiguous rows that share no memory, or such columns, got "
                f"strides {strides} of shape {shape}",
            )
            for spoil, name, strides, shape in [
                (lambda a: {"w13": strided(a["w13"])}, "w13", "[72, 12, 2]", "[4, 6, 6]"),
                (lambda a: {"w2": strided(a["w2"])}, "w2", "[36, 6, 2]", "[4, 6, 3]"),
                (lambda a: {"w2": a["w2"][:, ::-1]}, "w2", "[18, -3, 1]", "[4, 6, 3]"),
                (
                    lambda a: {"w13": np.broadcast_to(a["w13"][:1], (4, 6, 6))},
                    "w13",
                    "[0, 6, 1]",
                    "[4, 6, 6]",
                ),
                (
                    lambda a: {"w13": a["w13"].transpose(1, 2, 0).copy().transpose(2, 0, 1)},
                    "w13",
                    "[1, 24, 4]",
                    "[4, 6, 6]",
                ),
            ]
        ),
    ],
)
def test_strides(spoil: Spoil, message: str) -> None:
    arguments = call(biases=True)
    assert message_of(arguments | spoil(arguments), ValueError) == f"fused_experts: {message}"


@pytest.mark.parametrize("name", ARRAYS)
def test_outputs_that_overlap_inputs(name: str) -> None:
    arguments = call(biases=True) | {"expert_map": np.zeros(4, np.int32)}
    array = arguments[name]
    memory = np.zeros(array.size * array.itemsize + 120, np.uint8)
    # The last element of the input is the first one of the output.
    shared = memory[: array.nbytes].view(array.dtype).reshape(array.shape)
    shared[...] = array
    begin = array.nbytes - 4
    out = memory[begin : begin + 120].view(np.float32).reshape(5, 6)
    assert message_of(arguments | {name: shared, "out": out}, ValueError) == (
        f"fused_experts: out: expected memory of its own, got memory shared with {name}"
    )


GPT_OSS = {"activation": "swigluoai"}


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (
            {"activation": "SILU"},
            ValueError,
            f"activation: expected one of {', '.join(ACTIVATIONS)}, got SILU",
        ),
        ({"activation": None}, TypeError, "activation: expected a string, got NoneType"),
        ({"activation": 0}, TypeError, "activation: expected a string, got int"),
        ({"activation": b"silu"}, TypeError, "activation: expected a string, got bytes"),
        (
            {"swiglu_alpha": 1.5},
            ValueError,
            "swiglu_alpha: expected none, as activation silu has no such parameter, got 1.5",
        ),
        (
            {"activation": "gelu", "swiglu_beta": 0},
            ValueError,
            "swiglu_beta: expected none, as activation gelu has no such parameter, got 0",
        ),
        (
            {"activation": "gelu_tanh", "swiglu_limit": 7.0},
            ValueError,
            "swiglu_limit: expected none, as activation gelu_tanh has no such parameter, got 7",
        ),
        (
            GPT_OSS | {"swiglu_alpha": np.nan},
            ValueError,
            "swiglu_alpha: expected a number that is not NaN, got nan",
        ),
        (
            GPT_OSS | {"swiglu_beta": np.nan},
            ValueError,
            "swiglu_beta: expected a number that is not NaN, got nan",
        ),
        (
            GPT_OSS | {"swiglu_limit": np.nan},
            ValueError,
            "swiglu_limit: expected a number that is not NaN, got nan",
        ),
        (
            GPT_OSS | {"swiglu_alpha": np.inf},
            ValueError,
            "swiglu_alpha: expected a finite number, got inf",
        ),
        (
            GPT_OSS | {"swiglu_beta": -np.inf},
            ValueError,
            "swiglu_beta: expected a finite number, got -inf",
        ),
        (
            GPT_OSS | {"swiglu_limit": 0},
            ValueError,
            "swiglu_limit: expected a positive number, got 0",
        ),
        (
            GPT_OSS | {"swiglu_limit": -7.0},
            ValueError,
            "swiglu_limit: expected a positive number, got -7",
        ),
        (
            GPT_OSS | {"swiglu_limit": 1e-300},
            ValueError,
            "swiglu_limit: expected a number that float32 holds, got 1e-300",
        ),
        (
            GPT_OSS | {"swiglu_alpha": -1e39},
            ValueError,
            "swiglu_alpha: expected a number that float32 holds, got -1e+39",
        ),
        (
            GPT_OSS | {"swiglu_beta": 2**63},
            ValueError,
            "swiglu_beta: expected a float or an integer of 64 bits, got 9223372036854775808",
        ),
        (GPT_OSS | {"swiglu_alpha": "1"}, TypeError, "swiglu_alpha: expected a number, got str"),
        (
            GPT_OSS | {"swiglu_limit": np.ones(1)},
            TypeError,
            "swiglu_limit: expected a number, got ndarray",
        ),
        ({"num_threads": "2"}, TypeError, "num_threads: expected an integer, got str"),
        ({"num_threads": 1.0}, TypeError, "num_threads: expected an integer, got float"),
        ({"num_threads": True}, TypeError, "num_threads: expected an integer, got bool"),
        (
            {"num_threads": -1},
            ValueError,
            "num_threads: expected an integer >= 1, or 0 for automatic, got -1",
        ),
    ],
)
def test_numbers(bad: dict[str, Any], error: type[Exception], message: str) -> None:
    assert message_of(call() | bad, error) == f"fused_experts: {message}"


@pytest.mark.parametrize("name", ARRAYS[:5])
def test_required_arrays(name: str) -> None:
    for value in (None, [[1.0]]):
        got = type(value).__name__
        assert message_of(call() | {name: value}, TypeError) == (
            f"fused_experts: {name}: expected an array that speaks DLPack, got {got}"
        )


@pytest.mark.parametrize("name", ["expert_map", "w13_bias", "out"])
def test_optional_arrays(name: str) -> None:
    assert message_of(call() | {name: [1, 2]}, TypeError) == (
        f"fused_experts: {name}: expected an array that speaks DLPack, got list"
    )


def test_a_read_only_output() -> None:
    out = np.empty((5, 6), np.float32)
    out.flags.writeable = False
    assert message_of(call() | {"out": out}, ValueError) == (
        "fused_experts: out: expected a writable array, got a read-only one"
    )


def test_a_read_only_input_is_not_what_is_refused() -> None:
    arguments = call()
    arguments["w13"].flags.writeable = False
    message = message_of(arguments | {"w2": arguments["w2"].astype(object)}, TypeError)
    assert message.startswith("fused_experts: w2: expected an array that DLPack can carry, got ")


def test_flags_are_read_as_truth_values() -> None:
    """As in all ops: "no" is true, and None is false."""
    arguments = call(top_k=1)
    scaled = tessera.fused_experts(**arguments, apply_router_weight_on_input=True)
    plain = tessera.fused_experts(**arguments)
    for value, expected in (("no", scaled), (2, scaled), (None, plain), (0, plain)):
        found = tessera.fused_experts(
            **arguments,
            apply_router_weight_on_input=value,  # type: ignore[arg-type]
            batch_invariant=value,  # type: ignore[arg-type]
        )
        assert found.tobytes() == expected.tobytes()


def test_numbers_of_any_kind_are_taken() -> None:
    arguments = call(activation="swigluoai")
    expected = tessera.fused_experts(**arguments, swiglu_alpha=0.5, swiglu_limit=1.0)
    for half, one in ((Fraction(1, 2), True), (np.float16(0.5), np.int8(1))):
        found = tessera.fused_experts(
            **arguments,
            swiglu_alpha=half,  # type: ignore[arg-type]
            swiglu_limit=one,  # type: ignore[arg-type]
        )
        assert found.tobytes() == expected.tobytes()
