"""A router under `torch.compile`: softmax, top-k and alignment are one graph, for any batch."""

import torch

import tessera

NUM_EXPERTS, TOP_K, BLOCK_SIZE, WIDTH = 64, 8, 16, 128


class Router(torch.nn.Module):
    """Chooses experts for every token, and sorts the choices into blocks of one expert each."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = torch.nn.Linear(WIDTH, NUM_EXPERTS, bias=False)

    def forward(
        self, tokens: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, tessera.AlignedBlocks[torch.Tensor]]:
        """tokens: [num_tokens, WIDTH]; weights and ids of experts: [num_tokens, TOP_K]."""
        weights, topk_ids = torch.softmax(self.gate(tokens), dim=-1).topk(TOP_K)
        blocks = tessera.align_block_size(topk_ids, block_size=BLOCK_SIZE, num_experts=NUM_EXPERTS)
        return weights, topk_ids, blocks


torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"
router = Router().to(device)
compiled = torch.compile(router, fullgraph=True, dynamic=True)

for num_tokens in (1, 16, 1000):
    weights, topk_ids, blocks = compiled(torch.randn(num_tokens, WIDTH, device=device))
    uncompiled = tessera.align_block_size(topk_ids, block_size=BLOCK_SIZE, num_experts=NUM_EXPERTS)
    for found, expected in zip(blocks, uncompiled, strict=True):
        assert torch.equal(found, expected)
    assert weights.requires_grad  # the gate can be trained; the blocks need no gradient
    print(f"{num_tokens} tokens: {int(blocks.num_tokens_post_pad)} slots, the same as uncompiled")
