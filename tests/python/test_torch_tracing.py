"""Tracers of torch see one op, or are refused: no output of a call becomes a constant."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tessera

torch: Any = pytest.importorskip("torch", reason="torch is not installed")

from torch._subclasses import FakeTensorMode  # noqa: E402
from torch.fx.experimental.proxy_tensor import make_fx  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

IDS = torch.tensor([3, 1, 2, 0], dtype=torch.int32)
OTHERS = torch.tensor([1, 1, 3, 1], dtype=torch.int32)
GOOD: dict[str, Any] = {"block_size": 2, "num_experts": 4}
LENGTHS = (8, 4, 1)


def align(topk_ids: Any) -> Any:
    return tuple(tessera.align_block_size(topk_ids, **GOOD))


def align_with_everything(topk_ids: Any) -> Any:
    counts, dropped = torch.zeros(4, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    statistics = torch.zeros(6, dtype=torch.float64)
    found = tessera.align_block_size(
        topk_ids,
        **GOOD,
        expert_map=torch.tensor([1, -1, 0, -1], dtype=torch.int32),
        ignore_invalid_experts=True,
        pad_sorted_ids=True,
        tail_expert=7,
        map_tail=True,
        filtered_group=True,
        expert_counts=counts,
        num_dropped=dropped,
        statistics=statistics,
        num_threads=1,
    )
    return (*found, counts, dropped, statistics)


def align_out(topk_ids: Any) -> Any:
    out = tuple(torch.zeros(length, dtype=torch.int32) for length in LENGTHS)
    assert tessera.align_block_size(topk_ids, **GOOD, out=out) is out
    return out


def batched(counts: Any) -> Any:
    return tessera.batched_align_block_size(counts, max_tokens_per_batch=4, block_size=2)


def batched_out(counts: Any) -> Any:
    out = tuple(torch.zeros(length, dtype=torch.int32) for length in (16, 8, 1))
    options: dict[str, Any] = {"max_tokens_per_batch": 4, "block_size": 2, "out": out}
    return tessera.batched_align_block_size(counts, **options)


def lora(topk_ids: Any) -> Any:
    return tessera.lora_align_block_size(topk_ids, torch.zeros_like(topk_ids), **GOOD, max_loras=1)


def lora_out(topk_ids: Any) -> Any:
    out = tuple(torch.zeros(length, dtype=torch.int32) for length in (16, 8, 2))
    mapping = torch.ones_like(topk_ids)
    assert tessera.lora_align_block_size(topk_ids, mapping, **GOOD, max_loras=2, out=out) is out
    return out


def experts_arguments(topk_ids: Any) -> tuple[Any, ...]:
    num_ids = topk_ids.shape[0]
    x = torch.arange(1.0, num_ids + 1).reshape(num_ids, 1)
    w2 = torch.arange(1.0, 5).reshape(4, 1, 1)
    return x, torch.ones(4, 1, 1), w2, torch.ones(num_ids, 1), topk_ids.reshape(num_ids, 1)


def experts(topk_ids: Any) -> Any:
    return (tessera.fused_experts(*experts_arguments(topk_ids), activation="relu2_no_mul"),)


def experts_out(topk_ids: Any) -> Any:
    arguments = experts_arguments(topk_ids)
    out = torch.zeros_like(arguments[0])
    assert tessera.fused_experts(*arguments, activation="relu2_no_mul", out=out) is out
    return (out,)


def by_fx(mode: str) -> Callable[..., Any]:
    return lambda function, ids: make_fx(function, tracing_mode=mode)(ids)


def by_jit(function: Any, ids: Any) -> Any:
    return torch.jit.trace(function, (ids,))


def by_export(function: Any, ids: Any) -> Any:
    class Module(torch.nn.Module):  # type: ignore[misc]
        def forward(self, topk_ids: Any) -> Any:
            return function(topk_ids)

    return torch.export.export(Module(), (ids,), strict=False).module()


TRACERS: dict[str, Callable[..., Any]] = {
    "make_fx real": by_fx("real"),
    "make_fx fake": by_fx("fake"),
    "make_fx symbolic": by_fx("symbolic"),
    "jit": by_jit,
    "export": by_export,
}
# Torch itself uses what it has deprecated.
quiet = pytest.mark.filterwarnings("ignore")


def assert_equal(found: Any, expected: Any) -> None:
    for got, want in zip(found, expected, strict=True):
        torch.testing.assert_close(got, want)


@quiet
@pytest.mark.parametrize("tracer", TRACERS)
@pytest.mark.parametrize(
    "function",
    [
        *(align, align_with_everything, align_out, batched, batched_out, lora, lora_out),
        *(experts, experts_out),
    ],
)
def test_a_traced_call_computes_anew(tracer: str, function: Callable[[Any], Any]) -> None:
    traced = TRACERS[tracer](function, IDS)
    for ids in (IDS, OTHERS):
        assert_equal(traced(ids), function(ids))


HOST_IDS = IDS.numpy()
# Calls with ids of NumPy's and an array of torch's, which is traced.
MIXED: dict[str, Callable[[Any], Any]] = {
    "align_block_size: expert_map": lambda array: tessera.align_block_size(
        HOST_IDS, **GOOD, expert_map=array
    ),
    "align_block_size: expert_counts": lambda array: tessera.align_block_size(
        HOST_IDS, **GOOD, expert_counts=array
    ),
    "align_block_size: num_dropped": lambda array: tessera.align_block_size(
        HOST_IDS, **GOOD, num_dropped=array[:1]
    ),
    "align_block_size: statistics": lambda array: tessera.align_block_size(
        HOST_IDS, **GOOD, statistics=torch.zeros(6, dtype=torch.float64)
    ),
    "align_block_size: expert_ids": lambda array: tessera.align_block_size(
        HOST_IDS, **GOOD, out=(np.zeros(8, np.int32), array, np.zeros(1, np.int32))
    ),
    "batched_align_block_size: expert_ids": lambda array: tessera.batched_align_block_size(
        HOST_IDS[:2],
        max_tokens_per_batch=4,
        block_size=2,
        out=(np.zeros(8, np.int32), array, np.zeros(1, np.int32)),
    ),
    "lora_align_block_size: token_lora_mapping": lambda array: tessera.lora_align_block_size(
        HOST_IDS, array, **GOOD, max_loras=1
    ),
    "lora_align_block_size: expert_map": lambda array: tessera.lora_align_block_size(
        HOST_IDS, np.zeros(4, np.int32), **GOOD, max_loras=1, expert_map=array
    ),
    "fused_experts: topk_ids": lambda array: tessera.fused_experts(
        *(np.ones(shape, np.float32) for shape in [(3, 1), (4, 2, 1), (4, 1, 1), (3, 1)]),
        array[:3].reshape(3, 1),
    ),
    "lora_align_block_size: expert_ids": lambda array: tessera.lora_align_block_size(
        HOST_IDS,
        np.zeros(4, np.int32),
        **GOOD,
        max_loras=1,
        out=(np.zeros(8, np.int32), array, np.zeros(1, np.int32)),
    ),
}


@quiet
@pytest.mark.parametrize("tracer", ["make_fx real", "make_fx fake", "jit"])
@pytest.mark.parametrize("argument", MIXED)
def test_ids_of_numpy_beside_what_is_traced(argument: str, tracer: str) -> None:
    def function(array: Any) -> Any:
        found = MIXED[argument](array)
        return [torch.as_tensor(one) for one in found]

    array = torch.tensor([1, 0, 3, 2], dtype=torch.int32)
    assert len(function(array)) == 3  # served eagerly
    with pytest.raises(TypeError) as caught:
        TRACERS[tracer](function, array)
    assert str(caught.value) in (
        f"{argument}: expected eager execution, got a call that torch traces",
        f"{argument}: expected a torch.Tensor with memory, got FakeTensor",
    )


class Recorder(TorchDispatchMode):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.seen.append(str(function))
        return function(*args, **(kwargs or {}))


def test_a_mode_sees_one_op() -> None:
    expected = align(IDS)
    with Recorder() as recorder:
        found = align(IDS)
    assert recorder.seen == ["tessera.align_block_size.default"]
    assert_equal(found, expected)
    for function, name in (
        (batched, "batched_align_block_size"),
        (lora, "lora_align_block_size"),
        (experts, "fused_experts"),
    ):
        expected = function(IDS)
        with Recorder() as recorder:
            found = function(IDS)
        assert_equal(found, expected)
        assert f"tessera.{name}.default" in recorder.seen


@quiet
@pytest.mark.parametrize("num_ids", [0, 4])
def test_tensors_without_values(num_ids: int) -> None:
    mode = FakeTensorMode()
    fake = mode.from_tensor(IDS[:num_ids])
    expected = align(IDS[:num_ids])
    with mode:
        inside = align(fake)
    for found in (align(fake), inside):
        assert [type(array).__name__ for array in found] == ["FakeTensor"] * 3
        assert [array.shape for array in found] == [array.shape for array in expected]
    for function in (batched, lora, experts):
        expected = function(IDS[:num_ids])
        with mode:  # for the other arrays of lora and of experts
            found = function(fake)
        assert [array.shape for array in found] == [array.shape for array in expected]


@quiet
@pytest.mark.parametrize("function", [align, batched, lora, experts])
def test_transforms_of_functions(function: Callable[[Any], Any]) -> None:
    for transform, argument in (
        (torch.func.functionalize, IDS),
        (torch.vmap, torch.stack([IDS, OTHERS])),
    ):
        with pytest.raises((TypeError, ValueError)) as caught:
            transform(function)(argument)
        assert " expected " in str(caught.value)
        assert str(caught.value).split(":")[0].endswith(("align_block_size", "fused_experts"))


def test_transforms_that_leave_the_ids_alone() -> None:
    def loss(weights: Any) -> Any:
        return (weights * align(IDS)[0].sum()).sum()

    gradient = torch.func.grad(loss)(torch.ones(2))
    assert gradient.tolist() == [float(align(IDS)[0].sum())] * 2


def test_validation_of_a_traced_call() -> None:
    with pytest.raises(
        ValueError,
        match=r"^align_block_size: validate: expected None in a call that torch traces, where "
        r"TESSERA_VALIDATE decides, got 'now'$",
    ):
        make_fx(lambda ids: tessera.align_block_size(ids, **GOOD, validate="now"))(IDS)


def test_refusals_of_a_traced_call() -> None:
    with pytest.raises(ValueError, match=r"^align_block_size: block_size: expected .* got 0"):
        make_fx(lambda ids: tessera.align_block_size(ids, block_size=0, num_experts=4))(IDS)
    with pytest.raises(TypeError, match=r"^align_block_size: topk_ids.dtype: expected an integer"):
        make_fx(lambda ids: tessera.align_block_size(ids, **GOOD))(IDS.float())
    with pytest.raises(TypeError, match=r"^align_block_size: out: expected a tuple of three"):
        make_fx(lambda ids: tessera.align_block_size(ids, **GOOD, out=(ids,)))(IDS)
    with pytest.raises(TypeError, match=r"^align_block_size: num_threads: expected .* got bool$"):
        make_fx(lambda ids: tessera.align_block_size(ids, **GOOD, num_threads=True))(IDS)
