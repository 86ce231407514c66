"""vLLM's experts in fp8 with scales of blocks that stay its own, and what Tessera says of them."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

import tessera.vllm  # noqa: E402
from engine_packages import STANDINS  # noqa: E402
from experts_calls import Activation, E, T, arguments, calls_of_original, experts_of  # noqa: E402
from fp8_calls import F, H, fp8_config, fp8_layer, quantised_input  # noqa: E402
from refusals import Refusal, after, refused  # noqa: E402
from tessera.vllm import experts, fp8  # noqa: E402

FP8 = "torch.float8_e4m3fn"
SCALE = torch.ones(E)
BLOCKS = {"use_fp8_w8a8": True, "block_shape": [128, 128]}
CALL, SCALES = fp8_layer()
QUANTISED, A1Q_SCALE = quantised_input(CALL)


@pytest.fixture
def kind(use_engine: Callable[[Path], None]) -> Any:
    use_engine(STANDINS / "vllm-0.24.0")
    return experts_of("0.24.0")


def on_a_gpu(scale: Any) -> Any:
    """A tensor that claims to lie on the second GPU."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        return torch.empty(scale.shape, device="cuda:1")


@pytest.fixture(params=[(8, 0), (8, 9), (9, 4), (10, 0), (12, 0)])
def capability(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[int, int]]:
    found: dict[Any, Any] = {torch.device("cuda:1"): request.param}
    monkeypatch.setattr(torch.cuda, "get_device_capability", found.__getitem__)
    yield request.param


_SWAPPED = {"w1_scale": SCALES["w2_scale"], "w2_scale": SCALES["w1_scale"]}
_OF_ROWS = {"w1_scale": torch.ones(E, 2 * F, 1), "w2_scale": torch.ones(E, H, 1)}
FOR_BLOCKS = "for scales of blocks of 128 x 128"
OTHER_BLOCKS = f"block_shape: expected None or [128, 128] for {FP8}, got"
UNDECLARED = f"use_fp8_w8a8: expected True, as w1 is {FP8}, got False"
# Of the configuration.
CONFIGURED = after(
    "TritonExperts.apply",
    (
        {"block_shape": None},
        ValueError,
        "w1_scale.shape: expected [4] per expert or [4, 256, 1] per row where block_shape is None, "
        "got [4, 2, 3]",
    ),
    (
        {"block_shape": [64, 128]},
        NotImplementedError,
        f"{OTHER_BLOCKS} [64, 128]",
    ),
    ({"a1_scale": SCALE}, NotImplementedError, "a1_scale: expected none, got Tensor"),
    ({"a2_scale": SCALE}, NotImplementedError, "a2_scale: expected none, got Tensor"),
    (
        {"quant_dtype": torch.float8_e4m3fnuz},
        NotImplementedError,
        f"quant_dtype: expected None or {FP8}, got torch.float8_e4m3fnuz",
    ),
    (
        {"quant_dtype": "mxfp8"},
        NotImplementedError,
        f"quant_dtype: expected None or {FP8}, got mxfp8",
    ),
    (
        {"weight_quant_dtype": "int4"},
        NotImplementedError,
        f"weight_quant_dtype: expected {FP8}, as quant_dtype is, got int4",
    ),
    (
        {"quant_dtype": None},
        NotImplementedError,
        f"weight_quant_dtype: expected None, as quant_dtype is, got {FP8}",
    ),
    ({"w1_scale": None}, TypeError, "w1_scale: expected a torch.Tensor, got NoneType"),
    ({"w2_scale": None}, TypeError, "w2_scale: expected a torch.Tensor, got NoneType"),
    (
        {"w1_scale": SCALE},
        ValueError,
        f"w1_scale.shape: expected [4, 2, 3] {FOR_BLOCKS}, got [4]",
    ),
    (
        _OF_ROWS,
        ValueError,
        f"w1_scale.shape: expected [4, 2, 3] {FOR_BLOCKS}, got [4, 256, 1]",
    ),
    (
        {"w2_scale": _OF_ROWS["w2_scale"]},
        ValueError,
        f"w2_scale.shape: expected [4, 3, 1] {FOR_BLOCKS}, got [4, 384, 1]",
    ),
    (
        _SWAPPED,
        ValueError,
        f"w1_scale.shape: expected [4, 2, 3] {FOR_BLOCKS}, got [4, 3, 1]",
    ),
    (
        {"w1_scale": SCALES["w1_scale"].double()},
        TypeError,
        "w1_scale.dtype: expected float32, got float64",
    ),
)
# Of the arguments of `apply`.
APPLIED = after(
    "TritonExperts.apply",
    (
        {"a2_scale": SCALE[:1]},
        ValueError,
        "a2_scale: expected none where weights have scales of blocks, got one of shape [1]",
    ),
    (
        {"a1q_scale": None},
        ValueError,
        "a1q_scale: expected a float32 array where hidden_states is float8_e4m3fn, got none",
    ),
    (
        {"a1q_scale": torch.ones(T, 1)},
        ValueError,
        "a1q_scale.shape: expected [5, 3], got [5, 1]",
    ),
    (
        {"hidden_states": CALL["hidden_states"]},
        ValueError,
        "a1q_scale: expected none where hidden_states is not float8_e4m3fn and weights have scales "
        "of blocks, got one of shape [5, 3]",
    ),
    (
        {"w1": CALL["w1"].bfloat16()},
        TypeError,
        f"w1.dtype: expected {FP8}, got torch.bfloat16",
    ),
    (
        {"w2": CALL["w2"].to(torch.float8_e5m2)},
        TypeError,
        f"w2.dtype: expected {FP8}, got torch.float8_e5m2",
    ),
    ({"w1": CALL["w1"][0, 0]}, ValueError, "w1: expected 3 axes, got 1"),
    ({"w2": CALL["w2"][0, 0, 0]}, ValueError, "w2: expected 3 axes, got 0"),
    ({"w1": None}, TypeError, "w1: expected a torch.Tensor, got NoneType"),
    (
        {"a1q_scale": A1Q_SCALE.tolist()},
        TypeError,
        "a1q_scale: expected a torch.Tensor, got list",
    ),
    (
        {"a1q_scale": A1Q_SCALE.mT},
        ValueError,
        "a1q_scale.shape: expected [5, 3], got [3, 5]",
    ),
)


