"""Calls that Tessera does not serve run as in eager mode, and say why, once; other experts' ids."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

import tessera.transformers  # noqa: E402
from tiny_models import MULTIPLE, NUM_MOE_LAYERS, experts_of, logits, prompts, tiny_model  # noqa: E402

Said = Callable[[], list[str]]
Calls = list[dict[str, Any]]
FOLLOWED = "autograd follows the call (torch.no_grad() and torch.inference_mode() avoid it)"


def same_as_eager(model: Any, forward: Callable[[Any, Any], Any] = logits) -> Any:
    """Two forwards, whose bits are those of the eager experts."""
    ids = prompts()
    found = [forward(model, ids) for _ in range(2)]
    model.set_experts_implementation("eager")
    expected = forward(model, ids)
    model.set_experts_implementation("tessera")
    assert all(torch.equal(one, expected) for one in found)
    return found[0]


def test_gradients(calls: Calls, said: Said) -> None:
    """Training works; the same model in `torch.no_grad` is served again."""
    model = tiny_model("mixtral")
    found = same_as_eager(model, lambda model, ids: model(ids).logits)
    found.sum().backward()
    assert experts_of(model)[0].gate_up_proj.grad.abs().max() > 0
    assert not calls
    assert said() == [f"MixtralExperts runs eagerly: {FOLLOWED}"]
    logits(model, prompts())
    with torch.inference_mode():
        model(prompts())
    assert len(calls) == 2 * NUM_MOE_LAYERS


@pytest.mark.parametrize("followed", ["hidden_states", "top_k_weights", "parameter"])
def test_gradients_of_one_tensor(followed: str, calls: Calls, said: Said) -> None:
    experts = experts_of(tiny_model("qwen3_moe"))[0].requires_grad_(False)
    x, ids, weights = inputs(experts)
    experts(x, ids, weights)
    assert len(calls) == 1
    named = {"hidden_states": x, "top_k_weights": weights, "parameter": experts.down_proj}
    leaf = named[followed].requires_grad_()
    experts(x, ids, weights).sum().backward()
    assert leaf.grad.abs().max() > 0
    assert len(calls) == 1
    assert said() == [f"Qwen3MoeExperts runs eagerly: {FOLLOWED}"]


def test_unknown_activation(calls: Calls, said: Said) -> None:
    model = tiny_model("mixtral", hidden_act="relu")
    reason = "fused_experts has no activation that computes its ReLU"
    assert set(tessera.transformers.report(model).values()) == {reason}
    assert not said()
    same_as_eager(model)
    assert not calls
    assert said() == [f"MixtralExperts runs eagerly: {reason}"]


def test_unknown_activation_in_compiled_code(calls: Calls, said: Said) -> None:
    """The loop of the eager experts breaks the graph, as it does without Tessera."""
    experts = experts_of(tiny_model("mixtral", hidden_act="relu"))[0]
    x, ids, weights = inputs(experts)
    torch.compiler.reset()
    with torch.no_grad():
        found = torch.compile(experts, backend="eager")(x, ids, weights)
        assert torch.equal(found, experts(x, ids, weights))
    assert not calls
    assert len(said()) == 1


def test_unknown_gate(calls: Calls, said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("gpt_oss")

    def softly_limited(self: Any, rows: Any) -> Any:
        gate, up = rows[..., ::2], rows[..., 1::2]
        return torch.tanh(gate / self.limit) * self.limit * (up + 1)

    monkeypatch.setattr(type(experts_of(model)[0]), "_apply_gate", softly_limited)
    reasons = set(tessera.transformers.report(model).values())
    assert len(reasons) == 1
    assert "softly_limited" in reasons.pop()
    same_as_eager(model)
    assert not calls
    assert len(said()) == 1


def test_each_reason_is_said(calls: Calls, said: Said) -> None:
    for activation in ("relu", "tanh"):
        logits(tiny_model("mixtral", hidden_act=activation), prompts())
    same_as_eager(tiny_model("mixtral", dtype=torch.float64))
    assert not calls
    assert [one.rpartition(": ")[2] for one in said()] == [
        "fused_experts has no activation that computes its ReLU",
        "fused_experts has no activation that computes its Tanh",
        "its weights are torch.float64",
    ]


def test_weights_of_a_type_that_the_device_has_no_code_for(
    calls: Calls, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, where the op takes float16 and bfloat16 alone."""
    from tessera.transformers import experts

    explain = tessera.explain

    def of_a_gpu(op: str, dtype: Any, **shape: Any) -> list[tessera.Implementation]:
        return [] if dtype in (torch.float32, "float32") else explain(op, dtype=dtype, **shape)

    monkeypatch.setattr(tessera, "explain", of_a_gpu)
    uncached = experts._is_selected.__wrapped__
    monkeypatch.setattr(experts, "_is_selected", functools.cache(uncached))
    model = tiny_model("mixtral")
    reason = "its weights are torch.float32 on cpu, for which this build has no code"
    assert set(tessera.transformers.report(model).values()) == {reason}
    assert not said()
    same_as_eager(model)
    assert not calls
    assert said() == [f"MixtralExperts runs eagerly: {reason}"]
    logits(model.bfloat16(), prompts())
    assert set(tessera.transformers.report(model).values()) == {"served"}
    assert len(calls) == NUM_MOE_LAYERS


