"""Models of transformers over Tessera on a GPU; skipped, with the reason, where there is none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

import tessera.transformers  # noqa: E402
from fp8_models import FORMS, fp8_model  # noqa: E402
from tiny_models import (  # noqa: E402
    MULTIPLE,
    NUM_MOE_LAYERS,
    exact_logits,
    experts_of,
    logits,
    prompts,
    tiny_model,
)

DEVICE = "cuda"
EVERY_MODEL = pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss"])


@pytest.fixture(autouse=True)
def gpu() -> None:
    backend = next(backend for backend in tessera.backends() if backend.name == "cuda")
    if not backend.available:
        pytest.skip(f"no CUDA device: {backend.detail}")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device: torch finds none")


def models(name: str) -> tuple[Any, Any]:
    """A model in bfloat16 on the device, and the same on the host."""
    on_host = tiny_model(name, dtype=torch.bfloat16)
    return tiny_model(name, dtype=torch.bfloat16).to(DEVICE), on_host


def eager(model: Any, ids: Any) -> Any:
    model.set_experts_implementation("eager")
    result = logits(model, ids)
    model.set_experts_implementation("tessera")
    return result


@EVERY_MODEL
def test_logits(name: str, calls: list[dict[str, Any]], said: Callable[[], list[str]]) -> None:
    """As on the host: a token's error is compared with the eager experts', at the median."""
    (model, on_host), ids = models(name), prompts()
    assert list(tessera.transformers.report(model).values()) == ["served"] * NUM_MOE_LAYERS
    found = logits(model, ids.to(DEVICE)).cpu()
    assert len(calls) == NUM_MOE_LAYERS
    assert all(call["args"][0].device.type == DEVICE for call in calls)
    exact = exact_logits(on_host, ids)
    eager_error = eager(model, ids.to(DEVICE)).cpu().double() - exact
    assert eager_error.abs().max() > 0
    median, eager_median = (
        one.norm(dim=-1).median() for one in (found.double() - exact, eager_error)
    )
    assert median <= MULTIPLE * eager_median
    assert not said()


@EVERY_MODEL
def test_greedy_tokens(name: str, calls: list[dict[str, Any]]) -> None:
    """Where the best logit leads by more than twice the difference bound, its token is chosen.

    The bound is the median of the eager experts' largest errors: now and then a rounding chooses
    another expert for a token.
    """
    (model, on_host), ids = models(name), prompts()
    tokens = model.generate(ids.to(DEVICE), max_new_tokens=32, do_sample=False, use_cache=True)
    assert len(calls) == 32 * NUM_MOE_LAYERS
    assert tokens.shape == (3, 20 + 32)
    exact = exact_logits(on_host, tokens.cpu())[:, 19:-1]
    eager_error = eager(model, tokens).cpu().double()[:, 19:-1] - exact
    bound = (MULTIPLE + 1) * eager_error.abs().amax(dim=-1).median()
    best = exact.topk(2, dim=-1)
    decided = best.values[..., 0] - best.values[..., 1] > 2 * bound
    assert decided.float().mean() > 0.4
    agree = best.indices[..., 0] == tokens[:, 20:].cpu()
    assert agree[decided].float().mean() > 0.95


@pytest.mark.parametrize("form", [name for name in FORMS if name != "tensor-static"])
def test_experts_in_fp8(
    form: str, calls: list[dict[str, Any]], said: Callable[[], list[str]]
) -> None:
    """A token's error is compared with that of Tessera on the host, at the median."""
    on_host, dequantized = fp8_model("qwen3_moe", torch.bfloat16, **FORMS[form])
    model, ids = fp8_model("qwen3_moe", torch.bfloat16, **FORMS[form])[0].to(DEVICE), prompts()
    assert list(tessera.transformers.report(model).values()) == ["served"] * NUM_MOE_LAYERS
    found, expected = logits(model, ids.to(DEVICE)).cpu(), logits(on_host, ids)
    assert len(calls) == 2 * NUM_MOE_LAYERS
    exact = exact_logits(dequantized, ids)
    error, host_error = ((one.double() - exact).norm(dim=-1).median() for one in (found, expected))
    assert 0 < error <= MULTIPLE * host_error
    assert not said()


def test_static_scales_run_eagerly() -> None:
    model = fp8_model("qwen3_moe", torch.bfloat16, **FORMS["tensor-static"])[0].to(DEVICE)
    reason = "its static activation scales are on a GPU, where comparing them would wait"
    assert list(tessera.transformers.report(model).values()) == [reason] * NUM_MOE_LAYERS


# Inductor and Triton warn of their own doings.
@pytest.mark.filterwarnings("ignore")
@EVERY_MODEL
def test_compiled_experts(name: str) -> None:
    model, _ = models(name)
    experts = experts_of(model)[0].requires_grad_(False)
    generator = torch.Generator().manual_seed(5)
    x = torch.randn((12, 64), generator=generator).bfloat16().to(DEVICE)
    topk_weights, ids = torch.rand((12, 8), generator=generator).topk(3)
    weights, ids = topk_weights.bfloat16().to(DEVICE), ids.to(DEVICE)
    torch.compiler.reset()
    found = torch.compile(experts, fullgraph=True)(x, ids, weights)
    assert torch.equal(found, experts(x, ids, weights))


@EVERY_MODEL
def test_experts_in_float32_run_eagerly(
    name: str, calls: list[dict[str, Any]], said: Callable[[], list[str]]
) -> None:
    model, ids = tiny_model(name).to(DEVICE), prompts().to(DEVICE)
    reason = "its weights are torch.float32 on cuda, for which this build has no code"
    assert list(tessera.transformers.report(model).values()) == [reason] * NUM_MOE_LAYERS
    assert not said()
    found = [logits(model, ids) for _ in range(2)]
    assert not calls
    assert said() == [f"{type(experts_of(model)[0]).__name__} runs eagerly: {reason}"]
    expected = eager(model, ids)
    assert all(torch.allclose(one, expected, rtol=1e-4, atol=1e-5) for one in found)
