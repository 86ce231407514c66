"""Records the experts that a model of Transformers chooses, as a log for `tessera inspect`.

The model is a small Qwen3-MoE with random weights, so nothing is downloaded.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any, TextIO


def write_log(log: TextIO, model_id: str, num_experts: int, ids: Any) -> None:
    """Write a log of ids [tokens, layers, top_k]; negative ones stand for no expert."""
    log.write(json.dumps({"type": "meta", "model_id": model_id, "num_experts": num_experts}) + "\n")
    for token in ids.tolist():
        for layer, row in enumerate(token):
            route = {"type": "route", "layer": layer, "topk_ids": [e for e in row if e >= 0]}
            log.write(json.dumps(route) + "\n")


def main() -> None:
    """Run the model on random tokens, and write what its routers choose."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--log", type=Path, default=Path("recorded.jsonl"), help="a file that does not exist yet"
    )
    options = parser.parse_args()
    try:
        import torch
        from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM
    except ImportError as error:
        print(f"skipped: {error}")
        sys.exit()

    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=128,
        hidden_size=64,
        moe_intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_experts=8,
        num_experts_per_tok=2,
    )
    model = Qwen3MoeForCausalLM(config)  # or AutoModelForCausalLM.from_pretrained(...)
    tokens = torch.randint(config.vocab_size, (1, 300))
    with torch.no_grad():
        # For each layer the logits of its router, [tokens, experts].
        layers = model(tokens, output_router_logits=True).router_logits
    chosen = [logits.topk(config.num_experts_per_tok).indices for logits in layers]
    ids = torch.stack(chosen, dim=1)
    with options.log.open("x", encoding="utf-8") as log:
        write_log(log, "random-qwen3-moe", config.num_experts, ids)
    print(f"wrote {ids.shape[0]} tokens of {ids.shape[1]} layers to {options.log}")


if __name__ == "__main__":
    main()
