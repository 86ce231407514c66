"""A call at the int32 limit, on a GPU with the memory for it."""

from __future__ import annotations

import pytest

import tessera

torch = pytest.importorskip("torch", reason="torch is not installed")

GIB = 1 << 30
NEEDED_GIB = 90  # ids 2, outputs 8, and what sorts them to compare with


@pytest.mark.parametrize("num_experts", [100, 5000])
def test_capacity_is_the_largest_int32(num_experts: int) -> None:
    free_gib = torch.cuda.mem_get_info()[0] // GIB
    if free_gib < NEEDED_GIB:
        pytest.skip(f"needs {NEEDED_GIB} GiB of memory on the device, found {free_gib}")
    block_size = 128
    num_ids = 2**31 - 1 - num_experts * (block_size - 1)
    dtype = torch.int8 if num_experts <= 128 else torch.int16
    topk_ids = torch.randint(num_experts, (num_ids,), dtype=dtype, device="cuda")
    sorted_ids, expert_ids, post_pad = tessera.align_block_size(
        topk_ids, block_size=block_size, num_experts=num_experts
    )
    assert len(sorted_ids) == 2**31 - 1

    start = 0
    for expert in range(0, num_experts, 1 if num_experts <= 128 else 499):
        if expert != 0 and num_experts > 128:
            start = int((expert_ids == expert).nonzero()[0]) * block_size
        members = (topk_ids == expert).nonzero().flatten()
        end = start + len(members)
        assert torch.equal(sorted_ids[start:end], members.int())
        padded_end = -(-end // block_size) * block_size
        assert bool((sorted_ids[end:padded_end] == num_ids).all())
        blocks = expert_ids[start // block_size : padded_end // block_size]
        assert bool((blocks == expert).all())
        start = padded_end
    if num_experts <= 128:
        assert int(post_pad) == start
    assert bool((sorted_ids[int(post_pad) :] == num_ids).all())
    assert bool((expert_ids[int(post_pad) // block_size :] == -1).all())
