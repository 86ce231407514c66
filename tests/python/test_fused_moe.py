"""`fused_moe`: the bits of both ops one after the other, frameworks, compiled code, refusals."""

from __future__ import annotations

import inspect
import re
from typing import Any

import numpy as np
import pytest

import tessera
from fused_experts_calls import call

ROUTING: list[dict[str, Any]] = [
    {"top_k": 2},
    {"top_k": 3, "scoring": "sqrt_softplus", "renormalize": True},
    {
        "top_k": 2,
        "scoring": "sigmoid",
        "correction_bias": np.array([1, -1, 0.5, 0], np.float32),
        "num_expert_group": 2,
        "topk_group": 1,
        "routed_scaling_factor": 2.5,
        "num_valid_tokens": np.array([3], np.int32),
    },
]
LOGITS = np.random.default_rng(5).normal(0, 2, (5, 4)).astype(np.float32)


def layer(seed: int = 0, **options: Any) -> dict[str, Any]:
    """Arguments of `fused_experts` without the router's."""
    arguments = call(seed, **options)
    del arguments["topk_weights"], arguments["topk_ids"]
    return arguments


def one_after_the_other(logits: Any, routing: dict[str, Any], experts: dict[str, Any]) -> Any:
    weights, ids = tessera.select_experts(logits, **routing)
    return tessera.fused_experts(**experts, topk_weights=weights, topk_ids=ids)


@pytest.mark.parametrize("routing", ROUTING)
@pytest.mark.parametrize("activation", ["silu", "swigluoai"])
def test_both_ops_one_after_the_other(routing: dict[str, Any], activation: str) -> None:
    experts = layer(activation=activation, biases=True)
    found = tessera.fused_moe(**experts, router_logits=LOGITS, **routing)
    assert found.tobytes() == one_after_the_other(LOGITS, routing, experts).tobytes()
    assert found.any()


def test_rows_of_padding_are_zero() -> None:
    found = tessera.fused_moe(**layer(), router_logits=LOGITS, **ROUTING[2])
    assert found[:3].all()
    assert not found[3:].any()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("expert_map", np.array([0, -1, 2, 1], np.int32)),
        ("swiglu_alpha", 1.5),
        ("swiglu_beta", 0.5),
        ("swiglu_limit", 0.25),
        ("w13_bias", np.ones((4, 6), np.float32)),
        ("w2_bias", np.ones((4, 6), np.float32)),
        ("batch_invariant", True),
        ("num_threads", 1),
    ],
)
def test_each_argument_reaches_the_experts(name: str, value: Any) -> None:
    experts = layer(activation="swigluoai") | {name: value}
    found = tessera.fused_moe(**experts, router_logits=LOGITS, top_k=2)
    assert found.tobytes() == one_after_the_other(LOGITS, {"top_k": 2}, experts).tobytes()
    if name not in ("batch_invariant", "num_threads"):
        without = tessera.fused_moe(**layer(activation="swigluoai"), router_logits=LOGITS, top_k=2)
        assert without.tobytes() != found.tobytes()


def test_the_router_weight_on_the_input() -> None:
    experts = layer() | {"apply_router_weight_on_input": True}
    found = tessera.fused_moe(**experts, router_logits=LOGITS, top_k=1)
    assert found.tobytes() == one_after_the_other(LOGITS, {"top_k": 1}, experts).tobytes()


def test_it_has_the_arguments_of_both_ops() -> None:
    found = inspect.signature(tessera.fused_moe).parameters
    of_ops = [
        inspect.signature(function).parameters
        for function in (tessera.select_experts, tessera.fused_experts)
    ]
    wanted = {name: one for op in of_ops for name, one in op.items()}
    between = {"topk_weights", "topk_ids"}
    assert set(found) == set(wanted) - between
    assert all(found[name].default == wanted[name].default for name in found)


def test_out() -> None:
    experts, out = layer(), np.full((5, 6), 99, np.float32)
    assert tessera.fused_moe(**experts, router_logits=LOGITS, top_k=2, out=out) is out
    expected = tessera.fused_moe(**experts, router_logits=LOGITS, top_k=2)
    assert out.tobytes() == expected.tobytes()


def tensors(arguments: dict[str, Any]) -> dict[str, Any]:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    return {
        name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
        for name, value in arguments.items()
    }


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_torch(dtype: str) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    experts = tensors(layer())
    for name in ("x", "w13", "w2"):
        experts[name] = experts[name].to(getattr(torch, dtype))
    logits = torch.from_numpy(LOGITS)
    found = tessera.fused_moe(**experts, router_logits=logits, top_k=2)
    assert found.dtype == experts["x"].dtype
    assert torch.equal(found, one_after_the_other(logits, {"top_k": 2}, experts))


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("routing", ROUTING)
def test_compiled(dynamic: bool, routing: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    experts, options = tensors(layer()), tensors(routing)
    logits = torch.from_numpy(LOGITS)
    out = torch.empty(5, 6)

    def both(logits: Any, out: Any) -> Any:
        found = tessera.fused_moe(**experts, router_logits=logits, **options)
        tessera.fused_moe(**experts, router_logits=logits, **options, out=out)
        return found

    compiled = torch.compile(both, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    found = compiled(logits, out)
    assert torch.equal(found, both(logits, torch.empty(5, 6)))
    assert torch.equal(found, out)


def test_jax() -> None:
    jax = pytest.importorskip("jax", reason="jax is not installed")
    experts = {
        name: jax.numpy.asarray(value) if isinstance(value, np.ndarray) else value
        for name, value in layer().items()
    }
    found = tessera.fused_moe(**experts, router_logits=jax.numpy.asarray(LOGITS), top_k=2)
    assert isinstance(found, jax.Array)
    expected = tessera.fused_moe(**layer(), router_logits=LOGITS, top_k=2)
    assert found.tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"top_k": 5}, "select_experts: top_k: expected an integer in [1, 4], got 5"),
        ({"router_logits": LOGITS[:4]}, "fused_experts: topk_weights.shape[0]: expected 5, got 4"),
        ({"num_threads": True}, "select_experts: num_threads: expected an integer, got bool"),
    ],
)
def test_the_op_that_refuses_is_named(changes: dict[str, Any], message: str) -> None:
    out = np.full((5, 6), 99, np.float32)
    arguments = layer() | {"router_logits": LOGITS, "top_k": 2, "out": out} | changes
    with pytest.raises((ValueError, TypeError)) as caught:
        tessera.fused_moe(**arguments)
    assert str(caught.value) == message
    assert (out == 99).all()


@pytest.mark.parametrize(
    ("num_experts", "expert_map", "message"),
    [
        (3, None, "expected 4, as w13.shape[0], got 3"),
        (5, None, "expected 4, as w13.shape[0], got 5"),
        (4, np.zeros(3, np.int32), "expected 3, as expert_map.shape[0], got 4"),
        (4, np.zeros(7, np.int32), "expected 7, as expert_map.shape[0], got 4"),
    ],
)
def test_logits_of_other_experts_are_refused(
    num_experts: int, expert_map: Any, message: str
) -> None:
    """Their ids would be left out, and the output would be 0 or miss experts, without a word."""
    out = np.full((5, 6), 99, np.float32)
    logits = np.zeros((5, num_experts), np.float32)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        tessera.fused_moe(
            **layer() | {"expert_map": expert_map}, router_logits=logits, top_k=1, out=out
        )
    assert str(caught.value) == f"fused_moe: router_logits.shape[1]: {message}"
    assert (out == 99).all()
