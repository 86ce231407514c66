"""The peers of `tessera bench` on CUDA without a GPU: they get torch tensors on the host."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import tessera
from tessera.tools.bench import cuda
from tessera.tools.bench.compositions import torch_composition
from tessera.tools.bench.contender import NotTimedError
from tessera.tools.bench.problem import Problem, make_problem
from tessera.tools.bench.shapes import Shape

SHAPES = [
    Shape(16, 8, 2, 16),
    Shape(1, 64, 2, 16),
    Shape(100, 12, 4, 7, dtype="int64"),
    Shape(100, 12, 4, 16, map="half-remote"),
    Shape(300, 8, 2, 64, skew="one-hot-expert"),
]


def on_torch(shape: Shape, ids: np.ndarray | None = None) -> Problem:
    """The problem with torch tensors instead of NumPy arrays, all on the host."""
    torch = pytest.importorskip("torch")
    problem = make_problem(shape, "cpu", 1, ids)
    tensors = {
        name: None if array is None else torch.from_numpy(array)
        for name, array in (("topk_ids", problem.topk_ids), ("expert_map", problem.expert_map))
    }
    return Problem(**{**vars(problem), **tensors, "device": "torch"})


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_torch_composition_holds_the_contract(shape: Shape) -> None:
    problem = on_torch(shape)
    assert problem.violations(cuda._prepare_torch(problem).run()) == []


def test_torch_composition_reads_nothing_back() -> None:
    torch = pytest.importorskip("torch")
    ids = torch.zeros((4, 2), dtype=torch.int32, device="meta")  # has no content to read
    slots, blocks, total = torch_composition(ids, 16, 8, 128)
    assert (slots.shape, blocks.shape, total.shape) == ((128,), (8,), (1,))


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[Any, ...]]]:
    """Stand-ins for both engines, with their signatures; yields the calls they get."""
    calls: list[tuple[Any, ...]] = []

    def vllm_align(  # type: ignore[no-untyped-def]
        topk_ids, block_size, num_experts, expert_map=None, pad_sorted_ids=False
    ):
        calls.append(("vllm", block_size, num_experts, expert_map))
        return tessera.align_block_size(topk_ids, block_size=block_size, num_experts=num_experts)

    def sgl_align(  # type: ignore[no-untyped-def]
        topk_ids,
        num_experts,
        block_size,
        sorted_token_ids,
        experts_ids,
        num_tokens_post_pad,
        cumsum_buffer,
        pad_sorted_token_ids=False,
    ):
        calls.append(("sgl", num_experts, len(cumsum_buffer), pad_sorted_token_ids))
        out = (sorted_token_ids, experts_ids, num_tokens_post_pad)
        tessera.align_block_size(
            topk_ids, block_size=block_size, num_experts=num_experts - 1, out=out
        )

    vllm = "vllm.model_executor.layers.fused_moe.moe_align_block_size"
    for name, function in ((vllm, vllm_align), ("sgl_kernel", sgl_align)):
        module: Any = types.ModuleType(name)
        module.moe_align_block_size = function
        module.__version__ = "1.2.3"
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr("importlib.util.find_spec", lambda package: object())
    yield calls


@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[1]], ids=lambda shape: shape.name)
def test_engines_are_called_as_they_call_themselves(
    shape: Shape, engines: list[tuple[Any, ...]]
) -> None:
    problem = on_torch(shape)
    for contender in (cuda._vllm(), cuda._sgl_kernel()):
        assert contender.unavailable == ""
        assert problem.violations(contender.prepare(problem).run()) == []
    experts = shape.num_experts
    assert engines == [("vllm", 16, experts, None), ("sgl", experts + 1, experts + 2, True)]
    assert (cuda._vllm().version, cuda._sgl_kernel().version) == ("", "1.2.3")
    assert cuda._sgl_kernel().refusal(SHAPES[2]) == "takes int32 ids only, not int64"
    assert cuda._vllm().refusal(Shape(1, 1, 1, 1, shift_bytes=0)) == "allocates its own outputs"


def test_who_takes_no_ids_of_minus_one_is_left_out(engines: list[tuple[Any, ...]]) -> None:
    shape = Shape(2, 4, 2, 8)
    with_unused = on_torch(shape, np.array([[0, 3], [1, -1]]))
    prepared = (
        cuda._prepare_torch,
        cuda._prepare_cub_radix,
        cuda._vllm().prepare,
        cuda._sgl_kernel().prepare,
    )
    for prepare in prepared:
        with pytest.raises(NotTimedError, match=r"^takes no ids of -1: it "):
            prepare(with_unused)
    assert engines == []


def test_engines_that_changed_say_so(
    engines: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    changed: Any = types.ModuleType("sgl_kernel")
    changed.moe_align_block_size = lambda topk_ids, block_size: None
    monkeypatch.setitem(sys.modules, "sgl_kernel", changed)
    why = cuda._sgl_kernel().unavailable
    assert why.startswith("expected the parameters ['topk_ids', 'num_experts', ")
    assert why.endswith("got ['topk_ids', 'block_size']")


def test_absent_engines_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    assert cuda._vllm().unavailable == "vllm is not installed"
    assert cuda._sgl_kernel().unavailable == "sgl_kernel is not installed"


@pytest.mark.parametrize(
    "name", ["textbook", "cub_radix", "floor/1", "floor/4/pdl", "empty kernel"]
)
def test_a_chain_knows_what_native_contenders_read_and_write(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    got: list[Any] = []

    class Library:
        def function(self, name: str, release_gil: bool = True) -> Any:
            return lambda *arguments: got.append(arguments) or 1

    monkeypatch.setattr(cuda, "native_library", lambda file_name: Library())
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(multi_processor_count=4)
    )
    (contender,) = [one for one in cuda._native_contenders() if one.name == name]
    assert "chain" in contender.methods
    call = contender.prepare(on_torch(SHAPES[0]))
    outputs = call.run()
    arguments = [one for one in got[-1] if one is not None]
    assert arguments[0] is call.source
    assert [id(one) for one in arguments[1:4]] == [id(one) for one in outputs]
    assert [len(one) for one in outputs] == [
        len(one) for one in on_torch(SHAPES[0]).empty_outputs()
    ]
