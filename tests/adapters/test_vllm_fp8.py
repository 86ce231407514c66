"""vLLM's experts in fp8 with scales of blocks over Tessera, on stand-ins for vLLM."""

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
from fp8_calls import FP8, F, H, fp8_config, fp8_layer, judge, quantised_input  # noqa: E402
from launching import output  # noqa: E402
from tessera.vllm import experts  # noqa: E402
from tessera.vllm import layer as functions  # noqa: E402
from tessera.vllm.generations import GENERATIONS  # noqa: E402

UseEngine = Callable[[Path], None]
BLOCKS: dict[str, Any] = {"use_fp8_w8a8": True, "block_shape": [128, 128]}


# Options of `fused_experts_impl`, and of the layer.
IMPLEMENTED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "silu": ({}, {}),
    "float16": ({}, {"dtype": torch.float16}),
    "float32": ({}, {"dtype": torch.float32}),
    "gelu": ({"activation": "gelu"}, {}),
    "relu2": ({"activation": "relu2_no_mul"}, {"num_rows": F}),
    "mapped": ({"expert_map": MAP}, {"num_ids": len(MAP)}),
    "weights on the input": ({"apply_router_weight_on_input": True}, {"top_k": 1}),
}


@pytest.mark.parametrize("case", IMPLEMENTED)
def test_function_is_served(version: str, case: str) -> None:
    options, shape = IMPLEMENTED[case]
    call, scales = fp8_layer(**shape)
    tessera.vllm.install()
    found = implementation()(**call, **BLOCKS, **scales, **options)
    assert engine_ops.calls == []
    assert found.dtype == call["hidden_states"].dtype
    on_input = options.get("apply_router_weight_on_input", False)
    known = {name: options[name] for name in ("activation", "expert_map") if name in options}
    judge(found, call, scales, weights_on="input" if on_input else "output", **known)


def test_function_has_scales_in_all_generations() -> None:
    for generation in GENERATIONS:
        (parameters,) = (
            names
            for (_, name), names in generation.functions.items()
            if name == "fused_experts_impl"
        )
        scales = {f"{name}_scale" for name in ("w1", "w2", "a1", "a2")}
        assert {*BLOCKS, *scales, "per_channel_quant"} < set(parameters)


def test_function_in_place_and_with_a_tuple() -> None:
    call, scales = fp8_layer()
    given = {name: each.clone() for name, each in call.items()}
    found = experts.fused_experts_impl(
        **call, **BLOCKS | {"block_shape": (128, 128)}, **scales, inplace=True
    )
    assert found is call["hidden_states"]
    judge(found, given, scales)


_BIASES = {"w1_bias": random(E, 2 * F), "w2_bias": random(E, H)}
_LIMITED = {"gemm1_clamp_limit": 0.75}
# The activation, changes of the configuration, and options of the layer.
APPLIED: dict[str, tuple[Activation, dict[str, Any], dict[str, Any]]] = {
    "silu": (Activation.SILU, {}, {}),
    "blocks by a tuple": (Activation.SILU, {"block_shape": (128, 128)}, {}),
    "biased": (Activation.SILU, _BIASES, {}),
    "limited": (Activation.SILU, _LIMITED, {}),
    "gpt-oss": (Activation.SWIGLUOAI, {}, {}),
    "relu2_no_mul": (Activation.RELU2_NO_MUL, {}, {"num_rows": F}),
}


@pytest.mark.parametrize("case", APPLIED)
def test_class_is_served(with_class: str, case: str) -> None:
    activation, configured, shape = APPLIED[case]
    if "gemm1_clamp_limit" in configured and with_class == "0.12.0":
        pytest.skip("vLLM 0.12.0 has no limits")
    unquantised, scales = fp8_layer(**shape)
    call, a1q_scale = quantised_input(unquantised)
    tessera.vllm.install()
    given = arguments(call, activation, a1q_scale=a1q_scale)
    assert experts_of(with_class)(fp8_config(scales, **configured)).apply(**given) is None
    assert engine_ops.calls == []
    assert given["output"].dtype == torch.bfloat16
    options: dict[str, Any] = {name: configured[name] for name in _BIASES if name in configured}
    options["activation"] = activation.value
    if "gemm1_clamp_limit" in configured:
        options |= {"limit": 0.75, "alpha": 1.0, "beta": 0.0}
    judge(given["output"], call, scales, a1q_scale, **options)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_class_quantises_an_input_in_16_bits(with_class: str, dtype: Any) -> None:
    call, scales = fp8_layer(dtype=dtype)
    tessera.vllm.install()
    given = arguments(call, Activation.SILU)
    experts_of(with_class)(fp8_config(scales)).apply(**given)
    assert engine_ops.calls == []
    judge(given["output"], call, scales)


