"""vLLM's kernel around its experts, which copies their output, over Tessera."""

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
    Activation,
    E,
    MoEPrepareAndFinalizeNoDPEPModular,
    close,
    experts_of,
    layer,
    quant_config,
    reference,
)


class OtherPrepareAndFinalize:
    pass


@pytest.fixture(params=["0.24.0", "0.33.0"])
def kernel_of(request: pytest.FixtureRequest, use_engine: Callable[[Path], None]) -> Any:
    """Makes a kernel from what comes before and after the experts, and their configuration."""
    use_engine(STANDINS / f"vllm-{request.param}")
    kind = importlib.import_module(f"{FUSED_MOE}.modular_kernel").FusedMoEKernelModularImpl

    def make(finalize: type, **config: Any) -> Any:
        return kind(finalize(), experts_of(request.param)(quant_config(**config)))

    return make


def arguments(call: dict[str, Any], output: Any, **changes: Any) -> dict[str, Any]:
    hidden_states, *others = call
    return {
        "in_dtype": call[hidden_states].dtype,
        "a1q": call[hidden_states],
        "a1q_scale": None,
        **{name: call[name] for name in others},
        "activation": Activation.SILU,
        "global_num_experts": E,
        "local_num_experts": E,
        "expert_map": None,
        "apply_router_weight_on_input": False,
        "expert_tokens_meta": None,
        "output_alias": output,
    } | changes


def test_output_of_the_layer_is_written_at_once(kernel_of: Any) -> None:
    call = layer()
    expected = reference(call)
    assert any(name.endswith("._fused_experts") for name in tessera.vllm.install())
    output = torch.full_like(call["hidden_states"], 7)
    kernel = kernel_of(MoEPrepareAndFinalizeNoDPEPModular)
    assert kernel._fused_experts(**arguments(call, output)) is output
    close(output, expected)
    assert engine_ops.calls == []


def test_other_calls_are_left_to_vllm_and_still_reach_apply(
    kernel_of: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A step after the experts that may read and write at once; no output; one that overlaps x."""
    caplog.set_level(logging.WARNING, "vllm.tessera")
    call = layer()
    expected = reference(call)
    tessera.vllm.install()
    caplog.clear()
    output = torch.full_like(call["hidden_states"], 7)
    x = call["hidden_states"].clone()
    for finalize, alias, a1q in (
        (OtherPrepareAndFinalize, output, x),
        (MoEPrepareAndFinalizeNoDPEPModular, None, x),
        (MoEPrepareAndFinalizeNoDPEPModular, output.float(), x),
        (MoEPrepareAndFinalizeNoDPEPModular, output[:1], x),
        (MoEPrepareAndFinalizeNoDPEPModular, x, x),
    ):
        found = kernel_of(finalize)._fused_experts(**arguments(call, alias, a1q=a1q))
        assert found is not alias
        close(found, expected)
    assert (output == 7).all()
    assert torch.equal(x, call["hidden_states"])
    assert engine_ops.calls == []  # `apply` was Tessera's each time
    assert caplog.records == []


def test_refusals_are_told_once_and_by_apply(
    kernel_of: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "vllm.tessera")
    call = layer()
    expected = reference(call)
    tessera.vllm.install()
    caplog.clear()
    output = torch.full_like(call["hidden_states"], 7)
    kernel = kernel_of(MoEPrepareAndFinalizeNoDPEPModular, quant_dtype=torch.int8)
    found = kernel._fused_experts(**arguments(call, output))
    close(found, expected)
    assert (output == 7).all()
    assert len(engine_ops.calls) == 1
    (record,) = caplog.records
    assert "TritonExperts.apply gets a call that Tessera refuses: " in record.getMessage()


def test_experts_can_be_left_alone(kernel_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESSERA_VLLM_EXPERTS", "0")
    call = layer()
    expected = reference(call)
    assert not any(name.endswith("._fused_experts") for name in tessera.vllm.install())
    output = torch.full_like(call["hidden_states"], 7)
    kernel = kernel_of(MoEPrepareAndFinalizeNoDPEPModular)
    close(kernel._fused_experts(**arguments(call, output)), expected)
    assert (output == 7).all()
