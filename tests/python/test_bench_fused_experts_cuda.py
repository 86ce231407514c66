"""`tessera bench --op fused_experts --device cuda`, as far as it goes without a GPU.

The tensors are on the host, a graph is a function that is called again, and a clock that the calls
advance takes the place of the GPU's events.
"""

# ruff: noqa: F811, for the imported fixtures

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import tessera
from fused_experts_gpu import HOST_OP, TINY, engines, gpu, no_engines  # noqa: F401, fixtures
from tessera.tools.bench import bandwidth, judgement, methods
from tessera.tools.bench.bandwidth import Bandwidth
from tessera.tools.bench.contender import TimedCall
from tessera.tools.bench.driver import ContractBrokenError, Request, measure
from tessera.tools.bench.ops import fused_experts_cuda
from tessera.tools.bench.ops.fused_experts import grouped_mm
from tessera.tools.bench.ops.fused_experts_cuda import (
    ANCHORS,
    MODELS,
    OP,
    TABLE,
    bounds,
    make_problem,
)
from tessera.tools.bench.ops.fused_experts_engines import padded_places
from tessera.tools.bench.ops.fused_experts_inputs import Shape, reference
from tessera.tools.bench.requests import report_requests

torch = pytest.importorskip("torch", reason="torch is not installed")


def measured(*shapes: Shape, **options: Any) -> Any:
    return measure(Request("cuda", shapes, OP.methods, commit="abc", op=HOST_OP, **options))


def test_the_shapes_are_those_of_five_models() -> None:
    assert len({shape.name for shape in TABLE}) == len(TABLE) == 60
    assert {shape.num_tokens for shape in TABLE} == {*(2**i for i in range(9)), 1024, 4096, 16384}
    sizes = {shape.model: dataclasses.astuple(shape)[1:6] for shape in TABLE}
    assert sizes == {
        "Qwen3-30B-A3B": (128, 8, 2048, 768, "bfloat16"),
        "DeepSeek-V3-TP8": (256, 8, 7168, 256, "bfloat16"),
        "DeepSeek-V3-EP8": (32, 8, 7168, 2048, "bfloat16"),
        "Mixtral-8x7B": (8, 2, 4096, 14336, "bfloat16"),
        "gpt-oss-120b": (128, 4, 2880, 2880, "bfloat16"),
    }
    assert len(ANCHORS) == 8
    assert set(ANCHORS) < set(TABLE)
    order = [shape.model for shape in ANCHORS]
    assert order == sorted(order, key=list(MODELS).index)


def test_every_contender_is_checked_and_timed(
    gpu: SimpleNamespace, engines: Callable[[str], Any]
) -> None:
    gpu.us_of = {"tessera": 2000.0, "vllm": 4000.0, "dense": 500.0, "deep_gemm": 1600.0}
    document = measured(*TINY)
    assert not any(one["unavailable"] for one in document["contenders"].values())
    kinds = {name: one["kind"] for name, one in document["contenders"].items()}
    assert kinds == {
        "tessera": "tessera",
        "weights": "related",
        "dense": "related",
        "grouped_mm": "peer",
        "vllm": "peer",
        "flashinfer": "peer",
        "deep_gemm": "part",
    }
    assert document["contenders"]["grouped_mm"]["version"] == torch.__version__
    assert (document["read_gb_per_s"], document["read_by"]) == (1000.0, "a test")
    few, some, many, most = document["rows"]
    # Four calls in a graph of few tokens, one in others.
    assert few["us"]["tessera"] == some["us"]["tessera"] == {"burst": 500.0}
    assert many["us"]["tessera"] == {"burst": 2000.0}
    assert most["us"]["tessera"] == {"burst": 2000.0, "sustained": 2000.0}
    assert most["us"]["deep_gemm"] == {"burst": 1600.0, "sustained": 1600.0}
    assert few["refusals"] == {"deep_gemm": "mostly padding below 1024 tokens"}
    assert many["refusals"] == {}
    # All eight experts, each 3 * 64 * 32 weights of 2 bytes, at 1 TB/s.
    weights = pytest.approx(8 * 3 * 64 * 32 * 2 / 1e6)
    assert most["us"]["weights"] == {"burst": weights, "sustained": weights}
    assert most["ratios"]["Tessera / vllm"] == 0.5
    # The whole layers alone are peers, and the greater floor is the floor.
    assert most["ratios"]["Tessera / best peer"] == 2.0
    assert most["ratios"]["Tessera / floor"] == 4.0
    assert all(not row[key] for row in document["rows"] for key in ("failures", "violations"))


