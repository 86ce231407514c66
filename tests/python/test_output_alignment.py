"""Each output begins at a multiple of 16 bytes, of 128 within an allocation, whatever the shape."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tessera
from tessera import _framework, _frameworks
from tessera._outputs import ALIGN, Layout, call_sizes, layout_of

PROMISED = 16
WITHIN_ALLOCATION = 128
SIZES = st.integers(0, 140)
COUNTS = st.integers(1, 70)


class Foreign:
    """An array of a framework that Tessera does not know."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)


class ForeignNamespace(Foreign):
    """The same with a namespace of the array API."""

    def __array_namespace__(self) -> Any:
        return SimpleNamespace(from_dlpack=ForeignNamespace)


def _torch(array: Any) -> Any:
    return pytest.importorskip("torch", reason="torch is not installed").from_numpy(array)


def _jax(array: Any) -> Any:
    return pytest.importorskip("jax", reason="JAX is not installed").numpy.asarray(array)


FRAMEWORKS: dict[str, Callable[[Any], Any]] = {
    "numpy": np.asarray,
    "torch": _torch,
    "jax": _jax,
    "foreign": Foreign,
    "foreign namespace": ForeignNamespace,
}
# JAX compiles little programs for every shape.
FAST = [name for name in FRAMEWORKS if name != "jax"]


def address_of(array: Any) -> int:
    if isinstance(array, np.ndarray):
        return int(array.ctypes.data)
    if isinstance(array, ForeignNamespace):
        return address_of(np.from_dlpack(array.array))
    pointer = array.data_ptr if hasattr(array, "data_ptr") else array.unsafe_buffer_pointer
    return int(pointer())


def lengths_of(arrays: Any) -> list[int]:
    return [int(np.prod(getattr(array, "shape", None) or array.array.shape)) for array in arrays]


def assert_aligned(blocks: Any) -> None:
    lengths = lengths_of(blocks)
    begins = [address_of(array) for array in blocks]
    for begin, length in zip(begins, lengths, strict=True):
        assert length == 0 or begin % PROMISED == 0, (begins, lengths)


