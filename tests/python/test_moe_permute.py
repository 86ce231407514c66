"""`moe_permute` from Python: values, frameworks, strides, compiled code, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tessera

X = np.arange(8, dtype=np.float32).reshape(4, 2)
IDS = np.array([[2, 0], [0, 9], [2, 1], [-1, 2]], np.int32)
# By hand: expert 0 has pairs 1 and 2, expert 1 pair 5, expert 2 pairs 0, 4 and 7.
ROWS = [[0, 1], [2, 3], [4, 5], [0, 1], [4, 5], [6, 7]]
OFFSETS = [0, 2, 3, 6]
INVERSE = [[3, 0], [1, -1], [4, 2], [-1, 5]]

DTYPES = ["float16", "bfloat16", "float32", "float8_e4m3fn"]


def torch_or_skip() -> Any:
    return pytest.importorskip("torch", reason="torch is not installed")


def assert_right(found: Any) -> None:
    assert isinstance(found, tessera.PermutedTokens)
    assert found.rows[:6].tolist() == ROWS
    assert found.expert_offsets.tolist() == OFFSETS
    assert found.inverse.tolist() == INVERSE


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_values(dtype: str) -> None:
    found = tessera.moe_permute(X, IDS.astype(dtype), num_experts=3)
    assert_right(found)
    assert found.rows.shape == (8, 2)
    assert (found.rows.dtype, found.inverse.dtype) == (np.float32, np.int32)


def test_numpy_holds_bits_of_float8() -> None:
    found = tessera.moe_permute(X.astype(np.uint8), IDS, num_experts=3)
    assert_right(found)
    assert found.rows.dtype == np.uint8


def test_blocks_are_padded_with_zeros() -> None:
    found = tessera.moe_permute(X, IDS, num_experts=3, block_size=2)
    assert found.rows.shape == (11, 2)
    assert found.rows[:8].tolist() == [*ROWS[:3], [0, 0], *ROWS[3:], [0, 0]]
    assert found.expert_offsets.tolist() == [0, 2, 4, 8]
    assert found.inverse.tolist() == [[4, 0], [1, -1], [5, 2], [-1, 6]]


def test_a_map() -> None:
    """Ids 4, 3 and 1 are experts 0, 1 and 2; of id 0 and 2 the experts are elsewhere."""
    expert_map = np.array([-1, 2, 3, 1, 0], np.int32)
    ids = np.array([[1, 4], [4, 0], [1, 3], [2, 1]], np.int64)
    assert_right(tessera.moe_permute(X, ids, num_experts=3, expert_map=expert_map))


def test_nans_keep_their_bits() -> None:
    bits = np.array([[0x7F800001], [0xFFC12345], [0x7FFFFFFF]], np.uint32)
    found = tessera.moe_permute(bits.view(np.float32), np.array([[1], [0], [1]]), num_experts=2)
    assert found.rows.view(np.uint32).tolist() == [[0xFFC12345], [0x7F800001], [0x7FFFFFFF]]


@given(
    st.integers(0, 6),
    st.integers(1, 9),
    st.integers(0, 40),
    st.integers(1, 12),
    st.integers(1, 9),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_against_numpy(
    tokens: int, top_k: int, hidden: int, experts: int, block_size: int, mapped: bool, seed: int
) -> None:
    random = np.random.default_rng(seed)
    x = random.standard_normal((tokens, hidden), np.float32)
    ids = random.integers(-2, experts + 3, (tokens, top_k))
    expert_map = random.integers(-1, experts + 1, experts + 2, np.int32) if mapped else None
    options: dict[str, Any] = {"num_experts": experts, "block_size": block_size}
    found = tessera.moe_permute(x, ids, **options, expert_map=expert_map)

    of_pair = ids.flatten()
    if expert_map is not None:
        is_global = (of_pair >= 0) & (of_pair < len(expert_map))
        of_pair = np.where(is_global, expert_map[np.where(is_global, of_pair, 0)], -1)
    rows, offsets, inverse = [], [0], np.full(tokens * top_k, -1)
    for expert in range(experts):
        for pair in np.flatnonzero(of_pair == expert):
            inverse[pair] = len(rows)
            rows.append(x[pair // top_k])
        rows += [np.zeros(hidden, np.float32)] * (-len(rows) % block_size)
        offsets.append(len(rows))
    assert found.expert_offsets.tolist() == offsets
    assert found.inverse.flatten().tolist() == inverse.tolist()
    assert found.rows[: len(rows)].tolist() == np.reshape(rows, (len(rows), hidden)).tolist()

    assert not tessera.moe_permute_contract_violations(
        x, ids, found, **options, expert_map=expert_map
    )
    again = tessera.moe_permute(x, ids, **options, expert_map=expert_map, num_threads=1)
    assert again.rows[: len(rows)].tobytes() == found.rows[: len(rows)].tobytes()


def outputs(like: npt.NDArray[Any] = X) -> tuple[Any, Any, Any]:
    return np.full((8, 2), 99, like.dtype), np.empty(4, np.int32), np.empty((4, 2), np.int32)


def test_out_and_rows_that_are_not_in_use() -> None:
    out = outputs()
    assert tessera.moe_permute(X, IDS, num_experts=3, out=out) is out
    assert_right(tessera.PermutedTokens(*out))
    assert (out[0][6:] == 99).all()


def test_rows_apart() -> None:
    wide = np.full((4, 5), np.nan, np.float32)
    wide[:, 1:3] = X
    out = outputs()
    rows = np.full((8, 7), -1, np.float32)
    tessera.moe_permute(wide[:, 1:3], IDS, num_experts=3, out=(rows[:, 2:4], *out[1:]))
    assert rows[:6, 2:4].tolist() == ROWS
    assert (rows[6:] == -1).all()
    assert (np.delete(rows, [2, 3], axis=1) == -1).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_out", [False, True])
def test_torch(dtype: str, with_out: bool) -> None:
    torch = torch_or_skip()
    x = torch.from_numpy(X).to(getattr(torch, dtype))
    ids = torch.from_numpy(IDS)
    out = None
    if with_out:
        out = (x.new_zeros(8, 2), ids.new_empty(4), torch.empty_like(ids))
    found = tessera.moe_permute(x, ids, num_experts=3, out=out)
    assert found is out or not with_out
    assert found[0].dtype == x.dtype
    assert_right(tessera.PermutedTokens(found[0].float(), *found[1:]))
    assert not tessera.moe_permute_contract_violations(x, ids, found, num_experts=3)


def test_jax() -> None:
    jax = pytest.importorskip("jax", reason="jax is not installed")
    found = tessera.moe_permute(jax.numpy.asarray(X), jax.numpy.asarray(IDS), num_experts=3)
    assert all(isinstance(array, jax.Array) for array in found)
    assert_right(found)


@pytest.mark.parametrize(
    ("rule", "output", "place"),
    [
        ("expert_offsets", 1, (1,)),
        ("inverse", 2, (0, 1)),
        ("token_bits", 0, (5, 1)),
        ("padding", 0, (3, 0)),
    ],
)
def test_the_checker_bites(rule: str, output: int, place: tuple[int, ...]) -> None:
    options: dict[str, Any] = {"num_experts": 3, "block_size": 2}
    found = tessera.moe_permute(X, IDS, **options)
    found[output][place] += 1
    broken = tessera.moe_permute_contract_violations(X, IDS, found, **options)
    assert [violation.rule for violation in broken] == [rule]
    assert broken[0].array == found._fields[output]


def strided(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.repeat(array, 2, axis=-1)[..., ::2]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"x": X.astype(np.float64)},
            TypeError,
            "x.dtype: expected float16, bfloat16, float32 or float8_e4m3fn, got float64",
        ),
        ({"x": X[0]}, ValueError, "x.ndim: expected 2, got 1"),
        (
            {"x": strided(X)},
            ValueError,
            "x: expected contiguous rows that share no memory, got strides [4, 2] of shape [4, 2]",
        ),
        ({"x": X.tolist()}, TypeError, "x: expected an array that speaks DLPack, got list"),
        ({"topk_ids": IDS[:3]}, ValueError, "topk_ids.shape[0]: expected 4, got 3"),
        (
            {"topk_ids": IDS[:, :0]},
            ValueError,
            "topk_ids.shape[1]: expected an integer in [1, 2147483647], got 0",
        ),
        (
            {"topk_ids": IDS.astype(np.int16)},
            TypeError,
            "topk_ids.dtype: expected int32 or int64, got int16",
        ),
        (
            {"topk_ids": strided(IDS)},
            ValueError,
            "topk_ids: expected a contiguous array, got strides [4, 2] of shape [4, 2]",
        ),
        (
            {"expert_map": np.zeros((2, 2), np.int32)},
            ValueError,
            "expert_map.ndim: expected 1, got 2",
        ),
        (
            {"num_experts": 0},
            ValueError,
            "num_experts: expected an integer in [1, 1073741824], got 0",
        ),
        ({"num_experts": "3"}, TypeError, "num_experts: expected an integer, got str"),
        (
            {"block_size": 0},
            ValueError,
            "block_size: expected an integer in [1, 2147483647], got 0",
        ),
        (
            {"block_size": 2**30},
            ValueError,
            "capacity: expected at most 2147483647 slots, got 3221225477 (8 ids + min(ids, 3 "
            "experts) * (block_size 1073741824 - 1))",
        ),
        ({"out": X}, TypeError, "out: expected a tuple of three arrays, got ndarray"),
        ({"out": outputs()[:2]}, TypeError, "out: expected a tuple of three arrays, got one of 2"),
        (
            {"out": outputs(X.astype(np.float16))},
            TypeError,
            "rows.dtype: expected float32, as x has, got float16",
        ),
        ({"block_size": 2, "out": outputs()}, ValueError, "rows.shape[0]: expected 11, got 8"),
        ({"num_threads": True}, TypeError, "num_threads: expected an integer, got bool"),
    ],
)
def test_refusals(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        tessera.moe_permute(**{"x": X, "topk_ids": IDS, "num_experts": 3, **arguments})
    assert str(caught.value) == f"moe_permute: {message}"


def test_outputs_that_share_memory() -> None:
    rows, _, inverse = outputs()
    shared = inverse.reshape(-1)[:4]
    with pytest.raises(ValueError) as caught:
        tessera.moe_permute(X, IDS, num_experts=3, out=(rows, shared, inverse))
    assert str(caught.value) == (
        "moe_permute: expert_offsets: expected memory of its own, got memory shared with inverse"
    )
    assert (rows == 99).all()


def test_tensors_that_autograd_follows() -> None:
    torch = torch_or_skip()
    x = torch.from_numpy(X).requires_grad_()
    with pytest.raises(ValueError, match=r"^moe_permute: x: expected a tensor that autograd"):
        tessera.moe_permute(x, torch.from_numpy(IDS), num_experts=3)
    with torch.no_grad():
        assert_right(tessera.moe_permute(x, torch.from_numpy(IDS), num_experts=3))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled(dynamic: bool) -> None:
    torch = torch_or_skip()

    def layer(x: Any, ids: Any) -> Any:
        return tessera.moe_permute(x * 1, ids, num_experts=3)

    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    assert_right(compiled(torch.from_numpy(X), torch.from_numpy(IDS)))


@pytest.mark.parametrize("dtype", DTYPES[:3])
def test_the_op_of_torch(dtype: str) -> None:
    torch = torch_or_skip()
    import tessera.torch_ops

    x = torch.from_numpy(X).to(getattr(torch, dtype))
    ids = torch.tensor([[2, 0], [0, 0], [2, 1], [1, 2]])  # all rows are in use
    op = torch.ops.tessera.moe_permute
    found = op(x, ids, 3)
    for got, want in zip(found, tessera.moe_permute(x, ids, num_experts=3), strict=True):
        assert torch.equal(got, want)
    torch.library.opcheck(op.default, (x, ids, 3))
    written = dict(zip(tessera.PermutedTokens._fields, found, strict=True))
    torch.library.opcheck(op.out, (x, ids, 3), written)


def test_rows_of_ml_dtypes_float8() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
    x = np.arange(24, dtype=np.uint8).reshape(3, 8).view(ml_dtypes.float8_e4m3fn)
    topk_ids = np.array([[1], [0], [1]])
    found = tessera.moe_permute(x, topk_ids, num_experts=2)
    expected = tessera.moe_permute(x.view(np.uint8), topk_ids, num_experts=2)
    assert isinstance(found, tessera.PermutedTokens) and found.rows.dtype == x.dtype
    for one, other in zip(found, expected, strict=True):
        assert np.array_equal(one.view(other.dtype), other)
    assert tessera.moe_permute(x, topk_ids, num_experts=2, out=found) is found
    assert tessera.moe_permute_contract_violations(x, topk_ids, found, num_experts=2) == []
