"""SGLang's expert computation over Tessera, on stand-ins for SGLang of 2025 and of 2026."""

from __future__ import annotations

import functools
import importlib
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

import engine_ops  # noqa: E402
import tessera.sglang  # noqa: E402
from engine_packages import STANDINS  # noqa: E402
from experts_calls import E, F, H, T, close, layer, random  # noqa: E402
from tessera.sglang import experts  # noqa: E402

UseEngine = Callable[[Path], None]

LAYERS = "sglang.srt.layers.moe"
MODULES = {
    "0.5.5": f"{LAYERS}.fused_moe_triton.fused_moe",
    "0.5.23": f"{LAYERS}.moe_runner.triton_utils.fused_moe",
}


@pytest.fixture(params=list(MODULES))
def module(request: pytest.FixtureRequest, use_engine: UseEngine) -> Any:
    use_engine(STANDINS / f"sglang-{request.param}")
    return importlib.import_module(MODULES[request.param])


@pytest.fixture
def newest(use_engine: UseEngine) -> Any:
    use_engine(STANDINS / "sglang-0.5.23")
    return importlib.import_module(MODULES["0.5.23"])


def elsewhere() -> Any:
    """As the dispatcher leaves ids of experts on other ranks, and padding."""
    ids = layer()["topk_ids"].clone()
    ids[1::2, 0] = -1
    ids[2] = -1
    return ids


_BIASES = {"b1": random(E, 2 * F), "b2": random(E, H)}
_GPT_OSS = {"gemm1_alpha": 1.702, "gemm1_limit": 7.0, **_BIASES}
# Options of the function, and of the layer.
SERVED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "silu": ({}, {}),
    "float16": ({}, {"dtype": torch.float16}),
    "in place": ({"inplace": True}, {}),
    "elsewhere": ({"topk_ids": elsewhere(), "filter_expert": True}, {}),
    "all here": ({"filter_expert": False}, {}),
    "int64": ({"topk_ids": layer()["topk_ids"].long()}, {}),
    "scaled": ({"routed_scaling_factor": 2.5}, {}),
    "not scaled": ({"routed_scaling_factor": 1.0}, {}),
    "scaled in place": ({"routed_scaling_factor": 2.5, "inplace": True}, {}),
    "weights on the input": ({"apply_router_weight_on_input": True}, {"top_k": 1}),
    "biased": (_BIASES, {}),
    "gelu": ({"activation": "gelu"}, {}),
    "gpt-oss": (_GPT_OSS, {}),
}
# From 2026 on.
SERVED_NOW: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "gelu_tanh": ({"activation": "gelu_tanh"}, {}),
    "relu2": ({"activation": "relu2", "is_gated": False}, {"num_rows": F}),
    "silu without a gate": ({"is_gated": False}, {"num_rows": F}),
    "uninterleaved": (
        {"gemm1_alpha": 1.5, "gemm1_limit": 0.75, "gate_up_interleaved": False},
        {},
    ),
    "limited": ({"swiglu_limit": 0.75}, {}),
    "with all defaults": ({"a1_q": None, "defer_sum": False, "block_shape": None}, {}),
}


def served(module: Any, options: dict[str, Any], shape: dict[str, Any]) -> None:
    call = layer(**shape) | options
    given = call["hidden_states"].clone()
    expected = module.fused_experts_impl(**call | {"hidden_states": given.clone()})
    assert engine_ops.calls == ["experts"]
    engine_ops.calls.clear()
    tessera.sglang.install()
    found = module.fused_experts_impl(**call)
    assert engine_ops.calls == []
    close(found, expected)
    if options.get("inplace"):
        assert found is call["hidden_states"]
    else:
        assert torch.equal(call["hidden_states"], given)


@pytest.mark.parametrize("case", SERVED)
def test_function_is_served(module: Any, case: str) -> None:
    served(module, *SERVED[case])


@pytest.mark.parametrize("case", SERVED_NOW)
def test_function_of_2026_is_served(newest: Any, case: str) -> None:
    served(newest, *SERVED_NOW[case])


def test_layer_with_parameters_gets_the_same_from_tessera(module: Any) -> None:
    """As the Triton backend calls it: by position, and with parameters of a torch module."""
    call = layer()
    w1, w2 = (torch.nn.Parameter(call[name], requires_grad=False) for name in ("w1", "w2"))
    config = SimpleNamespace(
        inplace=False,
        activation="silu",
        is_gated=True,
        apply_router_weight_on_input=False,
        no_combine=False,
        routed_scaling_factor=None,
    )
    routed = (call["topk_weights"], call["topk_ids"], None)
    expected = module.fused_experts(call["hidden_states"], w1, w2, routed, config)
    engine_ops.calls.clear()
    assert f"{module.__name__}.fused_experts_impl" in tessera.sglang.install()
    close(module.fused_experts(call["hidden_states"], w1, w2, routed, config), expected)
    assert engine_ops.calls == []