@pytest.mark.parametrize("framework", FAST)
@settings(deadline=None)
@given(num_ids=SIZES, num_experts=COUNTS, block_size=COUNTS, pads=st.booleans())
def test_align(framework: str, num_ids: int, num_experts: int, block_size: int, pads: bool) -> None:
    ids = np.arange(num_ids, dtype=np.int32) % num_experts
    options: dict[str, Any] = {
        "num_experts": num_experts,
        "block_size": block_size,
        "pad_sorted_ids": pads,
    }
    found = tessera.align_block_size(FRAMEWORKS[framework](ids), **options)
    assert_aligned(found)
    capacity = num_ids + min(num_ids, num_experts) * (block_size - 1)
    num_blocks = -(-capacity // block_size)
    assert lengths_of(found) == [num_blocks * block_size if pads else capacity, num_blocks, 1]
    arrays = [getattr(array, "array", array) for array in found]
    assert tessera.contract_violations(ids, tuple(arrays), **options) == []


@pytest.mark.parametrize("framework", FAST)
@settings(deadline=None)
@given(counts=st.lists(st.integers(0, 40), max_size=9), most=st.integers(0, 40), block_size=COUNTS)
def test_batched(framework: str, counts: list[int], most: int, block_size: int) -> None:
    array = np.array(counts, np.int32)
    options: dict[str, Any] = {"max_tokens_per_batch": most, "block_size": block_size}
    found = tessera.batched_align_block_size(FRAMEWORKS[framework](array), **options)
    assert_aligned(found)
    num_blocks = -(-most // block_size) * len(counts)
    assert lengths_of(found) == [num_blocks * block_size, num_blocks, 1]


@pytest.mark.parametrize("framework", ["numpy", "torch"])
@settings(deadline=None)
@given(num_tokens=st.integers(0, 30), num_experts=COUNTS, block_size=COUNTS, rows=st.integers(1, 5))
def test_lora(
    framework: str, num_tokens: int, num_experts: int, block_size: int, rows: int
) -> None:
    make = FRAMEWORKS[framework]
    ids = make(np.arange(2 * num_tokens, dtype=np.int32).reshape(-1, 2) % num_experts)
    mapping = make(np.arange(num_tokens, dtype=np.int32) % rows)
    options: dict[str, Any] = {
        "num_experts": num_experts,
        "block_size": block_size,
        "max_loras": rows,
    }
    found = tessera.lora_align_block_size(ids, mapping, **options)
    assert_aligned(found)
    capacity = 2 * num_tokens + min(2 * num_tokens, num_experts) * (block_size - 1)
    shapes = [(rows, capacity), (rows, -(-capacity // block_size)), (rows,)]
    assert [tuple(array.shape) for array in found] == shapes
    assert tessera.lora_contract_violations(ids, mapping, found, **options) == []


@pytest.mark.parametrize(("num_ids", "num_experts"), [(0, 3), (3, 5), (65, 7), (128, 9)])
def test_jax(num_ids: int, num_experts: int) -> None:
    ids = _jax(np.arange(num_ids, dtype=np.int32) % num_experts)
    assert_aligned(tessera.align_block_size(ids, num_experts=num_experts, block_size=5))


@settings(deadline=None)
@given(num_ids=SIZES, num_experts=COUNTS, block_size=COUNTS)
def test_parts_of_one_allocation(num_ids: int, num_experts: int, block_size: int) -> None:
    layout = call_sizes(ALIGN, num_ids, (block_size, num_experts)).layout
    memory = np.arange(layout.length, dtype=np.int32)
    slots, blocks, totals = (part.tolist() for part in _framework.slices(memory, layout))
    assert (len(slots), len(blocks), len(totals)) == (*layout.inner_lengths, 1)
    for part in (slots, blocks, totals):
        assert not part or 4 * part[0] % WITHIN_ALLOCATION == 0
    joined = [*slots, *blocks, *totals]
    assert joined == sorted(set(joined))
    # What torch and JAX cut it into.
    assert sum(layout.pieces) == layout.length
    pieces = np.split(memory, np.cumsum(layout.pieces)[:-1])
    outputs = pieces if layout.outputs_of is None else layout.outputs_of(pieces)
    assert [piece.tolist() for piece in outputs] == [slots, blocks, totals]


@pytest.mark.parametrize(
    ("sizes", "pieces"),
    [
        ((64, 32, 64, 96, 97), (64, 32, 1)),
        ((64, 3, 64, 96, 97), (64, 3, 29, 1)),
        ((5, 32, 32, 64, 65), (5, 27, 32, 1)),
        ((5, 3, 32, 64, 66), (5, 27, 3, 29, 2)),
        ((0, 0, 0, 0, 1), (0, 0, 1)),
    ],
)
def test_no_piece_for_no_gap(sizes: tuple[int, ...], pieces: tuple[int, ...]) -> None:
    *lengths, second, third, end = sizes
    assert layout_of([*lengths, end - third], [0, second, third]).pieces == pieces


def test_torch_tensors_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: torch cuts the memory."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    ours = _frameworks.FRAMEWORKS[torch.Tensor]

    def split_host(memory: Any, layout: Layout) -> Any:
        return ours.split(torch.from_numpy(memory), layout)

    monkeypatch.setitem(_frameworks.FRAMEWORKS, torch.Tensor, ours.but(split_host=split_host))
    for num_ids in range(0, 70, 3):
        ids = torch.arange(num_ids, dtype=torch.int32) % 5
        found = tessera.align_block_size(ids, block_size=3, num_experts=5)
        memory = found.sorted_token_ids.untyped_storage().data_ptr()
        for array in found:
            assert array.numel() == 0 or (array.data_ptr() - memory) % WITHIN_ALLOCATION == 0
        assert tessera.contract_violations(ids, found, block_size=3, num_experts=5) == []


def test_the_op_of_torch() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    import tessera.torch_ops  # noqa: F401

    for num_ids in (0, 7, 64):
        assert_aligned(torch.ops.tessera.align_block_size(torch.arange(num_ids) % 5, 3, 5))


def test_functions_of_vllm() -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    from tessera.vllm import functions

    for num_ids in (1, 7, 64):
        ids = _torch(np.arange(num_ids, dtype=np.int32) % 5)
        assert_aligned(functions.moe_align_block_size(ids.reshape(-1, 1), 3, 5))
        assert_aligned(functions.batched_moe_align_block_size(8, 3, ids))
