"""vLLM's functions of mid-2025 as Tessera serves them, and the two orders of their arguments."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from oracle import expected_blocks  # noqa: E402
from tessera.vllm import cuda_on_cpu, standin  # noqa: E402
from tessera.vllm.call_forms import accept_both_forms  # noqa: E402
from tessera.vllm.functions import (  # noqa: E402
    batched_moe_align_block_size,
    cdiv,
    moe_align_block_size,
    round_up,
)

FORMS = (
    "moe_align_block_size: arguments: expected (topk_ids, block_size, num_experts, "
    "expert_map=None, pad_sorted_ids=False, ignore_invalid_experts=False), or (topk_ids, "
    "num_experts, block_size, topk) with an integer topk, got "
)


def int32(*values: int) -> Any:
    return torch.tensor(values, dtype=torch.int32)


def mid_2025(
    topk_ids: Any, block_size: int, num_experts: int, expert_map: Any, pad_sorted_ids: bool
) -> list[list[int]]:
    """The three outputs as vLLM made them: room for every expert, zeros, then the map."""
    flat = topk_ids.flatten().tolist()
    blocks = expected_blocks(flat, block_size, num_experts)
    (total,) = blocks.num_tokens_post_pad
    capacity = len(flat) + num_experts * (block_size - 1)
    if pad_sorted_ids:
        capacity += -capacity % block_size
    slots = blocks.sorted_token_ids[:total]
    experts = blocks.expert_ids[: total // block_size]
    experts += [0] * (-(-capacity // block_size) - len(experts))
    if expert_map is not None:
        experts = [expert_map.tolist()[expert] for expert in experts]
    return [slots + [len(flat)] * (capacity - total), experts, [total]]


@pytest.mark.parametrize("pad_sorted_ids", [False, True])
@pytest.mark.parametrize("local", [None, range(1, 7, 2), range(0, 7, 2)])
@pytest.mark.parametrize("num_tokens", [0, 1, 40])
@pytest.mark.parametrize("dtype", ["int32", "int64", "uint32"])
def test_outputs_are_those_of_mid_2025(
    dtype: str, num_tokens: int, local: range | None, pad_sorted_ids: bool
) -> None:
    generator = torch.Generator().manual_seed(num_tokens)
    topk_ids = torch.randint(7, (num_tokens, 3), generator=generator).to(getattr(torch, dtype))
    expert_map = None
    if local is not None:
        expert_map = torch.full((7,), -1, dtype=torch.int32)
        expert_map[list(local)] = torch.arange(len(local), dtype=torch.int32)
    outputs = moe_align_block_size(topk_ids, 4, 7, expert_map, pad_sorted_ids)
    expected = mid_2025(topk_ids, 4, 7, expert_map, pad_sorted_ids)
    assert [output.tolist() for output in outputs] == expected
    assert [output.dtype for output in outputs] == [torch.int32] * 3
    assert type(outputs) is tuple
    # Kernels are compiled for the alignment of what they read.
    assert [output.storage_offset() for output in outputs] == [0, 0, 0]


def test_pairs_of_remote_experts_can_be_left_out() -> None:
    expert_map = int32(-1, 0, -1, 1)
    topk_ids = int32(2, 0, 1, 2, 2, 3, 0, 2)
    outputs = moe_align_block_size(topk_ids, 4, 4, expert_map, ignore_invalid_experts=True)
    assert outputs[0].tolist() == [2, 8, 8, 8, 5, 8, 8, 8] + [8] * 12
    assert outputs[1].tolist() == [0, 1, 0, 0, 0]
    assert outputs[2].tolist() == [8]


def aligned(*args: Any, **kwargs: Any) -> tuple[Any, ...]:
    """The arguments of a call in vLLM's order."""
    calls = []

    def align(
        topk_ids: Any,
        block_size: int,
        num_experts: int,
        expert_map: Any = None,
        pad_sorted_ids: bool = False,
        ignore_invalid_experts: bool = False,
    ) -> None:
        calls.append((block_size, num_experts, expert_map, pad_sorted_ids, ignore_invalid_experts))

    accept_both_forms(align)(*args, **kwargs)
    (call,) = calls
    return call


