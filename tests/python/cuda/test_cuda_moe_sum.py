"""`moe_sum` on a GPU: the bits of the host's, streams, graphs, `out=`, compiled code."""

from __future__ import annotations

from typing import Any

import pytest

import tessera

# (tokens, top_k, hidden size): rows of whole 16-byte words, of odd lengths, many and few of them.
SHAPES = [(0, 2, 8), (3, 1, 0), (1, 1, 1), (5, 3, 7), (33, 8, 2048), (700, 6, 1001), (4, 17, 4096)]


def problem(shape: tuple[int, int, int], dtype: str, seed: int) -> tuple[Any, Any]:
    import torch

    tokens, top_k, _ = shape
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator).to(getattr(torch, dtype))
    return values, torch.rand((tokens, top_k), generator=generator)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bits_are_those_of_the_host(
    shape: tuple[int, int, int], dtype: str, weighted: bool
) -> None:
    import torch

    values, weights = problem(shape, dtype, 1)
    given = weights if weighted else None
    expected = tessera.moe_sum(values, given)
    placed = values.cuda()
    found = tessera.moe_sum(placed, given.cuda() if weighted else None)
    assert found.device == placed.device
    assert torch.equal(found.cpu(), expected)
    assert tessera.moe_sum_contract_violations(placed, found, given) == []


@pytest.mark.parametrize("shift", [0, 1, 3])
def test_rows_apart_at_any_address(shift: int) -> None:
    import torch

    values, weights = problem((9, 4, 257), "bfloat16", 2)
    wide = torch.full((9, 4, 300), float("nan"), dtype=torch.bfloat16, device="cuda")
    wide[:, :, shift : shift + 257] = values.cuda()
    out = torch.full((9, 320), 7.0, dtype=torch.bfloat16, device="cuda")
    part = out[:, shift : shift + 257]
    tessera.moe_sum(wide[:, :, shift : shift + 257], weights.cuda(), out=part)
    assert torch.equal(part.cpu(), tessera.moe_sum(values, weights))
    assert torch.all(out[:, :shift] == 7)
    assert torch.all(out[:, shift + 257 :] == 7)


def test_on_a_stream_and_in_a_graph() -> None:
    import torch

    values, weights = (array.cuda() for array in problem((64, 8, 512), "float16", 3))
    out = torch.empty(64, 512, dtype=torch.float16, device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        tessera.moe_sum(values, weights, out=out)  # loads the kernel
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            tessera.moe_sum(values, weights, out=out)
        values.mul_(2)
        graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(out.cpu(), tessera.moe_sum(values.cpu(), weights.cpu()))


def test_compiled() -> None:
    import torch

    values, weights = (array.cuda() for array in problem((64, 8, 512), "float32", 4))
    compiled = torch.compile(tessera.moe_sum, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(values, weights), tessera.moe_sum(values, weights))