def test_vllm_is_called_as_it_is_without_tessera_in_it(
    gpu: SimpleNamespace, engines: Callable[[str], Any]
) -> None:
    measured(TINY[0], peers=["vllm"])
    module = engines("vllm.model_executor.layers.fused_moe.fused_moe")
    assert module.environment["TESSERA_VLLM"] == "0"
    assert module.environment["VLLM_LOGGING_LEVEL"] == "ERROR"


def test_flashinfer_is_tuned_for_each_number_of_tokens_before_it_is_timed(
    gpu: SimpleNamespace, engines: Callable[[str], Any]
) -> None:
    document = measured(*TINY[1:3], peers=["flashinfer"])
    assert all("flashinfer" in row["us"] for row in document["rows"])
    assert engines("flashinfer.autotuner").tuned == [5, 1024]
    folder = "flashinfer.fused_moe.cute_dsl"
    # Once for each shape, however often it is called.
    assert engines(f"{folder}.sm90_contiguous_gather_grouped_gemm_act_fusion").packs == 2


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("vllm", "vllm.model_executor.layers.fused_moe.fused_moe"),
        ("flashinfer", "flashinfer.fused_moe.cute_dsl.sm90_fused_moe"),
        ("deep_gemm", "vllm.third_party.deep_gemm"),
    ],
)
def test_a_peer_that_computes_something_else_is_not_timed(
    name: str, module: str, gpu: SimpleNamespace, engines: Callable[[str], Any]
) -> None:
    engines(module).factor = 1.1
    (row,) = measured(TINY[2])["rows"]
    assert name not in row["us"]
    assert row["refusals"][name].startswith("expected at most 2e-02 off a float32 reference, got ")
    assert {"tessera", "grouped_mm"} < set(row["us"])


