"""Allocation by frameworks, as far as testable without a GPU: stand-ins are on the host."""

from __future__ import annotations

import contextlib
import sys
import types
from typing import Any

import numpy as np
import pytest

import tessera
from foreign_arrays import SpeaksDlpack
from tessera import _call, _frameworks
from tessera._device import HOST, cuda_index_of
from tessera._library import load
from tessera._op import Op
from tessera._outputs import ALIGN, CallSizes, call_sizes

IDS = np.array([[2, 0], [1, 2], [2, 3], [0, 9]], np.int32)
GOOD: dict[str, Any] = {"block_size": 4, "num_experts": 4}


EXPECTED = [array.tolist() for array in tessera.align_block_size(IDS, **GOOD)]


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_torch_outputs_are_cut_from_one_allocation(dtype: str) -> None:
    """As on a GPU: on the host NumPy allocates."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    topk_ids = torch.from_numpy(IDS.astype(dtype))
    ours = _frameworks.FRAMEWORKS[torch.Tensor]
    layout = call_sizes(ALIGN, topk_ids.numel(), (4, 4)).layout
    memory = ours.empty_int32(topk_ids, layout.length)
    assert memory.dtype == torch.int32
    memory.copy_(torch.arange(layout.length))
    found = ours.split(memory, layout)
    assert [len(array) for array in found] == [len(array) for array in EXPECTED]
    assert len({array.untyped_storage().data_ptr() for array in found}) == 1
    for array, part in zip(found, layout.slices, strict=True):
        assert array.tolist() == list(range(part.start, part.stop))
        array.fill_(5)


def test_outputs_of_torch_on_the_host_are_tensors_of_their_own_call() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    first, second = (tessera.align_block_size(torch.from_numpy(IDS), **GOOD) for _ in range(2))
    for array in first:
        array.fill_(5)
    assert [array.tolist() for array in second] == EXPECTED


class Recorder:
    """Stands for a function of the library on a device, where calls want `size` bytes.

    Keeps the workspaces that it ran with.
    """

    def __init__(self, function: Any, plain: Any, size: int) -> None:
        self.function, self.plain_function, self.size = function, plain, size
        self.workspaces: list[Any] = []

    def plain(self, *args: Any) -> int:
        if self.size == 0:
            self.workspaces.append(None)
            self.plain_function(*args)
        return self.size

    def __call__(self, workspace: Any, *args: Any) -> int:
        if workspace is None and self.size != 0:
            return self.size
        self.workspaces.append(workspace)
        self.function(workspace, *args)
        return 0


def on_a_device_with(
    monkeypatch: pytest.MonkeyPatch, kind: type, framework: _frameworks.Framework, size: int
) -> list[Recorder]:
    """Lets arrays of this type pass for some on device 3, where calls want `size` bytes."""
    monkeypatch.setitem(_frameworks.FRAMEWORKS, kind, framework)

    def sizes(op: Op, num_elements: int, options: tuple[Any, ...], cuda_index: int) -> CallSizes:
        assert cuda_index == 3
        return call_sizes(op, num_elements, options)._replace(workspace_bytes=size)

    monkeypatch.setattr(_call, "call_sizes", sizes)
    monkeypatch.setattr(ALIGN, "direct", lambda *arguments: None)
    call = Recorder(ALIGN.call, ALIGN.plain, size)
    joined = Recorder(ALIGN.joined, ALIGN.joined_plain, size)
    monkeypatch.setattr(ALIGN, "call", call)
    monkeypatch.setattr(ALIGN, "joined", joined)
    monkeypatch.setattr(ALIGN, "plain", call.plain)
    monkeypatch.setattr(ALIGN, "joined_plain", joined.plain)
    return [call, joined]


@pytest.mark.parametrize("size", [0, 100])
def test_workspace_comes_from_torch(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    framework = _frameworks.FRAMEWORKS[torch.Tensor].but(cuda_index=lambda array: 3)
    recorders = on_a_device_with(monkeypatch, torch.Tensor, framework, size)
    found = tessera.align_block_size(torch.from_numpy(IDS), **GOOD)
    assert [array.tolist() for array in found] == EXPECTED
    assert tessera.align_block_size(torch.from_numpy(IDS), **GOOD, out=found) is found
    for recorder in recorders:
        (workspace,) = recorder.workspaces
        if size == 0:
            assert workspace is None
        else:
            assert (workspace.dtype, workspace.numel()) == (torch.int8, size)


def test_outputs_that_never_change(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    ids = torch.from_numpy(IDS)
    found = tessera.align_block_size(ids, **GOOD)
    framework = _frameworks.FRAMEWORKS[torch.Tensor].but(immutable=True)
    monkeypatch.setitem(_frameworks.FRAMEWORKS, torch.Tensor, framework)
    monkeypatch.setattr(ALIGN, "direct", lambda *arguments: None)
    with pytest.raises(
        ValueError, match=r"^align_block_size: sorted_token_ids: expected a writable array"
    ):
        tessera.align_block_size(ids, **GOOD, out=found)


class CupyDevice:
    """Notes which device is current, as CuPy does."""

    id = 3
    current = 0

    def __enter__(self) -> None:
        CupyDevice.current = self.id

    def __exit__(self, *exception: object) -> None:
        CupyDevice.current = 0


class CupyArray(np.ndarray[Any, Any]):
    device: Any = CupyDevice()


def test_memory_and_stream_come_from_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int, Any]] = []

    def empty(length: int, dtype: Any) -> Any:
        asked.append((CupyDevice.current, length, dtype))
        return np.empty(length, dtype).view(CupyArray)

    cupy = types.SimpleNamespace(
        ndarray=CupyArray,
        empty=empty,
        int8=np.int8,
        int32=np.int32,
        cuda=types.SimpleNamespace(
            get_current_stream=lambda: types.SimpleNamespace(ptr=0x5E0 + CupyDevice.current)
        ),
    )
    streams: list[tuple[int, int]] = []

    def on_stream(index: int, stream: int) -> contextlib.AbstractContextManager[None]:
        streams.append((index, stream))
        return contextlib.nullcontext()

    monkeypatch.setattr(load(), "on_stream", on_stream)
    framework = _frameworks._cupy_framework(cupy)
    on_a_device_with(monkeypatch, CupyArray, framework, 100)
    found = tessera.align_block_size(IDS.view(CupyArray), **GOOD)
    assert [array.tolist() for array in found] == EXPECTED
    layout = call_sizes(ALIGN, IDS.size, (4, 4)).layout
    assert asked == [(3, 100, np.int8), (3, layout.length, np.int32)]
    assert streams == [(3, 0x5E3)]


def test_streams_reach_the_ffi() -> None:
    tvm_ffi = pytest.importorskip("tvm_ffi")
    device = tvm_ffi.device("cuda", 3)
    with load().on_stream(3, 0x5EA):
        assert tvm_ffi.get_raw_stream(device) == 0x5EA
    assert tvm_ffi.get_raw_stream(device) == 0


class Foreign:
    """Speaks DLPack, from a device where Tessera does not know whom to ask for memory."""

    def __dlpack__(self, **options: Any) -> Any:
        return IDS.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, 3)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_foreign_arrays_without_a_dtype(dtype: str) -> None:
    values = np.ones((2, 3, 4), dtype)
    found = tessera.moe_sum(SpeaksDlpack(values))
    assert found.dtype == values.dtype
    assert np.array_equal(found, np.full((2, 4), 3))


def test_foreign_arrays_on_a_device_need_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    framework = _frameworks.FRAMEWORKS[Foreign]
    out = tessera.align_block_size(IDS[::-1].copy(), **GOOD)
    on_a_device_with(monkeypatch, Foreign, framework, 0)
    with pytest.raises(
        TypeError,
        match=r"^align_block_size: topk_ids: expected an array of torch, CuPy or JAX where "
        r"memory on a device is to be allocated, got Foreign$",
    ):
        tessera.align_block_size(Foreign(), **GOOD)
    with pytest.raises(TypeError, match=r"^batched_align_block_size: expert_num_tokens: expected "):
        tessera.batched_align_block_size(Foreign(), max_tokens_per_batch=4, block_size=4)
    assert [a.tolist() for a in tessera.align_block_size(Foreign(), **GOOD, out=out)] == EXPECTED


class OnDevice:
    """A host array that claims to be on a device, and can be copied to the host."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, 0)

    def get(self) -> Any:
        return self.array


