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
    """A published model: its config.json, and how many of its layers are used by default.

    If `has_fp8_experts`, the weights of the experts are fp8 with scales of blocks.
    """

    layers: int
    config: dict[str, Any]
    has_fp8_experts: bool = False

    def config_of(self, layers: int) -> dict[str, Any]:
        """The config.json of the model with this many layers."""
        config = self.config | {"num_hidden_layers": layers}
        if self.has_fp8_experts:
            kept = [f"model.layers.{i}.{name}" for i in range(layers) for name in _KEPT_IN_LAYER]
            config["quantization_config"] = _FP8 | {"modules_to_not_convert": ["lm_head", *kept]}
        return config

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
            "quantization": "block" if self.has_fp8_experts else "none",
        }


_FP8 = {
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "quant_method": "fp8",
    "weight_block_size": [128, 128],
}
# What stays in bfloat16: all but the experts, which are what is measured, and no other kernels are
# needed. vLLM looks up its fused projection of queries, keys and values by the names of its parts.
_KEPT_IN_LAYER = (
    "mlp.gate",
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
)
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
MODELS["Qwen3-30B-A3B-FP8"] = dataclasses.replace(MODELS["Qwen3-30B-A3B"], has_fp8_experts=True)

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
# DeepGEMM compiles its kernels at run time. Where vLLM finds it, vLLM also rounds the scales of
# fp8 activations to powers of two, and quantises them apart from the activation function.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_USE_DEEP_GEMM": "0",
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
    config = MODELS[model].config_of(layers)
    (folder / "config.json").write_text(json.dumps(config, indent=1))


# vLLM's name of the scales of a weight's blocks is the weight's, and this.
_SCALES = "_scale_inv"


def initialise(model: Any) -> None:
    """Give a torch module the same random weights in every process."""
    import torch

    parameters = dict(model.named_parameters())
    device = next(iter(parameters.values())).device
    generator = torch.Generator(device=device).manual_seed(0)
    for name, weight in parameters.items():
        if name.endswith(_SCALES):
            continue  # set with its weight
        if weight.dim() == 1:
            weight.data.fill_(1.0)
            continue
        deviation = 1.0 if "embed" in name else weight.shape[-1] ** -0.5
        if weight.dtype == torch.float8_e4m3fn:
            scales = parameters[name + _SCALES]
            _initialise_blocks(weight.data, scales.data, deviation, generator)
        else:
            weight.data.normal_(0.0, deviation, generator=generator)


def _initialise_blocks(weight: Any, scales: Any, deviation: float, generator: Any) -> None:
    """Give fp8 weights random values, and their blocks scales for values of this deviation.

    As in a quantised model the largest value of a block is about the largest of its type: of the
    16,384 normal values of a block one is about four deviations from zero.
    """
    import torch

    limit = torch.finfo(weight.dtype).max
    values = torch.empty(weight.shape[1:], dtype=torch.float32, device=weight.device)
    for expert in weight:
        # torch has no random values of this type, and does not clamp what it converts to it.
        values.normal_(0.0, limit / 4, generator=generator)
        expert.copy_(values.clamp_(-limit, limit))
    # Of different sizes, so that a product with the scale of another block has other values.
    scales.uniform_(0.8, 1.2, generator=generator).mul_(deviation / (limit / 4))