def test_class_writes_float16(with_class: str) -> None:
    unquantised, scales = fp8_layer()
    call, a1q_scale = quantised_input(unquantised)
    tessera.vllm.install()
    written = torch.full(call["hidden_states"].shape, 7.0, dtype=torch.float16)
    given = arguments(call, Activation.SILU, a1q_scale=a1q_scale, output=written)
    experts_of(with_class)(fp8_config(scales)).apply(**given)
    assert engine_ops.calls == []
    judge(written, call, scales, a1q_scale)


def columns_first(scales: Any) -> Any:
    """As `per_token_group_quant_fp8` of vLLM has them with `column_major_scales`."""
    strided = scales.mT.contiguous().mT
    assert not strided.is_contiguous()
    return strided


def test_scales_with_the_columns_first(with_class: str) -> None:
    unquantised, scales = fp8_layer()
    call, a1q_scale = quantised_input(unquantised)
    tessera.vllm.install()
    # Those of `w2` have one column, which follow each other in either order.
    strided = scales | {"w1_scale": columns_first(scales["w1_scale"])}
    given = arguments(call, Activation.SILU, a1q_scale=columns_first(a1q_scale))
    experts_of(with_class)(fp8_config(strided)).apply(**given)
    found = implementation()(**unquantised, **BLOCKS, **strided)
    assert engine_ops.calls == []
    judge(given["output"], call, scales, a1q_scale)
    judge(found, unquantised, scales)


def test_scales_of_w2_that_lie_apart() -> None:
    call, scales = fp8_layer()
    apart = scales | {"w2_scale": scales["w2_scale"].repeat(1, 1, 2)[..., :1]}
    assert not apart["w2_scale"].is_contiguous()
    judge(experts.fused_experts_impl(**call, **BLOCKS, **apart), call, scales)


def test_class_with_a_map_of_experts_and_parameters(with_class: str) -> None:
    unquantised, scales = fp8_layer(num_ids=len(MAP))
    call, a1q_scale = quantised_input(unquantised)
    tessera.vllm.install()
    parameters = {
        name: torch.nn.Parameter(each, requires_grad=False)
        for name, each in (call | scales).items()
        if name.startswith("w")
    }
    config = fp8_config({name: parameters[name] for name in scales})
    given = arguments(call, Activation.SILU, a1q_scale=a1q_scale, expert_map=MAP)
    given |= {name: parameters[name] for name in ("w1", "w2")}
    experts_of(with_class)(config).apply(**given)
    assert engine_ops.calls == []
    judge(given["output"], call, scales, a1q_scale, expert_map=MAP)


def test_weights_that_are_on_the_input_are_not_applied_again(with_class: str) -> None:
    unquantised, scales = fp8_layer(top_k=1)
    call, a1q_scale = quantised_input(unquantised)
    tessera.vllm.install()
    options = {"a1q_scale": a1q_scale, "apply_router_weight_on_input": True}
    given = arguments(call, Activation.SILU, **options)
    experts_of(with_class)(fp8_config(scales)).apply(**given)
    assert engine_ops.calls == []
    judge(given["output"], call, scales, a1q_scale, weights_on="nothing")


def test_configuration_without_a_type_of_weights(with_class: str) -> None:
    unquantised, scales = fp8_layer()
    call, a1q_scale = quantised_input(unquantised)
    tessera.vllm.install()
    config = fp8_config(scales)
    del config.weight_quant_dtype
    given = arguments(call, Activation.SILU, a1q_scale=a1q_scale)
    experts_of(with_class)(config).apply(**given)
    assert engine_ops.calls == []
    judge(given["output"], call, scales, a1q_scale)


@pytest.mark.parametrize("newer", ["0.24.0", "0.33.0"])
def test_output_of_the_layer_is_written_at_once(use_engine: UseEngine, newer: str) -> None:
    use_engine(STANDINS / f"vllm-{newer}")
    unquantised, scales = fp8_layer()
    call, a1q_scale = quantised_input(unquantised)
    tessera.vllm.install()
    kind = importlib.import_module(f"{FUSED_MOE}.modular_kernel").FusedMoEKernelModularImpl
    kernel = kind(MoEPrepareAndFinalizeNoDPEPModular(), experts_of(newer)(fp8_config(scales)))
    output = torch.full_like(unquantised["hidden_states"], 7)
    a1q, *others = call.values()
    options = (Activation.SILU, E, E, None, False, None, output)
    found = kernel._fused_experts(output.dtype, a1q, a1q_scale, *others, *options)
    assert found is output
    assert engine_ops.calls == []
    judge(output, call, scales, a1q_scale)
    # Where the kernel is left to vLLM, its own output is served.
    own = kernel._fused_experts(output.dtype, a1q, a1q_scale, *others, *options[:-1])
    assert engine_ops.calls == []
    assert torch.equal(own, output)


