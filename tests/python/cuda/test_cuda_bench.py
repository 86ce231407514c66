"""`tessera bench` on a GPU: every contender that is here, by the methods of a GPU."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import tessera
from tessera.cli.main import main
from tessera.contract import synthetic_topk_ids
from tessera.tools.bench import cuda, methods
from tessera.tools.bench.problem import make_problem
from tessera.tools.bench.shapes import Shape


def test_windows_of_a_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log, results = tmp_path / "ids.npz", tmp_path / "results.json"
    ids = synthetic_topk_ids(600, 64, 8)
    np.savez(log, topk_ids=ids, num_experts=64)
    arguments = ["--device", "cuda", "--tokens", "1,64,512", "--json", str(results)]
    assert main(["bench", "--log", str(log), *arguments]) == 0
    rows = json.loads(results.read_text())["rows"]
    assert {row["num_tokens"]: row["num_windows_timed"] for row in rows} == {1: 20, 64: 9, 512: 1}
    for row in rows:
        assert row["us"]["tessera"]["graph"] > 0
        assert row["us"]["torch"]["graph"] > 0
    assert "\nids: 600 tokens, top 8 of 64 experts\n" in capsys.readouterr().out


def test_a_chain_times_every_contender(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "results.json"
    shapes = ["--tokens", "16,1024", "--experts", "64", "--top-k", "8", "--dtype", "int32,int64"]
    peers = ["--peers", "torch,textbook,cub_radix"]
    arguments = [*shapes, *peers, "--method", "graph,chain", "--json", str(results)]
    assert main(["bench", "--device", "cuda", *arguments]) == 0
    document = json.loads(results.read_text())
    kinds = {name: one["kind"] for name, one in document["contenders"].items()}
    for row in document["rows"]:
        assert row["failures"] == {}
        for name, us in row["us"].items():
            within = row["within_noise"].get(name, {})
            assert "graph" in us
            assert ("chain" in us) != ("chain" in within), name
            assert row["spread_us"][name]["chain"] >= 0
        # Some fifteen kernels cannot be within the noise of none.
        assert row["us"]["torch"]["chain"] > 5
    assert {"tessera", "peer", "floor"} <= {kinds[name] for name in document["rows"][0]["us"]}
    assert "the less flattering of graph and chain" in capsys.readouterr().out


@pytest.mark.parametrize("op", ["batched_align_block_size", "lora_align_block_size"])
def test_other_ops_are_timed_by_both_methods(
    op: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results.json"
    assert main(["bench", "--device", "cuda", "--op", op, "--json", str(results)]) == 0
    for row in json.loads(results.read_text())["rows"]:
        assert (row["violations"], row["failures"]) == ({}, {})
        assert row["op"] == op
        for name in ("tessera", "align_block_size"):
            assert row["us"][name]["graph"] > 0
            assert row["spread_us"][name]["chain"] >= 0
        assert any(name.startswith("floor/") for name in row["us"])
    assert f"; {op}; commit " in capsys.readouterr().out


def test_calls_that_report_are_timed(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    arguments = ["--preset", "outputs", "--method", "graph", "--json", str(results)]
    assert main(["bench", "--device", "cuda", *arguments]) == 0
    assert tessera.check(raise_invalid=False) == 0
    for row in json.loads(results.read_text())["rows"]:
        assert (row["violations"], row["failures"]) == ({}, {})
        names = {"nothing", "expert_counts", "statistics", "validation", "all"}
        assert set(row["us"]) == names


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_a_chain_leaves_ids_and_outputs_as_they_were(dtype: str) -> None:
    problem = make_problem(Shape(1000, 64, 7, 64, dtype=dtype), "cuda", seed=1)
    call = cuda.prepare_tessera(problem)
    between, alone = methods._with_and_without(call)
    problem.topk_ids.zero_()  # the writer has to bring them back
    between()
    alone()
    np.testing.assert_array_equal(problem.topk_ids.cpu().numpy(), problem.host_ids)
    assert problem.violations(call.run()) == []


def test_the_layer_of_a_model_beside_its_floors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results.json"
    shapes = ["--model", "Qwen3-30B-A3B", "--tokens", "3,4096", "--peers", "grouped_mm"]
    arguments = ["--op", "fused_experts", "--device", "cuda", *shapes, "--json", str(results)]
    assert main(["bench", *arguments]) == 0
    document = json.loads(results.read_text())
    assert document["read_gb_per_s"] > 100
    few, many = document["rows"]
    for row in (few, many):
        assert (row["violations"], row["failures"], row["refusals"]) == ({}, {}, {})
        assert set(row["us"]) == {"tessera", "weights", "dense", "grouped_mm"}
        # Nothing reads the weights faster than a sum.
        assert row["ratios"]["Tessera / floor"] > 0.9
    assert set(few["us"]["tessera"]) == {"burst"}
    assert set(many["us"]["tessera"]) == {"burst", "sustained"}
    assert "; fused_experts; commit " in capsys.readouterr().out
