"""vLLM's expert computations over Tessera, on stand-ins for four generations of vLLM."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

import engine_ops  # noqa: E402
import tessera.vllm  # noqa: E402
from experts_calls import (  # noqa: E402
    FUSED_MOE,
    MAP,
    Activation,
    E,
    F,
    H,
    arguments,
    close,
    experts_of,
    implementation,
    layer,
    quant_config,
    random,
    reference,
)
from tessera.vllm import experts, serving  # noqa: E402
from tessera.vllm.generations import generation_of  # noqa: E402

UseEngine = Callable[[Path], None]


# Options of `fused_experts_impl`, and of the layer.
IMPLEMENTED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "silu": ({}, {}),
    "float16": ({}, {"dtype": torch.float16}),
    "gelu": ({"activation": "gelu"}, {}),
    "relu2": ({"activation": "relu2_no_mul"}, {"num_rows": F}),
    "mapped": ({"expert_map": MAP, "global_num_experts": len(MAP)}, {"num_ids": len(MAP)}),
    "weights on the input": ({"apply_router_weight_on_input": True}, {"top_k": 1}),
    "biased": ({"w1_bias": random(E, 2 * F), "w2_bias": random(E, H)}, {}),
    "gpt-oss": (
        {"activation": "swigluoai", "w1_bias": random(E, 2 * F), "w2_bias": random(E, H)},
        {},
    ),
    "in place": ({"inplace": True}, {}),
}


@pytest.mark.parametrize("case", IMPLEMENTED)
def test_function_is_served(version: str, case: str) -> None:
    options, shape = IMPLEMENTED[case]
    (parameters,) = (
        names
        for (_, name), names in generation_of(version).functions.items()
        if name == "fused_experts_impl"
    )
    if not set(options) <= set(parameters):
        pytest.skip(f"vLLM {version} has no {', '.join(options)}")
    call = layer(**shape)
    on_input = options.get("apply_router_weight_on_input", False)
    known = ("activation", "expert_map", "w1_bias", "w2_bias")
    expected = reference(
        call,
        weights_on="input" if on_input else "output",
        **{name: value for name, value in options.items() if name in known},
    )
    given = call["hidden_states"].clone()
    assert f"{FUSED_MOE}.fused_moe.fused_experts_impl" in tessera.vllm.install()
    found = implementation()(**call, **options)
    assert engine_ops.calls == []
    close(found, expected)
    if "inplace" in options and (version != "0.12.0" or torch.__version__ < (2, 9)):
        assert found is call["hidden_states"]
    else:
        assert torch.equal(call["hidden_states"], given)


@pytest.mark.parametrize(
    ("version", "ignored"),
    [("0.11.0", False), ("0.11.1", True), ("0.15.1", True), ("0.16.0", False), ("0.22.0", False)],
)
def test_versions_that_never_write_in_place(
    version: str, ignored: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    generation = generation_of(version)
    (parameters,) = (
        names for (_, name), names in generation.functions.items() if name == experts.IMPL
    )
    for newest, written in (((2, 9, 0), not ignored), ((2, 8, 1), True)):
        monkeypatch.setattr(torch, "__version__", newest)
        serve = serving.function(experts.IMPL, parameters, generation)
        call = layer()
        given = call["hidden_states"].clone()
        found = serve(*call.values(), inplace=True)
        assert (found is call["hidden_states"]) == written
        assert torch.equal(call["hidden_states"], given) == (not written)


def test_function_of_vllm_0_10_without_a_gate() -> None:
    call = layer(num_rows=F)
    found = experts.fused_experts_impl(**call, is_act_and_mul=False, use_mxfp4_w4a4=False)
    close(found, reference(call, activation="silu_no_mul"))


def as_parameters(call: dict[str, Any]) -> dict[str, Any]:
    parameters = {
        name: torch.nn.Parameter(call[name], requires_grad=False) for name in ("w1", "w2")
    }
    return call | parameters


def padded(call: dict[str, Any]) -> dict[str, Any]:
    """Rows of weights apart, as vLLM has them on ROCm."""
    weights = {
        name: torch.nn.functional.pad(call[name], (0, 128))[..., :-128] for name in ("w1", "w2")
    }
    return call | weights


def unsigned(call: dict[str, Any]) -> dict[str, Any]:
    return call | {"topk_ids": call["topk_ids"].view(torch.uint32)}


def partly_elsewhere(call: dict[str, Any]) -> dict[str, Any]:
    """As a dispatch between ranks leaves the ids of experts that live elsewhere."""
    ids = call["topk_ids"].clone()
    ids[1::2, 0] = -1
    ids[2] = -1
    return call | {"topk_ids": ids.long()}


_LIMITED = {"gemm1_clamp_limit": 0.75}
# The activation, what the quant_config has, changes of the call, options of the layer.
APPLIED: dict[str, tuple[Activation, dict[str, Any], Any, dict[str, Any]]] = {
    "silu": (Activation.SILU, {}, None, {}),
    "float16": (Activation.SILU, {}, None, {"dtype": torch.float16}),
    "parameters": (Activation.SILU, {}, as_parameters, {}),
    "padded": (Activation.SILU, {}, padded, {}),
    "uint32": (Activation.SILU, {}, unsigned, {}),
    "elsewhere": (Activation.SILU, {}, partly_elsewhere, {}),
    "biased": (Activation.SILU, {"w1_bias": random(E, 2 * F), "w2_bias": random(E, H)}, None, {}),
    "limited": (Activation.SILU, _LIMITED, None, {}),
    "gelu": (Activation.GELU, {}, None, {}),
    "gelu_tanh": (Activation.GELU_TANH, {}, None, {}),
    "gpt-oss": (Activation.SWIGLUOAI, {}, None, {}),
    "gpt-oss, whatever the limits": (Activation.SWIGLUOAI, _LIMITED, None, {}),
    "uninterleaved": (
        Activation.SWIGLUOAI_UNINTERLEAVE,
        {"gemm1_clamp_limit": 0.75, "gemm1_alpha": 1.5, "gemm1_beta": 0.5},
        None,
        {},
    ),
    "silu_no_mul": (Activation.SILU_NO_MUL, {}, None, {"num_rows": F}),
    "relu2_no_mul": (Activation.RELU2_NO_MUL, {}, None, {"num_rows": F}),
}


@pytest.mark.parametrize("case", APPLIED)
def test_class_is_served(with_class: str, case: str) -> None:
    activation, configured, change, shape = APPLIED[case]
    if "gemm1_clamp_limit" in configured and with_class == "0.12.0":
        pytest.skip("vLLM 0.12.0 has no limits")
    call = layer(**shape)
    config = quant_config(**configured)
    limits = {
        "limit": config.gemm1_clamp_limit,
        "alpha": config.gemm1_alpha,
        "beta": config.gemm1_beta,
    }
    if change is not None:
        call = change(call)
    plain = call | {"topk_ids": call["topk_ids"].view(torch.int32)} if case == "uint32" else call
    expected = reference(
        plain,
        activation=activation.value,
        w1_bias=config.w1_bias,
        w2_bias=config.w2_bias,
        **limits,
    )
    served = tessera.vllm.install()
    assert any(name.endswith("TritonExperts.apply") for name in served)
    given = arguments(call, activation.value if with_class == "0.12.0" else activation)
    assert experts_of(with_class)(config).apply(**given) is None
    assert engine_ops.calls == []
    close(given["output"], expected)
    assert (given["workspace2"] == 7).all()


def test_class_with_a_map_of_experts(with_class: str) -> None:
    call = layer(num_ids=len(MAP))
    expected = reference(call, expert_map=MAP)
    tessera.vllm.install()
    given = arguments(call, Activation.SILU, expert_map=MAP, global_num_experts=len(MAP))
    experts_of(with_class)(quant_config()).apply(**given)
    assert engine_ops.calls == []
    close(given["output"], expected)


def test_weights_that_are_on_the_input_are_not_applied_again(with_class: str) -> None:
    call = layer(top_k=1)
    expected = reference(call, weights_on="nothing")
    tessera.vllm.install()
    given = arguments(call, Activation.SILU, apply_router_weight_on_input=True)
    experts_of(with_class)(quant_config()).apply(**given)
    assert engine_ops.calls == []
    close(given["output"], expected)


def test_layer_without_tokens(with_class: str) -> None:
    tessera.vllm.install()
    call = layer()
    empty = {name: call[name][:0] for name in ("hidden_states", "topk_weights", "topk_ids")}
    experts_of(with_class)(quant_config()).apply(**arguments(call | empty, Activation.SILU))
    assert engine_ops.calls == []
