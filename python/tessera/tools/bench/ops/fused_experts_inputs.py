"""The calls that `tessera bench --op fused_experts` times: shapes, inputs, and what is expected."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tessera.contract import synthetic_topk_ids
from tessera.tools.bench.calls import required_torch
from tessera.tools.bench.ops.fused_experts_fp8 import Fp8Weights, fp8_weights


@dataclass(frozen=True)
class Shape:
    """The experts of a model's layer, with SwiGLU, and the tokens of a call.

    skew: the popularity of the experts, uniform or zipf; log if the ids are of a routing log.
    trace: the log and the layer that the ids come from; empty for synthetic ones.
    quantization: which elements of weights in fp8 share a scale; none of weights in `dtype`.
    """

    model: str
    num_experts: int
    top_k: int
    hidden_size: int
    intermediate_size: int
    dtype: str
    num_tokens: int
    skew: str = "uniform"
    trace: str = ""
    quantization: str = "none"

    @property
    def name(self) -> str:
        """Model, weights and tokens, and where the ids are not uniform, what they are."""
        weights = self.dtype if self.quantization == "none" else f"fp8 {self.quantization}"
        routing = self.trace or self.skew
        unusual = f"/{routing}" if routing != "uniform" else ""
        return f"{self.model} {weights}/{self.num_tokens}{unusual}"


# How many channels of x are larger than the others, and how many times, to compare accuracy; and
# the tokens that are compared.
_NUM_OUTLIERS = 4
_OUTLIERS = (20, 50)
_COMPARED = 16


class Inputs(NamedTuple):
    """The arrays of one call, in the order of the op's arguments."""

    x: Any
    w13: Any
    w2: Any
    topk_weights: Any
    topk_ids: Any


def input_sets(
    shape: Shape, device: str, seed: int, number: int, log_ids: npt.NDArray[np.int32] | None
) -> list[Inputs]:
    """So many sets of different tokens for the same weights; of a log, one window after another.

    The ids are int32, and the router's weights float32 numbers that the data type of x has, too.
    """
    torch = required_torch("fused_experts")
    random = torch.Generator(device).manual_seed(seed)
    dtype = getattr(torch, shape.dtype)
    if (weights := weights_in_fp8(shape, device, seed)) is not None:
        w13, w2 = weights.w13.values, weights.w2.values
    else:
        sizes = (shape.num_experts, shape.hidden_size, shape.intermediate_size)
        w13, w2 = _weights(*sizes, shape.dtype, device, seed)

    def make_inputs(i: int) -> Inputs:
        x = torch.randn((shape.num_tokens, shape.hidden_size), generator=random, device=device)
        scores = torch.rand((shape.num_tokens, shape.top_k), generator=random, device=device)
        if log_ids is None:
            is_zipf = shape.skew == "zipf"
            sizes = (shape.num_tokens, shape.num_experts, shape.top_k)
            topk_ids = synthetic_topk_ids(*sizes, zipf=is_zipf, seed=seed + i)
        else:
            topk_ids = log_ids[i * shape.num_tokens : (i + 1) * shape.num_tokens]
        topk_weights = (scores / scores.sum(1, keepdim=True)).to(dtype).float()
        ids = torch.from_numpy(np.ascontiguousarray(topk_ids)).to(device)
        return Inputs(x.to(dtype), w13, w2, topk_weights, ids)

    return [make_inputs(i) for i in range(number)]


def weights_in_fp8(shape: Shape, device: str, seed: int) -> Fp8Weights | None:
    """The weights that `input_sets` takes with their scales; None where they are not in fp8."""
    if shape.quantization == "none":
        return None
    sizes = (shape.num_experts, shape.hidden_size, shape.intermediate_size)
    return fp8_weights(*sizes, shape.quantization, device, seed)


@functools.lru_cache(maxsize=1)
def _weights(
    num_experts: int, hidden_size: int, intermediate_size: int, dtype: str, device: str, seed: int
) -> tuple[Any, Any]:
    """w13 and w2, of a size that keeps the values of a call near 1. They take up to 2.8 GB."""
    import torch

    random = torch.Generator(device).manual_seed(seed)

    def normal(num_rows: int, num_columns: int) -> Any:
        sizes = (num_experts, num_rows, num_columns)
        empty = torch.empty(sizes, dtype=getattr(torch, dtype), device=device)
        return empty.normal_(std=num_columns**-0.5, generator=random)

    return normal(2 * intermediate_size, hidden_size), normal(hidden_size, intermediate_size)


# Gives both matrices of an expert.
WeightsOf = Callable[[Any], tuple[Any, Any]]


def reference(
    inputs: Inputs, tokens: Any, weights_of: WeightsOf | None = None, dtype: Any = None
) -> Any:
    """The layer for some tokens [n, H], expert by expert, in float32 or another type.

    Args:
        inputs: of one call.
        tokens: int64 [n].
        weights_of: what takes the place of the inputs' weights.
        dtype: torch's; None stands for float32.
    """
    import torch
    from torch.nn import functional

    dtype = dtype or torch.float32
    weights_of = weights_of or (lambda expert: (inputs.w13[expert], inputs.w2[expert]))
    tokens = tokens.to(inputs.x.device)
    x, ids = inputs.x[tokens].to(dtype), inputs.topk_ids[tokens]
    weights = inputs.topk_weights[tokens].to(dtype)
    expected = torch.zeros_like(x)
    for expert in ids.unique().tolist():
        rows, slots = torch.where(ids == expert)
        w13, w2 = (one.to(dtype) for one in weights_of(expert))
        gate, up = (x[rows] @ w13.T).chunk(2, dim=-1)
        y = (functional.silu(gate) * up) @ w2.T
        expected.index_add_(0, rows, y * weights[rows, slots, None])
    return expected


def spread(num_tokens: int, number: int) -> Any:
    """At most so many tokens, the first and the last among them."""
    import torch

    return torch.linspace(0, num_tokens - 1, min(number, num_tokens)).round().long()


def routes(inputs: Inputs) -> Iterator[tuple[Any, Any, Any]]:
    """The experts that have tokens, each with the tokens and with their slots."""
    import torch
    from torch.nn import functional

    mask = functional.one_hot(inputs.topk_ids.long(), len(inputs.w13)).permute(2, 1, 0)
    for (expert,) in mask.sum((-1, -2)).nonzero():
        slots, tokens = torch.where(mask[expert])
        yield expert, tokens, slots


class Accuracy:
    """How far off outputs are from the layer in float64 with the weights before quantisation.

    inputs: the inputs of a call, in which a few channels of x are 20 to 50 times as large as the
        others. Hidden states of models have such channels.
    """

    def __init__(self, inputs: Inputs, weights: Fp8Weights, seed: int) -> None:
        import torch

        x = inputs.x.float()
        device = x.device
        random = torch.Generator(device).manual_seed(seed)
        channels = torch.randperm(x.shape[1], generator=random, device=device)[:_NUM_OUTLIERS]
        x[:, channels] *= torch.linspace(*_OUTLIERS, _NUM_OUTLIERS, device=device)
        self.inputs = inputs._replace(x=x.to(inputs.x.dtype))
        self._tokens = spread(len(x), _COMPARED).to(device)
        self._expected = reference(self.inputs, self._tokens, weights.unquantized, torch.float64)

    def error(self, output: Any) -> float:
        """The relative error of some tokens, in the Frobenius norm."""
        off = output[self._tokens].double() - self._expected
        return float(off.norm() / self._expected.norm())