def test_autocast_with_other_weights(calls: Calls, said: Said) -> None:
    """Inputs in float32 and weights in bfloat16 are no call of one data type."""
    experts = experts_of(tiny_model("mixtral", dtype=torch.bfloat16))[0]
    x, ids, weights = inputs(experts)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = experts(x.float(), ids, weights)
        experts.config._experts_implementation = "eager"
        assert torch.equal(found, experts(x.float(), ids, weights))
    assert not calls
    assert said() == [
        "MixtralExperts runs eagerly: its inputs are torch.float32, its weights torch.bfloat16"
    ]


def test_calls_that_the_op_refuses(said: Said) -> None:
    """The router's weights in float64 are outside the op's domain, and not outside torch's."""
    experts = experts_of(tiny_model("mixtral"))[0]
    x, ids, weights = inputs(experts)
    with torch.no_grad():
        found = experts(x, ids, weights.double())
        experts.config._experts_implementation = "eager"
        assert torch.equal(found, experts(x, ids, weights.double()))
    assert said() == [
        "MixtralExperts runs eagerly: fused_experts: topk_weights.dtype: expected float16, "
        "bfloat16 or float32, got float64"
    ]


def test_the_same_reason_with_other_sizes_is_said_once(
    said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(x: Any, *args: Any, **options: Any) -> Any:
        raise ValueError(f"{len(x)} tokens are too many")

    monkeypatch.setattr(tessera, "fused_experts", refuse)
    experts = experts_of(tiny_model("mixtral"))[0]
    x, ids, weights = inputs(experts)
    with torch.no_grad():
        for num_tokens in (12, 5):
            experts(x[:num_tokens], ids[:num_tokens], weights[:num_tokens])
    assert said() == ["MixtralExperts runs eagerly: 12 tokens are too many"]


def test_report_without_a_run(said: Said) -> None:
    """Other implementations, devices, and experts that do not dispatch."""
    report = tessera.transformers.report
    model = tiny_model("olmoe", implementation="grouped_mm")
    reason = "its config has experts_implementation='grouped_mm'"
    assert set(report(model).values()) == {reason}
    model.set_experts_implementation("tessera")
    assert set(report(model).values()) == {"served"}
    assert set(report(model.to("meta")).values()) == {
        "its weights are on meta, for which this build has no code"
    }
    model = torch.nn.ModuleDict({"experts": torch.nn.ModuleList([torch.nn.Linear(2, 2)])})
    assert report(model) == {
        "experts": "ModuleList does not dispatch through transformers' ExpertsInterface"
    }
    assert not said()


def inputs(experts: Any) -> tuple[Any, Any, Any]:
    """Of the module's data type: hidden states, ids and weights of 12 tokens with 2 experts."""
    generator = torch.Generator().manual_seed(5)
    dtype = experts.down_proj.dtype
    x = torch.randn(12, experts.hidden_dim, generator=generator).to(dtype)
    ids = torch.rand(12, experts.num_experts, generator=generator).topk(2).indices
    return x, ids, torch.rand(12, 2, generator=generator).to(dtype)


@pytest.mark.parametrize("id_type", [torch.int64, torch.int32])
def test_experts_of_other_ranks_add_nothing(id_type: Any, calls: Calls) -> None:
    """As transformers splits experts: ids of others are `num_experts`, with a weight of 0."""
    model = tiny_model("qwen3_moe")
    experts = experts_of(model)[0].requires_grad_(False)
    x, ids, weights = inputs(experts)
    whole = experts(x, ids.to(id_type), weights)
    parts = []
    for rank in range(2):
        part = experts_of(tiny_model("qwen3_moe"))[0].requires_grad_(False)
        part.num_experts, part._is_expert_parallel = 4, True
        mine = slice(4 * rank, 4 * rank + 4)
        part.gate_up_proj = torch.nn.Parameter(experts.gate_up_proj[mine], requires_grad=False)
        part.down_proj = torch.nn.Parameter(experts.down_proj[mine], requires_grad=False)
        other = ids // 4 != rank
        local = torch.where(other, 4, ids % 4).to(id_type)
        parts.append(part(x, local, weights.masked_fill(other, 0)))
        # A sentinel adds nothing, whatever its weight.
        assert torch.equal(parts[-1], part(x, local, weights.masked_fill(other, 9)))
    assert len(calls) == 5
    experts.config._experts_implementation = "batched_mm"
    exact = experts.double()(x.double(), ids, weights.double())
    # The sum of two parts is rounded once more than the whole.
    assert (parts[0] + parts[1] - exact).norm() <= MULTIPLE * (whole - exact).norm()


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )


def test_tessera_imports_neither_torch_nor_transformers() -> None:
    code = "import sys, tessera; assert not {'torch', 'transformers'} & set(sys.modules)"
    finished = run(code)
    assert finished.returncode == 0, finished.stderr


def test_without_transformers() -> None:
    finished = run("import sys; sys.modules['transformers'] = None; import tessera.transformers")
    assert finished.stderr.splitlines()[-1] == (
        "ImportError: tessera.transformers: expected transformers 5.12 or newer, found none "
        "(pip install 'tessera[transformers]')"
    )


def test_too_old_transformers(tmp_path: Path) -> None:
    (tmp_path / "transformers").mkdir()
    (tmp_path / "transformers/__init__.py").write_text("__version__ = '5.9.1'\n")
    finished = run("import tessera.transformers", PYTHONPATH=str(tmp_path))
    assert finished.stderr.splitlines()[-1] == (
        "ImportError: tessera.transformers: expected transformers 5.12 or newer, found 5.9.1"
    )
