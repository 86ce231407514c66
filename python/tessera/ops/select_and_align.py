"""`select_and_align` for NumPy arrays, torch tensors and whatever else speaks DLPack."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, overload

import numpy as np
import numpy.typing as npt

from tessera._call import call
from tessera._frameworks import FRAMEWORKS
from tessera._op import Op
from tessera._results import SelectedAndAligned
from tessera._torch_hook import call_traced, is_traced, register
from tessera._torch_registry import Shape, TorchOp
from tessera.contract import Violation, violations
from tessera.ops.align_block_size import symbolic_sizes
from tessera.ops.select_experts import numbers_of_groups

Array = TypeVar("Array")

_OP = Op("select_and_align")


@overload
def select_and_align(
    router_logits: npt.NDArray[Any],
    *,
    top_k: int,
    block_size: int,
    scoring: str = ...,
    renormalize: bool = ...,
    correction_bias: Any = ...,
    num_expert_group: int | None = ...,
    topk_group: int | None = ...,
    routed_scaling_factor: float = ...,
    num_valid_tokens: Any = ...,
    expert_map: Any = ...,
    ignore_invalid_experts: bool = ...,
    pad_sorted_ids: bool = ...,
    expert_counts: Any = ...,
    statistics: Any = ...,
    num_threads: int | None = ...,
    out: tuple[npt.NDArray[Any], ...] | None = ...,
) -> SelectedAndAligned[npt.NDArray[Any]]: ...


@overload
def select_and_align(
    router_logits: Array,
    *,
    top_k: int,
    block_size: int,
    scoring: str = ...,
    renormalize: bool = ...,
    correction_bias: Any = ...,
    num_expert_group: int | None = ...,
    topk_group: int | None = ...,
    routed_scaling_factor: float = ...,
    num_valid_tokens: Any = ...,
    expert_map: Any = ...,
    ignore_invalid_experts: bool = ...,
    pad_sorted_ids: bool = ...,
    expert_counts: Any = ...,
    statistics: Any = ...,
    num_threads: int | None = ...,
    out: tuple[Array, ...] | None = ...,
) -> SelectedAndAligned[Array]: ...


def select_and_align(
    router_logits: Any,
    *,
    top_k: int,
    block_size: int,
    scoring: str = "softmax",
    renormalize: bool = False,
    correction_bias: Any = None,
    num_expert_group: int | None = None,
    topk_group: int | None = None,
    routed_scaling_factor: float = 1.0,
    num_valid_tokens: Any = None,
    expert_map: Any = None,
    ignore_invalid_experts: bool = False,
    pad_sorted_ids: bool = False,
    expert_counts: Any = None,
    statistics: Any = None,
    num_threads: int | None = None,
    out: tuple[Any, ...] | None = None,
) -> Any:
    """Choose the experts of each token, and group the (token, slot) pairs by expert, in one call.

    The outputs have the bits of two calls: `select_experts` of the logits, then `align_block_size`
    of its ids, with `num_experts=E`. On a GPU few tokens take one launch.
    `include/tessera/select_and_align.hpp` has the contract.

    All arrays are on one device, where the op runs: on a GPU, on the current stream of torch or
    CuPy, without waiting for it; a graph may capture it. Calls with JAX arrays on a GPU are waited
    for. Autograd does not follow the call. The pairs' ids are never invalid, so that
    `TESSERA_VALIDATE` has no effect on this op.

    Args:
        router_logits: float16, bfloat16 or float32 [T, E], E at least 1; rows may lie apart, but
            the last axis is contiguous. A NaN counts as -inf. NumPy has no bfloat16 that it
            exports; torch and JAX have.
        top_k: experts per token, k: 1 to E, and at most what the groups that stay have.
        block_size: slots in a block, at least 1.
        scoring: "softmax", "sigmoid" or "sqrt_softplus".
        renormalize: divide the weights of a token by their sum.
        correction_bias: float32 [E], contiguous: added to the scores for the choice alone.
        num_expert_group: groups of neighbouring experts, of equal size; divides E. None stands
            for 1.
        topk_group: groups of a token that stay. None stands for all.
        routed_scaling_factor: finite.
        num_valid_tokens: int32 [1]: later tokens are padding, with ids -1 and weights 0. Their
            pairs are in no block.
        expert_map: int32 [E], the local number of each global expert; any value outside [0, E)
            marks an expert that lives elsewhere.
        ignore_invalid_experts: with a map, group by local expert and leave out the pairs of
            experts that live elsewhere. Without it such experts' blocks show -1.
        pad_sorted_ids: round the capacity up to a multiple of `block_size`.
        expert_counts: int32 [E] to write the size of each group to, padding excluded.
        statistics: float64 [6] to write the call's `RoutingStatistics` to.
        num_threads: host threads to use at most, capped by TESSERA_NUM_THREADS; None and 0 stand
            for that, or, where it is unset, for the cores of this process. Never changes the
            result.
        out: tuple of the five arrays to write to, contiguous; the third and the fourth may be
            longer than needed. None may overlap another array of the call.

    Returns:
        `out` if given, else new arrays in the framework of `router_logits`.
        topk_weights: float32 [T, k].
        topk_ids: int32 [T, k], for each token k different experts, those with larger scores first.
        sorted_token_ids: int32 [capacity], where the capacity is N + min(N, E) * (block_size - 1)
            for N = T * k: indices of pairs, grouped by expert; what is no pair is N.
        expert_ids: int32 [ceil(capacity / block_size)], the expert of each block, then -1.
        num_tokens_post_pad: int32 [1], the slots of all blocks.

    Raises:
        TypeError: an argument has the wrong type. Nothing was written; so for all errors.
        ValueError: a value, shape, device or layout lies outside the op's domain, or autograd
            follows an array.
        NotImplementedError: nothing in this build can run the call.
        RuntimeError: the machine refused; `torch.OutOfMemoryError`, if torch has no memory left.
        MemoryError: NumPy's own, where it has no memory for the outputs.
    """
    # Most calls with tensors of torch need none of the steps below.
    if type(router_logits) is not np.ndarray:
        num_groups, num_staying = numbers_of_groups(num_expert_group, topk_group)
        made = _OP.direct(
            out,
            num_threads,
            router_logits,
            correction_bias,
            num_valid_tokens,
            expert_map,
            top_k,
            block_size,
            scoring,
            renormalize,
            num_groups,
            num_staying,
            routed_scaling_factor,
            ignore_invalid_experts,
            pad_sorted_ids,
            expert_counts,
            statistics,
        )
        if made is not None:
            return made
    arguments = {
        "top_k": top_k,
        "block_size": block_size,
        "scoring": scoring,
        "renormalize": renormalize,
        "correction_bias": correction_bias,
        "num_expert_group": num_expert_group,
        "topk_group": topk_group,
        "routed_scaling_factor": routed_scaling_factor,
        "num_valid_tokens": num_valid_tokens,
        "expert_map": expert_map,
        "ignore_invalid_experts": ignore_invalid_experts,
        "pad_sorted_ids": pad_sorted_ids,
        "expert_counts": expert_counts,
        "statistics": statistics,
        "num_threads": num_threads,
    }
    if is_traced(FRAMEWORKS[type(router_logits)]):
        return call_traced(_OP, router_logits, out, **arguments)
    return _eagerly(router_logits, **arguments, out=out)


def _eagerly(
    router_logits: Any,
    top_k: int,
    block_size: int,
    scoring: str,
    renormalize: bool,
    correction_bias: Any,
    num_expert_group: int | None,
    topk_group: int | None,
    routed_scaling_factor: float,
    num_valid_tokens: Any,
    expert_map: Any,
    ignore_invalid_experts: bool,
    pad_sorted_ids: bool,
    expert_counts: Any,
    statistics: Any,
    num_threads: int | None,
    out: Any,
) -> Any:
    has_others = not (correction_bias is num_valid_tokens is expert_map is None)
    others = (correction_bias, num_valid_tokens, expert_map) if has_others else ()
    has_rest = not (expert_counts is statistics is None)
    rest = (expert_counts, statistics) if has_rest else ()
    numbers = _numbers(
        top_k,
        block_size,
        scoring,
        renormalize,
        num_expert_group,
        topk_group,
        routed_scaling_factor,
        ignore_invalid_experts,
        pad_sorted_ids,
    )
    threads = 0 if num_threads is None else num_threads
    framework = FRAMEWORKS[type(router_logits)]
    return call(_OP, framework, router_logits, others, numbers, out, threads, rest)


def _numbers(
    top_k: int,
    block_size: int,
    scoring: str,
    renormalize: bool,
    num_expert_group: int | None,
    topk_group: int | None,
    routed_scaling_factor: float,
    ignore_invalid_experts: bool,
    pad_sorted_ids: bool,
) -> tuple[Any, ...]:
    """The numbers in the order of the table. A flag may be NumPy's, which the FFI does not take."""
    return (
        top_k,
        block_size,
        scoring,
        bool(renormalize),
        *numbers_of_groups(num_expert_group, topk_group),
        routed_scaling_factor,
        bool(ignore_invalid_experts),
        bool(pad_sorted_ids),
    )


