"""Tessera: expert-aligned token blocks for Mixture-of-Experts inference.

import numpy as np
import tessera

topk_ids = np.random.random((4096, 64)).argsort(axis=1)[:, :2].astype(np.int32)
blocks = tessera.align_block_size(topk_ids, block_size=128, num_experts=64)
assert not tessera.contract_violations(topk_ids, blocks, block_size=128, num_experts=64)
"""

from tessera import _starting  # noqa: F401  # before what takes long to import
from tessera._results import (
    AlignedBlocks,
    PermutedTokens,
    QuantizedFp8,
    SelectedAndAligned,
    SelectedExperts,
)
from tessera.contract import Violation, contract_violations
from tessera.info import Backend, Implementation, backends, build, explain, version
from tessera.ops.align_block_size import align_block_size
from tessera.ops.batched_align_block_size import (
    batched_align_block_size,
    batched_contract_violations,
)
from tessera.ops.fused_experts import (
    fused_experts,
    fused_experts_bound_used,
    fused_experts_contract_violations,
)
from tessera.ops.fused_moe import fused_moe, fused_moe_contract_violations
from tessera.ops.lora_align_block_size import lora_align_block_size, lora_contract_violations
from tessera.ops.moe_permute import moe_permute, moe_permute_contract_violations
from tessera.ops.moe_sum import moe_sum, moe_sum_contract_violations
from tessera.ops.moe_unpermute import moe_unpermute, moe_unpermute_contract_violations
from tessera.ops.quantize_fp8 import quantize_fp8, quantize_fp8_contract_violations
from tessera.ops.select_and_align import (
    select_and_align,
    select_and_align_contract_violations,
)
from tessera.ops.select_experts import select_experts, select_experts_contract_violations
from tessera.statistics import RoutingStatistics
from tessera.strict import InvalidRoutingError, check
from tessera.warmup import warmup

__all__ = [
    "AlignedBlocks",
    "Backend",
    "Implementation",
    "InvalidRoutingError",
    "PermutedTokens",
    "QuantizedFp8",
    "RoutingStatistics",
    "SelectedAndAligned",
    "SelectedExperts",
    "Violation",
    "align_block_size",
    "backends",
    "batched_align_block_size",
    "batched_contract_violations",
    "build",
    "check",
    "contract_violations",
    "explain",
    "fused_experts",
    "fused_experts_bound_used",
    "fused_experts_contract_violations",
    "fused_moe",
    "fused_moe_contract_violations",
    "lora_align_block_size",
    "lora_contract_violations",
    "moe_permute",
    "moe_permute_contract_violations",
    "moe_sum",
    "moe_sum_contract_violations",
    "moe_unpermute",
    "moe_unpermute_contract_violations",
    "quantize_fp8",
    "quantize_fp8_contract_violations",
    "select_and_align",
    "select_and_align_contract_violations",
    "select_experts",
    "select_experts_contract_violations",
    "version",
    "warmup",
]


def __getattr__(name: str) -> str:
    # The library has the version, and is loaded only when it is needed.
    if name == "__version__":
        return version()
    raise AttributeError(f"module 'tessera' has no attribute {name!r}")
