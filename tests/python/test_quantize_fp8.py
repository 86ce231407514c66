"""`quantize_fp8` from Python: values, frameworks, strides, compiled code, refusals."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tessera
from tessera._op import Op
from tessera.info import _described

FP8 = ml_dtypes.float8_e4m3fn
X = np.array([[448, -1.0625, 0], [7, -0.4375, 3.5]], np.float32)
# By hand: the rows' scales are 1 and 1/64; -1.0625 is a tie, and goes to -1.
VALUES = [[448, -1, 0], [448, -28, 224]]
SCALES = [[1], [1 / 64]]
SPECIAL = [0, -0.0, np.inf, -np.inf, np.nan]
GROUPS: list[Any] = ["tensor", "row", 128, (128, 128)]


def torch_or_skip() -> Any:
    return pytest.importorskip("torch", reason="torch is not installed")


def assert_right(found: Any) -> None:
    """Of outputs of NumPy."""
    assert isinstance(found, tessera.QuantizedFp8)
    values, scales = map(np.asarray, found)
    assert values.view(FP8).astype(np.float32).tolist() == VALUES
    assert scales.tolist() == SCALES


def test_values() -> None:
    found = tessera.quantize_fp8(X, group="row")
    assert_right(found)
    assert [array.dtype.name for array in found] == ["uint8", "float32"]


def shape_of_scales(tokens: int, hidden: int, group: Any) -> tuple[int, ...]:
    if group == "tensor":
        return (1,)
    columns = 1 if group == "row" else -(-hidden // 128)
    return (-(-tokens // 128) if group == (128, 128) else tokens, columns)


def by_numpy(
    x: npt.NDArray[Any], group: Any, use_ue8m0: bool, scale: Any = None
) -> tuple[npt.NDArray[Any], npt.NDArray[np.float32]]:
    """The contract's formulas."""
    x = x.astype(np.float32)
    tokens, hidden = x.shape
    shape = shape_of_scales(tokens, hidden, group)
    rows = max(tokens, 1) if group == "tensor" else 128 if group == (128, 128) else 1
    columns = max(hidden, 1) if group in ("tensor", "row") else 128
    scales = np.zeros(shape, np.float32) if scale is None else scale.copy()
    values = np.zeros(x.shape, FP8)
    for i, place in enumerate(np.ndindex(shape)):
        row, column = (0, 0) if group == "tensor" else divmod(i, shape[1])
        block = np.s_[row * rows : (row + 1) * rows, column * columns : (column + 1) * columns]
        part = x[block]
        if scale is None:
            finite = np.abs(part[np.isfinite(part)])
            largest = max(finite.max(initial=0), np.float32(1e-10))
            scales[place] = np.float32(largest) / np.float32(448)
            if use_ue8m0:
                mantissa, exponent = np.frexp(scales[place])
                scales[place] = np.ldexp(np.float32(1), exponent - (mantissa == 0.5))
        with np.errstate(all="ignore"):
            quotient = part / scales[place]
            rounded = np.clip(quotient, -448, 448).astype(FP8)
        rounded[np.isnan(quotient)] = np.uint8(0x7F).view(FP8)
        values[block] = rounded
    return values, scales


@given(
    st.integers(0, 140),
    st.integers(0, 300),
    st.sampled_from(GROUPS),
    st.sampled_from(["computed", "ue8m0", "given"]),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_against_numpy(
    tokens: int, hidden: int, group: Any, scales: str, special: bool, seed: int
) -> None:
    random = np.random.default_rng(seed)
    x = random.standard_normal((tokens, hidden), np.float32) * np.float32(
        10.0 ** random.integers(-30, 30)
    )
    if special:
        some = random.random(x.shape) < 0.1
        x[some] = random.choice(np.array(SPECIAL, np.float32), some.sum())
    scale = None
    if scales == "given":
        scale = random.random(shape_of_scales(tokens, hidden, group), np.float32)
    options: dict[str, Any] = {"group": group, "use_ue8m0": scales == "ue8m0", "scale": scale}
    found = tessera.quantize_fp8(x, **options)
    values, wanted = by_numpy(x, group, scales == "ue8m0", scale)
    assert found.scales.shape == wanted.shape
    assert found.scales.tobytes() == wanted.tobytes()
    assert found.values.tobytes() == values.tobytes()
    assert not tessera.quantize_fp8_contract_violations(x, found, **options)
    again = tessera.quantize_fp8(x, **options, num_threads=1)
    assert again.values.tobytes() == found.values.tobytes()


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.array])
def test_integers_of_any_type_name_groups(kind: Any) -> None:
    x = np.ones((130, 300), np.float32)
    assert tessera.quantize_fp8(x, group=kind(128)).scales.shape == (130, 3)
    for group in ((kind(128), 128), [128, kind(128)]):
        assert tessera.quantize_fp8(x, group=group).scales.shape == (2, 3)


def outputs() -> tuple[Any, Any]:
    return np.full((2, 3), 99, np.uint8), np.full((2, 1), 99, np.float32)