@pytest.mark.parametrize("refusal", CONFIGURED)
def test_configurations_refused(kind: Any, refusal: Refusal) -> None:
    changes, error, message = refusal
    given = arguments(QUANTISED, Activation.SILU, a1q_scale=A1Q_SCALE)
    given["self"] = kind(fp8_config(SCALES, **changes))
    refused(experts.triton_experts_apply, given, ({}, error, message))
    assert (given["output"] == 7).all()


@pytest.mark.parametrize("refusal", APPLIED)
def test_calls_of_the_class_refused(kind: Any, refusal: Refusal) -> None:
    given = arguments(QUANTISED, Activation.SILU, a1q_scale=A1Q_SCALE)
    given["self"] = kind(fp8_config(SCALES))
    refused(experts.triton_experts_apply, given, refusal)
    assert (given["output"] == 7).all()


@pytest.mark.parametrize(
    "refusal",
    after(
        "TritonExperts.apply",
        ({"a1q_scale": A1Q_SCALE}, NotImplementedError, "a1q_scale: expected none, got Tensor"),
        ({}, ValueError, f"quant_dtype: expected {FP8}, as w1 is {FP8}, got None"),
        (
            {"w1": CALL["w1"].bfloat16(), "hidden_states": QUANTISED["hidden_states"]},
            TypeError,
            "hidden_states.dtype: expected float16, bfloat16 or float32, got float8_e4m3fn",
        ),
        (
            {"w1": CALL["w1"].half()},
            TypeError,
            "w1.dtype: expected bfloat16, as hidden_states has, got float16",
        ),
    ),
)
def test_unquantised_experts_take_nothing_of_fp8(kind: Any, refusal: Refusal) -> None:
    given = arguments(CALL, Activation.SILU)
    given["self"] = kind(fp8_config({}, quant_dtype=None, weight_quant_dtype=None))
    refused(experts.triton_experts_apply, given, refusal)
    assert (given["output"] == 7).all()


