"""Mixture-of-Experts models with random weights for vLLM, with the layers of published ones.

vLLM's own random weights are so small that all logits are alike, and greedy decoding then gives
the same tokens for every prompt. `initialise` gives weights the size of a trained model's, the same
ones in every process.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Model:
    """A published model: its config.json, and how many of its layers are used by default."""

    layers: int
    config: dict[str, Any]

    def sizes(self, layers: int) -> dict[str, Any]:
        """What a reader of results has to know of the model, with this many layers."""
        config = self.config
        return {
            "layers": layers,
            "layers_of_model": config["num_hidden_layers"],
            "hidden_size": config["hidden_size"],
            "intermediate_size": config.get("moe_intermediate_size", config["intermediate_size"]),
            "num_experts": config.get("num_local_experts", config.get("num_experts")),
            "top_k": config["num_experts_per_tok"],
            "num_heads": config["num_attention_heads"],
            "num_kv_heads": config["num_key_value_heads"],
            "vocab_size": config["vocab_size"],
        }


_COMMON = {
    "attention_dropout": 0.0,
    "dtype": "bfloat16",
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "output_router_logits": False,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "use_cache": True,
}
MODELS = {
    "Qwen3-30B-A3B": Model(
        24,
        _COMMON
        | {
            "architectures": ["Qwen3MoeForCausalLM"],
            "model_type": "qwen3_moe",
            "attention_bias": False,
            "bos_token_id": 151643,
            "decoder_sparse_step": 1,
            "eos_token_id": 151645,
            "head_dim": 128,
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "max_position_embeddings": 40960,
            "max_window_layers": 48,
            "mlp_only_layers": [],
            "moe_intermediate_size": 768,
            "norm_topk_prob": True,
            "num_attention_heads": 32,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "num_hidden_layers": 48,
            "num_key_value_heads": 4,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1000000.0,
            "router_aux_loss_coef": 0.001,
            "sliding_window": None,
            "use_sliding_window": False,
            "vocab_size": 151936,
        },
    ),
    "Mixtral-8x7B": Model(
        8,
        _COMMON
        | {
            "architectures": ["MixtralForCausalLM"],
            "model_type": "mixtral",
            "bos_token_id": 1,
            "eos_token_id": 2,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "max_position_embeddings": 32768,
            "num_attention_heads": 32,
            "num_experts_per_tok": 2,
            "num_hidden_layers": 32,
            "num_key_value_heads": 8,
            "num_local_experts": 8,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1000000.0,
            "router_aux_loss_coef": 0.02,
            "sliding_window": None,
            "vocab_size": 32000,
        },
    ),
    "OLMoE-1B-7B": Model(
        16,
        _COMMON
        | {
            "architectures": ["OlmoeForCausalLM"],
            "model_type": "olmoe",
            "attention_bias": False,
            "clip_qkv": None,
            "eos_token_id": 50279,
            "hidden_size": 2048,
            "intermediate_size": 1024,
            "max_position_embeddings": 4096,
            "norm_topk_prob": False,
            "num_attention_heads": 16,
            "num_experts": 64,
            "num_experts_per_tok": 8,
            "num_hidden_layers": 16,
            "num_key_value_heads": 16,
            "pad_token_id": 1,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "router_aux_loss_coef": 0.01,
            "vocab_size": 50304,
        },
    ),
}

# What vLLM compiles and captures: its defaults; nothing; or nothing but graphs for decoding, with
# which an engine starts within seconds, and its kernels run in the order of the code.
EXECUTIONS: dict[str, dict[str, Any]] = {
    "decode-graphs": {
        "compilation_config": {
            "mode": 0,
            "cudagraph_mode": "FULL_DECODE_ONLY",
            "cudagraph_capture_sizes": [1, 8, 32, 64, 128, 256],
        }
    },
    "default": {},
    "eager": {"enforce_eager": True},
}
ENGINE_OPTIONS: dict[str, Any] = {
    "skip_tokenizer_init": True,
    "load_format": "dummy",
    "dtype": "bfloat16",
    "seed": 0,
    "max_model_len": 4096,
    "gpu_memory_utilization": 0.85,
    "enable_prefix_caching": False,
    "max_num_batched_tokens": 8192,
    "max_num_seqs": 256,
}
# Of vLLM's processes: nothing is reported, fetched or compiled that the measurement does not need.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
}
# What of Tessera runs: nothing, all but the experts, everything.
VARIANTS = {
    "vllm": {"TESSERA_VLLM": "0"},
    "router": {"TESSERA_VLLM_EXPERTS": "0"},
    "tessera": {},
}


def argument_parser(description: str | None, *, execution: str) -> argparse.ArgumentParser:
    """The options that the measurements share; `execution` is the default of its option."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("model", choices=MODELS, help="whose shape the model has")
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        required=True,
        help="results, bench/results/engine/NAME.json for the page; overwritten",
    )
    parser.add_argument("--commit", metavar="REV", help="what to record where git cannot tell")
    parser.add_argument("--layers", type=int, help="instead of the model's usual number here")
    parser.add_argument("--execution", choices=EXECUTIONS, default=execution)
    return parser


def environment_of(variant: str, inherited: dict[str, str]) -> dict[str, str]:
    """The environment of an engine that runs a variant."""
    kept = {
        name: value
        for name, value in inherited.items()
        if name not in ("TESSERA_VLLM", "TESSERA_VLLM_EXPERTS")
    }
    return ENVIRONMENT | kept | VARIANTS[variant]


def write_config(folder: Path, model: str, layers: int) -> None:
    """Write the config.json of a model with this many layers."""
    folder.mkdir(parents=True, exist_ok=True)
    config = MODELS[model].config | {"num_hidden_layers": layers}
    (folder / "config.json").write_text(json.dumps(config, indent=1))


def initialise(model: Any) -> None:
    """Give a torch module on a GPU the same random weights in every process."""
    import torch

    generator = torch.Generator(device="cuda").manual_seed(0)
    for name, weight in model.named_parameters():
        if weight.dim() == 1:
            weight.data.fill_(1.0)
        else:
            deviation = 1.0 if "embed" in name else weight.shape[-1] ** -0.5
            weight.data.normal_(0.0, deviation, generator=generator)
