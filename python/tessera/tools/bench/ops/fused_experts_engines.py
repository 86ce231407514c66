"""The engines' expert layers, called as the engines call them, for `fused_experts` on a GPU."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tessera
from tessera.tools.bench.ops.fused_experts_fp8 import BLOCK, Fp8Weights
from tessera.tools.bench.ops.fused_experts_inputs import Inputs

# The rows of one expert in DeepGEMM's contiguous layout are padded to a multiple of this.
ALIGNMENT = 128

_VLLM_FOLDER = "vllm.model_executor.layers.fused_moe"


def missing_engine(name: str) -> str:
    """Why an engine cannot be called; empty if it is installed. Imports nothing."""
    if name == "deep_gemm" and _deep_gemm_module():
        return ""
    if name in ("vllm", "flashinfer") and importlib.util.find_spec(name) is not None:
        return ""
    return f"{name} is not installed"


def engine_version(name: str) -> str:
    """The version of the package that a peer comes from, as far as it is known without it."""
    package = {
        "eager": "torch",
        "grouped_mm": "torch",
        "flashinfer": "flashinfer-python",
        "deep_gemm": _deep_gemm_module().partition(".")[0],
    }
    try:
        version = importlib.metadata.version(package.get(name, name) or name)
    except importlib.metadata.PackageNotFoundError:
        return ""
    return f"vllm {version}" if package.get(name) == "vllm" else version


def _deep_gemm_module() -> str:
    """DeepGEMM's module, or vLLM's copy of it; empty if there is none."""
    if importlib.util.find_spec("deep_gemm") is not None:
        return "deep_gemm"
    vllm = importlib.util.find_spec("vllm")
    folders = (vllm.submodule_search_locations or []) if vllm else []
    has_copy = any(Path(folder, "third_party", "deep_gemm").is_dir() for folder in folders)
    return "vllm.third_party.deep_gemm" if has_copy else ""


def vllm_layer(weights: Fp8Weights | None = None) -> Callable[[Inputs], Any]:
    """The layer of vLLM in Triton, with the configuration that it has for this GPU."""
    module, config, current = _vllm()
    options = _vllm_scales(module, weights) if weights else {}

    def layer(inputs: Inputs) -> Any:
        with config.set_current_vllm_config(current):
            return module.fused_experts(
                inputs.x, inputs.w13, inputs.w2, inputs.topk_weights, inputs.topk_ids, **options
            )

    return layer


@functools.cache
def _vllm() -> tuple[Any, Any, Any]:
    """The modules of the layer and of the configuration, and a configuration."""
    # vLLM by itself: without Tessera's ops in it, and without its messages between the results.
    os.environ["TESSERA_VLLM"] = "0"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    config = importlib.import_module("vllm.config")
    module = importlib.import_module(f"{_VLLM_FOLDER}.fused_moe")
    return module, config, config.VllmConfig()


def _vllm_scales(module: Any, weights: Fp8Weights) -> dict[str, Any]:
    """The scales as this version takes them.

    vLLM computes the scales of x and of the intermediate: one for each 128 elements where weights
    have scales of blocks, one for each token where rows have scales, and one for the whole array
    where experts have scales.
    """
    kind = weights.w13.quantization
    scales = {"w1_scale": weights.w13.scales, "w2_scale": weights.w2.scales}
    blocks = {"block_shape": [BLOCK, BLOCK]} if kind == "block" else {}
    if "quant_config" not in inspect.signature(module.fused_experts).parameters:
        # vLLM before 0.11.
        return {"use_fp8_w8a8": True, "per_channel_quant": kind == "row", **scales, **blocks}
    config = importlib.import_module(f"{_VLLM_FOLDER}.config")
    by_row = dict.fromkeys(("per_act_token_quant", "per_out_ch_quant"), kind == "row")
    return {"quant_config": config.fp8_w8a8_moe_quant_config(**scales, **by_row, **blocks)}


def flashinfer_layer() -> Callable[[Inputs], Any]:
    """The layer of FlashInfer in the CuTe DSL, with its own defaults, as its tuner leaves it.

    The first call for a number of tokens compiles and tunes its kernels for this number, which
    takes from seconds to minutes. The gate-up weights are packed for it before.
    """
    folder = "flashinfer.fused_moe.cute_dsl"
    module = importlib.import_module(f"{folder}.sm90_fused_moe")
    gate_up = importlib.import_module(f"{folder}.sm90_contiguous_gather_grouped_gemm_act_fusion")
    autotune = importlib.import_module("flashinfer.autotuner").autotune
    pack = functools.cache(gate_up.interleave_up_gate_sm90)
    tuned: set[int] = set()

    def layer(inputs: Inputs) -> Any:
        num_tokens, top_k = inputs.topk_ids.shape
        weights, num_experts = pack(inputs.w13), len(inputs.w13)
        is_tuned = num_tokens in tuned
        tuned.add(num_tokens)
        # Without the context it would look for what was tuned for a size of its own list.
        with autotune(not is_tuned, tuning_buckets=(num_tokens,)):
            return module.cute_dsl_fused_moe_bf16(
                inputs.x,
                inputs.topk_ids,
                inputs.topk_weights,
                weights,
                inputs.w2,
                num_experts,
                top_k,
            )

    return layer


@dataclass(frozen=True)
class GroupedProducts:
    """Both grouped products of a layer, on rows that are already sorted by expert and padded.

    run: computes both; the activation between them has been computed before.
    places: the row of each pair [T, k].
    y: the second product's output.
    """

    run: Callable[[], Any]
    inputs: Inputs
    places: Any
    y: Any

    def combined(self, tokens: Any) -> Any:
        """The layer's output for some tokens, float32 [n, H]."""
        tokens = tokens.to(self.places.device)
        return (
            self.y[self.places[tokens]].float() * self.inputs.topk_weights[tokens, :, None]
        ).sum(1)


