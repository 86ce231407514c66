"""Ops besides `align_block_size` in the benchmark, on the CPU, and on the performance page."""

# ruff: noqa: F811, for the imported fixture

from __future__ import annotations

import dataclasses
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

import tessera
from bench_modules import modules  # noqa: F401, it is a fixture
from tessera.tools.bench import cuda
from tessera.tools.bench.calls import CallProblem, call_contenders
from tessera.tools.bench.contender import Contender, TimedCall
from tessera.tools.bench.driver import ContractBrokenError, Request, joined, measure
from tessera.tools.bench.methods import Effort
from tessera.tools.bench.op import Op
from tessera.tools.bench.ops import OPS
from tessera.tools.bench.ops.align_block_size import REPORTING
from tessera.tools.bench.report import print_report

SHORT = Effort(repetitions=1, min_seconds=0.0)
OTHERS = [OPS["batched_align_block_size"], OPS["lora_align_block_size"]]


def measured(op: Op, **options: Any) -> Any:
    return measure(Request("cpu", op.usual_shapes, ["call"], effort=SHORT, op=op, **options))


@pytest.mark.parametrize("op", OTHERS, ids=lambda op: op.name)
def test_every_shape_is_timed_beside_the_main_op_and_the_floor(op: Op) -> None:
    document = measured(op, commit="abc")
    assert document["commit"] == "abc"
    assert [row["shape"] for row in document["rows"]] == [shape.name for shape in op.usual_shapes]
    for row, shape in zip(document["rows"], op.usual_shapes, strict=True):
        assert row["op"] == op.name
        assert row.items() >= dataclasses.asdict(shape).items()
        assert set(row["us"]) == {"tessera", "align_block_size", "floor"}
        assert all(us["call"] > 0 for us in row["us"].values())


@pytest.mark.parametrize("seed", [0, 5])
@pytest.mark.parametrize("op", OTHERS, ids=lambda op: op.name)
def test_the_call_beside_it_gives_the_same_tokens_to_the_same_groups(op: Op, seed: int) -> None:
    problem: Any = op.make_problem(op.usual_shapes[0], "cpu", seed)
    ours, beside = problem.call.run(), problem.others["align_block_size"].run()
    totals = ours.num_tokens_post_pad
    total = int(beside.num_tokens_post_pad[0])
    assert totals.sum() == total > 0
    if op.name.startswith("batched"):
        num_blocks = total // op.usual_shapes[0].block_size
        np.testing.assert_array_equal(ours.expert_ids[:num_blocks], beside.expert_ids[:num_blocks])
    else:
        assert len(totals) > 1
        rows = [row[:used] for row, used in zip(ours.sorted_token_ids, totals, strict=True)]
        np.testing.assert_array_equal(np.concatenate(rows), beside.sorted_token_ids[:total])


@pytest.mark.parametrize("op", OTHERS, ids=lambda op: op.name)
def test_wrong_outputs_are_not_timed(op: Op, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*arguments: Any, **options: Any) -> Any:
        found = right(*arguments, **options)
        found.expert_ids[..., 0] += 1
        return found

    right = getattr(tessera, op.name)
    monkeypatch.setattr(tessera, op.name, wrong)
    with pytest.raises(ContractBrokenError, match=r"^tessera breaks the contract on .*block_exp"):
        measured(op)


@pytest.mark.parametrize("op", OTHERS, ids=lambda op: op.name)
def test_outputs_that_are_not_written_are_noticed(op: Op) -> None:
    problem: Any = op.make_problem(op.usual_shapes[0], "cpu", 0)
    outputs = problem.call.run()
    idle = dataclasses.replace(problem, call=TimedCall.of(lambda: outputs))
    assert idle.violations(outputs) == []
    idle.poison()
    assert idle.violations(idle.call.run()) != []


