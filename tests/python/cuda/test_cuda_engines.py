"""The ops of vLLM and SGLang as Tessera serves them, on a GPU and in a captured graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

import tessera.sglang.ops  # noqa: E402
import tessera.vllm.ops  # noqa: E402

E, B, NUM_LORAS = 64, 16, 3


def _int32(*values: int) -> Any:
    return torch.tensor(values, dtype=torch.int32)


def _garbage(*lengths: int) -> tuple[Any, ...]:
    return tuple(torch.full((length,), 12345, dtype=torch.int32) for length in lengths)


def _ids(num_tokens: int, seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(E, (num_tokens, 8), dtype=torch.int32, generator=generator)


def _vllm(num_tokens: int, seed: int) -> tuple[Any, ...]:
    num_slots = num_tokens * 8 + E * (B - 1)
    out = _garbage(num_slots, -(-num_slots // B), 1)
    return (_ids(num_tokens, seed), E, B, *out)


def _mapped(num_tokens: int, seed: int) -> tuple[Any, ...]:
    expert_map = torch.where(torch.arange(E) % 4 == 1, torch.arange(E) // 4, -1).int()
    return (*_vllm(num_tokens, seed), expert_map)


def _batched(num_tokens: int, seed: int) -> tuple[Any, ...]:
    room = -(-num_tokens // B) * B
    counts = torch.arange(E, dtype=torch.int32) * (seed + 1) % (num_tokens + 1)
    return (num_tokens, B, counts, *_garbage(E * room, E * room // B, 1))


def _lora(num_tokens: int, seed: int) -> tuple[Any, ...]:
    topk_ids = _ids(num_tokens, seed)
    num_slots = topk_ids.numel() + E * (B - 1)
    num_blocks = -(-num_slots // B)
    adapters = torch.arange(num_tokens, dtype=torch.int32) % (NUM_LORAS + 1) - 1
    out = _garbage(NUM_LORAS * num_slots, NUM_LORAS * num_blocks, NUM_LORAS)
    sizes = (E, B, NUM_LORAS, num_slots, num_blocks)
    return (topk_ids, adapters, *sizes, *out, _int32(1, 0, 1, 1), _int32(-1, 0, 2, 1))


def _sglang(num_tokens: int, seed: int) -> tuple[Any, ...]:
    topk_ids = _ids(num_tokens, seed)
    topk_ids[seed::3] = -1
    num_slots = topk_ids.numel() + (E + 1) * (B - 1)
    out = _garbage(num_slots, -(-num_slots // B), 1)
    return (topk_ids, E + 1, B, *out, _garbage(E + 2)[0], True)


CASES = [
    pytest.param(tessera.vllm.ops.moe_align_block_size, _vllm, id="vllm"),
    pytest.param(tessera.vllm.ops.moe_align_block_size, _mapped, id="vllm, mapped"),
    pytest.param(tessera.vllm.ops.batched_moe_align_block_size, _batched, id="vllm, batched"),
    pytest.param(tessera.vllm.ops.moe_lora_align_block_size, _lora, id="vllm, lora"),
    pytest.param(tessera.sglang.ops.moe_align_block_size, _sglang, id="sglang"),
]


def _tensors(arguments: tuple[Any, ...]) -> list[Any]:
    return [value for value in arguments if isinstance(value, torch.Tensor)]


def _lists(arguments: tuple[Any, ...]) -> list[Any]:
    return [tensor.tolist() for tensor in _tensors(arguments)]


@pytest.mark.parametrize("num_tokens", [1, 300, 9000])
@pytest.mark.parametrize(("op", "arguments_of"), CASES)
def test_op_on_a_gpu_writes_what_it_writes_on_the_host(
    op: Callable[..., None], arguments_of: Callable[[int, int], tuple[Any, ...]], num_tokens: int
) -> None:
    host = arguments_of(num_tokens, 0)
    device = tuple(each.cuda() if isinstance(each, torch.Tensor) else each for each in host)
    op(*host)
    op(*device)
    assert _lists(device) == _lists(host)


@pytest.mark.parametrize(("op", "arguments_of"), CASES)
def test_captured_op_reads_the_ids_of_each_replay(
    op: Callable[..., None], arguments_of: Callable[[int, int], tuple[Any, ...]]
) -> None:
    first, second = arguments_of(300, 0), arguments_of(300, 1)
    device = tuple(each.cuda() if isinstance(each, torch.Tensor) else each for each in first)
    op(*device)  # what is done once in a process is done before the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        op(*device)
    for target, source in zip(_tensors(device), _tensors(second), strict=True):
        target.copy_(source)
    graph.replay()
    op(*second)
    assert _lists(device) == _lists(second)
