"""`select_experts` for NumPy arrays, torch tensors and whatever else speaks DLPack."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, overload

import numpy as np
import numpy.typing as npt

from tessera._call import call
from tessera._frameworks import FRAMEWORKS
from tessera._op import Op
from tessera._results import SelectedExperts
from tessera._torch_hook import call_traced, is_traced, register
from tessera._torch_registry import Shape, TorchOp
from tessera.contract import Violation, violations

Array = TypeVar("Array")

_OP = Op("select_experts")


@overload
def select_experts(
    router_logits: npt.NDArray[Any],
    *,
    top_k: int,
    scoring: str = ...,
    renormalize: bool = ...,
    correction_bias: Any = ...,
    num_expert_group: int | None = ...,
    topk_group: int | None = ...,
    routed_scaling_factor: float = ...,
    num_valid_tokens: Any = ...,
    num_threads: int | None = ...,
    out: tuple[npt.NDArray[Any], npt.NDArray[Any]] | None = ...,
) -> SelectedExperts[npt.NDArray[Any]]: ...


@overload
def select_experts(
    router_logits: Array,
    *,
    top_k: int,
    scoring: str = ...,
    renormalize: bool = ...,
    correction_bias: Any = ...,
    num_expert_group: int | None = ...,
    topk_group: int | None = ...,
    routed_scaling_factor: float = ...,
    num_valid_tokens: Any = ...,
    num_threads: int | None = ...,
    out: tuple[Array, Array] | None = ...,
) -> SelectedExperts[Array]: ...


def select_experts(
    router_logits: Any,
    *,
    top_k: int,
    scoring: str = "softmax",
    renormalize: bool = False,
    correction_bias: Any = None,
    num_expert_group: int | None = None,
    topk_group: int | None = None,
    routed_scaling_factor: float = 1.0,
    num_valid_tokens: Any = None,
    num_threads: int | None = None,
    out: tuple[Any, Any] | None = None,
) -> Any:
    """Choose the experts of each token from the router's logits, and weigh them.

    The scores of a token's experts are the softmax of its logits, or the sigmoid or the root of the
    softplus of each. The `top_k` experts with the largest scores are chosen, of equal ones the
    first; with `correction_bias` it is added to the scores for this choice alone, and with groups
    the choice is among the experts of the best `topk_group` groups. A weight is the expert's score,
    divided by the sum of the token's with `renormalize`, times `routed_scaling_factor`. All
    arithmetic is float32, and its bits depend neither on the device, nor on the number of threads,
    nor on the other tokens. `include/tessera/select_experts.hpp` has the contract.

    All arrays are on one device, where the op runs: on a GPU, on the current stream of torch or
    CuPy, without waiting for it; a graph may capture it. Calls with JAX arrays on a GPU are waited
    for. Autograd does not follow the call.

    Args:
        router_logits: float16, bfloat16 or float32 [T, E], E at least 1; rows may lie apart, but
            the last axis is contiguous. A NaN counts as -inf. NumPy has no bfloat16 that it
            exports; torch and JAX have.
        top_k: experts per token, k: 1 to E, and at most what the groups that stay have.
        scoring: "softmax", "sigmoid" or "sqrt_softplus".
        renormalize: divide the weights of a token by their sum.
        correction_bias: float32 [E], contiguous: added to the scores for the choice alone.
        num_expert_group: groups of neighbouring experts, of equal size; divides E. None stands
            for 1.
        topk_group: groups of a token that stay, those with the largest scores: a group's score is
            its largest, or with a bias the sum of its two largest. None stands for all.
        routed_scaling_factor: finite.
        num_valid_tokens: int32 [1]: later tokens are padding, with ids -1 and weights 0.
        num_threads: host threads to use at most, capped by TESSERA_NUM_THREADS; None and 0 stand
            for that, or, where it is unset, for the cores of this process. Never changes the
            result.
        out: tuple of both arrays to write to, contiguous. They may not overlap an input.

    Returns:
        `out` if given, else new arrays in the framework of `router_logits`.
        topk_weights: float32 [T, k].
        topk_ids: int32 [T, k], for each token k different experts, those with larger scores first.

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
            top_k,
            scoring,
            renormalize,
            num_groups,
            num_staying,
            routed_scaling_factor,
        )
        if made is not None:
            return made
    if is_traced(FRAMEWORKS[type(router_logits)]):
        return call_traced(
            _OP,
            router_logits,
            out,
            top_k=top_k,
            scoring=scoring,
            renormalize=renormalize,
            correction_bias=correction_bias,
            num_expert_group=num_expert_group,
            topk_group=topk_group,
            routed_scaling_factor=routed_scaling_factor,
            num_valid_tokens=num_valid_tokens,
            num_threads=num_threads,
        )
    return _eagerly(
        router_logits,
        top_k,
        scoring,
        renormalize,
        correction_bias,
        num_expert_group,
        topk_group,
        routed_scaling_factor,
        num_valid_tokens,
        num_threads,
        out,
    )


