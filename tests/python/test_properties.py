"""Random calls, with anything broken that may be, against the plain oracle and the checker."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import tessera
from oracle import expected_blocks

DTYPES = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]
CANARY = -0x21524111


@st.composite
def calls(draw: st.DrawFn) -> tuple[Any, dict[str, Any], int]:
    """Ids, options, and by how much the outputs are longer than needed."""
    num_experts = draw(st.one_of(st.integers(1, 12), st.integers(1, 600)))
    dtype: Any = np.dtype(draw(st.sampled_from(DTYPES)))
    limits: Any = np.iinfo(dtype)
    broken = [-1, -(2**31), num_experts, 2**31 - 1, 2**63 - 1, int(limits.min), int(limits.max)]
    values = st.one_of(
        st.integers(0, min(num_experts - 1, int(limits.max))),
        st.sampled_from([v for v in broken if limits.min <= v <= limits.max]),
    )
    tokens, top_k = draw(st.integers(0, 40)), draw(st.integers(1, 4))
    size = tokens * top_k
    ids = draw(st.lists(values, min_size=size, max_size=size))
    entries = st.one_of(st.integers(0, num_experts - 1), st.sampled_from([-1, 2**31 - 1, -7]))
    options: dict[str, Any] = {
        "block_size": draw(st.one_of(st.integers(1, 9), st.sampled_from([16, 128, 1000]))),
        "num_experts": num_experts,
        "ignore_invalid_experts": draw(st.booleans()),
        "pad_sorted_ids": draw(st.booleans()),
        "tail_expert": draw(st.sampled_from([-1, 0, 2**31 - 1])),
        "expert_map": None,
    }
    if draw(st.booleans()):
        size = num_experts
        options["expert_map"] = np.array(
            draw(st.lists(entries, min_size=size, max_size=size)), np.int32
        )
    return np.array(ids, dtype).reshape(tokens, top_k), options, draw(st.integers(0, 70))


@settings(max_examples=200, deadline=None)
@given(calls())
def test_matches_the_oracle(call: tuple[Any, dict[str, Any], int]) -> None:
    topk_ids, options, extra = call
    plain = dict(options)
    if options["expert_map"] is not None:
        plain["expert_map"] = options["expert_map"].tolist()
    expected = expected_blocks(topk_ids.reshape(-1).tolist(), extra_length=extra, **plain)

    memory = [np.full(len(part) + 8, CANARY, np.int32) for part in expected]
    outputs = [array[4:-4] for array in memory]
    statistics: dict[str, Any] = {"expert_counts": outputs[3], "num_dropped": outputs[4]}
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
