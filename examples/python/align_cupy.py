"""CuPy arrays in and out on a GPU, on CuPy's current stream."""

import sys

try:
    import cupy

    cupy.cuda.runtime.getDeviceCount()
except Exception as error:
    print(f"skipped: this needs CuPy and a GPU ({type(error).__name__}: {error})")
    sys.exit()

import tessera

NUM_TOKENS, NUM_EXPERTS, TOP_K, BLOCK_SIZE = 4096, 64, 8, 128

with cupy.cuda.Stream(non_blocking=True):
    scores = cupy.random.default_rng(0).random((NUM_TOKENS, NUM_EXPERTS))
    topk_ids = cupy.ascontiguousarray(scores.argsort(axis=1)[:, :TOP_K])  # int64, not converted
    counts = cupy.empty(NUM_EXPERTS, dtype=cupy.int32)
    blocks = tessera.align_block_size(
        topk_ids, block_size=BLOCK_SIZE, num_experts=NUM_EXPERTS, expert_counts=counts
    )
    # Nothing has waited for the GPU yet; these copies to the host do.
    total = int(blocks.num_tokens_post_pad[0])
    slots, owners = blocks.sorted_token_ids[:total], blocks.expert_ids[: total // BLOCK_SIZE]
    used = slots < topk_ids.size
    experts = cupy.repeat(owners, BLOCK_SIZE)[used]
    assert (topk_ids.ravel()[slots[used]] == experts).all()
    assert (counts == cupy.bincount(topk_ids.ravel(), minlength=NUM_EXPERTS)).all()

print("slots with padding:", total, "for", topk_ids.size, "pairs")