def test_the_checker_fetches_arrays() -> None:
    found = tessera.align_block_size(IDS, **GOOD)
    placed = tuple(map(OnDevice, found))
    assert tessera.contract_violations(OnDevice(IDS), placed, **GOOD) == []
    found.expert_ids[-1] = 0
    (violation,) = tessera.contract_violations(OnDevice(IDS), placed, **GOOD)
    assert violation.rule == "expert_tail"


@pytest.mark.parametrize("array", ["none", "no type"])
def test_unfinished_modules(array: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stubs, and what another thread is still importing: arrays of others are served beside it."""
    load()
    for name, kind in (("torch", "Tensor"), ("cupy", "ndarray"), ("jax", "Array")):
        module = types.ModuleType(name)
        if array == "no type":
            setattr(module, kind, None)
        monkeypatch.setitem(sys.modules, name, module)

    class Own(np.ndarray[Any, Any]):
        """A type that no call has seen."""

    class Foreign(SpeaksDlpack):
        """Another one, which is not NumPy's."""

    for topk_ids in (IDS.view(Own), Foreign(IDS)):
        found = tessera.align_block_size(topk_ids, **GOOD)
        assert [np.asarray(one).tolist() for one in found] == EXPECTED
    with pytest.raises(TypeError, match="expected an array that speaks DLPack, got list"):
        tessera.align_block_size([0], **GOOD)
    assert cuda_index_of("op", "cuda") == 0
    with pytest.raises(TypeError, match="device: expected a string, an integer"):
        cuda_index_of("op", None)


def test_names_of_devices() -> None:
    assert [cuda_index_of("op", name) for name in ("cpu", "cuda:0", "cuda:12", 5)] == [
        HOST,
        0,
        12,
        5,
    ]
    assert cuda_index_of("op", "cuda") == 0
    for name in ("gpu", "cuda:", "cuda:-1", "cuda:x", " cpu", "cpu:1", ""):
        with pytest.raises(ValueError, match=r"^op: device: expected cpu, cuda or cuda:N, got "):
            cuda_index_of("op", name)
    with pytest.raises(ValueError, match=r"^op: device: expected the number of a CUDA device, got"):
        cuda_index_of("op", -1)
    for thing in (None, 1.5, True, ["cuda"]):
        with pytest.raises(
            TypeError, match=r"^op: device: expected a string, an integer or a torch"
        ):
            cuda_index_of("op", thing)
    torch = pytest.importorskip("torch", reason="torch is not installed")
    assert cuda_index_of("op", torch.device("cpu")) == HOST
    assert cuda_index_of("op", torch.device("cuda", 2)) == 2


def test_warmup_of_the_host_and_of_nothing() -> None:
    tessera.warmup("cpu")
    with pytest.raises((ValueError, NotImplementedError), match=r"^warmup: device: expected one"):
        tessera.warmup("cuda:99")


def test_explain_on_a_device() -> None:
    names = {
        one.name.partition("/")[0] for one in tessera.explain(128, 64, 16, device="cpu") if one.name
    }
    assert names == {"cpu"}
    cuda = next(backend for backend in tessera.backends() if backend.name == "cuda")
    reports = tessera.explain(128, 64, 16, device="cuda")
    assert {one.name.partition("/")[0] for one in reports} == (
        {"cuda"} if cuda.available else set()
    )
    with pytest.raises(
        ValueError, match=r"^align_block_size: device: expected cpu, cuda or cuda:N"
    ):
        tessera.explain(128, 64, 16, device="tpu")
