"""`select_and_align` from Python: values, frameworks, compiled code, refusals."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tessera

LOGITS = np.array([[0, 2, 1, -1], [3, 0, 0, 1], [1, 2, 0, 0]], np.float32)
# By hand: the best two of each token, and their pairs in blocks of two.
IDS = [[1, 2], [0, 3], [1, 0]]
SORTED = [2, 5, 0, 4, 1, 6, 3, 6, 6, 6]
EXPERTS = [0, 1, 2, 3, -1]

OPTIONS: dict[str, Any] = {"top_k": 2, "block_size": 2}


def torch_or_skip() -> Any:
    return pytest.importorskip("torch", reason="torch is not installed")


def assert_right(found: Any) -> None:
    assert isinstance(found, tessera.SelectedAndAligned)
    assert found.topk_ids.tolist() == IDS
    assert found.sorted_token_ids.tolist() == SORTED
    assert found.expert_ids.tolist() == EXPERTS
    assert found.num_tokens_post_pad.tolist() == [8]


def of_two_ops(logits: Any, **options: Any) -> list[Any]:
    """The outputs of `select_experts` and `align_block_size`."""
    aligning = {
        name: options.pop(name)
        for name in ("expert_map", "ignore_invalid_experts", "pad_sorted_ids", "block_size")
        if name in options
    }
    chosen = tessera.select_experts(logits, **options)
    experts = logits.shape[1]
    return [*chosen, *tessera.align_block_size(chosen.topk_ids, num_experts=experts, **aligning)]


def assert_same(found: Any, expected: Any) -> None:
    for one, other in zip(found, expected, strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


def test_values() -> None:
    found = tessera.select_and_align(LOGITS, **OPTIONS, renormalize=True)
    assert_right(found)
    weights = [[0.7311, 0.2689], [0.8808, 0.1192], [0.7311, 0.2689]]
    assert np.array_equal(found.topk_weights.round(4), np.float32(weights))


def test_load() -> None:
    counts, statistics = np.empty(4, np.int32), np.empty(6)
    tessera.select_and_align(LOGITS, **OPTIONS, expert_counts=counts, statistics=statistics)
    assert counts.tolist() == [2, 2, 1, 1]
    assert statistics.tolist() == [6, 4, 4, 2, 2, 1.5]
    assert tessera.RoutingStatistics(*statistics).max_load == 2
    only = np.empty(6)
    tessera.select_and_align(LOGITS, **OPTIONS, statistics=only)
    assert only.tolist() == statistics.tolist()


def test_padding_and_a_map() -> None:
    found = tessera.select_and_align(
        LOGITS,
        **OPTIONS,
        num_valid_tokens=np.array([2], np.int32),
        expert_map=np.array([1, 0, -1, 4], np.int32),
        ignore_invalid_experts=True,
    )
    assert found.topk_ids.tolist() == [*IDS[:2], [-1, -1]]
    assert found.sorted_token_ids.tolist() == [0, 6, 2, *7 * [6]]
    assert found.expert_ids.tolist() == [0, 1, -1, -1, -1]


@given(
    st.integers(0, 40),
    st.integers(1, 40),
    st.integers(1, 20),
    st.sampled_from(["softmax", "sigmoid", "sqrt_softplus"]),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_against_the_two_ops(
    tokens: int,
    experts: int,
    block_size: int,
    scoring: str,
    biased: bool,
    mapped: bool,
    flag: bool,
    seed: int,
) -> None:
    random = np.random.default_rng(seed)
    logits = random.normal(0, 3, (tokens, experts)).astype(np.float32)
    options: dict[str, Any] = {
        "top_k": int(random.integers(1, experts + 1)),
        "block_size": block_size,
        "scoring": scoring,
        "renormalize": flag,
        "pad_sorted_ids": flag,
    }
    if biased:
        options["correction_bias"] = random.normal(0, 1, experts).astype(np.float32)
    if mapped:
        options["expert_map"] = random.integers(-1, experts + 1, experts, np.int32)
        options["ignore_invalid_experts"] = not flag
    found = tessera.select_and_align(logits, **options)
    assert_same(found, of_two_ops(logits, **options))
    assert not tessera.select_and_align_contract_violations(logits, found, **options)
    assert_same(tessera.select_and_align(logits, **options, num_threads=1), found)


def outputs() -> tuple[Any, ...]:
    """Buffers, of which the third and fourth are longer than needed."""
    lengths = ((3, 2), (3, 2), (12,), (7,), (1,))
    return tuple(
        np.full(shape, 77, np.int32 if place else np.float32) for place, shape in enumerate(lengths)
    )


def test_out() -> None:
    out = outputs()
    assert tessera.select_and_align(LOGITS, **OPTIONS, out=out) is out
    assert out[1].tolist() == IDS
    assert out[2].tolist() == [*SORTED, 6, 6]
    assert out[3].tolist() == [*EXPERTS, -1, -1]


def test_the_checker_finds_what_is_wrong() -> None:
    found = tessera.select_and_align(LOGITS, **OPTIONS)
    found.sorted_token_ids[0], found.sorted_token_ids[1] = 5, 2
    found.expert_ids[4] = 0
    broken = tessera.select_and_align_contract_violations(LOGITS, found, **OPTIONS)
    assert [violation.rule for violation in broken] == ["stable_order", "expert_tail"]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("with_out", [False, True])
def test_torch(dtype: str, with_out: bool) -> None:
    torch = torch_or_skip()
    logits = torch.from_numpy(LOGITS).to(getattr(torch, dtype))
    out = tuple(map(torch.from_numpy, outputs())) if with_out else None
    found = tessera.select_and_align(logits, **OPTIONS, out=out)
    assert found is out or not with_out
    if not with_out:
        assert_right(found)
        assert_same(found, of_two_ops(logits, **OPTIONS))
    assert found[0].dtype == torch.float32
    assert not tessera.select_and_align_contract_violations(logits, found, **OPTIONS)


def test_jax() -> None:
    jax = pytest.importorskip("jax", reason="jax is not installed")
    found = tessera.select_and_align(jax.numpy.asarray(LOGITS), **OPTIONS)
    assert all(isinstance(array, jax.Array) for array in found)
    assert_right(found)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled(dynamic: bool) -> None:
    torch = torch_or_skip()
    logits = torch.from_numpy(np.random.default_rng(1).normal(0, 3, (40, 24)))
    logits = logits.to(torch.bfloat16)

    def layer(logits: Any) -> Any:
        counts = logits.new_empty(24).int()
        found = tessera.select_and_align(
            logits, top_k=3, block_size=4, pad_sorted_ids=True, expert_counts=counts
        )
        assert isinstance(found, tessera.SelectedAndAligned)
        return (*found, counts)

    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for num_tokens in (40, 17):
        eager, found = layer(logits[:num_tokens]), compiled(logits[:num_tokens])
        assert [one.shape for one in found] == [one.shape for one in eager]
        assert all(map(torch.equal, found, eager))


def test_the_op_of_torch() -> None:
    torch = torch_or_skip()
    import tessera.torch_ops

    logits = torch.from_numpy(LOGITS)
    op = torch.ops.tessera.select_and_align
    assert_right(tessera.SelectedAndAligned(*op(logits, 2, 2)))
    torch.library.opcheck(op.default, (logits, 2, 2))
    torch.library.opcheck(op.default, (logits, 2, 2, "sigmoid", True, torch.zeros(4), 2, 1))
    names = ("topk_weights", "topk_ids", "sorted_token_ids", "expert_ids", "num_tokens_post_pad")
    out = dict(zip(names, map(torch.from_numpy, outputs()), strict=True))
    torch.library.opcheck(op.out, (logits, 2, 2), out)


REFUSALS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"top_k": 5}, ValueError, "top_k: expected an integer in [1, 4], got 5"),
    ({"top_k": 1.5}, TypeError, "top_k: expected an integer, got float"),
    ({"block_size": 0}, ValueError, "block_size: expected an integer in [1, 2147483647], got 0"),
    (
        {"block_size": 2**30},
        ValueError,
        "capacity: expected at most 2147483647 slots, got 4294967298 (6 ids + "
        "min(ids, 4 experts) * (block_size 1073741824 - 1))",
    ),
    (
        {"scoring": "relu"},
        ValueError,
        "scoring: expected one of softmax, sigmoid, sqrt_softplus, got relu",
    ),
    (
        {"num_expert_group": 3},
        ValueError,
        "num_expert_group: expected a divisor of the number of experts, 4, got 3",
    ),
    (
        {"expert_map": np.zeros(3, np.int32)},
        ValueError,
        "expert_map.num_elements: expected 4, got 3",
    ),
    ({"num_threads": True}, TypeError, "num_threads: expected an integer, got bool"),
    ({"out": ()}, TypeError, "out: expected a tuple of five arrays, got one of 0"),
]


@pytest.mark.parametrize(("changes", "kind", "message"), REFUSALS)
def test_refusals(changes: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=f"^select_and_align: {re.escape(message)}"):
        tessera.select_and_align(LOGITS, **OPTIONS | changes)


def test_autograd_does_not_follow() -> None:
    torch = torch_or_skip()
    logits = torch.from_numpy(LOGITS.copy()).requires_grad_()
    with pytest.raises(ValueError, match=r"^select_and_align: router_logits: expected a tensor "):
        tessera.select_and_align(logits, **OPTIONS)
    with torch.no_grad():
        assert_right(tessera.select_and_align(logits, **OPTIONS))
