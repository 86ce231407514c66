"""`fused_moe`, beside its two ops one after the other."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tessera
from tessera.tools.bench.calls import CallProblem, named_contenders, required_torch
from tessera.tools.bench.contender import TimedCall
from tessera.tools.bench.op import Op


@dataclass(frozen=True)
class Shape:
    """Tokens x hidden size x experts x intermediate size x experts per token, of a data type."""

    num_tokens: int
    hidden_size: int
    num_experts: int
    intermediate_size: int
    top_k: int
    dtype: str = "bfloat16"

    @property
    def name(self) -> str:
        """The sizes and the data type."""
        sizes = (self.num_tokens, self.hidden_size, self.num_experts, self.intermediate_size)
        return f"{'x'.join(map(str, sizes))}x{self.top_k} {self.dtype}"


# 50 MB of weights.
SHAPES = [Shape(num_tokens, 1024, 16, 512, 4) for num_tokens in (1, 16, 256)]
# Qwen3-30B-A3B: 1.2 GB of weights.
CUDA_SHAPES = [*SHAPES, *(Shape(num_tokens, 2048, 128, 768, 8) for num_tokens in (1, 16))]


def make_problem(shape: Shape, device: str, seed: int) -> CallProblem:
    """A call with an output of the caller, and the same by two calls."""
    torch = required_torch("fused_moe")
    random = torch.Generator(device).manual_seed(seed)
    dtype = getattr(torch, shape.dtype)

    def normal(*sizes: int) -> Any:
        values = torch.randn(sizes, generator=random, device=device)
        return (values / sizes[-1] ** 0.5).to(dtype)

    x = normal(shape.num_tokens, shape.hidden_size)
    w13 = normal(shape.num_experts, 2 * shape.intermediate_size, shape.hidden_size)
    w2 = normal(shape.num_experts, shape.hidden_size, shape.intermediate_size)
    logits = torch.randn((shape.num_tokens, shape.num_experts), generator=random, device=device)
    choice = (
        torch.empty((shape.num_tokens, shape.top_k), device=device),
        torch.empty((shape.num_tokens, shape.top_k), dtype=torch.int32, device=device),
    )
    out = torch.empty_like(x)
    options: dict[str, Any] = {"top_k": shape.top_k, "renormalize": True}

    def both_ops() -> None:
        tessera.select_experts(logits, **options, out=choice)
        tessera.fused_experts(x, w13, w2, *choice, out=out)

    def timed(function: Callable[[], object]) -> TimedCall:
        def run() -> tuple[Any]:
            function()
            return (words_written,)

        # The method `chain` writes and reads words.
        words_written = out.view(torch.int32)
        return TimedCall.of(run, logits.view(torch.int32), is_aligned=False)

    return CallProblem(
        shape,
        device,
        timed(functools.partial(tessera.fused_moe, x, w13, w2, logits, **options, out=out)),
        lambda outputs: tessera.fused_moe_contract_violations(
            x, w13, w2, logits, outputs[0].view(dtype), **options
        ),
        {"both ops": timed(both_ops)},
        logits.numel(),
    )


_CUDA = Op(
    "fused_moe",
    {"quick": CUDA_SHAPES},
    make_problem,
    lambda device: named_contenders(device, {"both ops": "related"}),
    results="fused_moe",
)

OP = dataclasses.replace(_CUDA, presets={"quick": SHAPES}, cuda=_CUDA)