def _eagerly(
    router_logits: Any,
    top_k: int,
    scoring: str,
    renormalize: bool,
    correction_bias: Any,
    num_expert_group: int | None,
    topk_group: int | None,
    routed_scaling_factor: float,
    num_valid_tokens: Any,
    num_threads: int | None,
    out: Any,
) -> Any:
    has_others = correction_bias is not None or num_valid_tokens is not None
    others = (correction_bias, num_valid_tokens) if has_others else ()
    numbers = _numbers(
        top_k, scoring, renormalize, num_expert_group, topk_group, routed_scaling_factor
    )
    threads = 0 if num_threads is None else num_threads
    return call(_OP, FRAMEWORKS[type(router_logits)], router_logits, others, numbers, out, threads)


def _numbers(
    top_k: int,
    scoring: str,
    renormalize: bool,
    num_expert_group: int | None,
    topk_group: int | None,
    routed_scaling_factor: float,
) -> tuple[Any, ...]:
    """The numbers in the order of the table. A flag may be NumPy's, which the FFI does not take."""
    groups = numbers_of_groups(num_expert_group, topk_group)
    return (top_k, scoring, bool(renormalize), *groups, routed_scaling_factor)


def numbers_of_groups(num_expert_group: int | None, topk_group: int | None) -> tuple[int, int]:
    """The groups, 1 by default, and those that stay, by default all; of other ops, too."""
    num_groups = 1 if num_expert_group is None else num_expert_group
    return num_groups, num_groups if topk_group is None else topk_group


def _shapes(arguments: Mapping[str, Any]) -> tuple[Shape, ...]:
    shape = (arguments["router_logits"].shape[0], arguments["top_k"])
    return shape, shape


register(TorchOp(_OP, select_experts, _eagerly, _shapes))


def select_experts_contract_violations(
    router_logits: Any,
    result: tuple[Any, ...],
    *,
    top_k: int,
    scoring: str = "softmax",
    renormalize: bool = False,
    correction_bias: Any = None,
    num_expert_group: int | None = None,
    topk_group: int | None = None,
    routed_scaling_factor: float = 1.0,
    num_valid_tokens: Any = None,
    num_threads: int | None = None,
    out: Any = None,
) -> list[Violation]:
    """Judge outputs of `select_experts`, whoever computed them, against the op's contract.

    Takes the arguments of the call and its result, and ignores `num_threads` and `out`, on which
    the rules do not depend. Waits for arrays on a device, and copies them to the host. A program
    with another exponential function, or another order of the sums, breaks the rule `exact_bits`
    alone.

    Returns:
        At most one violation for each of the op's rules; none if the contract holds.
    """
    inputs = (router_logits, correction_bias, num_valid_tokens)
    numbers = _numbers(
        top_k, scoring, renormalize, num_expert_group, topk_group, routed_scaling_factor
    )
    return violations(_OP, inputs, result, numbers)
