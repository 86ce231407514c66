"""`tessera bench --op fused_experts`: its problems, peers and bounds, and its part of the page."""

# ruff: noqa: F811, for the imported fixture

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import tessera
from bench_modules import modules  # noqa: F401, it is a fixture
from tessera.cli.main import main
from tessera.tools.bench import calls, methods
from tessera.tools.bench.contender import HOST_LIBRARY, TimedCall, native_library
from tessera.tools.bench.driver import ContractBrokenError, Request, measure
from tessera.tools.bench.methods import Effort
from tessera.tools.bench.ops import OPS, fused_experts, moe_permute, moe_sum
from tessera.tools.bench.ops.fused_experts import NEAR, OP, SHAPES
from tessera.tools.bench.ops.fused_experts_inputs import Shape

torch = pytest.importorskip("torch", reason="torch is not installed")

SHORT = Effort(repetitions=1, min_seconds=0.0)
TINY = [Shape("tiny", 8, 2, 64, 32, dtype, tokens) for dtype in NEAR for tokens in (1, 5)]


def measured(shapes: list[Shape], **options: Any) -> Any:
    return measure(Request("cpu", shapes, ["call"], effort=SHORT, op=OP, **options))


def test_the_shapes_are_those_of_two_models() -> None:
    assert len({shape.name for shape in SHAPES}) == len(SHAPES) == 24
    assert {shape.num_tokens for shape in SHAPES} == {1, 4, 16, 64, 256, 1024}
    assert {shape.dtype for shape in SHAPES} == set(NEAR)
    for shape in SHAPES:
        sizes = {"Qwen3-30B-A3B": (128, 8, 2048, 768), "OLMoE": (64, 8, 2048, 1024)}[shape.model]
        assert sizes == dataclasses.astuple(shape)[1:5]


def test_every_contender_is_timed_and_none_breaks_a_rule_that_it_could_keep() -> None:
    document = measured(TINY)
    names = ["tessera", "tessera/1", "eager", "grouped_mm", "read", "multiply_adds"]
    assert list(document["contenders"]) == names
    assert not any(one["unavailable"] for one in document["contenders"].values())
    versions = {name: one["version"] for name, one in document["contenders"].items()}
    assert versions["eager"] == versions["grouped_mm"] == torch.__version__
    assert versions["tessera"] == versions["read"] == ""
    for row, shape in zip(document["rows"], TINY, strict=True):
        assert row.items() >= dataclasses.asdict(shape).items()
        us = {name: times["call"] for name, times in row["us"].items()}
        assert set(us) == set(names)
        assert min(us.values()) > 0
        bound = max(us["read"], us["multiply_adds"])
        assert row["ratios"]["Tessera / floor"] == us["tessera"] / bound
        assert row["ratios"]["1 thread / all threads"] == us["tessera/1"] / us["tessera"]
        if shape.dtype == "float32":
            assert row["violations"] == {}


def test_the_command_prints_and_writes_what_it_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(OPS, OP.name, dataclasses.replace(OP, presets={"quick": TINY[:1]}))
    file = tmp_path / "experts.json"
    arguments = ["--op", OP.name, "--peers", "eager", "--json", str(file)]
    assert main(["bench", "--device", "cpu", *arguments]) == 0
    document = json.loads(file.read_text())
    (row,) = document["rows"]
    assert set(row["us"]) == {"tessera", "tessera/1", "eager", "read", "multiply_adds"}
    ratio = row["us"]["tessera"]["call"] / row["us"]["eager"]["call"]
    assert row["ratios"]["Tessera / best peer"] == ratio
    text = capsys.readouterr().out
    assert "; fused_experts; commit " in text
    assert re.search(r"^tiny bfloat16/1( +[0-9.]+\*?){5} .*", text, re.MULTILINE)
    assert text.endswith(f"wrote {file}\n")


