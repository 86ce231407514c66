"""The contract of `align_block_size` as code: the checker and the table of cases."""

from __future__ import annotations

import json
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tessera._arrays import host_arrays
from tessera._call import named_arguments, named_integers, refused_number
from tessera._device import HOST
from tessera._float8 import as_bits
from tessera._framework import is_on_cuda
from tessera._library import dlpack_device, load, refusal
from tessera._op import Op
from tessera._outputs import ALIGN, named_outputs
from tessera._shown import shown

_MAX_IDS = 2**31 - 1


@dataclass(frozen=True)
class Violation:
    """One broken rule of the contract, at the first position that breaks it."""

    rule: str
    array: str
    position: int
    expected: int
    found: int
    message: str


@dataclass(frozen=True)
class Rule:
    """A rule that the checker knows, and what it means in one sentence."""

    name: str
    meaning: str


@dataclass(frozen=True)
class Case:
    """A row of the table of cases that drives every test of the op, or a random one."""

    name: str
    num_tokens: int
    num_experts: int
    top_k: int
    num_ids: int
    block_size: int
    dtype: str
    distribution: str
    broken: str
    map: str
    ignore_invalid_experts: bool
    pad_sorted_ids: bool
    tail_expert: int
    map_tail: bool
    filtered_group: bool
    statistics: bool
    validation: bool
    extra_length: int
    benchmark: bool


def rules() -> list[Rule]:
    """The rules, in the order in which they are checked."""
    return [Rule(**fields) for fields in load().read_json("op_rules", ALIGN.name)]


def cases() -> list[Case]:
    """The table of cases."""
    return [Case(**fields) for fields in load().read_json("align_block_size_cases")]


def case_named(name: str) -> Case:
    """The case of that name, or, for "random:SEED:MAX_IDS", a random one.

    Raises:
        ValueError: there is none.
    """
    return Case(**load().read_json("align_block_size_case", name))


def case_inputs(case: Case, seed: int) -> tuple[npt.NDArray[Any], npt.NDArray[np.int32] | None]:
    """`topk_ids` [num_tokens, top_k] of the case's dtype and the map, a function of the seed."""
    topk_ids = np.empty((case.num_tokens, case.top_k), case.dtype)
    expert_map = None if case.map == "none" else np.empty(case.num_experts, np.int32)
    write: Any = load().function("op_case_inputs")(ALIGN.name, case.name, seed)
    write(topk_ids, expert_map)
    return topk_ids, expert_map


def synthetic_topk_ids(
    num_tokens: int, num_experts: int, top_k: int, *, zipf: bool = False, seed: int = 0
) -> npt.NDArray[np.int32]:
    """Random ids, int32 [num_tokens, top_k], without repetition inside a token, as routers choose.

    All experts are equally likely, or, with `zipf`, their popularity falls with rank^-1.2. Ids
    repeat only where top_k is above num_experts.

    Raises:
        TypeError: one of the numbers is no integer.
        ValueError: one is out of range, or they are more ids than the op takes.
        MemoryError: NumPy's own.
    """
    limits = {
        "num_tokens": (num_tokens, 0, _MAX_IDS),
        "num_experts": (num_experts, 1, _MAX_IDS),
        "top_k": (top_k, 1, _MAX_IDS),
        "seed": (seed, -(2**63), 2**63 - 1),
    }
    for name, (value, least, most) in limits.items():
        if not isinstance(value, Integral):
            raise TypeError(
                f"synthetic_topk_ids: {name}: expected an integer, got {type(value).__name__}"
            )
        if not least <= value <= most:
            raise ValueError(
                f"synthetic_topk_ids: {name}: expected an integer in [{least}, {most}], got "
                f"{shown(value)}"
            )
    if num_tokens * top_k > _MAX_IDS:
        raise ValueError(
            f"synthetic_topk_ids: num_tokens * top_k: expected at most {_MAX_IDS}, "
            f"got {num_tokens} * {top_k}"
        )
    topk_ids = np.empty((num_tokens, top_k), np.int32)
    load().function("align_block_size_synthetic_ids")(
        num_tokens, num_experts, top_k, zipf, seed, topk_ids
    )
    return topk_ids


def contract_violations(
    topk_ids: Any,
    result: tuple[Any, ...],
    *,
    block_size: int,
    num_experts: int,
    expert_map: Any = None,
    ignore_invalid_experts: bool = False,
    pad_sorted_ids: bool = False,
    tail_expert: int = -1,
    map_tail: bool = False,
    filtered_group: bool = False,
    expert_counts: Any = None,
    num_dropped: Any = None,
    statistics: Any = None,
    validation: Any = None,
    validate: bool | Literal["now"] | None = None,
    num_threads: int | None = None,
    out: Any = None,
) -> list[Violation]:
    """Judge outputs of `align_block_size`, whoever computed them, against its contract.

    Takes the arguments of the call and its result, and as `validation` the int64[6] that callers of
    the C++ or C library may ask for; ignores `validate`, `num_threads` and `out`, on which the
    rules do not depend. Waits for arrays on a device, and copies them to the host. Time and
    memory are linear in the inputs and outputs.

    Returns:
        At most one violation for each rule of `rules()`; none if the contract holds.
    """
    numbers = (
        block_size,
        num_experts,
        bool(ignore_invalid_experts),
        bool(pad_sorted_ids),
        tail_expert,
    )
    reports = (expert_counts, num_dropped, statistics, validation)
    rest = (*reports, bool(map_tail), bool(filtered_group))
    return violations(ALIGN, (topk_ids, expert_map), result, numbers, rest)


def violations(
    op: Op,
    inputs: tuple[Any, ...],
    result: Any,
    numbers: tuple[Any, ...],
    rest: tuple[Any, ...] = (),
) -> list[Violation]:
    """Judge a call of any op, which takes the same arguments as `tessera._call.call`."""
    found = json.loads(judged(op, op.checker, inputs, result, numbers, rest))
    return [Violation(**fields) for fields in found]


def judged(
    op: Op,
    judge: Any,
    inputs: tuple[Any, ...],
    result: Any,
    numbers: tuple[Any, ...],
    rest: tuple[Any, ...] = (),
) -> Any:
    """What a function of the library that judges a call, by its arguments, says of this one."""
    inputs = as_bits(op.fp8_inputs, inputs)
    outputs = as_bits(op.fp8_outputs, tuple(named_outputs(op, result).values()))
    arrays, _ = named_arguments(op, inputs, outputs, rest)
    copies = host_arrays(op.name, arrays)
    # Some bounds are wider for calls on a device.
    ran_on_cuda = any(is_on_cuda(arrays.get(row.name)) for row in op.outputs)
    device_type, _ = dlpack_device(0 if ran_on_cuda else HOST)
    given = [copies.get(row.name) for row in (*op.inputs, *op.outputs)]
    more = [
        copies.get(row.name) if row.is_array else value
        for row, value in zip(op.rest, rest, strict=False)
    ]
    try:
        return judge(device_type, *given, *numbers, *more)
    except Exception as error:
        # No variable may hold it: its traceback holds the frame, and so the arrays.
        raise refusal(
            op.name, refused_number(op, numbers) or error, copies, named_integers(op, numbers)
        ) from None
