"""Strict mode and statistics on a GPU: streams, graphs, and nothing waited for."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

import tessera
from cuda_calls import SHAPES, host_ids, options_of
from cuda_strict_calls import (
    MESSAGE,
    OPTIONS,
    call,
    calls_at_once,
    ids_on_device,
    memory_at_hand,
)
from tessera import strict

pytestmark = pytest.mark.usefixtures("memory_for_reports")


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


def test_check_waits_for_the_streams_of_calls_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    ids, kept = ids_on_device(bad=True), memory_at_hand()
    monkeypatch.setattr(strict, "_reports", strict._Reports())
    streams, busy = [torch.cuda.Stream() for _ in range(3)], torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(busy):
        torch.cuda._sleep(4_000_000_000)  # some two seconds
    tessera.align_block_size(ids, validate=True, **OPTIONS)  # the first, which takes memory
    for stream in streams * 2:
        with torch.cuda.stream(stream):
            torch.cuda._sleep(20_000_000)
            tessera.align_block_size(ids, validate=True, **OPTIONS)
    assert tessera.check(raise_invalid=False) == 7
    with pytest.raises(ValueError, match=MESSAGE):
        tessera.align_block_size(ids, validate="now", **OPTIONS)
    assert not busy.query()
    torch.cuda.synchronize()
    del kept


def test_a_captured_call_tells_nothing_before_its_first_replay() -> None:
    import torch

    ids = ids_on_device(bad=True)
    for _ in range(2):
        with pytest.raises(ValueError, match=MESSAGE):  # whose memory the captured call gets
            tessera.align_block_size(ids, validate="now", **OPTIONS)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            tessera.align_block_size(ids, validate=True, **OPTIONS)
        assert tessera.check() == 0
        graph.replay()
        assert tessera.check(raise_invalid=False) == 1


def test_calls_beside_a_thread_that_captures() -> None:
    """In a process that has not loaded JAX, as other tests of this one have.

    JAX's threads query events at any time, which breaks captures in torch's default mode, and JAX.
    """
    file = Path(__file__).with_name("calls_beside_a_capture.py")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert " passed" in run.stdout
    assert "skipped" not in run.stdout


def test_streams_of_cupy() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cupy = pytest.importorskip("cupy", reason="CuPy is not installed", exc_type=ImportError)
    ids = cupy.asarray(ids_on_device(bad=True).cpu().numpy())
    cupy.cuda.Device().synchronize()
    streams = [cupy.cuda.Stream(non_blocking=True) for _ in range(2)]
    for stream in streams:
        with stream:
            call(ids)
    assert tessera.check(raise_invalid=False) == 2
    for stream in streams:
        with stream:
            calls_at_once(ids)
            call(ids)
            stream.begin_capture()
            with pytest.raises(RuntimeError, match="expected no graph to be captured"):
                tessera.check()
            stream.end_capture()
            assert tessera.check(raise_invalid=False) == 1


@pytest.mark.parametrize("filtered_group", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_statistics_and_counts_as_on_the_host(
    shape: tuple[int, int, int, int], filtered_group: bool
) -> None:
    import torch

    host = host_ids(shape, 3, broken=True)
    options = options_of(shape) | {"filtered_group": filtered_group}
    expected = np.empty(6)
    tessera.align_block_size(host, statistics=expected, **options)
    num_invalid = np.count_nonzero((host < (-1 if filtered_group else 0)) | (host >= shape[1]))
    found = torch.empty(6, dtype=torch.float64, device="cuda")
    ids = torch.from_numpy(host).cuda()
    tessera.align_block_size(ids, statistics=found, validate=True, **options)
    assert tessera.check(raise_invalid=False) == num_invalid
    assert tessera.RoutingStatistics.of(found) == tessera.RoutingStatistics.of(expected)
    assert found.cpu().numpy().tobytes() == expected.tobytes()
