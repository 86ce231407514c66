"""`moe_permute` for NumPy arrays, torch tensors and whatever else speaks DLPack."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, overload

import numpy.typing as npt

from tessera._call import call
from tessera._frameworks import FRAMEWORKS
from tessera._op import Op
from tessera._results import PermutedTokens
from tessera._torch_hook import call_traced, is_traced, register
from tessera._torch_registry import Shape, TorchOp
from tessera.contract import Violation, violations

Array = TypeVar("Array")

_OP = Op("moe_permute")


@overload
def moe_permute(
    x: npt.NDArray[Any],
    topk_ids: Any,
    *,
    num_experts: int,
    block_size: int = ...,
    expert_map: Any = ...,
    num_threads: int | None = ...,
    out: tuple[npt.NDArray[Any], ...] | None = ...,
) -> PermutedTokens[npt.NDArray[Any]]: ...


@overload
def moe_permute(
    x: Array,
    topk_ids: Any,
    *,
    num_experts: int,
    block_size: int = ...,
    expert_map: Any = ...,
    num_threads: int | None = ...,
    out: tuple[Array, ...] | None = ...,
) -> PermutedTokens[Array]: ...


def moe_permute(
    x: Any,
    topk_ids: Any,
    *,
    num_experts: int,
    block_size: int = 1,
    expert_map: Any = None,
    num_threads: int | None = None,
    out: tuple[Any, ...] | None = None,
) -> Any:
    """Copy the hidden states of tokens to the order of their experts, for a grouped product.

    A pair (t, s) is slot s of token t, and counts if its expert, `topk_ids[t, s]` or what the map
    makes of it, lies in [0, num_experts). The rows of an expert are those of its pairs, in
    ascending order of t * k + s, and rows of zeros up to a multiple of `block_size`; experts follow
    each other in ascending order. The capacity is T * k + min(T * k, num_experts) * (block_size -
    1) rows. `include/tessera/moe_permute.hpp` has the contract.

    All arrays are on one device, where the op runs: on a GPU, on the current stream of torch or
    CuPy, without waiting for it; a graph may capture it. Calls with JAX arrays on a GPU are waited
    for. Autograd does not follow the call.

    Args:
        x: float16, bfloat16, float32 or float8_e4m3fn [T, H]; rows may lie apart, but the last
            axis is contiguous. Bits are copied as they are. NumPy and CuPy lack float8_e4m3fn, and
            hold its bits as uint8; NumPy arrays of ml_dtypes' type are taken, too.
        topk_ids: int32 or int64 [T, k], contiguous, k at least 1: the router's experts.
        num_experts: at least 1.
        block_size: the number of rows of each expert is a multiple of it; at least 1.
        expert_map: int32 [G]: ids are global experts, and this gives each one's number here; any
            value outside [0, num_experts) marks an expert that lives elsewhere.
        num_threads: host threads to use at most, capped by TESSERA_NUM_THREADS; None and 0 stand
            for that, or, where it is unset, for the cores of this process. Never changes the
            result.
        out: tuple of the three arrays to write to. None may overlap another array of the call.

    Returns:
        `out` if given, else new arrays in the framework of `x`. rows: [capacity, H] of the data
        type of `x`; what follows the rows in use is not written. expert_offsets: int32
        [num_experts + 1], the first row of each expert, then the number of rows in use. inverse:
        int32 [T, k], the row of each pair, -1 for a pair that does not count.

    Raises:
        TypeError: an argument has the wrong type. Nothing was written; so for all errors.
        ValueError: a value, shape, device or layout lies outside the op's domain, or autograd
            follows an array.
        NotImplementedError: nothing in this build can run the call.
        RuntimeError: the machine refused; `torch.OutOfMemoryError`, if torch has no memory left.
        MemoryError: NumPy's own, where it has no memory for the outputs.
    """
    arguments = {
        "topk_ids": topk_ids,
        "num_experts": num_experts,
        "block_size": block_size,
        "expert_map": expert_map,
        "num_threads": num_threads,
    }
    if is_traced(FRAMEWORKS[type(x)]):
        return call_traced(_OP, x, out, **arguments)
    return _eagerly(x, **arguments, out=out)


def _eagerly(
    x: Any,
    topk_ids: Any,
    num_experts: int,
    block_size: int,
    expert_map: Any,
    num_threads: int | None,
    out: Any,
) -> Any:
    threads = 0 if num_threads is None else num_threads
    others = (topk_ids, expert_map)
    return call(_OP, FRAMEWORKS[type(x)], x, others, (num_experts, block_size), out, threads)


def _shapes(arguments: Mapping[str, Any]) -> tuple[Shape, ...]:
    import torch

    num_tokens, top_k = arguments["topk_ids"].shape
    num_pairs, num_experts = num_tokens * top_k, arguments["num_experts"]
    padding = torch.sym_min(num_pairs, num_experts) * (arguments.get("block_size", 1) - 1)
    return (
        (num_pairs + padding, arguments["x"].shape[1]),
        (num_experts + 1,),
        (num_tokens, top_k),
    )


register(TorchOp(_OP, moe_permute, _eagerly, _shapes))


def moe_permute_contract_violations(
    x: Any,
    topk_ids: Any,
    result: tuple[Any, ...],
    *,
    num_experts: int,
    block_size: int = 1,
    expert_map: Any = None,
    num_threads: int | None = None,
    out: Any = None,
) -> list[Violation]:
    """Judge outputs of `moe_permute`, whoever computed them, against the op's contract.

    Takes the arguments of the call and its result, and ignores `num_threads` and `out`, on which
    the rules do not depend. Waits for arrays on a device, and copies them to the host. Time and
    memory are linear in the inputs and outputs.

    Returns:
        At most one violation for each of the op's rules; none if the contract holds.
    """
    return violations(_OP, (x, topk_ids, expert_map), result, (num_experts, block_size))
