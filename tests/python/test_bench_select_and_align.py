"""`select_and_align` in the benchmark: its shapes, and what it is timed beside."""

from __future__ import annotations

from typing import Any

import pytest

from tessera.tools.bench.driver import Request, measure
from tessera.tools.bench.methods import Effort
from tessera.tools.bench.ops import OPS

pytest.importorskip("torch", reason="torch is not installed")

OP = OPS["select_and_align"]


def test_names_are_unique() -> None:
    for shapes in OP.presets.values():
        assert len({shape.name for shape in shapes}) == len(shapes)
    assert set(OP.usual_shapes) <= set(OP.presets["grid"])


def test_every_kind_of_shape_is_timed_beside_the_two_ops() -> None:
    shapes = [shape for shape in OP.presets["grid"] if shape.num_tokens == 64]
    effort = Effort(repetitions=1, min_seconds=0.0)
    document: Any = measure(Request("cpu", shapes, ["call"], effort=effort, op=OP))
    assert len(document["rows"]) == 6
    for row in document["rows"]:
        assert set(row["us"]) == {"tessera", "two_ops", "select_experts", "align_block_size"}
        assert not row["refusals"]
        assert not row["violations"]
