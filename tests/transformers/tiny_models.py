"""Small models of transformers with random weights, one for each form of experts."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from transformers import AutoModelForCausalLM, logging
from transformers.models.deepseek_v3 import DeepseekV3Config
from transformers.models.gpt_oss import GptOssConfig
from transformers.models.mixtral import MixtralConfig
from transformers.models.nemotron_h import NemotronHConfig
from transformers.models.olmoe import OlmoeConfig
from transformers.models.qwen3_moe import Qwen3MoeConfig

# Tessera's error against float64 may be this multiple of another implementation's. The two share
# everything but the experts, and `fused_experts` rounds no value more often than the others do; so
# the expected quotient is at most 1, and 2 leaves room for chance. A wrong formula costs orders of
# magnitude.
MULTIPLE = 2

VOCABULARY = 128
_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}

# Configurations by name; every model has two layers with experts.
_CONFIGS: dict[str, tuple[type, dict[str, Any]]] = {
    "qwen3_moe": (
        Qwen3MoeConfig,
        {"head_dim": 16, "moe_intermediate_size": 48, "num_experts": 8, "num_experts_per_tok": 3},
    ),
    "mixtral": (
        MixtralConfig,
        {"intermediate_size": 96, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "olmoe": (
        OlmoeConfig,
        {"intermediate_size": 40, "num_experts": 8, "num_experts_per_tok": 4},
    ),
    "deepseek_v3": (
        DeepseekV3Config,
        {
            "num_hidden_layers": 3,
            "first_k_dense_replace": 1,
            "num_key_value_heads": 4,
            "intermediate_size": 96,
            "moe_intermediate_size": 32,
            "n_routed_experts": 8,
            "num_experts_per_tok": 2,
            "n_group": 4,
            "topk_group": 2,
            "q_lora_rank": 32,
            "kv_lora_rank": 32,
            "qk_nope_head_dim": 16,
            "qk_rope_head_dim": 16,
            "v_head_dim": 16,
        },
    ),
    "gpt_oss": (
        GptOssConfig,
        {
            "head_dim": 16,
            "intermediate_size": 48,
            "num_local_experts": 8,
            "num_experts_per_tok": 3,
            # Not the defaults of `fused_experts`, and a limit that some projections exceed.
            "swiglu_alpha": 1.5,
            "swiglu_limit": 1.25,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        },
    ),
    "nemotron_h": (
        NemotronHConfig,
        {
            "layers_block_type": ["moe", "attention", "moe"],
            "head_dim": 16,
            "n_routed_experts": 8,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 48,
            "moe_shared_expert_intermediate_size": 48,
            "n_group": 1,
            "topk_group": 1,
            "mamba_num_heads": 8,
            "mamba_head_dim": 16,
            "ssm_state_size": 16,
            "n_groups": 2,
            "chunk_size": 16,
        },
    ),
}
NAMES = tuple(_CONFIGS)
NUM_MOE_LAYERS = 2


def tiny_model(
    name: str, implementation: str = "tessera", dtype: torch.dtype = torch.float32, **options: Any
) -> Any:
    """A model in evaluation mode; the same weights for the same name."""
    config_type, given = _CONFIGS[name]
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(7)
        config = config_type(**_COMMON | given | options)
        model = AutoModelForCausalLM.from_config(config, experts_implementation=implementation)
        for key, tensor in (*model.named_parameters(), *model.named_buffers()):
            if ("proj" in key and tensor.dim() >= 2) or key.endswith("gate.weight"):
                torch.nn.init.normal_(tensor, std=_COMMON["hidden_size"] ** -0.5)
            elif "bias" in key and "conv" not in key and "dt_" not in key:
                torch.nn.init.normal_(tensor, std=0.3)
    return model.eval().to(dtype)


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps transformers from remarks about the sizes of such models."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def experts_of(model: Any) -> list[Any]:
    return [module for module in model.modules() if hasattr(module, "is_concatenated")]


def prompts() -> torch.Tensor:
    """int64 [3, 20]."""
    return torch.randint(2, VOCABULARY, (3, 20), generator=torch.Generator().manual_seed(3))


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(ids).logits
    return result


def exact_logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """The logits of a model's weights in float64, computed eagerly.

    transformers casts to float32 in norms, softmax and router; here these casts lead to float64.
    """
    model = copy.deepcopy(model).double()
    model.set_experts_implementation("eager")
    double = torch.float64
    with (
        mock.patch.multiple(torch, float32=double, float=double),
        mock.patch.object(torch.Tensor, "float", torch.Tensor.double),
    ):
        return logits(model, ids)
