"""`fused_moe`: the bits of both ops one after the other, frameworks, compiled code, refusals."""

from __future__ import annotations

import inspect
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


@pytest.mark.parametrize("given", [("topk_weights",), ("topk_ids",), ("topk_weights", "topk_ids")])
@pytest.mark.parametrize("routing", ROUTING)
def test_the_choice(given: tuple[str, ...], routing: dict[str, Any]) -> None:
    shape = (5, routing["top_k"])
    arrays = {
        "topk_weights": np.full(shape, 99, np.float32),
        "topk_ids": np.full(shape, 99, np.int32),
    }
    choice = {name: arrays[name] for name in given}
    found = tessera.fused_moe(**layer(), router_logits=LOGITS, **routing, **choice)
    assert found.tobytes() == one_after_the_other(LOGITS, routing, layer()).tobytes()
    expected = tessera.select_experts(LOGITS, **routing)._asdict()
    for name, array in arrays.items():
        assert array.tolist() == (
            expected[name].tolist() if name in given else np.full(shape, 99).tolist()
        )


@pytest.mark.parametrize("routing", ROUTING)
def test_violations(routing: dict[str, Any]) -> None:
    experts = layer(activation="relu2_no_mul", biases=True)
    ids = np.empty((5, routing["top_k"]), np.int32)
    call_ = {**experts, "router_logits": LOGITS, **routing, "topk_ids": ids}
    output = tessera.fused_moe(**call_)
    assert tessera.fused_moe_contract_violations(**call_, output=output) == []
    output[1, 3] += 1
    (violation,) = tessera.fused_moe_contract_violations(**call_, output=output)
    assert violation.rule == "error_bound"
    assert violation.message.startswith("error_bound: output[1, 3]: expected a value in [")
    output[1, 3] -= 1
    ids[0, 0] = 4
    rules = {one.rule for one in tessera.fused_moe_contract_violations(**call_, output=output)}
    assert rules == {"valid_ids", "exact_bits", "error_bound"}


def test_it_has_the_arguments_of_both_ops() -> None:
    found = inspect.signature(tessera.fused_moe).parameters
    of_ops = [
        inspect.signature(function).parameters
        for function in (tessera.select_experts, tessera.fused_experts)
    ]
    # Its weights are not in float8_e4m3fn.
    of_fp8 = {"w13_scale", "w2_scale", "x_scale", "intermediate_scale", "use_ue8m0"}
    wanted = {name: one for op in of_ops for name, one in op.items() if name not in of_fp8}
    assert set(found) == set(wanted)
    between = {"topk_weights", "topk_ids"}
    assert all(found[name].default is None for name in between)
    assert all(found[name].default == wanted[name].default for name in set(found) - between)


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
        ({"top_k": 5}, "top_k: expected an integer in [1, 4], got 5"),
        ({"top_k": True}, "top_k: expected an integer, got bool"),
        ({"top_k": None}, "top_k: expected an integer, got NoneType"),
        ({"scoring": "tanh"}, "scoring: expected one of softmax, sigmoid, sqrt_softplus, got tanh"),
        ({"router_logits": LOGITS[:4]}, "router_logits.shape[0]: expected 5, got 4"),
        ({"router_logits": LOGITS[:, :3]}, "router_logits.shape[1]: expected 4, got 3"),
        ({"router_logits": LOGITS.astype(np.int32)}, "router_logits.dtype: expected float16, "),
        ({"router_logits": [1.0]}, "router_logits: expected an array that speaks DLPack, got list"),
        ({"num_threads": True}, "num_threads: expected an integer, got bool"),
        ({"topk_ids": np.zeros((5, 2), np.int64)}, "topk_ids.dtype: expected int32, got int64"),
        ({"topk_weights": np.zeros((5, 3), np.float32)}, "topk_weights.shape[1]: expected 2, got"),
    ],
)
def test_refusals(changes: dict[str, Any], message: str) -> None:
    out = np.full((5, 6), 99, np.float32)
    arguments = layer() | {"router_logits": LOGITS, "top_k": 2, "out": out} | changes
    with pytest.raises((ValueError, TypeError)) as caught:
        tessera.fused_moe(**arguments)
    assert str(caught.value).startswith(f"fused_moe: {message}")
    assert (out == 99).all()


@pytest.mark.parametrize(
    ("num_experts", "map_length", "expected"),
    [(3, None, 4), (5, None, 4), (4, 3, 3), (4, 7, 7)],
)
def test_logits_of_other_experts_are_refused(
    num_experts: int, map_length: int | None, expected: int
) -> None:
    """Their ids would be left out, and the output would be 0 or miss experts, without a word."""
    out = np.full((5, 6), 99, np.float32)
    logits = np.zeros((5, num_experts), np.float32)
    expert_map = None if map_length is None else np.zeros(map_length, np.int32)
    with pytest.raises(ValueError, match="router_logits") as caught:
        tessera.fused_moe(
            **layer() | {"expert_map": expert_map}, router_logits=logits, top_k=1, out=out
        )
    message = f"fused_moe: router_logits.shape[1]: expected {expected}, got {num_experts}"
    assert str(caught.value) == message
    assert (out == 99).all()


def test_an_output_on_the_logits_is_refused() -> None:
    memory = np.full((5, 6), 99, np.float32)
    logits = memory.reshape(-1)[:20].reshape(5, 4)
    with pytest.raises(ValueError) as caught:
        tessera.fused_moe(**layer(), router_logits=logits, top_k=2, out=memory)
    assert str(caught.value) == (
        "fused_moe: out: expected memory of its own, got memory shared with router_logits"
    )
    assert (memory == 99).all()


@pytest.mark.parametrize("kind", ["uint8", "torch", "ml_dtypes"])
@pytest.mark.parametrize("name", ["x", "w13", "w2"])
def test_fp8_is_for_the_two_ops(name: str, kind: str) -> None:
    call = layer()
    bits = np.zeros(call[name].shape, np.uint8)
    if kind == "torch":
        torch = pytest.importorskip("torch", reason="torch is not installed")
        bits = torch.from_numpy(bits).view(torch.float8_e4m3fn)
    elif kind == "ml_dtypes":
        ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
        bits = bits.view(ml_dtypes.float8_e4m3fn)
    message = (
        rf"^fused_moe: {name}.*: expected .* \(fused_moe takes no weights in fp8: call "
        r"select_experts, then fused_experts with the scales\)$"
    )
    with pytest.raises(TypeError, match=message):
        tessera.fused_moe(**call | {name: bits}, router_logits=LOGITS, top_k=2)
