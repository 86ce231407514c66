"""A Mixture-of-Experts layer in NumPy, from its router's logits to blocks of one expert each."""

import numpy as np

import tessera

NUM_TOKENS, NUM_EXPERTS, TOP_K, BLOCK_SIZE, WIDTH = 256, 8, 2, 16, 32

rng = np.random.default_rng(seed=0)
tokens = rng.standard_normal((NUM_TOKENS, WIDTH)).astype(np.float32)
router = rng.standard_normal((WIDTH, NUM_EXPERTS)).astype(np.float32)
experts = rng.standard_normal((NUM_EXPERTS, WIDTH, WIDTH)).astype(np.float32)

weights, topk_ids, sorted_ids, expert_ids, num_post_pad = tessera.select_and_align(
    tokens @ router, top_k=TOP_K, block_size=BLOCK_SIZE, renormalize=True
)

# Filler slots read a row of zeros, and write their result to a row that is not read.
rows = np.vstack([np.repeat(tokens, TOP_K, axis=0), np.zeros((1, WIDTH), np.float32)])
results = np.empty_like(rows)
for block in range(int(num_post_pad[0]) // BLOCK_SIZE):
    pairs = sorted_ids[block * BLOCK_SIZE : (block + 1) * BLOCK_SIZE]
    results[pairs] = rows[pairs] @ experts[expert_ids[block]]
layer = (results[:-1].reshape(NUM_TOKENS, TOP_K, WIDTH) * weights[..., None]).sum(axis=1)

scores = np.exp((tokens @ router).astype(np.float64))
scores /= scores.sum(axis=1, keepdims=True)
plain = np.zeros((NUM_TOKENS, WIDTH))
for token, of_token in enumerate(scores):
    best = np.argsort(-of_token, kind="stable")[:TOP_K]
    for expert in best:
        weight = of_token[expert] / of_token[best].sum()
        plain[token] += weight * (tokens[token].astype(np.float64) @ experts[expert])
np.testing.assert_allclose(layer, plain, rtol=1e-3, atol=1e-4)
print("experts of token 0:", topk_ids[0].tolist(), "with weights", weights[0].tolist())
print("slots with padding:", int(num_post_pad[0]), "for", topk_ids.size, "pairs")
print("largest difference from the plain loop:", float(np.abs(layer - plain).max()))
