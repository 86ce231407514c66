"""The checker from Python: every rule bites, and violations say what and where."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest

import tessera
from tessera._op import op_names
from tessera.contract import rules

IDS = np.array([2, 0, 2, 2, 0, 9], np.int32)
OPTIONS: dict[str, Any] = {"block_size": 2, "num_experts": 3}
# Blocks: expert 0 has [1, 4]; expert 2 has [0, 2] and [3, padding]; three slots of tail.


def good() -> dict[str, Any]:
    counts, dropped, statistics = np.empty(3, np.int32), np.empty(1, np.int32), np.empty(6)
    found = tessera.align_block_size(
        IDS, expert_counts=counts, num_dropped=dropped, statistics=statistics, **OPTIONS
    )
    assert [array.tolist() for array in found] == [
        [1, 4, 0, 2, 3, 6, 6, 6, 6],
        [0, 2, 2, -1, -1],
        [6],
    ]
    return {
        **found._asdict(),
        "expert_counts": counts,
        "num_dropped": dropped,
        "statistics": statistics,
        "validation": np.array([1, 5, 9, 0, -1, 0]),
    }


def violations(arrays: dict[str, Any], **options: Any) -> list[tessera.Violation]:
    result = tuple(arrays[name] for name in tessera.AlignedBlocks._fields)
    optional = {
        name: array for name, array in arrays.items() if name not in tessera.AlignedBlocks._fields
    }
    return tessera.contract_violations(IDS, result, **optional, **{**OPTIONS, **options})


def test_the_contract_holds() -> None:
    assert violations(good()) == []


@pytest.mark.parametrize(
    ("rule", "array", "position", "value"),
    [
        ("num_tokens_post_pad", "num_tokens_post_pad", 0, 8),
        ("group_members", "sorted_token_ids", 0, 3),
        ("group_members", "sorted_token_ids", 0, -5),
        ("no_repeats", "sorted_token_ids", 3, 0),
        ("padding", "sorted_token_ids", 5, 5),
        ("sorted_tail", "sorted_token_ids", 8, 0),
        ("block_experts", "expert_ids", 1, 1),
        ("expert_tail", "expert_ids", 4, 0),
        ("expert_counts", "expert_counts", 2, 2),
        ("num_dropped", "num_dropped", 0, 0),
        ("validation", "validation", 0, 2),
        ("validation", "validation", 1, 4),
        ("validation", "validation", 2, 8),
        ("validation", "validation", 3, 1),
    ],
)
def test_each_rule_bites(rule: str, array: str, position: int, value: int) -> None:
    arrays = good()
    arrays[array][position] = value
    found = next(one for one in violations(arrays) if one.rule == rule)
    assert (found.array, found.position, found.found) == (array, position, value)
    assert found.message.startswith(f"{rule}: {array}[{position}]: expected ")
    assert found.message.endswith(str(value))


@pytest.mark.parametrize("position", range(6))
def test_every_statistic_bites(position: int) -> None:
    arrays = good()
    arrays["statistics"][position] += 0.5
    (found,) = violations(arrays)
    assert (found.rule, found.array, found.position) == ("statistics", "statistics", position)
    assert found.message.endswith(f"found {arrays['statistics'][position]:g}") or position == 5


def test_the_options_are_part_of_the_contract() -> None:
    entries = np.array([1, -1, 0], np.int32)
    ids = np.array([2, -1, 0, -1], np.int32)
    options = {**OPTIONS, "expert_map": entries, "tail_expert": 2}
    plain = tessera.align_block_size(ids, **options)
    assert plain.expert_ids.tolist() == [1, 0, 2, 2]
    mapped = tessera.align_block_size(ids, map_tail=True, **options)
    assert mapped.expert_ids.tolist() == [1, 0, 0, 0]
    filtered = tessera.align_block_size(ids, filtered_group=True, **options)
    assert filtered.expert_ids.tolist() == [-1, 1, 0, 2]
    for result, choice in [(plain, {}), (mapped, {"map_tail": True})]:
        assert not tessera.contract_violations(ids, result, **options, **choice)
    assert not tessera.contract_violations(ids, filtered, filtered_group=True, **options)
    (tail,) = tessera.contract_violations(ids, plain, map_tail=True, **options)
    assert (tail.rule, tail.position, tail.expected) == ("expert_tail", 2, 0)
    first = tessera.contract_violations(ids, plain, filtered_group=True, **options)[0]
    assert (first.rule, first.expected) == ("output_sizes", 8)


def test_order_bites() -> None:
    arrays = good()
    arrays["sorted_token_ids"][[2, 3]] = [2, 0]
    (found,) = violations(arrays)
    assert (found.rule, found.position, found.found) == ("stable_order", 3, 0)


def test_sizes_bite() -> None:
    arrays = good()
    arrays["expert_ids"] = arrays["expert_ids"][:4]
    (found,) = violations(arrays)
    assert (found.rule, found.array) == ("output_sizes", "expert_ids")
    assert (found.expected, found.found) == (5, 4)


def test_other_arguments_are_another_contract() -> None:
    assert [one.rule for one in violations(good(), tail_expert=0)] == ["expert_tail"]
    found = tessera.contract_violations(
        IDS, tuple(good().values())[:3], block_size=2, num_experts=2
    )
    assert found[0].rule == "num_tokens_post_pad"


def test_rules_have_names_and_meanings() -> None:
    names = [rule.name for rule in rules()]
    assert len(set(names)) == len(names) > 10
    assert all(rule.meaning.endswith(".") for rule in rules())


def test_arguments_that_cannot_be_judged() -> None:
    with pytest.raises(
        TypeError, match=r"topk_ids: expected an array that speaks DLPack, got list"
    ):
        tessera.contract_violations([1], tuple(good().values())[:3], **OPTIONS)
    slots, blocks, _ = tuple(good().values())[:3]
    for output in ([1], 1, "one"):
        with pytest.raises(
            TypeError, match="num_tokens_post_pad: expected an array that speaks DLPack, got "
        ):
            tessera.contract_violations(IDS, (slots, blocks, output), **OPTIONS)


@pytest.mark.parametrize("op", op_names())
def test_the_arguments_of_a_call_can_be_passed_on(op: str) -> None:
    """The checker of an op takes all that a call takes, whether or not the rules depend on it."""
    name = f"{op}_contract_violations".replace("_align_block_size", "")
    checker = getattr(tessera, name.removeprefix("align_block_size_"))
    of_call = inspect.signature(getattr(tessera, op)).parameters
    of_checker = inspect.signature(checker).parameters
    for parameter in of_call.values():
        assert of_checker[parameter.name].default == parameter.default, parameter.name


def test_what_the_rules_do_not_depend_on() -> None:
    values = np.ones((2, 3, 4), np.float32)
    found = np.full((2, 4), 3, np.float32)
    options: dict[str, Any] = {"num_threads": 1, "out": np.zeros((2, 4), np.float32)}
    assert not tessera.moe_sum_contract_violations(values, found, **options)
    weights = np.ones((1, 2, 4), np.float32), np.ones((1, 4, 1), np.float32)
    routed = np.ones((2, 1), np.float32), np.zeros((2, 1), np.int32)
    call: dict[str, Any] = {"x": np.zeros((2, 4), np.float32), "w13": weights[0], "w2": weights[1]}
    call |= {"topk_weights": routed[0], "topk_ids": routed[1], "batch_invariant": True, **options}
    for output, rules_broken in ((found * 0, []), (found, ["error_bound"])):
        broken = tessera.fused_experts_contract_violations(**call, output=output)
        assert [one.rule for one in broken] == rules_broken
    assert tessera.fused_experts_bound_used(**call, output=found * 0) == 0


class Unreachable:
    """Says where it is, or not, and cannot be copied from there."""

    def __init__(self, device: object) -> None:
        self.device = device

    def __dlpack_device__(self) -> object:
        if isinstance(self.device, Exception):
            raise self.device
        return self.device

    def __dlpack__(self, **_: Any) -> Any:
        raise BufferError("gone")


@pytest.mark.parametrize(
    "device", [(2, 0), (8, 0), None, "gpu", RuntimeError("lost"), AttributeError("oops")]
)
def test_arrays_that_cannot_be_copied(device: object) -> None:
    slots, blocks, count = tuple(good().values())[:3]
    array = Unreachable(device)
    for ids, result in ((array, (slots, blocks, count)), (IDS, (slots, blocks, array))):
        with pytest.raises((TypeError, ValueError), match=r"^align_block_size: (topk_ids|num_tok)"):
            tessera.contract_violations(ids, result, **OPTIONS)
