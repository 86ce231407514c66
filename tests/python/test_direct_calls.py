"""Direct calls: the same as calls by the FFI, and none of what these convert or refuse."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

# torch decides whether there are tests.
from tessera._frameworks import FRAMEWORKS  # noqa: E402
from tessera._library import load  # noqa: E402
from tessera.ops.align_block_size import ALIGN  # noqa: E402
from tessera.ops.lora_align_block_size import _OP as LORA_OP  # noqa: E402

IDS = torch.tensor([[3, 0], [1, 3], [9, 1]], dtype=torch.int32)
MAP = torch.tensor([1, -1, 0, 2], dtype=torch.int32)
POISON = -77
# The arguments of align_block_size but its outputs, in the order of the table.
ARGUMENTS = (IDS, None, 2, 4)
ALL_ARGUMENTS = (IDS, MAP, 2, 4, True, True, 7, None, None, None, None, False, True)

for kind in (torch.Tensor, torch.nn.Parameter):
    FRAMEWORKS[kind]  # makes the type known
if not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
    pytest.skip("torch lacks DLPack's C functions", allow_module_level=True)


def outputs() -> tuple[Any, ...]:
    return tuple(torch.full((length,), POISON, dtype=torch.int32) for length in (12, 8, 1))


def by_ffi(arguments: tuple[Any, ...]) -> list[Any]:
    found = outputs()
    inputs, rest = arguments[:2], arguments[2:]
    assert ALIGN.call(None, 0, None, *inputs, *found, *rest) == 0
    return [one.tolist() for one in found]


@pytest.mark.parametrize("arguments", [ARGUMENTS, ALL_ARGUMENTS], ids=["few", "all"])
def test_the_same_as_by_the_ffi(arguments: tuple[Any, ...]) -> None:
    found = outputs()
    assert ALIGN.direct(found, None, *arguments) is found
    assert [one.tolist() for one in found] == by_ffi(arguments)


def test_optional_outputs() -> None:
    counts, dropped = torch.full((4,), POISON, dtype=torch.int32), torch.tensor([POISON]).int()
    found = outputs()
    assert ALIGN.direct(found, None, *ARGUMENTS, False, False, -1, counts, dropped) is found
    assert (counts.tolist(), dropped.tolist()) == ([1, 2, 0, 2], [1])


def with_argument(index: int, value: Any) -> tuple[Any, ...]:
    return tuple(value if i == index else one for i, one in enumerate(ALL_ARGUMENTS))


class Subclass(torch.Tensor):  # type: ignore[misc]
    """Not known until a call was given one."""


REFUSED: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "list of outputs": (list(outputs()), ARGUMENTS),
    "two outputs": (outputs()[:2], ARGUMENTS),
    "None among outputs": ((*outputs()[:2], None), ARGUMENTS),
    "array of NumPy among outputs": ((*outputs()[:2], np.zeros(1, np.int32)), ARGUMENTS),
    "short output": ((*outputs()[:1], outputs()[2], outputs()[2]), ARGUMENTS),
    "no input": (outputs(), ()),
    "too many arguments": (outputs(), (*ALL_ARGUMENTS, None)),
    "array of NumPy": (outputs(), with_argument(0, IDS.numpy())),
    "required array missing": (outputs(), with_argument(0, None)),
    "two types": (outputs(), with_argument(0, torch.nn.Parameter(IDS, requires_grad=False))),
    "another type": (outputs(), with_argument(0, IDS.as_subclass(Subclass))),
    "floats": (outputs(), with_argument(0, IDS.float())),
    "another type of map": (outputs(), with_argument(1, MAP.numpy())),
    "array for an integer": (outputs(), with_argument(2, np.array(2))),
    "tensor for an integer": (outputs(), with_argument(2, torch.tensor(2))),
    "integer of NumPy": (outputs(), with_argument(2, np.int64(2))),
    "float for an integer": (outputs(), with_argument(2, 2.0)),
    "text for an integer": (outputs(), with_argument(2, "2")),
    "integer of 65 bits": (outputs(), with_argument(3, 2**64)),
    "size out of range": (outputs(), with_argument(3, 0)),
    "None for an integer": (outputs(), with_argument(3, None)),
    "expert of 33 bits": (outputs(), with_argument(6, 2**32)),
    "integers for floats": (outputs(), with_argument(9, torch.zeros(6).long())),
    "floats that autograd follows": (
        outputs(),
        with_argument(9, torch.zeros(6, dtype=torch.float64, requires_grad=True)),
    ),
    "negated ids": (outputs(), with_argument(0, torch.ones(6, dtype=torch.complex64).conj().imag)),
    "flag that is an array": (outputs(), with_argument(12, np.ones(2))),
}


@pytest.mark.parametrize("name", REFUSED)
def test_others_are_left_to_the_ffi(name: str) -> None:
    out, arguments = REFUSED[name]
    tensors = [one for one in out or () if isinstance(one, torch.Tensor)]
    before = [one.tolist() for one in tensors]
    assert ALIGN.direct(out, None, *arguments) is None
    assert [one.tolist() for one in tensors] == before


def test_no_values() -> None:
    assert ALIGN.direct() is None


def test_modes_are_left_to_the_ffi() -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Mode(TorchDispatchMode):  # type: ignore[misc]
        def __torch_dispatch__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
            return function(*args, **kwargs or {})

    found = outputs()
    with Mode():
        assert ALIGN.direct(found, None, *ARGUMENTS) is None
    assert found[0][0] == POISON


def test_a_required_array_that_is_not_the_first() -> None:
    numbers = (2, 4, 1, None, False, -1)
    for mapping, has_run in ((torch.zeros(3, dtype=torch.int32), True), (None, False)):
        found = tuple(one.reshape(1, -1) for one in outputs())
        made = LORA_OP.direct(found, None, IDS, mapping, None, None, None, *numbers)
        assert (made is found) is has_run
        assert (found[0][0][0] == POISON) is not has_run


def test_interrupts_are_passed_on() -> None:
    class Interrupted(torch.Tensor):  # type: ignore[misc]
        pass

    def num_modes() -> int:
        raise raised

    others = (torch._C._is_tracing, torch.empty, torch.Tensor.is_neg, torch.autograd.forward_ad)
    load().add_tensor_type(Interrupted, num_modes, *others)
    arguments = (IDS.as_subclass(Interrupted), *ARGUMENTS[1:])
    found = tuple(one.as_subclass(Interrupted) for one in outputs())
    raised: BaseException = ValueError()
    assert ALIGN.direct(found, None, *arguments) is None
    raised = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        ALIGN.direct(found, None, *arguments)
    assert (found[0].as_subclass(torch.Tensor) == POISON).all()


@pytest.fixture
def without_collections() -> Iterator[None]:
    """A collection would free objects of other tests, which have references to None."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("without_collections")
def test_references_are_given_back() -> None:
    found = outputs()
    counted = [*found, *ARGUMENTS, *ALL_ARGUMENTS, True, False, torch.Tensor]
    before = [sys.getrefcount(one) for one in counted]
    for _ in range(1000):
        ALIGN.direct(found, None, *ARGUMENTS)
        ALIGN.direct(found, None, *with_argument(9, found[0]))
        ALIGN.direct(found, None, *with_argument(3, 2.5))
    after = [sys.getrefcount(one) for one in counted]
    grown = [now - then for now, then in zip(after, before, strict=True)]
    assert max(map(abs, grown)) < 500  # None has other users
