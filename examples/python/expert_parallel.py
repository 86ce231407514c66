"""Two processes share a layer's experts: each aligns its own, and together they have all blocks."""

import tempfile
from pathlib import Path

import torch
import torch.distributed as dist

import tessera

NUM_RANKS, TOKENS_PER_RANK, NUM_EXPERTS, TOP_K, BLOCK_SIZE = 2, 256, 16, 4, 16


def align_local_experts(rank: int, store: str) -> None:
    """The work of one process, whose experts are an equal share of all, in order."""
    on_gpu = torch.cuda.device_count() >= NUM_RANKS
    device = torch.device("cuda", rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=NUM_RANKS,
    )

    # Every process routes its own tokens, and all gather the routes of all.
    torch.manual_seed(rank)
    own_ids = torch.rand(TOKENS_PER_RANK, NUM_EXPERTS, device=device).topk(TOP_K).indices
    topk_ids = own_ids.new_empty(NUM_RANKS * TOKENS_PER_RANK, TOP_K)
    dist.all_gather(list(topk_ids.chunk(NUM_RANKS)), own_ids)

    experts_per_rank = NUM_EXPERTS // NUM_RANKS
    first = rank * experts_per_rank
    expert_map = torch.full((NUM_EXPERTS,), -1, dtype=torch.int32, device=device)
    expert_map[first : first + experts_per_rank] = torch.arange(experts_per_rank)
    blocks = tessera.align_block_size(
        topk_ids,
        block_size=BLOCK_SIZE,
        num_experts=NUM_EXPERTS,
        expert_map=expert_map,
        ignore_invalid_experts=True,
    )

    # Only for display: no process needs the other's blocks to compute its own experts.
    gathered = [[torch.empty_like(array) for _ in range(NUM_RANKS)] for array in blocks]
    for everyones, array in zip(gathered, blocks, strict=True):
        dist.all_gather(everyones, array)
    if rank == 0:
        alone = tessera.align_block_size(topk_ids, block_size=BLOCK_SIZE, num_experts=NUM_EXPERTS)
        compare(gathered, alone, experts_per_rank)
        print("backend:", dist.get_backend())
    dist.destroy_process_group()


def compare(
    gathered: list[list[torch.Tensor]],
    alone: tessera.AlignedBlocks[torch.Tensor],
    experts_per_rank: int,
) -> None:
    """Checks that the concatenated blocks of all ranks equal the blocks of a single process."""
    slots, experts = [], []
    for rank, (ids, expert_ids, total) in enumerate(zip(*gathered, strict=True)):
        num_slots = int(total)
        slots.append(ids[:num_slots])
        experts.append(expert_ids[: num_slots // BLOCK_SIZE] + rank * experts_per_rank)
        print(f"rank {rank}: {num_slots} slots in {num_slots // BLOCK_SIZE} blocks")
    num_slots = int(alone.num_tokens_post_pad)
    assert torch.equal(torch.cat(slots), alone.sorted_token_ids[:num_slots])
    assert torch.equal(torch.cat(experts), alone.expert_ids[: num_slots // BLOCK_SIZE])
    print("together the same as one process:", num_slots, "slots")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder, "store"))
        torch.multiprocessing.spawn(align_local_experts, args=(store,), nprocs=NUM_RANKS)
