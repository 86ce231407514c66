"""vLLM's functions of `fused_moe.py` of mid-2025, as Tessera's stand-in has them."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

import engine_router  # noqa: E402
from engine_packages import STANDINS, signatures  # noqa: E402
from experts_calls import MAP, E, F, H, T, close, layer, random, reference  # noqa: E402
from launching import output  # noqa: E402
from refusals import Refusal, after, refused  # noqa: E402
from tessera.vllm import layer as functions  # noqa: E402

SCALE = torch.ones(E)
MODULAR: dict[str, Any] = {
    "use_fp8_w8a8": False,
    "use_int8_w8a8": False,
    "use_int8_w8a16": False,
    "use_int4_w4a16": False,
    "per_act_token_quant": False,
}


def in_every_form(call: dict[str, Any], **options: Any) -> list[Any]:
    """The results of all functions that run experts."""
    others = {name: options[name] for name in options if name != "inplace"}
    return [
        functions.fused_experts(**call, **options),
        functions.outplace_fused_experts(**call, **others),
        functions.modular_triton_fused_moe(**MODULAR)(**call, **options),
    ]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("mapped", [False, True])
def test_experts(dtype: Any, mapped: bool) -> None:
    call = layer(dtype=dtype, num_ids=len(MAP) if mapped else E)
    options = {"expert_map": MAP, "global_num_experts": len(MAP)} if mapped else {}
    expected = reference(call, expert_map=options.get("expert_map"))
    for found in in_every_form(call, **options):
        close(found, expected)


def test_padded_weights() -> None:
    call = layer()
    expected = functions.fused_experts(**call)
    for name in ("w1", "w2"):
        call[name] = torch.nn.functional.pad(call[name], (0, 128))[..., :-128]
    for found in in_every_form(call):
        assert torch.equal(found, expected)


def test_weights_on_the_input() -> None:
    call = layer(top_k=1)
    expected = reference(call, weights_on="input")
    for found in in_every_form(call, apply_router_weight_on_input=True):
        close(found, expected)


def test_in_place() -> None:
    expected = functions.fused_experts(**layer())
    call = layer()
    assert functions.fused_experts(**call, inplace=True) is call["hidden_states"]
    assert torch.equal(call["hidden_states"], expected)
    call = layer()
    assert functions.inplace_fused_experts(**call) is None
    assert torch.equal(call["hidden_states"], expected)


def parameters(call: dict[str, Any], *, grad: bool = False) -> dict[str, Any]:
    """The tensors as a module has them."""
    return {
        name: torch.nn.Parameter(each.clone(), requires_grad=grad and each.is_floating_point())
        for name, each in call.items()
    }


def test_parameters_of_modules() -> None:
    expected = functions.fused_experts(**layer())
    for found in in_every_form(parameters(layer())):
        assert torch.equal(found, expected) and type(found) is torch.Tensor
    call = parameters(layer())
    assert functions.fused_experts(**call, inplace=True) is call["hidden_states"]
    assert torch.equal(call["hidden_states"], expected)
    logits = random(T, E, dtype=torch.float32)
    hidden = call["hidden_states"]
    found = functions.fused_topk(hidden, torch.nn.Parameter(logits, requires_grad=False), 2, True)
    for one, other in zip(found, functions.fused_topk(hidden, logits, 2, True), strict=True):
        assert torch.equal(one, other)
    followed = parameters(layer(), grad=True)
    with pytest.raises(ValueError, match="hidden_states: expected a tensor that autograd does not"):
        functions.fused_experts(**followed)
    with torch.no_grad():
        assert torch.equal(functions.fused_experts(**followed), expected)


def chosen(hidden_states: Any, logits: Any, top_k: int, renormalize: bool, **options: Any) -> Any:
    return engine_router.choose(logits, top_k, renormalize=renormalize, **options)


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("how", ["softmax", "grouped", "custom"])
def test_layer(how: str, renormalize: bool) -> None:
    call = layer()
    del call["topk_weights"], call["topk_ids"]
    logits = random(T, E, dtype=torch.float32)
    groups = {"num_groups": 2, "topk_group": 1} if how == "grouped" else {}
    weights, ids = chosen(None, logits, 2, renormalize, **groups)
    expected = reference(call | {"topk_weights": weights, "topk_ids": ids})
    options: dict[str, Any] = {
        "softmax": {},
        "grouped": {"use_grouped_topk": True, "num_expert_group": 2, "topk_group": 1},
        "custom": {"custom_routing_function": chosen},
    }[how]
    close(functions.fused_moe(*call.values(), logits, 2, renormalize, **options), expected)
    if how != "custom":
        arguments = (call["hidden_states"], logits, 2, renormalize)
        found = (
            functions.grouped_topk(*arguments, 2, 1)
            if how == "grouped"
            else functions.fused_topk(*arguments)
        )
        torch.testing.assert_close(found[0], weights)
        assert torch.equal(found[1], ids)


def test_biased_groups() -> None:
    logits, bias = random(T, 8, dtype=torch.float32), random(8, dtype=torch.float32)
    options = {"num_expert_group": 2, "topk_group": 1, "scoring_func": "sigmoid"}
    found = functions.grouped_topk(
        random(T, H), logits, 2, True, **options, e_score_correction_bias=bias
    )
    weights, ids = engine_router.choose(
        logits, 2, scoring="sigmoid", renormalize=True, bias=bias, num_groups=2, topk_group=1
    )
    torch.testing.assert_close(found[0], weights)
    assert torch.equal(found[1], ids)


_EXPERTS = after(
    "fused_experts",
    (
        {"use_fp8_w8a8": True, "block_shape": [64, 128]},
        NotImplementedError,
        "block_shape: expected None or [128, 128] for torch.float8_e4m3fn, got [64, 128]",
    ),
    (
        {"use_fp8_w8a8": True, "block_shape": [128, 128]},
        TypeError,
        "w1_scale: expected a torch.Tensor, got NoneType",
    ),
    ({"use_int8_w8a8": True}, NotImplementedError, "use_int8_w8a8: expected none, got True"),
    ({"block_shape": [128, 128]}, NotImplementedError, "block_shape: expected none, got list"),
    ({"w1_scale": SCALE}, NotImplementedError, "w1_scale: expected none, got Tensor"),
    (
        {"w1": layer()["w1"].half()},
        TypeError,
        "w1.dtype: expected bfloat16, as hidden_states has, got float16",
    ),
    (
        {"w1": random(E, 2 * F - 2, H)},
        ValueError,
        f"w1.shape[1]: expected {2 * F}, twice w2.shape[2] = {F}, for activation silu, got "
        f"{2 * F - 2}",
    ),
    (
        {"apply_router_weight_on_input": True},
        ValueError,
        "apply_router_weight_on_input: expected false where top_k is not 1, got true with top_k 2",
    ),
)


@pytest.mark.parametrize("refusal", _EXPERTS)
def test_experts_refuse(refusal: Refusal) -> None:
    call = layer()
    given = call["hidden_states"].clone()
    refused(functions.fused_experts, call | {"inplace": True}, refusal)
    assert torch.equal(call["hidden_states"], given)


def test_layers_refuse() -> None:
    call = layer()
    arguments = {name: call[name] for name in ("hidden_states", "w1", "w2")}
    arguments |= {"gating_output": random(T, E), "topk": 2, "renormalize": False}
    message = "fused_moe: num_expert_group: expected an integer, got NoneType"
    refused(functions.fused_moe, arguments, ({"use_grouped_topk": True}, TypeError, message))
    message = "modular_triton_fused_moe: per_act_token_quant: expected none, got True"
    refusal = ({"per_act_token_quant": True}, NotImplementedError, message)
    refused(functions.modular_triton_fused_moe, MODULAR, refusal)
    message = (
        "modular_triton_fused_moe: block_shape: expected None or [128, 128] for "
        "torch.float8_e4m3fn, got [0, 128]"
    )
    options: dict[str, Any] = {"use_fp8_w8a8": True, "block_shape": [0, 128]}
    refused(functions.modular_triton_fused_moe, MODULAR, (options, NotImplementedError, message))
    message = "modular_triton_fused_moe: block_shape: expected none, got list"
    blocks: dict[str, Any] = {"block_shape": [128, 128]}
    refused(functions.modular_triton_fused_moe, MODULAR, (blocks, NotImplementedError, message))


def test_signatures_are_those_of_the_stand_in_for_0_9_2() -> None:
    file = STANDINS / "vllm-0.9.2/vllm/model_executor/layers/fused_moe/fused_moe.py"
    real = signatures(file)
    for name in ("fused_topk", "grouped_topk"):
        found = inspect.signature(getattr(functions, name)).parameters
        assert list(found) == list(real[name])
    found = inspect.signature(functions.fused_experts).parameters
    assert list(found)[: len(real["fused_experts_impl"])] == list(real["fused_experts_impl"])


def test_script_of_mid_2025_runs_unmodified(tmp_path: Path) -> None:
    if re.search("vllm", str(__import__("importlib.util").util.find_spec("vllm"))):
        pytest.skip("vLLM is installed")
    script = """
