"""`fused_moe` in the benchmark, beside its two ops one after the other."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

import tessera
from tessera.tools.bench.driver import ContractBrokenError, Request, measure
from tessera.tools.bench.methods import Effort
from tessera.tools.bench.ops import OPS

torch = pytest.importorskip("torch", reason="torch is not installed")

OP = OPS["fused_moe"]
SHAPES = [
    dataclasses.replace(shape, num_tokens=num_tokens, hidden_size=64, intermediate_size=32)
    for shape, num_tokens in zip(OP.usual_shapes, (1, 3, 20), strict=True)
]


def measured() -> Any:
    effort = Effort(repetitions=1, min_seconds=0.0)
    return measure(Request("cpu", SHAPES, ["call"], effort=effort, op=OP))


def test_every_shape_is_timed_beside_both_ops() -> None:
    rows = measured()["rows"]
    assert [row["shape"] for row in rows] == [
        "1x64x16x32x4 bfloat16",
        *(s.name for s in SHAPES[1:]),
    ]
    for row in rows:
        assert set(row["us"]) == {"tessera", "both ops"}
        assert not row["violations"]


def test_both_ops_give_the_same_bits() -> None:
    problem: Any = OP.make_problem(SHAPES[2], "cpu", 0)
    (found,) = problem.call.run()
    expected = found.clone()
    found.zero_()
    (found,) = problem.others["both ops"].run()
    assert torch.equal(found, expected)


def test_wrong_outputs_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = tessera.fused_moe

    def wrong(*arguments: Any, **options: Any) -> Any:
        output = right(*arguments, **options)
        output[0, 0] += 1
        return output

    monkeypatch.setattr(tessera, "fused_moe", wrong)
    with pytest.raises(ContractBrokenError, match=r"^tessera breaks the contract on .*error_bound"):
        measured()
