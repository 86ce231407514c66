import engine_experts


class TritonExperts:
    _lora_context = None

    def __init__(self, quant_config):
        self.quant_config = quant_config

    @property
    def a2_scale(self):
        return self.quant_config.a2_scale

    def apply(
        self,
        output,
        hidden_states,
        w1,
        w2,
        topk_weights,
        topk_ids,
        activation,
        global_num_experts,
        expert_map,
        a1q_scale,
        a2_scale,
        workspace13,
        workspace2,
        expert_tokens_meta,
        apply_router_weight_on_input,
    ):
        config = self.quant_config
        engine_experts.apply(
            self,
            output,
            hidden_states,
            w1,
            w2,
            topk_weights,
            topk_ids,
            activation,
            expert_map,
            (workspace13, workspace2),
            apply_router_weight_on_input,
            (config.gemm1_clamp_limit, config.gemm1_alpha, config.gemm1_beta),
        )
