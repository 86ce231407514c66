from types import SimpleNamespace

import engine_experts


class TritonExperts:
    _lora_context = None
    post_gemm2_hook = None

    def __init__(self, quant_config):
        self.quant_config = quant_config
        self.activation_config = SimpleNamespace(
            clamp_limit=quant_config.gemm1_clamp_limit,
            alpha=quant_config.gemm1_alpha,
            beta=quant_config.gemm1_beta,
        )

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
        config = self.activation_config
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
            (config.clamp_limit, config.alpha, config.beta),
        )