IDS = int32(0, 1)
MAP = int32(0, -1)


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((IDS, 64, 128, 2), {}),
        ((IDS, 64, 128, 0), {}),
        ((IDS, 64, 128, np.int64(2)), {}),
        ((IDS, 64, 128, np.int32(2)), {}),
        ((IDS, np.int32(64), np.int32(128), 2), {}),
        ((IDS, 64, 128), {"topk": 2}),
        ((IDS, 64), {"block_size": 128, "topk": 2}),
        ((IDS,), {"topk": 2, "block_size": 128, "num_experts": 64}),
        ((), {"topk_ids": IDS, "num_experts": 64, "block_size": 128, "topk": 2}),
    ],
)
def test_an_integer_in_fourth_place_or_topk_marks_the_scripts_order(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    assert aligned(*args, **kwargs) == (128, 64, None, False, False)


@pytest.mark.parametrize(
    ("args", "kwargs", "expected"),
    [
        ((IDS, 128, 64), {}, (None, False, False)),
        ((IDS, 128, 64, None), {}, (None, False, False)),
        ((IDS, 128, 64, None, True), {}, (None, True, False)),
        ((IDS, 128, 64, MAP), {}, (MAP, False, False)),
        ((IDS, 128, 64, MAP, True, True), {}, (MAP, True, True)),
        ((IDS, 128, 64, np.zeros(2, np.int32)), {"pad_sorted_ids": True}, (None, True, False)),
        ((IDS, 128), {"num_experts": 64, "expert_map": MAP}, (MAP, False, False)),
        ((IDS,), {"num_experts": 64, "block_size": 128}, (None, False, False)),
        ((), {"topk_ids": IDS, "num_experts": 64, "block_size": 128}, (None, False, False)),
    ],
)
def test_all_else_is_vllms_order(
    args: tuple[Any, ...], kwargs: dict[str, Any], expected: tuple[Any, ...]
) -> None:
    call = aligned(*args, **kwargs)
    assert (call[0], call[1], *call[3:]) == (128, 64, *expected[1:])
    given = args[3] if len(args) > 3 else kwargs.get("expert_map")
    assert call[2] is given


@pytest.mark.parametrize(
    ("args", "kwargs", "got"),
    [
        ((IDS, 64, 128, True), {}, "(Tensor, 64, 128, True)"),
        ((IDS, 64, 128, np.bool_(True)), {}, "(Tensor, 64, 128, bool)"),
        ((IDS, 64, 128, 2.0), {}, "(Tensor, 64, 128, 2.0)"),
        ((IDS, 64, 128, [0, 1]), {}, "(Tensor, 64, 128, list)"),
        ((IDS, 64, 128, 2, True), {}, "(Tensor, 64, 128, 2, True)"),
        ((IDS, 64, 128, 2, None), {}, "(Tensor, 64, 128, 2, None)"),
        ((IDS, 64, 128, 2), {"expert_map": MAP}, "(Tensor, 64, 128, 2, expert_map=Tensor)"),
        ((IDS, 64, 128, 2), {"pad_sorted_ids": True}, "(Tensor, 64, 128, 2, pad_sorted_ids=True)"),
        ((IDS, 64, 128, 2), {"topk": 2}, "(Tensor, 64, 128, 2, topk=2)"),
        ((IDS, 64, 128, MAP), {"topk": 2}, "(Tensor, 64, 128, Tensor, topk=2)"),
        ((IDS, 64, 128, None), {"topk": 2}, "(Tensor, 64, 128, None, topk=2)"),
        ((IDS, 64, 128), {"topk": None}, "(Tensor, 64, 128, topk=None)"),
        ((IDS, 64, 128), {"topk": True}, "(Tensor, 64, 128, topk=True)"),
        ((IDS, 64), {"block_size": 128}, "(Tensor, 64, block_size=128)"),
        ((IDS, 64), {"num_experts": 64, "topk": 2}, "(Tensor, 64, num_experts=64, topk=2)"),
        ((IDS, 64), {}, "(Tensor, 64)"),
        ((), {}, "()"),
        ((IDS, 64, 128), {"top_k": 2}, "(Tensor, 64, 128, top_k=2)"),
    ],
)
def test_a_mix_of_both_orders_is_refused(
    args: tuple[Any, ...], kwargs: dict[str, Any], got: str
) -> None:
    with pytest.raises(TypeError) as refused:
        moe_align_block_size(*args, **kwargs)
    shown = got if np.__version__ >= "2" else got.replace("128, bool)", "128, bool_)")
    assert str(refused.value) == FORMS + shown


def test_the_scripts_order_gives_the_same_outputs() -> None:
    ours = moe_align_block_size(IDS, 3, 4, 1)
    theirs = moe_align_block_size(IDS, 4, 3)
    assert [output.tolist() for output in ours] == [output.tolist() for output in theirs]
    assert [len(output) for output in ours] == [2 + 3 * 3, 3, 1]


def test_the_signature_is_vllms() -> None:
    assert list(inspect.signature(moe_align_block_size).parameters) == [
        *["topk_ids", "block_size", "num_experts"],
        *["expert_map", "pad_sorted_ids", "ignore_invalid_experts"],
    ]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((IDS.float(), 4, 2), TypeError, "topk_ids.dtype: expected an integer type, got float32"),
        ((IDS, 0, 2), ValueError, "block_size: expected an integer in [1, 2147483647], got 0"),
        ((IDS, -3, 2), ValueError, "block_size: expected an integer in [1, 2147483647], got -3"),
        ((IDS, 2.5, 2), TypeError, "block_size: expected an integer, got float"),
        ((IDS, 4, 0), ValueError, "num_experts: expected an integer in [1, 1073741824], got 0"),
        ((IDS, 4, "2"), TypeError, "num_experts: expected an integer, got str"),
        ((IDS, 4, 3, MAP), ValueError, "expert_map.num_elements: expected 3, got 2"),
    ],
)
def test_the_core_says_what_is_wrong(
    arguments: tuple[Any, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as refused:
        moe_align_block_size(*arguments)
    assert str(refused.value) == f"align_block_size: {message}"


@pytest.mark.parametrize("max_tokens", [1, 3, 4, 6, 8])
def test_batched_outputs_are_those_of_mid_2025(max_tokens: int) -> None:
    block_size, counts = 4, [min(count, max_tokens) for count in (2, 3, 0, 6, 8)]
    filler = len(counts) * max_tokens
    slots: list[int] = []
    experts: list[int] = []
    for batch, count in enumerate(counts):
        slots += range(batch * max_tokens, batch * max_tokens + count)
        slots += [filler] * (-count % block_size)
        experts += [batch] * -(-count // block_size)
    capacity = round_up(max(max_tokens, block_size) * len(counts), block_size)
    outputs = batched_moe_align_block_size(max_tokens, block_size, int32(*counts))
    assert outputs[0].tolist() == (slots + [filler] * capacity)[:capacity]
    assert outputs[1].tolist() == (experts + [-1] * capacity)[: capacity // block_size]
    assert outputs[2].tolist() == [len(slots)]
    assert [output.dtype for output in outputs] == [torch.int32] * 3


@pytest.mark.parametrize(("max_tokens", "block_size"), [(8, 0), (8, -4), (8, "4"), (2.5, 4)])
def test_batched_sizes_are_refused_by_the_core(max_tokens: Any, block_size: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"^batched_align_block_size: \w+: expected"):
        batched_moe_align_block_size(max_tokens, block_size, int32(1, 2))


@pytest.mark.parametrize(("x", "y", "multiple"), [(0, 4, 0), (1, 4, 4), (4, 4, 4), (5, 4, 8)])
def test_round_up(x: int, y: int, multiple: int) -> None:
    assert round_up(x, y) == multiple


@pytest.mark.parametrize(("a", "b", "times"), [(0, 4, 0), (1, 4, 1), (4, 4, 1), (5, 4, 2)])
def test_cdiv(a: int, b: int, times: int) -> None:
    assert cdiv(a, b) == times


@pytest.mark.parametrize("found", [None, (9, 0), (10, 3)])
def test_platform(monkeypatch: pytest.MonkeyPatch, found: tuple[int, int] | None) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: found is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: found)
    platform: Any = standin.CONTENTS["vllm.platforms"]["current_platform"]
    assert platform.get_device_capability() == found
    since = platform.has_device_capability
    assert since((8, 9)) == since(89) == since(90) == (found is not None)
    assert since((10, 0)) == since(100) == (found == (10, 3))
    assert (platform.fp8_dtype(), platform.is_fp8_fnuz()) == (torch.float8_e4m3fn, False)


def test_the_page_names_what_there_is() -> None:
    page = (Path(__file__).parents[2] / "docs/vllm-script.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(vllm[\w.]*)` \| (`.*) \|$", page, re.MULTILINE)
    listed = {
        module: {name.strip("`") for name in re.findall(r"`\w+`", row)} for module, row in rows
    }
    # The package has it as a submodule.
    listed["vllm.model_executor.layers.fused_moe"].remove("moe_align_block_size")
    listed["vllm.platforms"] &= {"current_platform"}
    assert listed == {module: set(names) for module, names in standin.CONTENTS.items() if names}
    table = page.partition("| of `torch.cuda` |")[2].partition("\n\n")[0]
    served = " ".join(line.split("|")[1] for line in table.splitlines()[2:])
    assert sorted(re.findall(r"`(\w+)`", served)) == sorted(cuda_on_cpu.CUDA)
