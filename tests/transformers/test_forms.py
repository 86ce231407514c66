"""Which activation of `fused_experts` stands for a module's activation and gate."""

from __future__ import annotations

import importlib
import math
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

from transformers.activations import ACT2FN  # noqa: E402
from transformers.integrations.moe import use_experts_implementation  # noqa: E402

from tessera.transformers.forms import Form, form_of  # noqa: E402

# With a gate that multiplies halves, as transformers' default does, and without a gate.
NAMED = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
}
UNSERVED = [
    "gelu_10",
    "hardswish",
    "laplace",
    "leaky_relu",
    "linear",
    "mish",
    "relu",
    "relu6",
    "sigmoid",
    "sqrtsoftplus",
    "tanh",
]
UNINTERLEAVED = "swigluoai_uninterleave"
# Gates of transformers' models: what their configurations hold, and the form.
MODEL_GATES: dict[str, tuple[dict[str, Any], Form | None]] = {
    "gpt_oss.GptOssExperts": ({"alpha": 1.5, "limit": 6.5}, Form("swigluoai", 1.5, 1, 6.5)),
    "openai_privacy_filter.OpenAIPrivacyFilterExperts": (
        {"alpha": 1.702, "limit": 7.0},
        Form(UNINTERLEAVED, 1.702, 1, 7),
    ),
    "minimax_m3_vl.MiniMaxM3VLExperts": (
        {"swiglu_alpha": 1.25, "swiglu_limit": 3.0},
        Form(UNINTERLEAVED, 1.25, 1, 3),
    ),
    "deepseek_v4.DeepseekV4Experts": (
        {"limit": 10.0, "act_fn": torch.nn.SiLU()},
        Form(UNINTERLEAVED, 1, 0, 10),
    ),
    "hy_v4.HYV4Experts": ({"swiglu_limit": 0.5}, Form(UNINTERLEAVED, 1, 0, 0.5)),
    "glm5_next.Glm5NextTextExperts": ({"swiglu_limit": 1e4}, Form(UNINTERLEAVED, 1, 0, 1e4)),
    # Clamps after the activation.
    "step3p7.Step3p7Experts": ({"limit": 7.0, "act_fn": torch.nn.SiLU()}, None),
}


class Experts(torch.nn.Module):  # type: ignore[misc, name-defined]
    """As much of a model's experts as their form depends on."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.act_fn = config.act_fn

    def forward(self) -> None:
        """Never called."""


def experts(act_fn: Any, gate: Any = None, **flags: bool) -> Any:
    members = {} if gate is None else {"_apply_gate": gate}
    decorated = use_experts_implementation(type("Experts", (Experts,), members), **flags)
    return decorated(SimpleNamespace(act_fn=act_fn))


def is_form(found: Form | str, expected: Form) -> bool:
    """Measured numbers are right to float32's precision."""
    numbers: list[Any] = [*zip(found[1:], expected[1:], strict=True)]
    return found[0] == expected[0] and all(
        math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-9) for a, b in numbers
    )


@pytest.mark.parametrize("name", NAMED)
def test_named_activations(name: str) -> None:
    assert form_of(experts(ACT2FN[name])) == Form(NAMED[name])
    assert form_of(experts(ACT2FN[name], has_gate=False)) == Form(f"{NAMED[name]}_no_mul")


def test_squared_relu_has_no_gated_form() -> None:
    act_fn = ACT2FN["relu2"]
    assert form_of(experts(act_fn, has_gate=False)) == Form("relu2_no_mul")
    assert form_of(experts(act_fn)) == (
        "fused_experts has no activation that computes its ReLUSquaredActivation"
    )


def test_quick_gelu_is_swiglu_with_an_alpha() -> None:
    act_fn = ACT2FN["quick_gelu"]
    assert is_form(form_of(experts(act_fn)), Form(UNINTERLEAVED, 1.702, 0, math.inf))
    assert "QuickGELUActivation" in form_of(experts(act_fn, has_gate=False))


@pytest.mark.parametrize("has_gate", [True, False])
@pytest.mark.parametrize("name", UNSERVED)
def test_unserved_activations(name: str, has_gate: bool) -> None:
    act_fn = ACT2FN[name]
    assert form_of(experts(act_fn, has_gate=has_gate)) == (
        f"fused_experts has no activation that computes its {type(act_fn).__name__}"
    )


