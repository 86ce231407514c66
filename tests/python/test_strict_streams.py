"""Strict mode on streams and in graphs: what it waits for, and what its memory holds afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

import tessera
from strict_device import (
    BAD,
    NUM_INVALID,
    Device,
    InterruptError,
    assert_sound,
    call,
    found,
    stand_in,
)
from tessera import _frameworks, strict
from tessera._device import HOST
from tessera._framework import Framework


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    with stand_in(monkeypatch) as device:
        yield device


def test_only_the_streams_of_the_calls_are_waited_for(device: Device) -> None:
    call()
    assert device.waited_for == ["first"]  # for the memory to be zero
    for stream in ("second", "third", "second"):
        device.stream = stream
        call()
    device.stream = "fourth"
    assert device.waited_for == ["first"]
    assert found() == 4 * NUM_INVALID
    assert device.waited_for[1:] == ["first", "second", "third", "fourth"]  # the last for zeroing
    del device.waited_for[:]
    assert found() == 0
    assert device.waited_for == []
    with pytest.raises(tessera.InvalidRoutingError):
        call(validate="now")
    assert set(device.waited_for) == {"fourth"}


def test_calls_on_a_stream_that_another_thread_captures_are_told_later(device: Device) -> None:
    call()
    device.stream = "second"
    call()
    device.capturing = {"first"}
    assert found() == NUM_INVALID
    assert found() == 0
    device.capturing = set()
    assert found() == NUM_INVALID


def test_nothing_is_lost_where_this_thread_captures(device: Device) -> None:
    call()
    device.capturing = {"first"}
    with pytest.raises(RuntimeError, match="check: expected no graph to be captured meanwhile"):
        tessera.check()
    device.stream = "second"
    assert found() == 0
    device.capturing = set()
    assert found() == NUM_INVALID


def assert_told_no_more(device: Device) -> None:
    """By calls that get the memory that was used last: a refused one, one in an unused graph."""
    assert_sound()
    with pytest.raises(ValueError, match="expert_map"):
        call(expert_map=BAD)
    assert found() == 0
    device.stream, device.capturing = "capture", {"capture"}
    call()
    device.stream, device.capturing = "first", set()
    assert found() == 0


def test_at_once_leaves_clean_memory(device: Device) -> None:
    with pytest.raises(tessera.InvalidRoutingError):
        call(validate="now")
    assert_told_no_more(device)


@pytest.mark.parametrize("name", ["wait_for", "zero"])
def test_at_once_leaves_clean_memory_after_an_exception(device: Device, name: str) -> None:
    call()
    assert found() == NUM_INVALID

    def interrupt(function: str) -> None:
        if function == name:
            device.before = lambda name: None
            raise InterruptError

    device.before = interrupt
    with pytest.raises(InterruptError):
        call(validate="now")
    assert_told_no_more(device)


@pytest.mark.parametrize("validate", [True, "now"])
def test_an_exception_after_a_call_leaves_clean_memory(device: Device, validate: Any) -> None:
    def interrupt() -> None:
        device.after_call = lambda: None
        raise InterruptError

    device.after_call = interrupt
    with pytest.raises(InterruptError):
        call(validate=validate)
    assert found() == NUM_INVALID  # the call has run
    assert_told_no_more(device)


def test_a_refused_call_waits_for_nothing(device: Device) -> None:
    call()
    del device.waited_for[:]
    with pytest.raises(ValueError, match="expert_map"):
        call(expert_map=BAD)
    assert device.waited_for == []
    assert found() == NUM_INVALID


def test_a_refused_call_of_a_graph_is_forgotten(device: Device) -> None:
    call()
    free = next(iter(strict._reports.free.values()))
    before = len(free)
    device.stream, device.capturing = "capture", {"capture"}

    def refuse() -> None:
        raise ValueError("align_block_size: refused")

    device.after_call = refuse
    with pytest.raises(ValueError, match="refused"):
        call()
    assert len(free) == before
    assert not strict._reports.captured


class Stream:
    """As torch's and CuPy's, of a runtime that notes what is waited for."""

    def __init__(self, runtime: Runtime, index: int, captures: bool = False) -> None:
        self.runtime, self.index, self.captures = runtime, index, captures

    def is_capturing(self) -> bool:
        assert self.runtime.device == self.index
        return self.captures

    def synchronize(self) -> None:
        assert not self.captures
        self.runtime.waited_for.append((self.runtime.device, self))


class Runtime:
    """A runtime with two devices; 0 is current. There is no way to wait for a whole device."""

    def __init__(self) -> None:
        self.device = 0
        self.streams = [Stream(self, 0), Stream(self, 1)]
        self.waited_for: list[tuple[int, Stream]] = []

    @contextmanager
    def current_device(self, index: int) -> Iterator[None]:
        before, self.device = self.device, index
        yield
        self.device = before

    @contextmanager
    def current_stream(self, stream: Stream) -> Iterator[None]:
        before, self.streams[stream.index] = self.streams[stream.index], stream
        with self.current_device(stream.index):
            yield
        self.streams[stream.index] = before

    def stream(self) -> Stream:
        return self.streams[self.device]


class Tensor:
    """Attributes of `torch.Tensor` that describe torch, and are not needed here."""

    numel = get_device = is_neg = __torch_dispatch__ = None


def torch_framework(runtime: Runtime) -> Framework:
    cuda = SimpleNamespace(
        device=runtime.current_device,
        stream=runtime.current_stream,
        current_device=lambda: runtime.device,
        current_stream=lambda index: runtime.streams[index],
        is_current_stream_capturing=lambda: runtime.stream().captures,
    )
    names = ("int8", "int32", "from_numpy", "unsafe_split_with_sizes")
    modes = SimpleNamespace(_len_torch_dispatch_stack=None, _is_tracing=None)
    torch = SimpleNamespace(cuda=cuda, Tensor=Tensor, _C=modes, **dict.fromkeys(names))
    return _frameworks._torch_framework(torch, Tensor)


def cupy_framework(runtime: Runtime) -> Framework:
    cuda = SimpleNamespace(Device=runtime.current_device, get_current_stream=runtime.stream)
    return _frameworks._cupy_framework(SimpleNamespace(cuda=cuda))


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("make", [torch_framework, cupy_framework])
def test_streams_of_torch_and_cupy(make: Callable[[Runtime], Framework], index: int) -> None:
    runtime = Runtime()
    framework = make(runtime)
    stream, other = runtime.streams[index], Stream(runtime, index, captures=True)
    assert framework.current_stream(index) is stream
    assert not framework.is_capturing(index)
    assert framework.wait_for(index, stream)
    assert not framework.wait_for(index, other)
    assert [one for _, one in runtime.waited_for] == [stream]
    runtime.streams[index] = other
    assert framework.is_capturing(index)
    assert not framework.is_capturing(1 - index)
    assert not framework.wait_for(index, other)
    assert framework.wait_for(index, stream)
    assert [one for _, one in runtime.waited_for] == [stream, stream]
    assert runtime.device == 0


def test_cupy_waits_and_zeroes_on_the_device_of_the_array() -> None:
    """CuPy's null stream belongs to the current device."""
    runtime = Runtime()
    framework = cupy_framework(runtime)
    framework.wait_for(1, runtime.streams[1])
    assert runtime.waited_for == [(1, runtime.streams[1])]
    devices = []

    class Array:
        device = runtime.current_device(1)

        def __setitem__(self, key: object, value: object) -> None:
            devices.append((runtime.device, key, value))

    framework.zero(Array())
    assert devices == [(1, slice(None), 0)]


def test_host_memory_needs_no_wait() -> None:
    framework = torch_framework(Runtime())
    assert framework.current_stream(HOST) is None
    assert framework.wait_for(HOST, None)
    assert not framework.is_capturing(HOST)
