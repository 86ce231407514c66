class FusedMoEKernel:
    def __init__(self, prepare_finalize, fused_experts):
        self.prepare_finalize = prepare_finalize
        self.fused_experts = fused_experts
