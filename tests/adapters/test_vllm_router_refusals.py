"""vLLM's routers: calls that Tessera refuses before it writes anything, and compiled ones."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from refusals import NO_MEMORY, Refusal, after, refused  # noqa: E402
from tessera.vllm import router  # noqa: E402

T, K, E, H = 4, 2, 6, 8

X = torch.arange(T * H, dtype=torch.float32).view(T, H)
IDS = torch.zeros(T, K, dtype=torch.int64)
LOGITS = torch.linspace(-1, 1, T * E).view(T, E)

_INDICES = "token_expert_indices"
_BIAS = "e_score_correction_bias"
_INTO = (
    ({"topk_weights": None}, TypeError, f"topk_weights: {NO_MEMORY} NoneType"),
    (
        {"topk_weights": np.zeros((T, K), np.float32)},
        TypeError,
        f"topk_weights: {NO_MEMORY} ndarray",
    ),
    ({"topk_weights": torch.ones(T)}, ValueError, "topk_weights: expected 2 axes, got 1"),
    (
        {"topk_weights": torch.ones(T, E + 1)[:, :K]},
        ValueError,
        "topk_weights: expected a contiguous tensor, got strides [7, 1]",
    ),
    ({_INDICES: None}, TypeError, f"{_INDICES}: expected a torch.Tensor, got NoneType"),
    ({"gating_output": None}, TypeError, f"gating_output: {NO_MEMORY} NoneType"),
    ({"gating_output": LOGITS[0]}, ValueError, "gating_output.ndim: expected 2, got 1"),
    (
        {"gating_output": LOGITS.int()},
        TypeError,
        "gating_output.dtype: expected float16, bfloat16 or float32, got int32",
    ),
    ({_BIAS: 1.0}, TypeError, f"{_BIAS}: expected a torch.Tensor, got float"),
    (
        {_BIAS: torch.ones(E).long()},
        TypeError,
        f"{_BIAS}: expected a floating-point type, got torch.int64",
    ),
    ({_BIAS: torch.ones(5)}, ValueError, f"{_BIAS}.shape[0]: expected 6, got 5"),
    ({"is_padding": 1}, TypeError, f"is_padding: {NO_MEMORY} int"),
    (
        {"is_padding": torch.ones(T, dtype=torch.bool, device="meta")},
        ValueError,
        "is_padding: expected a tensor on cpu, got meta",
    ),
    (
        {"is_padding": torch.ones(T)},
        ValueError,
        "is_padding: expected torch.bool [4], got torch.float32 [4]",
    ),
)
_FACTOR = (
    {"routed_scaling_factor": True},
    TypeError,
    "routed_scaling_factor: expected a number, got bool",
)


@pytest.mark.parametrize("name", ["topk_softmax", "topk_sigmoid", "topk_hash_softplus_sqrt"])
def test_router_ops_refuse(name: str) -> None:
    refusals = _INTO if name == "topk_softmax" else (*_INTO, _FACTOR)
    ids_name = "topk_indices" if name == "topk_hash_softplus_sqrt" else "topk_ids"
    ids_refusals = (
        ({ids_name: None}, TypeError, f"{ids_name}: {NO_MEMORY} NoneType"),
        (
            {ids_name: torch.zeros(T, K)},
            TypeError,
            f"{ids_name}: expected int32, uint32 or int64, got torch.float32",
        ),
    )
    for refusal in after(name, *refusals, *ids_refusals):
        weights = torch.full((T, K), 7.0)
        arguments = {
            "topk_weights": weights,
            ids_name: weights.int(),
            _INDICES: weights.int(),
            "gating_output": LOGITS,
        }
        refused(getattr(router, name), arguments, refusal)
        assert (weights == 7).all()
        assert all((arguments[each] == 7).all() for each in (ids_name, _INDICES))


def test_padding_in_the_memory_of_an_output_is_refused() -> None:
    weights = torch.zeros(T, K)
    arguments = {
        "topk_weights": weights,
        "topk_ids": weights.int(),
        _INDICES: weights.int(),
        "gating_output": LOGITS,
        "is_padding": weights.view(-1).view(torch.bool)[:T],
    }
    message = (
        "topk_softmax: topk_weights: expected memory of its own, got memory shared with is_padding"
    )
    refused(router.topk_softmax, arguments, ({}, ValueError, message))


def test_outputs_in_the_memory_of_an_input_are_refused() -> None:
    logits = LOGITS.clone()
    bias = torch.zeros(E, dtype=torch.float64)
    outputs = {
        "topk_weights": torch.zeros(T, K),
        "topk_ids": torch.zeros(T, K, dtype=torch.int32),
        _INDICES: torch.zeros(T, K, dtype=torch.int32),
    }
    for name in outputs:
        over = logits.view(outputs[name].dtype).flatten()[: T * K].view(T, K)
        arguments = {**outputs, name: over, "gating_output": logits}
        message = f"{name}: expected memory of its own, got memory shared with gating_output"
        refused(router.topk_softmax, arguments, ({}, ValueError, f"topk_softmax: {message}"))
    over = bias.view(torch.int32).flatten()[: T * K].view(T, K)
    arguments = {**outputs, _INDICES: over, "gating_output": logits, _BIAS: bias}
    message = f"{_INDICES}: expected memory of its own, got memory shared with {_BIAS}"
    refused(router.topk_softmax, arguments, ({}, ValueError, f"topk_softmax: {message}"))
    assert torch.equal(logits, LOGITS)


def test_groups_of_one_expert_are_refused_whatever_the_integer() -> None:
    for groups in (E, np.int64(E)):
        with pytest.raises(NotImplementedError, match="groups of 1"):
            router.grouped_topk_op(LOGITS, groups, 3, 2, True, 1.0, torch.zeros(E), 1)


_CHOOSING = (
    ({"topk": True}, TypeError, "topk: expected an integer, got bool"),
    ({"topk": 2.0}, TypeError, "topk: expected an integer, got float"),
    ({"topk": None}, TypeError, "topk: expected an integer, got NoneType"),
    ({"topk": 0}, ValueError, "topk: expected an integer in [1, 6], got 0"),
    ({"topk": -1}, ValueError, "topk: expected an integer in [1, 6], got -1"),
    ({"topk": 7}, ValueError, "topk: expected an integer in [1, 6], got 7"),
    ({"topk": 2**62}, ValueError, f"topk: expected an integer in [1, 6], got {2**62}"),
)
_FUNCTION = (
    *_CHOOSING,
    ({"hidden_states": None}, TypeError, "hidden_states: expected a torch.Tensor, got NoneType"),
    ({"gating_output": None}, TypeError, f"gating_output: {NO_MEMORY} NoneType"),
    ({"gating_output": LOGITS[0]}, ValueError, "gating_output: expected 2 axes, got 1"),
)
_GROUPS = (
    ({"num_expert_group": True}, TypeError, "num_expert_group: expected an integer, got bool"),
    ({"num_expert_group": "2"}, TypeError, "num_expert_group: expected an integer, got str"),
    ({"topk_group": True}, TypeError, "topk_group: expected an integer, got bool"),
    _FACTOR,
)
_IDS_TYPE = "indices_type: expected int32, uint32 or int64, got"


@pytest.mark.parametrize(
    "refusal",
    after(
        "fused_topk",
        *_FUNCTION,
        ({"indices_type": torch.float32}, TypeError, f"{_IDS_TYPE} torch.float32"),
        ({"indices_type": "int32"}, TypeError, f"{_IDS_TYPE} int32"),
    ),
)
def test_fused_topk_refuses(refusal: Refusal) -> None:
    arguments = {"hidden_states": X, "gating_output": LOGITS, "topk": 2, "renormalize": True}
    refused(router.fused_topk, arguments, refusal)


def test_the_default_router_refuses() -> None:
    def route(**options: Any) -> None:
        chosen_by = SimpleNamespace(**{"top_k": 2, "renormalize": True, "scoring_func": "softmax"})
        logits = options.pop("router_logits", LOGITS)
        vars(chosen_by).update(options)
        router.compute_routing(chosen_by, X, logits, None)

    name = "FusedTopKRouter._compute_routing"
    with pytest.raises(ValueError, match=f"^{name}: scoring_func: expected one of softmax, sigmo"):
        route(scoring_func="tanh")
    with pytest.raises(ValueError, match=f"^{name}: top_k: expected an integer in"):
        route(top_k=E + 1)
    with pytest.raises(TypeError, match=f"^{name}: router_logits"):
        route(router_logits=[[1.0]])


@pytest.mark.parametrize("bias", [None, torch.zeros(E)])
@pytest.mark.parametrize("refusal", after("grouped_topk", *_FUNCTION, *_GROUPS))
def test_grouped_topk_refuses(refusal: Refusal, bias: Any) -> None:
    arguments = {
        "hidden_states": X,
        "gating_output": LOGITS,
        "topk": 2,
        "renormalize": True,
        "num_expert_group": 2,
        "topk_group": 1,
        _BIAS: bias,
    }
    refused(router.grouped_topk, arguments, refusal)


@pytest.mark.parametrize(
    "refusal",
    after(
        "grouped_topk",
        *_CHOOSING,
        *_GROUPS,
        ({"scores": None}, TypeError, f"scores: {NO_MEMORY} NoneType"),
        ({"scores": LOGITS[0]}, ValueError, "scores: expected 2 axes, got 1"),
        ({"bias": torch.ones(5)}, ValueError, "bias.shape[0]: expected 6, got 5"),
        (
            {"scoring_func": True},
            NotImplementedError,
            "scoring_func: expected 1, the sigmoid of logits, got True",
        ),
    ),
)
def test_grouped_op_refuses(refusal: Refusal) -> None:
    arguments = {
        "scores": LOGITS,
        "num_expert_group": 2,
        "topk_group": 1,
        "topk": 2,
        "renormalize": True,
        "routed_scaling_factor": 1.0,
        "bias": torch.zeros(E),
        "scoring_func": 1,
    }
    refused(router.grouped_topk_op, arguments, refusal)


def _chosen(x: Any, ids: Any) -> Any:
    weights = torch.empty(T, K)
    outputs = (weights, torch.empty_like(ids), torch.empty_like(ids, dtype=torch.int32))
    is_padding = torch.arange(T) > 2
    router.topk_softmax(*outputs, LOGITS, True, LOGITS[0], is_padding)
    return (*outputs, *router.grouped_topk(x, LOGITS, 2, True, 2, 1, "sigmoid", 2.5, LOGITS[0]))


@pytest.mark.parametrize("dynamic", [None, True])
def test_compiled_code(dynamic: bool | None) -> None:
    compiled = torch.compile(_chosen, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for mine, its in zip(compiled(X, IDS), _chosen(X, IDS), strict=True):
        assert torch.equal(mine, its)
