"""`select_experts` in the benchmark: its shapes, its peers, and what a peer is refused for."""

from __future__ import annotations

import dataclasses
import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest

import tessera
from tessera.cli.main import main
from tessera.tools.bench.contender import NotTimedError
from tessera.tools.bench.driver import ContractBrokenError, Request, measure
from tessera.tools.bench.methods import Effort
from tessera.tools.bench.ops import OPS
from tessera.tools.bench.ops import select_experts as bench

torch = pytest.importorskip("torch", reason="torch is not installed")

OP = OPS["select_experts"]
SHAPES = [shape for shape in OP.presets["grid"] if shape.num_tokens == 64]
GROUPED = next(shape for shape in SHAPES if shape.has_bias)
PLAIN = next(shape for shape in SHAPES if not shape.has_bias)


def measured() -> Any:
    effort = Effort(repetitions=1, min_seconds=0.0)
    return measure(Request("cpu", SHAPES, ["call"], effort=effort, op=OP))


def test_names_are_unique() -> None:
    for shapes in OP.presets.values():
        assert len({shape.name for shape in shapes}) == len(shapes)
    assert set(OP.usual_shapes) <= set(OP.presets["grid"])


def test_every_kind_of_shape_is_timed_beside_torch_and_a_copy() -> None:
    document = measured()
    assert len(document["rows"]) == 6
    for row in document["rows"]:
        on_one_thread = {"tessera/1", "tessera/1 new", "torch/1"}
        two_calls = set() if "groups" in row["shape"] else {"torch/1 topk"}
        assert set(row["us"]) == {"tessera", "torch", "copy", *on_one_thread, *two_calls}
        assert set(row["refusals"]) == {"torch/1 topk"} - two_calls
        assert not row["violations"]


def test_ratios_on_one_thread() -> None:
    us = {"tessera": 2.0, "tessera/1": 3.0, "torch/1": 4.0}
    assert OP.ratios(us) == {"1 thread / all threads": 1.5, "Tessera / torch, on 1 thread": 0.75}
    assert OP.ratios({"tessera": 2.0, "torch": 3.0}) == {}
    (found,) = OP.ratios({"tessera/1 new": 3.0, "torch/1 topk": 4.0}).values()
    assert found == 0.75


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
def test_torchs_two_calls_find_the_experts(scoring: str) -> None:
    problem = bench.make_problem(bench.Shape(3, 16, 4, scoring, "float32"), "cpu", 0)
    expected = tessera.select_experts(problem.logits, top_k=4, scoring=scoring)
    weights, ids = bench._torch_two_calls(problem)
    assert torch.equal(ids.int(), expected.topk_ids)
    assert torch.allclose(weights, expected.topk_weights)
    assert torch.equal(problem.others["tessera/1 new"].run().topk_ids, expected.topk_ids)


