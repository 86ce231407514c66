"""vLLM's experts in fp8 with scales per expert and per row over Tessera, on stand-ins for vLLM."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

import engine_ops  # noqa: E402
import tessera.vllm  # noqa: E402
from engine_packages import STANDINS  # noqa: E402
from experts_calls import (  # noqa: E402
    FUSED_MOE,
    MAP,
    Activation,
    E,
    MoEPrepareAndFinalizeNoDPEPModular,
    arguments,
    experts_of,
    implementation,
    random,
)
from fp8_row_calls import (  # noqa: E402
    A1_SCALE,
    A2_SCALE,
    KINDS,
    F,
    H,
    judge_rows,
    row_config,
    row_layer,
    scale_over,
    with_scale,
)
from tessera.vllm import experts  # noqa: E402
from tessera.vllm import layer as functions  # noqa: E402

UseEngine = Callable[[Path], None]
SERVED = {"use_fp8_w8a8": True}
STATIC = {"a1_scale": A1_SCALE, "a2_scale": A2_SCALE}


def quantised(call: dict[str, Any], scale: Any) -> dict[str, Any]:
    """The call as vLLM's step before the experts leaves it."""
    return call | {"hidden_states": with_scale(call["hidden_states"], scale)}


def scale_of_tokens(call: dict[str, Any]) -> Any:
    return scale_over(call["hidden_states"], -1)


def scale_of_tensor(call: dict[str, Any]) -> Any:
    return scale_over(call["hidden_states"], (0, 1)).flatten()


def applied(
    kind: Any,
    call: dict[str, Any],
    scales: dict[str, Any],
    a1q_scale: Any = None,
    a2_scale: Any = None,
    activation: Activation = Activation.SILU,
    *,
    configured: dict[str, Any] | None = None,
    **changes: Any,
) -> Any:
    """The output of `apply`, of which vLLM's kernel gets `a2_scale` from the configuration."""
    given = arguments(call, activation, a1q_scale=a1q_scale, a2_scale=a2_scale, **changes)
    config = row_config(scales, a2_scale=a2_scale, **configured or {})
    assert kind(config).apply(**given) is None
    assert engine_ops.calls == []
    return given["output"]


# Of the input the scale that quantises it, the one that `apply` gets, and the configured one; and
# the scale of the intermediate.
QUANTISED: dict[str, Callable[[dict[str, Any]], tuple[Any, Any, Any, Any]]] = {
    "per token": lambda call: (scale_of_tokens(call), scale_of_tokens(call), None, None),
    "per tensor": lambda call: (scale_of_tensor(call), scale_of_tensor(call), None, None),
    "static": lambda call: (A1_SCALE, A1_SCALE, A1_SCALE, A2_SCALE),
    "static, only configured": lambda call: (A1_SCALE, None, A1_SCALE, A2_SCALE),
    "static input": lambda call: (A1_SCALE, A1_SCALE, A1_SCALE, None),
    "static intermediate": lambda call: (
        scale_of_tensor(call),
        scale_of_tensor(call),
        None,
        A2_SCALE,
    ),
    "numbers with two axes": lambda call: (
        A1_SCALE,
        A1_SCALE.reshape(1, 1),
        A1_SCALE.reshape(1, 1),
        A2_SCALE.reshape(1, 1),
    ),
}


@pytest.mark.parametrize("activations", QUANTISED)
@pytest.mark.parametrize("weights", KINDS)
def test_class_is_served(with_class: str, weights: str, activations: str) -> None:
    unquantised, scales = row_layer(weights)
    scale, a1q_scale, a1_scale, a2_scale = QUANTISED[activations](unquantised)
    call = quantised(unquantised, scale)
    tessera.vllm.install()
    found = applied(
        experts_of(with_class),
        call,
        scales,
        a1q_scale,
        a2_scale,
        configured={"a1_scale": a1_scale},
    )
    assert found.dtype == torch.bfloat16
    scale = scale.reshape(1) if scale.numel() == 1 else scale
    judge_rows(found, call, scales, scale, None if a2_scale is None else a2_scale.reshape(1))


@pytest.fixture
def kind(use_engine: UseEngine) -> Any:
    use_engine(STANDINS / "vllm-0.24.0")
    tessera.vllm.install()
    return experts_of("0.24.0")


