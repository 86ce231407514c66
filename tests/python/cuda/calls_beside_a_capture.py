"""Strict mode while another thread captures a graph.

test_cuda_strict.py runs this file in a separate process.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import tessera
from cuda_calls import assert_same
from cuda_strict_calls import (
    OPTIONS,
    call,
    calls_at_once,
    ids_on_device,
    memory_at_hand,
)
from tessera import strict

pytestmark = pytest.mark.usefixtures("memory_for_reports")


@contextmanager
def neighbour_capturing(validate: bool, stream: Any = None) -> Iterator[None]:
    """Inside, another thread captures a graph in torch's default mode, on a separate stream.

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


def a_call_and_a_check(ids: Any) -> None:
    call(ids)
    assert tessera.check(raise_invalid=False) == 1


def more_calls_than_may_be_unread(ids: Any) -> None:
    for _ in range(2 * strict.MAX_UNREAD + 1):
        call(ids)
    assert tessera.check(raise_invalid=False) == 2 * strict.MAX_UNREAD + 1


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
