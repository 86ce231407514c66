class FusedMoEKernel:
    def __init__(self, prepare_finalize, fused_experts):
        self.prepare_finalize = prepare_finalize
        self.fused_experts = fused_experts


class FusedMoEKernelModularImpl:
    def __init__(self, prepare_finalize, fused_experts):
        self.prepare_finalize = prepare_finalize
        self.fused_experts = fused_experts

    def _fused_experts(
        self,
        in_dtype,
        a1q,
        a1q_scale,
        w1,
        w2,
        topk_weights,
        topk_ids,
        activation,
        global_num_experts,
        local_num_experts,
        expert_map,
        apply_router_weight_on_input,
        expert_tokens_meta,
        output_alias=None,
    ):
        workspace = a1q.new_empty(topk_ids.numel() * (w1.shape[1] + a1q.shape[1]), dtype=in_dtype)
        fused_out = workspace[: a1q.numel()].view(a1q.shape)
        self.fused_experts.apply(
            output=fused_out,
            hidden_states=a1q,
            w1=w1,
            w2=w2,
            topk_weights=topk_weights,
            topk_ids=topk_ids,
            activation=activation,
            global_num_experts=global_num_experts,
            expert_map=expert_map,
            a1q_scale=a1q_scale,
            a2_scale=self.fused_experts.a2_scale,
            workspace13=workspace,
            workspace2=workspace.clone(),
            expert_tokens_meta=expert_tokens_meta,
            apply_router_weight_on_input=apply_router_weight_on_input,
        )
        return fused_out