@pytest.mark.parametrize("op", OTHERS, ids=lambda op: op.name)
def test_contenders_of_a_gpu_on_torch_tensors_of_the_host(
    op: Op, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    got: list[Any] = []

    class Library:
        def function(self, name: str, release_gil: bool = True) -> Any:
            return lambda *arguments: got.append((name, arguments))

    monkeypatch.setattr(cuda, "native_library", lambda file_name: Library())
    properties = SimpleNamespace(multi_processor_count=4)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    contenders = {one.name: one for one in op.contenders("cuda")}
    floors = [f"floor/{n}{pdl}" for n in (1, 16, 2, 4, 8) for pdl in ("", "/pdl")]
    assert list(contenders) == ["tessera", "align_block_size", *floors]
    assert all({"graph", "chain"} <= set(one.methods) for one in contenders.values())
    problem: Any = op.make_problem(op.usual_shapes[0], "cpu:0", 0)
    call = contenders["tessera"].prepare(problem)
    problem.poison()
    outputs = call.run()
    assert problem.violations(outputs) == []
    assert isinstance(call.source, torch.Tensor)
    beside = contenders["align_block_size"].prepare(problem)
    assert beside.source.dtype == torch.int32
    assert beside.run().num_tokens_post_pad.sum() == outputs.num_tokens_post_pad.sum()
    floor = contenders["floor/8/pdl"].prepare(problem)
    written = floor.run()
    ((name, (words, *arrays, num_ctas, pdl)),) = got
    assert (name, len(words), num_ctas, pdl) == ("floor", problem.num_words, 8, True)
    assert words is floor.source
    assert [id(one) for one in arrays] == [id(one) for one in written]
    assert [one.shape for one in arrays] == [one.shape for one in outputs]


def test_calls_that_report_are_timed_beside_one_that_does_not() -> None:
    document = measured(dataclasses.replace(REPORTING, presets={"outputs": SMALL_REPORTED}))
    names = ["nothing", "expert_counts", "statistics", "validation", "all"]
    assert [row["shape"] for row in document["rows"]] == ["1x64x2/16", "1x64x2/16/map half-remote"]
    for row in document["rows"]:
        assert sorted(row["us"]) == sorted(names)
        assert row["violations"] == {}
    asked: dict[str, Any] = {}
    for one in REPORTING.contenders("cpu"):
        problem: Any = REPORTING.make_problem(SMALL_REPORTED[0], "cpu", 0)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tessera, "align_block_size", lambda ids, **options: asked.update(options))
            asked.clear()
            one.prepare(problem).run()
        added = {"expert_counts", "statistics", "validate"} & set(asked)
        assert added == {
            "nothing": set(),
            "validation": {"validate"},
            "all": {"expert_counts", "statistics", "validate"},
        }.get(one.name, {one.name})
        assert len(asked["out"]) == 3


def test_invalid_ids_of_validated_calls_end_the_run() -> None:
    """On a GPU they are reported after the call."""
    ended: list[str] = []

    def after_shape() -> None:
        ended.append("shape")
        raise tessera.InvalidRoutingError("align_block_size: an invalid id")

    assert REPORTING.after_shape is tessera.check
    op = dataclasses.replace(
        REPORTING, presets={"outputs": SMALL_REPORTED}, after_shape=after_shape
    )
    with pytest.raises(tessera.InvalidRoutingError):
        measured(op)
    assert ended == ["shape"]


SMALL_REPORTED = [shape for shape in REPORTING.usual_shapes if shape.num_tokens == 1]


@dataclasses.dataclass(frozen=True)
class Length:
    """The shape of the made-up op below."""

    length: int

    @property
    def name(self) -> str:
        return str(self.length)


def doubling(peer_runs: bool = True) -> Op:
    """An op that doubles integers, described as a new one would be."""

    def make_problem(shape: Length, device: str, seed: int) -> CallProblem:
        values = np.random.default_rng(seed).integers(0, 9, shape.length, np.int32)

        def judge(outputs: tuple[Any, ...]) -> list[tessera.Violation]:
            return []

        call = TimedCall.of(lambda: (values + values,), values, is_aligned=False)
        others = {"shift": TimedCall.of(lambda: (values << 1,))}
        return CallProblem(shape, device, call, judge, others, shape.length)

    def contenders(device: str) -> list[Contender]:
        def prepare(problem: CallProblem) -> TimedCall:
            return problem.others["shift"]

        return [call_contenders(device)[0], Contender("shift", "peer", ("call",), prepare)]

    return Op("double", {"quick": [Length(4), Length(9)]}, make_problem, contenders, "double")


def test_a_new_op_takes_one_description() -> None:
    document = measured(doubling())
    assert [row["length"] for row in document["rows"]] == [4, 9]
    console = Console(width=200, record=True, file=io.StringIO())
    print_report(console, document)
    text = console.export_text()
    assert "; double; commit " in text
    assert re.search(r"^shape +tessera +shift +floor +/ floor +/ best peer$", text, re.MULTILINE)
    with pytest.raises(ValueError, match=r"--method: expected some of call with --device cpu, got"):
        measure(Request("cpu", [Length(4)], ["eager"], op=doubling()))


