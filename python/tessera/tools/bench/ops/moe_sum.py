"""`moe_sum`, with torch's sum as a peer, and a plain copy of as many bytes."""

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
    """Tokens x slots per token x hidden size, of a data type; the sum is weighted."""

    num_tokens: int
    top_k: int
    hidden_size: int
    dtype: str

    @property
    def name(self) -> str:
        """The sizes and the data type."""
        return f"{self.num_tokens}x{self.top_k}x{self.hidden_size} {self.dtype}"


# The last six read and write 64 MB or more.
SHAPES = [
    Shape(1, 8, 7168, "bfloat16"),
    Shape(64, 8, 7168, "bfloat16"),
    Shape(1024, 8, 7168, "bfloat16"),
    Shape(4096, 2, 4096, "bfloat16"),
    Shape(4096, 6, 2048, "bfloat16"),
    Shape(1024, 8, 7168, "float16"),
    Shape(1024, 8, 4096, "float32"),
    Shape(8192, 8, 4096, "bfloat16"),
]


def make_problem(shape: Shape, device: str, seed: int) -> CallProblem:
    """A call with weights, torch's, and a copy of half of the bytes, which reads and writes all."""
    torch = required_torch("moe_sum")
    random = torch.Generator(device).manual_seed(seed)
    sizes = (shape.num_tokens, shape.top_k, shape.hidden_size)
    values = torch.randn(sizes, generator=random, device=device).to(getattr(torch, shape.dtype))
    weights = torch.rand(sizes[:2], generator=random, device=device)
    out = torch.empty((sizes[0], sizes[2]), dtype=values.dtype, device=device)
    num_words = (values.nbytes + weights.nbytes + out.nbytes) // 8
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
        out.copy_((values * weights[..., None]).sum(1))

    return CallProblem(
        shape,
        device,
        call(functools.partial(tessera.moe_sum, values, weights, out=out), out, values),
        lambda outputs: tessera.moe_sum_contract_violations(
            values, outputs[0].view(values.dtype), weights
        ),
        {
            "torch": call(torch_sum, out, values),
            "copy": call(functools.partial(copied.copy_, source), copied, source),
        },
        num_words,
    )


OP = Op(
    "moe_sum",
    {"quick": SHAPES},
    make_problem,
    lambda device: named_contenders(device, {"torch": "peer", "copy": "related"}),
    results="moe_sum",
)
