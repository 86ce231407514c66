"""Streams, threads, graphs, devices: calls that overlap, are replayed, or run elsewhere."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import Any

import numpy as np
import pytest

import tessera
from cuda_calls import SHAPES, assert_same, host_ids, options_of

# Small enough for many inputs, with and without workspace.
REPLAYED = [(16, 256, 8, 16), (4096, 64, 2, 128), (16384, 256, 8, 128), (65536, 8, 2, 128)]


@pytest.mark.parametrize("shape", SHAPES[1:], ids=str)
def test_runs_on_the_current_stream(shape: tuple[int, int, int, int]) -> None:
    import torch

    new = host_ids(shape, 1)
    topk_ids = torch.full(new.shape, -1, dtype=torch.int32, device="cuda")
    source = torch.from_numpy(new).pin_memory()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)  # some ten milliseconds: another stream would be first
        topk_ids.copy_(source, non_blocking=True)
        found = tessera.align_block_size(topk_ids, **options_of(shape))
        host = [array.cpu() for array in found]
    assert_same(host, tessera.align_block_size(new, **options_of(shape)))


def test_eight_streams_and_four_threads_at_once() -> None:
    import torch

    shapes = [SHAPES[2], SHAPES[5], SHAPES[6], SHAPES[8], SHAPES[9]]
    inputs = [(shape, host_ids(shape, seed)) for shape in shapes for seed in (1, 2)]
    expected = [tessera.align_block_size(host, **options_of(shape)) for shape, host in inputs]
    placed = [torch.from_numpy(host).cuda() for _, host in inputs]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in range(8)]
    failures: list[str] = []

    def work(first: int) -> None:
        try:
            for turn in range(10):
                kept = []
                for number, stream in enumerate(streams):
                    index = (first + turn + number) % len(inputs)
                    with torch.cuda.stream(stream):
                        options = options_of(inputs[index][0])
                        kept.append((index, tessera.align_block_size(placed[index], **options)))
                torch.cuda.synchronize()
                for index, found in kept:
                    assert_same(found, expected[index])
        except BaseException as error:
            failures.append(repr(error))

    threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


@pytest.mark.parametrize("with_out", [False, True])
@pytest.mark.parametrize("shape", REPLAYED, ids=str)
def test_a_thousand_replays_of_a_graph(shape: tuple[int, int, int, int], with_out: bool) -> None:
    import torch

    contents = [host_ids(shape, seed, broken=seed % 2 == 1) for seed in range(8)]
    expected = [
        [torch.from_numpy(array).cuda() for array in tessera.align_block_size(ids, **options)]
        for options in [options_of(shape)]
        for ids in contents
    ]
    placed = [torch.from_numpy(ids).cuda() for ids in contents]
    topk_ids = placed[0].clone()
    out = tessera.align_block_size(topk_ids, **options_of(shape)) if with_out else None
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = tessera.align_block_size(topk_ids, **options_of(shape), out=out)
    for turn in range(1000):
        index = (turn * 5 + turn // 8) % len(contents)
        topk_ids.copy_(placed[index])
        for array in found:
            array.fill_(-77)
        graph.replay()
        same = [torch.equal(*pair) for pair in zip(found, expected[index], strict=True)]
        assert all(same), f"replay {turn}: {same}"


def test_several_calls_in_one_graph() -> None:
    import torch

    shapes = [SHAPES[2], SHAPES[8], SHAPES[6], SHAPES[9]]
    host = [host_ids(shape, 7) for shape in shapes]
    placed = [torch.from_numpy(ids).cuda() for ids in host]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = [
            tessera.align_block_size(ids, **options_of(shape))
            for ids, shape in zip(placed, shapes, strict=True)
        ]
    for _ in range(20):
        graph.replay()
    torch.cuda.synchronize()
    for outputs, ids, shape in zip(found, host, shapes, strict=True):
        assert_same(outputs, tessera.align_block_size(ids, **options_of(shape)))


CAPTURE_FIRST = """
import torch, tessera
{prelude}
topk_ids = torch.arange(4096, dtype=torch.int32, device="cuda") % 64
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    found = tessera.align_block_size(topk_ids, block_size=128, num_experts=64)
graph.replay()
print(int(found.num_tokens_post_pad), found.sorted_token_ids[:3].tolist())
"""


@pytest.mark.parametrize("prelude", ["", "tessera.warmup()"])
def test_the_first_call_of_a_process_may_be_captured(prelude: str) -> None:
    code = CAPTURE_FIRST.format(prelude=prelude)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "8192 [0, 64, 128]\n", done.stderr


def test_a_device_that_is_not_the_current_one() -> None:
    import torch

    if torch.cuda.device_count() < 2:
        pytest.skip("no second CUDA device")
    torch.cuda.set_device(0)  # JAX leaves the device of its last call
    for shape in SHAPES:
        host = host_ids(shape, 8)
        topk_ids = torch.from_numpy(host).to("cuda:1")
        found = tessera.align_block_size(topk_ids, **options_of(shape))
        assert all(array.device == topk_ids.device for array in found)
        assert torch.cuda.current_device() == 0
        assert_same(found, tessera.align_block_size(host, **options_of(shape)))
        out: Any = tuple(torch.empty_like(array) for array in found)
        tessera.align_block_size(topk_ids, **options_of(shape), out=out)
        assert_same(out, tessera.align_block_size(host, **options_of(shape)))
    tessera.warmup("cuda:1")
    assert torch.cuda.current_device() == 0


def test_arrays_on_two_devices_are_refused() -> None:
    import torch

    if torch.cuda.device_count() < 2:
        pytest.skip("no second CUDA device")
    topk_ids = torch.zeros(4, dtype=torch.int32, device="cuda:0")
    elsewhere = torch.zeros(3, dtype=torch.int32, device="cuda:1")
    with pytest.raises(
        ValueError, match=r"align_block_size: expert_map\.device: expected cuda:0, got cuda:1"
    ):
        tessera.align_block_size(topk_ids, block_size=4, num_experts=3, expert_map=elsewhere)
    np.testing.assert_array_equal(elsewhere.cpu(), np.zeros(3))
