import engine_router


def grouped_topk(
    hidden_states,
    gating_output,
    topk,
    renormalize,
    num_expert_group=0,
    topk_group=0,
    scoring_func="softmax",
    routed_scaling_factor=1.0,
    e_score_correction_bias=None,
):
    return engine_router.choose(
        gating_output,
        topk,
        scoring=scoring_func,
        renormalize=renormalize,
        bias=e_score_correction_bias,
        num_groups=num_expert_group,
        topk_group=topk_group,
        factor=routed_scaling_factor,
    )
