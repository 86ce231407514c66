"""Experts of transformers in fp8, in the naive form of torch too.

The product that transformers' own experts in fp8 call is a Triton kernel from its hub. Here
`naive_linear` takes its place: float64 products of what that kernel multiplies.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from transformers import FineGrainedFP8Config
from transformers.integrations import finegrained_fp8

from tiny_models import experts_of, quiet, tiny_model

LARGEST = 448.0
SIZES: dict[str, dict[str, Any]] = {
    "mixtral": {"hidden_size": 256, "intermediate_size": 128},
    "qwen3_moe": {"hidden_size": 256, "moe_intermediate_size": 128},
    "deepseek_v3": {"hidden_size": 256, "moe_intermediate_size": 128},
}
FORMS: dict[str, dict[str, Any]] = {
    "blocks": {},
    "blocks-ue8m0": {"scale_fmt": "ue8m0"},
    "tensor": {"weight_block_size": None},
    "tensor-ue8m0": {"weight_block_size": None, "scale_fmt": "ue8m0"},
    "tensor-static": {"weight_block_size": None, "activation_scheme": "static"},
}
# Of x and of the intermediate; both saturate a few values.
STATIC_SCALES = (0.006, 0.02)


def experts_in_fp8(config: Any, has_gate: bool = True, **form: Any) -> Any:
    """`FP8Experts` as `replace_with_fp8_linear` makes them, with random weights of a gate twice as
    large as up."""
    quantization = FineGrainedFP8Config(**form)
    base = type("FP8Experts", (finegrained_fp8.FP8Experts,), {})
    experts_class = finegrained_fp8.use_experts_implementation(
        experts_class=base,
        experts_interface=finegrained_fp8.ALL_FP8_EXPERTS_FUNCTIONS,
        has_gate=has_gate,
    )
    experts = experts_class(
        config,
        block_size=quantization.weight_block_size,
        activation_scheme=quantization.activation_scheme,
        scale_fmt=quantization.scale_fmt,
        has_gate=has_gate,
    ).requires_grad_(False)
    generator = torch.Generator().manual_seed(17)
    width, rows = experts.hidden_dim, experts.intermediate_dim
    shape = (experts.num_experts, 2 * rows if has_gate else rows, width)
    up = torch.randn(shape, generator=generator) * width**-0.5
    up[:, :rows] *= 2
    down = torch.randn((experts.num_experts, width, rows), generator=generator) * rows**-0.5
    quantize(experts, up, down)
    return experts


def quantize(experts: Any, up: torch.Tensor, down: torch.Tensor) -> None:
    """Fills experts; the scales of gate rows know nothing of up rows, as in checkpoints."""
    name = "gate_up_proj" if experts.has_gate else "up_proj"
    halves = up.chunk(2, dim=1) if experts.has_gate else (up,)
    for target, matrices in ((name, halves), ("down_proj", (down,))):
        pairs = [quantized(one, experts.block_size) for one in matrices]
        values, scales = (torch.cat(parts, dim=1) for parts in zip(*pairs, strict=True))
        scale = getattr(experts, f"{target}_scale_inv")
        if scale.dtype != torch.float32:
            scales = scales.log2().ceil().exp2()
            large = expanded(scales, values.shape, experts.block_size)
            values = torch.cat(matrices, dim=1).float() / large
        getattr(experts, target).data.copy_(values.to(torch.float8_e4m3fn))
        assert scale.shape == scales.shape
        scale.data.copy_(scales.to(scale.dtype))
    if experts.activation_scheme == "static":
        for target, number in zip(("gate_up", "down"), STATIC_SCALES, strict=True):
            getattr(experts, f"{target}_proj_activation_scale").data.fill_(number)


def quantized(matrices: torch.Tensor, block_size: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Of [E, N, K]: float32 values up to 448, and scales [E, blocks of rows, blocks of columns]."""
    rows, columns = block_size or matrices.shape[1:]
    num_rows, num_columns = matrices.shape[1:]
    padding = (0, -num_columns % columns, 0, -num_rows % rows)
    padded = torch.nn.functional.pad(matrices.float(), padding)
    blocks = padded.unflatten(2, (-1, columns)).unflatten(1, (-1, rows))
    scales = blocks.abs().amax(dim=(2, 4)) / LARGEST
    return matrices.float() / expanded(scales, matrices.shape, block_size), scales


def expanded(scales: torch.Tensor, shape: Any, block_size: Any) -> torch.Tensor:
    """Scales [..., R, C] of matrices of a shape [..., N, K], one for each element."""
    num_rows, num_columns = shape[-2:]
    rows, columns = block_size or (num_rows // scales.shape[-2], num_columns)
    scales = scales.repeat_interleave(rows, -2)[..., :num_rows, :]
    return scales.repeat_interleave(columns, -1)[..., :num_columns]


def dequantized(values: torch.Tensor, scales: torch.Tensor, block_size: Any) -> torch.Tensor:
    """float64."""
    return values.double() * expanded(scales.float().double(), values.shape, block_size)


def naive_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    block_size: Any = None,
    bias: None = None,
    activation_scale: torch.Tensor | None = None,
    *_: Any,
    **__: Any,
) -> torch.Tensor:
    """`fp8_linear` of transformers, whose last arguments differ among versions."""
    wide = x.float()
    if activation_scale is not None:
        scales = activation_scale
    else:
        group = x.shape[-1] if block_size is None else block_size[1]
        padded = torch.nn.functional.pad(wide, (0, -x.shape[-1] % group))
        largest = padded.unflatten(-1, (-1, group)).abs().amax(dim=-1)
        scales = (largest / LARGEST).clamp(min=1e-12).repeat_interleave(group, -1)
        scales = scales[..., : x.shape[-1]]
    values = (wide / scales).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
    product = (values.double() * scales.double()) @ dequantized(weight, scale, block_size).mT
    return product.to(x.dtype)


def naive() -> Any:
    """While this is entered, transformers' own experts in fp8 run on the CPU."""
    return mock.patch.object(finegrained_fp8, "fp8_linear", naive_linear)


def fp8_model(name: str, dtype: torch.dtype, **form: Any) -> tuple[Any, Any]:
    """A small model with experts in fp8, and the same in float64 with their dequantised weights."""
    model = tiny_model(name, dtype=dtype, **SIZES[name])
    exact = tiny_model(name, dtype=dtype, **SIZES[name]).double()
    replace_experts(model, **form)
    for experts, source in zip(experts_of(model), experts_of(exact), strict=True):
        quantize(experts, source.gate_up_proj.detach(), source.down_proj.detach())
        for target in ("gate_up_proj", "down_proj"):
            scales = getattr(experts, f"{target}_scale_inv")
            weights = dequantized(getattr(experts, target), scales, experts.block_size)
            getattr(source, target).data.copy_(weights)
    return model, exact


def replace_experts(model: Any, **form: Any) -> None:
    """As the quantiser of transformers does it, without values."""
    with quiet():
        finegrained_fp8.replace_with_fp8_linear(
            model,
            modules_to_not_convert=linear_layers(model),
            quantization_config=FineGrainedFP8Config(**form),
        )
    for experts in experts_of(model):
        experts.to_empty(device="cpu")


def linear_layers(model: Any) -> list[str]:
    linear = torch.nn.Linear
    return [name for name, module in model.named_modules() if isinstance(module, linear)]


def sizes(hidden_size: int, intermediate_size: int, hidden_act: str = "silu") -> Any:
    """A configuration for `experts_in_fp8`."""
    return SimpleNamespace(
        _experts_implementation="tessera",
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        hidden_act=hidden_act,
        num_local_experts=4,
    )
