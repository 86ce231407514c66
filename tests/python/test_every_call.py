"""What is the same in every op: which argument an error names, of a foreign array or of `out`."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest

import tessera
from foreign_arrays import Malformed
from small_calls import CALLS
from tessera._op import Op, op_names
from tessera._renaming import renamed

INPUTS = [(op, row) for op in CALLS for row in Op(op).inputs]


def test_every_op_has_a_call() -> None:
    assert sorted(CALLS) == sorted(op_names())


def with_input(op: str, name: str, array: Any) -> dict[str, Any]:
    """The arguments of a call by name, with another array."""
    arrays, numbers = CALLS[op]
    names = inspect.signature(getattr(tessera, op)).parameters
    return dict(zip(names, arrays, strict=False)) | numbers | {name: array}


@pytest.mark.parametrize("given", ["new", "out"])
@pytest.mark.parametrize(("op", "row"), INPUTS, ids=lambda one: getattr(one, "name", one))
def test_malformed_inputs(op: str, row: Any, given: str) -> None:
    arrays, numbers = CALLS[op]
    function = getattr(tessera, op)
    out = function(*arrays, **numbers) if given == "out" else None
    dtype = "float32" if "float32" in row.dtypes else "int32"
    with pytest.raises(TypeError) as caught:
        function(**with_input(op, row.name, Malformed(dtype, 4, ndim=-1)), out=out)
    assert str(caught.value) == (
        f"{op}: {row.name}: expected a DLPack tensor of 0 or more axes, got one with a negative "
        "ndim"
    )
    with pytest.raises(TypeError) as caught:
        function(**with_input(op, row.name, Malformed(dtype, ndim=2)), out=out)
    assert str(caught.value) == (
        f"{op}: {row.name}: expected a DLPack tensor with the length of each axis, got one without "
        "lengths"
    )
    # 64 bits count neither number of elements. Of the first, which wraps, nothing would be left.
    for lengths in ((2**40, 2**40), (2**31 - 1,) * 3):
        with pytest.raises(ValueError) as caught:
            function(**with_input(op, row.name, Malformed(dtype, *lengths)), out=out)
        # The op computes the length that w13 has to have from w2, and names w13 if they differ.
        about_w2 = f"{op}: w13.shape[1]: expected {2 * (2**31 - 1)}, twice w2.shape[2] = "
        assert str(caught.value).startswith((f"{op}: {row.name}", about_w2))


def test_malformed_outputs() -> None:
    for op, (arrays, numbers) in CALLS.items():
        out = getattr(tessera, op)(*arrays, **numbers)
        for i, row in enumerate(Op(op).outputs):
            for array, error in (
                (Malformed("float32", 4, ndim=-1), TypeError),
                (Malformed("float32", 2**40, 2**40), (TypeError, ValueError)),
            ):
                given = (*out[:i], array, *out[i + 1 :]) if isinstance(out, tuple) else array
                with pytest.raises(error) as caught:
                    getattr(tessera, op)(*arrays, **numbers, out=given)
                name = row.name if isinstance(out, tuple) else "out"
                assert str(caught.value).startswith(f"{op}: {name}")


ONE_OUTPUT = [op for op in CALLS if Op(op).num_outputs == 1]


@pytest.mark.parametrize("op", ONE_OUTPUT)
def test_the_only_output_is_called_out(op: str) -> None:
    arrays, numbers = CALLS[op]
    function = getattr(tessera, op)
    right = function(*arrays, **numbers)
    read_only = right.copy()
    read_only.flags.writeable = False
    for out, message in (
        ([1.0], "out: expected an array that speaks DLPack, got list"),
        ((right,), "out: expected an array, got a tuple of 1"),
        (right[0], "out.ndim: expected 2, got 1"),
        (right[:, :-1], f"out.shape[1]: expected {right.shape[1]}, got {right.shape[1] - 1}"),
        (right.astype(np.float64), "out.dtype: expected float32, as "),
        (read_only, "out: expected a writable array, got a read-only one"),
        (arrays[0].reshape(-1)[: right.size].reshape(right.shape), "out: expected memory of its "),
    ):
        with pytest.raises((TypeError, ValueError)) as caught:
            function(*arrays, **numbers, out=out)
        assert str(caught.value).startswith(f"{op}: {message}")


@pytest.mark.parametrize("op", ONE_OUTPUT)
def test_the_only_output_as_a_tensor(op: str) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    arrays, numbers = CALLS[op]
    tensors = [torch.from_numpy(array) for array in arrays]
    out = torch.empty_like(getattr(tessera, op)(*tensors, **numbers))
    for given, message in (
        (out[:, 1:], f"out.shape[1]: expected {out.shape[1]}, got {out.shape[1] - 1}"),
        (out.clone().requires_grad_(), "out: expected a tensor that autograd does not follow, got"),
        (torch._neg_view(out), "out: expected a tensor whose memory holds its values, got "),
    ):
        with pytest.raises((TypeError, ValueError)) as caught:
            getattr(tessera, op)(*tensors, **numbers, out=given)
        assert str(caught.value).startswith(f"{op}: {message}")


def test_a_bias_that_has_not_the_type_of_out() -> None:
    """With `x` in float8, `out` has a type of its own."""
    x, w13, w2, *others = CALLS["fused_experts"][0]
    (bits, x_scale), *weights = (
        tessera.quantize_fp8(one, group="row")
        for one in (x, w13.reshape(-1, w13.shape[2]), w2.reshape(-1, w2.shape[2]))
    )
    (w13_bits, w13_scale), (w2_bits, w2_scale) = weights
    with pytest.raises(TypeError) as caught:
        tessera.fused_experts(
            bits,
            w13_bits.reshape(w13.shape),
            w2_bits.reshape(w2.shape),
            *others,
            x_scale=x_scale,
            w13_scale=w13_scale.reshape(3, -1, 1),
            w2_scale=w2_scale.reshape(3, -1, 1),
            w2_bias=np.zeros((3, 128), np.float16),
            out=np.zeros((2, 128), np.float32),
        )
    assert str(caught.value) == (
        "fused_experts: w2_bias.dtype: expected float32, as out has, got float16"
    )


CALLERS_TEXTS = (
    *("silu with output", "as output has", "silu, as output has", "silu, as output has, got "),
    *("silu where output is given", "memory shared with output"),
)


@pytest.mark.parametrize("text", CALLERS_TEXTS)
def test_text_of_a_caller_stays_in_errors_of_calls_with_out(text: str) -> None:
    arrays, numbers = CALLS["fused_experts"]
    out = tessera.fused_experts(*arrays, **numbers)
    with pytest.raises(ValueError) as caught:
        tessera.fused_experts(*arrays, **numbers | {"activation": text}, out=out)
    assert str(caught.value).endswith(f", got {text}")


@pytest.mark.parametrize("text", CALLERS_TEXTS)
def test_names_in_what_came_stay(text: str) -> None:
    message = f"fused_experts: activation: expected one of silu, gelu, got {text}"
    names = {"output": "y", "activation": "act"}
    assert renamed(message, names, "apply") == message.replace(
        "fused_experts: activation", "apply: act"
    )


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("op: a.shape: expected [2], got [3]", "engine: x.shape: expected [2], got [3]"),
        ("op: c: expected an integer, got str", "engine: c: expected an integer, got str"),
        (
            "op: b.dtype: expected int8, as a has, got a",
            "engine: y.dtype: expected int8, as x has, got a",
        ),
        (
            "op: c: expected int8, as a has, or int4, got b",
            "engine: c: expected int8, as x has, or int4, got b",
        ),
        (
            "op: c: expected [2], as b has scales of a, got b",
            "engine: c: expected [2], as y has scales of a, got b",
        ),
        (
            "op: b: expected none where a is not given, got a",
            "engine: y: expected none where x is not given, got a",
        ),
        (
            "op: b: expected memory of its own, got memory shared with a",
            "engine: y: expected memory of its own, got memory shared with x",
        ),
        ("out of memory", "out of memory"),
    ],
)
def test_names_of_a_caller_in_messages(message: str, expected: str) -> None:
    assert renamed(message, {"a": "x", "b": "y"}, "engine") == expected
    assert renamed(message, {"a": "x", "b": "y"}) == expected.replace("engine", "op")
