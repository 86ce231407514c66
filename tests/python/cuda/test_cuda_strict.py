"""Strict mode and statistics on a GPU: streams, graphs, and nothing waited for."""

from __future__ import annotations

import gc
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import tessera
from cuda_calls import SHAPES, assert_same, host_ids, options_of
from tessera import strict

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


def memory_at_hand() -> list[Any]:
    """What to keep, so that this thread's next arrays need no memory from the driver.

    To ask for it breaks other threads' captures, at whose beginning torch gives back whatever
    memory is not partly in use.
    """
    import torch

    blocks = [torch.empty(1 << 18, dtype=torch.uint8, device="cuda") for _ in range(64)]
    return blocks[::2]


@contextmanager
def nothing_of_jax_freed() -> Iterator[None]:
    """Inside, no array of JAX that an earlier test left behind is freed.

    To free one makes a thread of JAX query events: that breaks captures in torch's default mode,
    and leaves JAX with a stream in error.
    """
    gc.collect()
    if jax := sys.modules.get("jax"):
        jax.device_put(0).block_until_ready()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextmanager
def neighbour_capturing(validate: bool, stream: Any = None) -> Iterator[None]:
    """Inside, another thread captures a graph in torch's default mode, on a stream of its own.

    The graph holds one call from before the block and one from after it. Afterwards it is replayed.
    """
    import torch

    ids, kept = ids_on_device(bad=True), memory_at_hand()
    expected = tessera.align_block_size(ids.cpu().numpy(), **OPTIONS)
    stream = stream or torch.cuda.Stream()
    graph = torch.cuda.CUDAGraph()
    has_begun, may_end = threading.Event(), threading.Event()
    outputs: list[Any] = []
    failures: list[str] = []

    def capture() -> None:
        try:
            with torch.cuda.graph(graph, stream=stream):
                outputs.append(tessera.align_block_size(ids, validate=validate, **OPTIONS))
                has_begun.set()
                may_end.wait(60)
                outputs.append(tessera.align_block_size(ids, validate=validate, **OPTIONS))
        except Exception as error:
            failures.append(repr(error))
        finally:
            has_begun.set()

    torch.cuda.synchronize()
    thread = threading.Thread(target=capture)
    with nothing_of_jax_freed():
        thread.start()
        has_begun.wait(60)
        try:
            yield
        finally:
            may_end.set()
            thread.join()
    assert failures == []
    for _ in range(3):
        for output in outputs:
            for array in output:
                array.fill_(-77)
        graph.replay()
        for output in outputs:
            assert_same(output, expected)
    del kept


def call(ids: Any) -> None:
    tessera.align_block_size(ids, validate=True, **OPTIONS)


def a_call_and_a_check(ids: Any) -> None:
    call(ids)
    assert tessera.check(raise_invalid=False) == 1


def more_calls_than_may_be_unread(ids: Any) -> None:
    for _ in range(2 * strict.MAX_UNREAD + 1):
        call(ids)
    assert tessera.check(raise_invalid=False) == 2 * strict.MAX_UNREAD + 1


def calls_at_once(ids: Any) -> None:
    for _ in range(3):
        with pytest.raises(ValueError, match=MESSAGE):
            tessera.align_block_size(ids, validate="now", **OPTIONS)
    assert tessera.check() == 0


def checks(ids: Any) -> None:
    for expected in (0, 1, 1):
        assert tessera.check(raise_invalid=False) == expected
        call(ids)
    assert tessera.check(raise_invalid=False) == 1


@pytest.mark.parametrize("validate", [False, True])
@pytest.mark.parametrize(
    "work", [a_call_and_a_check, more_calls_than_may_be_unread, calls_at_once, checks]
)
def test_a_neighbour_captures_a_graph(
    work: Callable[[Any], None], validate: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`validate`: whether the calls of the graph are validated, too."""
    ids = ids_on_device(bad=True)
    monkeypatch.setattr(strict, "_reports", strict._Reports())
    if validate:  # else the calls below are the first, which take memory
        call(ids_on_device(bad=False))
    with neighbour_capturing(validate):
        work(ids)
    assert tessera.check(raise_invalid=False) == 2 * validate


def test_a_neighbour_captures_on_the_stream_of_an_unread_call() -> None:
    import torch

    ids, stream = ids_on_device(bad=True), torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        call(ids)
    with neighbour_capturing(False, stream):
        assert tessera.check() == 0
        call(ids)
        assert tessera.check(raise_invalid=False) == 1
    assert tessera.check(raise_invalid=False) == 1


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
    tessera.align_block_size(host, statistics=expected, validate=True, **options)
    num_invalid = tessera.check(raise_invalid=False)
    found = torch.empty(6, dtype=torch.float64, device="cuda")
    ids = torch.from_numpy(host).cuda()
    tessera.align_block_size(ids, statistics=found, validate=True, **options)
    assert tessera.check(raise_invalid=False) == num_invalid
    assert tessera.RoutingStatistics.of(found) == tessera.RoutingStatistics.of(expected)
    assert found.cpu().numpy().tobytes() == expected.tobytes()
