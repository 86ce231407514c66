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


class FusedTopKRouter:
    def __init__(self, top_k, scoring_func="softmax", renormalize=True):
        self.top_k = top_k
        self.scoring_func = scoring_func
        self.renormalize = renormalize

    def _compute_routing(self, hidden_states, router_logits, indices_type, *, input_ids=None):
        return fused_topk(
            hidden_states=hidden_states,
            gating_output=router_logits,
            topk=self.top_k,
            renormalize=self.renormalize,
            indices_type=indices_type,
            scoring_func=self.scoring_func,
        )[:2]
