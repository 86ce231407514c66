from vllm.model_executor.layers.fused_moe.moe_align_block_size import moe_align_block_size


def fused_experts(topk_ids, block_size, num_experts, **options):
    return moe_align_block_size(topk_ids, block_size, num_experts, **options)
