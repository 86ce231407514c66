"""Calls of `align_block_size` for hypothesis to draw, with anything broken that may be."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

DTYPES = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]


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
        "map_tail": draw(st.booleans()),
        "filtered_group": draw(st.booleans()),
        "expert_map": None,
    }
    if draw(st.booleans()):
        size = num_experts
        options["expert_map"] = np.array(
            draw(st.lists(entries, min_size=size, max_size=size)), np.int32
        )
    return np.array(ids, dtype).reshape(tokens, top_k), options, draw(st.integers(0, 70))