def test_every_activation_of_transformers_is_in_a_table() -> None:
    learned = {"prelu", "xielu"}
    assert set(ACT2FN) - learned <= {*NAMED, *UNSERVED, "relu2", "quick_gelu"}


@pytest.mark.parametrize("name", MODEL_GATES)
def test_gates_of_models(name: str) -> None:
    model, _, class_name = name.partition(".")
    try:
        module = importlib.import_module(f"transformers.models.{model}.modeling_{model}")
        experts_class = getattr(module, class_name)
    except (ImportError, AttributeError):
        pytest.skip(f"this version of transformers has no {class_name}")
    numbers, expected = MODEL_GATES[name]
    made = experts(numbers.get("act_fn"), experts_class._apply_gate, **layout_of(class_name))
    vars(made).update({key: value for key, value in numbers.items() if key != "act_fn"})
    found = form_of(made)
    if expected is None:
        assert (
            found == f"fused_experts has no activation that computes its {class_name}._apply_gate"
        )
    else:
        assert is_form(found, expected), found


def layout_of(class_name: str) -> dict[str, bool]:
    return {"is_concatenated": class_name != "GptOssExperts"}


def interleaved_silu(self: Any, rows: Any) -> Any:
    return torch.nn.functional.silu(rows[..., ::2]) * rows[..., 1::2]


def silu_of_neighbours(self: Any, rows: Any) -> Any:
    gate, up = rows.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate) * up.roll(1, -1)


def silu_with_a_rare_clamp(self: Any, rows: Any) -> Any:
    gate, up = rows.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate) * up.clamp(min=-5e4)


def silu_in_float32(self: Any, rows: Any) -> Any:
    gate, up = rows.chunk(2, dim=-1)
    return (torch.nn.functional.silu(gate.float()) * up.float()).to(rows.dtype)


def silu_of_the_wrong_size(self: Any, rows: Any) -> Any:
    return silu_in_float32(self, rows)[..., :-1]


def a_gate_that_fails(self: Any, rows: Any) -> Any:
    raise RuntimeError("only for floats")


def test_custom_gates() -> None:
    silu = ACT2FN["silu"]
    interleaved = experts(silu, interleaved_silu, is_concatenated=False)
    assert is_form(form_of(interleaved), Form("swigluoai", 1, 0, math.inf))
    assert form_of(experts(silu, silu_in_float32)) == Form("silu")
    for gate in (silu_of_neighbours, silu_with_a_rare_clamp, silu_of_the_wrong_size):
        assert form_of(experts(silu, gate)) == (
            f"fused_experts has no activation that computes its {gate.__qualname__}"
        )
    assert form_of(experts(silu, a_gate_that_fails)) == (
        "its activation cannot be probed: RuntimeError: only for floats"
    )


@pytest.mark.parametrize("gate", [None, interleaved_silu])
def test_a_gate_that_contradicts_the_layout_is_unserved(gate: Any) -> None:
    """The default gate takes halves; whether a loop over interleaved rows does is unknown."""
    found = form_of(experts(ACT2FN["silu"], gate, is_concatenated=gate is not None))
    assert isinstance(found, str)
    assert found.startswith("fused_experts has no activation that computes its ")
    assert found.endswith(" of interleaved rows") == (gate is None)


def test_learned_activations_are_unserved() -> None:
    """Their weights may agree with a formula now, and not after they are loaded."""
    assert (
        form_of(experts(torch.nn.PReLU())) == "fused_experts has no argument for its act_fn.weight"
    )


def test_norms_after_the_experts_are_unserved() -> None:
    module = experts(ACT2FN["silu"])
    module.has_post_expert_norm = True
    assert form_of(module) == "it normalises each expert's output"


def test_form_follows_the_module() -> None:
    gate = importlib.import_module("transformers.models.gpt_oss.modeling_gpt_oss").GptOssExperts
    module = experts(None, gate._apply_gate, is_concatenated=False)
    module.alpha = 1.702
    for limit in (7.0, 3.5):
        module.limit = limit
        assert is_form(form_of(module), Form("swigluoai", 1.702, 1, limit))
    module.act_fn, other = ACT2FN["silu"], experts(ACT2FN["silu"])
    assert form_of(other) == Form("silu")
    other.act_fn = ACT2FN["gelu"]
    assert form_of(other) == Form("gelu")
