"""`moe_unpermute`, with torch's index and sum as a peer, and a plain copy of as many bytes."""

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
    """Tokens x slots per token x hidden size, of a data type; the sum is weighted.

    Every pair has a row of its own, in a random order.
    """

    num_tokens: int
    top_k: int
    hidden_size: int
    dtype: str

    @property
    def name(self) -> str:
        """The sizes and the data type."""
        return f"{self.num_tokens}x{self.top_k}x{self.hidden_size} {self.dtype}"


# The last seven read and write 64 MB or more.
SHAPES = [
    Shape(1, 8, 7168, "bfloat16"),
    Shape(64, 8, 7168, "bfloat16"),
    Shape(1024, 8, 7168, "bfloat16"),
    Shape(4096, 8, 2048, "bfloat16"),
    Shape(4096, 8, 4096, "bfloat16"),
    Shape(4096, 8, 7168, "bfloat16"),
    Shape(4096, 2, 4096, "bfloat16"),
    Shape(1024, 8, 7168, "float16"),
    Shape(1024, 8, 4096, "float32"),
]


def make_problem(shape: Shape, device: str, seed: int) -> CallProblem:
    """A call with weights, torch's, and a copy of half of the bytes, which reads and writes all."""
    torch = required_torch("moe_unpermute")
    random = torch.Generator(device).manual_seed(seed)
    sizes = (shape.num_tokens, shape.top_k)
    num_pairs = shape.num_tokens * shape.top_k
    rows = torch.randn((num_pairs, shape.hidden_size), generator=random, device=device)
    rows = rows.to(getattr(torch, shape.dtype))
    weights = torch.rand(sizes, generator=random, device=device)
    inverse = torch.randperm(num_pairs, generator=random, device=device).int().reshape(sizes)
    out = torch.empty((shape.num_tokens, shape.hidden_size), dtype=rows.dtype, device=device)
    num_words = (rows.nbytes + weights.nbytes + inverse.nbytes + out.nbytes) // 8
    words = torch.arange(2 * num_words, dtype=torch.int32, device=device)
    source, copied = words[:num_words], words[num_words:]

    def call(function: Any, result: Any, read: Any) -> TimedCall:
        def run() -> tuple[Any]:
            function()
            return (words_written,)

        # The method `chain` writes and reads words.
        words_written = result.view(torch.int32)
        return TimedCall.of(run, read.view(torch.int32), is_aligned=False)

    def torch_sum() -> None:
        out.copy_((rows[inverse] * weights[..., None]).sum(1))

    ours = functools.partial(tessera.moe_unpermute, rows, weights, inverse, out=out)
    return CallProblem(
        shape,
        device,
        call(ours, out, rows),
        lambda outputs: tessera.moe_unpermute_contract_violations(
            rows, weights, inverse, outputs[0].view(rows.dtype)
        ),
        {
            "torch": call(torch_sum, out, rows),
            "copy": call(functools.partial(copied.copy_, source), copied, source),
        },
        num_words,
    )


OP = Op(
    "moe_unpermute",
    {"quick": SHAPES},
    make_problem,
    lambda device: named_contenders(device, {"torch": "peer", "copy": "related"}),
    results="moe_unpermute",
)
