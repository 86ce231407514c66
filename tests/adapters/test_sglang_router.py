"""The functions of SGLang's `topk.py` over Tessera, on stand-ins for SGLang of 2025 and of 2026."""

from __future__ import annotations

import importlib
import inspect
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

import engine_ops  # noqa: E402
import tessera.sglang  # noqa: E402
from engine_packages import STANDINS, sites  # noqa: E402
from tessera.sglang.router import FORMS, MODULE  # noqa: E402

VERSIONS = ["0.5.5", "0.5.23"]
T, E, K = 17, 24, 5

UseEngine = Callable[[Path], None]


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest, use_engine: UseEngine) -> str:
    name = str(request.param)
    use_engine(STANDINS / f"sglang-{name}")
    return name


def topk() -> ModuleType:
    return importlib.import_module(MODULE)


def random(*shape: int, seed: int = 0) -> Any:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def combinations(**choices: Sequence[Any]) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*choices.values()):
        yield dict(zip(choices, values, strict=True))


def assert_serves(name: str, calls: list[dict[str, Any]], *positional: Any) -> None:
    """Make each call over SGLang's own function, then over Tessera's, and compare."""

    def made(options: dict[str, Any]) -> Any:
        return getattr(topk(), name)(*positional, **options)

    expected = list(map(made, calls))
    assert len(engine_ops.calls) == len(calls)
    served = tessera.sglang.install()
    assert f"{MODULE}.{name}" in served
    engine_ops.calls.clear()
    for options, (weights, ids) in zip(calls, expected, strict=True):
        found_weights, found_ids = made(options)
        assert found_ids.dtype == ids.dtype
        assert found_ids.tolist() == ids.tolist()
        counted = ids[:, 0] >= 0  # SGLang leaves weights of padding as they are
        torch.testing.assert_close(found_weights[counted], weights[counted], rtol=2e-6, atol=1e-7)
        assert not found_weights[~counted].any()
    assert engine_ops.calls == []


def test_fused_topk_chooses_the_same(version: str) -> None:
    choices: dict[str, Sequence[Any]] = {"renormalize": (False, True)}
    if version == "0.5.5":
        choices["num_token_non_padded"] = (None, torch.tensor(13, dtype=torch.int32))
    calls = list(combinations(**choices))
    if version == "0.5.23":
        bias = {"correction_bias": random(E, seed=1), "scoring_func": "sigmoid"}
        scale = {"routed_scaling_factor": 2.5, "apply_routed_scaling_factor_on_output": True}
        calls += [{**each, **bias, **scale} for each in calls] + [{**calls[0], **scale}]
    assert_serves("fused_topk", calls, random(T, 8), random(T, E), K)


def test_grouped_topk_chooses_the_same(version: str) -> None:
    calls = combinations(
        renormalize=(False, True),
        num_expert_group=(4,),
        topk_group=(2,),
        routed_scaling_factor=(2.5,),
        apply_routed_scaling_factor_on_output=(False, True),
    )
    assert_serves("grouped_topk", list(calls), random(T, 8), random(T, E), K)


def test_biased_grouped_topk_chooses_the_same(version: str) -> None:
    calls = combinations(
        renormalize=(True,) if version == "0.5.5" else (False, True),
        num_expert_group=(1, 4),
        topk_group=(1,),
        routed_scaling_factor=(2.5,),
        apply_routed_scaling_factor_on_output=(False, True),
    )
    bias = random(E, seed=1)
    assert_serves("biased_grouped_topk", list(calls), random(T, 8), random(T, E), bias, K)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("fused_topk", {"num_fused_shared_experts": 1}, "num_fused_shared_experts: expected none"),
        ("fused_topk", {"packed_out": torch.zeros(1)}, "packed_out: expected none, got Tensor"),
        ("fused_topk", {"correction_bias": torch.zeros(E)}, "correction_bias: expected none"),
        ("fused_topk", {"scoring_func": "other"}, "scoring_func: expected one of softmax"),
        ("fused_topk", {"num_token_non_padded": 13}, "num_token_non_padded: expected a torch.Ten"),
        (
            "fused_topk",
            {"num_token_non_padded": torch.zeros(2, dtype=torch.int32)},
            "fused_topk: num_token_non_padded: expected 1 element, got 2",
        ),
        (
            "fused_topk",
            {"num_token_non_padded": torch.zeros(1)},
            "fused_topk: num_token_non_padded.dtype: expected int32, got float32",
        ),
    ],
)
def test_refused_calls_go_to_sglang_and_are_told_once(
    use_engine: UseEngine,
    caplog: pytest.LogCaptureFixture,
    name: str,
    options: dict[str, Any],
    message: str,
) -> None:
    use_engine(STANDINS / "sglang-0.5.23")
    tessera.sglang.install()
    for _ in range(2):
        getattr(topk(), name)(random(T, 8), random(T, E), K, True, **options)
    assert engine_ops.calls == ["choose"] * 2
    warnings = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert message in warnings[0]


def test_without_renormalize_sglang_of_2025_decides(
    use_engine: UseEngine, caplog: pytest.LogCaptureFixture
) -> None:
    use_engine(STANDINS / "sglang-0.5.5")
    tessera.sglang.install()
    groups = {"num_expert_group": 4, "topk_group": 2}
    topk().biased_grouped_topk(
        random(T, 8), random(T, E), random(E), topk=K, renormalize=False, **groups
    )
    assert engine_ops.calls == ["choose"]
    assert "renormalize: expected True in this version" in caplog.text


def test_hooks_of_the_plugin_serve(use_engine: UseEngine) -> None:
    use_engine(STANDINS / "sglang-0.5.23")
    registry = importlib.import_module("sglang.srt.plugins.hook_registry").HookRegistry
    tessera.sglang.plugin()
    registry.apply_hooks()
    topk().fused_topk(random(T, 8), random(T, E), K, True)
    topk().grouped_topk(random(T, 8), random(T, E), K, True, 4, 2)
    assert engine_ops.calls == []


@pytest.mark.parametrize("site", sites("sglang"))
def test_forms_have_the_signatures(site: Path) -> None:
    import ast

    file = site / Path(*MODULE.split(".")).with_suffix(".py")
    body = ast.parse(file.read_text(encoding="utf-8")).body
    found = {
        node.name: tuple(argument.arg for argument in node.args.args)
        for node in body
        if isinstance(node, ast.FunctionDef)
    }
    for name, forms in FORMS.items():
        own = name if name == "fused_topk" else f"{name}_gpu"
        assert found[own] in [form.parameters for form in forms]


def test_standins_have_parameters_of_a_form(version: str) -> None:
    for name, forms in FORMS.items():
        parameters = tuple(inspect.signature(getattr(topk(), name)).parameters)
        assert parameters in [form.parameters for form in forms]
