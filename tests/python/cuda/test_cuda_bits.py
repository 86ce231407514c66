"""Every CUDA implementation gives the bits of the CPU's, on every input, every time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

import tessera
from cuda_calls import (
    SHAPES,
    assert_same,
    call_on_host,
    call_shifted,
    host_ids,
    implementations,
    options_of,
)
from random_calls import calls
from recorded_logs import recorded
from tessera import verification
from tessera._op import Op, op_names
from tessera.routing_log import read_routing_log

IMPLEMENTATIONS = implementations()
DTYPES = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]
RANDOM_CASES = 300


OPS = [Op(name) for name in op_names()]
EVERY_OPS = pytest.mark.parametrize(
    ("op", "implementation"),
    [
        pytest.param(op, name, id=f"{op.name}-{name}")
        for op in OPS
        for name, refusal in verification.implementations(op, 0).items()
        if not refusal.startswith("needs compute capability")
    ],
)


def problems_of(op: Op, chosen: list[str], implementation: str) -> tuple[dict[str, list[str]], int]:
    """What is wrong, by case, and how many cases the implementation took."""
    found, taken = {}, 0
    for case in chosen:
        try:
            wrong = verification.problems(op, case, 0, implementation)
        except NotImplementedError:
            continue
        taken += 1
        if wrong:
            found[case] = wrong
    return found, taken


@EVERY_OPS
def test_table_of_cases(op: Op, implementation: str) -> None:
    found, taken = problems_of(op, verification.case_names(op), implementation)
    assert found == {}
    assert taken > 0


@pytest.mark.parametrize("size", [64, 3000, 100_000])
@EVERY_OPS
def test_random_cases(op: Op, implementation: str, size: int) -> None:
    count = RANDOM_CASES if size < 100_000 else RANDOM_CASES // 10
    chosen = [f"random:{seed}:{size}" for seed in range(count)]
    found, taken = problems_of(op, chosen, implementation)
    assert found == {}
    # Tensor cores need rows of whole words of 16 bytes, which no random call of size 64 has.
    assert taken > 0 or (op.name in ("fused_experts", "fused_moe") and size == 64)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("broken", [False, True])
def test_every_type_of_ids(dtype: str, broken: bool) -> None:
    import torch

    for shape in SHAPES:
        limits: Any = np.iinfo(dtype)
        topk_ids = host_ids(shape, 3).clip(0, limits.max).astype(dtype)
        if broken:
            topk_ids.reshape(-1)[::5] = limits.max
            topk_ids.reshape(-1)[1::7] = limits.min
        found = tessera.align_block_size(torch.from_numpy(topk_ids).cuda(), **options_of(shape))
        assert_same(found, tessera.align_block_size(topk_ids, **options_of(shape)))


def test_maps_and_options() -> None:
    import torch

    for shape in SHAPES:
        num_experts = shape[1]
        topk_ids = host_ids(shape, 4, broken=True)
        expert_map = np.full(num_experts, -1, np.int32)
        expert_map[::2] = np.arange(len(expert_map[::2]), dtype=np.int32)
        expert_map[1::8] = 2**31 - 1
        for ignores in (False, True):
            options = options_of(shape) | {
                "ignore_invalid_experts": ignores,
                "pad_sorted_ids": True,
                "tail_expert": 7,
            }
            counts = torch.empty(num_experts, dtype=torch.int32, device="cuda")
            dropped = torch.empty(1, dtype=torch.int32, device="cuda")
            found = tessera.align_block_size(
                torch.from_numpy(topk_ids).cuda(),
                expert_map=torch.from_numpy(expert_map).cuda(),
                expert_counts=counts,
                num_dropped=dropped,
                **options,
            )
            expected = call_on_host(topk_ids, options | {"expert_map": expert_map})
            assert_same([*found, counts, dropped], expected)


@pytest.mark.parametrize("shift", [1, 2, 3])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_any_alignment_and_any_workspace(implementation: str, shift: int) -> None:
    taken = 0
    for shape in SHAPES:
        for dtype in ("int32", "int64", "uint8"):
            topk_ids = host_ids(shape, 5).clip(0, np.iinfo(dtype).max).astype(dtype)
            try:
                found = call_shifted(topk_ids, options_of(shape), implementation, shift)
            except NotImplementedError:
                continue
            taken += 1
            assert_same(found, call_on_host(topk_ids, options_of(shape)))
    assert taken > 0


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_drawn_calls(implementation: str) -> None:
    taken = 0

    @settings(max_examples=300, deadline=None)
    @given(calls())
    def compare(call: tuple[Any, dict[str, Any], int]) -> None:
        nonlocal taken
        topk_ids, options, shift = call
        try:
            found = call_shifted(topk_ids, options, implementation, shift % 5)
        except NotImplementedError:
            return
        taken += 1
        assert_same(found, call_on_host(topk_ids, options))

    compare()
    assert taken > 0


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_same_call_gives_the_same_bits_200_times(shape: tuple[int, int, int, int]) -> None:
    import torch

    host = host_ids(shape, 6, broken=True)
    topk_ids = torch.from_numpy(host).cuda()
    first = tessera.align_block_size(topk_ids, **options_of(shape))
    assert_same(first, tessera.align_block_size(host, **options_of(shape)))
    for _ in range(199):
        again = tessera.align_block_size(topk_ids, **options_of(shape))
        assert all(torch.equal(got, want) for got, want in zip(again, first, strict=True))


@pytest.mark.parametrize(
    "name", ["olmoe-1b-7b_layer0", "qwen1.5-moe-a2.7b_layer0", "qwen1.5-moe-a2.7b_layer12"]
)
def test_recorded_logs(name: str) -> None:
    import torch

    path = recorded(f"{name}.jsonl")
    for topk_ids in read_routing_log(path).layers.values():
        for block_size in (16, 64, 128):
            num_experts = int(topk_ids.max()) + 1
            options: dict[str, Any] = {"block_size": block_size, "num_experts": num_experts}
            expected = tessera.align_block_size(topk_ids, **options)
            found = tessera.align_block_size(torch.from_numpy(topk_ids).cuda(), **options)
            assert_same(found, expected)
            assert not tessera.contract_violations(topk_ids, found, **options)


def test_no_ids_and_one_id() -> None:
    import torch

    none = torch.empty((0, 2), dtype=torch.int64, device="cuda")
    found = tessera.align_block_size(none, block_size=4, num_experts=3)
    assert [array.tolist() for array in found] == [[], [], [0]]
    one = tessera.align_block_size(torch.tensor(3, device="cuda"), block_size=2, num_experts=5)
    assert [array.tolist() for array in one] == [[0, 1], [3], [2]]
