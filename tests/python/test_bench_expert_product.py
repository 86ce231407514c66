"""The advice on block sizes, held against the measured times of the experts' product."""

# ruff: noqa: F811, for the imported fixture

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from bench_modules import programs  # noqa: F401, it is a fixture


@pytest.fixture
def section(programs: Callable[[str], Any]) -> Any:
    """The part of the page, which reads the stored results."""
    return programs("page_expert_product")


@pytest.mark.parametrize("is_held_out", [False, True], ids=["fitted", "held out"])
def test_the_advice_is_nearly_the_fastest_and_no_fixed_size_is(
    section: Any, is_held_out: bool
) -> None:
    result = section.read_results(section.RESULT)
    batches = [one for one in section.batches(result) if one.is_held_out == is_held_out]
    assert len(batches) >= 26
    worst = {name: max(section.losses(batches, choose)) for name, choose in section.CHOICES.items()}
    advised = worst.pop("advice of `tessera inspect`")
    assert advised < 0.05
    assert all(other > advised for other in worst.values())


def test_a_batch_knows_its_fastest_block_size(section: Any) -> None:
    rows = {
        16: {"us": 30.0, "num_blocks": 40.0, "active_experts": 8.0},
        128: {"us": 20.0, "num_blocks": 8.0, "active_experts": 8.0},
    }
    batch = section.Batch("a layer", 64, False, rows)
    assert batch.over_best(16) == 1.5
    # 8 x 128 + 40 x 92 against 8 x 128 + 8 x 128
    assert batch.advised() == 128
    assert section.losses([batch], lambda one: 16) == [0.5]


def test_the_section_has_every_layer_and_choice(section: Any) -> None:
    text = section.expert_product_section()
    rows = section.read_results(section.RESULT)["rows"]
    for layer in {row["layer"] for row in rows}:
        assert f"### {layer}\n" in text
    for choice in section.CHOICES:
        assert f"| {choice} |" in text
