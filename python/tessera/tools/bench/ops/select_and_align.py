"""`select_and_align`, with the two ops that it joins one after the other, and each alone."""

from __future__ import annotations

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
    """Tokens x experts x experts per token / block size; groups come with a bias."""

    num_tokens: int
    num_experts: int
    top_k: int
    block_size: int
    scoring: str
    dtype: str
    num_expert_group: int = 1
    topk_group: int = 1

    @property
    def has_bias(self) -> bool:
        """Whether a correction bias and a scaling factor are given."""
        return self.num_expert_group > 1

    @property
    def name(self) -> str:
        """The sizes, the scoring and the data type."""
        groups = f" {self.topk_group} of {self.num_expert_group} groups" if self.has_bias else ""
        sizes = f"{self.num_tokens}x{self.num_experts}x{self.top_k}/{self.block_size}"
        return f"{sizes} {self.scoring}{groups} {self.dtype}"


TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024, 4096, 16384)
_FEW_TOKENS = (1, 16, 64, 256, 4096)


def _shapes(tokens: tuple[int, ...], dtypes: tuple[str, ...]) -> list[Shape]:
    return [
        shape
        for dtype in dtypes
        for num_tokens in tokens
        for block_size in (16 if num_tokens <= 64 else 64,)
        for shape in (
            Shape(num_tokens, 128, 8, block_size, "softmax", dtype),  # Qwen3-30B-A3B
            Shape(num_tokens, 256, 8, block_size, "sigmoid", dtype, 8, 4),  # DeepSeek-V3
            Shape(num_tokens, 256, 8, block_size, "softmax", dtype),
        )
    ]


PRESETS = {
    "quick": _shapes(_FEW_TOKENS, ("bfloat16",)),
    "grid": _shapes(TOKENS, ("bfloat16", "float32")),
}


def make_problem(shape: Shape, device: str, seed: int) -> CallProblem:
    """A call that renormalizes, the two calls that it stands for, and each of these alone."""
    torch = required_torch("select_and_align")
    random = torch.Generator(device).manual_seed(seed)
    sizes = (shape.num_tokens, shape.num_experts)
    logits = torch.randn(sizes, generator=random, device=device).to(getattr(torch, shape.dtype))
    routing: dict[str, Any] = {
        "top_k": shape.top_k,
        "scoring": shape.scoring,
        "renormalize": True,
        "num_expert_group": shape.num_expert_group,
        "topk_group": shape.topk_group,
    }
    if shape.has_bias:
        bias = torch.randn(shape.num_experts, generator=random, device=device) / 10
        routing |= {"correction_bias": bias, "routed_scaling_factor": 2.5}
    options = routing | {"block_size": shape.block_size}
    out = tuple(tessera.select_and_align(logits, **options))
    select = functools.partial(tessera.select_experts, logits, **routing, out=out[:2])
    blocks: dict[str, Any] = {
        "block_size": shape.block_size,
        "num_experts": shape.num_experts,
    }
    # The alignment alone has ids and outputs of its own, which no other contender overwrites.
    ids, *aligned = (array.clone() for array in out[1:])
    align = functools.partial(tessera.align_block_size, ids, **blocks, out=tuple(aligned))

    def two_ops() -> None:
        select()
        tessera.align_block_size(out[1], **blocks, out=out[2:])

    def timed(function: Callable[[], Any], results: tuple[Any, ...], read: Any) -> TimedCall:
        # The method `chain` writes and reads words.
        words = tuple(result.view(torch.int32) for result in results)

        def run() -> tuple[Any, ...]:
            function()
            return words

        return TimedCall.of(run, read.view(torch.int32), is_aligned=False)

    return CallProblem(
        shape,
        device,
        timed(functools.partial(tessera.select_and_align, logits, **options, out=out), out, logits),
        lambda outputs: tessera.select_and_align_contract_violations(
            logits, (outputs[0].view(torch.float32), *outputs[1:]), **options
        ),
        {
            "two_ops": timed(two_ops, out, logits),
            "select_experts": timed(select, out[:2], logits),
            "align_block_size": timed(align, tuple(aligned), ids),
        },
        max(1, logits.nbytes // 4),
    )


OP = Op(
    "select_and_align",
    PRESETS,
    make_problem,
    lambda device: named_contenders(
        device, {"two_ops": "peer", "select_experts": "related", "align_block_size": "related"}
    ),
    results="select_and_align",
)