_SCALE = torch.ones(E)
_LIMIT_ALONE = {"gemm1_limit": 7.0}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"use_fp8_w8a8": True}, "use_fp8_w8a8: expected none, got True"),
        ({"w1_scale": _SCALE}, "w1_scale: expected none, got Tensor"),
        ({"block_shape": [128, 128]}, "block_shape: expected none, got list"),
        ({"no_combine": True}, "no_combine: expected none, got True"),
        ({"a1_q": _SCALE}, "a1_q: expected none, got Tensor"),
        ({"fuse_swiglu_interleaved": True}, "fuse_swiglu_interleaved: expected none, got True"),
        ({"defer_sum": True}, "defer_sum: expected none, got True"),
        (_LIMIT_ALONE, "gemm1_limit: expected none, got 7.0"),
        ({"gemm1_alpha": 1.702}, "gemm1_limit: expected a number with gemm1_alpha, got None"),
        ({"activation": "gelu", "swiglu_limit": 10.0}, "swiglu_limit: expected none, got 10.0"),
        ({"activation": "situ"}, "activation: expected one of "),
        ({"w1": layer()["w1"].to(torch.int8)}, "w1.dtype: expected bfloat16, as hidden_states has"),
        (
            {"w1": layer()["w1"].half()},
            "w1.dtype: expected bfloat16, as hidden_states has, got float16",
        ),
        (
            {name: layer()[name].to(torch.float8_e4m3fn) for name in ("w1", "w2")},
            "w1.dtype: expected bfloat16, as hidden_states has, got float8_e4m3fn",
        ),
        (
            {"hidden_states": random(T, H).to(torch.float8_e4m3fn)},
            "hidden_states.dtype: expected float16, bfloat16 or float32, got float8_e4m3fn",
        ),
        ({"hidden_states": random(H, T).t()}, "hidden_states: expected contiguous rows"),
        (
            {"apply_router_weight_on_input": True, "b1": random(E, 2 * F)},
            "b1: expected none, got Tensor",
        ),
        (
            {"apply_router_weight_on_input": True, "routed_scaling_factor": 2.5},
            "routed_scaling_factor: expected none, got 2.5",
        ),
        ({"topk_weights": None, "routed_scaling_factor": 2.5}, "topk_weights: expected a torch.T"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_not_served_goes_to_sglang_and_is_told_once(
    newest: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    options: dict[str, Any],
    reason: str,
) -> None:
    seen: list[dict[str, Any]] = []

    @functools.wraps(newest.fused_experts_impl)
    def original(**arguments: Any) -> str:
        seen.append(arguments)
        return "SGLang's"

    monkeypatch.setattr(newest, "fused_experts_impl", original)
    tessera.sglang.install()
    call = layer() | {"inplace": True} | options
    given = call["hidden_states"].clone()
    for _ in range(2):
        assert newest.fused_experts_impl(**call) == "SGLang's"
    assert len(seen) == 2
    assert all(seen[0][name] is value for name, value in call.items())
    assert torch.equal(call["hidden_states"], given)
    (warning,) = [one for one in caplog.records if one.levelno == logging.WARNING]
    assert f"fused_experts_impl: {reason}" in warning.getMessage()


def test_new_tensors_in_symmetric_memory_are_sglangs(
    newest: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    memory = SimpleNamespace(is_symmetric_memory_enabled=lambda: True)
    monkeypatch.setitem(sys.modules, experts._SYMMETRIC_MEMORY, memory)
    tessera.sglang.install()
    newest.fused_experts_impl(**layer())
    assert engine_ops.calls == ["experts"]
    assert "inplace: expected True with symmetric memory, got False" in caplog.text
    newest.fused_experts_impl(**layer(), inplace=True)
    memory.is_symmetric_memory_enabled = lambda: False
    newest.fused_experts_impl(**layer())
    assert engine_ops.calls == ["experts"]


def test_environment_leaves_the_experts_alone(
    module: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TESSERA_SGLANG_EXPERTS", "0")
    original = module.fused_experts_impl
    replaced = tessera.sglang.install()
    assert f"{LAYERS}.topk.fused_topk" in replaced
    assert not any("experts" in name for name in replaced)
    assert module.fused_experts_impl is original
    assert caplog.text == ""
    monkeypatch.delenv("TESSERA_SGLANG_EXPERTS")
    assert f"{module.__name__}.fused_experts_impl" in tessera.sglang.install()
    monkeypatch.setenv("TESSERA_SGLANG_EXPERTS", "0")
    assert tessera.sglang.install() == replaced
    assert module.fused_experts_impl is original
    monkeypatch.setenv("TESSERA_SGLANG", "0")
    assert tessera.sglang.install() == []
    assert tessera.sglang._patches.names == []


def test_inference_tensors_are_not_written_outside_of_inference() -> None:
    with torch.inference_mode():
        call = layer()
    with pytest.raises(ValueError, match="inplace: expected False for an inference tensor"):
        experts.fused_experts_impl(**call, inplace=True)


def test_function_with_unknown_parameters_is_left_alone(
    newest: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def other(hidden_states: Any, w1: Any, w2: Any, num_streams: int = 1) -> None: ...

    monkeypatch.setattr(newest, "fused_experts_impl", other)
    assert not any("experts" in name for name in tessera.sglang.install())
    assert newest.fused_experts_impl is other
    assert "fused_experts_impl is left alone: expected (hidden_states, w1, w2" in caplog.text


def test_a_module_that_cannot_be_imported_is_told(
    newest: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, newest.__name__, None)  # as where triton is missing
    assert not any("experts" in name for name in tessera.sglang.install())
    assert "fused_experts_impl is left alone: " in caplog.text


def test_the_line_of_the_start_waits_for_sglangs_logging(
    newest: Any, caplog: pytest.LogCaptureFixture
) -> None:
    registry = importlib.import_module("sglang.srt.plugins.hook_registry").HookRegistry
    tessera.sglang.plugin()
    registry.apply_hooks()
    assert caplog.messages == []
    caplog.set_level(logging.INFO)  # as SGLang does for all loggers, after its plugins
    for _ in range(2):
        newest.fused_experts_impl(**layer())
    assert caplog.messages == [
        "SGLang 0.5.23: Tessera serves moe_align_block_size, fused_topk, grouped_topk, "
        "biased_grouped_topk, fused_experts_impl; TESSERA_SGLANG=0 turns it off"
    ]
    assert engine_ops.calls == []
