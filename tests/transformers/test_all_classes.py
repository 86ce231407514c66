"""Every experts class of the installed transformers, with random weights, against `batched_mm`."""

from __future__ import annotations

import copy
import importlib
import re
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from tessera.transformers import report  # noqa: E402
from tiny_models import MULTIPLE  # noqa: E402

UNSERVED = {
    "Inkling2Experts": "fused_experts has no activation that computes its "
    "Inkling2Experts._apply_gate",
    "Inkling2LoopExperts": "fused_experts has no activation that computes its "
    "Inkling2LoopExperts._apply_gate",
    "MuseSparkExperts": "it normalises each expert's output",
}
DECORATED = re.compile(r"^@use_experts_implementation.*\nclass (\w+)", re.MULTILINE)
FILES = sorted(Path(transformers.__file__).parent.glob("models/*/modeling_*.py"))


class Sizes:
    """A configuration for any model: every number is 8, every other value what most models have."""

    _experts_implementation = "tessera"
    mlp_hidden_act = "relu2"
    moe_latent_size = None
    swiglu_alpha = 1.702
    rms_norm_eps = post_norm_eps = 1e-6

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return "silu" if "act" in name else 8


def found_classes() -> list[tuple[Path, str]]:
    return [
        (file, name)
        for file in FILES
        for name in DECORATED.findall(file.read_text(encoding="utf-8"))
    ]


@pytest.mark.parametrize(("file", "name"), found_classes(), ids=lambda one: Path(one).stem)
def test_class(file: Path, name: str) -> None:
    module = importlib.import_module(f"transformers.models.{file.parent.name}.{file.stem}")
    experts = getattr(module, name)(Sizes()).requires_grad_(False)
    assert report(torch.nn.ModuleList([experts])) == {"0": UNSERVED.get(name, "served")}
    if name in UNSERVED:
        return
    generator = torch.Generator().manual_seed(13)
    for parameter in experts.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator))
    x, weights = torch.randn(64, 8, generator=generator), torch.rand(64, 2, generator=generator)
    ids = torch.rand(64, 8, generator=generator).topk(2).indices
    found = experts(x, ids, weights)
    experts.config._experts_implementation = "batched_mm"
    exact = copy.deepcopy(experts).double()(x.double(), ids, weights.double())
    other = experts(x, ids, weights)
    assert (found - exact).norm() <= MULTIPLE * (other - exact).norm()


def test_most_classes_are_found() -> None:
    assert len(found_classes()) > 30
