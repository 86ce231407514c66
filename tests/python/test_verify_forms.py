"""Signatures found in practice, and the form detected for each."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tessera.tools.judge.call import Call
from tessera.tools.judge.forms import adapted, arguments_of, judged_as

# The parameters of vLLM 0.9.2's function; then 0.33's; its op; its Triton function; SGLang's
# function and op; the benchmark scripts'; our own.
KNOWN = {
    "topk_ids, block_size, num_experts, expert_map=None, pad_sorted_ids=False": "vllm",
    "topk_ids, block_size, num_experts, expert_map=None, pad_sorted_ids=False, "
    "ignore_invalid_experts=False, return_scatter_idx=False": "vllm",
    "topk_ids, num_experts, block_size, sorted_token_ids, experts_ids, num_tokens_post_pad, "
    "expert_map=None, scatter_idx=None": "vllm-op",
    "topk_ids, num_experts, block_size, sorted_token_ids, expert_ids, "
    "num_tokens_post_pad": "vllm-op",
    "topk_ids, block_size, num_experts, ignore_invalid_expert=False, *, pad=False": "sglang",
    "topk_ids, num_experts, block_size, sorted_token_ids, experts_ids, num_tokens_post_pad, "
    "cumsum_buffer, pad_sorted_token_ids=False, ignore_invalid_expert=False": "sglang-op",
    "topk_ids, num_experts, block_size, topk": "script",
    "topk_ids, *, block_size, num_experts": "tessera",
    "topk_ids, block_size, num_experts, tail_expert=-1": "tessera",
}


def function(parameters: str) -> Any:
    return eval(f"lambda {parameters}: None")


def call(**options: Any) -> Call:
    return Call(np.zeros((2, 3), np.int32), 4, 5, **options)


MAP = np.arange(5, dtype=np.int32)


@pytest.mark.parametrize(("parameters", "form"), KNOWN.items())
def test_detected(parameters: str, form: str) -> None:
    assert judged_as(function(parameters), None).form.name == form


@pytest.mark.parametrize(
    "parameters",
    ["topk_ids", "topk_ids, num_experts, block_size", "topk_ids, other, block_size, num_experts"],
)
def test_not_detected(parameters: str) -> None:
    with pytest.raises(
        ValueError,
        match=r"(?s)cannot be detected from the parameters \(topk_ids.*vllm-op.*; --op names",
    ):
        judged_as(function(parameters), None)
    assert judged_as(function(parameters), "script").form.name == "script"


def test_a_function_without_parameters_to_be_seen_takes_what_its_form_has() -> None:
    everything = {"expert_map", "pad_sorted_ids", "ignore_invalid_experts"}
    assert judged_as(function("*args, **kwargs"), "vllm").accepted == everything
    assert judged_as(max, "vllm").accepted == everything


def test_only_what_the_function_takes_is_asked() -> None:
    judged = judged_as(function("topk_ids, block_size, num_experts, expert_map=None"), None)
    asked, lacking = adapted(
        judged, call(expert_map=MAP, tail_expert=3, pad_sorted_ids=True, extra_length=2)
    )
    assert sorted(lacking) == ["extra_length", "pad_sorted_ids", "tail_expert"]
    assert asked.expert_map is MAP
    assert (asked.tail_expert, asked.pad_sorted_ids, asked.extra_length) == (-1, False, 0)
    arguments = arguments_of(judged, asked)
    assert arguments.positional == ["topk_ids", "block_size", "num_experts"]
    assert (arguments.keywords, arguments.buffers) == (["expert_map"], {})


def test_the_op_of_vllm_takes_a_map_only_to_leave_pairs_out() -> None:
    judged = judged_as(function(next(p for p, form in KNOWN.items() if form == "vllm-op")), None)
    asked, lacking = adapted(judged, call(expert_map=MAP))
    assert (asked.expert_map, lacking) == (None, ["expert_map"])
    local, lacking = adapted(judged, call(expert_map=MAP, ignore_invalid_experts=True))
    assert (local.expert_map, local.ignore_invalid_experts, lacking) == (MAP, True, [])
    arguments = arguments_of(judged, local)
    assert arguments.keywords == ["expert_map"]
    assert arguments.buffers == {
        "sorted_token_ids": 6 + 5 * 3,
        "expert_ids": 6,
        "num_tokens_post_pad": 1,
    }


def test_the_op_of_sglang_counts_one_bucket_more() -> None:
    judged = judged_as(function(next(p for p, form in KNOWN.items() if form == "sglang-op")), None)
    asked, lacking = adapted(judged, call())
    assert (asked.filtered_group, lacking) == (True, [])
    arguments = arguments_of(judged, asked)
    assert [arguments.values.get(name, name) for name in arguments.positional] == [
        "topk_ids",
        6,
        4,
        "sorted_token_ids",
        "expert_ids",
        "num_tokens_post_pad",
        "cumsum_buffer",
        True,
    ]
    assert arguments.buffers["cumsum_buffer"] == 7
    assert arguments.buffers["sorted_token_ids"] == 6 + 6 * 3