import inspect
import torch
import vllm.model_executor.layers.fused_moe as package
from vllm.model_executor.layers.fused_moe import fused_experts, fused_moe, fused_topk
from vllm.model_executor.layers.fused_moe import fused_moe as again
from vllm.model_executor.layers.fused_moe.fused_moe import fused_moe as function
from vllm.model_executor.layers.fused_moe.fused_moe import grouped_topk, moe_align_block_size
import vllm._custom_ops as ops

assert fused_moe is again is function is package.fused_moe and inspect.isfunction(fused_moe)
a = torch.randn(33, 64, device="cuda", dtype=torch.bfloat16) / 10
w1 = torch.randn(8, 2 * 32, 64, device="cuda", dtype=torch.bfloat16) / 10
w2 = torch.randn(8, 64, 32, device="cuda", dtype=torch.bfloat16) / 10
score = torch.randn(33, 8, device="cuda", dtype=torch.bfloat16)
weights, ids, _ = fused_topk(a, score, 2, renormalize=True)
found = fused_experts(a, w1, w2, weights, ids)
assert torch.equal(found, fused_moe(a, w1, w2, score, 2, renormalize=True))
total = torch.empty_like(a)
ops.moe_sum(torch.stack([found, found], dim=1), total)
print(found.shape, torch.equal(total, found + found))
"""
    assert output(tmp_path, script, "--device", "cpu") == "torch.Size([33, 64]) True\n"
