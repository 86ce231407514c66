"""vLLM's experts in fp8 with scales per expert and per row that stay its own."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

import tessera.vllm  # noqa: E402
from engine_packages import STANDINS  # noqa: E402
from experts_calls import Activation, E, T, arguments, calls_of_original, experts_of  # noqa: E402
from fp8_row_calls import (  # noqa: E402
    A1_SCALE,
    A2_SCALE,
    F,
    row_config,
    row_layer,
    scale_over,
    with_scale,
)
from refusals import Refusal, after, refused  # noqa: E402
from tessera.vllm import experts, fp8  # noqa: E402
from tessera.vllm import layer as functions  # noqa: E402

CALL, PER_EXPERT = row_layer("per expert")
PER_ROW = row_layer("per row")[1]
OF_TOKENS = scale_over(CALL["hidden_states"], -1)
QUANTISED = CALL | {"hidden_states": with_scale(CALL["hidden_states"], OF_TOKENS)}
W1_SCALE = "w1_scale.shape: expected [4] per expert or [4, 48, 1] per row where block_shape is None"

# Of the scales of weights, for the class as for the function.
WEIGHTS: list[Refusal] = [
    # Gate and up have scales of their own in checkpoints; vLLM merges them when it loads weights.
    ({"w1_scale": torch.ones(E, 2)}, ValueError, f"{W1_SCALE}, got [4, 2]"),
    ({"w1_scale": torch.ones(E, 2 * F - 1)}, ValueError, f"{W1_SCALE}, got [4, 47]"),
    ({"w1_scale": torch.ones(E, 1, 2 * F)}, ValueError, f"{W1_SCALE}, got [4, 1, 48]"),
    ({"w1_scale": torch.ones(E, 2, 1)}, ValueError, f"{W1_SCALE}, got [4, 2, 1]"),
    ({"w1_scale": torch.ones(2 * F, E)}, ValueError, f"{W1_SCALE}, got [48, 4]"),
    ({"w1_scale": torch.ones(1)}, ValueError, f"{W1_SCALE}, got [1]"),
    ({"w1_scale": torch.tensor(1.0)}, ValueError, f"{W1_SCALE}, got []"),
    (
        {"w2_scale": torch.ones(E - 1)},
        ValueError,
        "w2_scale.shape: expected [4] per expert or [4, 40, 1] per row where block_shape is None, "
        "got [3]",
    ),
    (
        {"w2_scale": PER_ROW["w2_scale"]},
        ValueError,
        "w2_scale.shape: expected [4], as w1 has scales per expert, got [4, 40, 1]",
    ),
    (
        {"w1_scale": PER_ROW["w1_scale"]},
        ValueError,
        "w2_scale.shape: expected [4, 40, 1], as w1 has scales per row, got [4]",
    ),
    ({"w1_scale": torch.ones(E).double()}, TypeError, "w1_scale.dtype: expected float32, got fl"),
    ({"w2_scale": None}, TypeError, "w2_scale: expected a torch.Tensor, got NoneType"),
    (
        {"w1_scale": torch.ones(E).to_sparse()},
        TypeError,
        "w1_scale: expected a torch.Tensor with memory, got layout torch.sparse_coo",
    ),
    ({"w1": CALL["w1"].bfloat16()}, TypeError, "w1.dtype: expected torch.float8_e4m3fn, got torc"),
]
# Of the other arguments of the function.
IMPLEMENTED = after(
    "fused_experts_impl",
    (
        {"a1_scale": A1_SCALE},
        ValueError,
        "a2_scale: expected a float32 array where a1_scale is given, got none",
    ),
    (
        {"a2_scale": A2_SCALE},
        ValueError,
        "a1_scale: expected a float32 array where a2_scale is given, got none",
    ),
    (
        {"a1_scale": OF_TOKENS, "a2_scale": A2_SCALE},
        ValueError,
        "a1_scale.shape: expected [1] where hidden_states is not float8_e4m3fn, got [5, 1]",
    ),
    (
        {"a1_scale": A1_SCALE, "a2_scale": torch.ones(E)},
        ValueError,
        "a2_scale.shape: expected [1], got [4]",
    ),
    ({"a1_scale": 0.5}, TypeError, "a1_scale: expected a torch.Tensor, got float"),
    ({"a2_scale": 0.5}, TypeError, "a2_scale: expected a torch.Tensor, got float"),
    (
        {"hidden_states": QUANTISED["hidden_states"]},
        TypeError,
        "hidden_states.dtype: expected float16, bfloat16 or float32, got float8_e4m3fn",
    ),
    ({"w1_zp": torch.ones(E)}, NotImplementedError, "w1_zp: expected none, got Tensor"),
    ({"use_int8_w8a8": True}, NotImplementedError, "use_int8_w8a8: expected none, got True"),
)
# Of the other arguments of the class.
APPLIED = after(
    "TritonExperts.apply",
    (
        {"a1q_scale": None},
        ValueError,
        "a1q_scale: expected a float32 array where hidden_states is float8_e4m3fn, got none",
    ),
    (
        {"a2_scale": A2_SCALE},
        ValueError,
        "a2_scale: expected none where a1q_scale is not [1], got one of shape [1]",
    ),
    # As ranks that gather one number of each have it.
    (
        {"a1q_scale": torch.ones(2)},
        ValueError,
        "a1q_scale.shape: expected [1] or [5, 1], got [2]",
    ),
    (
        {"a1q_scale": torch.ones(T)},
        ValueError,
        "a1q_scale.shape: expected [1] or [5, 1], got [5]",
    ),
    (
        {"a1q_scale": torch.ones(1), "a2_scale": torch.ones(E)},
        ValueError,
        "a2_scale.shape: expected [1], got [4]",
    ),
    ({"a1q_scale": [1.0]}, TypeError, "a1q_scale: expected a torch.Tensor, got list"),
    (
        {"a1q_scale": OF_TOKENS.to_sparse()},
        TypeError,
        "a1q_scale: expected a torch.Tensor with memory, got layout torch.sparse_coo",
    ),
    (
        {"hidden_states": QUANTISED["hidden_states"].view(torch.uint8)},
        TypeError,
        "hidden_states.dtype: expected float16, bfloat16, float32 or float8_e4m3fn, got uint8",
    ),
)


@pytest.fixture
def kind(use_engine: Callable[[Path], None]) -> Any:
    use_engine(STANDINS / "vllm-0.24.0")
    return experts_of("0.24.0")


def applying(kind: Any, **configured: Any) -> dict[str, Any]:
    given = arguments(QUANTISED, Activation.SILU, a1q_scale=OF_TOKENS)
    return given | {"self": kind(row_config(PER_EXPERT, **configured))}


@pytest.mark.parametrize("refusal", WEIGHTS)
def test_scales_of_weights_refused(kind: Any, refusal: Refusal) -> None:
    changes, error, message = refusal
    configured = {name: value for name, value in changes.items() if name in PER_EXPERT}
    given = applying(kind, **configured) | (changes if not configured else {})
    with pytest.raises(error) as caught:
        experts.triton_experts_apply(**given)
    assert str(caught.value).startswith(f"TritonExperts.apply: {message}")
    assert (given["output"] == 7).all()
    with pytest.raises(error) as caught:
        experts.fused_experts_impl(**CALL | PER_EXPERT | changes, use_fp8_w8a8=True)
    assert str(caught.value).startswith(f"fused_experts_impl: {message}")


@pytest.mark.parametrize("refusal", APPLIED)
def test_calls_of_the_class_refused(kind: Any, refusal: Refusal) -> None:
    given = applying(kind)
    refused(experts.triton_experts_apply, given, refusal)
    assert (given["output"] == 7).all()


@pytest.mark.parametrize("refusal", IMPLEMENTED)
def test_calls_of_the_function_refused(refusal: Refusal) -> None:
    call = CALL | PER_EXPERT | {"use_fp8_w8a8": True, "inplace": True}
    given = CALL["hidden_states"].clone()
    refused(experts.fused_experts_impl, call, refusal)
    changes, error, message = refusal
    message = message.replace("fused_experts_impl", "fused_experts")
    refused(functions.fused_experts, call, (changes, error, message))
    assert torch.equal(CALL["hidden_states"], given)


def test_other_gpus_are_refused(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        on_a_gpu = torch.empty(E, device="cuda:1")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    message = "w1_scale: expected a GPU of compute capability 9.0 for torch.float8_e4m3fn, got 8.9"
    given = applying(kind, w1_scale=on_a_gpu)
    refusal: Refusal = ({}, NotImplementedError, f"TritonExperts.apply: {message}")
    refused(experts.triton_experts_apply, given, refusal)
    refusal = ({"w1_scale": on_a_gpu}, NotImplementedError, f"fused_experts_impl: {message}")
    refused(experts.fused_experts_impl, CALL | PER_EXPERT | {"use_fp8_w8a8": True}, refusal)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert experts.check_experts(given["self"]) is True
    fp8.check_device("op", "w1_scale", on_a_gpu)


def test_refused_calls_are_vllms_and_told_once(
    kind: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = calls_of_original(monkeypatch, kind, "apply")
    tessera.vllm.install()
    given = applying(kind, a2_scale=A2_SCALE) | {"a2_scale": A2_SCALE}
    served = given.pop("self")
    for _ in range(2):
        assert served.apply(**given) == "vLLM's"
    assert [list(map(id, each.values())) for each in seen] == [list(map(id, given.values()))] * 2
    (warning,) = [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]
    assert (
        "gets a call that Tessera refuses: TritonExperts.apply: a2_scale: expected none where "
        "a1q_scale is not [1]" in warning
    )
