"""The ops as Python calls them, one module each."""

from tessera.ops import (  # noqa: F401  # each registers its op with torch
    align_block_size,
    batched_align_block_size,
    lora_align_block_size,
)