@pytest.mark.parametrize(
    "refusal",
    after(
        "fused_experts_impl",
        ({"block_shape": [128, 64]}, NotImplementedError, f"{OTHER_BLOCKS} [128, 64]"),
        (
            {"block_shape": torch.tensor([128, 128])},
            NotImplementedError,
            f"{OTHER_BLOCKS} tensor([128, 128])",
        ),
        (
            {"block_shape": np.array([128, 128])},
            NotImplementedError,
            f"{OTHER_BLOCKS} [128 128]",
        ),
        (
            {"hidden_states": QUANTISED["hidden_states"]},
            TypeError,
            "hidden_states.dtype: expected float16, bfloat16 or float32, got float8_e4m3fn",
        ),
        (
            {"hidden_states": CALL["hidden_states"].int()},
            TypeError,
            "hidden_states.dtype: expected float16, bfloat16 or float32, got int32",
        ),
        ({"use_fp8_w8a8": False}, ValueError, UNDECLARED),
        ({"use_fp8_w8a8": False, "w1_scale": None}, ValueError, UNDECLARED),
        (
            {"use_fp8_w8a8": False, "w1_scale": None, "w2_scale": None, "block_shape": None},
            ValueError,
            UNDECLARED,
        ),
        ({"a1_scale": SCALE}, NotImplementedError, "a1_scale: expected none, got Tensor"),
        ({"a2_scale": SCALE}, NotImplementedError, "a2_scale: expected none, got Tensor"),
        ({"w1_zp": SCALE}, NotImplementedError, "w1_zp: expected none, got Tensor"),
        (
            {"per_channel_quant": True},
            NotImplementedError,
            "per_channel_quant: expected none, got True",
        ),
        ({"use_int8_w8a8": True}, NotImplementedError, "use_int8_w8a8: expected none, got True"),
        ({"w2_scale": None}, TypeError, "w2_scale: expected a torch.Tensor, got NoneType"),
        (
            _OF_ROWS,
            ValueError,
            f"w1_scale.shape: expected [4, 2, 3] {FOR_BLOCKS}, got [4, 256, 1]",
        ),
        (
            {"w2_scale": SCALES["w2_scale"].mT},
            ValueError,
            f"w2_scale.shape: expected [4, 3, 1] {FOR_BLOCKS}, got [4, 1, 3]",
        ),
    ),
)
def test_calls_of_the_function_refused(refusal: Refusal) -> None:
    call = CALL | BLOCKS | SCALES | {"inplace": True}
    given = CALL["hidden_states"].clone()
    refused(experts.fused_experts_impl, call, refusal)
    assert torch.equal(CALL["hidden_states"], given)


def test_other_gpus_are_refused(kind: Any, capability: tuple[int, int]) -> None:
    scales = {name: on_a_gpu(scale) for name, scale in SCALES.items()}
    got = ".".join(map(str, capability))
    message = f"w1_scale: expected a GPU of compute capability 9.0 for {FP8}, got {got}"
    given = arguments(QUANTISED, Activation.SILU, a1q_scale=A1Q_SCALE)
    given["self"] = kind(fp8_config(scales))
    refusal: Refusal = ({}, NotImplementedError, f"TritonExperts.apply: {message}")
    refused(experts.triton_experts_apply, given, refusal)
    assert experts.describe_kernel(None, None, given["self"]) == (
        f"vLLM's backend for experts is TritonExperts, not served by Tessera: {message}"
    )
    refusal = ({}, NotImplementedError, f"fused_experts_impl: {message}")
    refused(experts.fused_experts_impl, CALL | BLOCKS | scales, refusal)


