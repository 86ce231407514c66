"""Hugging Face Transformers generates from a Mixture-of-Experts model, with its experts in Tessera.

The model is a small Qwen3-MoE with random weights, so nothing is downloaded. One line changes the
implementation of its experts; the example times it beside two of transformers' own.
"""

import sys
import time

try:
    import torch
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    import tessera.transformers
except ImportError as error:
    print(f"skipped: {error}")
    sys.exit()

NEW_TOKENS = 16

torch.manual_seed(0)
config = Qwen3MoeConfig(
    vocab_size=4096,
    hidden_size=256,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
    moe_intermediate_size=128,
    num_experts=32,
    num_experts_per_tok=4,
    bos_token_id=1,
    eos_token_id=None,
    pad_token_id=0,
)
model = Qwen3MoeForCausalLM(config).eval()
prompt = torch.randint(2, config.vocab_size, (1, 64))

found = {}
for implementation in ("eager", "grouped_mm", "tessera"):
    model.set_experts_implementation(implementation)  # the only line that Tessera needs
    model.generate(prompt, max_new_tokens=1, do_sample=False)  # the first call loads what it needs
    start = time.perf_counter()
    tokens = model.generate(prompt, max_new_tokens=NEW_TOKENS, do_sample=False)
    milliseconds = (time.perf_counter() - start) * 1e3
    found[implementation] = tokens[0, prompt.shape[1] :].tolist()
    print(f"{implementation}: {milliseconds:.0f} ms for {NEW_TOKENS} new tokens")

for name, state in tessera.transformers.report(model).items():
    print(f"{name}: {state}")
same = sum(a == b for a, b in zip(found["tessera"], found["eager"], strict=True))
print(f"tokens as chosen with eager experts: {same} of {NEW_TOKENS}")