def _shapes(arguments: Mapping[str, Any]) -> tuple[Shape, ...]:
    num_tokens, num_experts = arguments["router_logits"].shape
    top_k = arguments["top_k"]
    num_slots, num_blocks = symbolic_sizes(
        num_tokens * top_k,
        arguments["block_size"],
        num_experts,
        arguments.get("pad_sorted_ids", False),
        False,
    )
    return (num_tokens, top_k), (num_tokens, top_k), (num_slots,), (num_blocks,), (1,)


register(TorchOp(_OP, select_and_align, _eagerly, _shapes))


def select_and_align_contract_violations(
    router_logits: Any,
    result: tuple[Any, ...],
    *,
    top_k: int,
    block_size: int,
    scoring: str = "softmax",
    renormalize: bool = False,
    correction_bias: Any = None,
    num_expert_group: int | None = None,
    topk_group: int | None = None,
    routed_scaling_factor: float = 1.0,
    num_valid_tokens: Any = None,
    expert_map: Any = None,
    ignore_invalid_experts: bool = False,
    pad_sorted_ids: bool = False,
    expert_counts: Any = None,
    statistics: Any = None,
    num_threads: int | None = None,
    out: Any = None,
) -> list[Violation]:
    """Judge outputs of `select_and_align`, whoever computed them, against the op's contract.

    Takes the arguments of the call and its result, and ignores `num_threads` and `out`, on which
    the rules do not depend. Waits for arrays on a device, and copies them to the host. A program
    with another exponential function, or another order of the sums, breaks the rule `exact_bits`
    alone.

    Returns:
        At most one violation for each of the op's rules; none if the contract holds.
    """
    inputs = (router_logits, correction_bias, num_valid_tokens, expert_map)
    numbers = _numbers(
        top_k,
        block_size,
        scoring,
        renormalize,
        num_expert_group,
        topk_group,
        routed_scaling_factor,
        ignore_invalid_experts,
        pad_sorted_ids,
    )
    return violations(_OP, inputs, result, numbers, (expert_counts, statistics))