@pytest.mark.parametrize("dtype", NEAR)
def test_calls_go_round_sets_of_ids(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def spy(x: Any, *arguments: Any, num_threads: int | None = None) -> Any:
        seen.append((arguments[-1].tolist(), num_threads))
        return x

    monkeypatch.setattr(tessera, "fused_experts", spy)
    for tokens, num_sets in ((1, 8), (5, 2)):
        problem = fused_experts.make_problem(Shape("tiny", 64, 2, 8, 4, dtype, tokens), "cpu", 3)
        seen.clear()
        problem.call.seconds(num_sets + 1)
        ids = [each for each, _ in seen]
        assert ids[0] == ids[-1]
        assert len({str(each) for each in ids}) == num_sets
        assert {threads for _, threads in seen} == {None}
        seen.clear()
        assert len(problem.others["tessera/1"].run()) == num_sets
        assert [each for each, _ in seen] == ids[:-1]
        assert {threads for _, threads in seen} == {1}


@pytest.mark.parametrize("name", ["eager", "grouped_mm"])
@pytest.mark.parametrize("shape", TINY, ids=lambda shape: shape.name)
def test_the_peers_compute_what_tessera_computes(name: str, shape: Shape) -> None:
    problem = fused_experts.make_problem(shape, "cpu", 1)
    theirs, ours = problem.others[name].run(), problem.call.run()
    assert len(theirs) == len(ours)
    for their, our in zip(theirs, ours, strict=True):
        assert their.dtype == our.dtype == getattr(torch, shape.dtype)
        off = (their.double() - our.double()).norm() / our.double().norm()
        assert off <= 2 * NEAR[shape.dtype]


@pytest.mark.parametrize("name", ["eager", "grouped_mm"])
@pytest.mark.parametrize("token", [0, -1])
def test_a_peer_that_computes_something_else_is_not_timed(
    name: str, token: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(inputs: Any) -> Any:
        output = right(inputs)
        output[token] *= 1.1
        return output

    right = getattr(fused_experts, name)
    monkeypatch.setattr(fused_experts, name, wrong)
    message = rf"^{name} on tiny bfloat16/5: expected at most 2e-02 off a float64 reference, got 1e"
    with pytest.raises(RuntimeError, match=message):
        measured(TINY[1:2])


def test_wrong_outputs_of_tessera_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong outputs for the last set of ids alone are found, too."""
    num_calls = 0

    def wrong(*arguments: Any, **options: Any) -> Any:
        nonlocal num_calls
        num_calls += 1
        output = right(*arguments, **options)
        return output * 1.1 if num_calls % 2 == 0 else output

    right = tessera.fused_experts
    monkeypatch.setattr(tessera, "fused_experts", wrong)
    with pytest.raises(
        ContractBrokenError, match=r"^tessera breaks the contract on tiny float32/5"
    ):
        measured(TINY[-1:])


def test_the_weights_of_the_chosen_experts_are_read() -> None:
    read = native_library(HOST_LIBRARY).function("read_experts")
    random = torch.Generator().manual_seed(0)
    weights = torch.randint(-(2**62), 2**62, (5, 3, 9001), generator=random)
    experts = torch.tensor([4, 1, 2])
    expected = 0
    for word in weights[experts].flatten().tolist():
        expected ^= word
    for num_threads in (1, 2):
        assert read(weights, experts, num_threads) == expected
        # As many bytes in elements of another size.
        assert read(weights.view(torch.bfloat16), experts, num_threads) == expected


@pytest.mark.parametrize("dtype", NEAR)
def test_as_many_multiply_adds_as_asked_for(dtype: str) -> None:
    """Each adds 1. The result is one lane of the sum of 12 vectors, which begin with 0 to 11."""
    multiply_adds = native_library(HOST_LIBRARY).function("multiply_adds")
    for count, num_threads in ((3840, 1), (38400, 1), (38400, 2)):
        added = multiply_adds(dtype, count, num_threads) - num_threads * sum(range(12))
        assert count / added in (8, 16)


def test_without_the_library_only_the_bounds_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(file_name: str) -> Any:
        raise OSError(f"{file_name} is missing")

    monkeypatch.setattr(fused_experts, "native_library", missing)
    document = measured(TINY[-1:])
    reasons = {name: one["unavailable"] for name, one in document["contenders"].items()}
    missing_library = dict.fromkeys(("read", "multiply_adds"), f"{HOST_LIBRARY} is missing")
    names = ("tessera", "tessera/1", "eager", "grouped_mm")
    assert reasons == {**dict.fromkeys(names, ""), **missing_library}
    (row,) = document["rows"]
    assert set(row["us"]) == set(names)
    assert "Tessera / floor" not in row["ratios"]


@pytest.mark.parametrize(
    ("functions", "missing"),
    [
        ({"has_openmp": False, "has_multiply_adds": True}, {"read", "multiply_adds"}),
        ({"has_openmp": True, "has_multiply_adds": False}, {"multiply_adds"}),
    ],
)
def test_what_this_build_or_processor_lacks(
    functions: dict[str, bool], missing: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    library = SimpleNamespace(function=lambda name: lambda: functions[name])
    monkeypatch.setattr(fused_experts, "native_library", lambda file_name: library)
    monkeypatch.delattr(torch.nn.functional, "grouped_mm")
    absent = {one.name: one.unavailable for one in OP.contenders("cpu") if one.unavailable}
    assert set(absent) == {"grouped_mm", *missing}
    assert absent["grouped_mm"] == "needs torch 2.10 or newer"


@pytest.mark.parametrize("op", [OP, moe_permute.OP, moe_sum.OP], ids=lambda op: op.name)
def test_without_torch_the_op_is_refused(
    op: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(calls, "torch_or_none", lambda: None)
    monkeypatch.setattr(calls, "torch_failure", lambda: "")
    assert main(["bench", "--device", "cpu", "--op", op.name]) == 2
    assert capsys.readouterr().err == (
        f"tessera bench: --op {op.name}: expected torch, for the arrays of all contenders: torch "
        "is not installed\n"
    )


def test_long_calls_are_repeated_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def seconds(number: int) -> float:
        nonlocal now
        now += number
        return number

    monkeypatch.setattr("time.perf_counter", lambda: now)
    call = TimedCall(lambda: None, seconds)
    # One call finds out how many a repetition takes.
    for max_seconds, num_repetitions in ((0.5, 5), (7.5, 8), (99.0, 21)):
        now = 0.0
        effort = Effort(repetitions=21, min_seconds=1.0, max_seconds=max_seconds)
        assert methods.host_calls({"a": call}, effort).us == {"a": 1e6}
        assert now == 1 + num_repetitions


@pytest.fixture
def page(modules: Callable[[str], Any]) -> Any:
    """The module of the page's part."""
    return modules("page_fused_experts")


def rows(us: dict[str, float], **changes: Any) -> dict[str, Any]:
    shape = dataclasses.replace(TINY[1], **changes)
    ratios = {
        "Tessera / best peer": us["tessera"] / min(us["eager"], us["grouped_mm"]),
        "1 thread / all threads": us["tessera/1"] / us["tessera"],
    }
    return {
        "shape": shape.name,
        **dataclasses.asdict(shape),
        "us": {name: {"call": time} for name, time in us.items()},
        "ratios": ratios,
        "violations": {},
        "spoiled": {},
    }


FAST = {
    "tessera": 20.0,
    "tessera/1": 39.0,
    "eager": 100.0,
    "grouped_mm": 80.0,
    "read": 17.0,
    "multiply_adds": 3.0,
}


def section(page: Any, folder: Path, *found: dict[str, Any]) -> str:
    kinds = dict.fromkeys(FAST, "related") | dict.fromkeys(("eager", "grouped_mm"), "peer")
    document = {
        "commit": "0123456789abcdef",
        "modified": False,
        "date": "2026-01-02",
        "machine": "a processor, 2 cores",
        "build": "a compiler",
        "methods": {"call": "meaning"},
        "contenders": {
            name: {
                "kind": "tessera" if name.startswith("tessera") else kind,
                "version": "2.99.0" if name == "eager" else "",
            }
            for name, kind in kinds.items()
        },
        "rows": list(found),
    }
    (folder / "cpu_fused_experts.json").write_text(json.dumps(document))
    text: str = page.fused_experts_section()
    return text


def test_the_page_has_a_table_for_each_model_and_data_type(page: Any, tmp_path: Path) -> None:
    assert page.fused_experts_section() == ""
    products = {**FAST, "multiply_adds": 18.5}
    text = section(page, tmp_path, rows(FAST), rows(products, num_tokens=64, dtype="float32"))
    assert text.startswith("## fused_experts on the CPU\n")
    assert "a processor, 2 cores; a compiler; commit 0123456789; 2026-01-02. call: meaning." in text
    assert "\nPeers: torch 2.99.0.\n" in text
    assert "\n### tiny, bfloat16\n" in text
    assert "8 experts, hidden size 64, intermediate size 32, 2 experts per token.\n" in text
    assert "| 5 | 20.0 | 100 | 80.0 | 0.25 | 17.0 | 3.00 | 0.85 read | 1.95 |" in text
    after = text.partition("\n### tiny, float32\n")[2]
    assert "| 64 | 20.0 | 100 | 80.0 | 0.25 | 17.0 | 18.5 | 0.93 multiply-adds | 1.95 |" in after
    assert "Tessera is faster than every peer on 2 of 2 shapes.\n" in text
    assert "slower" not in text
    assert "Beyond the error bound" not in text
    assert "Spoiled" not in text


def test_the_page_states_losses_rules_and_spoiled_times(page: Any, tmp_path: Path) -> None:
    slow = rows({**FAST, "tessera": 90.0})
    slow["violations"] = {"eager": ["error_bound: output[0, 1]"]}
    slow["spoiled"] = {"grouped_mm": {"call": 0.2}}
    text = section(page, tmp_path, slow, rows(FAST, num_tokens=1))
    assert "Tessera is faster than every peer on 1 of 2 shapes.\n" in text
    assert "It is slower on:\n\n- tiny bfloat16/5: 90.0 against 80.0 of grouped_mm\n" in text
    assert "Beyond the error bound of Tessera's contract: eager on 1 shapes." in text
    assert "\n- tiny bfloat16/5: grouped_mm\n" in text


def test_bounds_that_were_not_measured_leave_their_cells_empty(page: Any, tmp_path: Path) -> None:
    known = {name: time for name, time in FAST.items() if name != "multiply_adds"}
    text = section(page, tmp_path, rows(known))
    assert "| 5 | 20.0 | 100 | 80.0 | 0.25 | 17.0 | - | - | 1.95 |" in text


def test_one_thread_does_not_flatter_several() -> None:
    found = fused_experts.ratios({**FAST, "tessera": 40.0, "read": 20.0})
    assert found["Tessera / best peer"] == 0.5
    assert found["Tessera / floor"] == 2
    assert found["1 thread / all threads"] == 39 / 40