def deep_gemm_products(inputs: Inputs, weights: Fp8Weights | None = None) -> GroupedProducts:
    """DeepGEMM's products; the first call for a size compiles them, which takes seconds.

    Weights in fp8 have scales of blocks. The rows of both products have been quantised before.
    """
    import torch
    from torch.nn import functional

    module = importlib.import_module(_deep_gemm_module())
    product, w13, w2 = module.m_grouped_bf16_gemm_nt_contiguous, inputs.w13, inputs.w2
    if weights:
        product = module.m_grouped_fp8_gemm_nt_contiguous
        w13, w2 = ((one.values, one.scales) for one in weights)

    def operand_of(rows: Any) -> Any:
        return _in_blocks(rows) if weights else rows

    (num_experts, width, _), top_k = inputs.w13.shape, inputs.topk_ids.shape[1]
    places, experts = padded_places(inputs.topk_ids, num_experts)
    device, dtype = inputs.x.device, inputs.x.dtype

    def empty(num_columns: int) -> Any:
        return torch.empty((len(experts), num_columns), dtype=dtype, device=device)

    rows = torch.zeros((len(experts), inputs.x.shape[1]), dtype=dtype, device=device)
    rows[places.flatten()] = inputs.x.repeat_interleave(top_k, 0)
    gate_up, y = empty(width), empty(inputs.x.shape[1])
    # A product leaves rows of padding as they are.
    gate_up.zero_()
    rows = operand_of(rows)
    product(rows, w13, gate_up, experts)
    gate, up = gate_up.chunk(2, dim=-1)
    middle = operand_of(functional.silu(gate) * up)

    def run() -> Any:
        product(rows, w13, gate_up, experts)
        product(middle, w2, y, experts)
        return y

    return GroupedProducts(run, inputs, places, y)


def _in_blocks(rows: Any) -> tuple[Any, Any]:
    """Rows in fp8, and their scales [rows, groups] as DeepGEMM reads them: columns first."""
    values, scales = tessera.quantize_fp8(rows, group=BLOCK)
    return values, scales.T.contiguous().T


def padded_places(topk_ids: Any, num_experts: int) -> tuple[Any, Any]:
    """Where each pair's row is [T, k], int64, and the expert of every row, int32, -1 in padding."""
    import torch

    ids = topk_ids.flatten().long()
    counts = torch.bincount(ids, minlength=num_experts)
    padded = (counts + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT
    shifts = (padded.cumsum(0) - padded) - (counts.cumsum(0) - counts)
    sorted_ids, order = torch.sort(ids, stable=True)
    places = torch.empty_like(order)
    places[order] = torch.arange(len(order), device=ids.device) + shifts[sorted_ids]
    experts = torch.full((int(padded.sum()),), -1, dtype=torch.int32, device=ids.device)
    experts[places] = ids.int()
    return places.view(topk_ids.shape), experts