def test_hopper_is_not_refused(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    scales = {name: on_a_gpu(scale) for name, scale in SCALES.items()}
    assert experts.check_experts(kind(fp8_config(scales))) is True
    fp8.check_device("op", "w1_scale", scales["w1_scale"])


def test_lora_in_fp8_is_refused(kind: Any) -> None:
    with_lora = kind(fp8_config(SCALES))
    with_lora._lora_context = object()
    given = arguments(QUANTISED, Activation.SILU, a1q_scale=A1Q_SCALE) | {"self": with_lora}
    message = "TritonExperts.apply: self: expected experts without LoRA, got some with it"
    refused(experts.triton_experts_apply, given, ({}, NotImplementedError, message))


def test_refused_calls_are_vllms_and_told_once(
    kind: Any,
    capability: tuple[int, int],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = calls_of_original(monkeypatch, kind, "apply")
    tessera.vllm.install()
    given = arguments(QUANTISED, Activation.SILU, a1q_scale=A1Q_SCALE)
    refused_one = kind(fp8_config({name: on_a_gpu(scale) for name, scale in SCALES.items()}))
    for _ in range(2):
        assert refused_one.apply(**given) == "vLLM's"
    assert [list(map(id, each.values())) for each in seen] == [list(map(id, given.values()))] * 2
    (warning,) = [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]
    assert "gets a call that Tessera refuses: TritonExperts.apply: w1_scale: expected a" in warning


@pytest.mark.parametrize("size", [64, 65, 100, 127, 192, 228])
def test_blocks_with_rows_of_gate_and_of_up_are_vllms(size: int) -> None:
    """vLLM's scales mean something else there, even where there are as many."""
    blocks = -(-size // 128)
    w1 = torch.ones(E, 2 * size, H).to(torch.float8_e4m3fn)
    w2 = torch.ones(E, H, size).to(torch.float8_e4m3fn)
    w1_scale = torch.ones(E, -(-2 * size // 128), H // 128)
    w2_scale = torch.ones(E, H // 128, blocks)
    call = (torch.ones(T, H, dtype=torch.bfloat16), w1, w2)
    routing = (torch.ones(T, 1), torch.zeros(T, 1, dtype=torch.int32))
    options = {"w1_scale": w1_scale, "w2_scale": w2_scale} | BLOCKS
    message = (
        "fused_experts_impl: w2: expected a last axis of a multiple of 128 with scales of blocks "
        f"and a gate, got shape [{E}, {H}, {size}]"
    )
    with pytest.raises(NotImplementedError, match=re.escape(message)):
        experts.fused_experts_impl(*call, *routing, **options)
    # Without a gate there is nothing to tell apart.
    options |= {"w1_scale": w1_scale[:, :blocks], "is_act_and_mul": False}
    without = (call[0], w1[:, :size], w2)
    assert experts.fused_experts_impl(*without, *routing, **options).shape == call[0].shape


@pytest.mark.parametrize(("hidden", "intermediate"), [(1, 3), (1, 300), (3, 1), (300, 1), (1, 1)])
def test_weights_of_a_single_row_have_blocks(hidden: int, intermediate: int) -> None:
    """A row of blocks then has as many rows as the weight, as scales of rows have."""
    blocks = [-(-size // 128) for size in (hidden, intermediate)]
    generator = torch.Generator().manual_seed(hidden + intermediate)

    def random(*shape: int) -> Any:
        return torch.randn(*shape, generator=generator)

    call = {
        "hidden_states": random(T, hidden).bfloat16(),
        "w1": random(E, intermediate, hidden).to(torch.float8_e4m3fn),
        "w2": random(E, hidden, intermediate).to(torch.float8_e4m3fn),
        "topk_weights": random(T, 1).abs(),
        "topk_ids": torch.arange(T).remainder(E).unsqueeze(1).int(),
    }
    scales = {"w1_scale": random(E, *reversed(blocks)), "w2_scale": random(E, *blocks)}
    options = BLOCKS | scales | {"is_act_and_mul": False}
    found = experts.fused_experts_impl(**call, **options)
    x, w13, w2, topk_weights, topk_ids = call.values()
    violations = tessera.fused_experts_contract_violations(
        x,
        w13,
        w2,
        topk_weights,
        topk_ids,
        found,
        w13_scale=scales["w1_scale"],
        w2_scale=scales["w2_scale"],
        activation="silu_no_mul",
    )
    assert violations == []