@pytest.mark.parametrize("is_static", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weights", KINDS)
def test_class_quantises_an_input_in_16_bits(
    kind: Any, weights: str, dtype: Any, is_static: bool
) -> None:
    call, scales = row_layer(weights, dtype=dtype)
    a1_scale, a2_scale = STATIC.values() if is_static else (None, None)
    found = applied(kind, call, scales, None, a2_scale, configured={"a1_scale": a1_scale})
    judge_rows(found, call, scales, a1_scale, a2_scale)


_BIASES = {"w1_bias": random(E, 2 * F), "w2_bias": random(E, H)}
# The activation, changes of the configuration, of the layer, and of the call.
APPLIED: dict[str, tuple[Activation, dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "biased": (Activation.SILU, _BIASES, {}, {}),
    "gpt-oss": (Activation.SWIGLUOAI, {}, {}, {}),
    "relu2_no_mul": (Activation.RELU2_NO_MUL, {}, {"num_rows": F}, {}),
    "mapped": (Activation.SILU, {}, {"num_ids": len(MAP)}, {"expert_map": MAP}),
    "weights on the input": (
        Activation.SILU,
        {},
        {"top_k": 1},
        {"apply_router_weight_on_input": True},
    ),
}


@pytest.mark.parametrize("case", APPLIED)
@pytest.mark.parametrize("weights", KINDS)
def test_options_of_the_class(kind: Any, weights: str, case: str) -> None:
    activation, configured, shape, options = APPLIED[case]
    unquantised, scales = row_layer(weights, **shape)
    a1q_scale = scale_of_tokens(unquantised)
    call = quantised(unquantised, a1q_scale)
    found = applied(
        kind, call, scales, a1q_scale, None, activation, configured=configured, **options
    )
    on_input = options.get("apply_router_weight_on_input", False)
    judge_rows(
        found,
        call,
        scales,
        a1q_scale,
        weights_on="nothing" if on_input else "output",
        activation=activation.value,
        expert_map=options.get("expert_map"),
        **configured,
    )


@pytest.mark.parametrize("newer", ["0.24.0", "0.33.0"])
def test_output_of_the_layer_is_written_at_once(
    use_engine: UseEngine, caplog: pytest.LogCaptureFixture, newer: str
) -> None:
    use_engine(STANDINS / f"vllm-{newer}")
    unquantised, scales = row_layer("per expert")
    call = quantised(unquantised, A1_SCALE)
    tessera.vllm.install()
    module = importlib.import_module(f"{FUSED_MOE}.modular_kernel")
    served = experts_of(newer)(row_config(scales, **STATIC))
    caplog.set_level(logging.INFO, "vllm.tessera")
    caplog.clear()
    module.FusedMoEKernel("prepare", served)
    assert [each.getMessage() for each in caplog.records] == [
        "vLLM's backend for experts in fp8 is TritonExperts, served by Tessera, but for calls it "
        "refuses"
    ]
    kernel = module.FusedMoEKernelModularImpl(MoEPrepareAndFinalizeNoDPEPModular(), served)
    output = torch.full_like(unquantised["hidden_states"], 7)
    a1q, *others = call.values()
    options = (Activation.SILU, E, E, None, False, None, output)
    assert kernel._fused_experts(output.dtype, a1q, A1_SCALE, *others, *options) is output
    assert engine_ops.calls == []
    judge_rows(output, call, scales, A1_SCALE, A2_SCALE)
    own = kernel._fused_experts(output.dtype, a1q, A1_SCALE, *others, *options[:-1])
    assert torch.equal(own, output)


@pytest.mark.parametrize("given", [{}, STATIC], ids=["dynamic", "static"])
@pytest.mark.parametrize("weights", KINDS)
def test_function_is_served(version: str, weights: str, given: dict[str, Any]) -> None:
    call, scales = row_layer(weights)
    tessera.vllm.install()
    found = implementation()(**call, **SERVED, **scales, **given)
    assert engine_ops.calls == []
    assert found.dtype == torch.bfloat16
    judge_rows(found, call, scales, *given.values())
    per_channel = implementation()(**call, **SERVED, **scales, **given, per_channel_quant=True)
    assert engine_ops.calls == []
    assert torch.equal(per_channel, found)


# Options of `fused_experts_impl`, and of the layer.
IMPLEMENTED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "float16": ({}, {"dtype": torch.float16}),
    "float32": ({}, {"dtype": torch.float32}),
    "gelu": ({"activation": "gelu"}, {}),
    "biased": (_BIASES, {}),
    "relu2": ({"activation": "relu2_no_mul"}, {"num_rows": F}),
    "mapped": ({"expert_map": MAP}, {"num_ids": len(MAP)}),
    "weights on the input": ({"apply_router_weight_on_input": True}, {"top_k": 1}),
}


@pytest.mark.parametrize("given", [{}, STATIC], ids=["dynamic", "static"])
@pytest.mark.parametrize("case", IMPLEMENTED)
@pytest.mark.parametrize("weights", KINDS)
def test_options_of_the_function(weights: str, case: str, given: dict[str, Any]) -> None:
    options, shape = IMPLEMENTED[case]
    call, scales = row_layer(weights, **shape)
    found = experts.fused_experts_impl(**call, **SERVED, **scales, **given, **options)
    assert found.dtype == call["hidden_states"].dtype
    known = dict(options)
    on_input = known.pop("apply_router_weight_on_input", False)
    weights_on = "input" if on_input else "output"
    judge_rows(found, call, scales, *given.values(), weights_on=weights_on, **known)


# Shapes that vLLM's layers and callers have, and strides.
FORMS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "[E, 1]": ("per expert", lambda scale: scale[:, None]),
    "[E, 1, 1]": ("per expert", lambda scale: scale[:, None, None]),
    "[E], apart": ("per expert", lambda scale: torch.stack([scale, scale + 1], 1)[:, 0]),
    "[E, 1], apart": ("per expert", lambda scale: torch.stack([scale, scale + 1], 1)[:, :1]),
    "[E, rows]": ("per row", lambda scale: scale[..., 0]),
    "[E, rows], the experts last": ("per row", lambda scale: scale[..., 0].T.contiguous().T),
    "[E, rows, 1], apart": ("per row", lambda scale: torch.cat([scale, scale + 1], 2)[..., :1]),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_scales(form: str) -> None:
    weights, changed = FORMS[form]
    call, scales = row_layer(weights)
    expected = experts.fused_experts_impl(**call, **SERVED, **scales)
    parameters = {
        name: torch.nn.Parameter(changed(scale), requires_grad=False)
        for name, scale in scales.items()
    }
    assert torch.equal(experts.fused_experts_impl(**call, **SERVED, **parameters), expected)


@pytest.mark.parametrize("weights", KINDS)
def test_one_expert_and_one_token(weights: str) -> None:
    call, scales = row_layer(weights, top_k=1, num_ids=1)
    call |= {name: call[name][:1] for name in call}
    scales = {name: scale[:1] for name, scale in scales.items()}
    for given in ({}, STATIC):
        found = experts.fused_experts_impl(**call, **SERVED, **scales, **given)
        per_row = {
            "w1_scale": scales["w1_scale"].reshape(1, -1, 1).expand(1, 2 * F, 1),
            "w2_scale": scales["w2_scale"].reshape(1, -1, 1).expand(1, H, 1),
        }
        other = experts.fused_experts_impl(**call, **SERVED, **per_row, **given)
        torch.testing.assert_close(other, found)


@pytest.mark.parametrize("given", [{}, STATIC], ids=["dynamic", "static"])
@pytest.mark.parametrize("weights", KINDS)
def test_functions_of_mid_2025(weights: str, given: dict[str, Any]) -> None:
    call, scales = row_layer(weights)
    hidden_states, w1, w2, topk_weights, topk_ids = call.values()
    options: dict[str, Any] = {**SERVED, **scales, **given}
    found = functions.fused_experts(**call, **options)
    judge_rows(found, call, scales, *given.values())
    for other in (
        functions.fused_experts(**call, **options, per_channel_quant=True),
        functions.outplace_fused_experts(**call, **options),
        functions.fused_moe(
            hidden_states,
            w1,
            w2,
            hidden_states[:, :E],
            2,
            False,
            custom_routing_function=lambda *_: (topk_weights, topk_ids),
            **options,
        ),
        functions.modular_triton_fused_moe(True, False, False, False)(**call, **scales, **given),
        functions.modular_triton_fused_moe(True, False, False, False, per_act_token_quant=True)(
            **call, **scales, **given
        ),
        functions.modular_triton_fused_moe(True, False, False, False, per_channel_quant=True)(
            **call, **scales, **given
        ),
    ):
        assert torch.equal(other, found)
    functions.inplace_fused_experts(**call, **options)
    assert torch.equal(hidden_states, found)


def test_a_token_does_not_depend_on_others() -> None:
    """Also where vLLM has one scale for all tokens."""
    call, scales = row_layer("per expert")
    found = experts.fused_experts_impl(**call, **SERVED, **scales)
    others = torch.cat([call["hidden_states"][:1], 100 * call["hidden_states"][1:]])
    again = experts.fused_experts_impl(**call | {"hidden_states": others}, **SERVED, **scales)
    assert torch.equal(again[0], found[0])