def test_out_and_rows_apart() -> None:
    wide = np.full((2, 6), np.nan, np.float32)
    wide[:, 1:4] = X
    values, scales = np.full((2, 7), 99, np.uint8), np.full((2, 1), 99, np.float32)
    out = (values[:, 2:5], scales)
    assert tessera.quantize_fp8(wide[:, 1:4], group="row", out=out) is out
    assert_right(tessera.QuantizedFp8(np.ascontiguousarray(out[0]), scales))
    assert (np.delete(values, [2, 3, 4], axis=1) == 99).all()


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("with_out", [False, True])
def test_torch(dtype: str, group: Any, with_out: bool) -> None:
    torch = torch_or_skip()
    x = torch.randn(140, 300).to(getattr(torch, dtype))
    shape = shape_of_scales(140, 300, group)
    out = None
    if with_out:
        out = (x.new_empty(x.shape, dtype=torch.float8_e4m3fn), torch.empty(shape))
    found = tessera.quantize_fp8(x, group=group, out=out)
    assert found is out or not with_out
    values, scales = found
    assert (values.dtype, scales.dtype) == (torch.float8_e4m3fn, torch.float32)
    assert (values.shape, scales.shape) == (x.shape, shape)
    wanted = tessera.quantize_fp8(x.float().numpy(), group=group)
    assert values.view(torch.uint8).numpy().tolist() == wanted.values.tolist()
    assert scales.numpy().tolist() == wanted.scales.tolist()
    assert not tessera.quantize_fp8_contract_violations(x, found, group=group)


def test_jax() -> None:
    jax = pytest.importorskip("jax", reason="jax is not installed")
    found = tessera.quantize_fp8(jax.numpy.asarray(X), group="row")
    assert all(isinstance(array, jax.Array) for array in found)
    assert found.values.dtype == FP8
    assert_right(found)
    given = tessera.quantize_fp8(jax.numpy.asarray(X), group="row", scale=found.scales)
    assert_right(given)


def test_scales_may_have_one_axis() -> None:
    values, scales = tessera.quantize_fp8(X, group="row", scale=np.array([1, 1 / 64], np.float32))
    assert_right(tessera.QuantizedFp8(values, scales))
    values, scales = tessera.quantize_fp8(X, group="tensor", scale=np.array(1, np.float32))
    assert scales.tolist() == [1]


