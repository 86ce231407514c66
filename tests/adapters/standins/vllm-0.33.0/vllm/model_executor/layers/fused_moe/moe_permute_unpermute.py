import engine_router


def moe_permute(
    hidden_states,
    a1q_scale,
    topk_ids,
    n_expert,
    n_local_expert=-1,
    expert_map=None,
    permuted_hidden_states=None,
    scratch=None,
):
    num_local = n_expert if n_local_expert == -1 else n_local_expert
    rows, offsets, inverse, pairs, _experts = engine_router.permute(
        hidden_states, topk_ids, n_expert, num_local, expert_map
    )
    if permuted_hidden_states is not None:
        rows = permuted_hidden_states.copy_(rows)
    if a1q_scale is not None and a1q_scale.dim() > 1:
        a1q_scale = a1q_scale[pairs.clamp(max=topk_ids.numel() - 1) // topk_ids.shape[1]]
    return rows, a1q_scale, offsets, inverse, pairs


def moe_unpermute(
    out, permuted_hidden_states, topk_weights, inv_permuted_idx, expert_first_token_offset=None
):
    engine_router.unpermute(
        out, permuted_hidden_states, topk_weights, inv_permuted_idx, expert_first_token_offset
    )
