"""Direct calls of ops with arrays of floats: new outputs, and what is left to the FFI."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

# torch decides whether there are tests.
import tessera  # noqa: E402
from tessera._frameworks import FRAMEWORKS  # noqa: E402
from tessera.ops.moe_sum import _OP as SUM_OP  # noqa: E402
from tessera.ops.select_experts import _OP as SELECT_OP  # noqa: E402

LOGITS = torch.linspace(-2, 3, 24).sin().reshape(3, 8)
# The arguments of select_experts, in the order of the table.
ARGUMENTS = (LOGITS, None, None, 2, "softmax", True, 1, 1, 1.0)

for kind in (torch.Tensor, torch.nn.Parameter):
    FRAMEWORKS[kind]  # makes the type known
if not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
    pytest.skip("torch lacks DLPack's C functions", allow_module_level=True)


def with_argument(index: int, value: Any) -> tuple[Any, ...]:
    return tuple(value if i == index else one for i, one in enumerate(ARGUMENTS))


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "float16"])
def test_new_outputs(kind: str) -> None:
    arguments = with_argument(0, LOGITS.to(getattr(torch, kind)))
    found = SELECT_OP.direct(None, 1, *arguments)
    assert type(found) is tessera.SelectedExperts
    weights, ids = torch.empty(3, 2), torch.empty(3, 2, dtype=torch.int32)
    assert SELECT_OP.call(None, 0, None, *arguments[:3], weights, ids, *arguments[3:]) == 0
    for one, other in zip(found, (weights, ids), strict=True):
        assert torch.equal(one, other)
        assert (type(one), one.dtype, one.stride()) == (torch.Tensor, other.dtype, other.stride())
        assert not one.requires_grad
        assert one.data_ptr() % 16 == 0


def test_outputs_are_the_callers_alone() -> None:
    calls = [SELECT_OP.direct(None, None, *ARGUMENTS) for _ in range(50)]
    arrays = [one for found in calls for one in found]
    assert len({one.untyped_storage().data_ptr() for one in arrays}) == len(arrays)
    kept = calls[7].topk_weights[1:]
    expected = kept.tolist()
    del calls, arrays
    for _ in range(50):
        SELECT_OP.direct(None, None, *with_argument(0, -LOGITS))
    assert kept.tolist() == expected
    kept += 1


def test_in_inference_mode() -> None:
    with torch.inference_mode():
        found = tessera.select_experts(LOGITS, top_k=2, renormalize=True)
    assert all(map(torch.equal, found, SELECT_OP.direct(None, None, *ARGUMENTS)))
    assert [one.is_inference() for one in found] == [True, True]


LEFT: dict[str, Any] = {
    "no tokens": with_argument(0, LOGITS[:0]),
    "another type": with_argument(0, LOGITS.double()),
    "array of NumPy": with_argument(0, LOGITS.numpy()),
    "tensor on meta": with_argument(0, LOGITS.to("meta")),
    "negated view": with_argument(0, LOGITS.to(torch.complex64).conj().imag),
    "followed logits": with_argument(0, LOGITS.clone().requires_grad_()),
    "followed bias": with_argument(1, torch.zeros(8, requires_grad=True)),
    "parameter of another type": with_argument(1, torch.nn.Parameter(torch.zeros(8))),
    "too many experts": with_argument(3, 9),
    "unknown scoring": with_argument(4, "softmaxx"),
    "scoring with a NUL": with_argument(4, "softmax\0"),
    "scoring that UTF-8 lacks": with_argument(4, "\ud800"),
    "no text": with_argument(4, 0),
    "flag of NumPy": with_argument(5, np.True_),
    "integer for a float": with_argument(8, 1),
    "infinite factor": with_argument(8, float("inf")),
}


@pytest.mark.parametrize("name", LEFT)
def test_others_are_left_to_the_ffi(name: str) -> None:
    assert SELECT_OP.direct(None, None, *LEFT[name]) is None


@pytest.mark.parametrize("num_threads", [True, -1, 2**31, 2**63, np.int64(1), 1.0, "1"])
def test_numbers_of_threads(num_threads: Any) -> None:
    assert SELECT_OP.direct(None, num_threads, *ARGUMENTS) is None


def test_forward_mode_is_left_to_the_ffi() -> None:
    with torch.autograd.forward_ad.dual_level():
        assert SELECT_OP.direct(None, None, *ARGUMENTS) is None


def test_outputs_of_the_inputs_type_are_left_to_the_framework() -> None:
    assert SUM_OP.direct(None, None, torch.ones(2, 2, 4), None) is None


def test_memory_is_freed() -> None:
    def resident() -> int:
        with open("/proc/self/statm") as file:  # noqa: PTH123
            return int(file.read().split()[1]) * 4096

    logits = torch.zeros(4096, 8)
    tessera.select_experts(logits, top_k=8)
    gc.collect()
    before = resident()
    for _ in range(500):
        tessera.select_experts(logits, top_k=8)
    assert resident() - before < 20 << 20  # not 500 times 256 KiB


def test_a_tensor_that_changes_while_another_is_asked_is_read_as_it_is_then() -> None:
    logits, bias = torch.randn(64, 256), torch.zeros(256)

    class Mode(torch.overrides.TorchFunctionMode):  # type: ignore[misc]
        def __torch_function__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if getattr(function, "__name__", "") == "is_neg" and args[0] is bias:
                logits.untyped_storage().resize_(0)
            return function(*args, **(kwargs or {}))

    tessera.select_experts(logits[:2], top_k=2)  # the type is known from now on
    with Mode(), pytest.raises(ValueError, match=r"router_logits\.data: expected memory"):
        tessera.select_experts(logits, top_k=2, correction_bias=bias)
