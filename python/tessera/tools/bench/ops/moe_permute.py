"""`moe_permute`, with torch's index_select as a peer, and a plain copy of as many bytes."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import tessera
from tessera.tools.bench.calls import CallProblem, named_contenders, required_torch
from tessera.tools.bench.contender import TimedCall
from tessera.tools.bench.op import Op


@dataclass(frozen=True)
class Shape:
    """Tokens x slots per token x hidden size / experts, of a data type; without padding."""

    num_tokens: int
    top_k: int
    hidden_size: int
    num_experts: int
    dtype: str

    @property
    def name(self) -> str:
        """The sizes and the data type."""
        return f"{self.num_tokens}x{self.top_k}x{self.hidden_size}/{self.num_experts} {self.dtype}"


TOKENS = (1, 16, 64, 256, 1024, 4096, 16384)
_FEW_TOKENS = (1, 64, 1024, 4096)


def _shapes(tokens: tuple[int, ...]) -> list[Shape]:
    return [
        shape
        for num_tokens in tokens
        for shape in (
            Shape(num_tokens, 8, 2048, 128, "bfloat16"),  # Qwen3-30B-A3B
            Shape(num_tokens, 8, 7168, 256, "bfloat16"),  # DeepSeek-V3
        )
    ]


PRESETS = {
    "quick": [
        *_shapes(_FEW_TOKENS),
        Shape(4096, 2, 4096, 8, "bfloat16"),
        Shape(4096, 8, 7168, 256, "float8_e4m3fn"),
    ],
    "grid": _shapes(TOKENS),
}


def make_problem(shape: Shape, device: str, seed: int) -> CallProblem:
    """A call, torch's, and a copy of half of the bytes, which reads and writes all."""
    torch = required_torch("moe_permute")
    random = torch.Generator(device).manual_seed(seed)
    sizes = (shape.num_tokens, shape.hidden_size)
    x = torch.randn(sizes, generator=random, device=device).to(getattr(torch, shape.dtype))
    scores = torch.rand((shape.num_tokens, shape.num_experts), generator=random, device=device)
    ids = scores.topk(shape.top_k).indices.int()
    num_pairs = shape.num_tokens * shape.top_k
    int32 = torch.int32
    out = (
        torch.empty((num_pairs, shape.hidden_size), dtype=x.dtype, device=device),
        torch.empty(shape.num_experts + 1, dtype=int32, device=device),
        torch.empty(ids.shape, dtype=int32, device=device),
    )
    rows = out[0]
    num_words = (x.nbytes + rows.nbytes) // 8
    words = torch.arange(2 * num_words, dtype=int32, device=device)
    source, copied = words[:num_words], words[num_words:]

    def call(function: Any, results: tuple[Any, ...], read: Any) -> TimedCall:
        def run() -> tuple[Any, ...]:
            function()
            return words_written

        # The method `chain` writes and reads words.
        words_written = tuple(result.view(int32) for result in results)
        return TimedCall.of(run, read.view(int32), is_aligned=False)

    def torch_select() -> None:
        """The same three outputs by torch's sort."""
        order = ids.flatten().argsort(stable=True)
        bits = x.view(torch.uint8)
        torch.index_select(bits, 0, order // shape.top_k, out=rows.view(torch.uint8))
        counts = torch.zeros(shape.num_experts + 1, dtype=torch.int64, device=device)
        counts.scatter_add_(0, ids.flatten().long() + 1, torch.ones_like(order))
        out[1].copy_(counts.cumsum(0))
        out[2].view(-1)[order] = torch.arange(num_pairs, dtype=int32, device=device)

    permute = functools.partial(tessera.moe_permute, x, ids, num_experts=shape.num_experts, out=out)
    return CallProblem(
        shape,
        device,
        call(permute, out, x),
        lambda outputs: tessera.moe_permute_contract_violations(
            x, ids, (outputs[0].view(x.dtype), *outputs[1:]), num_experts=shape.num_experts
        ),
        {
            "torch": call(torch_select, out, x),
            "copy": call(functools.partial(copied.copy_, source), (copied,), source),
        },
        num_words,
    )


OP = Op(
    "moe_permute",
    PRESETS,
    make_problem,
    lambda device: named_contenders(device, {"torch": "peer", "copy": "related"}),
    results="moe_permute",
)
