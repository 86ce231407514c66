"""A program written for vLLM, run unchanged with Tessera in place of vLLM.

It imports vLLM's function, and so needs vLLM, or the launcher, which needs torch alone:

python vllm_swap.py                                with vLLM's own kernel, where vLLM is installed
python -m tessera.vllm vllm_swap.py                with Tessera, whether vLLM is installed or not
python -m tessera.vllm --device cpu vllm_swap.py   the same on a machine without a GPU

Where no launcher fits, in a server or a notebook, one line of the program does it instead, before
the first call: `tessera.vllm.install()`.
"""

import sys

try:
    from vllm.model_executor.layers.fused_moe.moe_align_block_size import moe_align_block_size
except ModuleNotFoundError as error:
    if error.name != "vllm":
        raise
    sys.exit("vllm_swap.py: vLLM is not installed; python -m tessera.vllm runs this without it")
import torch

NUM_TOKENS, NUM_EXPERTS, TOP_K, BLOCK_SIZE = 1024, 64, 8, 64

torch.manual_seed(0)
scores = torch.rand(NUM_TOKENS, NUM_EXPERTS, device="cuda")
topk_ids = scores.topk(TOP_K, dim=1).indices.int()
sorted_ids, expert_ids, num_post_pad = moe_align_block_size(topk_ids, BLOCK_SIZE, NUM_EXPERTS)
torch.cuda.synchronize()

total = int(num_post_pad)
slots = sorted_ids[:total].long()
used = slots < topk_ids.numel()
owners = expert_ids[: total // BLOCK_SIZE].repeat_interleave(BLOCK_SIZE)
assert torch.equal(topk_ids.flatten()[slots[used]], owners[used])
ascending = (slots[used].diff() > 0) | (owners[used].diff() > 0)
print("every slot holds a pair of its block's expert:", int(used.sum()) == topk_ids.numel())
print("in ascending order inside each expert:", bool(ascending.all()))
