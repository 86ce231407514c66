"""Calls of vLLM's expert computations on its stand-ins, and what they should give."""

from __future__ import annotations

import functools
import importlib
from enum import Enum
from types import SimpleNamespace
from typing import Any

import torch

import engine_experts
import engine_ops

FUSED_MOE = "vllm.model_executor.layers.fused_moe"
T, K, E, H, F = 5, 2, 4, 24, 16
MAP = torch.tensor([-1, 0, 3, -1, 2, 1, 9, -7], dtype=torch.int32)


class Activation(Enum):
    """As vLLM's MoEActivation."""

    SILU = "silu"
    GELU = "gelu"
    GELU_TANH = "gelu_tanh"
    SWIGLUOAI = "swigluoai"
    SWIGLUOAI_UNINTERLEAVE = "swigluoai_uninterleave"
    SWIGLUSTEP = "swiglustep"
    SILU_NO_MUL = "silu_no_mul"
    RELU2_NO_MUL = "relu2_no_mul"


class MoEPrepareAndFinalizeNoDPEPModular:
    """As vLLM's, without data and expert parallelism."""


def random(*shape: int, dtype: Any = torch.bfloat16, seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator).to(dtype)


def routing(top_k: int, num_ids: int) -> dict[str, Any]:
    """The router's weights, and different ids for each token."""
    generator = torch.Generator().manual_seed(top_k)
    ids = torch.stack([torch.randperm(num_ids, generator=generator)[:top_k] for _ in range(T)])
    return {
        "topk_weights": random(T, top_k, dtype=torch.float32).abs(),
        "topk_ids": ids.int(),
    }


def layer(
    *, dtype: Any = torch.bfloat16, num_rows: int = 2 * F, top_k: int = K, num_ids: int = E
) -> dict[str, Any]:
    """The tensors of a call, by vLLM's names."""
    return {
        "hidden_states": random(T, H, dtype=dtype) / 2,
        "w1": random(E, num_rows, H, dtype=dtype) / 2,
        "w2": random(E, H, F, dtype=dtype) / 2,
        **routing(top_k, num_ids),
    }


def calls_of_original(monkeypatch: Any, place: Any, name: str) -> list[dict[str, Any]]:
    """The named arguments of the calls that vLLM's own function gets, which returns "vLLM's"."""
    seen: list[dict[str, Any]] = []

    @functools.wraps(getattr(place, name))
    def original(*_: Any, **given: Any) -> str:
        seen.append(given)
        return "vLLM's"

    monkeypatch.setattr(place, name, original)
    return seen


def close(found: Any, expected: Any) -> None:
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, atol=5e-2, rtol=2e-2)


def reference(call: dict[str, Any], **options: Any) -> Any:
    result = engine_experts.compute(*call.values(), **options)
    engine_ops.calls.clear()
    return result


def implementation() -> Any:
    return importlib.import_module(f"{FUSED_MOE}.fused_moe").fused_experts_impl


def experts_of(version: str) -> Any:
    folder = "fused_moe" if version == "0.12.0" else "experts.triton_moe"
    return importlib.import_module(f"{FUSED_MOE}.{folder}").TritonExperts


def quant_config(**changes: Any) -> Any:
    plain = {
        "quant_dtype": None,
        "weight_quant_dtype": None,
        "block_shape": None,
        "w1_scale": None,
        "w2_scale": None,
        "a1_scale": None,
        "a2_scale": None,
        "w1_bias": None,
        "w2_bias": None,
        "gemm1_clamp_limit": None,
        "gemm1_alpha": 1.0,
        "gemm1_beta": 0.0,
    }
    return SimpleNamespace(**plain | changes)


def arguments(call: dict[str, Any], activation: Any, /, **changes: Any) -> dict[str, Any]:
    """As vLLM's kernel calls `apply`: the output lies in the first workspace."""
    num_tokens, hidden_size = call["hidden_states"].shape
    dtype = call["hidden_states"].dtype
    # What is in fp8 has an output of the model's type.
    dtype = torch.bfloat16 if dtype == torch.float8_e4m3fn else dtype
    workspace = torch.full((T * K * max(call["w1"].shape[1], hidden_size),), 7.0, dtype=dtype)
    return {
        "output": workspace[: num_tokens * hidden_size].view(num_tokens, hidden_size),
        **call,
        "activation": activation,
        "global_num_experts": E,
        "expert_map": None,
        "a1q_scale": None,
        "a2_scale": None,
        "workspace13": workspace,
        "workspace2": torch.full_like(workspace, 7.0),
        "expert_tokens_meta": None,
        "apply_router_weight_on_input": False,
    } | changes
