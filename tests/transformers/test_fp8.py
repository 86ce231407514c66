"""Experts in fp8: logits, layouts of scales, graphs, and the forms that run eagerly."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

import tessera.transformers  # noqa: E402
from fp8_models import (  # noqa: E402
    FORMS,
    SIZES,
    experts_in_fp8,
    fp8_model,
    linear_layers,
    naive,
    sizes,
)
from tiny_models import (  # noqa: E402
    MULTIPLE,
    NUM_MOE_LAYERS,
    exact_logits,
    experts_of,
    logits,
    prompts,
    tiny_model,
)

Said = Callable[[], list[str]]
Calls = list[dict[str, Any]]
STATIC = FORMS["tensor-static"]


def inputs(experts: Any, dtype: Any = torch.float32) -> tuple[Any, Any, Any]:
    """Hidden states, ids and weights of 24 tokens with 2 experts; a group of zeros among them."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(24, experts.hidden_dim, generator=generator)
    x[3, :128] = 0
    ids = torch.rand(24, experts.num_experts, generator=generator).topk(2).indices
    return x.to(dtype), ids, torch.rand(24, 2, generator=generator).to(dtype)


def eager(experts: Any, *args: Any) -> Any:
    """transformers' own experts, over the naive product."""
    experts.config._experts_implementation = "eager"
    with naive(), torch.no_grad():
        result = experts(*args)
    experts.config._experts_implementation = "tessera"
    return result


def reported(experts: Any) -> str:
    (reason,) = tessera.transformers.report(torch.nn.ModuleList([experts])).values()
    return reason


def relative(difference: Any, to: Any) -> float:
    return float(difference.double().norm() / to.double().norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", SIZES)
def test_logits(name: str, form: str, dtype: Any, calls: Calls, said: Said) -> None:
    """At the median of all tokens, as quantised activations choose other experts now and then."""
    model, dequantized = fp8_model(name, dtype, **FORMS[form])
    ids = prompts()
    assert list(tessera.transformers.report(model).values()) == ["served"] * NUM_MOE_LAYERS
    found = logits(model, ids)
    assert len(calls) == NUM_MOE_LAYERS
    assert not said()
    for call in calls:
        assert call["args"][1].dtype == call["args"][2].dtype == torch.float8_e4m3fn
        assert ("x_scale" in call) == (form == "tensor-static")
    exact = exact_logits(dequantized, ids)
    model.set_experts_implementation("eager")
    with naive():
        own = logits(model, ids)
    error, own_error = ((one.double() - exact).norm(dim=-1).median() for one in (found, own))
    assert own_error > 0
    assert error <= MULTIPLE * own_error


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("hidden_size", "intermediate_size", "hidden_act", "has_gate"),
    [
        (256, 128, "silu", True),
        (200, 256, "gelu", True),  # the last columns of w13 are no whole block
        (128, 200, "silu", False),  # likewise of w2, and the last rows of w13
    ],
)
def test_layouts(
    form: str,
    hidden_size: int,
    intermediate_size: int,
    hidden_act: str,
    has_gate: bool,
    calls: Calls,
) -> None:
    """Beside the naive form with the same quantised activations, little is left of its error."""
    config = sizes(hidden_size, intermediate_size, hidden_act)
    experts = experts_in_fp8(config, has_gate, **FORMS[form])
    assert reported(experts) == "served"
    x, ids, weights = inputs(experts)
    found = experts(x, ids, weights)
    assert len(calls) == 1
    assert relative(found - eager(experts, x, ids, weights), found) < 2e-3
    half = (x.bfloat16(), ids, weights.bfloat16())
    found = experts(*half)
    assert found.dtype == torch.bfloat16
    # The intermediate is quantised from float32, so that the output is rounded, and nothing else.
    assert torch.equal(found, experts(half[0].float(), ids, half[2].float()).bfloat16())


def test_one_scale_for_gate_and_up() -> None:
    """As the quantiser makes them from weights in another type: gate_up_proj is one matrix."""
    experts = experts_in_fp8(sizes(256, 128), weight_block_size=None)
    x, ids, weights = inputs(experts)
    scale = experts.gate_up_proj_scale_inv
    assert scale.shape == (4, 2, 1)
    scale.data[:, 1] = scale.data[:, 0]
    expected = experts(x, ids, weights)
    experts.gate_up_proj_scale_inv = torch.nn.Parameter(scale[:, :1].clone(), requires_grad=False)
    assert torch.equal(experts(x, ids, weights), expected)


