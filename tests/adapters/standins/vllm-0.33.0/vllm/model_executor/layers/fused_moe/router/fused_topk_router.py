import torch

import engine_router


def fused_topk(
    hidden_states,
    gating_output,
    topk,
    renormalize,
    indices_type=None,
    scoring_func="softmax",
):
    num_tokens = len(hidden_states)
    topk_weights = torch.empty((num_tokens, topk), dtype=torch.float32)
    topk_ids = torch.empty((num_tokens, topk), dtype=indices_type or torch.int32)
    token_expert_indices = torch.empty((num_tokens, topk), dtype=torch.int32)
    engine_router.write(
        topk_weights,
        topk_ids,
        token_expert_indices,
        gating_output,
        scoring=scoring_func,
        renormalize=renormalize,
    )
    return topk_weights, topk_ids, token_expert_indices
