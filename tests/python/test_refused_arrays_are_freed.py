"""A refused call lets go of its arrays at once, without the cyclic garbage collector."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import tessera


def int32(*shape: int) -> Any:
    return np.zeros(shape, np.int32)


def read_only(array: Any) -> Any:
    array.flags.writeable = False
    return array


def align(ids: Any, **changes: Any) -> Any:
    return tessera.align_block_size(ids, **{"block_size": 4, "num_experts": 4, **changes})


def batched(counts: Any, **changes: Any) -> Any:
    options: dict[str, Any] = {"max_tokens_per_batch": 4, "block_size": 2, **changes}
    return tessera.batched_align_block_size(counts, **options)


def lora(ids: Any, mapping: Any = None, **changes: Any) -> Any:
    options: dict[str, Any] = {"block_size": 4, "num_experts": 4, "max_loras": 2, **changes}
    mapping = np.zeros(len(ids), np.int32) if mapping is None else mapping
    return tessera.lora_align_block_size(ids, mapping, **options)


REFUSED: dict[str, Callable[[Any], Any]] = {
    "the core's": lambda ids: align(ids, block_size=0),
    "its sizes'": lambda ids: align(ids, num_experts=0),
    "threads": lambda ids: align(ids, num_threads=-1),
    "a number": lambda ids: align(ids, tail_expert="one"),
    "64 bits": lambda ids: align(ids, block_size=1 << 70),
    "a type": lambda ids: align(ids, expert_map=np.arange(4)),
    "no DLPack": lambda ids: align(ids, expert_map=[0, 1, 2, 3]),
    "no type of DLPack's": lambda ids: align(ids, expert_map=np.zeros(4, ">i4")),
    "out": lambda ids: align(ids, out=[]),
    "a mask": lambda ids: align(ids, expert_map=np.ma.zeros(4, np.int32)),
    "read-only": lambda ids: align(ids, expert_counts=read_only(int32(4))),
    "a report": lambda ids: align(ids, expert_counts=int32(3)),
    "options": lambda ids: align(ids, filtered_group=True, tail_expert=1 << 40),
    "validate": lambda ids: align(ids - 1, validate="now"),
    "validate and more": lambda ids: align(ids, validate="now", block_size=0),
    "strided": lambda ids: align(ids[:, ::2]),
    "checked": lambda ids: tessera.contract_violations(
        ids, align(ids), block_size="one", num_experts=4
    ),
    "checked mask": lambda ids: tessera.contract_violations(
        ids, align(ids), block_size=4, num_experts=4, expert_map=np.ma.zeros(4, np.int32)
    ),
    "batched": lambda ids: batched(ids.reshape(-1), block_size=0),
    "batched out": lambda ids: batched(ids.reshape(-1), out=()),
    "batched masked": lambda ids: batched(ids.reshape(-1), out=(np.ma.zeros(4, np.int32),) * 3),
    "batched number": lambda ids: batched(ids.reshape(-1), block_size=None),
    "lora": lambda ids: lora(ids, block_size=0),
    "lora mapping": lambda ids: lora(ids, [0, 1]),
    "lora masked": lambda ids: lora(ids, np.ma.zeros(4, np.int32)),
    "lora out": lambda ids: lora(ids, out=(read_only(int32(99)),) * 3),
}


@pytest.fixture(autouse=True, scope="module")
def without_collections() -> Iterator[None]:
    align(int32(4, 2))  # loads the library, whose modules leave cycles of their own
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("kind", REFUSED)
def test_arrays_of_a_refused_call_are_freed(kind: str) -> None:
    ids = int32(4, 2)
    alive = weakref.ref(ids)
    try:
        REFUSED[kind](ids)
    except (TypeError, ValueError) as error:
        assert "align_block_size: " in str(error)
    else:
        pytest.fail("was served")
    del ids
    assert alive() is None


def test_a_traced_call_frees_them_too() -> None:
    torch: Any = pytest.importorskip("torch", reason="torch is not installed")

    class Unknowing(torch.Tensor):  # type: ignore[misc]
        @classmethod
        def __torch_dispatch__(cls, function: Any, *args: Any, **kwargs: Any) -> Any:
            raise NotImplementedError("takes no op that it does not know")

    ids = torch.Tensor._make_subclass(Unknowing, torch.zeros(4, dtype=torch.int32))
    alive = weakref.ref(ids)
    try:
        align(ids)
    except TypeError as error:
        assert "expected a torch.Tensor with memory, got Unknowing" in str(error)
    else:
        pytest.fail("was served")
    del ids
    assert alive() is None