def test_torch_on_one_thread() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert bench._on_one_thread(lambda: (torch.get_num_threads(), 7)) == (1, 7)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_the_command_times_the_shapes_of_a_preset(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    presets = {"quick": SHAPES[:1], "grid": SHAPES[1:3]}
    monkeypatch.setitem(OPS, OP.name, dataclasses.replace(OP, presets=presets))
    for words, expected in (([], SHAPES[:1]), (["--preset", "grid"], SHAPES[1:3])):
        path = tmp_path / f"{len(words)}.json"
        command = ["bench", "--op", OP.name, "--device", "cpu", "--peers", "none", *words]
        assert main([*command, "--json", str(path)]) == 0
        rows = json.loads(path.read_text())["rows"]
        assert [row["shape"] for row in rows] == [shape.name for shape in expected]


def test_wrong_outputs_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = tessera.select_experts

    def wrong(*arguments: Any, **options: Any) -> Any:
        weights, ids = right(*arguments, **options)
        weights[0, 0] *= 1.5
        return weights, ids

    monkeypatch.setattr(tessera, "select_experts", wrong)
    with pytest.raises(ContractBrokenError, match=r"^tessera breaks the contract on .*weights"):
        measured()


@pytest.mark.parametrize("shape", [GROUPED, PLAIN], ids=lambda shape: shape.name)
@pytest.mark.parametrize("fault", ["weights", "ids"])
def test_a_peer_that_is_far_off_is_refused(shape: Any, fault: str) -> None:
    problem = bench.make_problem(shape, "cpu", 0)
    weights, ids = tessera.select_experts(problem.logits, **problem.options)
    check = problem.peer(lambda: (weights, ids)).check
    assert check is not None
    check()
    if fault == "weights":
        weights *= 1.1
    else:
        ids += 1
    named = {"weights": "weights", "ids": "experts"}[fault]
    with pytest.raises(NotTimedError, match=f"^expected {named} within 2% of Tessera's"):
        check()


class Engine(types.ModuleType):
    """Stands for an engine: its ops compute what Tessera does, and note their arguments."""

    problem: Any = None

    def answer(self) -> Any:
        return tessera.select_experts(self.problem.logits, **self.problem.options)

    def write(self, weights: Any, ids: Any) -> None:
        for array, found in zip((weights, ids), self.answer(), strict=True):
            array.copy_(found)


@pytest.mark.parametrize("shape", [GROUPED, PLAIN], ids=lambda shape: shape.name)
@pytest.mark.parametrize("name", ["vllm", "sgl_kernel"])
def test_engines_are_called_as_they_declare(
    name: str, shape: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine: Any = Engine("vllm._custom_ops" if name == "vllm" else name)
    engine.problem = problem = bench.make_problem(shape, "cpu", 0)

    def topk_softmax(
        topk_weights: Any,
        topk_ids: Any,
        token_expert_indices: Any,
        gating_output: Any,
        renormalize: bool = False,
        e_score_correction_bias: Any = None,
    ) -> None:
        assert renormalize
        assert token_expert_indices.shape == topk_ids.shape
        assert gating_output is problem.logits
        engine.write(topk_weights, topk_ids)

    def grouped_topk(
        scores: Any,
        num_expert_group: int,
        topk_group: int,
        topk: int,
        renormalize: bool,
        routed_scaling_factor: float,
        bias: Any,
        scoring_func: int = 0,
    ) -> Any:
        assert (num_expert_group, topk_group, topk, renormalize) == (8, 4, 8, True)
        assert (routed_scaling_factor, scoring_func) == (2.5, 1)
        assert bias is problem.bias
        assert scores is problem.logits
        return engine.answer()

    def sgl_topk_softmax(
        topk_weights: Any, topk_ids: Any, gating_output: Any, renormalize: bool = False
    ) -> None:
        topk_softmax(topk_weights, topk_ids, topk_ids, gating_output, renormalize)

    def moe_fused_gate(
        input_tensor: Any,
        bias: Any,
        num_expert_group: int,
        topk_group: int,
        topk: int,
        num_fused_shared_experts: int = 0,
        routed_scaling_factor: float = 0,
        apply_routed_scaling_factor_on_output: bool = False,
    ) -> Any:
        assert input_tensor.dtype == bias.dtype == torch.float32
        assert (num_fused_shared_experts, apply_routed_scaling_factor_on_output) == (0, True)
        return grouped_topk(
            problem.logits,
            num_expert_group,
            topk_group,
            topk,
            True,
            routed_scaling_factor,
            bias,
            1,
        )

    if name == "vllm":
        engine.topk_softmax, engine.grouped_topk = topk_softmax, grouped_topk
        monkeypatch.setitem(sys.modules, "vllm", types.ModuleType("vllm"))
    else:
        engine.topk_softmax, engine.moe_fused_gate = sgl_topk_softmax, moe_fused_gate
    monkeypatch.setitem(sys.modules, engine.__name__, engine)
    monkeypatch.setattr("importlib.util.find_spec", lambda package: object())
    (found,) = (one for one in OP.contenders("cuda") if one.name == name)
    assert (found.kind, found.unavailable) == ("peer", "")
    call = found.prepare(problem)
    assert call.check is not None
    call.check()
    for array, expected in zip(call.run(), engine.answer(), strict=True):
        assert torch.equal(array, expected.view(torch.int32))


def test_an_engine_that_fails_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sgl_kernel", types.ModuleType("sgl_kernel"))
    monkeypatch.setattr("importlib.util.find_spec", lambda package: object())
    (found,) = (one for one in OP.contenders("cuda") if one.name == "sgl_kernel")
    with pytest.raises(NotTimedError, match=r"^AttributeError: .*topk_softmax"):
        found.prepare(bench.make_problem(PLAIN, "cpu", 0))


def test_absent_engines_say_so() -> None:
    if sys.modules.get("vllm") is not None:
        pytest.skip("vllm is imported")
    found = {one.name: one.unavailable for one in OP.contenders("cuda")}
    assert list(found) == ["tessera", "torch", "copy", "vllm", "sgl_kernel"]
    for name in ("vllm", "sgl_kernel"):
        assert found[name] in ("", f"{name} is not installed")