@pytest.mark.parametrize("block_size", [(128, 128), None], ids=["blocks", "tensor"])
def test_loaded_model(block_size: Any, tmp_path: Any, calls: Calls) -> None:
    """Quantised by transformers while it loads, which it does where it finds a GPU."""
    from transformers import AutoModelForCausalLM, FineGrainedFP8Config
    from transformers.quantizers.quantizer_finegrained_fp8 import FineGrainedFP8HfQuantizer

    model, ids = tiny_model("qwen3_moe", dtype=torch.bfloat16, **SIZES["qwen3_moe"]), prompts()
    model.save_pretrained(tmp_path)
    quantization = FineGrainedFP8Config(
        weight_block_size=block_size, modules_to_not_convert=linear_layers(model)
    )
    with mock.patch.object(FineGrainedFP8HfQuantizer, "validate_environment"):
        loaded = AutoModelForCausalLM.from_pretrained(
            tmp_path, quantization_config=quantization, experts_implementation="tessera"
        )
    assert set(tessera.transformers.report(loaded).values()) == {"served"}
    found = logits(loaded, ids)
    assert len(calls) == NUM_MOE_LAYERS
    loaded.set_experts_implementation("eager")
    with naive():
        own = logits(loaded, ids)
    exact = exact_logits(model, ids)
    error, own_error = ((one.double() - exact).norm(dim=-1).median() for one in (found, own))
    assert error <= MULTIPLE * own_error


@pytest.mark.parametrize("form", FORMS)
def test_compiled_experts_are_one_graph_with_the_same_bits(form: str) -> None:
    experts = experts_in_fp8(sizes(256, 128), **FORMS[form])
    x, ids, weights = inputs(experts, torch.bfloat16)
    torch.compiler.reset()
    with torch.no_grad():
        found = torch.compile(experts, fullgraph=True, backend="eager")(x, ids, weights)
        assert torch.equal(found, experts(x, ids, weights))


@pytest.mark.parametrize("form", ["blocks", "tensor-static"])
def test_compiled_model_is_one_graph_with_the_same_bits(form: str) -> None:
    model, _ = fp8_model("qwen3_moe", torch.bfloat16, **FORMS[form])
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert torch.equal(logits(compiled, prompts()), logits(model, prompts()))


def test_experts_of_other_ranks_add_nothing() -> None:
    experts = experts_in_fp8(sizes(256, 128))
    x, ids, weights = inputs(experts)
    first = torch.where(ids < 2, ids, 4)
    second = torch.where(ids < 2, 4, ids)
    parts = experts(x, first, weights) + experts(x, second, weights)
    whole = experts(x, ids, weights)
    assert relative(parts - whole, whole) < 1e-6


def test_limits_of_gates_are_found() -> None:
    """As DeepSeek-V4 has them, in the words of `FP8Experts`."""
    config = sizes(256, 128)
    config.swiglu_limit = 0.5
    experts = experts_in_fp8(config)
    x, ids, weights = inputs(experts)
    found = experts(x, ids, weights)
    assert relative(found - eager(experts, x, ids, weights), found) < 2e-3


def unserved(experts: Any, calls: Calls, said: Said) -> str:
    """The reason, which a call gives too, once, and which its bits bear out."""
    reason = reported(experts)
    x, ids, weights = inputs(experts, torch.bfloat16)
    assert not said()
    with naive(), torch.no_grad():
        found = [experts(x, ids, weights) for _ in range(2)]
    assert all(torch.equal(one, eager(experts, x, ids, weights)) for one in found)
    assert not calls
    assert said() == [f"FP8Experts runs eagerly: {reason}"]
    return reason


