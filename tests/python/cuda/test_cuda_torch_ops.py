"""`torch.ops.tessera.align_block_size` and `torch.compile` on a GPU, CUDA graphs included."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tessera
from cuda_calls import SHAPES, assert_same, host_ids, options_of

EXAMPLE = Path(__file__).parents[3] / "examples/python/expert_parallel.py"

# Few and many ids, with and without workspace.
COMPILED = [(16, 256, 8, 16), (4096, 64, 2, 128), (65536, 8, 2, 128)]


def tesseras_op() -> Any:
    import torch

    import tessera.torch_ops  # noqa: F401, it registers the op

    return torch.ops.tessera.align_block_size


def compile_align(shape: tuple[int, int, int, int], **how: Any) -> Any:
    """Compiled: ids of experts, moved by one expert so that the graph holds a kernel of torch's,
    too, and their blocks.
    """
    import torch

    num_experts = shape[1]

    def align(topk_ids: Any) -> tuple[Any, ...]:
        moved = (topk_ids + 1) % num_experts
        return moved, *tessera.align_block_size(moved, **options_of(shape))

    torch._dynamo.reset()
    return torch.compile(align, fullgraph=True, **how)


def expected_of(topk_ids: Any, shape: tuple[int, int, int, int]) -> tuple[Any, ...]:
    moved = (topk_ids + 1) % shape[1]
    return moved, *tessera.align_block_size(moved, **options_of(shape))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_op_gives_what_the_host_gives(shape: tuple[int, int, int, int]) -> None:
    import torch

    topk_ids = host_ids(shape, 1, broken=True)
    counts = torch.empty(shape[1], dtype=torch.int32, device="cuda")
    found = tesseras_op()(
        torch.from_numpy(topk_ids).cuda(), **options_of(shape), expert_counts=counts
    )
    expected_counts = np.empty(shape[1], np.int32)
    expected = tessera.align_block_size(
        topk_ids, **options_of(shape), expert_counts=expected_counts
    )
    assert all(array.is_cuda for array in found)
    assert_same((*found, counts), (*expected, expected_counts))


@pytest.mark.parametrize("shape", COMPILED, ids=str)
def test_opcheck(shape: tuple[int, int, int, int]) -> None:
    import torch

    topk_ids = torch.from_numpy(host_ids(shape, 1)).cuda()
    torch.library.opcheck(tesseras_op().default, (topk_ids,), options_of(shape))


# Inductor and Triton warn of their own doings.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dynamic", [False, True])
def test_inductor(dynamic: bool) -> None:
    import torch

    shape = COMPILED[1]
    compiled = compile_align(shape, dynamic=dynamic)
    for tokens in (8, 4096):
        topk_ids = host_ids((tokens, *shape[1:]), 2)
        found = compiled(torch.from_numpy(topk_ids).cuda())
        assert_same(found, expected_of(topk_ids, shape))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("shape", COMPILED, ids=str)
def test_cuda_graph_trees(shape: tuple[int, int, int, int]) -> None:
    """Later calls replay one graph: in the same memory, with the ids that they are given."""
    import torch

    counters = torch._dynamo.utils.counters
    counters.clear()
    compiled = compile_align(shape, mode="reduce-overhead")
    addresses = []
    for seed in range(6):
        topk_ids = host_ids(shape, seed)
        torch.compiler.cudagraph_mark_step_begin()
        found = compiled(torch.from_numpy(topk_ids).cuda())
        assert_same(found, expected_of(topk_ids, shape))
        addresses.append(tuple(array.data_ptr() for array in found))
        del found
    assert counters["inductor"]["cudagraph_skips"] == 0
    assert len(set(addresses[3:])) == 1


def test_experts_on_two_gpus_are_aligned_with_nccl() -> None:
    import torch

    if torch.cuda.device_count() < 2:
        pytest.skip(f"needs two GPUs, found {torch.cuda.device_count()}")
    finished = subprocess.run(
        [sys.executable, EXAMPLE], capture_output=True, text=True, timeout=300, check=False
    )
    assert finished.returncode == 0, finished.stderr
    assert "backend: nccl" in finished.stdout


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_moe_sum_eager_compiled_and_in_a_graph(dtype: str) -> None:
    import torch

    values = torch.randn((64, 8, 512), device="cuda").to(getattr(torch, dtype))
    weights = torch.rand((64, 8), device="cuda")
    expected = tessera.moe_sum(values.cpu(), weights.cpu())
    assert torch.equal(tessera.moe_sum(values, weights).cpu(), expected)
    layer = lambda *arrays: tessera.moe_sum(*arrays)  # noqa: E731, no function of Tessera's itself
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(values, weights).cpu(), expected)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = tessera.moe_sum(values, weights)
    values.mul_(2)
    graph.replay()
    assert torch.equal(captured.cpu(), tessera.moe_sum(values.cpu(), weights.cpu()))
    assert tessera.moe_sum_contract_violations(values, captured, weights) == []


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float8_e4m3fn"])
@pytest.mark.parametrize("block_size", [1, 16])
def test_moe_permute_eager_compiled_and_in_a_graph(dtype: str, block_size: int) -> None:
    import torch

    random = torch.Generator(device="cuda").manual_seed(0)
    x = torch.randn((300, 256), generator=random, device="cuda").to(getattr(torch, dtype))
    ids = torch.randint(-1, 17, (300, 4), generator=random, device="cuda")
    options = {"num_experts": 16, "block_size": block_size}

    def assert_right(found: Any) -> None:
        expected = tessera.moe_permute(x.cpu(), ids.cpu(), **options)
        assert torch.equal(found.expert_offsets.cpu(), expected.expert_offsets)
        assert torch.equal(found.inverse.cpu(), expected.inverse)
        assert tessera.moe_permute_contract_violations(x, ids, found, **options) == []

    assert_right(tessera.moe_permute(x, ids, **options))
    layer = lambda *arrays: tessera.moe_permute(*arrays, **options)  # noqa: E731
    assert_right(torch.compile(layer, fullgraph=True, backend="aot_eager")(x, ids))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = tessera.moe_permute(x, ids, **options)
    ids.copy_(ids.flip(0))
    graph.replay()
    assert_right(captured)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("group", ["tensor", "row", 128, (128, 128)])
def test_quantize_fp8_eager_compiled_and_in_a_graph(dtype: str, group: Any) -> None:
    import torch

    torch._dynamo.reset()  # which recompiles one function for eight of these cases at most
    random = torch.Generator(device="cuda").manual_seed(0)
    x = torch.randn((300, 2560), generator=random, device="cuda").to(getattr(torch, dtype))

    def assert_right(found: Any, **options: Any) -> None:
        expected = tessera.quantize_fp8(x.cpu(), group=group, **options)
        for one, other in zip(found, expected, strict=True):
            assert one.shape == other.shape
            assert torch.equal(one.cpu().view(torch.uint8), other.view(torch.uint8))
        assert tessera.quantize_fp8_contract_violations(x, found, group=group, **options) == []

    assert_right(tessera.quantize_fp8(x, group=group))
    assert_right(tessera.quantize_fp8(x, group=group, use_ue8m0=True), use_ue8m0=True)
    layer = lambda array: tessera.quantize_fp8(array, group=group)  # noqa: E731
    assert_right(torch.compile(layer, fullgraph=True, backend="aot_eager")(x))
    given = tessera.quantize_fp8(x, group=group, scale=tessera.quantize_fp8(x, group=group).scales)
    assert_right(given)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = tessera.quantize_fp8(x, group=group)
    x.mul_(3)
    graph.replay()
    assert_right(captured)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize(("num_tokens", "hidden_size"), [(8200, 2056), (33000, 264)])
def test_quantize_fp8_of_many_rows(num_tokens: int, hidden_size: int, dtype: str) -> None:
    """Threads take several groups each, and warps a row; aligned, and not."""
    import torch

    length = num_tokens * hidden_size
    memory = torch.randn(length + 1, device="cuda").to(getattr(torch, dtype))
    for first in (0, 1):
        x = memory[first : first + length].view(num_tokens, hidden_size)
        for group in ("row", 128):
            expected = tessera.quantize_fp8(x.cpu(), group=group)
            for one, other in zip(tessera.quantize_fp8(x, group=group), expected, strict=True):
                assert torch.equal(one.cpu().view(torch.uint8), other.view(torch.uint8))


@pytest.mark.parametrize("num_tokens", [1, 8, 9, 64, 256, 257, 3000])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_select_and_align_eager_compiled_and_in_a_graph(dtype: str, num_tokens: int) -> None:
    import torch

    random = torch.Generator(device="cuda").manual_seed(0)
    logits = torch.randn((num_tokens, 128), generator=random, device="cuda")
    logits = logits.to(getattr(torch, dtype))
    options = {"top_k": 8, "block_size": 16, "renormalize": True}

    def assert_right(found: Any) -> None:
        for one, other in zip(
            found, tessera.select_and_align(logits.cpu(), **options), strict=True
        ):
            assert torch.equal(one.cpu(), other)
        assert tessera.select_and_align_contract_violations(logits, found, **options) == []

    assert_right(tessera.select_and_align(logits, **options))
    layer = lambda array: tessera.select_and_align(array, **options)  # noqa: E731
    assert_right(torch.compile(layer, fullgraph=True, backend="aot_eager")(logits))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = tessera.select_and_align(logits, **options)
    logits.neg_()
    graph.replay()
    assert_right(captured)
