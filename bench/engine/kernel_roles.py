"""Which part of a layer a GPU kernel of vLLM or Tessera belongs to, and the time of each part."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

# The first pattern that a name matches decides. Tessera's products apply the activation
# themselves, and `swap_ab_layer` and `combine` sum the rows of a token.
ROLES = {
    "experts": r"tessera.*(product|swap_ab|find_experts)|fused_moe_kernel|fused_moe::|"
    r"moe_gemm|MoeFCGemm|grouped_gemm|moe_wna16|m_grouped|bmm_.*moe",
    "combine": r"tessera.*(combine|moe_sum|moe_unpermute)|moe_sum|finalizeMoe|moe_unpermute|"
    r"native::reduce_kernel.*sum_functor",  # of more than 4 slots vLLM's moe_sum is torch's sum
    "align": r"tessera.*(wide_kernel|few_kernel|grid_kernel|one_cta_kernel|cluster_kernel|"
    r"redundant_kernel|batched_kernel|lora_kernel|moe_permute)|moe_(lora_)?align|count_and_sort|"
    r"moe_permute|expandInputRows|shuffleInputRows",
    "router": r"tessera.*select_experts|topk_?(gating|softmax|sigmoid)|grouped_topk|"
    r"moe_?(softmax|sigmoid|topk)",
    "activation": r"act_and_mul|silu|swiglu|gelu|doActivation",
    "quantization": r"tessera.*_kernel.*QuantizeFp8|group_quant",
    "attention": r"flash(?!infer)|fmha|attention|attn|reshape_and_cache|rotary|prepare_varlen|"
    r"paged_|scheduler_metadata",
    "copies": r"^Memcpy|^Memset",
}
REST = "rest"


class Kernel(NamedTuple):
    """The launches of one kernel."""

    name: str
    us: float
    count: int


def role_of(name: str) -> str:
    """The part of a layer that a kernel belongs to."""
    for role, pattern in ROLES.items():
        if re.search(pattern, name, re.IGNORECASE):
            return role
    return REST


def summary(kernels: Iterable[Kernel], shown: int = 24) -> dict[str, Any]:
    """The time of each role, and the kernels that took the most time.

    Args:
        kernels: all that ran, each once.
        shown: how many kernels are listed by name.
    """
    found = sorted(kernels, key=lambda kernel: -kernel.us)
    roles: dict[str, float] = dict.fromkeys([*ROLES, REST], 0.0)
    for kernel in found:
        roles[role_of(kernel.name)] += kernel.us
    return {
        "us": round(sum(roles.values()), 1),
        "roles_us": {role: round(us, 1) for role, us in roles.items()},
        "kernels": [
            {
                "name": kernel.name[:160],
                "role": role_of(kernel.name),
                "us": round(kernel.us, 1),
                "count": kernel.count,
            }
            for kernel in found[:shown]
        ],
    }
