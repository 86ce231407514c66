"""`align_block_size` for NumPy arrays, torch tensors and whatever else speaks DLPack."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeVar, overload

import numpy as np
import numpy.typing as npt

from tessera._arrays import UNFIT, any_unfit
from tessera._call import call, call_refusal
from tessera._framework import Framework
from tessera._frameworks import FRAMEWORKS
from tessera._outputs import ALIGN
from tessera._results import AlignedBlocks
from tessera._torch_hook import call_traced, register
from tessera._torch_registry import Shape, TorchOp
from tessera.strict import ValidationReport, require_flag

Array = TypeVar("Array")

# The default, to be recognised by its identity: it need not be passed on.
_TAIL_EXPERT = -1


@overload
def align_block_size(
    topk_ids: npt.NDArray[Any],
    *,
    block_size: int,
    num_experts: int,
    expert_map: Any = ...,
    ignore_invalid_experts: bool = ...,
    pad_sorted_ids: bool = ...,
    tail_expert: int = ...,
    map_tail: bool = ...,
    filtered_group: bool = ...,
    expert_counts: Any = ...,
    num_dropped: Any = ...,
    statistics: Any = ...,
    validate: bool | Literal["now"] | None = ...,
    num_threads: int | None = ...,
    out: tuple[npt.NDArray[np.int32], ...] | None = ...,
) -> AlignedBlocks[npt.NDArray[np.int32]]: ...


@overload
def align_block_size(
    topk_ids: Array,
    *,
    block_size: int,
    num_experts: int,
    expert_map: Any = ...,
    ignore_invalid_experts: bool = ...,
    pad_sorted_ids: bool = ...,
    tail_expert: int = ...,
    map_tail: bool = ...,
    filtered_group: bool = ...,
    expert_counts: Any = ...,
    num_dropped: Any = ...,
    statistics: Any = ...,
    validate: bool | Literal["now"] | None = ...,
    num_threads: int | None = ...,
    out: tuple[Array, ...] | None = ...,
) -> AlignedBlocks[Array]: ...


def align_block_size(
    topk_ids: Any,
    *,
    block_size: int,
    num_experts: int,
    expert_map: Any = None,
    ignore_invalid_experts: bool = False,
    pad_sorted_ids: bool = False,
    tail_expert: int = _TAIL_EXPERT,
    map_tail: bool = False,
    filtered_group: bool = False,
    expert_counts: Any = None,
    num_dropped: Any = None,
    statistics: Any = None,
    validate: bool | Literal["now"] | None = None,
    num_threads: int | None = None,
    out: tuple[Any, ...] | None = None,
) -> Any:
    """Group (token, slot) pairs by expert, every group padded to whole blocks.

    N below is the number of elements of `topk_ids`; the capacity is N + min(N, num_experts) *
    (block_size - 1). All arrays are contiguous and on one device, where the op runs: on a GPU, on
    the current stream of torch or CuPy, without waiting for it; a graph may capture it. Calls with
    JAX arrays on a GPU are waited for.

    Args:
        topk_ids: any shape, any of the eight integer types; expert of each (token, slot) pair.
            Ids outside [0, num_experts) are dropped.
        block_size: slots in a block, at least 1.
        num_experts: at least 1.
        expert_map: int32[num_experts], the local number of each global expert; any value outside
            [0, num_experts) marks an expert that lives elsewhere.
        ignore_invalid_experts: with a map, group by local expert and leave out the pairs of
            experts that live elsewhere. Without it such experts' blocks show -1.
        pad_sorted_ids: round the capacity up to a multiple of `block_size`.
        tail_expert: int32 value of `expert_ids` past the last block.
        map_tail: with a map, show the map's entry of `tail_expert` there, -1 if it has none.
        filtered_group: pairs with id -1 are not dropped but form a group of their own, the first,
            whose blocks show -1. The capacity is then N + min(N, num_experts + 1) *
            (block_size - 1).
        expert_counts: int32[num_experts] to write the size of each group to, padding excluded.
        num_dropped: int32[1] to write the number of ids that are dropped to.
        statistics: float64[6] to write the call's `RoutingStatistics` to.
        validate: whether ids that are dropped, and map entries outside [-1, num_experts), are
            errors. With True, a call on the host raises once it has run, and one on a GPU, which is
            not waited for, leaves it to `tessera.check()`; with "now" that raises too, and is
            waited for. None stands for TESSERA_VALIDATE, off by default.
        num_threads: host threads to use at most, capped by TESSERA_NUM_THREADS; None and 0 stand
            for that, or, where it is unset, for the cores of this process. Never changes the
            result.
        out: tuple of the three arrays to write to, which may be longer than needed. No output is
            allocated then; large batches on a GPU still take workspace from its framework.

    Returns:
        `out` if given, else new arrays, parts of one allocation: NumPy's for NumPy, torch's on the
        same device for torch, CuPy's for CuPy. For any other array on the host they are made by
        `from_dlpack` of its `__array_namespace__`, and are NumPy's where it has none. Each begins
        at a multiple of 16 bytes; of 128 where the allocation itself does, as on a GPU.

    Raises:
        TypeError: an argument has the wrong type. Nothing was written; so for all errors but
            `InvalidRoutingError`.
        ValueError: a value, size, device or layout lies outside the op's domain.
        InvalidRoutingError: a `ValueError`, with `validate` on the host, and with "now" anywhere:
            an id or map entry is invalid.
        NotImplementedError: nothing in this build can run the call.
        RuntimeError: the machine refused; `torch.OutOfMemoryError`, if torch has no memory left.
        MemoryError: NumPy's own, where it has no memory for the outputs.
    """
    # Most calls, without a detour.
    is_unchecked = validate is False or (
        validate is None and ALIGN.library.validate_default is False
    )
    if (
        is_unchecked
        and out is not None
        and ALIGN.direct(
            out,
            num_threads,
            topk_ids,
            expert_map,
            block_size,
            num_experts,
            ignore_invalid_experts,
            pad_sorted_ids,
            tail_expert,
            expert_counts,
            num_dropped,
            statistics,
            None,  # no report of invalid ids
            map_tail,
            filtered_group,
        )
    ):
        return out
    framework = FRAMEWORKS[type(topk_ids)]
    num_modes = framework.num_modes
    if num_modes is not None and (num_modes() or framework.is_tracing()):
        if validate is not None:
            raise ValueError(
                "align_block_size: validate: expected None in a call that torch traces, where "
                f"TESSERA_VALIDATE decides, got {validate!r}"
            )
        return call_traced(
            ALIGN,
            topk_ids,
            out,
            block_size=block_size,
            num_experts=num_experts,
            expert_map=expert_map,
            ignore_invalid_experts=ignore_invalid_experts,
            pad_sorted_ids=pad_sorted_ids,
            tail_expert=tail_expert,
            map_tail=map_tail,
            filtered_group=filtered_group,
            expert_counts=expert_counts,
            num_dropped=num_dropped,
            statistics=statistics,
            num_threads=num_threads,
        )
    if (
        is_unchecked
        and ignore_invalid_experts is pad_sorted_ids is map_tail is filtered_group is False
        and expert_map is expert_counts is num_dropped is statistics is num_threads is None
        and out is None
        and tail_expert is _TAIL_EXPERT
    ):  # the library knows the defaults
        return call(ALIGN, framework, topk_ids, (), (block_size, num_experts), None)
    return align_eagerly(
        topk_ids,
        block_size,
        num_experts,
        expert_map,
        ignore_invalid_experts,
        pad_sorted_ids,
        tail_expert,
        map_tail,
        filtered_group,
        expert_counts,
        num_dropped,
        statistics,
        num_threads,
        validate,
        out,
    )


def align_eagerly(
    topk_ids: Any,
    block_size: int,
    num_experts: int,
    expert_map: Any = None,
    ignore_invalid_experts: bool = False,
    pad_sorted_ids: bool = False,
    tail_expert: int = _TAIL_EXPERT,
    map_tail: bool = False,
    filtered_group: bool = False,
    expert_counts: Any = None,
    num_dropped: Any = None,
    statistics: Any = None,
    num_threads: int | None = None,
    validate: bool | Literal["now"] | None = None,
    out: tuple[Any, ...] | None = None,
) -> Any:
    """`align_block_size`, even while torch traces or redirects operations on its arrays."""
    framework = FRAMEWORKS[type(topk_ids)]
    if validate is None:
        validate = ALIGN.library.validate_default
    # A flag may be NumPy's, which the FFI does not take; most are the default.
    if ignore_invalid_experts is not False:
        ignore_invalid_experts = bool(ignore_invalid_experts)
    if pad_sorted_ids is not False:
        pad_sorted_ids = bool(pad_sorted_ids)
    numbers = (block_size, num_experts, ignore_invalid_experts, pad_sorted_ids, tail_expert)
    others = () if expert_map is None else (expert_map,)
    threads = 0 if num_threads is None else num_threads
    if validate is False and not (map_tail or filtered_group) and statistics is None:
        rest: tuple[Any, ...] = ()
        if not (expert_counts is num_dropped is None):
            rest = (expert_counts, num_dropped)
        return call(ALIGN, framework, topk_ids, others, numbers, out, threads, rest)
    flags = bool(map_tail), bool(filtered_group)
    require_flag(validate)
    if not validate:
        rest = (expert_counts, num_dropped, statistics, None, *flags)
        return call(ALIGN, framework, topk_ids, others, numbers, out, threads, rest)
    return _align_validated(
        framework,
        (topk_ids, expert_map),
        numbers,
        out,
        threads,
        (expert_counts, num_dropped, statistics),
        flags,
        validate,
    )


def _align_validated(
    framework: Framework,
    inputs: tuple[Any, ...],
    numbers: tuple[Any, ...],
    out: tuple[Any, ...] | None,
    num_threads: object,
    reports: tuple[Any, ...],
    flags: tuple[bool, bool],
    validate: object,
) -> Any:
    """The call with a report of invalid ids and map entries."""
    topk_ids = inputs[0]
    try:
        if any_unfit(inputs):
            raise TypeError(UNFIT)
        cuda_index = framework.cuda_index(topk_ids)
        report = ValidationReport(validate, topk_ids, framework, cuda_index, numbers[1], flags[1])
    except Exception as error:
        rest = (*reports, None, *flags)
        raise call_refusal(ALIGN, error, inputs, out, numbers, num_threads, rest) from None
    try:
        rest = (*reports, report.array, *flags)
        result = call(ALIGN, framework, topk_ids, inputs[1:], numbers, out, num_threads, rest)
    except BaseException:
        report.cancel()
        raise
    report.submit()
    return result


def _shapes(arguments: Mapping[str, Any]) -> tuple[Shape, ...]:
    num_slots, num_blocks = symbolic_sizes(
        arguments["topk_ids"].numel(),
        arguments["block_size"],
        arguments["num_experts"],
        arguments.get("pad_sorted_ids", False),
        arguments.get("filtered_group", False),
    )
    return (num_slots,), (num_blocks,), (1,)


def symbolic_sizes(
    num_ids: Any, block_size: Any, num_experts: Any, pad_sorted_ids: bool, filtered_group: bool
) -> tuple[Any, Any]:
    """Lengths of `sorted_token_ids` and `expert_ids`, also for SymInts."""
    import torch

    num_groups = num_experts + 1 if filtered_group else num_experts
    capacity = num_ids + torch.sym_min(num_ids, num_groups) * (block_size - 1)
    num_blocks = (capacity + block_size - 1) // block_size
    return (num_blocks * block_size if pad_sorted_ids else capacity), num_blocks


register(TorchOp(ALIGN, align_block_size, align_eagerly, _shapes))
