"""`lora_align_block_size` on a GPU: the bits of the host's, streams, graphs, `out=`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tessera
from cuda_calls import assert_same, host_ids, shifted

# ((tokens, experts, top_k, block_size), adapters): one CTA per row and a cluster per row, fewer
# and more rows than there are multiprocessors, counters of many warps and of one.
SHAPES = [
    ((0, 8, 2, 16), 2),
    ((1, 64, 2, 16), 1),
    ((16, 256, 8, 16), 4),
    ((64, 256, 8, 16), 8),
    ((512, 128, 6, 64), 16),
    ((4096, 64, 2, 128), 1),
    ((4096, 64, 8, 100), 3),
    ((16384, 256, 8, 128), 8),
    ((2000, 8, 2, 16), 300),
    ((300, 14_000, 4, 8), 3),
]


def host_call(shape: tuple[Any, int], seed: int) -> tuple[list[Any], dict[str, Any]]:
    """The two inputs, both with broken values, and the options, all on the host."""
    (tokens, num_experts, _, block_size), max_loras = shape
    random = np.random.default_rng(seed)
    mapping = random.integers(-1, max_loras + 1, tokens, np.int32)
    if seed % 2:
        mapping.sort()
    options = {
        "block_size": block_size,
        "num_experts": num_experts,
        "max_loras": max_loras,
        "tail_expert": -1 - seed,
        "adapter_enabled": random.integers(0, 4, max_loras + 1, np.int32),
        "lora_ids": random.permutation(np.arange(-1, max_loras, dtype=np.int32)),
        "expert_map": None,
    }
    if seed % 3 == 1:
        options["expert_map"] = random.integers(-1, num_experts, num_experts, np.int32)
    if seed % 3 == 2:
        options["lora_ids"] = options["adapter_enabled"] = None
    return [host_ids(shape[0], seed, broken=seed % 2 == 1), mapping], options


def placed(value: Any) -> Any:
    import torch

    return torch.from_numpy(value).cuda() if isinstance(value, np.ndarray) else value


def on_device(inputs: list[Any], options: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    return [placed(array) for array in inputs], {k: placed(v) for k, v in options.items()}


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "int64"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bits_are_those_of_the_host(shape: tuple[Any, int], dtype: str) -> None:
    for seed in range(6):
        (topk_ids, mapping), options = host_call(shape, seed)
        inputs = [topk_ids.astype(dtype), mapping]
        expected = tessera.lora_align_block_size(*inputs, **options)
        device_inputs, device_options = on_device(inputs, options)
        found = tessera.lora_align_block_size(*device_inputs, **device_options)
        assert_same(found, expected)
        assert all(array.device == device_inputs[0].device for array in found)
        ids, mapping = device_inputs
        assert tessera.lora_contract_violations(ids, mapping, found, **device_options) == []


@pytest.mark.parametrize("shift", [1, 2, 3])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_outputs_at_any_address_and_longer_than_needed(shape: tuple[Any, int], shift: int) -> None:
    import torch

    inputs, options = host_call(shape, shift)
    expected = tessera.lora_align_block_size(*inputs, **options)
    lengths = [(part.shape[1] + 5) * shape[1] for part in expected[:2]] + [shape[1]]
    host_out = tuple(np.full(length, -77, np.int32) for length in lengths)
    outputs = [shifted(array, shift) for array in host_out]
    device_inputs = [shifted(array, shift)[0] for array in inputs]
    device_inputs[0] = device_inputs[0].reshape(inputs[0].shape)
    out = tuple(array for array, _ in outputs)
    _, device_options = on_device([], options)
    assert tessera.lora_align_block_size(*device_inputs, **device_options, out=out) is out
    assert_same(out, tessera.lora_align_block_size(*inputs, **options, out=host_out))
    for array, memory in outputs:
        around = torch.cat([memory[:shift], memory[shift + array.numel() :]])
        assert around.view(torch.uint8).eq(0xDE).all(), "memory beside an array was written"


def test_runs_on_the_current_stream() -> None:
    import torch

    (new, mapping), options = host_call(SHAPES[7], 2)
    topk_ids = torch.full(new.shape, -1, dtype=torch.int32, device="cuda")
    source = torch.from_numpy(new).pin_memory()
    (device_mapping,), device_options = on_device([mapping], options)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)  # some ten milliseconds: another stream would be first
        topk_ids.copy_(source, non_blocking=True)
        found = tessera.lora_align_block_size(topk_ids, device_mapping, **device_options)
        host = [array.cpu() for array in found]
    assert_same(host, tessera.lora_align_block_size(new, mapping, **options))


@pytest.mark.parametrize("with_out", [False, True])
@pytest.mark.parametrize("shape", [SHAPES[3], SHAPES[6], SHAPES[7], SHAPES[8]], ids=str)
def test_replays_of_a_graph(shape: tuple[Any, int], with_out: bool) -> None:
    import torch

    _, options = host_call(shape, 0)
    contents = [host_call(shape, seed)[0] for seed in range(8)]
    expected = [tessera.lora_align_block_size(*inputs, **options) for inputs in contents]
    inputs, device_options = on_device(contents[0], options)
    out = tessera.lora_align_block_size(*inputs, **device_options) if with_out else None
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        # Several in a row, each of which may begin before the one before it has ended.
        for _ in range(3):
            found = tessera.lora_align_block_size(*inputs, **device_options, out=out)
    for turn in range(100):
        index = (turn * 5 + turn // 8) % len(contents)
        for tensor, array in zip(inputs, contents[index], strict=True):
            tensor.copy_(torch.from_numpy(array))
        for array in found:
            array.fill_(-77)
        graph.replay()
        assert_same(found, expected[index])


def test_more_experts_than_shared_memory_holds_are_refused() -> None:
    import torch

    topk_ids = torch.zeros((4, 2), dtype=torch.int32, device="cuda")
    mapping = torch.zeros(4, dtype=torch.int32, device="cuda")
    out = tuple(torch.full((1 << 20,), -77, dtype=torch.int32, device="cuda") for _ in range(2))
    out = (*out, torch.full((2,), -77, dtype=torch.int32, device="cuda"))
    with pytest.raises(
        NotImplementedError,
        match=r"lora_align_block_size: num_experts: expected at most \d+ experts on cuda:0, "
        r"got 65536",
    ):
        tessera.lora_align_block_size(
            topk_ids, mapping, block_size=4, num_experts=65536, max_loras=2, out=out
        )
    assert all((array == -77).all() for array in out)


def test_arrays_in_two_places_are_refused() -> None:
    import torch

    topk_ids = torch.zeros((4, 2), dtype=torch.int32, device="cuda")
    mapping = torch.zeros(4, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"token_lora_mapping\.device: expected cuda:0, got cpu"):
        tessera.lora_align_block_size(topk_ids, mapping, block_size=4, num_experts=4, max_loras=2)
