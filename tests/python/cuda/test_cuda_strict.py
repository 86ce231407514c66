"""Strict mode and statistics on a GPU: streams, graphs, and nothing waited for."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

import tessera
from cuda_calls import SHAPES, host_ids, options_of

SHAPE = (64, 256, 8, 16)
OPTIONS = options_of(SHAPE)
MESSAGE = (
    r"topk_ids\[17\]: expected an id in \[0, 256\), got 999 \(token 2, slot 1; 1 invalid id in"
)


def ids_on_device(bad: bool) -> Any:
    import torch

    ids = host_ids(SHAPE, 1).copy()
    if bad:
        ids.reshape(-1)[17] = 999
    return torch.from_numpy(ids).cuda()


@pytest.fixture(autouse=True)
def memory_for_reports() -> None:
    """A validated call, as there has to be one before a graph is captured; and nothing unread."""
    tessera.align_block_size(ids_on_device(bad=False), validate=True, **OPTIONS)
    tessera.check(raise_invalid=False)


def test_at_once_and_later() -> None:
    for ids in (ids_on_device(bad=True), ids_on_device(bad=True).long()):
        with pytest.raises(ValueError, match=MESSAGE):
            tessera.align_block_size(ids, validate="now", **OPTIONS)
        tessera.align_block_size(ids, validate=True, **OPTIONS)
        with pytest.raises(ValueError, match=MESSAGE):
            tessera.check()
        assert tessera.check() == 0


def test_a_validated_call_waits_for_nothing() -> None:
    import torch

    ids = ids_on_device(bad=True)
    torch.cuda.synchronize()
    with warnings.catch_warnings():  # that it finds most operations that wait, not all
        warnings.simplefilter("ignore")
        torch.cuda.set_sync_debug_mode("error")
    try:
        stream = torch.cuda.current_stream()
        torch.cuda._sleep(200_000_000)
        tessera.align_block_size(ids, validate=True, **OPTIONS)
        assert not stream.query()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert tessera.check(raise_invalid=False) == 1


def test_check_waits_for_every_stream() -> None:
    import torch

    ids = ids_on_device(bad=True)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        tessera.align_block_size(ids, validate=True, **OPTIONS)
    assert tessera.check(raise_invalid=False) == 1


def test_a_graph_reports_at_every_replay_whatever_its_pool_is_used_for() -> None:
    import torch

    ids, pool = ids_on_device(bad=False), torch.cuda.graph_pool_handle()
    bad, good = ids_on_device(bad=True), ids_on_device(bad=False)
    torch.cuda.synchronize()
    first, second = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(first, pool=pool):
        scratch = torch.full((1 << 16,), -1, device="cuda")
        del scratch
    with torch.cuda.graph(second, pool=pool):
        tessera.align_block_size(ids, validate=True, **OPTIONS)
        with pytest.raises(ValueError, match="validate: expected a bool while a graph is being"):
            tessera.align_block_size(ids, validate="now", **OPTIONS)
    assert tessera.check() == 0
    for turn in range(3):
        ids.copy_(bad)
        second.replay()
        first.replay()
        with pytest.raises(ValueError, match=MESSAGE):
            tessera.check()
        ids.copy_(good)
        if turn > 0:
            second.replay()
        first.replay()
        assert tessera.check() == 0


@pytest.mark.parametrize("filtered_group", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_statistics_and_counts_as_on_the_host(
    shape: tuple[int, int, int, int], filtered_group: bool
) -> None:
    import torch

    host = host_ids(shape, 3, broken=True)
    options = options_of(shape) | {"filtered_group": filtered_group}
    expected = np.empty(6)
    tessera.align_block_size(host, statistics=expected, validate=True, **options)
    num_invalid = tessera.check(raise_invalid=False)
    found = torch.empty(6, dtype=torch.float64, device="cuda")
    ids = torch.from_numpy(host).cuda()
    tessera.align_block_size(ids, statistics=found, validate=True, **options)
    assert tessera.check(raise_invalid=False) == num_invalid
    assert tessera.RoutingStatistics.of(found) == tessera.RoutingStatistics.of(expected)
    assert found.cpu().numpy().tobytes() == expected.tobytes()