def test_an_engine_that_fails_does_not_stop_the_others(
    gpu: SimpleNamespace, engines: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> Any:
        raise RuntimeError("nvcc is missing\nand more")

    module = engines("vllm.third_party.deep_gemm")
    monkeypatch.setattr(module, "m_grouped_bf16_gemm_nt_contiguous", fail)
    monkeypatch.setattr(engines("vllm.config"), "VllmConfig", fail)
    (row,) = measured(TINY[2])["rows"]
    why = "RuntimeError: nvcc is missing"
    assert row["refusals"] == {"deep_gemm": why, "vllm": why}
    assert set(row["us"]) == {"tessera", "weights", "dense", "grouped_mm", "flashinfer"}


def test_absent_engines_say_so_and_peers_are_chosen(gpu: SimpleNamespace, no_engines: None) -> None:
    document = measured(TINY[0])
    reasons = {name: one["unavailable"] for name, one in document["contenders"].items()}
    assert reasons["vllm"] == "vllm is not installed"
    assert reasons["flashinfer"] == "flashinfer is not installed"
    assert reasons["deep_gemm"] == "deep_gemm is not installed"
    document = measured(TINY[0], peers=["grouped_mm"])
    assert list(document["contenders"]) == ["tessera", "weights", "dense", "grouped_mm"]
    assert list(measured(TINY[0], peers=[])["contenders"]) == ["tessera", "weights", "dense"]
    with pytest.raises(
        ValueError, match="expected some of deep_gemm, flashinfer, grouped_mm, vllm, got x"
    ):
        measured(TINY[0], peers=["x"])


@pytest.mark.parametrize("number", range(4))
def test_tesseras_outputs_are_checked_in_every_set(
    number: int, gpu: SimpleNamespace, no_engines: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def wrong(*arguments: Any, out: Any) -> Any:
        nonlocal calls
        calls += 1
        right(*arguments, out=out)
        return out.mul_(1.1) if calls == number + 1 else out

    right = tessera.fused_experts
    monkeypatch.setattr(tessera, "fused_experts", wrong)
    with pytest.raises(ContractBrokenError, match=r"^tessera breaks the contract on tiny bfl"):
        measured(TINY[1])


def test_tesseras_outputs_have_to_keep_the_bound_of_the_contract(
    gpu: SimpleNamespace, no_engines: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Near enough for a peer is not enough."""
    right = tessera.fused_experts

    def near(*arguments: Any, out: Any) -> Any:
        return right(*arguments, out=out).mul_(1.015)

    monkeypatch.setattr(tessera, "fused_experts", near)
    with pytest.raises(ContractBrokenError, match=r"^tessera breaks the contract on .*error_bound"):
        measured(TINY[2])


def test_a_peer_is_compared_in_every_set(
    gpu: SimpleNamespace, engines: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = engines("vllm.model_executor.layers.fused_moe.fused_moe")
    right, calls = module.fused_experts, 0

    def wrong(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        return right(*arguments) * (1.1 if calls == 4 else 1.0)

    monkeypatch.setattr(module, "fused_experts", wrong)
    (row,) = measured(TINY[1], peers=["vllm"])["rows"]
    assert "off a float32 reference" in row["refusals"]["vllm"]


def test_rows_that_the_checker_does_not_see_are_compared(
    gpu: SimpleNamespace, no_engines: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sample of the checker is the first and the last token; those between are not written."""

    def wrong(*arguments: Any, out: Any) -> Any:
        kept = out.clone()
        right(*arguments, out=out)
        out[1:-1] = kept[1:-1]
        return out

    right = tessera.fused_experts
    monkeypatch.setattr(tessera, "fused_experts", wrong)
    with pytest.raises(ContractBrokenError, match="off a float32 reference, got nan"):
        measured(TINY[2])


def test_sets_have_other_ids_and_the_same_weights() -> None:
    numbers = [fused_experts_cuda.num_sets(tokens) for tokens in (1, 64, 65, 16384)]
    assert numbers == [4, 4, 1, 1]
    problem = make_problem(Shape("tiny", 64, 2, 8, 4, "bfloat16", 3), "cpu", 3)
    assert len({str(one.topk_ids.tolist()) for one in problem.sets}) == 4
    assert len({id(one.w13) for one in problem.sets}) == 1
    assert problem.sets[0].topk_weights.dtype == torch.float32
    weights = problem.sets[0].topk_weights
    assert torch.equal(weights, weights.bfloat16().float())
    # The floor counts the experts that a call uses, as a mean over the sets.
    chosen = [len(np.unique(one.topk_ids.numpy())) for one in problem.sets]
    assert bounds_at(problem, 1e6) == sum(chosen) / 4 * 3 * 8 * 4 * 2


def bounds_at(problem: Any, bytes_per_second: float) -> float:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused_experts_cuda, "read_bandwidth", lambda: Bandwidth(bytes_per_second, ""))
        return bounds(problem)["weights"]


def test_zipf_makes_some_experts_popular() -> None:
    def most(skew: str) -> int:
        shape = Shape("tiny", 64, 2, 8, 4, "bfloat16", 512, skew=skew)
        ids = make_problem(shape, "cpu", 3).sets[0].topk_ids
        return int(torch.bincount(ids.flatten()).max())

    assert most("zipf") > 3 * most("uniform")


def test_the_reference_is_what_the_pipeline_computes() -> None:
    (inputs,) = make_problem(dataclasses.replace(TINY[2], dtype="float32"), "cpu", 1).sets
    tokens = torch.tensor([0, 7, 1023])
    expected = grouped_mm(inputs)[tokens]
    assert torch.allclose(reference(inputs, tokens), expected, atol=1e-5)


def test_places_are_padded_by_expert() -> None:
    ids = torch.tensor([[2, 0], [2, 3], [2, 0]], dtype=torch.int32)
    places, experts = padded_places(ids, 5)
    assert places.tolist() == [[128, 0], [129, 256], [130, 1]]
    assert len(experts) == 3 * 128
    used = {i: expert for i, expert in enumerate(experts.tolist()) if expert >= 0}
    assert used == {0: 0, 1: 0, 128: 2, 129: 2, 130: 2, 256: 3}


def test_bursts_are_interleaved_and_sustained_runs_last_a_second(gpu: SimpleNamespace) -> None:
    gpu.us_of = {"a": 500.0, "b": 20_000.0}
    calls = {
        "a": TimedCall(lambda: None, float, num_calls=4),
        "b": TimedCall(lambda: None, float),
    }
    times = methods.burst(calls, methods.QUICK)
    assert times.us == {"a": 125.0, "b": 20_000.0}
    # Once each to know how long they take, then 7 times each.
    turns = gpu.replays[2:]
    assert sorted(turns) == 7 * ["a"] + 7 * ["b"]
    assert turns not in (7 * ["a", "b"], 7 * ["b", "a"])
    gpu.replays.clear()
    gpu.slept = 0
    times = methods.sustained(calls, methods.QUICK)
    assert times.us == {"a": 125.0, "b": 20_000.0}
    assert gpu.replays.count("a") == 1 + 2 * 2000
    assert gpu.replays.count("b") == 1 + 2 * 50
    assert gpu.slept == 2 + 2 * 2


def test_a_chain_has_a_link_for_each_set_and_few_tokens() -> None:
    problem = make_problem(TINY[0], "cpu", 0)
    (tessera_contender,) = [one for one in HOST_OP.contenders("cuda") if one.name == "tessera"]
    links = tessera_contender.prepare(problem).links
    assert [id(link.source) for link in links] == [id(inputs.x) for inputs in problem.sets]
    assert [id(link.run()[0]) for link in links] == [id(out) for out in problem.outs]
    timed = [HOST_OP.is_timed(shape, "chain") for shape in TINY]
    assert timed == [True, True, False, False]


def test_both_methods_of_long_calls_are_judged() -> None:
    us = {"tessera": {"burst": 2.0, "sustained": 3.0}, "vllm": {"burst": 2.0, "sustained": 2.0}}
    assert judgement.judged_methods(us) == ["burst", "sustained"]
    assert judgement.less_flattering(us, {"tessera": "tessera", "vllm": "peer"}, "peer") == 1.5


def test_the_report_leaves_the_layer_on_a_gpu_to_its_own_command() -> None:
    assert "fused_experts.json" not in report_requests("cuda", [], {}, 0, None)
    assert "cpu_fused_experts.json" in report_requests("cpu", [], {}, 0, None)


def test_the_bandwidth_is_that_of_the_faster_reader(
    gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    ones = torch.ones
    monkeypatch.setattr(bandwidth, "_NUM_WORDS", 1 << 10)
    monkeypatch.setattr(torch, "ones", lambda number, dtype, device: ones(number, dtype=dtype))

    def read() -> None:
        pass

    monkeypatch.setattr(bandwidth, "_triton_sum", lambda torch, words: read)
    slower = itertools.count()  # each sum takes longer than the one before
    monkeypatch.setattr(
        bandwidth,
        "_seconds",
        lambda torch, run: (
            (2e-9 if run is read else 4e-9) * (1 + next(slower) % bandwidth._SAMPLES)
        ),
    )
    found = bandwidth.read_bandwidth.__wrapped__()
    assert found == Bandwidth(4096 / 2e-9, "the fastest of 100 sums in Triton")

    def fail(torch: Any, words: Any) -> Any:
        raise ImportError("no triton")

    monkeypatch.setattr(bandwidth, "_triton_sum", fail)
    found = bandwidth.read_bandwidth.__wrapped__()
    assert found.reader == "the fastest of 100 torch.sum, without Triton: ImportError: no triton"
    assert found.bytes_per_second == pytest.approx(4096 / 4e-9)
