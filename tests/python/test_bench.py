"""The logic of `tessera bench`: shapes, problems, judging before timing, ratios, floors."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import re
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

import tessera
from tessera.contract import synthetic_topk_ids
from tessera.tools.bench import methods
from tessera.tools.bench.contender import Contender, TimedCall, absent
from tessera.tools.bench.driver import ContractBrokenError, Request, measure
from tessera.tools.bench.op import Op
from tessera.tools.bench.ops.align_block_size import OP
from tessera.tools.bench.problem import Problem, make_problem
from tessera.tools.bench.report import print_report
from tessera.tools.bench.requests import report_requests
from tessera.tools.bench.shapes import GRID, HEADLINE, Shape, product, varied

ROOT = Path(__file__).parents[2]
SHAPE = Shape(16, 8, 2, 16)


def align(problem: Problem) -> Any:
    return tessera.align_block_size(
        problem.topk_ids, **problem.options, out=problem.empty_outputs()
    )


def contender(
    name: str, kind: Any, seconds: float, run: Callable[[Problem], Any] = align
) -> Contender:
    """One that takes `seconds` a call, by its own account."""

    def prepare(problem: Problem) -> TimedCall:
        return TimedCall(lambda: run(problem), lambda number: number * seconds)

    return Contender(name, kind, ("call",), prepare)


def only(*contenders: Contender) -> Op:
    """The op with these contenders, which bring no ratios of their own."""
    return dataclasses.replace(OP, contenders=lambda device: list(contenders), ratios=lambda us: {})


def measured(*contenders: Contender, **options: Any) -> Any:
    """The only row of a measurement of these contenders."""
    document = measure(Request("cpu", [SHAPE], ["call"], op=only(*contenders), **options))
    (row,) = document["rows"]
    return row


def test_the_grid_and_the_headline_are_those_of_the_peers_and_targets() -> None:
    assert len(GRID) == 90
    block_sizes = {shape.num_tokens: shape.block_size for shape in GRID}
    assert [block_sizes[n] for n in (1, 64, 256, 1024, 4096)] == [16, 16, 64, 64, 128]
    peers = json.loads((ROOT / "bench/results/h200/peers.json").read_text())
    assert {shape.name for shape in [*GRID, *HEADLINE]} <= {r["shape"] for r in peers["rows"]}
    targets = json.loads((ROOT / "bench/targets.json").read_text())
    assert [shape.name for shape in HEADLINE] == list(targets["us"])


def test_shapes_and_their_variants() -> None:
    assert product([1], [4], [2, 8], [None, 32]) == [Shape(1, 4, 2, 16), Shape(1, 4, 2, 32)]
    log = Shape(5, 8, 2, 128, skew="log", trace="a")
    found = varied([SHAPE, log], skews=("uniform", "zipf"), dtypes=("int64",), shifts=(0,))
    assert [shape.name for shape in found] == [
        "16x8x2/16/int64/shift 0",
        "16x8x2/16/zipf/int64/shift 0",
        "a: 5x8x2/128/int64/shift 0",
    ]


def test_problem_has_the_ids_that_its_shape_names() -> None:
    hot = make_problem(Shape(500, 32, 2, 16, skew="one-hot-expert", dtype="int64"), "cpu", seed=3)
    assert hot.host_ids.dtype == np.int64
    assert (hot.host_ids == 3).any(axis=1).all()
    assert (hot.host_ids[:, 0] != hot.host_ids[:, 1]).all()
    mapped = make_problem(Shape(9, 5, 2, 16, map="half-remote"), "cpu", seed=0)
    assert mapped.host_map is not None
    assert mapped.host_map.tolist() == [0, -1, 1, -1, 2]
    given = np.array([[1, 0]], np.int32)
    log = make_problem(Shape(1, 8, 2, 16, skew="log", trace="a"), "cpu", 0, given)
    np.testing.assert_array_equal(log.topk_ids, given)


@pytest.mark.parametrize("skew", ["uniform", "zipf", "one-hot-expert"])
@pytest.mark.parametrize(("num_experts", "top_k"), [(64, 8), (8, 8), (60, 4), (512, 500), (7, 3)])
def test_no_token_chooses_an_expert_twice(skew: str, num_experts: int, top_k: int) -> None:
    ids = make_problem(Shape(300, num_experts, top_k, 16, skew=skew), "cpu", seed=5).host_ids
    assert (np.diff(np.sort(ids, axis=1), axis=1) > 0).all()
    assert (ids.min() >= 0) & (ids.max() < num_experts)


@pytest.mark.parametrize("zipf", [False, True])
def test_ids_are_as_likely_however_many_a_token_has(zipf: bool) -> None:
    """Of 8 experts, two are drawn until they differ, and three from those that remain."""
    pairs = []
    for top_k in (2, 3):
        ids = synthetic_topk_ids(200_000, 8, top_k, zipf=zipf, seed=3)
        pairs.append(np.bincount(8 * ids[:, 0] + ids[:, 1], minlength=64) / len(ids))
    few, many = pairs
    assert few[few > 0].size == 56
    np.testing.assert_allclose(few, many, atol=0.003)  # a standard deviation is 0.0009 at most
    first = np.sort(few.reshape(8, 8).sum(axis=1))[::-1]
    expected = np.arange(1, 9) ** (-1.2 if zipf else 0.0)
    np.testing.assert_allclose(first, expected / expected.sum(), atol=0.003)


def test_shifted_arrays_start_where_they_should() -> None:
    one, other = (
        make_problem(Shape(16, 8, 2, 16, shift_bytes=shift), "cpu", seed=0) for shift in (0, 12)
    )
    for problem, shift in ((one, 0), (other, 12)):
        assert problem.outputs is not None
        assert problem.empty_outputs() is problem.outputs
        for array in (problem.topk_ids, *problem.outputs):
            base = array
            while isinstance(base.base, np.ndarray):
                base = base.base
            assert array.ctypes.data - base.ctypes.data == shift
    np.testing.assert_array_equal(one.topk_ids, other.topk_ids)
    with pytest.raises(ValueError, match=r"^--shift: expected a multiple of .* 4 bytes, got 2$"):
        make_problem(Shape(16, 8, 2, 16, shift_bytes=2), "cpu", seed=0)


def test_times_ratios_and_losses() -> None:
    row = measured(
        contender("tessera/1", "tessera", 3e-6),
        contender("tessera/2", "tessera", 2e-6),
        contender("peer", "peer", 4e-6),
        contender("floor", "floor", 1e-6),
        absent("missing", "peer", "is not here"),
    )
    assert row["us"]["tessera/1"]["call"] == pytest.approx(3)
    assert set(row["us"]) == {"tessera/1", "tessera/2", "peer", "floor"}
    assert row["ratios"] == pytest.approx({"Tessera / best peer": 0.5, "Tessera / floor": 2})
    assert (row["below_floor"], row["violations"]) == ({}, {})


def test_a_floor_that_is_beaten_is_told() -> None:
    row = measured(
        contender("tessera/1", "tessera", 0.99e-6),  # within the noise
        contender("peer", "peer", 0.97e-6),
        contender("floor", "floor", 1e-6),
    )
    assert row["below_floor"] == {"call": pytest.approx({"peer": 0.97})}


def unordered(problem: Problem) -> Any:
    """Right, but for two indices that changed places, and a tail that was not written."""
    slots, blocks, total = align(problem)
    slots[[0, 1]] = slots[[1, 0]]
    blocks[-1] = 7
    return slots, blocks, total


def test_a_peer_that_breaks_the_contract_is_timed_all_the_same() -> None:
    row = measured(
        contender("tessera/1", "tessera", 1e-6),
        contender("peer", "peer", 1e-6, unordered),
    )
    assert [text.partition(":")[0] for text in row["violations"]["peer"]] == [
        "stable_order",
        "expert_tail",
    ]
    assert row["us"]["peer"]["call"] == pytest.approx(1)


def test_what_a_contender_does_not_write_is_not_left_from_the_one_before() -> None:
    shifted = Shape(16, 8, 2, 16, shift_bytes=0)  # all contenders share the outputs
    idle = contender("idle", "peer", 1e-6, lambda problem: problem.empty_outputs())
    ours = contender("tessera/1", "tessera", 1e-6)
    (row,) = measure(Request("cpu", [shifted], ["call"], op=only(ours, idle)))["rows"]
    assert set(row["violations"]) == {"idle"}


def test_tessera_has_to_hold_the_contract() -> None:
    with pytest.raises(
        ContractBrokenError, match=r"^tessera/1 breaks the contract on 16x8x2/16: stable_order: "
    ):
        measured(contender("tessera/1", "tessera", 1e-6, unordered))


def test_peers_are_chosen_by_the_first_part_of_their_name() -> None:
    everyone = [
        contender("tessera/1", "tessera", 1e-6),
        contender("peer/1", "peer", 1e-6),
        contender("peer/2", "peer", 1e-6),
        contender("other", "peer", 1e-6),
    ]
    row = measured(*everyone, peers=["peer"])
    assert set(row["us"]) == {"tessera/1", "peer/1", "peer/2"}
    assert set(measured(*everyone, peers=[])["us"]) == {"tessera/1"}
    with pytest.raises(ValueError, match="--peers: expected some of other, peer, got tessera"):
        measured(*everyone, peers=["tessera"])


def test_calls_are_counted_and_interleaved() -> None:
    numbers: list[tuple[str, int]] = []

    def timed(name: str, seconds_per_call: float) -> TimedCall:
        def seconds(number: int) -> float:
            numbers.append((name, number))
            return number * seconds_per_call

        return TimedCall(lambda: None, seconds)

    effort = methods.Effort(repetitions=9, min_seconds=1.0)
    times = methods.host_calls({"a": timed("a", 0.01), "b": timed("b", 5.0)}, effort)
    assert times.us == pytest.approx({"a": 1e4, "b": 5e6})
    measuring = numbers[-18:]
    assert sorted(measuring) == 9 * [("a", 100)] + 9 * [("b", 1)]
    assert len({name for name, _ in measuring[:9]}) == 2


def shares_of(waited: list[float], monkeypatch: pytest.MonkeyPatch) -> methods.Times:
    """Times of a call whose repetitions waited for such shares of a second."""
    clock, counter = (
        itertools.count(0.0, 1.0),
        itertools.accumulate(
            itertools.chain.from_iterable((0.0, share) for share in [*waited, 0.0])
        ),
    )
    monkeypatch.setattr(methods, "waited_seconds", lambda: next(counter))
    monkeypatch.setattr(methods.time, "perf_counter", lambda: next(clock))
    effort = methods.Effort(repetitions=len(waited), min_seconds=1.0)
    return methods.host_calls({"a": TimedCall(lambda: None, lambda number: number * 0.5)}, effort)


def test_times_that_others_spoil_are_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shares_of([0.04, 0.06, 0.5], monkeypatch).spoiled == {"a": pytest.approx(0.06)}
    # Most repetitions are what the median is of.
    assert shares_of([0.04, 0.9, 0.04], monkeypatch).spoiled == {}
    assert shares_of([0.04, 0.05, 0.9], monkeypatch).spoiled == {}


def test_the_spread_of_host_times_is_kept() -> None:
    durations = itertools.cycle([0.1, 0.1, 0.2, 0.4, 0.4])
    call = TimedCall(lambda: None, lambda number: number * next(durations))
    times = methods.host_calls({"a": call}, methods.Effort(repetitions=5, min_seconds=1e-3))
    assert times.us["a"] == pytest.approx(2e5)
    assert times.spread_us["a"] == pytest.approx(3e5)


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="the kernel does not count")
def test_waiting_for_a_processor_is_counted() -> None:
    script = (
        "import os, subprocess, sys, time\n"
        "from tessera.tools.bench.load import waited_seconds\n"
        "os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\n"
        "busy = subprocess.Popen([sys.executable, '-c', 'while True: pass'])\n"
        "time.sleep(0.3)\n"
        "os.nice(19)  # whoever is not as nice has the processor\n"
        "before, begin = waited_seconds(), time.perf_counter()\n"
        "while time.perf_counter() - begin < 0.5: pass\n"
        "print(waited_seconds() - before)\n"
        "busy.kill()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stderr == ""
    assert float(done.stdout) > 0.3


def test_a_marked_time_and_what_the_mark_means() -> None:
    ours, peer = contender("tessera/1", "tessera", 3e-6), contender("peer", "peer", 4e-6)
    document = measure(Request("cpu", [SHAPE], ["call"], op=only(ours, peer)))
    (row,) = document["rows"]
    for spoiled, mark in (({}, ""), ({"peer": {"call": 0.42}}, "*")):
        row["spoiled"] = spoiled
        console = Console(width=200, record=True, file=io.StringIO())
        print_report(console, document)
        text = console.export_text()
        assert re.search(rf"^16x8x2/16 +3\.00 +4\.00{re.escape(mark)} ", text, re.MULTILINE)
        explained = "* spoiled by other programs: in most repetitions" in text
        assert explained == bool(mark)
        assert ("here 42% to 42%" in text) == bool(mark)
        counted = "faster than the best peer on 1 of 1 shapes"
        counted += ", 1 of which have spoiled times\n" if mark else "\n"
        assert f"by call: {counted}" in text


def test_the_report_measures_what_the_page_shows() -> None:
    log = Shape(5, 8, 2, 128, skew="log", trace="a")
    found = report_requests("cuda", [Shape(5, 8, 2, 128), log], {}, 0, "abc")
    assert list(found) == [
        "headline.json",
        "grid.json",
        "skew.json",
        "variants.json",
        "addresses.json",
        "eager.json",
        "cold.json",
        "reports.json",
        "family.json",
        "moe_permute.json",
        "moe_sum.json",
        "moe_unpermute.json",
        "quantize_fp8.json",
        "select_experts.json",
        "fused_moe.json",
        "select_and_align.json",
    ]
    assert all(request.commit == "abc" for of_file in found.values() for request in of_file)
    assert [len(of_file) for of_file in found.values()] == 8 * [1] + [2, 1, 1, 1, 1, 1, 1, 1]
    assert list(found["headline.json"][0].methods) == ["graph", "chain", "l2"]
    assert list(found["grid.json"][0].methods) == ["graph", "chain"]
    for request, op in zip(found["family.json"], ("batched", "lora"), strict=True):
        assert request.op.name == f"{op}_align_block_size"
        assert list(request.methods) == ["graph", "chain"]
        assert len(request.shapes) == 6
    (reports,) = found["reports.json"]
    assert list(reports.methods) == ["graph"]
    assert [one.name for one in reports.op.contenders("cuda")] == [
        "nothing",
        "expert_counts",
        "statistics",
        "validation",
        "all",
    ]
    assert {"4096x64x2/128", "4096x64x2/128/zipf", "a: 5x8x2/128", "5x8x2/128"} <= {
        shape.name for shape in found["skew.json"][0].shapes
    }
    assert {shape.shift_bytes for shape in found["addresses.json"][0].shapes} >= {0, 4, 4096}
    on_cpu = report_requests("cpu", [Shape(5, 8, 2, 128), log], {}, 0, None)
    names = ["cpu", "cpu_python", "cpu_family", "cpu_moe_permute", "cpu_moe_sum"]
    names += ["cpu_moe_unpermute", "cpu_quantize_fp8", "cpu_fused_experts", "cpu_select_experts"]
    names += ["cpu_fused_moe", "cpu_select_and_align"]
    assert list(on_cpu) == [f"{name}.json" for name in names]
    assert [list(request.methods) for request in on_cpu["cpu_family.json"]] == 2 * [["call"]]
    names = [shape.name for shape in on_cpu["cpu.json"][0].shapes]
    assert names[0] == "1x8x2/16"
    assert "4096x64x2/128/zipf" in names
    assert names[-1] == "a: 5x8x2/128"


def test_l2_without_triton_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    assert methods.missing("l2") == "triton is not installed"
    assert methods.missing("graph") == ""


def test_l2_is_the_median_of_do_bench(monkeypatch: pytest.MonkeyPatch) -> None:
    testing: Any = types.ModuleType("triton.testing")

    def do_bench(run: Any, *, warmup: int, rep: int, return_mode: str) -> float:
        assert return_mode == "median"
        run()
        return 0.004  # milliseconds

    testing.do_bench = do_bench
    monkeypatch.setitem(sys.modules, "triton", types.ModuleType("triton"))
    monkeypatch.setitem(sys.modules, "triton.testing", testing)
    ran = np.zeros(1, int)

    def run() -> None:
        ran[0] += 1

    assert methods.l2({"a": TimedCall.of(run)}, methods.QUICK).us == pytest.approx({"a": 4.0})
    assert ran[0] == 1