@pytest.mark.parametrize("newer", ["0.24.0", "0.33.0"])
def test_backend_in_fp8_is_told(
    use_engine: UseEngine, caplog: pytest.LogCaptureFixture, newer: str
) -> None:
    use_engine(STANDINS / f"vllm-{newer}")
    caplog.set_level(logging.INFO, "vllm.tessera")
    kernel = importlib.import_module(f"{FUSED_MOE}.modular_kernel").FusedMoEKernel
    tessera.vllm.install()
    caplog.clear()
    _, scales = fp8_layer()
    for config in (
        fp8_config(scales),
        fp8_config(scales, block_shape=[64, 128]),
        fp8_config(scales, a2_scale=torch.ones(1)),
        fp8_config(scales, weight_quant_dtype="mxfp4"),
        fp8_config({"w1_scale": None, "w2_scale": None}),
    ):
        kernel("prepare", experts_of(newer)(config))
    beginning = "vLLM's backend for experts is TritonExperts, not served by Tessera: "
    assert [each.getMessage() for each in caplog.records] == [
        "vLLM's backend for experts in fp8 is TritonExperts, served by Tessera, but for calls it "
        "refuses",
        f"{beginning}block_shape: expected None or [128, 128] for {FP8}, got [64, 128]",
        f"{beginning}a2_scale: expected none, got Tensor",
        f"{beginning}weight_quant_dtype: expected {FP8}, as quant_dtype is, got mxfp4",
        f"{beginning}w1_scale: expected a torch.Tensor, got NoneType",
    ]


def test_functions_of_mid_2025() -> None:
    call, scales = fp8_layer()
    hidden_states, w1, w2, topk_weights, topk_ids = call.values()
    options = {**BLOCKS, **scales}
    found = functions.fused_experts(**call, **options)
    judge(found, call, scales)
    for other in (
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
        functions.modular_triton_fused_moe(True, False, False, False, False, [128, 128])(
            **call, **scales
        ),
    ):
        assert torch.equal(other, found)
    functions.inplace_fused_experts(**call, **options)
    assert torch.equal(hidden_states, found)


# Of the versions before and after 0.9.2.
@pytest.mark.parametrize(
    "flags", [("per_channel_quant",), ("per_act_token_quant", "use_mxfp4_w4a4")]
)
def test_modular_kernel_of_neighbouring_versions(flags: tuple[str, ...]) -> None:
    call, scales = fp8_layer()
    weights = ("use_fp8_w8a8", "use_int8_w8a8", "use_int8_w8a16", "use_int4_w4a16")
    given: dict[str, Any] = dict.fromkeys((*weights, *flags), False) | BLOCKS
    judge(functions.modular_triton_fused_moe(**given)(**call, **scales), call, scales)
    for name in flags:
        with pytest.raises(NotImplementedError, match=f": {name}: expected none, got True$"):
            functions.modular_triton_fused_moe(**given | {name: True})


def test_script_on_the_cpu(tmp_path: Path) -> None:
    script = """
import torch
from vllm.model_executor.layers.fused_moe import fused_experts, fused_topk

a = torch.randn(33, 256, device="cuda", dtype=torch.bfloat16)
w1 = (torch.randn(8, 2 * 128, 256, device="cuda") * 100).to(torch.float8_e4m3fn)
w2 = (torch.randn(8, 256, 128, device="cuda") * 100).to(torch.float8_e4m3fn)
w1_scale = torch.rand(8, 2, 2, device="cuda") / 1000
w2_scale = torch.rand(8, 2, 1, device="cuda") / 1000
weights, ids, _ = fused_topk(a, torch.randn(33, 8, device="cuda"), 2, renormalize=True)
options = {"use_fp8_w8a8": True, "block_shape": [128, 128]}
found = fused_experts(a, w1, w2, weights, ids, w1_scale=w1_scale, w2_scale=w2_scale, **options)
print(found.shape, found.dtype, bool(found.isfinite().all()))

from vllm.platforms import current_platform

print(current_platform.fp8_dtype(), *current_platform.get_device_capability())
"""
    expected = "torch.Size([33, 256]) torch.bfloat16 True\ntorch.float8_e4m3fn 0 0\n"
    assert output(tmp_path, script, "--device", "cpu") == expected
