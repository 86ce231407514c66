"""A Mixture-of-Experts layer in NumPy: one matrix product per block, each of one expert."""

import numpy as np

import tessera

NUM_TOKENS, NUM_EXPERTS, TOP_K, BLOCK_SIZE, WIDTH = 256, 8, 2, 16, 32

rng = np.random.default_rng(seed=0)
tokens = rng.standard_normal((NUM_TOKENS, WIDTH))
experts = rng.standard_normal((NUM_EXPERTS, WIDTH, WIDTH))
topk_ids = rng.random((NUM_TOKENS, NUM_EXPERTS)).argsort(axis=1)[:, :TOP_K].astype(np.int32)

counts = np.empty(NUM_EXPERTS, dtype=np.int32)
sorted_ids, expert_ids, num_post_pad = tessera.align_block_size(
    topk_ids, block_size=BLOCK_SIZE, num_experts=NUM_EXPERTS, expert_counts=counts
)

# Filler slots read a row of zeros, and write their result to a row that is not read.
rows = np.vstack([np.repeat(tokens, TOP_K, axis=0), np.zeros(WIDTH)])
results = np.empty_like(rows)
for block in range(int(num_post_pad[0]) // BLOCK_SIZE):
    pairs = sorted_ids[block * BLOCK_SIZE : (block + 1) * BLOCK_SIZE]
    results[pairs] = rows[pairs] @ experts[expert_ids[block]]
layer = results[:-1].reshape(NUM_TOKENS, TOP_K, WIDTH).sum(axis=1)

plain = np.stack(
    [sum(token @ experts[e] for e in ids) for token, ids in zip(tokens, topk_ids, strict=True)]
)
np.testing.assert_allclose(layer, plain, rtol=1e-12, atol=1e-12)
print("pairs per expert:", counts.tolist())
print("slots with padding:", int(num_post_pad[0]), "for", topk_ids.size, "pairs")
print("largest difference from the plain loop:", float(np.abs(layer - plain).max()))