@pytest.mark.parametrize(
    ("intermediate_size", "form", "reason"),
    [
        (
            128,
            {"weight_block_size": (64, 128)},
            "its weights have scales of blocks of 64 x 128",
        ),
        (
            128,
            {"activation_scheme": "static"},
            "its weights have scales of blocks, its activations static ones",
        ),
        (
            192,
            {},
            "a block of scales holds both gate and up rows, as there are 192 of each",
        ),
    ],
)
def test_forms_that_the_op_lacks(
    intermediate_size: int, form: dict[str, Any], reason: str, calls: Calls, said: Said
) -> None:
    with mock.patch("fp8_models.quantize"):
        experts = experts_in_fp8(sizes(256, intermediate_size), **form)
    for parameter in experts.parameters():
        generator = torch.Generator().manual_seed(23)
        values = torch.rand(parameter.shape, generator=generator) / 8
        parameter.data.copy_(values.to(parameter.dtype))
    assert unserved(experts, calls, said) == reason


def test_different_static_scales(calls: Calls, said: Said) -> None:
    """transformers has one for each expert, the op one for all; a change is noticed."""
    experts = experts_in_fp8(sizes(256, 128), **STATIC)
    assert reported(experts) == "served"
    experts.down_proj_activation_scale.data[2] *= 2
    reason = "its experts have different static activation scales"
    assert unserved(experts, calls, said) == reason
    experts.down_proj_activation_scale.data.fill_(0.03)
    x, ids, weights = inputs(experts)
    found = experts(x, ids, weights)
    assert len(calls) == 1
    assert relative(found - eager(experts, x, ids, weights), found) < 2e-3


def test_scales_of_another_type() -> None:
    """Bytes of exponents, as checkpoints hold them until transformers has loaded them."""
    experts = experts_in_fp8(sizes(256, 128))
    scale = experts.down_proj_scale_inv.data.to(torch.uint8)
    experts.down_proj_scale_inv = torch.nn.Parameter(scale, requires_grad=False)
    assert reported(experts) == "its scales are torch.uint8"


def test_device_without_code_for_fp8(
    calls: Calls, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As CUDA devices are."""
    from tessera.transformers import experts as adapter

    explain = tessera.explain

    def without_fp8(op: str, dtype: Any, **shape: Any) -> list[tessera.Implementation]:
        return [] if dtype == torch.float8_e4m3fn else explain(op, dtype=dtype, **shape)

    monkeypatch.setattr(tessera, "explain", without_fp8)
    uncached = adapter._is_selected.__wrapped__
    monkeypatch.setattr(adapter, "_is_selected", functools.cache(uncached))
    assert unserved(experts_in_fp8(sizes(256, 128)), calls, said) == (
        "its weights are torch.float8_e4m3fn on cpu, for which this build has no code"
    )


def test_experts_that_were_not_quantised(calls: Calls) -> None:
    """transformers leaves weights that its blocks do not divide, and ignores their scales."""
    experts = experts_in_fp8(sizes(256, 128))
    for name in ("gate_up_proj", "down_proj"):
        weights = torch.nn.Parameter(getattr(experts, name).data.float() / 448, requires_grad=False)
        setattr(experts, name, weights)
    assert reported(experts) == "served"
    x, ids, weights = inputs(experts)
    found = experts(x, ids, weights)
    assert len(calls) == 1
    assert relative(found - eager(experts, x, ids, weights), found) < 1e-5


def test_fp8_of_other_classes() -> None:
    """Weights that were only cast have no scales."""
    experts = experts_of(tiny_model("mixtral"))[0].to(torch.float8_e4m3fn)
    assert reported(experts) == "its weights are torch.float8_e4m3fn"


def test_scales_of_other_classes() -> None:
    """Only what `FP8Experts` does with its scales is known."""
    experts = experts_of(tiny_model("mixtral"))[0]
    experts.down_proj_scale_inv = torch.nn.Parameter(torch.ones(4, 1, 1))
    assert reported(experts) == "fused_experts has no argument for its down_proj_scale_inv"


def test_gradients(calls: Calls, said: Said) -> None:
    experts = experts_in_fp8(sizes(256, 128))
    x, ids, weights = inputs(experts)
    with naive():
        experts(x.requires_grad_(), ids, weights).sum().backward()
    assert x.grad.abs().max() > 0
    assert not calls
    assert "autograd follows the call" in said()[0]


def test_zero_tokens() -> None:
    experts = experts_in_fp8(sizes(256, 128))
    ids = torch.empty(0, 2, dtype=torch.int64)
    found = experts(torch.empty(0, 256), ids, torch.empty(0, 2))
    assert found.shape == (0, 256)
