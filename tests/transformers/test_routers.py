"""Routers of transformers against `select_experts`, with the arguments that its page names."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

import tessera  # noqa: E402

PAGE = Path(__file__).parents[2] / "docs" / "ops" / "select_experts.md"
MODULES = {
    "MixtralTopKRouter": "mixtral",
    "Qwen3MoeTopKRouter": "qwen3_moe",
    "DeepseekV3TopkRouter": "deepseek_v3",
    "Llama4Router": "llama4",
    "GptOssTopKRouter": "gpt_oss",
}
OF_EXPERTS = "apply_router_weight_on_input"
ROWS = re.findall(r"^\|.*\| `(\w*Router)` \| (\d+) \| (\d+) \| (.*) \|$", PAGE.read_text(), re.M)


def router_class(name: str) -> Any:
    model = MODULES[name]
    return getattr(importlib.import_module(f"transformers.models.{model}.modeling_{model}"), name)


def made(name: str, num_experts: int, arguments: dict[str, Any]) -> Any:
    """A router with random weights, whose configuration says what the arguments say."""
    config = SimpleNamespace(
        hidden_size=64,
        num_experts=num_experts,
        num_local_experts=num_experts,
        num_experts_per_tok=arguments["top_k"],
        norm_topk_prob=arguments.get("renormalize", False),
        n_group=arguments.get("num_expert_group"),
        topk_group=arguments.get("topk_group"),
        routed_scaling_factor=arguments.get("routed_scaling_factor"),
    )
    router = router_class(name)(config)
    for tensor in (*router.parameters(), *router.buffers()):
        torch.nn.init.normal_(tensor, std=0.1)
    return router


def test_the_page_has_these_routers() -> None:
    assert [name for name, *_ in ROWS] == list(MODULES)


@pytest.mark.parametrize(("name", "num_experts", "top_k", "words"), ROWS)
def test_the_choice_and_its_weights(name: str, num_experts: str, top_k: str, words: str) -> None:
    torch.manual_seed(0)
    arguments: dict[str, Any] = {"top_k": int(top_k)}
    given = re.findall(r"`(\w+)=([^`]+)`", words)
    arguments |= {key: ast.literal_eval(value) for key, value in given if key != OF_EXPERTS}
    router = made(name, int(num_experts), arguments)
    if "`correction_bias`" in words:
        arguments["correction_bias"] = router.e_score_correction_bias
    with torch.no_grad():
        outputs = router(torch.randn(300, 64))
    if name == "Llama4Router":  # it returns a weight for each expert, 0 for those not chosen
        weights, logits = outputs
        weights, ids = weights.topk(arguments["top_k"], dim=1)
    else:
        logits, weights, ids = outputs
    found_weights, found_ids = tessera.select_experts(logits, **arguments)
    # DeepseekV3TopkRouter does not sort them.
    ids, order = ids.sort(1)
    found_ids, found_order = found_ids.sort(1)
    assert torch.equal(ids.int(), found_ids)
    torch.testing.assert_close(
        found_weights.gather(1, found_order), weights.gather(1, order), rtol=1e-5, atol=0
    )
