"""`moe_unpermute` from Python: values that need no rounding, frameworks, strides, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tessera

# Row 2 has no pair, and pairs with -1 and 5 have no row.
ROWS = np.array([[1, 2, 3], [10, 20, 30], [np.nan] * 3, [4, 5, 6], [40, 50, 60]], np.float32)
INVERSE = np.array([[3, 0], [1, -1], [5, 4], [-1, 5]], np.int32)
WEIGHTS = np.array([[0.5, 2], [1, np.nan], [np.nan, 0.25], [np.nan, np.nan]], np.float32)
# Row t: the weight times the row of each pair that counts, by hand.
WEIGHTED = [[4, 6.5, 9], [10, 20, 30], [10, 12.5, 15], [0, 0, 0]]
PLAIN = [[5, 7, 9], [10, 20, 30], [40, 50, 60], [0, 0, 0]]

FLOATS = ["float16", "bfloat16", "float32"]


def torch_or_skip() -> Any:
    return pytest.importorskip("torch", reason="torch is not installed")


def test_weights_may_be_none() -> None:
    found = tessera.moe_unpermute(ROWS, None, INVERSE)
    assert found.dtype == np.float32
    assert found.tolist() == PLAIN
    assert tessera.moe_unpermute(ROWS, WEIGHTS, INVERSE).tolist() == WEIGHTED
    assert not np.signbit(found[3]).any()


ANY_PROBLEM = given(
    st.integers(0, 9),
    st.integers(0, 5),
    st.integers(1, 40),
    st.integers(0, 70),
    st.sampled_from(["float16", "float32"]),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)


@ANY_PROBLEM
def test_values(
    num_rows: int, tokens: int, top_k: int, hidden: int, dtype: str, weighted: bool, seed: int
) -> None:
    """The integers are so small that no step rounds, whatever the order."""
    random = np.random.default_rng(seed)
    rows = random.integers(-8, 9, (num_rows, hidden))
    inverse = random.integers(-2, num_rows + 2, (tokens, top_k)).astype(np.int32)
    weights = random.integers(-4, 5, (tokens, top_k)) if weighted else np.ones((tokens, top_k), int)
    expected = np.zeros((tokens, hidden), int)
    for (token, slot), row in np.ndenumerate(inverse):
        if 0 <= row < num_rows:
            expected[token] += weights[token, slot] * rows[row]
    found = tessera.moe_unpermute(
        rows.astype(dtype), weights.astype(np.float32) if weighted else None, inverse
    )
    assert found.dtype == np.dtype(dtype)
    assert found.tolist() == expected.tolist()


@ANY_PROBLEM
def test_any_bits_keep_the_contract(
    num_rows: int, tokens: int, top_k: int, hidden: int, dtype: str, weighted: bool, seed: int
) -> None:
    random = np.random.default_rng(seed)
    width = np.dtype(dtype).itemsize
    rows = np.frombuffer(random.bytes(width * num_rows * hidden), dtype).reshape(num_rows, hidden)
    inverse = random.integers(-2, num_rows + 2, (tokens, top_k)).astype(np.int32)
    weights = random.standard_normal((tokens, top_k), np.float32) if weighted else None
    found = tessera.moe_unpermute(rows, weights, inverse)
    assert tessera.moe_unpermute_contract_violations(rows, weights, inverse, found) == []
    again = tessera.moe_unpermute(rows, weights, inverse, num_threads=1)
    assert again.tobytes() == found.tobytes()


def test_one_rounding_per_slot_in_their_order() -> None:
    """2^24 + 1 is no float32: from the front the ones are lost, from the back they are not."""
    rows = np.array([[2**24], [1], [1]], np.float32)
    inverse = np.array([[0, 1, 2], [2, 1, 0]], np.int32)
    assert tessera.moe_unpermute(rows, None, inverse).tolist() == [[2**24], [2**24 + 2]]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("with_out", [False, True])
def test_torch(dtype: str, with_out: bool) -> None:
    torch = torch_or_skip()
    rows = torch.from_numpy(ROWS).to(getattr(torch, dtype))
    weights, inverse = torch.from_numpy(WEIGHTS), torch.from_numpy(INVERSE)
    out = torch.full((4, 3), 99.0, dtype=rows.dtype) if with_out else None
    found = tessera.moe_unpermute(rows, weights, inverse, out=out)
    assert found is out or not with_out
    assert torch.equal(found, torch.tensor(WEIGHTED).to(rows.dtype))
    assert torch.equal(
        tessera.moe_unpermute(rows, None, inverse), torch.tensor(PLAIN).to(rows.dtype)
    )
    assert tessera.moe_unpermute_contract_violations(rows, weights, inverse, found) == []


def test_rows_apart() -> None:
    wide = np.full((5, 7), np.nan, np.float32)
    wide[:, 1:4] = ROWS
    assert tessera.moe_unpermute(wide[:, 1:4], WEIGHTS, INVERSE).tolist() == WEIGHTED
    out = np.full((4, 7), -1, np.float32)
    tessera.moe_unpermute(ROWS, WEIGHTS, INVERSE, out=out[:, 2:5])
    assert out[:, 2:5].tolist() == WEIGHTED
    assert np.all(np.delete(out, [2, 3, 4], axis=1) == -1)


def test_jax() -> None:
    jax = pytest.importorskip("jax", reason="jax is not installed")
    found = tessera.moe_unpermute(*map(jax.numpy.asarray, (ROWS, WEIGHTS, INVERSE)))
    assert isinstance(found, jax.Array)
    assert found.tolist() == WEIGHTED


@pytest.mark.parametrize(("rows", "tokens", "hidden"), [(0, 2, 3), (4, 0, 3), (4, 2, 0), (0, 0, 0)])
def test_nothing_to_sum(rows: int, tokens: int, hidden: int) -> None:
    inverse = np.zeros((tokens, 2), np.int32)
    found = tessera.moe_unpermute(np.ones((rows, hidden), np.float16), None, inverse)
    assert found.tolist() == np.zeros((tokens, hidden)).tolist()


@pytest.mark.parametrize("rule", ["error_bound", "exact_bits"])
def test_the_checker_bites(rule: str) -> None:
    found = tessera.moe_unpermute(ROWS, WEIGHTS, INVERSE)
    if rule == "error_bound":
        found[2, 1] += 1
    else:
        found[2, 1] = np.nextafter(found[2, 1], np.float32(0))
    broken = tessera.moe_unpermute_contract_violations(ROWS, WEIGHTS, INVERSE, found)
    assert rule in [violation.rule for violation in broken]
    assert {violation.position for violation in broken} == {7}
    assert broken[-1].expected == 12.5
    assert len(broken) == (2 if rule == "error_bound" else 1)


def strided(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.repeat(array, 2, axis=-1)[..., ::2]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"rows": ROWS.astype(np.float64)},
            TypeError,
            "rows.dtype: expected float16, bfloat16 or float32, got float64",
        ),
        ({"rows": ROWS[0]}, ValueError, "rows.ndim: expected 2, got 1"),
        (
            {"rows": strided(ROWS)},
            ValueError,
            "rows: expected contiguous rows that share no memory, got strides [6, 2] of shape "
            "[5, 3]",
        ),
        (
            {"inverse": INVERSE.astype(np.int64)},
            TypeError,
            "inverse.dtype: expected int32, got int64",
        ),
        (
            {"inverse": INVERSE[:, :0], "topk_weights": None},
            ValueError,
            "inverse.shape[1]: expected an integer in [1, 2147483647], got 0",
        ),
        (
            {"inverse": strided(INVERSE)},
            ValueError,
            "inverse: expected a contiguous array, got strides [4, 2] of shape [4, 2]",
        ),
        (
            {"inverse": INVERSE.tolist()},
            TypeError,
            "inverse: expected an array that speaks DLPack, got list",
        ),
        (
            {"inverse": None},
            TypeError,
            "inverse: expected an array that speaks DLPack, got NoneType",
        ),
        (
            {"topk_weights": WEIGHTS[:3]},
            ValueError,
            "topk_weights.shape[0]: expected 4, got 3",
        ),
        (
            {"topk_weights": WEIGHTS.astype(np.float16)},
            TypeError,
            "topk_weights.dtype: expected float32, got float16",
        ),
        (
            {"out": np.empty((4, 3), np.float16)},
            TypeError,
            "out.dtype: expected float32, as rows has, got float16",
        ),
        ({"out": np.empty((5, 3), np.float32)}, ValueError, "out.shape[0]: expected 4, got 5"),
        (
            {"rows": ROWS.copy(), "out": "rows"},
            ValueError,
            "out: expected memory of its own, got memory shared with rows",
        ),
        ({"num_threads": True}, TypeError, "num_threads: expected an integer, got bool"),
    ],
)
def test_refusals(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"rows": ROWS, "topk_weights": WEIGHTS, "inverse": INVERSE, **arguments}
    if isinstance(arguments.get("out"), str):
        arguments["out"] = arguments["rows"][:4]
    with pytest.raises(error) as caught:
        tessera.moe_unpermute(**arguments)
    assert str(caught.value) == f"moe_unpermute: {message}"


@pytest.mark.parametrize("name", ["rows", "topk_weights", "out"])
@pytest.mark.parametrize("compiled", [False, True])
def test_autograd_does_not_follow(name: str, compiled: bool) -> None:
    torch = torch_or_skip()
    arrays = {
        "rows": torch.ones(8, 3),
        "topk_weights": torch.ones(4, 2),
        "inverse": torch.arange(8, dtype=torch.int32).reshape(4, 2),
    }
    if name == "out":
        arrays["out"] = torch.ones(4, 3, requires_grad=True)
    else:
        arrays[name].requires_grad_()
    function: Any = tessera.moe_unpermute
    if compiled:
        function = torch.compile(function, backend="eager")
    if compiled and name == "out":
        pytest.skip("torch itself refuses to write to such a tensor")
    with pytest.raises(ValueError, match=f"^moe_unpermute: {name}: expected a tensor that autogr"):
        function(**arrays)
    if name != "out":
        with torch.no_grad():
            assert function(**arrays).tolist() == [[2] * 3] * 4


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled(dynamic: bool) -> None:
    torch = torch_or_skip()

    def layer(rows: Any, weights: Any, inverse: Any) -> Any:
        out = rows.new_empty(4, 3)
        return tessera.moe_unpermute(rows, weights, inverse) + tessera.moe_unpermute(
            rows, None, inverse, out=out
        )

    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    found = compiled(*map(torch.from_numpy, (ROWS, WEIGHTS, INVERSE)))
    assert found.tolist() == (np.array(WEIGHTED) + np.array(PLAIN)).tolist()


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_op_of_torch(dtype: str) -> None:
    torch = torch_or_skip()
    import tessera.torch_ops

    rows = torch.from_numpy(ROWS).to(getattr(torch, dtype))
    inverse = torch.from_numpy(INVERSE)
    op = torch.ops.tessera.moe_unpermute
    for weights in (None, torch.from_numpy(WEIGHTS)):
        found = op(rows, weights, inverse)
        assert torch.equal(found, tessera.moe_unpermute(rows, weights, inverse))
        torch.library.opcheck(op.default, (rows, weights, inverse))
    out = {"output": rows.new_empty(4, 3)}
    torch.library.opcheck(op.out, (rows, None, inverse), out)
