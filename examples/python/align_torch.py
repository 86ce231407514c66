"""torch tensors in and out, with outputs that are allocated once and used by every call."""

import torch

import tessera

NUM_TOKENS, NUM_EXPERTS, TOP_K, BLOCK_SIZE = 1024, 64, 8, 64

torch.manual_seed(0)
out = None
addresses = set()
for step in range(3):
    scores = torch.rand(NUM_TOKENS, NUM_EXPERTS)
    topk_ids = scores.topk(TOP_K, dim=1).indices  # int64: no integer type needs conversion
    out = tessera.align_block_size(
        topk_ids, block_size=BLOCK_SIZE, num_experts=NUM_EXPERTS, out=out
    )
    addresses.add(out.sorted_token_ids.data_ptr())

    total = int(out.num_tokens_post_pad)
    slots = out.sorted_token_ids[:total].long()
    owners = out.expert_ids[: total // BLOCK_SIZE].repeat_interleave(BLOCK_SIZE)
    used = slots < topk_ids.numel()
    assert torch.equal(topk_ids.flatten()[slots[used]], owners[used].long())
    print(f"step {step}: {total} slots, {1 - float(used.float().mean()):.1%} of them padding")

print("same memory in every call:", len(addresses) == 1)
