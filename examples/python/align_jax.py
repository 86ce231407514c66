"""JAX arrays in and out, and a call from inside jax.jit."""

import sys

try:
    import jax
except ImportError as error:
    print(f"skipped: JAX is not installed ({error})")
    sys.exit()
import jax.numpy as jnp
import numpy as np

import tessera

NUM_TOKENS, NUM_EXPERTS, TOP_K, BLOCK_SIZE = 1024, 64, 8, 64

scores = jax.random.uniform(jax.random.key(0), (NUM_TOKENS, NUM_EXPERTS))
topk_ids = jax.lax.top_k(scores, TOP_K)[1]

blocks = tessera.align_block_size(topk_ids, block_size=BLOCK_SIZE, num_experts=NUM_EXPERTS)
print("devices of ids and outputs:", {array.device for array in (topk_ids, *blocks)})


def align_on_host(ids: jax.Array) -> tuple[np.ndarray, ...]:
    """The callback: it must return NumPy arrays and must not call JAX."""
    return tuple(
        tessera.align_block_size(np.asarray(ids), block_size=BLOCK_SIZE, num_experts=NUM_EXPERTS)
    )


@jax.jit
def tokens_of_slots(scores: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The token that each slot loads, NUM_TOKENS in slots without one, and the padded total."""
    ids = jax.lax.top_k(scores, TOP_K)[1]
    # Shapes must be known before the ids: the call above has the same sizes.
    shapes = tuple(jax.ShapeDtypeStruct(array.shape, array.dtype) for array in blocks)
    sorted_token_ids, _, num_tokens_post_pad = jax.pure_callback(align_on_host, shapes, ids)
    return sorted_token_ids // TOP_K, num_tokens_post_pad


tokens, total = tokens_of_slots(scores)
assert jnp.array_equal(tokens, blocks.sorted_token_ids // TOP_K)
assert jnp.array_equal(total, blocks.num_tokens_post_pad)
print("slots with padding:", int(total[0]), "for", topk_ids.size, "pairs")
