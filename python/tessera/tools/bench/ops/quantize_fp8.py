"""`quantize_fp8`, with the same formula in torch as a peer, and a plain copy of as many bytes."""

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
    """Tokens x hidden size, of a data type, and the group; the scales are computed."""

    num_tokens: int
    hidden_size: int
    group: str
    dtype: str = "bfloat16"

    @property
    def name(self) -> str:
        """The sizes, the group and the data type."""
        return f"{self.num_tokens}x{self.hidden_size} {self.group} {self.dtype}"


PRESETS = {
    "quick": [
        *(Shape(num_tokens, 7168, "1x128") for num_tokens in (1, 64, 1024, 8192)),
        *(Shape(num_tokens, 7168, "row") for num_tokens in (1, 64, 1024, 8192)),
        *(Shape(num_tokens, 7168, "tensor") for num_tokens in (64, 8192)),
        Shape(8192, 2048, "1x128"),
        Shape(4096, 7168, "1x128", "float32"),
        Shape(4096, 7168, "128x128"),  # weights
    ],
}


def make_problem(shape: Shape, device: str, seed: int) -> CallProblem:
    """A call, torch's, and a copy of half of the bytes, which reads and writes all."""
    torch = required_torch("quantize_fp8")
    random = torch.Generator(device).manual_seed(seed)
    sizes = (shape.num_tokens, shape.hidden_size)
    x = torch.randn(sizes, generator=random, device=device).to(getattr(torch, shape.dtype))
    rows = {"tensor": shape.num_tokens, "128x128": 128}.get(shape.group, 1)
    columns = 128 if shape.group in ("1x128", "128x128") else shape.hidden_size
    grid = (shape.num_tokens // rows, shape.hidden_size // columns)
    out = (
        torch.empty(sizes, dtype=torch.float8_e4m3fn, device=device),
        torch.empty(1 if shape.group == "tensor" else grid, device=device),
    )
    num_words = (x.nbytes + out[0].nbytes + out[1].nbytes) // 8
    words = torch.arange(2 * num_words, dtype=torch.int32, device=device)
    source, copied = words[:num_words], words[num_words:]

    def call(function: Any, results: tuple[Any, ...], read: Any) -> TimedCall:
        def run() -> tuple[Any, ...]:
            function()
            return words_written

        # The method `chain` writes and reads words.
        words_written = tuple(result.view(torch.int32) for result in results)
        return TimedCall.of(run, read.view(torch.int32), is_aligned=False)

    def torch_quantize() -> None:
        groups = x.view(grid[0], rows, grid[1], columns).float()
        scales = groups.abs().amax((1, 3)).clamp(1e-10) / 448
        quotients = (groups / scales[:, None, :, None]).clamp(-448, 448)
        out[0].copy_(quotients.view(sizes))
        out[1].copy_(scales.view(out[1].shape))

    return CallProblem(
        shape,
        device,
        call(functools.partial(tessera.quantize_fp8, x, group=shape.group, out=out), out, x),
        lambda outputs: tessera.quantize_fp8_contract_violations(
            x,
            (outputs[0].view(torch.float8_e4m3fn), outputs[1].view(torch.float32)),
            group=shape.group,
        ),
        {
            "torch": call(torch_quantize, out, x),
            "copy": call(functools.partial(copied.copy_, source), (copied,), source),
        },
        num_words,
    )


OP = Op(
    "quantize_fp8",
    PRESETS,
    make_problem,
    lambda device: named_contenders(device, {"torch": "peer", "copy": "related"}),
    results="quantize_fp8",
)
