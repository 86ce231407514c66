"""Calls of `fused_experts` with torch's tensors on a CUDA device, in every form that it takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tessera
from fused_experts_calls import ARRAYS
from tessera._op import Op

DEVICE = "cuda"
OP = Op("fused_experts")
# With 16 experts and 4 slots, each tile of mma.sync that the policy picks has one; on compute
# capability 9.0 three for exchanged operands, and two for wgmma.
TOKENS = (1, 60, 100, 200, 1104)

Arguments = dict[str, Any]


def experts_call(
    seed: int = 0,
    *,
    tokens: int = 60,
    top_k: int = 4,
    experts: int = 16,
    hidden: int = 256,
    intermediate: int = 96,
    activation: str = "silu",
    dtype: str = "bfloat16",
    biases: bool = False,
    device: str = DEVICE,
) -> Arguments:
    """Arguments of a call, of about the sizes of a model's numbers; a token's experts differ."""
    import torch

    generator = torch.Generator(device).manual_seed(seed)
    rows = intermediate * (1 if activation.endswith("no_mul") else 2)

    def floats(scale: float, *shape: int) -> Any:
        kind = getattr(torch, dtype)
        return torch.randn(shape, generator=generator, device=device, dtype=kind) * scale

    scores = torch.rand((tokens, experts), generator=generator, device=device)
    topk_weights, topk_ids = scores.topk(top_k)
    arguments: Arguments = {
        "x": floats(1, tokens, hidden),
        "w13": floats(hidden**-0.5, experts, rows, hidden),
        "w2": floats(intermediate**-0.5, experts, hidden, intermediate),
        "topk_weights": topk_weights,
        "topk_ids": topk_ids.int(),
        "activation": activation,
    }
    if biases:
        arguments |= {
            "w13_bias": floats(0.3, experts, rows),
            "w2_bias": floats(0.3, experts, hidden),
        }
    return arguments


def apart(array: Any, gap: int) -> Any:
    """The same values, with NaN, or an id that counts, between the rows."""
    filler = float("nan") if array.is_floating_point() else 0
    wide = array.new_full((*array.shape[:-1], array.shape[-1] + gap), filler)
    wide[..., : array.shape[-1]] = array
    return wide[..., : array.shape[-1]]


def moved(array: Any) -> Any:
    """The same values one element past an aligned address."""
    memory = array.new_empty(array.numel() + 1)
    return memory[1:].view(array.shape).copy_(array)


def transposed(array: Any) -> Any:
    """The same values, contiguous along the axis before the last."""
    return array.transpose(1, 2).contiguous().transpose(1, 2)


def changed(arguments: Arguments, change: Callable[[Any], Any], *names: str) -> Arguments:
    """The call with some of its arrays changed, by default all but the map."""
    chosen = names or tuple(name for name in ARRAYS if name != "expert_map")
    return arguments | {
        name: change(arguments[name]) for name in chosen if arguments.get(name) is not None
    }


def _with_odd_ids(arguments: Arguments) -> Arguments:
    """Ids of 64 bits, of which some count for nothing; the first two tokens have no other."""
    ids = arguments["topk_ids"].long()
    ids[1::3, 0] = -1
    ids[2::5, -1] = len(arguments["w13"])
    ids[:1] = -(2**40)
    ids[1:2] = 2**40
    return arguments | {"topk_ids": ids}


def _mapped(arguments: Arguments, num_global_experts: int) -> Arguments:
    import torch

    experts = len(arguments["w13"])
    places = torch.arange(num_global_experts, dtype=torch.int32, device=arguments["x"].device)
    ids = arguments["topk_ids"] * 2 - 1  # -1 to 2 E - 3
    return arguments | {"expert_map": (places * 7 + 3) % (experts + 3) - 2, "topk_ids": ids}


def _in_fp8(arguments: Arguments, group: Any, **scales: float) -> Arguments:
    """Weights in float8_e4m3fn: gate and up have blocks of their own. `scales` are static."""
    import torch

    def quantized(weights: Any, halves: int) -> tuple[Any, Any]:
        parts = [
            tessera.quantize_fp8(part, group=group)
            for expert in weights
            for part in expert.chunk(halves)
        ]
        values = torch.cat([part.values for part in parts]).view(weights.shape)
        found = torch.cat([part.scales for part in parts])
        return values, found if group == "tensor" else found.view(len(weights), -1, found.shape[1])

    halves = 2 if isinstance(group, tuple) else 1
    arguments["w13"], arguments["w13_scale"] = quantized(arguments["w13"], halves)
    arguments["w2"], arguments["w2_scale"] = quantized(arguments["w2"], 1)
    device = arguments["x"].device
    given = {name: torch.tensor([scale], device=device) for name, scale in scales.items()}
    return arguments | given


def _x_in_fp8(arguments: Arguments, group: Any) -> Arguments:
    x, x_scale = tessera.quantize_fp8(arguments["x"], group=group)
    return arguments | {"x": x, "x_scale": x_scale}


_ODD_SIZES: Arguments = {"hidden": 251, "intermediate": 77, "dtype": "float16"}
_BLOCK_AND_A_HALF: Arguments = {"hidden": 320, "intermediate": 192}

# By name: what a call may have beside contiguous arrays of whole words.
FORMS: dict[str, Callable[..., Arguments]] = {
    "plain": experts_call,
    "float16": lambda seed=0, **sizes: experts_call(seed, **{"dtype": "float16"} | sizes),
    "odd_ids": lambda seed=0, **sizes: _with_odd_ids(experts_call(seed, **sizes)),
    "more_global_experts": lambda seed=0, **sizes: _mapped(experts_call(seed, **sizes), 50),
    "fewer_global_experts": lambda seed=0, **sizes: _mapped(experts_call(seed, **sizes), 9),
    "biases": lambda seed=0, **sizes: experts_call(seed, biases=True, **sizes),
    "transposed": lambda seed=0, **sizes: changed(
        experts_call(seed, activation="swigluoai", biases=True, **sizes), transposed, "w13", "w2"
    ),
    "words_apart": lambda seed=0, **sizes: changed(
        experts_call(seed, biases=True, **sizes), lambda array: apart(array, 8)
    ),
    "elements_apart": lambda seed=0, **sizes: changed(
        experts_call(seed, biases=True, **sizes), lambda array: apart(array, 3)
    ),
    "transposed_apart": lambda seed=0, **sizes: changed(
        experts_call(seed, **sizes),
        lambda array: apart(array.transpose(1, 2), 8).transpose(1, 2),
        "w13",
        "w2",
    ),
    "unaligned": lambda seed=0, **sizes: changed(experts_call(seed, **sizes), moved),
    "odd_sizes": lambda seed=0, **sizes: experts_call(seed, **_ODD_SIZES | sizes),
    "weight_on_input": lambda seed=0, **sizes: (
        experts_call(seed, top_k=1, **sizes) | {"apply_router_weight_on_input": True}
    ),
    "router_in_bfloat16": lambda seed=0, **sizes: changed(
        experts_call(seed, **sizes), lambda array: array.bfloat16(), "topk_weights"
    ),
    "fp8_blocks": lambda seed=0, **sizes: _in_fp8(experts_call(seed, **sizes), (128, 128)),
    "fp8_blocks_with_biases": lambda seed=0, **sizes: _in_fp8(
        _with_odd_ids(experts_call(seed, biases=True, **_BLOCK_AND_A_HALF | sizes)),
        (128, 128),
    ),
    "fp8_rows": lambda seed=0, **sizes: _in_fp8(
        experts_call(seed, dtype="float16", **sizes), "row"
    ),
    "fp8_static": lambda seed=0, **sizes: _in_fp8(
        experts_call(seed, **sizes), "tensor", x_scale=0.01, intermediate_scale=0.02
    ),
    "fp8_x_of_blocks": lambda seed=0, **sizes: _x_in_fp8(
        _in_fp8(experts_call(seed, **sizes), (128, 128)), 128
    ),
    "fp8_x_of_one_scale": lambda seed=0, **sizes: _x_in_fp8(
        _in_fp8(experts_call(seed, **sizes), "tensor"), "tensor"
    ),
    "fp8_odd_sizes": lambda seed=0, **sizes: _in_fp8(
        experts_call(seed, **_ODD_SIZES | sizes), (128, 128)
    ),
    "fp8_transposed": lambda seed=0, **sizes: changed(
        _in_fp8(experts_call(seed, **sizes), "row"), transposed, "w13", "w2"
    ),
}


def of_tokens(arguments: Arguments, tokens: Any) -> Arguments:
    """The call of these tokens alone, in this order."""
    names = ["x", "topk_weights", "topk_ids"]
    if "x_scale" in arguments and arguments["x_scale"].dim() == 2:
        names.append("x_scale")
    return arguments | {name: arguments[name][tokens] for name in names}


def output_dtype(arguments: Arguments) -> Any:
    import torch

    dtype = arguments["x"].dtype
    return torch.bfloat16 if dtype == torch.float8_e4m3fn else dtype


def implementations(device: str = DEVICE) -> list[str]:
    shape: dict[str, Any] = dict.fromkeys("THEFk", 8)
    found = tessera.explain(OP.name, **shape, activation="silu", dtype="bfloat16", device=device)
    return [one.name for one in found]


def output_by(implementation: str, arguments: Arguments, fill: int = 0xFF) -> Any:
    """The output of a call by one implementation, in memory whose bytes were `fill`, workspace and
    all: with 255 each float is a NaN and each integer -1.

    Raises:
        NotImplementedError: the implementation does not take this call.
    """
    import torch

    x = arguments["x"]
    out = torch.empty(x.shape, dtype=output_dtype(arguments), device=x.device)
    out.view(torch.uint8).fill_(fill)
    values = [
        out if row.is_output else arguments.get(row.name, None if row.is_array else row.default)
        for row in OP.arguments
    ]
    call = OP.call
    if missing := call(None, 0, implementation, *values):
        workspace = torch.full((missing,), fill, dtype=torch.uint8, device=x.device)
        assert call(workspace, 0, implementation, *values) == 0
    return out


def kind_of_sums(implementation: str, arguments: Arguments) -> str:
    """Implementations of one kind give the same bits: wgmma adds products in fp8 with fewer."""
    is_fp8 = arguments.get("w13_scale") is not None
    return "exact" if not is_fp8 or implementation.startswith("cuda/mma_") else "wgmma"


def judged(arguments: Arguments, output: Any) -> list[Any]:
    """The rules of the contract that an output breaks.

    By the bound of the host, but where wgmma multiplies fp8: no other kernel needs the term for
    tensor cores, which the bound has where the output is on a device.
    """
    on_host = {
        name: value.cpu() if hasattr(value, "cpu") else value for name, value in arguments.items()
    }
    return tessera.fused_experts_contract_violations(
        **on_host, output=output if _runs_wgmma_in_fp8(arguments) else output.cpu()
    )


def _runs_wgmma_in_fp8(arguments: Arguments) -> bool:
    import torch

    weights = [arguments[name] for name in ("w13", "w2")]
    return (
        arguments.get("w13_scale") is not None
        and torch.cuda.get_device_capability() == (9, 0)
        and all(one.stride(2) == 1 and one.stride(1) % 16 == 0 for one in weights)
    )
