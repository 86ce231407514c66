"""vLLM's expert computations that stay its own, and what Tessera says about them."""

from __future__ import annotations

import functools
import importlib
import logging
import re
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
    Activation,
    E,
    F,
    H,
    T,
    arguments,
    calls_of_original,
    close,
    experts_of,
    implementation,
    layer,
    quant_config,
    random,
    reference,
)
from tessera.vllm import experts  # noqa: E402
from tessera.vllm.generations import EXPERTS  # noqa: E402

UseEngine = Callable[[Path], None]


_SCALE = torch.ones(E)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"use_fp8_w8a8": True}, "w1_scale: expected a torch.Tensor, got NoneType"),
        ({"per_channel_quant": True}, "per_channel_quant: expected none, got True"),
        ({"a1_scale": _SCALE}, "a1_scale: expected none, got Tensor"),
        ({"use_int8_w8a8": True}, "use_int8_w8a8: expected none, got True"),
        ({"use_int4_w4a16": True, "block_shape": [0, 64]}, "use_int4_w4a16: expected none, got T"),
        ({"w1_scale": _SCALE}, "w1_scale: expected none, got Tensor"),
        ({"w2_zp": _SCALE}, "w2_zp: expected none, got Tensor"),
        ({"block_shape": [128, 128]}, "block_shape: expected none, got list"),
        ({"activation": "swiglustep"}, "activation: expected one of "),
        ({"w1": layer()["w1"].to(torch.int8)}, "w1.dtype: expected bfloat16, as hidden_states has"),
        (
            {"hidden_states": random(H, T).t()},
            "hidden_states: expected contiguous rows",
        ),
        (
            {"apply_router_weight_on_input": True, "w1_bias": random(E, 2 * F)},
            "w1_bias: expected none, got Tensor",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_function_that_is_not_served(
    use_engine: UseEngine,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    reason: str,
) -> None:
    use_engine(STANDINS / "vllm-0.24.0")
    module = importlib.import_module(f"{FUSED_MOE}.fused_moe")
    seen = calls_of_original(monkeypatch, module, "fused_experts_impl")
    tessera.vllm.install()
    call = layer() | options
    before = {name: value.clone() for name, value in call.items() if torch.is_tensor(value)}
    for _ in range(2):
        assert module.fused_experts_impl(**call) == "vLLM's"
    assert [list(map(id, each.values())) for each in seen] == [list(map(id, call.values()))] * 2
    assert all(torch.equal(call[name], value) for name, value in before.items())
    (warning,) = [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]
    assert f"refuses: fused_experts_impl: {reason}" in warning


def with_lora(experts: Any) -> None:
    experts._lora_context = object()


def decorated(experts: Any) -> None:
    experts.moe_sum = lambda *args: None


def hooked(experts: Any) -> None:
    experts.post_gemm2_hook = lambda *args: None


def quantised(experts: Any) -> None:
    experts.quant_config.quant_dtype = torch.int8


def quantised_without_scales(experts: Any) -> None:
    experts.quant_config.quant_dtype = torch.float8_e4m3fn
    experts.quant_config.weight_quant_dtype = torch.float8_e4m3fn


def weights_quantised(experts: Any) -> None:
    experts.quant_config.weight_quant_dtype = "int4"


def biased_otherwise(experts: Any) -> None:
    experts.quant_config.w1_bias = torch.zeros(E, 2 * F)


_WITH_LORA = "self: expected experts without LoRA, got some with it"
# What changes the object, changes of the arguments, and the reason.
UNSERVED: list[tuple[Any, dict[str, Any], str]] = [
    (with_lora, {}, _WITH_LORA),
    (decorated, {}, _WITH_LORA),
    (hooked, {}, "post_gemm2_hook: expected none, got function"),
    (quantised, {}, "quant_dtype: expected None or torch.float8_e4m3fn, got torch.int8"),
    (quantised_without_scales, {}, "w1_scale: expected a torch.Tensor, got NoneType"),
    (weights_quantised, {}, "weight_quant_dtype: expected None, as quant_dtype is, got int4"),
    (biased_otherwise, {}, "w1_bias.dtype: expected bfloat16, as hidden_states has, got float32"),
    (None, {"a1q_scale": _SCALE}, "a1q_scale: expected none, got Tensor"),
    (None, {"a2_scale": _SCALE}, "a2_scale: expected none, got Tensor"),
    (None, {"activation": Activation.SWIGLUSTEP}, "activation: expected one of "),
    (None, {"w1": layer()["w1"].float()}, "w1.dtype: expected bfloat16, as hidden_states has"),
    (None, {"topk_ids": layer()["topk_ids"].to("meta")}, "topk_ids: expected a torch.Tensor with"),
    (None, {"output": layer()["hidden_states"][:, :-1]}, "output.shape[1]: expected 24, got 23"),
]


@pytest.mark.parametrize(("change", "options", "reason"), UNSERVED, ids=lambda value: "")
def test_class_that_is_not_served(
    use_engine: UseEngine,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    change: Any,
    options: dict[str, Any],
    reason: str,
) -> None:
    use_engine(STANDINS / "vllm-0.33.0")
    kind = experts_of("0.33.0")
    seen = calls_of_original(monkeypatch, kind, "apply")
    tessera.vllm.install()
    experts = kind(quant_config())
    if change is not None:
        change(experts)
    given = arguments(layer(), Activation.SILU, **options)
    before = {
        name: value.clone()
        for name, value in given.items()
        if torch.is_tensor(value) and not value.is_meta
    }
    for _ in range(2):
        assert experts.apply(**given) == "vLLM's"
    assert [list(map(id, each.values())) for each in seen] == [list(map(id, given.values()))] * 2
    assert all(torch.equal(given[name], value) for name, value in before.items())
    (warning,) = [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]
    assert (
        f"TritonExperts.apply gets a call that Tessera refuses: TritonExperts.apply: {reason}"
        in (warning)
    )


def test_subclasses_that_emulate_quantisation_are_vllms(with_class: str) -> None:
    class EmulatingTritonExperts(experts_of(with_class)):  # type: ignore[misc]
        def apply(self, **given: Any) -> None:
            super().apply(**given | {"w1": given["w1"] * 1})

    call = layer()
    expected = reference(call)
    tessera.vllm.install()
    given = arguments(call, Activation.SILU)
    EmulatingTritonExperts(quant_config()).apply(**given)
    assert engine_ops.calls == ["experts"]
    close(given["output"], expected)


def test_outputs_over_the_input_are_vllms(with_class: str) -> None:
    tessera.vllm.install()
    call = layer()
    expected = reference(call)
    given = arguments(call, Activation.SILU, output=call["hidden_states"])
    experts_of(with_class)(quant_config()).apply(**given)
    assert engine_ops.calls == ["experts"]
    close(given["output"], expected)


def test_what_is_compiled_is_vllms(with_class: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tessera.vllm.install()
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    tessera.vllm.uninstall()
    tessera.vllm.install()
    given = arguments(layer(), Activation.SILU)
    experts_of(with_class)(quant_config()).apply(**given)
    assert engine_ops.calls == ["experts"]


def test_tensors_without_memory_are_vllms(
    use_engine: UseEngine, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    use_engine(STANDINS / "vllm-0.24.0")
    kind = experts_of("0.24.0")
    seen = []
    original = functools.wraps(kind.apply)(lambda self, **given: seen.append(given))
    monkeypatch.setattr(kind, "apply", original)
    tessera.vllm.install()
    given = arguments(layer(), Activation.SILU)
    with FakeTensorMode() as mode:
        fake = {
            name: mode.from_tensor(value) if torch.is_tensor(value) else value
            for name, value in given.items()
        }
        kind(quant_config()).apply(**fake)
    assert len(seen) == 1
    assert "hidden_states: expected a torch.Tensor with memory, got FakeTensor" in caplog.text


def test_environment_leaves_the_experts_alone(
    version: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "vllm.tessera")
    monkeypatch.setenv("TESSERA_VLLM_EXPERTS", "0")
    original = implementation()
    served = tessera.vllm.install()
    assert "vllm._custom_ops.moe_align_block_size" in served
    assert not [name for name in served if name.endswith(("fused_experts_impl", ".apply"))]
    assert implementation() is original
    assert "xperts" not in caplog.text.replace("fused_experts", "")
    call = layer()
    implementation()(*call.values())
    assert engine_ops.calls == ["experts"]


def test_uninstall_gives_the_originals_back(with_class: str) -> None:
    kind = experts_of(with_class)
    originals = kind.apply, implementation()
    tessera.vllm.install()
    assert kind.apply is not originals[0]
    assert implementation() is not originals[1]
    tessera.vllm.uninstall()
    assert (kind.apply, implementation()) == originals
    tessera.vllm.install()
    assert kind.apply is not originals[0]


def test_class_of_the_same_name_is_not_served(with_class: str) -> None:
    tessera.vllm.install()
    kind = type("TritonExperts", (experts_of(with_class),), {"__module__": "another.plugin"})
    with pytest.raises(NotImplementedError, match="expected vLLM's own TritonExperts, got that of"):
        experts.check_experts(kind(quant_config()))


def test_switches_are_read_at_every_install(
    with_class: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And whenever that changes what is served, one line says so."""
    caplog.set_level(logging.INFO, "vllm.tessera")

    def names() -> list[str]:
        (line,) = [each.getMessage() for each in caplog.records]
        caplog.clear()
        return re.split(r": Tessera serves |, |; ", line)[1:-1]

    kind = experts_of(with_class)
    original = kind.apply
    served = tessera.vllm.install()
    first = names()
    monkeypatch.setenv("TESSERA_VLLM_EXPERTS", "0")
    left = tessera.vllm.install()
    assert names() == [name for name in first if not name.endswith(EXPERTS)]
    tessera.vllm.install()
    assert caplog.records == []
    assert kind.apply is original
    assert [name for name in served if name not in left] == [
        name for name in served if name.endswith(EXPERTS)
    ]
    monkeypatch.setenv("TESSERA_VLLM", "0")
    assert tessera.vllm.install() == []
    caplog.clear()
    monkeypatch.delenv("TESSERA_VLLM")
    tessera.vllm.install()
    assert names() == [name for name in first if not name.endswith(EXPERTS)]
    monkeypatch.setenv("TESSERA_VLLM_EXPERTS", "1")
    assert sorted(tessera.vllm.install()) == sorted(served)
    assert sorted(names()) == sorted(first)


def test_inference_tensors_are_not_written_outside_of_inference() -> None:
    with torch.inference_mode():
        call = layer()
    with pytest.raises(ValueError, match="inplace: expected False for an inference tensor"):
        experts.fused_experts_impl(*call.values(), inplace=True)


@pytest.mark.parametrize("newer", ["0.24.0", "0.33.0"])
def test_backend_that_vllm_chose_is_told_once(
    use_engine: UseEngine, caplog: pytest.LogCaptureFixture, newer: str
) -> None:
    use_engine(STANDINS / f"vllm-{newer}")
    caplog.set_level(logging.INFO, "vllm.tessera")
    kernel = importlib.import_module(f"{FUSED_MOE}.modular_kernel").FusedMoEKernel
    original = kernel.__init__
    served = tessera.vllm.install()
    assert not [name for name in served if "FusedMoEKernel." in name]
    caplog.clear()

    class FlashInferExperts:
        pass

    plain = experts_of(newer)(quant_config())
    int8 = experts_of(newer)(quant_config(quant_dtype=torch.int8, weight_quant_dtype=torch.int8))
    for each in (plain, FlashInferExperts(), plain, int8, FlashInferExperts(), int8):
        assert kernel("prepare", each).fused_experts is each
    assert [each.getMessage() for each in caplog.records] == [
        "vLLM's backend for experts is TritonExperts, served by Tessera, but for calls it refuses",
        "vLLM's backend for experts is FlashInferExperts, not served by Tessera: expected "
        "TritonExperts, got FlashInferExperts",
        "vLLM's backend for experts is TritonExperts, not served by Tessera: quant_dtype: expected "
        "None or torch.float8_e4m3fn, got torch.int8",
    ]
    tessera.vllm.uninstall()
    assert kernel.__init__ is original


def test_line_at_start_is_shown_by_vllms_logger(
    use_engine: UseEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With vLLM's default configuration, in which other packages only show warnings."""
    use_engine(STANDINS / "vllm-0.24.0")
    shown: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            shown.append(record.getMessage())

    vllm = logging.getLogger("vllm")
    monkeypatch.setattr(vllm, "handlers", [Handler(logging.INFO)])
    monkeypatch.setattr(vllm, "level", logging.INFO)
    monkeypatch.setattr(vllm, "propagate", False)
    logging.getLogger("vllm.tessera").manager._clear_cache()  # type: ignore[attr-defined]
    tessera.vllm.plugin()
    tessera.vllm.plugin()
    (line,) = shown
    assert line.startswith("vLLM 0.24.0: Tessera serves moe_align_block_size, ")
    assert line.endswith("; TESSERA_VLLM=0 turns it off")
    assert {"fused_experts_impl", "TritonExperts.apply"} <= set(re.split(", |; ", line))
    assert logging.getLogger("vllm.tessera").handlers == []
