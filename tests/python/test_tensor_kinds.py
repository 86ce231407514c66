"""Arrays whose memory does not hold their values: served right or refused, never read wrongly."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tessera
from tessera._torch_registry import TORCH_OPS

torch: Any = pytest.importorskip("torch", reason="torch is not installed")

IDS = torch.tensor([3, 1, 2, 0], dtype=torch.int32)
GOOD: dict[str, Any] = {"block_size": 2, "num_experts": 4}
LORA: dict[str, Any] = {**GOOD, "max_loras": 1}
BATCHED: dict[str, Any] = {"max_tokens_per_batch": 4, "block_size": 2}
NEGATED = "expected a tensor whose memory holds its values, got a negated view of another"
MASKED = "expected an array without a mask, got MaskedArray"


def int32(length: int, value: int = 0) -> Any:
    return torch.full((length,), value, dtype=torch.int32)


def align(**arrays: Any) -> Any:
    names = tessera.AlignedBlocks._fields
    written = {name: arrays.pop(name) for name in names if name in arrays}
    if written:
        out = tessera.AlignedBlocks(int32(8), int32(4), int32(1))._replace(**written)
        arrays["out"] = out
    return tessera.align_block_size(arrays.pop("topk_ids", IDS), **GOOD, **arrays)


def batched(**arrays: Any) -> Any:
    names = tessera.AlignedBlocks._fields
    written = {name: arrays.pop(name) for name in names if name in arrays}
    if written:
        out = tessera.AlignedBlocks(int32(16), int32(8), int32(1))._replace(**written)
        arrays["out"] = out
    counts = arrays.pop("expert_num_tokens", IDS)
    return tessera.batched_align_block_size(counts, **BATCHED, **arrays)


def lora(**arrays: Any) -> Any:
    names = tessera.AlignedBlocks._fields
    written = {name: arrays.pop(name) for name in names if name in arrays}
    if written:
        out = tessera.AlignedBlocks(int32(8), int32(4), int32(1))._replace(**written)
        arrays["out"] = out
    ids: Any = arrays.pop("topk_ids", IDS)
    mapping = arrays.pop("token_lora_mapping", int32(4))
    return tessera.lora_align_block_size(ids, mapping, **LORA, **arrays)


def align_check(**arrays: Any) -> Any:
    names = tessera.AlignedBlocks._fields
    result = align()._replace(**{name: arrays.pop(name) for name in names if name in arrays})
    ids = arrays.pop("topk_ids", IDS)
    return tessera.contract_violations(ids, result, **GOOD, **arrays)


def batched_check(**arrays: Any) -> Any:
    names = tessera.AlignedBlocks._fields
    result = batched()._replace(**{name: arrays.pop(name) for name in names if name in arrays})
    counts = arrays.pop("expert_num_tokens", IDS)
    return tessera.batched_contract_violations(counts, result, **BATCHED)


def lora_check(**arrays: Any) -> Any:
    names = tessera.AlignedBlocks._fields
    result = lora()._replace(**{name: arrays.pop(name) for name in names if name in arrays})
    ids = arrays.pop("topk_ids", IDS)
    mapping = arrays.pop("token_lora_mapping", int32(4))
    return tessera.lora_contract_violations(ids, mapping, result, **LORA, **arrays)


OUTPUTS = {"sorted_token_ids": int32(8), "expert_ids": int32(4), "num_tokens_post_pad": int32(1)}
REPORTS = {
    "expert_counts": int32(4),
    "num_dropped": int32(1),
    "statistics": torch.zeros(6, dtype=torch.float64),
}
ALIGN = {"topk_ids": IDS, "expert_map": IDS, **OUTPUTS, **REPORTS}
LORA_INPUTS = {
    "topk_ids": IDS,
    "token_lora_mapping": int32(4),
    "adapter_enabled": int32(1, 1),
    "lora_ids": int32(1),
    "expert_map": IDS,
}
BATCHED_ARRAYS = {"expert_num_tokens": IDS, **OUTPUTS}
CALLS: dict[str, tuple[Callable[..., Any], str, dict[str, Any]]] = {
    "align": (align, "align_block_size", ALIGN),
    "align check": (align_check, "align_block_size", ALIGN),
    "batched": (batched, "batched_align_block_size", BATCHED_ARRAYS),
    "batched check": (batched_check, "batched_align_block_size", BATCHED_ARRAYS),
    "lora": (lora, "lora_align_block_size", {**LORA_INPUTS, **OUTPUTS}),
    "lora check": (lora_check, "lora_align_block_size", {**LORA_INPUTS, **OUTPUTS}),
}
EVERY_ARGUMENT = [(call, name) for call, (_, _, arrays) in CALLS.items() for name in arrays]


def negated(tensor: Any) -> Any:
    return torch.complex(tensor.double(), tensor.double()).conj().imag


def masked(tensor: Any) -> Any:
    return np.ma.masked_array(tensor.numpy(), mask=False)


@pytest.mark.parametrize(("call", "argument"), EVERY_ARGUMENT)
@pytest.mark.parametrize(
    ("make", "reason"), [(negated, NEGATED), (masked, MASKED)], ids=["negated", "masked"]
)
def test_every_argument(call: str, argument: str, make: Callable[[Any], Any], reason: str) -> None:
    run, op, arrays = CALLS[call]
    run()
    with pytest.raises(TypeError, match=f"^{op}: {argument}: {re.escape(reason)}"):
        run(**{argument: make(arrays[argument].clone())})


def test_a_view_of_a_conjugate() -> None:
    numbers = torch.zeros(6, dtype=torch.complex128).conj().imag
    assert numbers.is_neg()
    with pytest.raises(TypeError, match=f"^align_block_size: statistics: {NEGATED}"):
        tessera.align_block_size(IDS, **GOOD, statistics=numbers)


def test_the_op_of_torch_reads_negated_ids_right() -> None:
    import tessera.torch_ops  # noqa: F401 (registers the op)

    found = torch.ops.tessera.align_block_size(torch._neg_view(-IDS), 2, 4)
    for got, want in zip(found, align(), strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("is_leaf", [True, False])
def test_statistics_that_autograd_follows(is_leaf: bool) -> None:
    statistics = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    statistics = statistics if is_leaf else statistics * 1
    import tessera.torch_ops

    for call in (
        lambda: tessera.align_block_size(IDS, **GOOD, statistics=statistics),
        lambda: torch.ops.tessera.align_block_size(IDS, 2, 4, statistics=statistics),
        lambda: tessera.align_block_size(IDS, **GOOD, statistics=statistics, out=align()),
    ):
        with pytest.raises(
            ValueError,
            match=r"^align_block_size: statistics: expected a tensor that autograd does not "
            r"follow, got one that requires grad \(its detach\(\) does not\)$",
        ):
            call()
    assert statistics.tolist() == [0] * 6
    tessera.align_block_size(IDS, **GOOD, statistics=statistics.detach())
    assert statistics.tolist() == [4, 4, 4, 4, 1, 1]


def quantized(length: int) -> Any:
    return torch.quantize_per_tensor(torch.ones(length), 1.0, 0, torch.qint32)


def nested(length: int) -> Any:
    return torch.nested.nested_tensor([int32(length), int32(length)])


def two_in_one(length: int) -> Any:
    from torch.testing._internal.two_tensor import TwoTensor

    return TwoTensor(int32(length), int32(length))


CARRY = "expected an array that DLPack can carry, got Tensor"
STRIDED = "expected a contiguous array, got a strided one"
NO_VALUES = "expected memory for its elements, got a null pointer"
# Tensors of so many elements.
NOT_SERVED: dict[str, tuple[Callable[[int], Any], str]] = {
    "sparse": (lambda length: int32(length).to_sparse(), CARRY),
    "quantized": (quantized, CARRY),
    "nested": (nested, CARRY),
    "meta": (lambda length: int32(length).to("meta"), CARRY),
    "expanded": (lambda length: int32(1).expand(length), STRIDED),
    "overlapping": (lambda length: int32(length).as_strided((2, length // 2), (1, 1)), STRIDED),
    "zero tensor": (lambda n: torch._efficientzerotensor(n, dtype=torch.int32), NO_VALUES),
    "subclass": (two_in_one, "expected a torch.Tensor with memory, got TwoTensor"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", NOT_SERVED)
@pytest.mark.parametrize("call", ["align", "batched", "lora"])
def test_kinds_of_tensors(kind: str, call: str) -> None:
    run, op, arrays = CALLS[call]
    make, reason = NOT_SERVED[kind]
    lengths = {next(iter(arrays)): 4, "sorted_token_ids": 16}
    for argument, length in lengths.items():
        if kind == "subclass" and argument == next(iter(arrays)):
            continue  # goes through torch's dispatcher
        with pytest.raises((TypeError, ValueError)) as caught:
            run(**{argument: make(length)})
        message = str(caught.value)
        assert message.startswith(f"{op}: {argument}"), message
        assert reason in message


@pytest.mark.parametrize("kind", ["sparse", "nested", "meta"])
@pytest.mark.parametrize("call", ["align", "batched", "lora"])
def test_kinds_of_tensors_without_elements(kind: str, call: str) -> None:
    run, op, arrays = CALLS[call]
    with pytest.raises(TypeError, match=f"^{op}: {next(iter(arrays))}: {CARRY}"):
        run(**{next(iter(arrays)): NOT_SERVED[kind][0](0)})


def test_subclasses() -> None:
    class Plain(torch.Tensor):  # type: ignore[misc]
        pass

    for tensor in (IDS.as_subclass(Plain), torch.nn.Parameter(IDS, requires_grad=False)):
        for got, want in zip(align(topk_ids=tensor), align(), strict=True):
            assert torch.equal(got, want)
        assert lora_check(topk_ids=tensor) == batched_check(expert_num_tokens=tensor) == []
    both = align(topk_ids=two_in_one(4))
    assert [type(array).__name__ for array in both] == ["TwoTensor"] * 3
    for pair, want in zip(both, align(topk_ids=int32(4)), strict=True):
        assert torch.equal(pair.a, want)
        assert torch.equal(pair.b, want)


def test_subclasses_beneath_the_op_of_torch() -> None:
    class Watched(torch.Tensor):  # type: ignore[misc]
        """Has memory, but would not notice writes that bypass it."""

        @classmethod
        def __torch_dispatch__(cls, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
            raise NotImplementedError

    def watched(length: int) -> Any:
        return torch.Tensor._make_subclass(Watched, int32(length))

    eagerly = TORCH_OPS["batched_align_block_size"].eagerly
    out = watched(16), watched(8), watched(1)
    with pytest.raises(
        TypeError,
        match=r"^batched_align_block_size: expert_num_tokens: expected a torch.Tensor with memory",
    ):
        eagerly(watched(4), 4, 2, -1, out=out)


@pytest.mark.filterwarnings("ignore")
def test_subclasses_that_take_no_op() -> None:
    mask = torch.tensor([True, True, False, False])
    with pytest.raises(
        TypeError,
        match=r"^align_block_size: topk_ids: expected a torch.Tensor with memory, got MaskedTensor",
    ):
        align(topk_ids=torch.masked.masked_tensor(IDS, mask))


@pytest.mark.filterwarnings("ignore")
def test_arrays_of_numpy_that_only_look_different() -> None:
    ids = IDS.numpy()
    expected = [array.tolist() for array in align()]
    for array in (np.matrix(ids), ids.view(np.recarray)):
        assert [part.tolist() for part in align(topk_ids=array)] == expected
