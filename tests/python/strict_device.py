"""A stand-in for a device, and calls on it in strict mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import tessera
from tessera import strict
from tessera._frameworks import FRAMEWORKS

OPTIONS: dict[str, Any] = {"block_size": 4, "num_experts": 64}
BAD = np.array([[0, 1], [99, 2], [-1, 63]], np.int32)
NUM_INVALID = 2


class InterruptError(Exception):
    """The exception of a signal handler."""


class Device:
    """A device with streams and graphs, which NumPy's arrays seem to be on.

    Calls run at once. What is captured runs never: as if the graph were not replayed.
    """

    def __init__(self) -> None:
        self.stream = "first"
        self.capturing: set[str] = set()  # streams
        self.waited_for: list[str] = []
        self.before: Callable[[str], None] = lambda name: None  # every function that strict calls
        self.after_call: Callable[[], None] = lambda: None
        self.framework = FRAMEWORKS[np.ndarray].but(
            is_capturing=self.is_capturing,
            current_stream=self.current_stream,
            wait_for=self.wait_for,
            zero=self.zero,
            launch=self.launch,
        )

    def is_capturing(self, cuda_index: int) -> bool:
        self.before("is_capturing")
        return self.stream in self.capturing

    def current_stream(self, cuda_index: int) -> str:
        self.before("current_stream")
        return self.stream

    def wait_for(self, cuda_index: int, stream: str) -> bool:
        self.before("wait_for")
        if stream in self.capturing:
            return False
        self.waited_for.append(stream)
        return True

    def zero(self, array: Any) -> None:
        self.before("zero")
        array[:] = 0

    def launch(self, like: Any, call: Callable[[], object]) -> None:
        if self.stream not in self.capturing:
            call()
        self.after_call()


def defer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let calls with NumPy's arrays report later, as calls on a stream of a device do."""
    monkeypatch.setattr(strict, "_reports", strict._Reports())
    streamed = FRAMEWORKS[np.ndarray].but(current_stream=lambda index: "first")
    monkeypatch.setitem(FRAMEWORKS, np.ndarray, streamed)


@contextmanager
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    """One, and nothing reported yet."""
    device = Device()
    monkeypatch.setattr(strict, "_reports", strict._Reports())
    monkeypatch.setitem(FRAMEWORKS, np.ndarray, device.framework)
    yield device
    assert_sound()


def call(**options: Any) -> None:
    tessera.align_block_size(BAD, **{"validate": True, **options}, **OPTIONS)


def found() -> int:
    return tessera.check(raise_invalid=False)


def assert_sound() -> None:
    """No memory belongs to two reports, and nothing is reported where none is."""
    free = [row for rows in strict._reports.free.values() for row in rows]
    used = [report.row for report in (*strict._reports.submitted, *strict._reports.captured)]
    rows = [(id(row.memory), row.number) for row in free + used]
    assert len(rows) == len(set(rows))
    assert not any(row.array[[0, 3]].any() for row in free)
