"""Random calls, with anything broken that may be, against the plain oracle and the checker."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings

import tessera
from oracle import expected_blocks
from random_calls import calls

CANARY = -0x21524111


@settings(max_examples=200, deadline=None)
@given(calls())
def test_matches_the_oracle(call: tuple[Any, dict[str, Any], int]) -> None:
    topk_ids, options, extra = call
    plain = dict(options)
    if options["expert_map"] is not None:
        plain["expert_map"] = options["expert_map"].tolist()
    expected: tuple[Any, ...] = expected_blocks(
        topk_ids.reshape(-1).tolist(), extra_length=extra, **plain
    )

    dtypes = [np.int32] * 5 + [np.float64]
    memory = [
        np.full(len(part) + 8, CANARY, dtype) for part, dtype in zip(expected, dtypes, strict=True)
    ]
    outputs = [array[4:-4] for array in memory]
    names = ("expert_counts", "num_dropped", "statistics")
    statistics: dict[str, Any] = dict(zip(names, outputs[3:], strict=True))
    tessera.align_block_size(topk_ids, out=tuple(outputs[:3]), **statistics, **options)
    assert [array.tolist() for array in outputs] == list(expected)
    for array in memory:
        assert array[:4].tolist() == array[-4:].tolist() == [CANARY] * 4
    assert not tessera.contract_violations(topk_ids, tuple(outputs[:3]), **statistics, **options)


@settings(max_examples=50, deadline=None)
@given(calls())
def test_allocates_the_contract_s_sizes(call: tuple[Any, dict[str, Any], int]) -> None:
    topk_ids, options, _ = call
    plain = {name: value for name, value in options.items() if name != "expert_map"}
    expected = expected_blocks(topk_ids.reshape(-1).tolist(), **plain)
    found = tessera.align_block_size(topk_ids, **plain)
    assert [array.tolist() for array in found] == list(expected[:3])
