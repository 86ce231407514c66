"""The flags that describe an experts class, against transformers' own `batched_mm`."""

from __future__ import annotations

import copy
import itertools
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

from transformers.activations import ACT2FN  # noqa: E402
from transformers.integrations.moe import use_experts_implementation  # noqa: E402

import tessera.transformers  # noqa: E402
from tiny_models import MULTIPLE  # noqa: E402

T, K, E, H, F = 40, 2, 4, 24, 20
FLAGS = [
    dict(zip(("has_gate", "has_bias", "is_transposed", "is_concatenated"), flags, strict=True))
    for flags in itertools.product([True, False], repeat=4)
    if flags[0] or flags[3]  # without a gate nothing is interleaved
]


class Experts(torch.nn.Module):  # type: ignore[misc, name-defined]
    """Random experts of any layout; transformers reads the flags from its decorator."""

    def __init__(self, config: Any, **flags: bool) -> None:
        super().__init__()
        self.num_experts = E
        self.act_fn = ACT2FN["gelu" if flags["is_concatenated"] else "silu"]
        up, rows = ("gate_up_proj", 2 * F) if flags["has_gate"] else ("up_proj", F)
        for name, outputs, width in ((up, rows, H), ("down_proj", H, F)):
            shape = (E, width, outputs) if flags["is_transposed"] else (E, outputs, width)
            setattr(self, name, torch.nn.Parameter(torch.randn(shape) * width**-0.5))
            if flags["has_bias"]:
                setattr(self, f"{name}_bias", torch.nn.Parameter(torch.randn(E, outputs)))

    def forward(self, *inputs: Any) -> Any:
        """The eager way, which no test takes."""
        raise AssertionError


class InterleavedExperts(Experts):
    """Alternating rows of gate and up."""

    def _apply_gate(self, rows: Any) -> Any:
        return self.act_fn(rows[..., ::2]) * rows[..., 1::2]


def decorated(flags: dict[str, bool]) -> Any:
    base = Experts if flags["is_concatenated"] else InterleavedExperts
    config = SimpleNamespace(_experts_implementation="tessera")
    torch.manual_seed(11)
    return use_experts_implementation(type("Experts", (base,), {}), **flags)(config, **flags)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("flags", FLAGS, ids=lambda flags: "-".join(k for k in flags if flags[k]))
def test_layouts(flags: dict[str, bool], dtype: str, calls: list[dict[str, Any]]) -> None:
    experts = decorated(flags).to(getattr(torch, dtype)).requires_grad_(False)
    x, weights = torch.randn(T, H).to(experts.down_proj), torch.rand(T, K).to(experts.down_proj)
    ids = torch.rand(T, E).topk(K).indices
    assert tessera.transformers.report(torch.nn.ModuleList([experts])) == {"0": "served"}
    found = experts(x, ids, weights)
    assert found.dtype == x.dtype
    assert len(calls) == 1
    experts.config._experts_implementation = "batched_mm"
    exact = copy.deepcopy(experts).double()(x.double(), ids, weights.double())
    other = experts(x, ids, weights)
    assert (found - exact).norm() <= MULTIPLE * (other - exact).norm()


def test_no_tokens() -> None:
    experts = decorated(FLAGS[0]).requires_grad_(False)
    found = experts(torch.empty(0, H), torch.empty(0, K, dtype=torch.int64), torch.empty(0, K))
    assert found.shape == (0, H)
