"""`moe_sum` from Python: values that need no rounding, frameworks, strides, refusals."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tessera

INPUT = np.arange(24, dtype=np.float32).reshape(4, 2, 3)
WEIGHTS = np.array([[1, 2], [0.5, 0], [-1, 1], [4, 0.25]], np.float32)
# Row t: WEIGHTS[t, 0] * INPUT[t, 0] + WEIGHTS[t, 1] * INPUT[t, 1], by hand.
WEIGHTED = [[6, 9, 12], [3, 3.5, 4], [3, 3, 3], [77.25, 81.5, 85.75]]
PLAIN = [[3, 5, 7], [15, 17, 19], [27, 29, 31], [39, 41, 43]]

FLOATS = ["float16", "bfloat16", "float32"]


def torch_or_skip() -> Any:
    return pytest.importorskip("torch", reason="torch is not installed")


def test_weights_are_ones_by_default() -> None:
    found = tessera.moe_sum(INPUT)
    assert found.dtype == np.float32
    assert found.tolist() == PLAIN
    assert tessera.moe_sum(INPUT, WEIGHTS).tolist() == WEIGHTED


ANY_PROBLEM = given(
    st.integers(0, 5),
    st.integers(1, 10),
    st.integers(0, 70),
    st.sampled_from(["float16", "float32"]),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)


@ANY_PROBLEM
def test_values(
    tokens: int, top_k: int, hidden: int, dtype: str, weighted: bool, seed: int
) -> None:
    """The integers are so small that no step rounds, whatever the order."""
    random = np.random.default_rng(seed)
    values = random.integers(-8, 9, (tokens, top_k, hidden))
    weights = random.integers(-4, 5, (tokens, top_k)) if weighted else np.ones((tokens, top_k), int)
    given_weights = weights.astype(np.float32) if weighted else None
    found = tessera.moe_sum(values.astype(dtype), given_weights)
    assert found.dtype == np.dtype(dtype)
    assert found.tolist() == (values * weights[..., None]).sum(1).tolist()


@ANY_PROBLEM
def test_any_bits_keep_the_contract(
    tokens: int, top_k: int, hidden: int, dtype: str, weighted: bool, seed: int
) -> None:
    random = np.random.default_rng(seed)
    shape = (tokens, top_k, hidden)
    bits = np.frombuffer(
        random.bytes(4 * tokens * top_k * hidden), f"uint{16 if dtype == 'float16' else 32}"
    )
    values = bits[: tokens * top_k * hidden].view(dtype).reshape(shape)
    weights = random.standard_normal((tokens, top_k), np.float32) if weighted else None
    found = tessera.moe_sum(values, weights)
    assert tessera.moe_sum_contract_violations(values, found, weights) == []
    again = tessera.moe_sum(values, weights, num_threads=1)
    assert again.tobytes() == found.tobytes()


def test_one_rounding_per_slot_in_their_order() -> None:
    """2^24 + 1 is no float32: from the front the ones are lost, from the back they are not."""
    column = np.array([2**24, 1, 1], np.float32).reshape(1, 3, 1)
    assert tessera.moe_sum(column).tolist() == [[2**24]]
    assert tessera.moe_sum(column[:, ::-1].copy()).tolist() == [[2**24 + 2]]
    # (1 + 2^-12)^2 = 1 + 2^-11 + 2^-24: only a fused multiply-add keeps the last term.
    near = np.float32(1 + 2**-12)
    fused = np.array([-1 - 2**-11, near], np.float32).reshape(1, 2, 1)
    assert tessera.moe_sum(fused, np.array([[1, near]], np.float32)).tolist() == [[2**-24]]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("with_out", [False, True])
def test_torch(dtype: str, with_out: bool) -> None:
    torch = torch_or_skip()
    values = torch.from_numpy(INPUT).to(getattr(torch, dtype))
    weights = torch.from_numpy(WEIGHTS)
    out = torch.full((4, 3), 99.0, dtype=values.dtype) if with_out else None
    found = tessera.moe_sum(values, weights, out=out)
    assert found is out or not with_out
    assert found.dtype == values.dtype
    want = torch.tensor(WEIGHTED).to(values.dtype)  # bfloat16 rounds 77.25, 81.5 and 85.75
    assert torch.equal(found, want)
    assert tessera.moe_sum_contract_violations(values, found, weights) == []


def test_rows_apart() -> None:
    wide = np.full((4, 2, 5), np.nan, np.float32)
    wide[:, :, :3] = INPUT
    assert tessera.moe_sum(wide[:, :, :3], WEIGHTS).tolist() == WEIGHTED
    assert tessera.moe_sum(wide[:, :1, :3]).tolist() == INPUT[:, 0].tolist()
    out = np.full((4, 7), -1, np.float32)
    tessera.moe_sum(INPUT, WEIGHTS, out=out[:, 2:5])
    assert out[:, 2:5].tolist() == WEIGHTED
    assert np.all(np.delete(out, [2, 3, 4], axis=1) == -1)


def test_read_only_input() -> None:
    values, weights = INPUT.copy(), WEIGHTS.copy()
    values.flags.writeable = weights.flags.writeable = False
    assert tessera.moe_sum(values, weights).tolist() == WEIGHTED


def test_jax() -> None:
    jax = pytest.importorskip("jax", reason="jax is not installed")
    found = tessera.moe_sum(jax.numpy.asarray(INPUT), jax.numpy.asarray(WEIGHTS))
    assert isinstance(found, jax.Array)
    assert found.tolist() == WEIGHTED
    brain = tessera.moe_sum(jax.numpy.asarray(INPUT, jax.numpy.bfloat16))
    assert brain.dtype == jax.numpy.bfloat16
    assert brain.tolist() == PLAIN


@pytest.mark.parametrize("shape", [(0, 2, 3), (4, 2, 0), (0, 1, 0)])
def test_nothing_to_sum(shape: tuple[int, int, int]) -> None:
    found = tessera.moe_sum(np.empty(shape, np.float16))
    assert found.shape == (shape[0], shape[2])


@pytest.mark.parametrize("rule", ["error_bound", "exact_bits"])
def test_the_checker_bites(rule: str) -> None:
    found = tessera.moe_sum(INPUT, WEIGHTS)
    if rule == "error_bound":
        found[3, 1] += 1
    else:
        found[3, 1] = np.nextafter(found[3, 1], np.float32(0))
    broken = tessera.moe_sum_contract_violations(INPUT, found, WEIGHTS)
    assert rule in [violation.rule for violation in broken]
    assert {violation.position for violation in broken} == {10}
    assert broken[-1].expected == 81.5
    assert len(broken) == (2 if rule == "error_bound" else 1)


def strided(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.repeat(array, 2, axis=-1)[..., ::2]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"input": INPUT.astype(np.float64)},
            TypeError,
            "input.dtype: expected float16, bfloat16 or float32, got float64",
        ),
        ({"input": INPUT[0]}, ValueError, "input.ndim: expected 3, got 2"),
        (
            {"input": INPUT[:, :0]},
            ValueError,
            "input.shape[1]: expected an integer in [1, 2147483647], got 0",
        ),
        (
            {"input": strided(INPUT)},
            ValueError,
            "input: expected contiguous rows that share no memory, got strides [12, 6, 2] of shape "
            "[4, 2, 3]",
        ),
        (
            {"input": INPUT.tolist()},
            TypeError,
            "input: expected an array that speaks DLPack, got list",
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
            {"topk_weights": strided(WEIGHTS)},
            ValueError,
            "topk_weights: expected a contiguous array, got strides [4, 2] of shape [4, 2]",
        ),
        (
            {"out": np.empty((4, 3), np.float16)},
            TypeError,
            "out.dtype: expected float32, as input has, got float16",
        ),
        ({"out": np.empty((4, 4), np.float32)}, ValueError, "out.shape[1]: expected 3, got 4"),
        (
            {"input": INPUT.copy(), "out": "input"},
            ValueError,
            "out: expected memory of its own, got memory shared with input",
        ),
        ({"out": ()}, TypeError, "out: expected an array, got a tuple of 0"),
        (
            {"out": (np.empty((4, 3), np.float32),)},
            TypeError,
            "out: expected an array, got a tuple of 1",
        ),
        ({"num_threads": "2"}, TypeError, "num_threads: expected an integer, got str"),
        ({"num_threads": True}, TypeError, "num_threads: expected an integer, got bool"),
        (
            {"num_threads": -1},
            ValueError,
            "num_threads: expected an integer >= 1, or 0 for automatic, got -1",
        ),
    ],
)
def test_refusals(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"input": INPUT, **arguments}
    if isinstance(arguments.get("out"), str):
        arguments["out"] = arguments["input"][:, 0]
    with pytest.raises(error) as caught:
        tessera.moe_sum(**arguments)
    assert str(caught.value) == f"moe_sum: {message}"


@pytest.mark.filterwarnings("ignore")
def test_a_tuple_of_outputs_while_torch_traces() -> None:
    torch = torch_or_skip()
    values = torch.from_numpy(INPUT)
    two = torch.empty(4, 3), torch.empty(4, 3)
    with pytest.raises(TypeError, match=r"^moe_sum: out: expected an array, got a tuple of 2$"):
        torch.jit.trace(lambda x: tessera.moe_sum(x, out=two), values)


def test_violations_name_data_types() -> None:
    found = tessera.moe_sum(INPUT, WEIGHTS)
    (broken,) = tessera.moe_sum_contract_violations(INPUT, found[:2], WEIGHTS)
    assert broken.message == (
        "output_sizes: output: expected float32[4, 3] in contiguous rows, found float32[2, 3]"
    )
    (broken,) = tessera.moe_sum_contract_violations(INPUT, found.astype(complex), WEIGHTS)
    assert broken.message.endswith(", found complex128[4, 3]")
    (broken,) = tessera.moe_sum_contract_violations(INPUT, found.T.copy().T, WEIGHTS)
    assert broken.message.endswith(", found float32[4, 3] with strides [1, 4]")
    (broken,) = tessera.moe_sum_contract_violations(INPUT.astype(bool), found, WEIGHTS)
    assert broken.message.endswith(", found bool[4, 2, 3]")


@pytest.mark.parametrize("name", ["input", "topk_weights", "out"])
@pytest.mark.parametrize("compiled", [False, True])
def test_autograd_does_not_follow(name: str, compiled: bool) -> None:
    torch = torch_or_skip()
    arrays = {"input": torch.ones(4, 2, 3), "topk_weights": torch.ones(4, 2)}
    if name == "out":
        arrays["out"] = torch.ones(4, 3, requires_grad=True)
    else:
        arrays[name].requires_grad_()
    function = torch.compile(tessera.moe_sum, backend="eager") if compiled else tessera.moe_sum
    if compiled and name == "out":
        pytest.skip("torch itself refuses to write to such a tensor")
    with pytest.raises(ValueError, match=f"^moe_sum: {name}: expected a tensor that autograd"):
        function(**arrays)
    if name != "out":
        with torch.no_grad():
            assert function(**arrays).tolist() == [[2] * 3] * 4


def test_arrays_of_another_framework_that_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    class Followed(np.ndarray[Any, Any]):
        requires_grad = True

    monkeypatch.delitem(sys.modules, "torch", raising=False)
    with pytest.raises(ValueError, match=r"^moe_sum: input: expected a tensor that autograd"):
        tessera.moe_sum(INPUT.view(Followed))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled(dynamic: bool) -> None:
    torch = torch_or_skip()

    def layer(values: Any, weights: Any) -> Any:
        return tessera.moe_sum(values, weights) + tessera.moe_sum(
            values, out=values.new_empty(4, 3)
        )

    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    found = compiled(torch.from_numpy(INPUT), torch.from_numpy(WEIGHTS))
    assert found.tolist() == (np.array(WEIGHTED) + np.array(PLAIN)).tolist()


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_op_of_torch(dtype: str) -> None:
    torch = torch_or_skip()
    import tessera.torch_ops

    values = torch.from_numpy(INPUT).to(getattr(torch, dtype))
    op = torch.ops.tessera.moe_sum
    for weights in (None, torch.from_numpy(WEIGHTS)):
        assert torch.equal(op(values, weights), tessera.moe_sum(values, weights))
        torch.library.opcheck(op.default, (values, weights))
    torch.library.opcheck(op.out, (values,), {"output": values.new_empty(4, 3)})
