"""vLLM's ops on rows: calls that Tessera refuses before it writes anything, and their edges."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from refusals import NO_MEMORY, Refusal, after, refused  # noqa: E402
from tessera.vllm import rows  # noqa: E402

T, K, E, H = 4, 2, 6, 8

IDS = torch.tensor([[5, 0], [1, 4], [0, 5], [2, 3]])
X = torch.arange(T * H, dtype=torch.float32).view(T, H)
INVERSE = torch.arange(T * K, dtype=torch.int32)
MAP = torch.tensor([-1, 0, -1, 1, 2, -1], dtype=torch.int32)


def int64(*values: int) -> Any:
    return torch.tensor(values, dtype=torch.int64)


_NO_LOCAL = "n_local_expert: expected an integer"

_PERMUTE = after(
    "moe_permute",
    ({"a1q_scale": X[:3]}, ValueError, "a1q_scale: expected 4 rows, one for each token, got 3"),
    (
        {"a1q_scale": X.repeat(2, 1)},
        ValueError,
        "a1q_scale: expected 4 rows, one for each token, got 8",
    ),
    ({"a1q_scale": X.numpy()}, TypeError, "a1q_scale: expected a torch.Tensor, got ndarray"),
    ({"a1q_scale": 1.0}, TypeError, "a1q_scale: expected a torch.Tensor, got float"),
    (
        {"a1q_scale": X.to_sparse()},
        TypeError,
        f"a1q_scale: {NO_MEMORY} layout torch.sparse_coo",
    ),
    ({"a1q_scale": X.to("meta")}, ValueError, "a1q_scale: expected a tensor on cpu, got meta"),
    ({"hidden_states": X[0]}, ValueError, "hidden_states: expected 2 axes, got 1"),
    ({"hidden_states": X.to("meta")}, TypeError, f"hidden_states: {NO_MEMORY} one on meta"),
    (
        {"hidden_states": X.double()},
        TypeError,
        "hidden_states.dtype: expected float16, bfloat16, float32 or float8_e4m3fn, got float64",
    ),
    (
        {"hidden_states": X.half()},
        TypeError,
        "permuted_hidden_states.dtype: expected float16, as hidden_states has, got float32",
    ),
    ({"topk_ids": IDS.flatten()}, ValueError, "topk_ids: expected 2 axes, got 1"),
    (
        {"topk_ids": IDS[:, :0]},
        ValueError,
        "topk_ids.shape[1]: expected an integer in [1, 2147483647], got 0",
    ),
    ({"n_local_expert": -2}, ValueError, f"{_NO_LOCAL} in [1, 6], got -2"),
    ({"n_local_expert": 0}, ValueError, f"{_NO_LOCAL} in [1, 6], got 0"),
    ({"n_local_expert": 7}, ValueError, f"{_NO_LOCAL} in [1, 6], got 7"),
    ({"n_local_expert": 2**40}, ValueError, f"{_NO_LOCAL} in [1, 6], got {2**40}"),
    ({"n_local_expert": True}, TypeError, f"{_NO_LOCAL}, got bool"),
    ({"n_local_expert": None}, TypeError, f"{_NO_LOCAL}, got NoneType"),
    (
        {"n_local_expert": 3, "expert_map": None},
        NotImplementedError,
        "n_local_expert: expected 6 without expert_map, got 3",
    ),
    ({"n_expert": 6.0}, TypeError, "n_expert: expected an integer, got float"),
    (
        {"n_expert": 0},
        ValueError,
        "n_expert: expected an integer in [1, 2147483647], got 0",
    ),
    (
        {"n_expert": 2**30 + 1},
        ValueError,
        f"n_expert: expected an integer in [1, {2**30}], got {2**30 + 1}",
    ),
    ({"expert_map": MAP.numpy()}, TypeError, f"expert_map: {NO_MEMORY} ndarray"),
    ({"expert_map": MAP.long()}, TypeError, "expert_map: expected torch.int32, got torch.int64"),
    ({"expert_map": MAP.to("meta")}, ValueError, "expert_map: expected a tensor on cpu, got meta"),
    ({"expert_map": MAP[:5]}, ValueError, "expert_map.num_elements: expected 6, got 5"),
    (
        {"fill_invalid_expert": 2**40},
        ValueError,
        f"fill_invalid_expert: expected an integer of 32 bits, got {2**40}",
    ),
    (
        {"permuted_hidden_states": np.zeros((T * K, H), np.float32)},
        TypeError,
        f"permuted_hidden_states: {NO_MEMORY} ndarray",
    ),
)


@pytest.mark.parametrize("refusal", _PERMUTE)
def test_permute_refuses(refusal: Refusal) -> None:
    out = torch.full((T * K, H), 7.0)
    arguments = {
        "hidden_states": X,
        "a1q_scale": X,
        "topk_ids": IDS,
        "n_expert": E,
        "expert_map": MAP,
        "permuted_hidden_states": out,
    }
    refused(rows.moe_permute, arguments, refusal)
    assert (out == 7).all()


@pytest.mark.parametrize("num_local", [E, 3])
def test_permute_refuses_rows_in_the_memory_of_the_map(num_local: int) -> None:
    memory = torch.zeros(T * K, H)
    expert_map = memory.view(torch.int32)[0, :E].copy_(MAP)
    with pytest.raises(ValueError, match=r"^moe_permute: permuted_hidden_states: .* expert_map$"):
        rows.moe_permute(X, None, IDS, E, num_local, expert_map, permuted_hidden_states=memory)
    assert torch.equal(expert_map, MAP)


def test_scales_in_the_memory_of_the_rows() -> None:
    memory = torch.zeros(T * K, H)
    scales = memory[:T].copy_(X + 100)
    expected = rows.moe_permute(X, scales.clone(), IDS, E)
    found = rows.moe_permute(X, scales, IDS, E, permuted_hidden_states=memory)
    for mine, its in zip(found, expected, strict=True):
        assert torch.equal(mine, its)


@pytest.mark.parametrize("returns_experts", [False, True])
@pytest.mark.parametrize("value", [3, 5, 6, 2**31 - 1, -1, -7])
def test_values_of_the_map_beyond_the_local_experts_are_remote(
    value: int, returns_experts: bool
) -> None:
    expert_map = torch.where(MAP < 0, value, MAP)
    expected = rows.moe_permute(X, X, IDS, E, 3, MAP, returns_experts=returns_experts)
    found = rows.moe_permute(X, X, IDS, E, 3, expert_map, returns_experts=returns_experts)
    assert found[2].tolist() == [0, 1, 2, 3]
    assert torch.equal(found[0][:3], expected[0][:3])
    for mine, its in zip(found[1:], expected[1:], strict=True):
        assert torch.equal(mine, its)


@pytest.mark.parametrize("output", [None, np.zeros((T, H), np.float32)])
def test_sum_refuses(output: Any) -> None:
    arguments = {"input": torch.ones(T, K, H), "output": output}
    message = f"moe_sum: output: {NO_MEMORY} {type(output).__name__}"
    refused(rows.moe_sum, arguments, ({}, TypeError, message))


def test_sum_names_its_output_as_vllm_does() -> None:
    arguments = {"input": torch.ones(T, K, H), "output": torch.ones(T, H + 1)}
    message = f"moe_sum: output.shape[1]: expected {H}, got {H + 1}"
    refused(rows.moe_sum, arguments, ({}, ValueError, message))


_OFFSETS = "expert_first_token_offset"
_UNPERMUTE = after(
    "moe_unpermute",
    ({_OFFSETS: int64()}, ValueError, f"{_OFFSETS}: expected at least 1 element, got 0"),
    ({_OFFSETS: torch.tensor(3)}, ValueError, f"{_OFFSETS}: expected 1 axis, got 0"),
    (
        {_OFFSETS: int64(0, 3).int()},
        TypeError,
        f"{_OFFSETS}: expected torch.int64, got torch.int32",
    ),
    (
        {_OFFSETS: int64(0, 3).double()},
        TypeError,
        f"{_OFFSETS}: expected torch.int64, got torch.float64",
    ),
    (
        {_OFFSETS: int64(0, 3).to("meta")},
        ValueError,
        f"{_OFFSETS}: expected a tensor on cpu, got meta",
    ),
    ({_OFFSETS: [0, 3]}, TypeError, f"{_OFFSETS}: {NO_MEMORY} list"),
    (
        {"inv_permuted_idx": INVERSE[:5]},
        ValueError,
        "inv_permuted_idx: expected 8 elements, as topk_weights has, got 5",
    ),
    ({"inv_permuted_idx": None}, TypeError, f"inv_permuted_idx: {NO_MEMORY} NoneType"),
    (
        {"inv_permuted_idx": INVERSE.long()},
        TypeError,
        "inv_permuted_idx: expected torch.int32, got torch.int64",
    ),
    (
        {"inv_permuted_idx": INVERSE.repeat_interleave(2)[::2]},
        ValueError,
        "inv_permuted_idx: expected a contiguous tensor, got strides [2]",
    ),
    ({"topk_weights": None}, TypeError, f"topk_weights: {NO_MEMORY} NoneType"),
    ({"topk_weights": torch.ones(8)}, ValueError, "topk_weights: expected 2 axes, got 1"),
    (
        {"topk_weights": torch.ones(T, K).double()},
        TypeError,
        "topk_weights.dtype: expected float32, got float64",
    ),
    ({"out": None}, TypeError, f"out: {NO_MEMORY} NoneType"),
    (
        {"permuted_hidden_states": torch.ones(8)},
        ValueError,
        "permuted_hidden_states.ndim: expected 2, got 1",
    ),
    (
        {"permuted_hidden_states": torch.ones(8, 9)},
        ValueError,
        "out.shape[1]: expected 9, got 8",
    ),
)


@pytest.mark.parametrize("refusal", _UNPERMUTE)
def test_unpermute_refuses(refusal: Refusal) -> None:
    out = torch.full((T, H), 7.0)
    arguments = {
        "out": out,
        "permuted_hidden_states": torch.ones(T * K, H),
        "topk_weights": torch.ones(T, K),
        "inv_permuted_idx": INVERSE,
        _OFFSETS: int64(0, 3, 8),
    }
    refused(rows.moe_unpermute, arguments, refusal)
    assert (out == 7).all()


_OVERLAPS: dict[str, Callable[[Any], Any]] = {
    "inv_permuted_idx": lambda memory: memory.view(torch.int32)[1, :8],
    "expert_first_token_offset": lambda memory: memory.view(torch.int64)[1, :3],
    "permuted_hidden_states": lambda memory: memory[:, 2:10],
    "topk_weights": lambda memory: memory[0, :8].view(T, K),
}


@pytest.mark.parametrize("name", _OVERLAPS)
def test_unpermute_refuses_an_output_in_the_memory_of_an_input(name: str) -> None:
    memory = torch.zeros(2 * T, 2 * H)
    arguments = {
        "out": memory[:T, :H],  # rows lie apart
        "permuted_hidden_states": torch.ones(T * K, H),
        "topk_weights": torch.ones(T, K),
        "inv_permuted_idx": INVERSE,
        _OFFSETS: int64(0, 3, 8),
        name: _OVERLAPS[name](memory),
    }
    message = f"moe_unpermute: out: expected memory of its own, got memory shared with {name}"
    refused(rows.moe_unpermute, arguments, ({}, ValueError, message))
    assert (memory == 0).all()


def _permuted_and_back(x: Any, ids: Any) -> Any:
    found = rows.moe_permute(x, x, ids, E, 3, MAP)
    out = torch.empty_like(x)
    rows.moe_unpermute(out, found[0], torch.ones(T, K), found[3], found[2])
    return found[1], out


@pytest.mark.parametrize("dynamic", [None, True])
def test_compiled_code(dynamic: bool | None) -> None:
    compiled = torch.compile(
        _permuted_and_back, backend="aot_eager", fullgraph=True, dynamic=dynamic
    )
    for mine, its in zip(compiled(X, IDS), _permuted_and_back(X, IDS), strict=True):
        assert torch.equal(mine, its)