@pytest.mark.parametrize(
    ("rules", "output", "place"),
    [
        (["values"], 0, (0, 1)),
        (["nearest", "values"], 0, (0, 0)),
        (["nearest", "scales"], 1, (1, 0)),
    ],
)
def test_the_checker_bites(rules: list[str], output: int, place: tuple[int, ...]) -> None:
    found = tessera.quantize_fp8(X, group="row")
    found[output][place] += 1
    broken = tessera.quantize_fp8_contract_violations(X, found, group="row")
    assert [violation.rule for violation in broken] == rules
    assert broken[-1].array == found._fields[output]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"x": X.astype(np.float64)},
            TypeError,
            "x.dtype: expected float16, bfloat16 or float32, got float64",
        ),
        ({"x": X[0]}, ValueError, "x.ndim: expected 2, got 1"),
        (
            {"x": np.repeat(X, 2, axis=1)[:, ::2]},
            ValueError,
            "x: expected contiguous rows that share no memory, got strides [6, 2] of shape [2, 3]",
        ),
        ({"x": X.tolist()}, TypeError, "x: expected an array that speaks DLPack, got list"),
        (
            {"group": 64},
            ValueError,
            "group: expected 'tensor', 'row', 128 or (128, 128), got 64",
        ),
        (
            {"group": (1, 64)},
            ValueError,
            "group: expected 'tensor', 'row', 128 or (128, 128), got (1, 64)",
        ),
        (
            {"group": 1.5},
            TypeError,
            "group: expected a string, 128 or (128, 128), got float",
        ),
        *(
            (
                {"group": group},
                TypeError,
                f"group: expected a string, 128 or (128, 128), got {got}",
            )
            for group, got in (
                (True, "bool"),
                (np.float32(128), "float32"),
                (None, "NoneType"),
                ((128.0, 128), "(128.0, 128)"),
                ((128, True), "(128, True)"),
                ([128, None], "[128, None]"),
            )
        ),
        (
            {"group": (128,)},
            ValueError,
            "group: expected 'tensor', 'row', 128 or (128, 128), got (128,)",
        ),
        (
            {"group": "channel"},
            ValueError,
            "group: expected 'tensor', 'row', 128 or (128, 128), got 'channel'",
        ),
        (
            {"scale": np.ones((1, 2), np.float32)},
            ValueError,
            "scale.shape: expected [2, 1], got [1, 2]",
        ),
        (
            {"scale": np.ones(3, np.float32)},
            ValueError,
            "scale.num_elements: expected 2, got 3",
        ),
        (
            {"scale": np.ones((2, 1))},
            TypeError,
            "scale.dtype: expected float32, got float64",
        ),
        (
            {"scale": np.ones((2, 1), np.float32), "use_ue8m0": True},
            ValueError,
            "use_ue8m0: expected false where scale is given, got true",
        ),
        ({"out": X}, TypeError, "out: expected a tuple of two arrays, got ndarray"),
        ({"out": outputs()[:1]}, TypeError, "out: expected a tuple of two arrays, got one of 1"),
        (
            {"out": (X.astype(np.int8), outputs()[1])},
            TypeError,
            "values.dtype: expected float8_e4m3fn, got int8",
        ),
        (
            {"out": (outputs()[0][:1], outputs()[1])},
            ValueError,
            "values.shape[0]: expected 2, got 1",
        ),
        ({"num_threads": True}, TypeError, "num_threads: expected an integer, got bool"),
    ],
)
def test_refusals(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        tessera.quantize_fp8(**{"x": X, "group": "row", **arguments})
    assert str(caught.value) == f"quantize_fp8: {message}"


@pytest.mark.parametrize(
    ("group", "name"),
    [
        *((one, one) for one in ("tensor", "row", "1x128", "128x128")),
        *((one, "1x128") for one in (128, np.int64(128))),
        *((one, "128x128") for one in ((128, 128), [128, np.int32(128)])),
    ],
)
def test_explain_takes_the_groups_of_calls(group: Any, name: str) -> None:
    shape = {"T": 16, "H": 7168, "dtype": "bfloat16", "group": group}
    assert tessera.explain("quantize_fp8", **shape)
    # On the host the answer is the same for all groups: here is what is asked.
    assert _described(Op("quantize_fp8"), shape, {})[2:] == [name, False]


@pytest.mark.parametrize("group", [(128, 64), 64, None, 128.0, (128, True)])
def test_explain_refuses_a_group_as_calls_do(group: Any) -> None:
    with pytest.raises((TypeError, ValueError)) as expected:
        tessera.quantize_fp8(X, group=group)
    with pytest.raises(expected.type) as caught:
        tessera.explain("quantize_fp8", T=16, H=7168, dtype="bfloat16", group=group)
    assert str(caught.value) == str(expected.value)


def test_outputs_that_share_memory() -> None:
    memory = np.full(8, 99, np.uint8)
    out = (memory[:6].reshape(2, 3), memory.view(np.float32).reshape(2, 1))
    with pytest.raises(ValueError) as caught:
        tessera.quantize_fp8(X, group="row", out=out)
    assert str(caught.value) == (
        "quantize_fp8: values: expected memory of its own, got memory shared with scales"
    )
    assert (memory == 99).all()


def test_tensors_that_autograd_follows() -> None:
    torch = torch_or_skip()
    x = torch.from_numpy(X).requires_grad_()
    with pytest.raises(ValueError, match=r"^quantize_fp8: x: expected a tensor that autograd"):
        tessera.quantize_fp8(x, group="row")
    with torch.no_grad():
        assert tessera.quantize_fp8(x, group="row").values.float().tolist() == VALUES


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled(dynamic: bool, group: Any) -> None:
    torch = torch_or_skip()

    def layer(x: Any) -> Any:
        return tessera.quantize_fp8(x * 1, group=group)

    torch.compiler.reset()  # its limit of recompilations counts those of the other groups
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for tokens, hidden in ((2, 300), (130, 300), (0, 300), (3, 0)):
        x = torch.randn(tokens, hidden)
        for got, want in zip(compiled(x), tessera.quantize_fp8(x, group=group), strict=True):
            assert (got.shape, got.stride()) == (want.shape, want.stride())
            assert torch.equal(got.view(torch.uint8), want.view(torch.uint8))


@pytest.mark.parametrize("group", ["tensor", "row", "1x128", "128x128"])
def test_the_op_of_torch(group: str) -> None:
    torch = torch_or_skip()
    import tessera.torch_ops

    x = torch.randn(140, 300)
    op = torch.ops.tessera.quantize_fp8
    found = op(x, group)
    for got, want in zip(found, tessera.quantize_fp8(x, group=group), strict=True):
        assert torch.equal(got.view(torch.uint8), want.view(torch.uint8))
    given = op(x, group, found[1])
    assert torch.equal(given[1], found[1])
    torch.library.opcheck(op.default, (x, group, None, True))
    torch.library.opcheck(op.default, (x, group, found[1]))
    written = dict(zip(tessera.QuantizedFp8._fields, found, strict=True))
    # torch cannot multiply float8, which its test of the schema does to arrays that are written.
    utils = ("test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(op.out, (x, group), written, test_utils=utils)


def test_values_to_write_to_may_be_of_ml_dtypes() -> None:
    expected = tessera.quantize_fp8(X, group="row")
    out = (np.empty(X.shape, FP8), np.empty_like(expected.scales))
    assert tessera.quantize_fp8(X, group="row", out=out) is out
    assert_right(tessera.QuantizedFp8(*out))
    assert tessera.quantize_fp8_contract_violations(X, out, group="row") == []