def test_a_related_op_has_a_column_and_is_no_peer() -> None:
    document = measured(OTHERS[0])
    for row in document["rows"]:
        row["us"] = {"tessera": {"call": 3.0}, "align_block_size": {"call": 2.0}}
        row["us"]["floor"] = {"call": 1.0}
        row["spoiled"], row["below_floor"] = {}, {}
    console = Console(width=200, record=True, file=io.StringIO())
    print_report(console, document)
    text = console.export_text()
    header = r"^shape +tessera +align_block_size +floor +/ floor +/ align_block_size$"
    assert re.search(header, text, re.MULTILINE)
    assert re.search(r"^8x64/16 +3\.00 +2\.00 +1\.00 +3\.00 +1\.50$", text, re.MULTILINE)
    assert "slower" not in text
    assert "best peer" not in text
    with pytest.raises(ValueError, match=r"^--peers: expected none, got align_block_size$"):
        measured(OTHERS[0], peers=["align_block_size"])


def test_documents_of_one_file_are_joined() -> None:
    ours, others = measured(OTHERS[0]), measured(doubling())
    found = joined([ours, others])
    assert found["rows"] == ours["rows"] + others["rows"]
    assert list(found["contenders"]) == ["tessera", "align_block_size", "floor", "shift"]
    assert found["build"] == ours["build"]
    assert joined([ours]) == ours


@pytest.fixture
def page(modules: Callable[[str], Any]) -> Any:
    """The module of the page's part."""
    return modules("page_ops")


def document(kinds: dict[str, str], us: dict[str, Any], *methods: str) -> dict[str, Any]:
    return {
        "commit": "0123456789abcdef",
        "modified": False,
        "date": "2026-01-02",
        "machine": "a processor",
        "build": "a compiler",
        "methods": dict.fromkeys(methods, "meaning"),
        "contenders": {name: {"kind": kind} for name, kind in kinds.items()},
        "rows": [{"op": "some_op", "shape": "8x64/16", "us": us}],
    }


def test_the_section_shows_what_was_measured(page: Any, tmp_path: Path) -> None:
    assert page.ops_sections() == []
    kinds = {"tessera": "tessera", "align_block_size": "related", "a": "floor", "b": "floor"}
    us = {"tessera": 1.5, "align_block_size": 3.0, "a": 1.0, "b": 1.25}
    by_method = {name: {"graph": time, "chain": 2 * time} for name, time in us.items()}
    del by_method["align_block_size"]["chain"]
    (tmp_path / "h200").mkdir()
    one, both = document(kinds, by_method, "graph"), document(kinds, by_method, "graph", "chain")
    (tmp_path / "cpu_family.json").write_text(json.dumps(one))
    (section,) = page.ops_sections()
    assert section.startswith("## The family\n")
    assert "### On the CPU\n" in section
    assert "H200" not in section
    assert "| op and shape | us | align_block_size | ratio | floor | ratio |" in section
    assert "| some_op 8x64/16 | 1.50 | 3.00 | 0.50 | 1.00 a | 1.50 |" in section
    assert "By graph" not in section
    (tmp_path / "h200/family.json").write_text(json.dumps(both))
    (section,) = page.ops_sections()
    assert section.index("### On the NVIDIA H200") < section.index("### On the CPU")
    assert section.index("By graph:\n") < section.index("By chain:\n")
    assert "| some_op 8x64/16 | 3.00 | - | - | 2.00 a | 1.50 |" in section


def test_an_op_with_peers_has_a_section_of_its_own(
    page: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(OPS, "double", doubling())
    kinds = {"tessera": "tessera", "shift": "peer", "floor": "floor"}
    us = {"tessera": {"call": 1.5}, "shift": {"call": 3.0}, "floor": {"call": 1.0}}
    (tmp_path / "cpu_double.json").write_text(json.dumps(document(kinds, us, "call")))
    (section,) = page.ops_sections()
    assert section.startswith("## double\n")
    assert "| some_op 8x64/16 | 1.50 | 3.00 shift | 0.50 | 1.00 floor | 1.50 |" in section
