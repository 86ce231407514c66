"""`batched_align_block_size` on a GPU: the same bits as on the host, streams, graphs, `out=`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tessera
from cuda_calls import assert_same, shifted

# (batches, max_tokens_per_batch, block_size): one CTA, some, all; one scan of the counts, several.
SHAPES = [
    (0, 8, 4),
    (5, 0, 4),
    (1, 1, 1),
    (8, 64, 16),
    (32, 256, 64),
    (300, 33, 7),
    (256, 1024, 128),
    (512, 4096, 128),
    (20_000, 5, 1),
    (50_000, 3, 4),
]


def host_counts(shape: tuple[int, int, int], seed: int) -> Any:
    """int32[batches]; some lie outside [0, max_tokens_per_batch]."""
    batches, maximum, _ = shape
    random = np.random.default_rng(seed)
    return random.integers(-maximum // 8 - 1, maximum + maximum // 8 + 2, batches, np.int32)


def options_of(shape: tuple[int, int, int]) -> dict[str, Any]:
    return {"max_tokens_per_batch": shape[1], "block_size": shape[2]}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bits_are_those_of_the_host(shape: tuple[int, int, int]) -> None:
    import torch

    options = options_of(shape)
    for seed in range(5):
        counts = host_counts(shape, seed)
        placed = torch.from_numpy(counts).cuda()
        found = tessera.batched_align_block_size(placed, **options, tail_expert=-seed)
        expected = tessera.batched_align_block_size(counts, **options, tail_expert=-seed)
        assert_same(found, expected)
        assert all(array.device == placed.device for array in found)
        violations = tessera.batched_contract_violations(
            placed, found, **options, tail_expert=-seed
        )
        assert violations == []


@pytest.mark.parametrize("shift", [0, 1, 2, 3])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_outputs_at_any_address_and_longer_than_needed(
    shape: tuple[int, int, int], shift: int
) -> None:
    import torch

    counts = host_counts(shape, 9)
    expected = tessera.batched_align_block_size(counts, **options_of(shape))
    poison = [np.full(len(array) + 5 * (len(array) != 1), -77, np.int32) for array in expected[:2]]
    outputs = [shifted(array, shift) for array in [*poison, np.full(1, -77, np.int32)]]
    placed, _ = shifted(counts, shift)
    out = tuple(array for array, _ in outputs)
    assert tessera.batched_align_block_size(placed, **options_of(shape), out=out) is out
    host_out = tuple(np.empty(array.numel(), np.int32) for array in out)
    assert_same(out, tessera.batched_align_block_size(counts, **options_of(shape), out=host_out))
    for array, memory in outputs:
        around = torch.cat([memory[:shift], memory[shift + array.numel() :]])
        assert around.view(torch.uint8).eq(0xDE).all(), "memory beside an array was written"


def test_runs_on_the_current_stream() -> None:
    import torch

    shape = (256, 1024, 128)
    new = host_counts(shape, 1)
    counts = torch.zeros(len(new), dtype=torch.int32, device="cuda")
    source = torch.from_numpy(new).pin_memory()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)  # some ten milliseconds: another stream would be first
        counts.copy_(source, non_blocking=True)
        found = tessera.batched_align_block_size(counts, **options_of(shape))
        host = [array.cpu() for array in found]
    assert_same(host, tessera.batched_align_block_size(new, **options_of(shape)))


@pytest.mark.parametrize("with_out", [False, True])
@pytest.mark.parametrize("shape", [(8, 64, 16), (256, 1024, 128), (20_000, 5, 1)], ids=str)
def test_replays_of_a_graph(shape: tuple[int, int, int], with_out: bool) -> None:
    import torch

    contents = [host_counts(shape, seed) for seed in range(8)]
    expected = [tessera.batched_align_block_size(c, **options_of(shape)) for c in contents]
    counts = torch.from_numpy(contents[0]).cuda()
    out = tessera.batched_align_block_size(counts, **options_of(shape)) if with_out else None
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        # Several in a row, each of which may begin before the one before it has ended.
        for _ in range(3):
            found = tessera.batched_align_block_size(counts, **options_of(shape), out=out)
    for turn in range(200):
        index = (turn * 5 + turn // 8) % len(contents)
        counts.copy_(torch.from_numpy(contents[index]))
        for array in found:
            array.fill_(-77)
        graph.replay()
        assert_same(found, expected[index])


def test_more_batches_than_shared_memory_holds_are_refused() -> None:
    import torch

    counts = torch.zeros(100_000, dtype=torch.int32, device="cuda")
    with pytest.raises(
        NotImplementedError,
        match=r"batched_align_block_size: expert_num_tokens\.num_elements: expected at most \d+ "
        r"batches, a word of shared memory each, on cuda:0, got 100000",
    ):
        tessera.batched_align_block_size(counts, max_tokens_per_batch=4, block_size=4)


def test_arrays_in_two_places_are_refused() -> None:
    import torch

    counts = torch.zeros(4, dtype=torch.int32, device="cuda")
    out = tuple(torch.zeros(16, dtype=torch.int32) for _ in range(3))
    with pytest.raises(ValueError, match=r"sorted_token_ids\.device: expected cuda:0, got cpu"):
        tessera.batched_align_block_size(counts, max_tokens_per_batch=4, block_size=4, out=out)
